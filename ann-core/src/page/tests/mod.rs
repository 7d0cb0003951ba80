//! The stores against the conformance suite, and what each has beyond it.

mod crash;
mod format;
mod power;

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::testing::{Faulty, Latched, Rng};
use super::{HEADER, MAX_PAGE_SIZE, MIN_PAGE_SIZE};
use super::{MemStore, MmapStore, PageId, PageStore, conformance, save};
use crate::error::{Error, Result};

type State = Vec<Vec<u8>>;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A folder in memory, where the system has one: what is simulated here needs no disk to wait for.
fn quick_folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| folder())
}

/// The bodies of all pages.
fn state(store: &impl PageStore) -> State {
    (0..store.page_count()).map(|page| store.read(PageId(page)).unwrap().to_vec()).collect()
}

/// Writes `byte` to a few places of some pages, page 0 among them.
fn scribble(store: &mut impl PageStore, rng: &mut Rng) -> Result<()> {
    let mut pages = vec![PageId(0)];
    for _ in 0..2 {
        let page = PageId(rng.below(store.page_count() as usize) as u32);
        if !pages.contains(&page) {
            pages.push(page);
        }
    }
    let room = store.page_size() - HEADER - 200;
    store.write(&pages, |change| {
        for index in 0..pages.len() {
            change.put(index, rng.below(room), &[rng.below(256) as u8; 200])?;
        }
        Ok(())
    })
}

/// A store with random content.
fn filled<S: PageStore>(mut store: S, pages: u32, seed: u64) -> S {
    store.grow(pages).unwrap();
    let mut rng = Rng(seed);
    for _ in 0..pages * 2 {
        scribble(&mut store, &mut rng).unwrap();
    }
    store
}

#[test]
fn the_memory_store_conforms() {
    for page_size in [MIN_PAGE_SIZE, 8192, MAX_PAGE_SIZE] {
        conformance::suite(|| MemStore::new(page_size).unwrap());
    }
    let folder = folder();
    let path = folder.path().join("a");
    let reopen = |store: MemStore| {
        save(&store, &path).unwrap();
        MemStore::load(&path).unwrap()
    };
    conformance::durable(|| MemStore::new(8192).unwrap(), reopen);
}

#[test]
fn the_memory_store_conforms_in_a_file() {
    for page_size in [MIN_PAGE_SIZE, 8192, MAX_PAGE_SIZE] {
        conformance::suite(|| {
            let mut store = filled(MemStore::new(page_size).unwrap(), 3, 1);
            let before = state(&store);
            store.move_to_file(tempfile::tempfile().unwrap()).unwrap();
            assert!(store.is_in_file() && state(&store) == before);
            store
        });
    }
}

/// What a temporary file has no room for is an error, and changes nothing.
#[test]
fn a_temporary_file_that_cannot_be_written() {
    let folder = folder();
    fs::write(folder.path().join("a"), b"").unwrap();
    let mut store = filled(MemStore::new(8192).unwrap(), 3, 1);
    let before = state(&store);
    let unwritable = fs::File::open(folder.path().join("a")).unwrap();
    assert!(matches!(store.move_to_file(unwritable), Err(Error::Io { .. })));
    assert!(!store.is_in_file() && state(&store) == before);
    store.leave_memory().unwrap();
    store.grow(300).unwrap();
    assert!(store.is_in_file() && state(&store)[..3] == before);
}

#[test]
fn the_mmap_store_conforms() {
    let folder = folder();
    let path = folder.path().join("a");
    let make = |page_size| {
        let _ = fs::remove_file(&path);
        MmapStore::create(&path, page_size).unwrap()
    };
    for page_size in [MIN_PAGE_SIZE, 8192] {
        conformance::suite(|| make(page_size));
        let reopen = |store| {
            drop(store);
            let store = MmapStore::open_writable(&path).unwrap();
            store.verify_pages().unwrap();
            store
        };
        conformance::durable(|| make(page_size), reopen);
        let few = |store: MmapStore| {
            let mut store = reopen(store);
            store.set_dirty_limit(3).unwrap();
            store
        };
        conformance::durable(|| few(make(page_size)), few);
    }
}

#[test]
fn the_test_stores_conform() {
    conformance::suite(|| Faulty::new(MemStore::new(4096).unwrap()));
    conformance::suite(|| Latched::new(MemStore::new(4096).unwrap()));
}

#[test]
fn a_page_size_is_checked() {
    let folder = folder();
    let path = folder.path().join("a");
    for page_size in [0, 1, 2048, 4095, 12288, 2 << 20, usize::MAX] {
        let made = MemStore::new(page_size).map(|_| ());
        assert!(matches!(made, Err(Error::Parameter { name: "page_size", .. })), "{page_size}");
        let made = MmapStore::create(&path, page_size).map(|_| ());
        assert!(matches!(made, Err(Error::Parameter { name: "page_size", .. })), "{page_size}");
        assert!(!path.exists());
    }
}

#[test]
fn more_memory_than_there_is_is_an_error() {
    let mut store = filled(MemStore::new(MAX_PAGE_SIZE).unwrap(), 3, 1);
    let before = state(&store);
    let grown = store.grow(u32::MAX);
    assert!(matches!(grown, Err(Error::OutOfMemory { .. })), "{grown:?}");
    assert!(store.page_count() == 3 && state(&store) == before);
    store.grow(4).unwrap();
}

/// Grows page by page and by leaps, with a number written to each page when it is new.
fn grows(mut store: impl PageStore) {
    let mut pages = 1;
    while pages < 4000 {
        for page in store.page_count()..pages {
            store.grow(page + 1).unwrap();
            store.write(&[PageId(page)], |change| change.put(0, 9, &page.to_le_bytes())).unwrap();
        }
        for page in 0..pages {
            assert_eq!(store.read(PageId(page)).unwrap()[9..13], page.to_le_bytes());
        }
        pages += 1 + pages / 3;
    }
}

/// Resident bytes of the mapping that has an address in it.
#[cfg(target_os = "linux")]
fn resident(address: usize) -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let hex = |text: &str| usize::from_str_radix(text, 16).ok();
    let range = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        Some(hex(start)?..hex(end)?)
    };
    let mut lines = maps.lines();
    lines.find(|line| range(line).is_some_and(|range| range.contains(&address))).unwrap();
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB"));
    1024 * rss.unwrap().parse::<usize>().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn pages_that_are_not_written_take_no_memory() {
    let mut store = MemStore::new(8192).unwrap();
    for pages in [1 << 16, 1 << 17, 1 << 18] {
        store.grow(pages).unwrap();
        store.write(&[PageId(pages - 1)], |change| change.put(0, 0, &[1])).unwrap();
    }
    assert_eq!(store.read(PageId((1 << 16) - 1)).unwrap()[0], 1);
    let taken = resident(store.contiguous().unwrap().as_ptr().addr());
    assert!(taken < 768 << 20, "2 GiB of pages, three of them written, take {taken} bytes");
}

#[test]
fn pages_stay_when_others_are_added() {
    grows(MemStore::new(4096).unwrap());
    let folder = folder();
    grows(MmapStore::create(&folder.path().join("a"), 4096).unwrap());
}

#[test]
fn a_faulty_store_fails_once_and_changes_nothing() {
    let mut store = filled(Faulty::new(MemStore::new(4096).unwrap()), 5, 1);
    let before = state(&store);
    let mut rng = Rng(2);
    store.fail_after(0);
    assert!(matches!(store.grow(9), Err(Error::Io { .. })) && store.page_count() == 5);
    store.fail_after(1);
    store.flush().unwrap();
    assert!(matches!(scribble(&mut store, &mut rng), Err(Error::Io { .. })));
    assert!(state(&store) == before);
    scribble(&mut store, &mut rng).unwrap();
    assert!(state(&store) != before);
    store.fail_after(0);
    assert!(store.flush().is_err() && store.flush().is_ok());
}

#[test]
fn a_meddler_changes_pages_before_a_write() {
    let mut store = Latched::new(filled(MemStore::new(4096).unwrap(), 2, 1));
    store.meddle(|inner, pages| {
        assert_eq!(pages, [PageId(1)]);
        inner.write(pages, |change| change.put(0, 0, &[99])).unwrap();
    });
    let seen = store.write(&[PageId(1)], |pages| Ok(pages.body(0)[0])).unwrap();
    assert_eq!(seen, 99);
}

#[test]
#[should_panic(expected = "read while this thread holds 1 read guard")]
fn a_second_guard_in_a_thread_is_found() {
    let store = filled(Latched::new(MemStore::new(4096).unwrap()), 2, 1);
    let _first = store.read(PageId(0));
    let _second = store.read(PageId(1));
}

#[test]
#[should_panic(expected = "write while this thread holds 1 read guard")]
fn a_guard_held_during_a_write_is_found() {
    let source = filled(Latched::new(MemStore::new(4096).unwrap()), 1, 1);
    let mut target = filled(Latched::new(MemStore::new(4096).unwrap()), 1, 2);
    let body = source.read(PageId(0)).unwrap();
    let _ = target.write(&[PageId(0)], |pages| pages.put(0, 0, &body));
}

#[test]
fn guards_of_different_threads_do_not_meet() {
    let store = filled(Latched::new(MemStore::new(4096).unwrap()), 2, 1);
    let _first = store.read(PageId(0)).unwrap();
    std::thread::scope(|scope| scope.spawn(|| store.read(PageId(1)).map(|_| ())).join())
        .unwrap()
        .unwrap();
}

/// Files in a folder besides the one that is named.
fn leftovers(path: &Path) -> Vec<String> {
    let names = fs::read_dir(path.parent().unwrap()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| path.file_name().unwrap() != name.as_str()).collect()
}
