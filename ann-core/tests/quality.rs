//! Recall on real vectors: bars that every metric, element type and breadth of the graph has to clear.

mod common;

use std::collections::HashSet;
use std::sync::OnceLock;

use ann_core::testing::Rng;
use ann_core::{AddOptions, Element, Filter, Flat, Hnsw, Index, Metric, Search};
use common::{SmallSet, mean_recall, small_set};
use half::f16;
use ndarray::Array2;

fn built<T: Element>(metric: Metric, base: &Array2<T>) -> (Hnsw, Flat) {
    let builder = Hnsw::builder(base.ncols()).dtype(T::DTYPE).metric(metric);
    let mut index = builder.ef_construction(100).build().unwrap();
    index.add(base.view(), None, AddOptions::new()).unwrap();
    (index, exact(metric, base))
}

/// The small set under cosine distance, built once for all tests that only search.
fn cosine_pair() -> (&'static SmallSet, &'static Hnsw, &'static Flat) {
    static PAIR: OnceLock<(SmallSet, Hnsw, Flat)> = OnceLock::new();
    let (set, index, exact) = PAIR.get_or_init(|| {
        let set = small_set();
        let (index, exact) = built(Metric::Cosine, &set.base);
        (set, index, exact)
    });
    (set, index, exact)
}

fn exact<T: Element>(metric: Metric, base: &Array2<T>) -> Flat {
    let mut exact = Flat::builder(base.ncols()).dtype(T::DTYPE).metric(metric).build().unwrap();
    exact.add(base.view(), None, AddOptions::new()).unwrap();
    exact
}

/// Recall@10 at these ef is at least these bars.
fn clears<T: Element>(
    metric: Metric,
    base: &Array2<T>,
    queries: &Array2<T>,
    bars: &[(usize, f64)],
) {
    let (index, exact) = built(metric, base);
    for &(ef, bar) in bars {
        let recall = mean_recall(&index, &exact, queries.view(), 10, ef);
        assert!(recall >= bar, "{metric}, {}: recall {recall} at ef {ef}, not {bar}", T::DTYPE);
    }
}

#[test]
fn cosine() {
    let set = small_set();
    let bars = [(10, 0.70), (64, 0.955), (200, 0.99)];
    clears(Metric::Cosine, &set.base, &set.queries, &bars);
    let half = |floats: &Array2<f32>| floats.mapv(f16::from_f32);
    clears(Metric::Cosine, &half(&set.base), &half(&set.queries), &bars);
}

#[test]
fn squared_l2() {
    let set = small_set();
    let bars = [(10, 0.60), (64, 0.90), (200, 0.95)];
    clears(Metric::L2sq, &set.base, &set.queries, &bars);
    let half = |floats: &Array2<f32>| floats.mapv(f16::from_f32);
    clears(Metric::L2sq, &half(&set.base), &half(&set.queries), &bars);
}

#[test]
fn inner_product() {
    let set = small_set();
    let bars = [(10, 0.70), (64, 0.95), (200, 0.99)];
    clears(Metric::InnerProduct, &set.base, &set.queries, &bars);
}

/// One vector ten thousand times as long as the others is the answer to half of all queries, and no answer to others.
#[test]
fn inner_product_with_an_outlier() {
    let set = small_set();
    let mut base = set.base.to_owned();
    let row = base.row(17).to_owned();
    let norm = row.dot(&row).sqrt();
    base.row_mut(17).assign(&(row * (1e4 / norm)));
    clears(Metric::InnerProduct, &base, &set.queries, &[(64, 0.90), (200, 0.97)]);
}

#[test]
fn quantised_to_bytes() {
    let set = small_set();
    let largest = set.base.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let signed = |floats: &Array2<f32>| common::quantised(floats, largest);
    let (base, queries) = (signed(&set.base), signed(&set.queries));
    clears(Metric::Cosine, &base, &queries, &[(64, 0.95), (200, 0.99)]);
    clears(Metric::L2sq, &base, &queries, &[(64, 0.90)]);
    let unsigned = |bytes: &Array2<i8>| bytes.mapv(|byte| (i16::from(byte) + 128) as u8);
    clears(Metric::L2sq, &unsigned(&base), &unsigned(&queries), &[(64, 0.90)]);
}

#[test]
fn ground_truth_of_the_small_set() {
    let set = small_set();
    let exact = exact(Metric::Cosine, &set.base);
    let found = exact.search_batch(set.queries.view(), &Search::new(100), 0).unwrap();
    let mut equal = 0;
    for (hits, truth) in found.iter().zip(&set.neighbors) {
        equal += hits.iter().filter(|hit| truth.contains(&(hit.key as u32))).count();
    }
    // But for ties at the hundredth place.
    assert!(equal > 49_990, "{equal} of 50,000");
}

#[test]
fn filters_of_every_selectivity() {
    let (set, index, exact) = cosine_pair();
    for one_in in [2, 5, 10, 30, 100, 1000, 8000] {
        let accept = |key: u64| key.is_multiple_of(one_in);
        let keys: Vec<u64> = (0..8000).filter(|&key| accept(key)).collect();
        for filter in [Filter::Predicate(&accept), Filter::Keys(&keys)] {
            let options = Search::new(10).ef(64).filter(filter);
            let found = index.search_batch(set.queries.view(), &options, 0).unwrap();
            let truth = exact.search_batch(set.queries.view(), &options, 0).unwrap();
            let mut sum = 0.0;
            for (hits, truth) in found.iter().zip(&truth) {
                assert_eq!(hits.len(), truth.len());
                assert!(hits.iter().all(|hit| accept(hit.key)));
                let truth: Vec<f32> = truth.iter().map(|hit| hit.distance).collect();
                sum += common::recall(hits, &truth, 10);
            }
            let recall = sum / found.len() as f64;
            assert!(recall >= 0.95, "recall {recall} where one in {one_in} passes");
        }
    }
}

/// A filter whose matches are all far from the query.
#[test]
fn a_filter_against_the_query() {
    let (set, index, exact) = cosine_pair();
    for at in [0, 100, 200] {
        let query = set.queries.row(at).to_vec();
        let near = exact.search(&query, &Search::new(4000)).unwrap();
        let near: HashSet<u64> = near.iter().map(|hit| hit.key).collect();
        let accept = |key: u64| !near.contains(&key);
        let options = Search::new(10).ef(64).filter(Filter::Predicate(&accept));
        let (hits, cost) = index.search_counted(&query, &options).unwrap();
        let truth = exact.search(&query, &options).unwrap();
        let truth: Vec<f32> = truth.iter().map(|hit| hit.distance).collect();
        assert!(common::recall(&hits, &truth, 10) >= 0.9);
        // The whole graph, and a few steps above it.
        assert!(cost.distances <= 8400, "{} distances", cost.distances);
    }
}

#[test]
fn range_searches() {
    let (set, index, exact) = cosine_pair();
    let (mut found, mut wanted) = (0, 0);
    for (query, truth) in set.queries.rows().into_iter().zip(&set.neighbors).step_by(5) {
        let query = query.to_vec();
        let far = index.get::<f32>(u64::from(truth[60])).unwrap().unwrap();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let radius = 1.0 - dot(&query, &far) / (dot(&query, &query) * dot(&far, &far)).sqrt();
        let options = Search::new(1).ef(100);
        found += index.range_search(&query, radius, &options).unwrap().len();
        wanted += exact.range_search(&query, radius, &options).unwrap().len();
    }
    let recall = found as f64 / wanted as f64;
    assert!(recall >= 0.95, "recall {recall}");
}

/// A cursor's hits, read in small portions, are as good as those of one search.
#[test]
fn cursors() {
    let (set, index, exact) = cosine_pair();
    let mut sum = 0.0;
    for query in set.queries.rows().into_iter().step_by(5) {
        let query = query.to_vec();
        let mut cursor = index.cursor(&query, 64).unwrap();
        let mut hits = Vec::new();
        for _ in 0..25 {
            hits.extend(index.resume(&mut cursor, 4, Filter::None).unwrap());
        }
        let truth = exact.search(&query, &Search::new(100)).unwrap();
        let truth: Vec<f32> = truth.iter().map(|hit| hit.distance).collect();
        sum += common::recall(&hits, &truth, 100);
    }
    let recall = sum / 100.0;
    assert!(recall >= 0.93, "recall {recall}");
}

/// Every number of links makes a sound index, and more links find more.
#[test]
fn every_breadth() {
    let set = small_set();
    let exact = exact(Metric::Cosine, &set.base);
    let mut last = 0.0;
    for (m, bar) in [(2, 0.4), (3, 0.6), (4, 0.75), (8, 0.9), (32, 0.97)] {
        let builder = Hnsw::builder(100).metric(Metric::Cosine).m(m).ef_construction(60);
        let mut index = builder.build().unwrap();
        index.add(set.base.view(), None, AddOptions::new()).unwrap();
        index.verify().unwrap();
        let recall = mean_recall(&index, &exact, set.queries.view(), 10, 64);
        assert!(recall >= bar && recall > last, "m {m}: recall {recall}");
        last = recall;
        index.remove(&common::shuffled(8000, 3)[..3000]).unwrap();
        index.verify().unwrap();
    }
}

/// The largest number of links, on few vectors.
#[test]
fn the_most_links() {
    let base = common::clustered(1200, 8, 1);
    let mut index = Hnsw::builder(8).m(256).ef_construction(300).build().unwrap();
    index.add(base.view(), None, AddOptions::new()).unwrap();
    index.verify().unwrap();
    let recall = mean_recall(&index, &exact(Metric::L2sq, &base), base.view(), 10, 20);
    assert!(recall > 0.99, "recall {recall}");
    index.remove(&common::shuffled(1200, 3)[..600]).unwrap();
    index.verify().unwrap();
}

/// Vectors at the ends of what is allowed.
#[test]
fn very_long_and_very_short_vectors() {
    let base = common::clustered(500, 8, 1);
    let norm = |rows: &Array2<f32>| rows.map_axis(ndarray::Axis(1), |row| row.dot(&row).sqrt());
    let longest = norm(&base).iter().fold(0.0f32, |longest, &norm| longest.max(norm));
    for metric in [Metric::L2sq, Metric::InnerProduct, Metric::Cosine] {
        for length in [9.2e18, 1e10, 1e-10, 1e-18] {
            let scaled = &base * (length / longest);
            let bars = [(100, 0.97)];
            clears(metric, &scaled, &scaled, &bars);
        }
    }
}

/// Vectors so short that products of them are no floats: their directions are right, or they are refused.
#[test]
fn directions_of_the_shortest_vectors() {
    let base = common::clustered(300, 8, 1);
    let rows = exact(Metric::Cosine, &base);
    for scale in [1e-22, 1e-25, 1e-30, 1e-36] {
        let scaled = &base * scale;
        let mut index = Flat::builder(8).metric(Metric::Cosine).build().unwrap();
        if index.add(scaled.view(), None, AddOptions::new()).is_err() {
            assert!(index.is_empty());
            continue;
        }
        for at in [0, 100, 200] {
            let hits = index.search(&scaled.row(at).to_vec(), &Search::new(20)).unwrap();
            let truth = rows.search(&base.row(at).to_vec(), &Search::new(20)).unwrap();
            for (hit, truth) in hits.iter().zip(&truth) {
                assert!((hit.distance - truth.distance).abs() < 1e-3, "scale {scale}: {hit:?}");
            }
        }
    }
}

/// Clusters so far apart that a byte a coordinate would not tell the vectors of one from one another.
#[test]
fn near_ones_among_far_ones() {
    const DIM: usize = 64;
    let mut rng = Rng(5);
    let centres = Array2::from_shape_simple_fn((12, DIM), || common::normal(&mut rng) * 1000.0);
    let near = |rng: &mut Rng, n| {
        Array2::from_shape_fn((n, DIM), |(row, column)| {
            centres[(row % 12, column)] + common::normal(rng)
        })
    };
    let (base, queries) = (near(&mut rng, 6000), near(&mut rng, 240));
    clears(Metric::L2sq, &base, &queries, &[(10, 0.88)]);
}
