//! Disks that lose their power: what was flushed is found again, whole, whatever else became of the rest.

use super::super::testing::{PowerCut, TestDisk};
use super::crash::{changed, commit};
use super::*;

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
        self.durable.push((disk.operations(), self.states.len() - 1));
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
        store.set_dirty_limit(if by_itself { 4 } else { usize::MAX }).unwrap();
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
        let found = quick_folder();
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
        assert!(state(&writer) == read, "{what}: a reader saw another state than a writer");
        cuts += 1;
    }
    (cuts, newer)
}

#[test]
fn a_power_cut_leaves_what_was_flushed() {
    let (mut done, mut newer) = (0, 0);
    for seed in 0..20 {
        let (mut rng, disk, lived) = (Rng(seed), TestDisk::default(), quick_folder());
        let history = live(&disk, &lived.path().join("a"), &mut rng, seed % 2 == 1);
        let counts = cuts(&history, &disk, &mut rng, 0, 20);
        (done, newer) = (done + counts.0, newer + counts.1);
    }
    assert!(done > 200 && newer > 20, "{done} cuts, {newer} with more than was flushed");
}

/// As after a kill or an error nothing that was written before need be durable.
#[test]
fn a_power_cut_after_a_kill_or_an_error_leaves_what_was_flushed() {
    for (step, killed) in (0..).flat_map(|step| [(step, false), (step, true)]) {
        let (mut rng, disk, lived) = (Rng(step as u64), TestDisk::default(), quick_folder());
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
    let lived = quick_folder();
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
            let after = quick_folder();
            power.cut(&mut rng, after.path()).unwrap();
            let loaded = state(&MemStore::load(&after.path().join("a")).unwrap());
            let at = stores.iter().position(|store| state(store) == loaded).expect("a whole file");
            assert!(at + 1 == durable || at == durable, "save {at} found, {durable} returned");
            found[at] += 1;
        }
    }
    assert!(found.iter().all(|&count| count > 10), "found each save {found:?} times");
}
