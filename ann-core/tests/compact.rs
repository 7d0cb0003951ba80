//! Codes by node on real vectors: recall with codes of every width, on both kinds of graph, with vectors and without
//! them; distances of the caller's; what is reported and what is refused.

mod common;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use ann_core::{
    AddOptions, DType, DiskAnn, DiskAnnBuilder, Error, Filter, Flat, Hit, Hnsw, HnswBuilder, Index,
    Layout, MemStore, Metric, Placement, Search,
};
use common::{SmallSet, mean_recall, small_set};
use ndarray::{Array2, s};

const METRICS: [Metric; 3] = [Metric::Cosine, Metric::L2sq, Metric::InnerProduct];

fn builder(metric: Metric) -> DiskAnnBuilder {
    DiskAnn::builder(100).metric(metric).build_list_size(100).placement(Placement::Compact)
}

fn hnsw(metric: Metric) -> HnswBuilder {
    Hnsw::builder(100).metric(metric).ef_construction(100)
}

fn exact(metric: Metric) -> &'static Flat {
    static EXACT: [OnceLock<Flat>; 4] = [const { OnceLock::new() }; 4];
    EXACT[metric as usize].get_or_init(|| {
        let mut exact = Flat::builder(100).metric(metric).build().unwrap();
        exact.add(set().base.view(), None, AddOptions::new()).unwrap();
        exact
    })
}

fn set() -> &'static SmallSet {
    static SET: OnceLock<SmallSet> = OnceLock::new();
    SET.get_or_init(small_set)
}

/// The small set under cosine distance, in an index that is only searched.
fn index() -> &'static DiskAnn {
    static INDEX: OnceLock<DiskAnn> = OnceLock::new();
    INDEX.get_or_init(|| {
        let mut index = builder(Metric::Cosine).build().unwrap();
        index.add(set().base.view(), None, AddOptions::new()).unwrap();
        index
    })
}

/// Recall@10 at pools of 10, 64 and 200 is at least these bars.
fn clears(mut index: impl Index, name: &str, bars: [f64; 3]) {
    let (set, exact) = (set(), exact(index.metric()));
    index.add(set.base.view(), None, AddOptions::new()).unwrap();
    index.verify().unwrap();
    let stats = index.stats().unwrap();
    assert!(stats.codes_in_use && stats.layout == Layout::Compact);
    let recalls = [10, 64, 200].map(|ef| mean_recall(&index, exact, set.queries.view(), 10, ef));
    eprintln!("{name}: {recalls:?}");
    let enough = recalls.iter().zip(bars).all(|(&recall, bar)| recall >= bar);
    assert!(enough, "{name}: {recalls:?}, not {bars:?}");
}

#[test]
fn codes_of_every_width() {
    for (bits, bars) in [(1, [0.0; 3]), (2, [0.0; 3]), (4, [0.0; 3]), (8, [0.0; 3])] {
        for metric in METRICS {
            let index = builder(metric).code_bits(bits).build().unwrap();
            clears(index, &format!("diskann, {metric}, {bits} bits"), bars);
        }
        let index = hnsw(Metric::Cosine).code_bits(bits).build().unwrap();
        clears(index, &format!("hnsw, {bits} bits"), bars);
    }
}

/// Exact distances of a caller, who has the vectors.
fn reranked(index: &impl Index, ef: usize, calls: &AtomicUsize) -> f64 {
    let (set, flat) = (set(), exact(index.metric()));
    let mut sum = 0.0;
    for query in set.queries.rows().into_iter().step_by(2) {
        let query = query.to_vec();
        let all = flat.search(&query, &Search::new(8000)).unwrap();
        let mut distances = vec![0.0; 8000];
        all.iter().for_each(|hit| distances[hit.key as usize] = hit.distance);
        let exact = |key: u64| {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok(Some(distances[key as usize]))
        };
        let hits = index.search(&query, &Search::new(10).ef(ef).rerank(&exact)).unwrap();
        assert!(hits.iter().all(|hit| distances[hit.key as usize] == hit.distance));
        assert!(hits.is_sorted_by(|a, b| a.distance <= b.distance));
        let truth: Vec<f32> = all[..10].iter().map(|hit| hit.distance).collect();
        sum += common::recall(&hits, &truth, 10);
    }
    sum / set.queries.nrows().div_ceil(2) as f64
}

/// Without vectors, with the caller's distances: loaded at one go, and added by small batches.
#[test]
fn without_vectors() {
    for (bits, bars) in [(1, [0.0; 2]), (4, [0.0; 2]), (8, [0.0; 2])] {
        for metric in METRICS {
            for (name, parts) in [("loaded", 8000), ("added", 500)] {
                let mut index = builder(metric).vectors(None).code_bits(bits).build().unwrap();
                for part in set().base.axis_chunks_iter(ndarray::Axis(0), parts) {
                    index.add(part, None, AddOptions::new()).unwrap();
                }
                index.verify().unwrap();
                let calls = AtomicUsize::new(0);
                let recalls = [64, 200].map(|ef| reranked(&index, ef, &calls));
                let calls = calls.into_inner() / 500;
                let what = format!("{metric}, {bits} bits, {name}: {recalls:?}, {calls} calls");
                eprintln!("{what}");
                assert!(recalls.iter().zip(bars).all(|(&recall, bar)| recall >= bar), "{what}");
            }
        }
    }
}
