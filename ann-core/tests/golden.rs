//! The golden cost counters: what builds and searches of the small real set cost and find, as exact integers.
//!
//! Builds are deterministic and the scalar kernels give the same sums on every machine, so any difference is a change
//! of behaviour, to be looked at in the diff. `ANN_BLESS=1` writes the golden file anew.

mod common;

use std::fmt::Write;
use std::path::PathBuf;

use ann_core::{
    AddOptions, DiskAnn, Filter, Flat, Hnsw, Index, Isa, IvfCode, IvfPq, Kind, Metric, Placement,
    Search,
};
use common::SmallSet;

const K: usize = 10;

fn hnsw(metric: Metric) -> Hnsw {
    let builder = Hnsw::builder(100).metric(metric).m(16).ef_construction(100).seed(0);
    builder.instruction_set(Isa::Scalar).build().unwrap()
}

/// Estimates from codes are the same on all instruction sets.
fn diskann(metric: Metric) -> DiskAnn {
    let builder = DiskAnn::builder(100).metric(metric).build_list_size(100).seed(0);
    builder.instruction_set(Isa::Scalar).build().unwrap()
}

fn compact(metric: Metric) -> DiskAnn {
    let builder = DiskAnn::builder(100).metric(metric).build_list_size(100).seed(0);
    builder.placement(Placement::Compact).instruction_set(Isa::Scalar).build().unwrap()
}

fn ivfpq(metric: Metric) -> IvfPq {
    IvfPq::builder(100).metric(metric).seed(0).instruction_set(Isa::Scalar).build().unwrap()
}

fn rabitq(metric: Metric) -> IvfPq {
    let builder = IvfPq::builder(100).metric(metric).seed(0).code(IvfCode::RaBitQ1);
    builder.instruction_set(Isa::Scalar).build().unwrap()
}

fn opq(metric: Metric) -> IvfPq {
    let builder = IvfPq::builder(100).metric(metric).seed(0).opq(true);
    builder.instruction_set(Isa::Scalar).build().unwrap()
}

/// Keys of the true nearest vectors of each query.
fn truth(set: &SmallSet, metric: Metric) -> Vec<Vec<u64>> {
    let builder = Flat::builder(100).metric(metric).instruction_set(Isa::Scalar);
    let mut exact = builder.build().unwrap();
    exact.add(set.base.view(), None, AddOptions::new()).unwrap();
    let found = exact.search_batch(set.queries.view(), &Search::new(K), 0).unwrap();
    found.iter().map(|hits| hits.iter().map(|hit| hit.key).collect()).collect()
}

/// Hops, distances and, of the true nearest, those found; summed over all queries.
fn search(
    index: &impl Index,
    set: &SmallSet,
    truth: &[Vec<u64>],
    options: &Search<'_>,
) -> [u64; 3] {
    let mut sums = [0; 3];
    for (query, truth) in set.queries.rows().into_iter().zip(truth) {
        let (hits, cost) = index.search_counted(&query.to_vec(), options).unwrap();
        sums[0] += cost.hops;
        sums[1] += cost.distances;
        sums[2] += hits.iter().filter(|hit| truth.contains(&hit.key)).count() as u64;
    }
    sums
}

fn report<I: Index>(empty: fn(Metric) -> I) -> String {
    let set = common::small_set();
    let mut out = String::new();
    for metric in [Metric::Cosine, Metric::L2sq] {
        let truth = truth(&set, metric);
        let mut index = empty(metric);
        index.add(set.base.view(), None, AddOptions::new()).unwrap();
        let mut line = |name: &str, index: &I, options: &Search<'_>| {
            let [hops, distances, found] = search(index, &set, &truth, options);
            writeln!(out, "{metric} {name}: hops {hops} distances {distances} found {found}")
                .unwrap();
        };
        for ef in [10, 32, 64, 128, 256] {
            line(&format!("ef {ef}"), &index, &Search::new(K).ef(ef));
        }
        let of_graphs = [0.05, 0.1, 0.2].into_iter().filter(|_| index.kind() != Kind::IvfPq);
        for epsilon in of_graphs {
            let options = Search::new(K).ef(256).epsilon(epsilon);
            line(&format!("ef 256, epsilon {epsilon}"), &index, &options);
        }
        let half = |key: u64| key.is_multiple_of(2);
        let options = Search::new(K).ef(64).filter(Filter::Predicate(&half));
        line("even keys, ef 64", &index, &options);
        let built = index.stats().unwrap();
        index.remove(&common::shuffled(8000, 1)[..4000]).unwrap();
        line("half removed, ef 64", &index, &Search::new(K).ef(64));
        for (name, stats) in [("built", built), ("half removed", index.stats().unwrap())] {
            let [bottom, above] = stats.links;
            let (pages, levels) = (stats.bytes / stats.page_size as u64, stats.levels);
            let parts = stats.bytes_by_part.map(|bytes| bytes / stats.page_size as u64);
            writeln!(out, "{metric} {name}: links {bottom} above {above} levels {levels} pages {pages} {parts:?}")
                .unwrap();
        }
    }
    out
}

#[test]
fn costs_of_hnsw_are_as_recorded() {
    compare("tests/golden/hnsw-small.txt", &report(hnsw));
}

#[test]
fn costs_of_diskann_are_as_recorded() {
    compare("tests/golden/diskann-small.txt", &report(diskann));
}

#[test]
fn costs_of_codes_by_node_are_as_recorded() {
    compare("tests/golden/compact-small.txt", &report(compact));
}

/// Its `ef` is the number of candidates that are measured, and its hops are blocks.
#[test]
fn costs_of_ivfpq_are_as_recorded() {
    compare("tests/golden/ivfpq-small.txt", &report(ivfpq));
}

#[test]
fn costs_of_lists_of_rabitq_are_as_recorded() {
    compare("tests/golden/rabitq-small.txt", &report(rabitq));
}

#[test]
fn costs_of_lists_of_rotated_vectors_are_as_recorded() {
    compare("tests/golden/opq-small.txt", &report(opq));
}

fn compare(file: &str, now: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("ANN_BLESS").is_some() {
        std::fs::write(&path, now).unwrap();
        return;
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    if now == golden {
        return;
    }
    let mut differences = String::new();
    for (was, is) in golden.lines().zip(now.lines()).filter(|(was, is)| was != is) {
        writeln!(differences, "- {was}\n+ {is}").unwrap();
    }
    panic!(
        "costs have changed; if that is as it should be, bless them with ANN_BLESS=1\n{differences}"
    );
}
