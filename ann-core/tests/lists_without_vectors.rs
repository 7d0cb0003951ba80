//! IVF-PQ that keeps no vectors: codes of higher precision in their place, or none; distances of the caller's; what it
//! takes, and what is refused.

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use ann_core::testing::Rng;
use ann_core::{
    AddOptions, Cursor, DType, Error, Filter, Flat, Hit, Index, IvfPq, IvfPqBuilder, Layout,
    MemStore, Metric, Search,
};
use common::oracle::{Oracle, Tally};
use common::{SmallSet, add_all, clustered, shuffled, small_set};
use ndarray::{Array2, Axis, s};

const METRICS: [Metric; 3] = [Metric::Cosine, Metric::L2sq, Metric::InnerProduct];
/// Of the queries of the set, one in so many.
const STEP: usize = 5;

fn set() -> &'static SmallSet {
    static SET: OnceLock<SmallSet> = OnceLock::new();
    SET.get_or_init(small_set)
}

/// A query, and its distances to all vectors, by key.
type Known = (Vec<f32>, Vec<f32>);

/// Every fifth query.
fn truth(metric: Metric) -> &'static [Known] {
    static TRUTH: [OnceLock<Vec<Known>>; 4] = [const { OnceLock::new() }; 4];
    TRUTH[metric as usize].get_or_init(|| {
        let mut flat = Flat::builder(100).metric(metric).build().unwrap();
        add_all(&mut flat, set().base.view());
        let each = set().queries.rows().into_iter().step_by(STEP).map(|query| {
            let query = query.to_vec();
            let all = flat.search(&query, &Search::new(8000)).unwrap();
            let mut distances = vec![0.0; 8000];
            all.iter().for_each(|hit| distances[hit.key as usize] = hit.distance);
            (query, distances)
        });
        each.collect()
    })
}

fn kth(distances: &[f32], k: usize) -> f32 {
    let mut sorted = distances.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    sorted[k - 1]
}

/// The mean recall@10, hits counted by the true distances of their keys; and how often the caller was asked for one, if
/// `exact`.
fn recall(index: &IvfPq, options: Search<'_>, is_exact: bool) -> (f64, f64) {
    let truth = truth(index.metric());
    let calls = AtomicUsize::new(0);
    let mut found = 0;
    for (query, distances) in truth {
        let exact = |key: u64| {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok(Some(distances[key as usize]))
        };
        let options = if is_exact { options.exact(&exact) } else { options };
        let hits = index.search(query, &options).unwrap();
        assert!(hits.is_sorted_by(|a, b| a.distance <= b.distance));
        assert!(!is_exact || hits.iter().all(|hit| distances[hit.key as usize] == hit.distance));
        let bound = kth(distances, 10);
        found += hits.iter().filter(|hit| distances[hit.key as usize] <= bound).count();
    }
    let queries = truth.len() as f64;
    (found as f64 / (10.0 * queries), calls.into_inner() as f64 / queries)
}

fn builder(metric: Metric, code_bits: u8) -> IvfPqBuilder {
    IvfPq::builder(100).metric(metric).vectors(None).code_bits(code_bits)
}

fn filled(builder: IvfPqBuilder) -> IvfPq {
    let mut index = builder.build().unwrap();
    add_all(&mut index, set().base.view());
    index.verify().unwrap();
    index
}

fn reopened(index: &IvfPq) -> IvfPq {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    index.save(&path).unwrap();
    IvfPq::open_in(MemStore::load(&path).unwrap()).unwrap()
}

/// All hits of a cursor.
fn walk(index: &IvfPq, mut cursor: Cursor) -> Vec<Hit> {
    let mut all = Vec::new();
    loop {
        let hits = index.resume(&mut cursor, 300, Filter::None).unwrap();
        all.extend(&hits);
        if hits.len() < 300 {
            return all;
        }
    }
}

fn refused<R>(result: ann_core::Result<R>) -> (&'static str, String) {
    match result.map(|_| ()) {
        Err(Error::Parameter { name, allowed, .. }) => (name, allowed),
        other => panic!("{other:?}"),
    }
}

/// Codes find more the more bits they have, and the caller's distances nearly all that codes of lists have collected.
#[test]
fn recall_by_codes_and_by_the_callers_distances() {
    for (metric, bars) in METRICS.into_iter().zip([[0.88, 0.975], [0.88, 0.975], [0.88, 0.975]]) {
        let all = Search::new(10).probes(1000).rerank(200);
        let indexes = [4, 8].map(|bits| filled(builder(metric, bits)));
        for (index, bar) in indexes.iter().zip(bars) {
            let (by_codes, _) = recall(index, all, false);
            let (exact, calls) = recall(index, all, true);
            let what =
                format!("{metric}, {} bits: {by_codes}, {exact}, {calls}", index.code_bits());
            assert!(by_codes >= bar && exact >= 0.985, "{what}");
            // The bound of estimates leaves out most of the 200.
            assert!(calls <= 60.0 && (index.code_bits() == 4 || calls <= 15.0), "{what}");
        }
        // Without codes of rows, of the same lists.
        let none = filled(builder(metric, 0));
        let (by_codes, _) = recall(&none, all, false);
        let (exact, calls) = recall(&none, all, true);
        let what = format!("{metric}, none: {by_codes}, {exact}, {calls}");
        assert!(by_codes >= 0.6 && exact >= 0.985 && calls <= 200.0, "{what}");
        assert_eq!(none.lists().unwrap(), indexes[0].lists().unwrap());
    }
}

/// An index without vectors changes like others: it trains itself, splits lists, joins blocks, is trained anew, and finds
/// as much as one that does the same with vectors.
#[test]
fn changes_with_codes_in_the_place_of_vectors() {
    let base = &set().base;
    let options = Search::new(10).probes(15).rerank(100);
    for metric in [Metric::Cosine, Metric::L2sq] {
        let lived = |builder: IvfPqBuilder| {
            let mut index = builder.lists(30).build().unwrap();
            let is_exact = index.vectors().is_none();
            // Before there are lists, searches look at all vectors.
            index.add(base.slice(s![..100, ..]), None, AddOptions::new()).unwrap();
            let query = base.row(17).to_vec();
            assert_eq!(index.search(&query, &Search::new(3)).unwrap()[0].key, 17);
            for part in base.slice(s![100.., ..]).axis_chunks_iter(Axis(0), 1500) {
                index.add(part, None, AddOptions::new()).unwrap();
            }
            index.verify().unwrap();
            let mut recalls = vec![recall(&index, options, is_exact).0];
            // New vectors in one place, which go again.
            let near = &base.slice(s![..700, ..]) * 0.1 + base.row(17);
            let keys = index.add(near.view(), None, AddOptions::new()).unwrap();
            index.rebalance(2).unwrap();
            index.verify().unwrap();
            assert!(index.lists().unwrap() > 30);
            assert_eq!(index.remove(&keys).unwrap(), 700);
            index.compact().unwrap();
            index.verify().unwrap();
            recalls.push(recall(&index, options, is_exact).0);
            index.train(base.slice(s![..3000, ..]), AddOptions::new()).unwrap();
            index.verify().unwrap();
            recalls.push(recall(&index, options, is_exact).0);
            (index, recalls)
        };
        let (mut index, with_codes) = lived(builder(metric, 8));
        let (_, with_vectors) = lived(IvfPq::builder(100).metric(metric));
        for (codes, vectors) in with_codes.iter().zip(&with_vectors) {
            let what = format!("{metric}: {with_codes:?}, {with_vectors:?}");
            assert!(*codes > vectors - 0.02 && *codes > 0.8, "{what}");
        }
        let keys: Vec<u64> = (0..500).collect();
        index.update(base.slice(s![500..1000, ..]), &keys, AddOptions::new()).unwrap();
        let mut index = reopened(&index);
        index.verify().unwrap();
        assert_eq!((index.len(), index.vectors(), index.code_bits()), (8000, None, 8));
        let hits = index.search(&base.row(700).to_vec(), &Search::new(2).probes(60)).unwrap();
        let mut nearest: Vec<u64> = hits.iter().map(|hit| hit.key).collect();
        nearest.sort_unstable();
        assert_eq!(nearest, [200, 700]);
        assert!(matches!(index.get::<f32>(3), Err(Error::NoVectors)));
        assert!(index.contains(3).unwrap() && !index.contains(9000).unwrap());
        let tuned = index.tune(set().queries.slice(s![..50, ..]), 10, 0.9, 2).unwrap();
        assert!(tuned.recall >= 0.9 && index.defaults() == (tuned.probes, tuned.rerank));
    }
}

/// Estimates by codes of eight bits are distances, for most purposes; ranges and cursors go by them.
#[test]
fn hits_carry_estimates() {
    let index = filled(builder(Metric::L2sq, 8));
    for (query, distances) in truth(Metric::L2sq).iter().step_by(10) {
        let right = |hit: &Hit| (hit.distance / distances[hit.key as usize] - 1.0).abs() < 0.03;
        let hits = index.search(query, &Search::new(10).probes(200)).unwrap();
        assert!(hits.iter().all(right), "{hits:?}");
        let radius = kth(distances, 60);
        let within = index.range_search(query, radius, &Search::new(1)).unwrap();
        assert!(within.iter().all(|hit| hit.distance <= radius && right(hit)));
        assert!((54..=66).contains(&within.len()), "{} within", within.len());
        let all = walk(&index, index.cursor(query, 50).unwrap());
        assert!(all.iter().all(right) && all[..10].is_sorted_by(|a, b| a.distance <= b.distance));
        let keys: HashSet<u64> = all.iter().map(|hit| hit.key).collect();
        assert_eq!((all.len(), keys.len()), (8000, 8000));
    }
}

/// What the caller says of keys counts, in searches of all kinds.
#[test]
fn the_callers_distances() {
    let metric = Metric::Cosine;
    let even = |key: u64| key.is_multiple_of(2);
    let rare = |key: u64| key.is_multiple_of(500);
    let some: Vec<u64> = (0..8000).filter(|key| key % 40 == 7).collect();
    for index in [
        filled(builder(metric, 4)),
        filled(builder(metric, 0)),
        filled(builder(metric, 0).spill(true)),
    ] {
        let (mut found, mut wanted) = (0, 0);
        for (query, distances) in truth(metric).iter().step_by(5) {
            // Multiples of ten are gone where the caller has its vectors.
            let exact = |key: u64| Ok((!key.is_multiple_of(10)).then(|| distances[key as usize]));
            let right = |hits: &[Hit], accept: &dyn Fn(u64) -> bool| {
                let good = |hit: &Hit| {
                    !hit.key.is_multiple_of(10)
                        && accept(hit.key)
                        && hit.distance == distances[hit.key as usize]
                };
                assert!(hits.iter().all(good), "{hits:?}");
                let keys: HashSet<u64> = hits.iter().map(|hit| hit.key).collect();
                assert_eq!(keys.len(), hits.len());
            };
            let options = Search::new(10).probes(200).rerank(300).exact(&exact);
            let hits = index.search(query, &options).unwrap();
            right(&hits, &|_| true);
            assert_eq!(hits.len(), 10);
            let filtered = options.filter(Filter::Predicate(&even));
            right(&index.search(query, &filtered).unwrap(), &even);
            let filtered = options.filter(Filter::Predicate(&rare));
            assert_eq!(index.search(query, &filtered).unwrap(), []);
            let filtered = options.filter(Filter::Keys(&some));
            let hits_of_some = index.search(query, &filtered).unwrap();
            right(&hits_of_some, &|key| key % 40 == 7);
            assert_eq!(hits_of_some.len(), 10);
            let one = Array2::from_shape_vec((1, 100), query.clone()).unwrap();
            assert_eq!(index.search_batch(one.view(), &options, 1).unwrap(), [hits]);
            let radius = kth(distances, 61);
            let hits = index.range_search(query, radius, &options).unwrap();
            right(&hits, &|_| true);
            assert!(hits.iter().all(|hit| hit.distance <= radius));
            found += hits.len();
            let within = |key: &usize| !key.is_multiple_of(10) && distances[*key] <= radius;
            wanted += (0..8000).filter(within).count();
        }
        let recall = found as f64 / wanted as f64;
        assert!(recall >= 0.98, "recall {recall} of ranges");
        let query = &truth(metric)[0].0;
        let failing = |_| Err(Error::NoVectors);
        let failed = index.search(query, &Search::new(1).exact(&failing));
        assert!(matches!(failed, Err(Error::NoVectors)));
        let nan = |_| Ok(Some(f32::NAN));
        assert_eq!(refused(index.search(query, &Search::new(1).exact(&nan))).0, "exact");
    }
    let mut kept = IvfPq::builder(8).build().unwrap();
    kept.add(clustered(50, 8, 1).view(), None, AddOptions::new()).unwrap();
    let zero = |_| Ok(Some(0.0));
    let options = Search::new(1).exact(&zero);
    assert_eq!(refused(kept.search(&[0.0f32; 8], &options)).0, "exact");
    assert_eq!(refused(kept.range_search(&[0.0f32; 8], 1.0, &options)).0, "exact");
}

/// An index that keeps nothing but lists: trained first, changed row by row, searched in all ways.
#[test]
fn lists_alone() {
    let base = &set().base;
    for (metric, spill) in
        [(Metric::Cosine, false), (Metric::L2sq, true), (Metric::InnerProduct, true)]
    {
        let mut index = builder(metric, 0).lists(50).spill(spill).build().unwrap();
        let (name, allowed) =
            refused(index.add(base.slice(s![..1023, ..]), None, AddOptions::new()));
        assert!(name == "rows" && allowed.starts_with("at least 1024"), "{name}: {allowed}");
        assert!(index.search(&base.row(0).to_vec(), &Search::new(3)).unwrap().is_empty());
        index.train(base.slice(s![..4000, ..]), AddOptions::new()).unwrap();
        index.add(base.slice(s![..10, ..]), None, AddOptions::new()).unwrap();
        index.add(base.slice(s![10..4000, ..]), None, AddOptions::new()).unwrap();
        index.add(base.slice(s![4000.., ..]), None, AddOptions::new()).unwrap();
        index.verify().unwrap();
        let options = Search::new(10).probes(50).rerank(200);
        let before = (recall(&index, options, false).0, recall(&index, options, true).0);
        // Entries stay as they are.
        index.rebalance(2).unwrap();
        let gone: Vec<u64> = (0..8000).filter(|key| key % 4 != 0).collect();
        let rows: Vec<usize> = gone.iter().map(|&key| key as usize).collect();
        assert_eq!(index.remove(&gone).unwrap(), 6000);
        index.verify().unwrap();
        index.compact().unwrap();
        index.verify().unwrap();
        index.add(base.select(Axis(0), &rows).view(), Some(&gone), AddOptions::new()).unwrap();
        let keys: Vec<u64> = (0..300).collect();
        index.update(base.slice(s![..300, ..]), &keys, AddOptions::new()).unwrap();
        let mut index = reopened(&index);
        index.verify().unwrap();
        let after = (recall(&index, options, false).0, recall(&index, options, true).0);
        let off = [before.0 - after.0, before.1 - after.1];
        assert!(off.iter().all(|off| off.abs() < 0.005), "{metric}: {before:?}, {after:?}");
        assert_eq!((index.len(), index.vectors(), index.code_bits()), (8000, None, 0));
        assert_eq!(index.stats().unwrap().bytes_by_part[0], 0);
        let query = &truth(metric)[0].0;
        let all = walk(&index, index.cursor(query, 50).unwrap());
        let keys: HashSet<u64> = all.iter().map(|hit| hit.key).collect();
        assert_eq!((all.len(), keys.len()), (8000, 8000));
        // Ranges go by what cursors say; of two entries a cursor may come to the farther first.
        let estimates: HashMap<u64, f32> = all.iter().map(|hit| (hit.key, hit.distance)).collect();
        let radius = all[40].distance;
        let within = index.range_search(query, radius, &Search::new(1)).unwrap();
        let wanted = estimates.values().filter(|&&estimate| estimate <= radius).count();
        assert!(if spill { within.len() >= wanted } else { within.len() == wanted }, "{metric}");
        assert!(matches!(index.get::<f32>(3), Err(Error::NoVectors)));
        let tuned = index.tune(set().queries.view(), 10, 0.9, 2);
        assert!(matches!(tuned, Err(Error::NoVectors)));
        let trained = index.train(base.slice(s![..2000, ..]), AddOptions::new());
        assert!(matches!(trained, Err(Error::NoVectors)));
        // It stays trained, and takes as few rows as one.
        let all: Vec<u64> = (0..8000).collect();
        assert_eq!(index.remove(&all).unwrap(), 8000);
        index.add(base.slice(s![..1, ..]), None, AddOptions::new()).unwrap();
        index.verify().unwrap();
        index.remove(&[8000]).unwrap();
        index.train(base.slice(s![..2000, ..]), AddOptions::new()).unwrap();
        index.add(base.slice(s![..100, ..]), None, AddOptions::new()).unwrap();
        index.verify().unwrap();
        assert_eq!(index.len(), 100);
    }
}

/// Stopped anywhere, an index that keeps nothing but lists is sound and finds what it says it has.
#[test]
fn lists_alone_can_be_stopped() {
    let rows = clustered(3000, 8, 1);
    let build = || IvfPq::builder(8).vectors(None).code_bits(0).build().unwrap();
    let mut shares = Vec::new();
    let mut note = |done: usize, _: usize| {
        shares.push(done);
        true
    };
    build().add(rows.view(), None, AddOptions::new().progress(&mut note)).unwrap();
    assert!(shares.is_sorted() && shares.len() > 4, "{shares:?}");
    for stop in 0..shares.len() {
        let mut index = build();
        let mut calls = 0;
        let mut end = |_: usize, _: usize| {
            calls += 1;
            calls <= stop
        };
        match index.add(rows.view(), None, AddOptions::new().progress(&mut end)) {
            Err(Error::Cancelled { added }) => assert_eq!(added, index.len()),
            done => assert!(done.is_ok()),
        }
        index.verify().unwrap();
        let hits = index.search(&rows.row(0).to_vec(), &Search::new(9000).rerank(9000).probes(900));
        assert_eq!(hits.unwrap().len(), index.len());
    }
}

/// The same rows give the same bytes, whatever the threads, and batches find what single queries find.
#[test]
fn threads_make_no_difference() {
    for bits in [4, 0] {
        let made = |threads: usize| {
            let mut index = builder(Metric::L2sq, bits).build().unwrap();
            index.add(set().base.view(), None, AddOptions::new().threads(threads)).unwrap();
            let folder = tempfile::tempdir().unwrap();
            index.save(&folder.path().join("index")).unwrap();
            (std::fs::read(folder.path().join("index")).unwrap(), index)
        };
        let ((one, index), (three, _)) = (made(1), made(3));
        assert!(one == three, "{bits} bits");
        let options = Search::new(10);
        let queries = set().queries.slice(s![..60, ..]);
        let batch = index.search_batch(queries, &options, 2).unwrap();
        for (query, hits) in queries.rows().into_iter().zip(batch) {
            assert_eq!(index.search(&query.to_vec(), &options).unwrap(), hits);
        }
    }
}

#[test]
fn what_is_reported_and_refused() {
    let stats = |builder: IvfPqBuilder| builder.build().unwrap().stats().unwrap();
    let got = stats(IvfPq::builder(100).vectors(None));
    assert_eq!((got.layout, got.vectors, got.row_code_bits), (Layout::Lists, None, 4));
    assert_eq!(stats(IvfPq::builder(64).vectors(None)).row_code_bits, 8);
    assert_eq!(stats(builder(Metric::Cosine, 0)).row_code_bits, 0);
    assert_eq!(stats(IvfPq::builder(100)).row_code_bits, 0);
    assert_eq!(stats(IvfPq::builder(100).vectors(DType::F16)).vectors, Some(DType::F16));
    assert_eq!(refused(builder(Metric::Cosine, 3).build()).0, "code_bits");
    assert_eq!(refused(IvfPq::builder(8).code_bits(4).build()).0, "code_bits");
    let long = IvfPq::builder(9000).vectors(None).code_bits(8);
    assert_eq!(refused(long.build_in(MemStore::new(8192).unwrap())).0, "page size");
    let mut long = IvfPq::builder(9000).vectors(None).code_bits(8).build().unwrap();
    long.add(clustered(40, 9000, 1).view(), None, AddOptions::new()).unwrap();
    long.verify().unwrap();
}

/// Lists and codes of vectors that are not kept take a quarter more than codes of their bits and eight bytes an entry, at
/// most. Of cosine all counts that is not the 24 bytes of a row's key and state: blocks, partly filled ones included, the
/// records of lists, centroids, and the codebook; of squared L2, which has four bytes more of an entry, blocks alone.
#[test]
fn what_lists_without_vectors_take() {
    let rows = clustered(50_000, 100, 1);
    for metric in [Metric::Cosine, Metric::L2sq] {
        let index = IvfPq::builder(100).metric(metric).vectors(None).code_bits(0);
        let mut index = index.sample(4096).build().unwrap();
        add_all(&mut index, rows.view());
        let stats = index.stats().unwrap();
        let [vectors, nodes, lists, nothing, blocks] = stats.bytes_by_part;
        assert_eq!((vectors, nothing), (0, 0));
        let codes = index.subvectors() * usize::from(index.bits()) / 8 + 8;
        let budget = (50_000 * codes) as f64 * 1.25;
        let taken = if metric == Metric::Cosine { lists + blocks } else { blocks };
        assert!(taken as f64 <= budget, "{metric}: {taken} of {budget}, {stats:?}");
        assert!(nodes <= 50_000 * 25);
    }
}

/// Random lives against a plain map, whose owner tells the distances.
#[test]
fn random_lives() {
    for (seed, code_bits) in (0..24).zip([8, 0, 4].into_iter().cycle()) {
        let rng = &mut Rng(seed + 1);
        let metric = METRICS[rng.below(3)];
        let stock = clustered(400, 6, 3);
        let mut index = IvfPq::builder(6).metric(metric).vectors(None).code_bits(code_bits);
        index = index.lists(9).train_at(150).spill(seed % 4 < 2);
        let mut index = index.build().unwrap();
        if code_bits == 0 {
            index.train(stock.view(), AddOptions::new().threads(1)).unwrap();
        }
        let (mut oracle, mut tally) = (Oracle::<f32>::new(metric), Tally::default());
        for _ in 0..30 {
            let picks: Vec<usize> = (0..rng.below(90)).map(|_| rng.below(400)).collect();
            let rows = stock.select(Axis(0), &picks);
            let known: Vec<u64> = oracle.rows.keys().copied().collect();
            let some = shuffled(known.len(), rng.next());
            let some: Vec<u64> =
                some.iter().take(picks.len()).map(|&at| known[at as usize]).collect();
            match rng.below(6) {
                0 | 1 => {
                    let keys = index.add(rows.view(), None, AddOptions::new().threads(2)).unwrap();
                    oracle
                        .rows
                        .extend(keys.into_iter().zip(rows.rows().into_iter().map(|r| r.to_vec())));
                }
                2 => {
                    let rows = rows.slice(s![..some.len(), ..]);
                    index.update(rows, &some, AddOptions::new().threads(1)).unwrap();
                    let rows = rows.rows().into_iter().map(|row| row.to_vec());
                    oracle.rows.extend(some.iter().copied().zip(rows));
                }
                3 => {
                    assert_eq!(index.remove(&some).unwrap(), some.len());
                    some.iter().for_each(|key| _ = oracle.rows.remove(key));
                    assert!(some.iter().all(|&key| !index.contains(key).unwrap()));
                }
                4 => {
                    index.rebalance(1).unwrap();
                    index.compact().unwrap();
                }
                _ => index = reopened(&index),
            }
            index.verify().unwrap();
            assert_eq!(index.len(), oracle.rows.len());
            let query = stock.row(rng.below(400)).to_vec();
            let far = |key: u64| {
                Ok(oracle.rows.get(&key).map(|row| oracle.distance(&query, row).0 as f32))
            };
            let (k, part) = (1 + rng.below(30), 1 + rng.below(9) as u64);
            let accept = |key: u64| key.is_multiple_of(part);
            let options = Search::new(k).probes(1000).rerank(9000).exact(&far);
            let options = options.filter(Filter::Predicate(&accept));
            let hits = index.search(&query, &options).unwrap();
            // Codes leave out what their bound says, which nearly all keep.
            let exact = code_bits == 0;
            oracle.check_nearest((&query, k), &hits, accept, exact, &mut tally);
            let edge = stock.row(rng.below(400)).to_vec();
            let radius = oracle.distance(&query, &edge).0 as f32;
            let hits = index.range_search(&query, radius, &options).unwrap();
            oracle.check_within((&query, radius), &hits, accept, false, &mut tally);
            let mut met: Vec<u64> =
                walk(&index, index.cursor(&query, 20).unwrap()).iter().map(|hit| hit.key).collect();
            met.sort_unstable();
            assert!(met.iter().eq(oracle.rows.keys()), "a cursor comes to each vector once");
        }
        assert!(tally.recall() >= 0.95, "recall {}", tally.recall());
    }
}
