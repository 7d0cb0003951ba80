//! A store that refuses one call, in every place where one is made: the change that met it fails with the store's
//! error or is done, and the index is sound and goes on.

mod common;

use ann_core::testing::Faulty;
use ann_core::{
    AddOptions, DiskAnn, Error, Filter, Flat, Hnsw, Index, IvfCode, IvfPq, MemStore, Metric,
    Placement, Result, Search,
};
use common::oracle::Oracle;
use ndarray::{Array2, Axis, s};

const DIM: usize = 6;

type Faults = Faulty<MemStore>;

/// 150 vectors, 30 of them twice, 20 removed and still there.
fn fill(index: &mut impl Index) {
    let rows = common::clustered(150, DIM, 1);
    index.add(rows.view(), None, AddOptions::new().threads(1)).unwrap();
    index.add(rows.slice(s![..30, ..]), None, AddOptions::new().threads(1)).unwrap();
    index.remove(&(10..20).chain(155..165).collect::<Vec<u64>>()).unwrap();
}

/// What keys had before and may have after a change.
fn contents(index: &impl Index) -> Vec<Option<Vec<f32>>> {
    (0..400).map(|key| index.get(key).unwrap()).collect()
}

/// Makes a change again and again to an index that was saved, each time with the next of its calls to the store
/// failing, until none does.
fn everywhere<I: Index>(
    saved: &impl Index,
    open: impl Fn(Faults) -> Result<I>,
    calls_of: impl Fn(&I) -> usize,
    change: impl Fn(&mut I) -> Result<()>,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    saved.save(&path).unwrap();
    let load = |fail_after: usize| {
        let mut store = Faulty::new(MemStore::load(&path).unwrap());
        store.fail_after(fail_after);
        open(store).unwrap()
    };
    let mut done = load(usize::MAX);
    let before = contents(&done);
    change(&mut done).unwrap();
    let after = contents(&done);
    assert!(before != after && calls_of(&done) > 40);
    for calls in 0..calls_of(&done) {
        let mut index = load(calls);
        let error = change(&mut index).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "failing call {calls}: {error}");
        index.verify().unwrap_or_else(|error| panic!("failing call {calls}: {error}"));
        let now = contents(&index);
        for key in 0..now.len() {
            assert!(
                now[key] == before[key] || now[key] == after[key],
                "failing call {calls}: key {key} has neither its old nor its new vector"
            );
        }
        all_is_found(&index, &now, calls);
        if calls % 7 == 0 {
            goes_on(&mut index, calls);
        }
    }
}

fn all_is_found(index: &impl Index, contents: &[Option<Vec<f32>>], calls: usize) {
    let mut oracle = Oracle::<f32>::new(index.metric());
    oracle.rows = (0..).zip(contents).filter_map(|(key, row)| Some((key, row.clone()?))).collect();
    assert_eq!(index.len(), oracle.rows.len(), "failing call {calls}");
    let query = common::clustered(1, DIM, 9).row(0).to_vec();
    let hits = index.search(&query, &Search::new(500).ef(500)).unwrap();
    oracle.check_nearest((&query, 500), &hits, |_| true, true, &mut Default::default());
    let mut cursor = index.cursor(&query, 10).unwrap();
    let walked = index.resume(&mut cursor, 500, Filter::None).unwrap();
    assert_eq!(walked.len(), index.len(), "failing call {calls}");
}

fn goes_on(index: &mut impl Index, calls: usize) {
    let rows = common::clustered(60, DIM, 4);
    let sound = |result: Result<()>, what: &str| {
        result.unwrap_or_else(|error| panic!("failing call {calls}, then {what}: {error}"));
    };
    let len = index.len();
    index.add(rows.view(), None, AddOptions::new().threads(1)).unwrap();
    assert_eq!(index.len(), len + 60);
    sound(index.verify(), "add");
    let keys: Vec<u64> = (0..400).filter(|&key| index.contains(key).unwrap()).collect();
    let rows: Array2<f32> = common::clustered(keys.len(), DIM, 5);
    index.update(rows.view(), &keys, AddOptions::new().threads(1)).unwrap();
    sound(index.verify(), "update");
    index.remove(&(0..400).collect::<Vec<u64>>()).unwrap();
    assert_eq!(index.len(), len + 60 - keys.len());
    sound(index.verify(), "remove");
}

fn hnsw(metric: Metric) -> Hnsw {
    let builder = Hnsw::builder(DIM).metric(metric).m(4).ef_construction(20);
    let mut index = builder.build_in(MemStore::new(4096).unwrap()).unwrap();
    fill(&mut index);
    index
}

fn diskann(metric: Metric) -> DiskAnn {
    let builder = DiskAnn::builder(DIM).metric(metric).build_list_size(32);
    let mut index = builder.build_in(MemStore::new(4096).unwrap()).unwrap();
    fill(&mut index);
    index
}

/// Codes by node, in use from so many vectors on as there are when `more` are added.
fn compact(metric: Metric, more: usize) -> DiskAnn {
    let builder = DiskAnn::builder(DIM).metric(metric).placement(Placement::Compact);
    let mut index = builder.build_list_size(32).build_in(MemStore::new(4096).unwrap()).unwrap();
    fill(&mut index);
    let rows = common::clustered(more, DIM, 11);
    index.add(rows.view(), None, AddOptions::new().threads(1)).unwrap();
    assert_eq!(index.stats().unwrap().codes_in_use, index.len() >= 256);
    index
}

fn ivfpq(metric: Metric) -> IvfPq {
    let builder = IvfPq::builder(DIM).metric(metric).train_at(100).lists(6);
    let builder = builder.spill(metric != Metric::L2sq);
    let mut index = builder.build_in(MemStore::new(4096).unwrap()).unwrap();
    fill(&mut index);
    index
}

fn flat() -> Flat {
    let builder = Flat::builder(DIM).metric(Metric::Cosine);
    let mut index = builder.build_in(MemStore::new(4096).unwrap()).unwrap();
    fill(&mut index);
    index
}

fn new_rows() -> Array2<f32> {
    let rows = common::clustered(40, DIM, 7);
    // Some equal to one another, some to what is there.
    let old = common::clustered(150, DIM, 1);
    ndarray::concatenate![Axis(0), rows, rows.slice(s![..8, ..]), old.slice(s![..8, ..])]
}

fn add(index: &mut impl Index) -> Result<()> {
    let keys: Vec<u64> = (300..356).collect();
    index.add(new_rows().view(), Some(&keys), AddOptions::new().threads(1)).map(|_| ())
}

fn update(index: &mut impl Index) -> Result<()> {
    // Of twins and of those they hang on, with each other's vectors among the new ones.
    let keys: Vec<u64> = (0..10).chain(30..66).chain(165..175).collect();
    index.update(new_rows().view(), &keys, AddOptions::new().threads(1))
}

fn remove(index: &mut impl Index) -> Result<()> {
    index.remove(&(20..110).chain(150..155).collect::<Vec<u64>>()).map(|_| ())
}

#[test]
fn adding_to_a_graph() {
    let saved = hnsw(Metric::InnerProduct);
    everywhere(&saved, Hnsw::open_in, |index| index.store().calls(), add);
}

#[test]
fn updating_a_graph() {
    let saved = hnsw(Metric::L2sq);
    everywhere(&saved, Hnsw::open_in, |index| index.store().calls(), update);
}

/// With the sweep that comes of it.
#[test]
fn removing_from_a_graph() {
    let saved = hnsw(Metric::Cosine);
    everywhere(&saved, Hnsw::open_in, |index| index.store().calls(), remove);
}

#[test]
fn changing_a_graph_with_codes() {
    let open = DiskAnn::open_in;
    everywhere(&diskann(Metric::InnerProduct), open, |index| index.store().calls(), add);
    everywhere(&diskann(Metric::L2sq), open, |index| index.store().calls(), update);
    everywhere(&diskann(Metric::Cosine), open, |index| index.store().calls(), remove);
}

/// The first of them while codes come into use.
#[test]
fn changing_a_graph_with_codes_by_node() {
    let open = DiskAnn::open_in;
    everywhere(&compact(Metric::L2sq, 60), open, |index| index.store().calls(), add);
    everywhere(&compact(Metric::Cosine, 110), open, |index| index.store().calls(), add);
    everywhere(&compact(Metric::InnerProduct, 110), open, |index| index.store().calls(), remove);
}

#[test]
fn changing_a_flat_index() {
    let saved = flat();
    everywhere(&saved, Flat::open_in, |index| index.store().calls(), add);
    everywhere(&saved, Flat::open_in, |index| index.store().calls(), update);
    everywhere(&saved, Flat::open_in, |index| index.store().calls(), remove);
}

#[test]
fn changing_lists() {
    let open = IvfPq::open_in;
    everywhere(&ivfpq(Metric::InnerProduct), open, |index| index.store().calls(), add);
    everywhere(&ivfpq(Metric::L2sq), open, |index| index.store().calls(), update);
    everywhere(&ivfpq(Metric::Cosine), open, |index| index.store().calls(), remove);
}

#[test]
fn changing_lists_of_rabitq() {
    let builder = IvfPq::builder(DIM).code(IvfCode::RaBitQ2).train_at(100).lists(6);
    let mut saved = builder.build_in(MemStore::new(4096).unwrap()).unwrap();
    fill(&mut saved);
    everywhere(&saved, IvfPq::open_in, |index| index.store().calls(), update);
}

/// Removing, splitting and joining, in which vectors change nothing but their places.
#[test]
fn keeping_lists_in_shape() {
    let saved = ivfpq(Metric::L2sq);
    everywhere(
        &saved,
        IvfPq::open_in,
        |index| index.store().calls(),
        |index| {
            let near: Array2<f32> = Array2::from_shape_fn((90, DIM), |(i, j)| (i * j % 7) as f32);
            index.add(near.view(), None, AddOptions::new().threads(1))?;
            index.remove(&(20..60).collect::<Vec<u64>>())?;
            index.rebalance(1)?;
            index.compact()
        },
    );
}

/// The training that a growing index does by itself.
#[test]
fn training_again() {
    let builder = IvfPq::builder(DIM).metric(Metric::Cosine).train_at(60);
    let mut saved = builder.build_in(MemStore::new(4096).unwrap()).unwrap();
    saved.add(common::clustered(200, DIM, 1).view(), None, AddOptions::new().threads(1)).unwrap();
    everywhere(
        &saved,
        IvfPq::open_in,
        |index| index.store().calls(),
        |index| {
            let rows = common::clustered(60, DIM, 2);
            index.add(rows.view(), None, AddOptions::new().threads(1))?;
            index.train(rows.view(), AddOptions::new().threads(1))
        },
    );
}
