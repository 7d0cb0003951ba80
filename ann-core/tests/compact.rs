//! Codes by node on real vectors: recall with codes of every width, on both kinds of graph, with vectors and without
//! them; distances of the caller's; what is reported and what is refused.

mod common;

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use ann_core::{
    AddOptions, DType, DiskAnn, DiskAnnBuilder, Error, Filter, Flat, Hit, Hnsw, HnswBuilder, Index,
    Layout, MemStore, Metric, Placement, Search,
};
use common::{SmallSet, mean_recall, small_set};
use ndarray::{Array2, Axis, s};

/// Of the queries of the set, one in so many where each is costly.
const STEP: usize = 5;
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
    let enough = recalls.iter().zip(bars).all(|(&recall, bar)| recall >= bar);
    assert!(enough, "{name}: {recalls:?}, not {bars:?}");
}

#[test]
fn codes_of_every_width() {
    let bars = [
        (1, [0.40, 0.84, 0.96]),
        (2, [0.60, 0.95, 0.985]),
        (4, [0.73, 0.96, 0.99]),
        (8, [0.76, 0.965, 0.99]),
    ];
    for (bits, bars) in bars {
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
    for query in set.queries.rows().into_iter().step_by(STEP) {
        let query = query.to_vec();
        let all = flat.search(&query, &Search::new(8000)).unwrap();
        let mut distances = vec![0.0; 8000];
        all.iter().for_each(|hit| distances[hit.key as usize] = hit.distance);
        let exact = |key: u64| {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok(Some(distances[key as usize]))
        };
        let hits = index.search(&query, &Search::new(10).ef(ef).exact(&exact)).unwrap();
        assert!(hits.iter().all(|hit| distances[hit.key as usize] == hit.distance));
        assert!(hits.is_sorted_by(|a, b| a.distance <= b.distance));
        let truth: Vec<f32> = all[..10].iter().map(|hit| hit.distance).collect();
        sum += common::recall(&hits, &truth, 10);
    }
    sum / set.queries.nrows().div_ceil(STEP) as f64
}

/// Without vectors, with the caller's distances: loaded at one go, and added by small batches.
#[test]
fn without_vectors() {
    let bars = [
        (1, Metric::Cosine, [0.82, 0.95], 200),
        (4, Metric::L2sq, [0.93, 0.975], 25),
        (8, Metric::InnerProduct, [0.95, 0.985], 12),
    ];
    for (bits, metric, bars, most) in bars {
        for parts in [8000, 500] {
            let mut index = builder(metric).vectors(None).code_bits(bits).build().unwrap();
            for part in set().base.axis_chunks_iter(Axis(0), parts) {
                index.add(part, None, AddOptions::new()).unwrap();
            }
            index.verify().unwrap();
            let calls = AtomicUsize::new(0);
            let recalls = [64, 200].map(|ef| reranked(&index, ef, &calls));
            // The error bound saves most of them the better codes are.
            let calls = calls.into_inner() * STEP / (2 * set().queries.nrows());
            let what =
                format!("{metric}, {bits} bits, {parts} at a time: {recalls:?}, {calls} calls");
            assert!(recalls.iter().zip(bars).all(|(&recall, bar)| recall >= bar), "{what}");
            assert!(calls <= most, "{what}");
        }
    }
}

/// Estimates of codes of eight bits are distances, for most purposes.
#[test]
fn results_without_vectors_are_estimates() {
    let mut index = hnsw(Metric::L2sq).vectors(None).code_bits(8).build().unwrap();
    index.add(set().base.view(), None, AddOptions::new()).unwrap();
    let flat = exact(Metric::L2sq);
    let mut sum = 0.0;
    for query in set().queries.rows().into_iter().step_by(10) {
        let query = query.to_vec();
        let hits = index.search(&query, &Search::new(10).ef(100)).unwrap();
        let truth: HashMap<u64, f32> = flat
            .search(&query, &Search::new(8000))
            .unwrap()
            .iter()
            .map(|hit| (hit.key, hit.distance))
            .collect();
        let near = |hit: &Hit| (hit.distance / truth[&hit.key] - 1.0).abs() < 0.03;
        assert!(hits.iter().all(near), "{hits:?}");
        let mut sorted: Vec<f32> = truth.values().copied().collect();
        sorted.sort_unstable_by(f32::total_cmp);
        sum += hits.iter().filter(|hit| truth[&hit.key] <= sorted[9]).count() as f64 / 10.0;
    }
    assert!(sum / 50.0 >= 0.93, "recall {}", sum / 50.0);
    assert!(matches!(index.get::<f32>(3), Err(Error::NoVectors)));
    assert!(index.contains(3).unwrap());
}

/// An index without vectors changes like others: keys, twins, removal, sweeps, reopening.
#[test]
fn changes_without_vectors() {
    let base = &set().base;
    let mut index = builder(Metric::Cosine).vectors(None).build().unwrap();
    index.add(base.slice(s![..20, ..]), None, AddOptions::new()).unwrap();
    index.add(base.slice(s![20..2000, ..]), None, AddOptions::new()).unwrap();
    index.add(base.slice(s![..10, ..]), None, AddOptions::new()).unwrap();
    assert_eq!(index.stats().unwrap().twins, 10);
    let keys: Vec<u64> = (100..200).collect();
    index.update(base.slice(s![3000..3100, ..]), &keys, AddOptions::new()).unwrap();
    index.update(base.slice(s![3000..3100, ..]), &keys, AddOptions::new()).unwrap();
    assert_eq!(index.remove(&(0..400).collect::<Vec<u64>>()).unwrap(), 400);
    index.sweep(0).unwrap();
    index.verify().unwrap();
    let folder = tempfile::tempdir().unwrap();
    index.save(&folder.path().join("index")).unwrap();
    let store = MemStore::load(&folder.path().join("index")).unwrap();
    let mut index = DiskAnn::open_in(store).unwrap();
    index.add(base.slice(s![4000..4500, ..]), None, AddOptions::new()).unwrap();
    index.verify().unwrap();
    assert_eq!((index.len(), index.vectors()), (2110, None));
    assert_eq!(index.placement(), Placement::Compact);
    let query = base.row(4100).to_vec();
    let hits = index.search(&query, &Search::new(10)).unwrap();
    assert_eq!(hits[0].key, 2110);
    // A walk comes to each vector once.
    let mut cursor = index.cursor(&query, 20).unwrap();
    let mut walked = index.resume(&mut cursor, 5000, Filter::None).unwrap();
    walked.sort_unstable_by_key(|hit| hit.key);
    walked.dedup_by_key(|hit| hit.key);
    assert_eq!(walked.len(), 2110);
}

/// What the caller says of keys counts, in searches of all kinds.
#[test]
fn the_callers_distances() {
    let mut index = builder(Metric::Cosine).vectors(None).build().unwrap();
    index.add(set().base.view(), None, AddOptions::new()).unwrap();
    let flat = exact(Metric::Cosine);
    let even = |key: u64| key.is_multiple_of(2);
    let rare = |key: u64| key.is_multiple_of(500);
    let (mut found, mut wanted) = (0, 0);
    for query in set().queries.rows().into_iter().step_by(20) {
        let query = query.to_vec();
        let all = flat.search(&query, &Search::new(8000)).unwrap();
        let distances: HashMap<u64, f32> = all.iter().map(|hit| (hit.key, hit.distance)).collect();
        // Multiples of ten are gone where the caller has its vectors.
        let exact = |key: u64| Ok((!key.is_multiple_of(10)).then(|| distances[&key]));
        let right = |hits: &[Hit], accept: &dyn Fn(u64) -> bool| {
            let good = |hit: &Hit| {
                !hit.key.is_multiple_of(10)
                    && accept(hit.key)
                    && hit.distance == distances[&hit.key]
            };
            assert!(hits.iter().all(good), "{hits:?}");
        };
        let options = Search::new(10).ef(100).exact(&exact);
        let hits = index.search(&query, &options).unwrap();
        right(&hits, &|_| true);
        let filtered = options.filter(Filter::Predicate(&even));
        right(&index.search(&query, &filtered).unwrap(), &even);
        let filtered = options.filter(Filter::Predicate(&rare));
        assert_eq!(index.search(&query, &filtered).unwrap(), []);
        let batch = index.search_batch(
            Array2::from_shape_vec((1, 100), query.clone()).unwrap().view(),
            &options,
            1,
        );
        assert_eq!(batch.unwrap(), [hits]);
        let radius = all[60].distance;
        let hits = index.range_search(&query, radius, &options).unwrap();
        right(&hits, &|_| true);
        assert!(hits.iter().all(|hit| hit.distance <= radius));
        found += hits.len();
        wanted += all[..61].iter().filter(|hit| !hit.key.is_multiple_of(10)).count();
    }
    let recall = found as f64 / wanted as f64;
    assert!(recall >= 0.95, "recall {recall}");
    let query = set().queries.row(0).to_vec();
    let failing = |_| Err(Error::NoVectors);
    let failed = index.search(&query, &Search::new(1).exact(&failing));
    assert!(matches!(failed, Err(Error::NoVectors)));
    let nan = |_| Ok(Some(f32::NAN));
    let failed = index.search(&query, &Search::new(1).exact(&nan));
    assert!(matches!(failed, Err(Error::Parameter { name: "exact", .. })));
    let failed = self::index().search(&query, &Search::new(1).exact(&nan));
    assert!(matches!(failed, Err(Error::Parameter { name: "exact", .. })));
}

/// Estimates near the radius count as within until the distance says otherwise.
#[test]
fn range_searches() {
    let (index, exact) = (index(), exact(Metric::Cosine));
    let (mut found, mut wanted) = (0, 0);
    for query in set().queries.rows().into_iter().step_by(5) {
        let query = query.to_vec();
        let radius = exact.search(&query, &Search::new(61)).unwrap()[60].distance;
        let options = Search::new(1).ef(40);
        let hits = index.range_search(&query, radius, &options).unwrap();
        assert!(hits.iter().all(|hit| hit.distance <= radius));
        found += hits.len();
        wanted += exact.range_search(&query, radius, &options).unwrap().len();
    }
    let recall = found as f64 / wanted as f64;
    assert!(recall >= 0.95, "recall {recall}");
}

#[test]
fn filters_of_every_selectivity() {
    let (index, exact) = (index(), exact(Metric::Cosine));
    for one_in in [2, 10, 100, 1000, 8000] {
        let accept = |key: u64| key.is_multiple_of(one_in);
        let options = Search::new(10).ef(64).filter(Filter::Predicate(&accept));
        let found = index.search_batch(set().queries.view(), &options, 0).unwrap();
        let truth = exact.search_batch(set().queries.view(), &options, 0).unwrap();
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

/// Distances are exact, and only what could be a result is read for them.
#[test]
fn few_vectors_are_read() {
    let (index, flat) = (index(), exact(Metric::Cosine));
    let mut read = 0;
    for query in set().queries.rows().into_iter().step_by(5) {
        let query = query.to_vec();
        let (hits, cost) = index.search_counted(&query, &Search::new(10).ef(100)).unwrap();
        read += cost.distances;
        let truth = flat.search(&query, &Search::new(10)).unwrap();
        assert!(hits.iter().zip(&truth).all(|(hit, truth)| hit.distance >= truth.distance - 1e-6));
    }
    assert!(read < 40 * 100, "{} vectors a search", read / 100);
}

/// Small graphs are searched by distances until their codes come into use.
#[test]
fn codes_wait_for_vectors() {
    let mut index = builder(Metric::L2sq).build().unwrap();
    for row in 0..255 {
        index.add(set().base.slice(s![row..row + 1, ..]), None, AddOptions::new()).unwrap();
    }
    assert!(!index.stats().unwrap().codes_in_use);
    index.verify().unwrap();
    index.add(set().base.slice(s![255..300, ..]), None, AddOptions::new()).unwrap();
    assert!(index.stats().unwrap().codes_in_use);
    index.verify().unwrap();
    let query = set().base.row(7).to_vec();
    assert_eq!(index.search(&query, &Search::new(1)).unwrap()[0].key, 7);
}

#[test]
fn layouts_are_as_reported() {
    let stats = |builder: DiskAnnBuilder| builder.build().unwrap().stats().unwrap();
    let compact = DiskAnn::builder(256).placement(Placement::Compact);
    let got = stats(compact.clone());
    assert_eq!((got.layout, got.code_bits, got.vectors), (Layout::Compact, 4, Some(DType::F32)));
    let got = stats(DiskAnn::builder(256).vectors(None).dtype(DType::U8));
    assert_eq!((got.layout, got.code_bits, got.vectors), (Layout::Compact, 4, None));
    let got = stats(DiskAnn::builder(40).vectors(None));
    assert_eq!((got.layout, got.code_bits), (Layout::Compact, 8));
    let index = hnsw(Metric::L2sq).code_bits(2).vectors(DType::F16).build().unwrap();
    let got = index.stats().unwrap();
    assert_eq!((got.layout, got.code_bits, got.vectors), (Layout::Compact, 2, Some(DType::F16)));
    // A code a vector, a tenth of what codes by edge take.
    let bytes = |mut index: DiskAnn| {
        index.add(set().base.view(), None, AddOptions::new()).unwrap();
        let stats = index.stats().unwrap();
        (stats.bytes_by_part[4], stats.bytes)
    };
    let by_node = bytes(builder(Metric::L2sq).code_bits(2).build().unwrap());
    let by_edge = bytes(DiskAnn::builder(100).code_bits(2).build().unwrap());
    assert!(10 * by_node.0 < by_edge.0 && by_node.1 < by_edge.1, "{by_node:?}, {by_edge:?}");
    let without = bytes(builder(Metric::L2sq).code_bits(1).vectors(None).build().unwrap());
    assert!(without.1 < 8000 * 300, "{without:?}");
}

#[test]
fn what_is_refused() {
    let refused = |builder: DiskAnnBuilder, page_size: usize| match builder
        .build_in(MemStore::new(page_size).unwrap())
        .map(|_| ())
        .unwrap_err()
    {
        Error::Parameter { name, value, allowed } => (name, value, allowed),
        other => panic!("{other:?}"),
    };
    let compact = DiskAnn::builder(8).placement(Placement::Compact);
    assert_eq!(refused(compact.clone().code_bits(0), 8192).0, "code_bits");
    assert_eq!(refused(compact.code_bits(3), 8192).0, "code_bits");
    assert_eq!(refused(DiskAnn::builder(8).vectors(None).code_bits(0), 8192).0, "code_bits");
    let fused = DiskAnn::builder(8).vectors(None).placement(Placement::Fused);
    let (name, value, allowed) = refused(fused, 8192);
    assert_eq!((name, value.as_str()), ("placement", "fused"));
    assert!(allowed.starts_with("compact where vectors are not kept"), "{allowed}");
    let fused = DiskAnn::builder(8).placement(Placement::Fused).code_bits(8);
    assert_eq!(refused(fused, 8192).0, "code_bits");
    assert_eq!(DiskAnn::builder(8).code_bits(8).build().unwrap().placement(), Placement::Compact);
    let (name, _, allowed) = refused(DiskAnn::builder(9000).vectors(None).code_bits(8), 8192);
    assert_eq!(name, "page size");
    assert!(allowed.starts_with("at least 16384"), "{allowed}");
    let refused = |builder: HnswBuilder| match builder.build().map(|_| ()).unwrap_err() {
        Error::Parameter { name, .. } => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(Hnsw::builder(8).code_bits(3)), "code_bits");
    assert_eq!(refused(Hnsw::builder(8).vectors(None).code_bits(0)), "code_bits");
    for (dim, bits) in [(64, 8), (65, 4), (65_536, 4)] {
        assert_eq!(Hnsw::builder(dim).vectors(None).build().unwrap().code_bits(), bits);
        assert_eq!(Hnsw::builder(dim).build().unwrap().code_bits(), 0);
    }
    assert_eq!(refused(Hnsw::builder(8).vectors(DType::I8)), "vectors");
}

/// Repeats take slots of their own, and those are among the slots that have codes.
#[test]
fn many_repeats_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let rows = common::clustered(300, 8, 5);
    let repeats = rows.select(Axis(0), &[7; 1000]);
    let mut index = DiskAnn::builder(8).placement(Placement::Compact).build().unwrap();
    index.add(rows.view(), None, AddOptions::new()).unwrap();
    index.add(repeats.view(), None, AddOptions::new()).unwrap();
    let path = folder.path().join("a");
    index.save(&path).unwrap();
    let index: DiskAnn = DiskAnn::open_in(MemStore::load(&path).unwrap()).unwrap();
    index.verify().unwrap();
    assert_eq!(index.len(), 1300);
}
