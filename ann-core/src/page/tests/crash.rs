//! Flushes that fail, processes that are killed and disks that lose their power, each at every step.

use std::fs;

use super::super::testdisk::{PowerCut, TestDisk};
use super::*;

/// Some changes: to pages there are, and to new ones every other time.
fn commit(store: &mut MmapStore, rng: &mut Rng) -> Result<()> {
    if rng.below(2) == 0 {
        store.grow(store.page_count() + rng.below(3) as u32)?;
    }
    for _ in 0..3 {
        scribble(store, rng)?;
    }
    Ok(())
}

/// A file with one flush made, and the store with changes that are not flushed.
fn changed(disk: &TestDisk, path: &Path, rng: &mut Rng) -> (MmapStore, State) {
    let mut store = disk.create(path, 4096).unwrap();
    store.grow(6).unwrap();
    commit(&mut store, rng).unwrap();
    store.flush().unwrap();
    let flushed = state(&store);
    store.grow(9).unwrap();
    commit(&mut store, rng).unwrap();
    (store, flushed)
}

#[test]
fn a_flush_that_failed_can_be_tried_again() {
    let mut combinations = 0;
    for first in 0.. {
        for second in 0.. {
            let folder = folder();
            let path = folder.path().join("a");
            let (disk, mut rng) = (TestDisk::default(), Rng(first as u64));
            let (mut store, flushed) = changed(&disk, &path, &mut rng);
            let failures = [first, second].map(|step| {
                disk.fail_after(step, false);
                let before = state(&store);
                let done = store.flush();
                disk.heal();
                assert!(matches!(done, Ok(()) | Err(Error::Io { .. })), "{done:?}");
                assert!(state(&store) == before, "a flush changed what is seen");
                store.verify_pages().unwrap();
                commit(&mut store, &mut rng).unwrap();
                done.is_err()
            });
            store.flush().unwrap();
            let last = state(&store);
            assert!(last != flushed);
            store.verify_pages().unwrap();
            drop(store);
            let store = MmapStore::open(&path).unwrap();
            assert!(state(&store) == last, "failed at {first}, then at {second}");
            store.verify_pages().unwrap();
            assert!(leftovers(&path).is_empty());
            combinations += 1;
            if !failures[0] {
                assert!(
                    combinations > 100,
                    "only {combinations} combinations of failures"
                );
                return;
            }
            if !failures[1] {
                break;
            }
        }
    }
}

#[test]
fn a_process_killed_in_a_flush_leaves_all_or_nothing() {
    let (mut old, mut new) = (0, 0);
    for step in 0.. {
        let folder = folder();
        let path = folder.path().join("a");
        let (disk, mut rng) = (TestDisk::default(), Rng(step as u64));
        let (mut store, flushed) = changed(&disk, &path, &mut rng);
        let changed = state(&store);
        disk.fail_after(step, true);
        let done = store.flush();
        drop(store);
        if done.is_ok() {
            break;
        }
        disk.heal();
        // A reader sees the same as the writer that comes after it, and so does one who loads.
        let reader = MmapStore::open(&path).unwrap();
        reader.verify_pages().unwrap();
        let read = state(&reader);
        drop(reader);
        assert!(read == flushed || read == changed, "killed at {step}");
        assert!(
            state(&MemStore::load(&path).unwrap()) == read,
            "killed at {step}"
        );
        if read == flushed {
            old += 1
        } else {
            new += 1
        }
        let mut store = disk.open_writable(&path).unwrap();
        assert!(state(&store) == read, "killed at {step}");
        store.verify_pages().unwrap();
        commit(&mut store, &mut rng).unwrap();
        let last = state(&store);
        drop(store);
        assert!(state(&MmapStore::open(&path).unwrap()) == last);
    }
    assert!(
        old > 5 && new > 5,
        "killed {old} times before and {new} times after the journal was whole"
    );
}

#[test]
fn changes_of_many_pages_are_flushed_between_writes() {
    let folder = folder();
    let path = folder.path().join("a");
    let (disk, mut rng) = (TestDisk::default(), Rng(1));
    let mut store = disk.create(&path, 4096).unwrap();
    store.set_dirty_limit(3).unwrap();
    store.grow(30).unwrap();
    let mut states = vec![state(&store)];
    for _ in 0..50 {
        scribble(&mut store, &mut rng).unwrap();
        states.push(state(&store));
    }
    // A flush that is due and fails refuses the write, which can be tried again.
    disk.fail_after(0, false);
    while scribble(&mut store, &mut rng).is_ok() {
        states.push(state(&store));
    }
    assert!(state(&store) == *states.last().unwrap());
    scribble(&mut store, &mut rng).unwrap();
    disk.fail_after(0, true);
    drop(store);
    let found = state(&MmapStore::open(&path).unwrap());
    let at = states
        .iter()
        .position(|state| *state == found)
        .expect("a state between two writes");
    assert!(
        at > states.len() - 4,
        "{at} of {} states were flushed",
        states.len()
    );
}

/// A file whose journal is whole, but none of it in the file yet.
fn pending(disk: &TestDisk, path: &Path, rng: &mut Rng) -> (State, State) {
    for step in 0.. {
        let _ = fs::remove_file(path);
        let (mut store, flushed) = changed(disk, path, rng);
        let changed = state(&store);
        disk.fail_after(step, true);
        store.flush().unwrap_err();
        drop(store);
        disk.heal();
        if state(&MmapStore::open(path).unwrap()) == changed {
            return (flushed, changed);
        }
    }
    unreachable!()
}

#[test]
fn a_journal_is_for_its_own_file_only() {
    let folder = folder();
    let path = folder.path().join("a");
    let journal = folder.path().join("a.journal");
    let (disk, mut rng) = (TestDisk::default(), Rng(1));
    let (_, changed) = pending(&disk, &path, &mut rng);
    let (before, stale) = (fs::read(&path).unwrap(), fs::read(&journal).unwrap());

    // A file of the same size and history as far as page 0 can tell, but for what was saved in it.
    let other = filled(MemStore::new(4096).unwrap(), 6, 9);
    save(&other, &folder.path().join("other")).unwrap();
    fs::rename(folder.path().join("other"), &path).unwrap();
    assert!(state(&MmapStore::open(&path).unwrap()) == state(&other));
    assert!(state(&MmapStore::open_writable(&path).unwrap()) == state(&other));

    fs::write(&journal, &stale).unwrap();
    save(&other, &path).unwrap();
    assert!(!journal.exists(), "the journal outlived its file");

    fs::remove_file(&path).unwrap();
    fs::write(&journal, &stale).unwrap();
    assert_eq!(MmapStore::create(&path, 4096).unwrap().page_count(), 0);

    // Another file's transaction after one of its own.
    pending(&disk, &folder.path().join("b"), &mut rng);
    let foreign = fs::read(folder.path().join("b.journal")).unwrap();
    fs::write(&path, &before).unwrap();
    fs::write(&journal, [stale, foreign].concat()).unwrap();
    assert!(state(&MmapStore::open_writable(&path).unwrap()) == changed);
}

#[test]
fn a_damaged_journal_is_ignored() {
    let folder = folder();
    let path = folder.path().join("a");
    let journal = folder.path().join("a.journal");
    let (disk, mut rng) = (TestDisk::default(), Rng(1));
    let (flushed, _) = pending(&disk, &path, &mut rng);
    let (file, whole) = (fs::read(&path).unwrap(), fs::read(&journal).unwrap());
    for _ in 0..300 {
        let mut bytes = whole.clone();
        match rng.below(4) {
            0 => bytes.truncate(rng.below(whole.len())),
            1 => {
                let at = rng.below(whole.len());
                bytes[at] ^= 1 << rng.below(8);
            }
            2 => {
                let at = rng.below(whole.len() / 512) * 512;
                bytes[at..at + 512].fill(0);
            }
            // An image that is sound in itself, but of another flush.
            _ => {
                let at = HEADER + 4096 * rng.below(whole.len() / 4096);
                let page = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
                bytes[at..at + 4096].copy_from_slice(&file[page * 4096..][..4096]);
            }
        }
        if bytes == whole {
            continue;
        }
        fs::write(&path, &file).unwrap();
        fs::write(&journal, &bytes).unwrap();
        let store = MmapStore::open_writable(&path).unwrap();
        assert!(state(&store) == flushed, "a damaged journal was used");
    }
}

/// States that a file may be found in, and when, as operations on the disk are counted, they came to be.
#[derive(Default)]
struct History {
    /// Each with the number of operations before which it was tried to be made durable.
    states: Vec<(usize, State)>,
    /// Since which operation each of the states in this list is the least that must be found.
    durable: Vec<(usize, usize)>,
}

impl History {
    fn attempt(&mut self, disk: &TestDisk, store: &MmapStore) {
        self.states.push((disk.operations(), state(store)));
    }

    fn succeeded(&mut self, disk: &TestDisk) {
        self.durable
            .push((disk.operations(), self.states.len() - 1));
    }

    /// The states that may be found when the power was cut after `operations`.
    fn at(&self, operations: usize) -> Option<&[(usize, State)]> {
        let from = self.durable.iter().rfind(|(at, _)| *at <= operations)?.1;
        let to = self.states.partition_point(|(at, _)| *at <= operations);
        Some(&self.states[from..to])
    }
}

/// Random changes, flushes, failures, kills and reopens. With `by_itself` the store also flushes when it likes.
fn live(disk: &TestDisk, path: &Path, rng: &mut Rng, by_itself: bool) -> History {
    let mut history = History::default();
    let open = |disk: &TestDisk, history: &mut History, store: Result<MmapStore>| {
        let mut store = store.unwrap();
        history.attempt(disk, &store);
        history.succeeded(disk);
        store
            .set_dirty_limit(if by_itself { 4 } else { usize::MAX })
            .unwrap();
        store.grow(4).unwrap();
        store
    };
    let mut store = open(disk, &mut history, disk.create(path, 4096));
    for _ in 0..25 {
        if rng.below(2) == 0 {
            disk.fail_after(rng.below(30), rng.below(2) == 0);
        }
        for _ in 0..rng.below(6) {
            if by_itself {
                history.attempt(disk, &store);
            }
            // What fails here was injected, and must leave the store as it was.
            let _ = match rng.below(3) {
                0 => store.grow(store.page_count() + rng.below(3) as u32),
                _ => scribble(&mut store, rng),
            };
        }
        history.attempt(disk, &store);
        if store.flush().is_ok() {
            history.succeeded(disk);
        }
        if rng.below(4) == 0 {
            if rng.below(2) == 0 {
                disk.fail_after(0, true);
            }
            drop(store);
            disk.heal();
            // Killed again, perhaps, in the middle of recovering.
            disk.fail_after(rng.below(6), true);
            let _ = disk.open_writable(path);
            disk.heal();
            store = open(disk, &mut history, disk.open_writable(path));
        }
        disk.heal();
    }
    history
}

/// Cuts the power at random moments from `since` on, once in `rarely`. How often, and how often what was found was
/// newer than the last flush that succeeded.
fn cuts(
    history: &History,
    disk: &TestDisk,
    rng: &mut Rng,
    since: usize,
    rarely: usize,
) -> (usize, usize) {
    let (mut cuts, mut newer) = (0, 0);
    let mut power = PowerCut::default();
    for (operations, record) in (1..).zip(&disk.log()) {
        power.apply(record);
        let Some(allowed) = history.at(operations) else {
            continue;
        };
        if operations < since || rng.below(rarely) > 0 {
            continue;
        }
        let found = folder();
        let path = found.path().join("a");
        power.cut(rng, found.path()).unwrap();
        let what = format!("cut after operation {operations}, {record:.60?}");
        let reader = MmapStore::open(&path).expect(&what);
        reader.verify_pages().expect(&what);
        let read = state(&reader);
        drop(reader);
        let at = allowed.iter().position(|(_, state)| *state == read);
        let at = at.unwrap_or_else(|| panic!("{what}: none of {} states", allowed.len()));
        newer += usize::from(at > 0);
        let writer = MmapStore::open_writable(&path).expect(&what);
        writer.verify_pages().expect(&what);
        assert!(
            state(&writer) == read,
            "{what}: a reader saw another state than a writer"
        );
        cuts += 1;
    }
    (cuts, newer)
}

#[test]
fn a_power_cut_leaves_what_was_flushed() {
    let (mut done, mut newer) = (0, 0);
    for seed in 0..20 {
        let (mut rng, disk, lived) = (Rng(seed), TestDisk::default(), folder());
        let history = live(&disk, &lived.path().join("a"), &mut rng, seed % 2 == 1);
        let counts = cuts(&history, &disk, &mut rng, 0, 20);
        (done, newer) = (done + counts.0, newer + counts.1);
    }
    assert!(
        done > 200 && newer > 20,
        "{done} cuts, {newer} with more than was flushed"
    );
}

/// As after a kill or an error nothing that was written before need be durable.
#[test]
fn a_power_cut_after_a_kill_or_an_error_leaves_what_was_flushed() {
    for (step, killed) in (0..).flat_map(|step| [(step, false), (step, true)]) {
        let (mut rng, disk, lived) = (Rng(step as u64), TestDisk::default(), folder());
        let path = lived.path().join("a");
        let mut history = History::default();
        let (mut store, flushed) = changed(&disk, &path, &mut rng);
        history.states.push((0, flushed));
        history.succeeded(&disk);
        history.attempt(&disk, &store);
        disk.fail_after(step, killed);
        let done = store.flush();
        let since = disk.operations();
        if killed {
            drop(store);
            disk.heal();
            store = disk.open_writable(&path).unwrap();
        } else {
            disk.heal();
            commit(&mut store, &mut rng).unwrap();
            history.attempt(&disk, &store);
            store.flush().unwrap();
        }
        history.attempt(&disk, &store);
        history.succeeded(&disk);
        for _ in 0..4 {
            cuts(&history, &disk, &mut rng, since, 1);
        }
        if done.is_ok() {
            assert!(step > 10, "a flush has {step} steps");
            return;
        }
    }
}

#[test]
fn a_power_cut_in_a_save_leaves_the_old_file_or_the_new() {
    let lived = folder();
    let path = lived.path().join("a");
    let (disk, mut rng) = (TestDisk::default(), Rng(1));
    let stores = [5, 9, 4].map(|pages| filled(MemStore::new(4096).unwrap(), pages, pages.into()));
    let ends = stores.each_ref().map(|store| {
        disk.save(store, &path).unwrap();
        disk.operations()
    });
    let mut power = PowerCut::default();
    let mut found = [0; 3];
    for (operations, record) in (1..).zip(&disk.log()) {
        power.apply(record);
        let durable = ends.iter().filter(|&&end| end <= operations).count();
        for _ in 0..if durable > 0 { 20 } else { 0 } {
            let after = folder();
            power.cut(&mut rng, after.path()).unwrap();
            let loaded = state(&MemStore::load(&after.path().join("a")).unwrap());
            let at = stores
                .iter()
                .position(|store| state(store) == loaded)
                .expect("a whole file");
            assert!(
                at + 1 == durable || at == durable,
                "save {at} found, {durable} returned"
            );
            found[at] += 1;
        }
    }
    assert!(
        found.iter().all(|&count| count > 10),
        "found each save {found:?} times"
    );
}
