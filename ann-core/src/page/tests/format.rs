//! Files: what is in them, what is refused, who may have them open.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use crc32c::crc32c;

use super::super::testing::TestDisk;
use super::*;

/// A saved file of seven pages of 4 KiB.
fn saved(path: &Path) -> MemStore {
    let store = filled(MemStore::new(4096).unwrap(), 7, 3);
    save(&store, path).unwrap();
    store
}

fn error_of<T>(result: Result<T>) -> Error {
    result.err().expect("an error")
}

/// Every way to open a file.
fn opened(path: &Path) -> [Result<State>; 3] {
    [
        MmapStore::open(path).map(|store| state(&store)),
        MmapStore::open_writable(path).map(|store| state(&store)),
        MemStore::load(path).map(|store| state(&store)),
    ]
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Changes a page and gives it the checksum that fits.
fn forge(path: &Path, page: usize, at: usize, new: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let image = &mut bytes[page * 4096..][..4096];
    image[at..at + new.len()].copy_from_slice(new);
    let checksum = crc32c(&image[4..]);
    image[..4].copy_from_slice(&checksum.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_file_is_as_the_format_says() {
    let folder = folder();
    let path = folder.path().join("a");
    let store = saved(&path);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 7 * 4096);
    for (page, image) in bytes.chunks(4096).enumerate() {
        assert_eq!(word(image, 0), crc32c(&image[4..]), "checksum of page {page}");
        assert_eq!(word(image, 4), page as u32);
        assert_eq!((word(image, 8), word(image, 12)), (1, 0), "sequence number of page {page}");
        assert!(image[HEADER..] == *store.read(PageId(page as u32)).unwrap());
        if page > 0 {
            assert!(image[16..HEADER].iter().all(|&byte| byte == 0));
        }
    }
    assert_eq!(bytes[16..24], *b"ANNPAGES");
    assert_eq!([24, 28, 32].map(|at| word(&bytes, at)), [1, 4096, 7]);
    assert!(bytes[40..HEADER].iter().all(|&byte| byte == 0));
    for state_of in opened(&path) {
        assert!(state_of.unwrap() == state(&store));
    }
    assert!(leftovers(&path).is_empty());
}

#[test]
fn an_empty_store_is_a_file_too() {
    let folder = folder();
    let (saved, created) = (folder.path().join("saved"), folder.path().join("created"));
    save(&MemStore::new(4096).unwrap(), &saved).unwrap();
    drop(MmapStore::create(&created, 4096).unwrap());
    assert_eq!(fs::read(&saved).unwrap(), fs::read(&created).unwrap());
    for path in [saved, created] {
        for state_of in opened(&path) {
            assert!(state_of.unwrap().is_empty());
        }
    }
}

#[test]
fn a_saved_file_depends_on_the_pages_alone() {
    let folder = folder();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let store = saved(&one);
    drop(filled(MmapStore::create(&two, 4096).unwrap(), 7, 3));
    let copy = MmapStore::open(&two).unwrap();
    save(&copy, &folder.path().join("three")).unwrap();
    assert_eq!(fs::read(&one).unwrap(), fs::read(folder.path().join("three")).unwrap());
    assert!(state(&store) == state(&copy));
}

#[test]
fn what_is_not_ours_is_refused() {
    let folder = folder();
    let path = folder.path().join("a");
    let cases: [&[u8]; 4] = [b"", b"short", &[0; 5000], &[b'x'; 100_000]];
    for bytes in cases {
        fs::write(&path, bytes).unwrap();
        for error in opened(&path).map(error_of) {
            assert!(matches!(error, Error::NotAnIndex { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        assert_eq!(fs::read(&path).unwrap(), bytes, "a file that is not ours was changed");
    }
    for error in opened(folder.path()).map(error_of) {
        assert!(matches!(error, Error::NotAnIndex { .. }), "{error}");
    }
    for missing in [folder.path().join("none"), folder.path().join("no/folder"), "".into()] {
        for error in opened(&missing).map(error_of) {
            assert!(matches!(&error, Error::Io { path, .. } if *path == missing), "{error}");
        }
    }
}

#[test]
fn a_newer_version_and_odd_headers_are_refused() {
    let folder = folder();
    let path = folder.path().join("a");
    saved(&path);
    forge(&path, 0, 24, &2u32.to_le_bytes());
    for error in opened(&path).map(error_of) {
        assert!(matches!(error, Error::Version { got: 2, newest: 1 }), "{error}");
    }
    for (at, value) in [(24, 0), (28, 0), (28, 4097), (28, 2 << 20), (28, u32::MAX)] {
        saved(&path);
        forge(&path, 0, at, &u32::to_le_bytes(value));
        for error in opened(&path).map(error_of) {
            assert!(matches!(error, Error::Corrupt { page: 0, .. }), "{value} at {at}: {error}");
        }
    }
}

#[test]
fn a_truncated_file_is_refused_and_a_longer_one_is_cut() {
    let folder = folder();
    let path = folder.path().join("a");
    let store = saved(&path);
    for len in [64, 4095, 4096, 6 * 4096, 7 * 4096 - 1] {
        saved(&path);
        OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
        for error in opened(&path).map(error_of) {
            let page = (len / 4096) as u32;
            assert!(matches!(error, Error::Corrupt { page: p, .. } if p == page), "{len}: {error}");
        }
    }
    saved(&path);
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(&[0xee; 10_000]).unwrap();
    for state_of in opened(&path) {
        assert!(state_of.unwrap() == state(&store));
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 7 * 4096);
    file.write_all(&[0xee; 10_000]).unwrap();
    let mut store = MmapStore::open_writable(&path).unwrap();
    store.grow(10).unwrap();
    assert!(state(&store)[7..].iter().flatten().all(|&byte| byte == 0), "new pages must be zero");
}

#[test]
fn every_damaged_bit_is_found() {
    let folder = folder();
    let path = folder.path().join("a");
    saved(&path);
    let good = fs::read(&path).unwrap();
    let mut rng = Rng(5);
    for _ in 0..300 {
        let mut bytes = good.clone();
        let at = rng.below(bytes.len());
        bytes[at] ^= 1 << rng.below(8);
        fs::write(&path, &bytes).unwrap();
        let found = MmapStore::open(&path).and_then(|store| store.verify_pages());
        assert!(found.is_err(), "a bit of byte {at} changed and nobody noticed");
        assert!(MemStore::load(&path).is_err(), "a bit of byte {at} was loaded");
    }
    let mut swapped = good.clone();
    swapped.copy_within(3 * 4096..4 * 4096, 4 * 4096);
    fs::write(&path, &swapped).unwrap();
    let found = error_of(MmapStore::open(&path).unwrap().verify_pages());
    assert_eq!(found.to_string(), "page 4 is corrupt: page 3 lies in its place");
    fs::write(&path, &good).unwrap();
    forge(&path, 2, 8, &9u64.to_le_bytes());
    let found = error_of(MmapStore::open(&path).unwrap().verify_pages());
    assert_eq!(found.to_string(), "page 2 is corrupt: it is of flush 9, page 0 of flush 1");
}

#[test]
fn verify_knows_which_pages_have_changed() {
    let folder = folder();
    let path = folder.path().join("a");
    saved(&path);
    let mut store = MmapStore::open_writable(&path).unwrap();
    let mut rng = Rng(1);
    for pages in 7..20 {
        scribble(&mut store, &mut rng).unwrap();
        store.grow(pages).unwrap();
        store.verify_pages().unwrap();
        if pages % 3 == 0 {
            store.flush().unwrap();
            store.verify_pages().unwrap();
        }
    }
}

#[test]
fn a_reader_changes_nothing() {
    let folder = folder();
    let path = folder.path().join("a");
    saved(&path);
    let mut store = MmapStore::open(&path).unwrap();
    let written = store.write(&[PageId(0)], |pages| pages.put(0, 0, &[1]));
    assert!(matches!(written, Err(Error::ReadOnly)));
    assert!(matches!(store.grow(100), Err(Error::ReadOnly)));
    store.flush().unwrap();
    assert!(leftovers(&path).is_empty());
}

#[test]
fn one_writer_or_many_readers() {
    let folder = folder();
    let path = folder.path().join("a");
    let store = saved(&path);
    let locked = |result: Result<()>| matches!(result, Err(Error::Locked { .. }));

    let reader = MmapStore::open(&path).unwrap();
    assert!(state(&MmapStore::open(&path).unwrap()) == state(&store));
    assert!(locked(MmapStore::open_writable(&path).map(|_| ())));
    // A reader keeps the file that it opened, whatever takes its name.
    save(&MemStore::new(4096).unwrap(), &path).unwrap();
    assert!(state(&reader) == state(&store));
    assert!(state(&MmapStore::open(&path).unwrap()).is_empty());
    drop(reader);

    let writer = MmapStore::open_writable(&path).unwrap();
    assert!(opened(&path).into_iter().all(|result| locked(result.map(|_| ()))));
    assert!(locked(save(&store, &path)));
    assert!(leftovers(&path).is_empty());
    drop(writer);
    MmapStore::open_writable(&path).unwrap();
}

#[test]
#[cfg(unix)]
fn a_link_leads_to_the_file_and_its_journal() {
    let folder = folder();
    let (path, link) = (folder.path().join("a"), folder.path().join("link"));
    saved(&path);
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let disk = TestDisk::default();
    let mut store = disk.open_writable(&link).unwrap();
    scribble(&mut store, &mut Rng(1)).unwrap();
    let after = state(&store);
    // Killed when the journal is whole and the first page is half written: the trim's two operations come first,
    // after the journal and its name are made, then head, images and sync.
    disk.fail_after(7, true);
    store.flush().unwrap_err();
    drop(store);
    assert!(folder.path().join("a.journal").exists());
    assert!(state(&MmapStore::open(&path).unwrap()) == after);
    save(&MemStore::new(4096).unwrap(), &link).unwrap();
    assert!(link.is_symlink() && state(&MmapStore::open(&path).unwrap()).is_empty());
}

#[test]
fn create_makes_new_files_only() {
    let folder = folder();
    let path = folder.path().join("a");
    let store = saved(&path);
    let created = MmapStore::create(&path, 4096).map(|_| ());
    assert!(matches!(created, Err(Error::Io { path: p, .. }) if p == path));
    assert!(MemStore::load(&path).is_ok_and(|loaded| state(&loaded) == state(&store)));
    assert!(MmapStore::create(&folder.path().join("no/folder"), 4096).is_err());
    let disk = TestDisk::default();
    for step in 0.. {
        let new = folder.path().join(format!("new{step}"));
        disk.fail_after(step, false);
        match disk.create(&new, 4096) {
            Err(error) => assert!(!new.exists(), "step {step} left a file: {error}"),
            Ok(_) => {
                assert!(step > 3, "create has {step} steps");
                break;
            }
        }
    }
}

#[test]
fn a_save_that_fails_changes_nothing() {
    let folder = folder();
    let path = folder.path().join("a");
    let old = saved(&path);
    let new = filled(MemStore::new(8192).unwrap(), 300, 4);
    let disk = TestDisk::default();
    for step in 0.. {
        disk.fail_after(step, false);
        match disk.save(&new, &path) {
            Ok(()) => {
                assert!(step > 6, "save has {step} steps");
                break;
            }
            Err(error) => {
                assert!(matches!(error, Error::Io { .. }), "{error}");
                let loaded = state(&MemStore::load(&path).unwrap());
                // Once renamed there is only the new file; what failed is to make its name durable.
                let synced = error.to_string().contains("syncing the folder");
                assert!(loaded == if synced { state(&new) } else { state(&old) });
                assert!(leftovers(&path).is_empty(), "step {step} left {:?}", leftovers(&path));
            }
        }
    }
    let error = error_of(save(&new, folder.path()));
    assert!(error.to_string().contains("directory"), "{error}");
    let missing = folder.path().join("no/folder");
    assert!(matches!(error_of(save(&new, &missing)), Error::Io { path, .. } if path == missing));
}
