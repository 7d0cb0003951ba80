//! The same input gives the same bytes: whatever the number of threads, and every time.

mod common;

use ann_core::{
    AddOptions, DType, DiskAnn, Flat, Hnsw, Index, IvfCode, IvfPq, MemStore, Metric, PageId,
    PageStore, Placement, Search,
};
use ndarray::{Array2, Axis, concatenate, s};

/// The first page on which two stores differ, headers aside.
fn first_difference(a: &impl PageStore, b: &impl PageStore) -> Option<u32> {
    assert_eq!(a.page_count(), b.page_count());
    let differ = |&page: &u32| *a.read(PageId(page)).unwrap() != *b.read(PageId(page)).unwrap();
    (0..a.page_count()).find(differ)
}

/// Vectors of which some are equal.
fn rows() -> Array2<f32> {
    let set = common::small_set();
    let base = set.base.slice(s![..3000, ..]);
    concatenate![Axis(0), base, base.slice(s![..300, ..]), base.slice(s![..100, ..])]
}

/// A life with all that runs on several threads.
fn live(metric: Metric, threads: usize, rows: &Array2<f32>) -> Vec<Hnsw> {
    let empty = || Hnsw::builder(100).metric(metric).ef_construction(80).build().unwrap();
    let options = || AddOptions::new().threads(threads);
    let mut built = empty();
    built.add(rows.view(), None, options()).unwrap();

    let mut swept = empty();
    for part in rows.axis_chunks_iter(Axis(0), 900) {
        swept.add(part, None, options()).unwrap();
    }
    let gone: Vec<u64> = common::shuffled(rows.nrows(), 5)[..300].to_vec();
    swept.remove(&gone).unwrap();
    assert!(swept.stats().unwrap().tombstones > 0, "too few for the index to sweep by itself");
    swept.sweep(threads).unwrap();

    let mut updated = empty();
    updated.add(rows.slice(s![..2000, ..]), None, options()).unwrap();
    let keys: Vec<u64> = (0..1000).collect();
    updated.update(rows.slice(s![2000..3000, ..]), &keys, options()).unwrap();
    updated.add(rows.slice(s![1000..2500, ..]), None, options()).unwrap();
    vec![built, swept, updated]
}

#[test]
fn threads_make_no_difference() {
    let rows = rows();
    for metric in [Metric::Cosine, Metric::InnerProduct] {
        let one = live(metric, 1, &rows);
        for threads in [2, 3] {
            for (name, (one, more)) in ["built", "swept", "updated"]
                .iter()
                .zip(one.iter().zip(live(metric, threads, &rows)))
            {
                more.verify().unwrap();
                let page = first_difference(one.store(), more.store());
                assert_eq!(page, None, "{name} by {threads} threads, {metric}: a page differs");
            }
        }
    }
}

#[test]
fn files_are_equal_byte_by_byte() {
    let folder = tempfile::tempdir().unwrap();
    let rows = rows();
    let files: Vec<Vec<u8>> = (1..=3)
        .map(|threads| {
            let path = folder.path().join(format!("{threads}"));
            let mut index = Hnsw::builder(100).ef_construction(80).build().unwrap();
            index.add(rows.view(), None, AddOptions::new().threads(threads)).unwrap();
            index.save(&path).unwrap();
            std::fs::read(&path).unwrap()
        })
        .collect();
    assert!(files[0] == files[1] && files[0] == files[2]);
}

#[test]
fn the_store_makes_no_difference() {
    let folder = tempfile::tempdir().unwrap();
    let rows = rows();
    let builder = || Hnsw::builder(100).ef_construction(80);
    let mut memory = builder().build_in(MemStore::new(16384).unwrap()).unwrap();
    memory.add(rows.view(), None, AddOptions::new()).unwrap();
    let file = ann_core::MmapStore::create(&folder.path().join("index"), 16384).unwrap();
    let mut file = builder().build_in(file).unwrap();
    file.add(rows.view(), None, AddOptions::new()).unwrap();
    file.flush().unwrap();
    assert_eq!(first_difference(memory.store(), file.store()), None);
}

#[test]
fn seeds_make_a_difference() {
    let rows = rows();
    let build = |seed| {
        let mut index = Hnsw::builder(100).ef_construction(80).seed(seed).build().unwrap();
        index.add(rows.view(), None, AddOptions::new()).unwrap();
        index
    };
    assert_eq!(first_difference(build(5).store(), build(5).store()), None);
    assert!(first_difference(build(5).store(), build(6).store()).is_some());
}

/// Codes by node, beside vectors and instead of them.
#[test]
fn codes_by_node_are_deterministic() {
    let rows = rows();
    for vectors in [Some(DType::F16), Some(DType::I8), None] {
        let build = |threads| {
            let options = || AddOptions::new().threads(threads);
            let builder = DiskAnn::builder(100).metric(Metric::Cosine).vectors(vectors);
            let builder = builder.placement(Placement::Compact).build_list_size(80);
            let mut index = builder.build().unwrap();
            index.add(rows.slice(s![..2000, ..]), None, options()).unwrap();
            index.add(rows.slice(s![2000.., ..]), None, options()).unwrap();
            index.remove(&common::shuffled(rows.nrows(), 5)[..300]).unwrap();
            index.sweep(threads).unwrap();
            index
                .update(rows.slice(s![..50, ..]), &(3000..3050).collect::<Vec<u64>>(), options())
                .ok();
            index
        };
        let one = build(1);
        one.verify().unwrap();
        for threads in [2, 3] {
            assert_eq!(first_difference(one.store(), build(threads).store()), None);
        }
    }
}

#[test]
fn flat_is_deterministic_too() {
    let rows = rows();
    let build = |threads| {
        let mut index = Flat::builder(100).build().unwrap();
        index.add(rows.view(), None, AddOptions::new().threads(threads)).unwrap();
        index.remove(&(0..50).collect::<Vec<u64>>()).unwrap();
        index
    };
    assert_eq!(first_difference(build(1).store(), build(3).store()), None);
}

#[test]
fn searches_are_the_same_each_time() {
    let rows = rows();
    let mut index = Hnsw::builder(100).ef_construction(80).build().unwrap();
    index.add(rows.view(), None, AddOptions::new()).unwrap();
    let options = Search::new(20).ef(50);
    let queries = rows.slice(s![..400, ..]);
    let first = index.search_batch(queries, &options, 1).unwrap();
    for threads in [1, 2, 3] {
        assert_eq!(index.search_batch(queries, &options, threads).unwrap(), first);
    }
    let query = rows.row(3).to_vec();
    let (hits, cost) = index.search_counted(&query, &options).unwrap();
    for _ in 0..300 {
        assert_eq!(index.search_counted(&query, &options).unwrap(), (hits.clone(), cost));
    }
}

/// Training, loading, adding, splitting and compacting.
#[test]
fn lists_are_deterministic_too() {
    let rows = rows();
    let build = |threads, seed| {
        let options = || AddOptions::new().threads(threads);
        let builder = IvfPq::builder(100).metric(Metric::Cosine).lists(40).opq(true).seed(seed);
        let mut index = builder.build().unwrap();
        index.add(rows.slice(s![..2000, ..]), None, options()).unwrap();
        index.add(rows.slice(s![2000.., ..]), None, options()).unwrap();
        index.remove(&(0..1500).collect::<Vec<u64>>()).unwrap();
        index.rebalance(threads).unwrap();
        index.compact().unwrap();
        index.verify().unwrap();
        let mut grown = IvfPq::builder(100).seed(seed).train_at(500).spill(true).build().unwrap();
        let turned = IvfPq::builder(100).seed(seed).train_at(500).code(IvfCode::RaBitQ1);
        let mut turned = turned.build().unwrap();
        for part in rows.axis_chunks_iter(Axis(0), 700) {
            grown.add(part, None, options()).unwrap();
            turned.add(part, None, options()).unwrap();
        }
        (index, grown, turned)
    };
    let one = build(1, 0);
    for threads in [2, 3] {
        let more = build(threads, 0);
        assert_eq!(first_difference(one.0.store(), more.0.store()), None, "{threads} threads");
        assert_eq!(first_difference(one.1.store(), more.1.store()), None, "{threads} threads");
        assert_eq!(first_difference(one.2.store(), more.2.store()), None, "{threads} threads");
    }
    let queries = rows.slice(s![..200, ..]);
    let options = Search::new(20).probes(10).rerank(50);
    let first = one.0.search_batch(queries, &options, 1).unwrap();
    assert_eq!(one.0.search_batch(queries, &options, 3).unwrap(), first);
    let other = build(1, 1);
    let differs = one.0.store().page_count() != other.0.store().page_count()
        || first_difference(one.0.store(), other.0.store()).is_some();
    assert!(differs);
}

/// Insertions search too, but not with what the search before them was told.
#[test]
fn searches_before_make_no_difference() {
    let rows = rows();
    let [one, other] = [None, Some(64)].map(|beam| {
        let mut index = DiskAnn::builder(100).build_list_size(32).build().unwrap();
        index.add(rows.slice(s![..2000, ..]), None, AddOptions::new()).unwrap();
        if let Some(beam) = beam {
            let query = rows.row(0).to_vec();
            index.search(&query, &Search::new(10).beam(beam)).unwrap();
        }
        index.add(rows.slice(s![2000..2500, ..]), None, AddOptions::new().threads(1)).unwrap();
        index
    });
    assert_eq!(first_difference(one.store(), other.store()), None, "a page differs");
}
