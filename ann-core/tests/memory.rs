//! Adding vectors within a memory limit: what it takes is known beforehand, the index leaves memory in time, and is as
//! good.

mod common;

use ann_core::{AddOptions, DiskAnn, Error, Hnsw, Index, MemStore, PageStore};
use common::{mean_recall, small_set};
use ndarray::s;

fn bytes(store: &MemStore) -> u64 {
    u64::from(store.page_count()) * store.page_size() as u64
}

#[test]
fn pages_are_known_beforehand() {
    let set = small_set();
    let rows = set.base.nrows();
    let whole = DiskAnn::builder(100);
    let apart = DiskAnn::builder(100).code_bits(0);
    let compact = DiskAnn::builder(100).vectors(None);
    for builder in [whole, apart, compact] {
        let mut index = builder.build().unwrap();
        for part in [s![..rows / 2, ..], s![rows / 2.., ..]] {
            let part = set.base.slice(part);
            let (before, needs) = (bytes(index.store()), index.needs(part.nrows(), 2));
            index.add(part, None, AddOptions::new()).unwrap();
            let grown = (bytes(index.store()) - before) as f64;
            let ratio = grown / needs.pages as f64;
            // Arrays grow by more than is needed at once.
            assert!((0.98..1.15).contains(&ratio), "{grown} bytes of pages, {needs:?}");
        }
    }
    let mut index = Hnsw::builder(100).build().unwrap();
    let needs = index.needs(rows, 1);
    index.add(set.base.view(), None, AddOptions::new()).unwrap();
    let ratio = bytes(index.store()) as f64 / needs.pages as f64;
    assert!((0.98..1.05).contains(&ratio), "{} bytes, {needs:?}", bytes(index.store()));
}

#[test]
fn an_index_leaves_memory_in_time() {
    let (set, folder) = (small_set(), tempfile::tempdir().unwrap());
    let rows = set.base.nrows();
    let exact = {
        let mut exact = ann_core::Flat::builder(100).build().unwrap();
        exact.add(set.base.view(), None, AddOptions::new()).unwrap();
        exact
    };
    let recall = |index: &DiskAnn| mean_recall(index, &exact, set.queries.view(), 10, 100);
    let builder = DiskAnn::builder(100).build_list_size(100);
    let mut free = builder.clone().build().unwrap();
    let needs = free.needs(rows, 2);
    let meta = bytes(free.store());
    free.add(set.base.view(), None, AddOptions::new().threads(2)).unwrap();
    // All at once in memory; in a file; a part of the rows at once; all in batches, which find a little less.
    let least = free.least_memory(rows);
    let limits = [
        (needs.pages + needs.memory + meta, false, 0.0),
        (needs.memory, true, 0.001),
        (needs.memory * 6 / 10, true, 0.03),
        (least, true, 0.03),
    ];
    for (limit, leaves, lost) in limits {
        let mut index = builder.clone().memory_limit(limit).build().unwrap();
        let mut last = 0;
        let mut told = |done, total| {
            assert!(done >= last && total == rows, "{done} of {total} after {last}");
            last = done;
            true
        };
        let options = AddOptions::new().threads(2).progress(&mut told);
        index.add(set.base.view(), None, options).unwrap();
        index.verify().unwrap();
        assert_eq!((index.len(), index.store().is_in_file()), (rows, leaves), "{limit}");
        let (got, wanted) = (recall(&index), recall(&free));
        assert!(got >= wanted - lost, "{got} at a limit of {limit}, {wanted} without");
        // What is in a file is saved like any other, and grows like any other.
        let path = folder.path().join(format!("{limit}"));
        index.save(&path).unwrap();
        let saved: DiskAnn = DiskAnn::open_in(MemStore::load(&path).unwrap()).unwrap();
        assert_eq!(saved.len(), rows);
        let more = set.base.slice(s![..10, ..]).to_owned() + 0.5;
        index.add(more.view(), None, AddOptions::new()).unwrap();
        index.verify().unwrap();
    }
    let mut same = builder.memory_limit(needs.pages + needs.memory + meta).build().unwrap();
    same.add(set.base.view(), None, AddOptions::new().threads(1)).unwrap();
    let bodies = |index: &DiskAnn| {
        let store = index.store();
        (0..store.page_count())
            .map(|page| store.read(ann_core::PageId(page)).unwrap().to_vec())
            .collect::<Vec<_>>()
    };
    assert!(bodies(&same) == bodies(&free), "a limit that is not met changes the index");
}

#[test]
fn too_little_is_refused() {
    let refused = |error: Error| match error {
        Error::Parameter { name, allowed, .. } => {
            assert_eq!(name, "memory_limit");
            assert!(allowed.starts_with("at least"), "{allowed}");
        }
        other => panic!("{other}"),
    };
    refused(DiskAnn::builder(100).memory_limit(1000).build().err().unwrap());
    let least = DiskAnn::builder(100).build().unwrap().least_memory(256);
    let mut index = DiskAnn::builder(100).memory_limit(least).build().unwrap();
    let set = small_set();
    refused(index.add(set.base.view(), None, AddOptions::new()).err().unwrap());
    assert!(index.is_empty());
    index.add(set.base.slice(s![..256, ..]), None, AddOptions::new()).unwrap();
    index.verify().unwrap();
}
