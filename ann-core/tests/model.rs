//! The model test: random lives of an index against a plain map. Vectors come from a small stock, so that many are
//! identical, equal in direction, or differ only in the sign of a zero.

mod common;

use ann_core::{AddOptions, DType, Element, Filter, Index, Metric, Search};
use common::home::{
    ACodedHnsw, ACompact, ADiskAnn, AFlat, ARoundedDiskAnn, AnHnsw, AnIvfPq, ByteIvfPq, Home, Kind,
    RoundedIvfPq, TurnedIvfPq,
};
use common::oracle::{Oracle, Tally};
use ndarray::{Array2, Axis};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const DIM: usize = 6;
const STOCK: usize = 120;
const KEYS: u64 = 600;
const EF: usize = 200;

/// One step in the life of an index. Vectors are named by their place in the stock.
#[derive(Clone, Debug)]
enum Step {
    /// Under automatic keys.
    Add(Vec<usize>),
    /// Under those of these keys that are free.
    AddAs(Vec<(u64, usize)>),
    /// Of those of these keys that are there.
    Update(Vec<(u64, usize)>),
    Remove(Vec<u64>),
    /// All keys from one to another.
    RemoveRange(u64, u64),
    Search(usize, usize),
    Filtered(usize, usize, u64),
    Range(usize, usize),
    Walk(usize, usize),
    Sweep(usize),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let stock = || 0..STOCK;
    let pairs = |n| vec((0..KEYS, stock()), 0..n);
    prop_oneof![
        3 => vec(stock(), 0..60).prop_map(Step::Add),
        3 => pairs(60).prop_map(Step::AddAs),
        3 => pairs(200).prop_map(Step::Update),
        3 => vec(0..KEYS, 0..60).prop_map(Step::Remove),
        1 => (0..KEYS, 0..KEYS).prop_map(|(a, b)| Step::RemoveRange(a.min(b), a.max(b))),
        2 => (stock(), 1..40usize).prop_map(|(query, k)| Step::Search(query, k)),
        2 => (stock(), 1..40usize, 1..20u64).prop_map(|(q, k, part)| Step::Filtered(q, k, part)),
        1 => (stock(), stock()).prop_map(|(query, edge)| Step::Range(query, edge)),
        1 => (stock(), 1..30usize).prop_map(|(query, n)| Step::Walk(query, n)),
        1 => (1..4usize).prop_map(Step::Sweep),
        1 => Just(Step::Reopen),
    ]
}

/// Vectors of which some are opposite zeros, and some multiples of others.
fn stock<T: Element>() -> Array2<T> {
    let mut rows = common::clustered(STOCK, DIM, 3);
    for at in (0..STOCK).step_by(10) {
        let row = rows.row(at).to_owned();
        rows.row_mut(at + 1).assign(&(&row * 0.5));
        for (copy, zero) in [(at + 2, 0.0), (at + 3, -0.0)] {
            rows.row_mut(copy).assign(&row);
            rows[(copy, 0)] = zero;
        }
    }
    common::cast(&rows)
}

struct Life<K: Kind, T> {
    index: K::Index,
    oracle: Oracle<T>,
    gone: Vec<u64>,
    stock: Array2<T>,
    folder: tempfile::TempDir,
    home: Home,
    saves: usize,
    tally: Tally,
}

impl<K: Kind, T: Element> Life<K, T> {
    fn new(home: Home, metric: Metric) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = home.create(&folder.path().join("index"), 4096).unwrap();
        Life {
            index: K::build(DIM, T::DTYPE, metric, store).unwrap(),
            oracle: Oracle::new(metric).rounding(K::rounds(T::DTYPE, metric)),
            gone: Vec::new(),
            stock: stock(),
            folder,
            home,
            saves: 0,
            tally: Tally::default(),
        }
    }

    fn vector(&self, at: usize) -> Vec<T> {
        self.stock.row(at).to_vec()
    }

    fn rows(&self, picks: &[usize]) -> Array2<T> {
        self.stock.select(Axis(0), picks)
    }

    /// Keeps of each key the first pair, if `wanted` says yes to the key.
    fn pairs(&self, pairs: &[(u64, usize)], known: bool) -> (Vec<u64>, Vec<usize>) {
        let mut seen = std::collections::HashSet::new();
        let fits = |key: u64| self.oracle.rows.contains_key(&key) == known;
        pairs.iter().filter(|&&(key, _)| fits(key) && seen.insert(key)).copied().unzip()
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Add(picks) => {
                let rows = self.rows(picks);
                let keys = self.index.add(rows.view(), None, AddOptions::new().threads(1)).unwrap();
                assert_eq!(keys.len(), picks.len());
                for (&key, &pick) in keys.iter().zip(picks) {
                    assert!(self.oracle.rows.insert(key, self.vector(pick)).is_none());
                }
            }
            Step::AddAs(pairs) => {
                let (keys, picks) = self.pairs(pairs, false);
                let rows = self.rows(&picks);
                let options = AddOptions::new().threads(2);
                assert_eq!(self.index.add(rows.view(), Some(&keys), options).unwrap(), keys);
                let rows = picks.iter().map(|&pick| self.vector(pick));
                let rows: Vec<(u64, Vec<T>)> = keys.into_iter().zip(rows).collect();
                self.oracle.rows.extend(rows);
            }
            Step::Update(pairs) => {
                let (keys, picks) = self.pairs(pairs, true);
                let rows = self.rows(&picks);
                self.index.update(rows.view(), &keys, AddOptions::new().threads(1)).unwrap();
                let rows = picks.iter().map(|&pick| self.vector(pick));
                let rows: Vec<(u64, Vec<T>)> = keys.into_iter().zip(rows).collect();
                self.oracle.rows.extend(rows);
            }
            Step::Remove(keys) => self.remove(keys),
            Step::RemoveRange(from, to) => self.remove(&(*from..*to).collect::<Vec<u64>>()),
            &Step::Search(query, k) => self.search(query, k, Filter::None, |_| true),
            &Step::Filtered(query, k, part) => {
                let accept = move |key: u64| key.is_multiple_of(part);
                let keys: Vec<u64> = (0..2 * KEYS).filter(|&key| accept(key)).collect();
                self.search(query, k, Filter::Predicate(&accept), accept);
                self.search(query, k, Filter::Keys(&keys), |key| accept(key) && key < 2 * KEYS);
            }
            &Step::Range(query, edge) => self.range(query, edge),
            &Step::Walk(query, n) => self.walk(query, n),
            &Step::Sweep(threads) => {
                K::sweep(&mut self.index, threads).unwrap();
                assert_eq!(self.index.stats().unwrap().tombstones, 0);
            }
            Step::Reopen => {
                self.saves += 1;
                let path = self.folder.path().join(format!("save {}", self.saves));
                self.index.save(&path).unwrap();
                self.index = K::open(self.home.open(&path).unwrap()).unwrap();
            }
        }
        self.oracle.check_contents(&self.index, &self.gone);
    }

    fn remove(&mut self, keys: &[u64]) {
        let known = keys.iter().filter(|key| self.oracle.rows.remove(key).is_some()).count();
        assert_eq!(self.index.remove(keys).unwrap(), known);
        self.gone.extend(keys);
        self.gone.sort_unstable();
        self.gone.dedup();
    }

    /// Whether a search has to find everything: the pool is as large as the graph, and all of that is connected.
    fn is_exact(&self) -> bool {
        K::EXACT || self.index.stats().unwrap().slots <= EF
    }

    fn search(&mut self, query: usize, k: usize, filter: Filter<'_>, accept: impl Fn(u64) -> bool) {
        let (query, exact) = (self.vector(query), self.is_exact());
        let options = Search::new(k).ef(EF).filter(filter);
        let hits = self.index.search(&query, &options).unwrap();
        self.oracle.check_nearest((&query, k), &hits, accept, exact, &mut self.tally);
    }

    fn range(&mut self, query: usize, edge: usize) {
        let (query, exact) = (self.vector(query), self.is_exact());
        let edge = self.vector(edge);
        let radius = self.oracle.distance(&query, &edge).0 as f32;
        let hits = self.index.range_search(&query, radius, &Search::new(1).ef(EF)).unwrap();
        let within = (&query[..], radius);
        self.oracle.check_within(within, &hits, |_| true, exact, &mut self.tally);
    }

    /// Reads a cursor to its end.
    fn walk(&mut self, query: usize, n: usize) {
        let query = self.vector(query);
        let mut cursor = self.index.cursor(&query, 20).unwrap();
        let mut met = Vec::new();
        loop {
            let hits = self.index.resume(&mut cursor, n, Filter::None).unwrap();
            for hit in &hits {
                self.oracle.check_true(&query, &[*hit]);
                met.push(hit.key);
            }
            if hits.len() < n {
                break;
            }
        }
        met.sort_unstable();
        assert!(met.iter().eq(self.oracle.rows.keys()), "a cursor comes to each vector once");
    }
}

fn live<K: Kind, T: Element>(steps: &[Step], home: Home, metric: Metric) {
    let mut life = Life::<K, T>::new(home, metric);
    for step in steps {
        life.take(step);
    }
    let recall = life.tally.recall();
    assert!(recall >= 0.9, "recall {recall}");
}

/// As many cases as fit a test run, or with `ANN_SOAK=1` a night.
fn run<K: Kind>(cases: u32) {
    let soak = std::env::var_os("ANN_SOAK").is_some();
    let config = Config {
        cases: if soak { 20 * cases } else { cases },
        failure_persistence: None,
        ..Config::default()
    };
    let homes = prop_oneof![Just(Home::Memory), Just(Home::File), Just(Home::Latches)];
    let metrics = prop_oneof![Just(Metric::L2sq), Just(Metric::InnerProduct), Just(Metric::Cosine)];
    // Of what rounds, nothing else is new.
    let rounds = K::rounds(DType::F32, Metric::Cosine);
    let metrics = metrics.prop_map(move |metric| if rounds { Metric::Cosine } else { metric });
    let floats = any::<bool>().prop_map(move |floats| floats || rounds);
    let lives = (vec(step(), 1..40), homes, metrics, floats);
    let result = TestRunner::new(config).run(&lives, |(steps, home, metric, floats)| {
        match floats {
            true => live::<K, f32>(&steps, home, metric),
            false => live::<K, u8>(&steps, home, metric),
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn flat() {
    run::<AFlat>(200);
}

#[test]
fn hnsw() {
    run::<AnHnsw>(600);
}

#[test]
fn diskann() {
    run::<ADiskAnn>(300);
}

#[test]
fn compact() {
    run::<ACompact>(150);
}

#[test]
fn coded_hnsw() {
    run::<ACodedHnsw>(150);
}

#[test]
fn ivfpq() {
    run::<AnIvfPq>(200);
}

#[test]
fn ivfpq_of_bytes() {
    run::<ByteIvfPq>(100);
}

#[test]
fn ivfpq_of_rabitq() {
    run::<TurnedIvfPq>(100);
}

#[test]
fn rounded_diskann() {
    run::<ARoundedDiskAnn>(100);
}

#[test]
fn rounded_ivfpq() {
    run::<RoundedIvfPq>(60);
}
