//! Many handles on one index, each of which knows only what it reads: insertions, searches and removals at once, and
//! sweeps beside searches. Afterwards everything is sound and found.

mod common;

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

use ann_core::testing::{Common, Rng};
use ann_core::{DiskAnn, Error, Graph, Hit, Hnsw, Index, IvfPq, MemStore, Metric, Search};
use ann_core::{SharedIndex, Topology};
use common::metered::Metered;
use common::oracle::Oracle;
use ndarray::Array2;

const DIM: usize = 8;
const WRITERS: usize = 4;
const ROWS: usize = 2000;

type Open<I> = fn(Common) -> ann_core::Result<I>;

fn store() -> Common {
    Common::new(MemStore::new(4096).unwrap())
}

fn hnsw(store: Common, metric: Metric) {
    Hnsw::builder(DIM).metric(metric).m(6).ef_construction(40).build_in(store).unwrap();
}

fn diskann(store: Common, metric: Metric) {
    DiskAnn::builder(DIM).metric(metric).build_list_size(40).build_in(store).unwrap();
}

/// Vectors of which some are equal.
fn rows() -> Array2<f32> {
    let mut rows = common::clustered(ROWS, DIM, 3);
    for at in (0..ROWS).step_by(50) {
        let row = rows.row(at / 2).to_owned();
        rows.row_mut(at).assign(&row);
    }
    rows
}

fn ivfpq(store: Common, metric: Metric) {
    IvfPq::builder(DIM).metric(metric).train_at(100).build_in(store).unwrap();
}

fn sweep(index: &mut impl SharedIndex) {
    let mut sweep = index.begin_sweep(100).unwrap();
    while index.step(&mut sweep).unwrap() {}
}

/// What an insertion or a sweep is followed by, if it is due.
fn renew<K: Topology>(index: &mut Graph<Common, K>) {
    if index.needs_entries() {
        index.renew_entries().unwrap();
    }
}

/// Searches as a database does: anew whenever the graph has changed too much.
fn search(index: &mut impl SharedIndex, query: &[f32], k: usize) -> Vec<u64> {
    loop {
        let mut cursor = index.cursor(query, 64).unwrap();
        match index.next_hits(&mut cursor) {
            Ok(hits) => return hits.iter().take(k).map(|hit| hit.key).collect(),
            Err(Error::Changed) => index.refresh().unwrap(),
            Err(error) => panic!("a search beside changes: {error}"),
        }
    }
}

/// `bar` is how many of 500 nearest must be found. The order of insertions, and which sweeps come between them, are the
/// threads' own and differ each time: of 28 runs each, HNSW found 493 to 500, DiskANN with its one level 453 to 500.
/// Lists are all read and all their entries measured: nothing may be lost.
fn all_at_once<I: SharedIndex>(
    make: fn(Common, Metric),
    open: Open<I>,
    tend: fn(&mut I),
    metric: Metric,
    bar: usize,
) {
    let (store, rows) = (store(), rows());
    make(store.clone(), metric);
    // As the two locks of a database: insertions share it, steps of sweeps have it for themselves.
    let updates = RwLock::new(());
    let (store, rows, updates) = (&store, &rows, &updates);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn(move || {
                    let mut index = open(store.clone()).unwrap();
                    for row in (writer..ROWS).step_by(WRITERS) {
                        let _shared = updates.read().unwrap();
                        index.insert_one(&rows.row(row).to_vec(), row as u64).unwrap();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let (mut index, mut rng) = (open(store.clone()).unwrap(), Rng(1));
            while !done.load(Ordering::Relaxed) {
                let query = rows.row(rng.below(ROWS)).to_vec();
                let found = search(&mut index, &query, 5);
                let mut once = found.clone();
                once.sort_unstable();
                once.dedup();
                assert_eq!(once.len(), found.len(), "a key came twice");
            }
        });
        scope.spawn(|| {
            let mut index = open(store.clone()).unwrap();
            while !done.load(Ordering::Relaxed) {
                index.remove_where(|key| key % 3 == 0).unwrap();
                let mut sweep = index.begin_sweep(5).unwrap();
                let mut more = true;
                while more {
                    let _alone = index.is_alone(&sweep).then(|| updates.write().unwrap());
                    more = index.step(&mut sweep).unwrap();
                }
                let _alone = updates.write().unwrap();
                tend(&mut index);
            }
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    let mut index = open(store.clone()).unwrap();
    index.remove_where(|key| key % 3 == 0).unwrap();
    index.verify().unwrap();
    let kept: Vec<u64> = (0..ROWS as u64).filter(|key| key % 3 != 0).collect();
    assert_eq!(index.len(), kept.len());
    let mut oracle = Oracle::<f32>::new(metric);
    oracle.rows = kept.iter().map(|&key| (key, rows.row(key as usize).to_vec())).collect();
    let (mut found, queries) = (0, common::clustered(50, DIM, 4));
    for query in queries.rows() {
        let query = query.to_vec();
        let hits =
            index.search(&query, &Search::new(10).ef(100).probes(ROWS).rerank(ROWS)).unwrap();
        let exact = oracle.nearest(&query, |_| true);
        // Of what is as near as the last, any will do.
        let near = |key| exact.iter().any(|other| other.1 == key && other.0 <= exact[9].0);
        found += hits.iter().filter(|hit| near(hit.key)).count();
    }
    assert!(found >= bar, "{found} of 500 found");
    index.remove_where(|_| true).unwrap();
    sweep(&mut index);
    index.verify().unwrap();
    assert_eq!(index.counts(), (0, 0));
}

#[test]
fn hnsw_at_once() {
    all_at_once(hnsw, Hnsw::open_in, renew, Metric::L2sq, 485);
    all_at_once(hnsw, Hnsw::open_in, renew, Metric::InnerProduct, 485);
}

#[test]
fn diskann_at_once() {
    all_at_once(diskann, DiskAnn::open_in, renew, Metric::L2sq, 440);
    all_at_once(diskann, DiskAnn::open_in, renew, Metric::Cosine, 440);
}

#[test]
fn ivfpq_at_once() {
    for metric in [Metric::L2sq, Metric::InnerProduct, Metric::Cosine] {
        all_at_once(ivfpq, IvfPq::open_in, |_| {}, metric, 500);
    }
}

/// Clusters that are all as far from one another, and soon hold more than a search has candidates: one that ends in the
/// wrong cluster finds nothing. Rows come one by one.
fn clusters_stay_in_reach<K: Topology>(make: impl Fn() -> Graph<Common, K>) {
    let missed: Vec<usize> = (5..8).map(|seed| missed(make(), &mut Rng(seed))).collect();
    assert!(missed.iter().sum::<usize>() <= 8, "{missed:?} of 2000 searches missed the nearest");
}

/// How many of 2,000 searches miss the nearest vector.
fn missed<K: Topology>(mut index: Graph<Common, K>, rng: &mut Rng) -> usize {
    const DIM: usize = 16;
    let centres = Array2::from_shape_simple_fn((20, DIM), || 2.0 * common::normal(rng));
    let mut near_one = || {
        let centre = centres.row(rng.below(20)).to_owned();
        centre.mapv(|value| value + common::normal(rng)).to_vec()
    };
    let mut oracle = Oracle::<f32>::new(Metric::L2sq);
    let mut missed = 0;
    for row in 0..4000u64 {
        let vector = near_one();
        index.insert_one(&vector, row).unwrap();
        oracle.rows.insert(row, vector);
        if index.needs_entries() {
            index.renew_entries().unwrap();
        }
        if row % 100 == 99 {
            index.remove_where(|key| key % 100 < row % 13).unwrap();
            sweep(&mut index);
            oracle.rows.retain(|key, _| key % 100 >= row % 13);
        }
        if row % 400 == 399 {
            for _ in 0..200 {
                let query = near_one();
                let nearest = oracle.nearest(&query, |_| true)[0].1;
                let hits = index.search(&query, &Search::new(10).ef(40)).unwrap();
                missed += usize::from(hits.iter().all(|hit| hit.key != nearest));
            }
        }
    }
    missed
}

#[test]
fn clusters_stay_in_reach_of_hnsw() {
    let builder = Hnsw::builder(16).ef_construction(60);
    clusters_stay_in_reach(|| builder.clone().build_in(store()).unwrap());
}

#[test]
fn clusters_stay_in_reach_of_diskann() {
    let builder = DiskAnn::builder(16).build_list_size(60);
    clusters_stay_in_reach(|| builder.clone().build_in(store()).unwrap());
}

/// A handle that has seen nothing of what others did finds all of it.
#[test]
fn an_old_handle_goes_on() {
    let (store, rows) = (store(), rows());
    hnsw(store.clone(), Metric::L2sq);
    let mut old = Hnsw::open_in(store.clone()).unwrap();
    let mut index = Hnsw::open_in(store).unwrap();
    for row in 0..500 {
        index.insert_one(&rows.row(row).to_vec(), row as u64).unwrap();
    }
    assert_eq!(search(&mut old, &rows.row(77).to_vec(), 1).len(), 1);
    old.insert_one(&rows.row(501).to_vec(), 501).unwrap();
    old.verify().unwrap();
    assert_eq!(old.len(), 501);
}

/// A search that is not to go on gives back as many as it keeps candidates, one that is goes on to all there are; both
/// some at a time, and look up no more keys than that.
#[test]
fn hits_come_some_at_a_time() {
    let (store, rows) = (store(), rows());
    diskann(store.clone(), Metric::L2sq);
    let mut index = DiskAnn::open_in(store.clone()).unwrap();
    // All different: equal vectors are one node.
    for row in (0..600).filter(|row| row % 50 > 0) {
        index.insert_one(&rows.row(row).to_vec(), row as u64).unwrap();
    }
    let mut index = DiskAnn::open_in(Metered::new(store, u64::MAX)).unwrap();
    let query = rows.row(3).to_vec();
    for (ef, ends, wanted) in [(1, true, 1), (10, true, 10), (100, true, 100), (100, false, 588)] {
        let mut cursor = index.cursor(&query, ef).unwrap();
        let (mut hits, mut reads) = (Vec::<Hit>::new(), Vec::new());
        loop {
            let before = index.store().used();
            let some = match ends {
                true => index.only_hits(&mut cursor).unwrap(),
                false => index.next_hits(&mut cursor).unwrap(),
            };
            reads.push(index.store().used() - before);
            if some.is_empty() {
                break;
            }
            assert!(some.len() <= 16);
            hits.extend(some);
        }
        assert_eq!(hits.len(), wanted);
        if ends {
            assert!(hits.is_sorted_by(|a, b| a.distance <= b.distance));
            // All but the first read keys, and the meta page before and after.
            assert!(reads[1..].iter().all(|&reads| reads <= 16 + 2), "{reads:?}");
        }
        let mut keys: Vec<u64> = hits.iter().map(|hit| hit.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), wanted);
    }
}

/// A cursor outlives insertions, but not a sweep.
#[test]
fn cursors_beside_changes() {
    let (store, rows) = (store(), rows());
    diskann(store.clone(), Metric::L2sq);
    let mut index = DiskAnn::open_in(store.clone()).unwrap();
    for row in 0..400 {
        index.insert_one(&rows.row(row).to_vec(), row as u64).unwrap();
    }
    let mut cursor = index.cursor(&rows.row(3).to_vec(), 20).unwrap();
    let mut other = DiskAnn::open_in(store).unwrap();
    let mut seen: Vec<u64> = Vec::new();
    // The arrays outgrow what the cursor began with.
    for round in 0..5 {
        for row in (500..1500).skip(200 * round).take(200) {
            other.insert_one(&rows.row(row).to_vec(), row as u64).unwrap();
        }
        let hits = index.next_hits(&mut cursor).unwrap();
        assert!(!hits.is_empty());
        seen.extend(hits.iter().map(|hit| hit.key));
    }
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(count, seen.len());
    other.remove_where(|key| key < 200).unwrap();
    assert!(index.next_hits(&mut cursor).is_ok());
    sweep(&mut other);
    let refused = index.next_hits(&mut cursor);
    assert!(matches!(refused, Err(Error::Changed)));
}
