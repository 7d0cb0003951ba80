//! Flushes that fail and processes that are killed, at every step, and journals that are not what they should be.

use std::fs::{self, OpenOptions};
use std::io::Write;

use crc32c::{crc32c, crc32c_append};

use super::super::testing::TestDisk;
use super::*;

/// Some changes: to pages there are, and to new ones every other time.
pub(super) fn commit(store: &mut MmapStore, rng: &mut Rng) -> Result<()> {
    if rng.below(2) == 0 {
        store.grow(store.page_count() + rng.below(3) as u32)?;
    }
    for _ in 0..3 {
        scribble(store, rng)?;
    }
    Ok(())
}

/// A file with one flush made, and the store with changes that are not flushed.
pub(super) fn changed(disk: &TestDisk, path: &Path, rng: &mut Rng) -> (MmapStore, State) {
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
            let folder = quick_folder();
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
                assert!(combinations > 100, "only {combinations} combinations of failures");
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
        let folder = quick_folder();
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
        assert!(state(&MemStore::load(&path).unwrap()) == read, "killed at {step}");
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
    let folder = quick_folder();
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
    let refused = (0..5).any(|_| {
        let refused = scribble(&mut store, &mut rng).is_err();
        states.push(state(&store));
        refused
    });
    assert!(refused && states[states.len() - 1] == states[states.len() - 2]);
    scribble(&mut store, &mut rng).unwrap();
    disk.fail_after(0, true);
    drop(store);
    let found = state(&MmapStore::open(&path).unwrap());
    let at = states.iter().position(|state| *state == found).expect("a state between two writes");
    assert!(at > states.len() - 4, "{at} of {} states were flushed", states.len());
}

/// Kills a flush at the moment when the journal is whole and none of it is in the file yet. `make` makes a file and
/// changes it; the state that the journal leads to.
fn pending(path: &Path, make: impl Fn(&TestDisk) -> MmapStore) -> State {
    let disk = TestDisk::default();
    for step in 0..100 {
        let mut store = make(&disk);
        let changed = state(&store);
        disk.fail_after(step, true);
        store.flush().unwrap_err();
        drop(store);
        disk.heal();
        if state(&MmapStore::open(path).unwrap()) == changed {
            return changed;
        }
        fs::remove_file(path).unwrap();
    }
    panic!("no flush was killed when its journal was whole");
}

#[test]
fn a_journal_is_for_its_own_file_only() {
    let folder = quick_folder();
    let [path, journal, other] = ["a", "a.journal", "b"].map(|name| folder.path().join(name));

    // A file of which page 0 is the same, and not only the pages that the journal has.
    let mut stores = [1, 1].map(|seed| filled(MemStore::new(4096).unwrap(), 6, seed));
    stores[1].write(&[PageId(3)], |change| change.put(0, 0, b"differs")).unwrap();
    pending(&path, |disk| {
        disk.save(&stores[0], &path).unwrap();
        let mut store = disk.open_writable(&path).unwrap();
        scribble(&mut store, &mut Rng(2)).unwrap();
        store
    });
    let stale = fs::read(&journal).unwrap();
    save(&stores[1], &other).unwrap();
    fs::rename(&other, &path).unwrap();
    assert!(state(&MmapStore::open(&path).unwrap()) == state(&stores[1]));
    assert!(state(&MmapStore::open_writable(&path).unwrap()) == state(&stores[1]));
    fs::write(&journal, &stale).unwrap();
    save(&stores[1], &path).unwrap();
    assert!(!journal.exists(), "the journal outlived its file");
    fs::remove_file(&path).unwrap();

    // New files begin alike.
    pending(&path, |disk| {
        let mut store = disk.create(&path, 4096).unwrap();
        store.grow(3).unwrap();
        store
    });
    fs::remove_file(&path).unwrap();
    drop(MmapStore::create(&path, 4096).unwrap());
    assert_eq!(MmapStore::open(&path).unwrap().page_count(), 0);
    fs::remove_file(&path).unwrap();

    // Another file's transaction after one of its own.
    let whole = pending(&path, |disk| changed(disk, &path, &mut Rng(1)).0);
    pending(&other, |disk| changed(disk, &other, &mut Rng(2)).0);
    let foreign = fs::read(folder.path().join("b.journal")).unwrap();
    OpenOptions::new().append(true).open(&journal).unwrap().write_all(&foreign).unwrap();
    assert!(state(&MmapStore::open_writable(&path).unwrap()) == whole);
}

#[test]
fn a_damaged_journal_is_ignored() {
    let folder = quick_folder();
    let [path, journal] = ["a", "a.journal"].map(|name| folder.path().join(name));
    pending(&path, |disk| changed(disk, &path, &mut Rng(1)).0);
    let (file, whole) = (fs::read(&path).unwrap(), fs::read(&journal).unwrap());
    fs::remove_file(&journal).unwrap();
    let flushed = state(&MmapStore::open(&path).unwrap());
    let mut rng = Rng(1);
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

/// Sound checksums prove nothing: whatever a journal says, it is an answer or an error.
#[test]
fn a_forged_journal_does_no_harm() {
    let folder = quick_folder();
    let [path, journal] = ["a", "a.journal"].map(|name| folder.path().join(name));
    pending(&path, |disk| changed(disk, &path, &mut Rng(1)).0);
    let (file, whole) = (fs::read(&path).unwrap(), fs::read(&journal).unwrap());
    let mut rng = Rng(1);
    let mut used = 0;
    for _ in 0..500 {
        let mut bytes = whole.clone();
        let (head, images) = bytes.split_at_mut(HEADER);
        for _ in 0..rng.below(3) + 1 {
            let word = [0, 1, 2, 3, 7, 4096, 8192, u32::MAX][rng.below(8)].to_le_bytes();
            match rng.below(4) {
                0 => head[4 + 4 * rng.below(9)..][..4].copy_from_slice(&word),
                _ => {
                    let image = 4096 * rng.below(images.len() / 4096);
                    images[image + 4 + 4 * rng.below(9)..][..4].copy_from_slice(&word);
                }
            }
        }
        let mut digest = 0;
        for image in images.chunks_mut(4096) {
            let checksum = crc32c(&image[4..]).to_le_bytes();
            image[..4].copy_from_slice(&checksum);
            digest = crc32c_append(digest, &checksum);
        }
        head[28..32].copy_from_slice(&u32::to_le_bytes(digest));
        let checksum = crc32c(&head[4..]).to_le_bytes();
        head[..4].copy_from_slice(&checksum);
        fs::write(&path, &file).unwrap();
        fs::write(&journal, &bytes).unwrap();
        let read =
            MmapStore::open(&path).map(|store| (state(&store), store.verify_pages().is_ok()));
        let loaded = MemStore::load(&path).map(|store| state(&store));
        let written = MmapStore::open_writable(&path).map(|store| state(&store));
        used += usize::from(written.is_ok());
        assert_eq!(read.is_ok(), written.is_ok());
        if let Ok((read, whole)) = read {
            assert!(read == written.unwrap() && whole == loaded.is_ok());
        }
    }
    assert!(used > 100 && used < 500, "{used} forged journals were used");
}
