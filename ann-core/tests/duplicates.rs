//! Many identical vectors among others: they cost neither time nor recall, and come and go like any.
//!
//! Work is counted, not timed: distances of searches, and page accesses of builds.

mod common;

use ann_core::testing::Rng;
use ann_core::{AddOptions, Filter, Flat, Hnsw, Index, MemStore, Metric, Search};
use common::metered::Metered;
use ndarray::{Array1, Array2, ArrayView2, Axis, concatenate, s};

const OTHERS: usize = 5000;
const COPIES: usize = 10_000;
const EF: usize = 64;

type Counted = Hnsw<Metered<MemStore>>;

/// Queries, other vectors, and a point that is none of them, all real.
fn real() -> (Array2<f32>, Array2<f32>, Array1<f32>) {
    let set = common::small_set();
    let queries = set.queries.slice(s![..200, ..]).to_owned();
    let others = set.base.slice(s![..OTHERS, ..]).to_owned();
    (queries, others, set.base.row(6000).to_owned())
}

fn copies(point: &Array1<f32>, n: usize) -> Array2<f32> {
    point.broadcast((n, point.len())).unwrap().to_owned()
}

fn empty(metric: Metric) -> Counted {
    let store = Metered::new(MemStore::new(8192).unwrap(), u64::MAX);
    Hnsw::builder(100).metric(metric).ef_construction(100).build_in(store).unwrap()
}

fn built(metric: Metric, rows: ArrayView2<'_, f32>) -> Counted {
    let mut index = empty(metric);
    index.add(rows, None, AddOptions::new().threads(1)).unwrap();
    index.verify().unwrap();
    index
}

fn exact(metric: Metric, rows: ArrayView2<'_, f32>) -> Flat {
    let mut index = Flat::builder(100).metric(metric).build().unwrap();
    index.add(rows, None, AddOptions::new()).unwrap();
    index
}

/// Distances that the searches compute together.
fn search_cost(index: &impl Index, queries: &Array2<f32>) -> u64 {
    let options = Search::new(10).ef(EF);
    let cost = |query: Vec<f32>| index.search_counted(&query, &options).unwrap().1.distances;
    queries.rows().into_iter().map(|query| cost(query.to_vec())).sum()
}

/// Recall@10 among the others alone.
fn recall_of_others(index: &impl Index, exact: &Flat, queries: &Array2<f32>) -> f64 {
    let is_other = |key: u64| key < OTHERS as u64;
    let options = Search::new(10).ef(EF);
    let mut sum = 0.0;
    for query in queries.rows() {
        let query = query.to_vec();
        let filtered = options.filter(Filter::Predicate(&is_other));
        let hits = index.search(&query, &filtered).unwrap();
        let truth = exact.search(&query, &options).unwrap();
        let truth: Vec<f32> = truth.iter().map(|hit| hit.distance).collect();
        sum += common::recall(&hits, &truth, 10);
    }
    sum / queries.nrows() as f64
}

#[test]
fn ten_thousand_copies_of_one_point() {
    let (queries, others, point) = real();
    for metric in [Metric::Cosine, Metric::L2sq, Metric::InnerProduct] {
        let without = built(metric, others.view());
        let mut with = empty(metric);
        with.add(others.view(), None, AddOptions::new().threads(1)).unwrap();
        let before = with.store().used();
        // Copies of what is there already, in calls of many and in calls of one.
        for size in [1, 2000, 7000, 900].into_iter().chain([1; 99]) {
            let copies = copies(&point, size);
            with.add(copies.view(), None, AddOptions::new().threads(1)).unwrap();
        }
        // A copy costs its own slot, and each call a search to find where it belongs.
        let (build, more) = (before, with.store().used() - before);
        with.verify().unwrap();
        assert_eq!(with.len(), OTHERS + COPIES);
        assert_eq!(with.stats().unwrap().twins, COPIES - 1);
        // Loading goes by copies of the vectors beside the store.
        assert!(more < build * 2 / 3, "{metric}: {more} page accesses more than {build}");

        let (cost, plain) = (search_cost(&with, &queries), search_cost(&without, &queries));
        assert!(cost < plain * 11 / 10, "{metric}: {cost} distances, without copies {plain}");
        let exact = exact(metric, others.view());
        let recall = recall_of_others(&with, &exact, &queries);
        let plain = common::mean_recall(&without, &exact, queries.view(), 10, EF);
        assert!(recall > plain - 0.01, "{metric}: recall {recall}, without copies {plain}");
    }
}

#[test]
fn copies_among_others_in_one_call() {
    let (queries, others, point) = real();
    let all = concatenate![Axis(0), others, copies(&point, COPIES)];
    let order: Vec<usize> =
        common::shuffled(all.nrows(), 8).into_iter().map(|row| row as usize).collect();
    let without = built(Metric::Cosine, others.view());
    let with = built(Metric::Cosine, all.select(Axis(0), &order).view());
    let (build, plain) = (with.store().used(), without.store().used());
    assert!(build < plain * 12 / 10, "{build} page accesses, without copies {plain}");
    let (cost, plain) = (search_cost(&with, &queries), search_cost(&without, &queries));
    assert!(cost < plain * 11 / 10, "{cost} distances, without copies {plain}");
}

#[test]
fn searches_near_the_point() {
    let (_, others, point) = real();
    let mut index = built(Metric::L2sq, others.view());
    index.add(copies(&point, COPIES).view(), None, AddOptions::new()).unwrap();
    let mut near = point.to_vec();
    near[0] += 0.25;
    for (query, distance) in [(point.to_vec(), 0.0), (near, 0.0625)] {
        let (hits, cost) = index.search_counted(&query, &Search::new(50).ef(EF)).unwrap();
        assert_eq!(hits.len(), 50);
        assert!(hits.iter().all(|hit| hit.key >= OTHERS as u64), "only copies are that near");
        assert!(hits.iter().all(|hit| (hit.distance - distance).abs() < 1e-6));
        assert!(cost.distances < 2000, "{} distances", cost.distances);
        // Their number does not keep the others from being found.
        let within = index.range_search(&query, distance + 1e-3, &Search::new(1).ef(EF)).unwrap();
        assert_eq!(within.len(), COPIES);
        let hits = index.search(&query, &Search::new(COPIES + 5).ef(EF)).unwrap();
        assert_eq!(hits.len(), COPIES + 5);
        assert!(hits[COPIES..].iter().all(|hit| hit.key < OTHERS as u64));
    }
}

#[test]
fn copies_are_removed() {
    let (queries, others, point) = real();
    let mut index = built(Metric::Cosine, others.view());
    let keys: Vec<u64> = (0..COPIES as u64).map(|i| OTHERS as u64 + i).collect();
    index.add(copies(&point, COPIES).view(), Some(&keys), AddOptions::new()).unwrap();
    let slots = index.stats().unwrap().slots;
    let order = common::shuffled(COPIES, 4);
    let order: Vec<u64> = order.into_iter().map(|i| keys[i as usize]).collect();
    let (first, second) = order.split_at(COPIES / 2);

    assert_eq!(index.remove(first).unwrap(), COPIES / 2);
    index.verify().unwrap();
    let hits = index.search(&point.to_vec(), &Search::new(COPIES)).unwrap();
    let copies_found = hits.iter().filter(|hit| hit.key >= OTHERS as u64);
    assert_eq!(copies_found.clone().count(), COPIES / 2);
    assert!(copies_found.into_iter().all(|hit| !first.contains(&hit.key) && hit.distance < 1e-6));

    // The other half one by one, each from wherever it is on the chain.
    let used = index.store().used();
    for key in second {
        assert_eq!(index.remove(&[*key]).unwrap(), 1);
    }
    assert!(index.store().used() - used < 100_000_000, "removing is no more than linear");
    index.verify().unwrap();
    assert_eq!(index.len(), OTHERS);
    let hits = index.search(&point.to_vec(), &Search::new(10)).unwrap();
    assert!(hits.iter().all(|hit| hit.key < OTHERS as u64));
    let exact = exact(Metric::Cosine, others.view());
    let recall = common::mean_recall(&index, &exact, queries.view(), 10, EF);
    let fresh = built(Metric::Cosine, others.view());
    let plain = common::mean_recall(&fresh, &exact, queries.view(), 10, EF);
    assert!(recall > plain - 0.01, "recall {recall}, of a fresh index {plain}");

    index.add(copies(&point, COPIES).view(), Some(&keys), AddOptions::new()).unwrap();
    index.verify().unwrap();
    // But for those removed since the last sweep, which comes when a tenth of the index is removed vectors.
    let now = index.stats().unwrap().slots;
    assert!(now < slots * 11 / 10, "{now} slots, {slots} before: they are used again");
}

#[test]
fn many_copies_of_many_points() {
    let (queries, others, _) = real();
    let points = others.slice(s![..500, ..]);
    let rng = &mut Rng(3);
    let picks: Vec<usize> = (0..12_000).map(|_| rng.below(500)).collect();
    let all = concatenate![Axis(0), others, points.select(Axis(0), &picks)];
    let mut index = empty(Metric::L2sq);
    for part in all.axis_chunks_iter(Axis(0), 1700) {
        index.add(part, None, AddOptions::new()).unwrap();
    }
    index.verify().unwrap();
    // A search, which may miss, finds the one that a later call's copy is equal to.
    let twins = index.stats().unwrap().twins;
    assert!((11_900..=12_000).contains(&twins), "{twins} twins");
    let (with, without) = (exact(Metric::L2sq, all.view()), exact(Metric::L2sq, others.view()));
    let plain = built(Metric::L2sq, others.view());
    let bar = common::mean_recall(&plain, &without, queries.view(), 10, EF) - 0.01;
    let recall = common::mean_recall(&index, &with, queries.view(), 10, EF);
    assert!(recall > bar, "recall {recall}, bar {bar}");

    // The vectors in the graph leave it, their copies stay.
    let firsts: Vec<u64> = (0..500).collect();
    index.remove(&firsts).unwrap();
    index.sweep(0).unwrap();
    index.verify().unwrap();
    let mut left = exact(Metric::L2sq, all.view());
    left.remove(&firsts).unwrap();
    let recall = common::mean_recall(&index, &left, queries.view(), 10, EF);
    assert!(recall > bar, "recall {recall}, bar {bar}");
}

/// Multiples of one vector have cosine distance 0 to each other, but are not identical: they are given back as they
/// were. So each is a node of the graph, and a crowded place in it.
#[test]
fn multiples_of_one_vector_under_cosine() {
    let (queries, others, point) = real();
    let scale = |i: usize| 0.5 + i as f32 / COPIES as f32;
    let multiples = Array2::from_shape_fn((COPIES, point.len()), |(i, j)| point[j] * scale(i));
    let all = concatenate![Axis(0), others, multiples];
    let (with, without) = (built(Metric::Cosine, all.view()), built(Metric::Cosine, others.view()));
    // Three times as many nodes, most of which are too crowded to be loaded at once: no more than about twice the work
    // each, of what those take that are added and not loaded.
    let mut added = empty(Metric::Cosine);
    let (few, most) = others.view().split_at(Axis(0), 100);
    for rows in [few, most] {
        added.add(rows, None, AddOptions::new().threads(1)).unwrap();
    }
    let (build, plain) = (with.store().used(), added.store().used());
    assert!(build < plain * 8, "{build} page accesses, without multiples {plain}");
    let (cost, plain) = (search_cost(&with, &queries), search_cost(&without, &queries));
    assert!(cost < plain * 13 / 10, "{cost} distances, without multiples {plain}");

    let truth = exact(Metric::Cosine, all.view());
    let recall = common::mean_recall(&with, &truth, queries.view(), 10, EF);
    let truth = exact(Metric::Cosine, others.view());
    let plain = common::mean_recall(&without, &truth, queries.view(), 10, EF);
    assert!(recall > plain - 0.03, "recall {recall}, without multiples {plain}");

    let (hits, cost) = with.search_counted(&point.to_vec(), &Search::new(50).ef(EF)).unwrap();
    assert!(hits.iter().all(|hit| hit.key >= OTHERS as u64 && hit.distance < 1e-6));
    assert!(cost.distances < 2000, "{} distances", cost.distances);
    let key = OTHERS as u64 + 77;
    assert_eq!(with.get::<f32>(key).unwrap().unwrap(), (&point * scale(77)).to_vec());
}

/// Copies find the vector that they are equal to also where many others are as near.
#[test]
fn copies_of_multiples() {
    let (_, others, point) = real();
    let scale = |i: usize| 0.5 + i as f32 / 64.0;
    let multiples = Array2::from_shape_fn((64, point.len()), |(i, j)| point[j] * scale(i));
    for metric in [Metric::Cosine, Metric::L2sq, Metric::InnerProduct] {
        let mut index = empty(metric);
        index.add(others.slice(s![..1000, ..]), None, AddOptions::new()).unwrap();
        for _ in 0..21 {
            index.add(multiples.view(), None, AddOptions::new().threads(1)).unwrap();
        }
        index.verify().unwrap();
        let twins = index.stats().unwrap().twins;
        assert!(twins >= 20 * 64 * 95 / 100, "{metric}: {twins} of {} are twins", 20 * 64);
    }
}

/// Copies of short vectors are found as well beside a long one.
#[test]
fn copies_beside_an_outlier() {
    let (_, others, _) = real();
    let mut few = others.slice(s![..1000, ..]).to_owned();
    few.row_mut(5).mapv_inplace(|value| value * 1e5);
    for metric in [Metric::InnerProduct, Metric::L2sq, Metric::Cosine] {
        let mut index = empty(metric);
        for _ in 0..5 {
            index.add(few.view(), None, AddOptions::new()).unwrap();
        }
        index.verify().unwrap();
        let twins = index.stats().unwrap().twins;
        assert!(twins >= 4000 * 95 / 100, "{metric}: {twins} of 4000 are twins");
    }
}
