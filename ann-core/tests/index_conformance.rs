//! The conformance suite of the indexes: what the `Index` trait promises, over every kind of index, store, element
//! type and metric.

mod common;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use ann_core::testing::Rng;
use ann_core::{AddOptions, DType, Element, Error, Filter, Hit, Index, Metric, MmapStore, Search};
use common::home::{
    ACodedHnsw, ACompact, ADiskAnn, AFlat, ARoundedDiskAnn, AnHnsw, AnIvfPq, AnyStore, ByteIvfPq,
    Home, Kind, RoundedIvfPq, TurnedIvfPq,
};
use common::oracle::{Oracle, Tally};
use half::f16;
use ndarray::{Array2, ArrayView2, s};

/// Vectors that the main phases work with.
const ROWS: usize = 400;
const QUERIES: usize = 8;
/// Enough that searches of so small an index find nearly everything.
const EF: usize = 120;

/// One combination at work: an index, and what it ought to hold.
struct Case<K: Kind, T> {
    index: K::Index,
    home: Home,
    oracle: Oracle<T>,
    gone: Vec<u64>,
    folder: tempfile::TempDir,
    queries: Array2<T>,
    tally: Tally,
}

impl<K: Kind, T: Element> Case<K, T> {
    fn new(home: Home, dim: usize, metric: Metric) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = home.create(&folder.path().join("index"), 4096).unwrap();
        let index = K::build(dim, T::DTYPE, metric, store).unwrap();
        let queries = common::cast(&common::clustered(QUERIES, dim, 99));
        Case {
            index,
            home,
            oracle: Oracle::new(metric).rounding(K::rounds(T::DTYPE, metric)),
            gone: Vec::new(),
            folder,
            queries,
            tally: Tally::default(),
        }
    }

    fn query(&self, at: usize) -> Vec<T> {
        self.queries.row(at % QUERIES).to_vec()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn add(&mut self, rows: ArrayView2<'_, T>, keys: Option<&[u64]>) -> Vec<u64> {
        let given = self.index.add(rows, keys, AddOptions::new().threads(2)).unwrap();
        for (&key, row) in given.iter().zip(rows.rows()) {
            assert_eq!(self.oracle.rows.insert(key, row.to_vec()), None, "key {key} was taken");
        }
        given
    }

    fn remove(&mut self, keys: &[u64]) {
        let known: HashSet<u64> =
            keys.iter().copied().filter(|key| self.oracle.rows.remove(key).is_some()).collect();
        assert_eq!(self.index.remove(keys).unwrap(), known.len());
        self.gone.extend(known);
    }

    fn update(&mut self, rows: ArrayView2<'_, T>, keys: &[u64]) {
        self.index.update(rows, keys, AddOptions::new().threads(2)).unwrap();
        for (&key, row) in keys.iter().zip(rows.rows()) {
            assert!(self.oracle.rows.insert(key, row.to_vec()).is_some());
        }
    }

    /// Everything that can be asked of an index, against the oracle.
    fn check(&mut self) {
        self.oracle.check_contents(&self.index, &self.gone);
        for at in 0..QUERIES {
            let query = self.query(at);
            for k in [1, 10, self.oracle.rows.len() + 3] {
                self.check_search(&query, k, Filter::None, |_| true);
            }
            self.check_range(&query, at);
        }
        self.check_batch();
        self.check_epsilon();
        self.check_cursor();
        self.check_filters();
        self.check_stats();
        assert!(self.tally.recall() > 0.97, "recall {}", self.tally.recall());
    }

    fn check_search(
        &mut self,
        query: &[T],
        k: usize,
        filter: Filter<'_>,
        accept: impl Fn(u64) -> bool,
    ) {
        let options = Search::new(k).ef(EF).filter(filter);
        let (hits, cost) = self.index.search_counted(query, &options).unwrap();
        let again = self.index.search(query, &options).unwrap();
        assert_eq!(hits, again, "the same search finds something else");
        // A predicate's vectors are measured once each at the most, keys' too.
        assert!(cost.distances as usize <= 2 * (self.oracle.rows.len() + self.gone.len()));
        self.oracle.check_nearest((query, k), &hits, accept, K::EXACT, &mut self.tally);
    }

    fn check_range(&mut self, query: &[T], at: usize) {
        let truth = self.oracle.nearest(query, |_| true);
        let middle = truth.get(truth.len() * at / (2 * QUERIES)).map_or(1.0, |near| near.0 as f32);
        let odd = |key: u64| key % 2 == 1;
        for radius in [f32::NEG_INFINITY, middle, f32::INFINITY] {
            let options = Search::new(1).ef(EF);
            let hits = self.index.range_search(query, radius, &options).unwrap();
            self.oracle.check_within((query, radius), &hits, |_| true, K::EXACT, &mut self.tally);
            let options = options.filter(Filter::Predicate(&odd));
            let hits = self.index.range_search(query, radius, &options).unwrap();
            self.oracle.check_within((query, radius), &hits, odd, K::EXACT, &mut self.tally);
        }
    }

    fn check_batch(&self) {
        let options = Search::new(7).ef(EF);
        let single: Vec<Vec<Hit>> =
            (0..QUERIES).map(|at| self.index.search(&self.query(at), &options).unwrap()).collect();
        for threads in [1, 3] {
            let batch = self.index.search_batch(self.queries.view(), &options, threads).unwrap();
            assert_eq!(batch, single, "{threads} threads");
        }
        let none = self.index.search_batch(self.queries.slice(s![..0, ..]), &options, 1).unwrap();
        assert!(none.is_empty());
        // Rows that do not lie in one piece.
        let columns = self.queries.t().as_standard_layout().into_owned();
        assert_eq!(self.index.search_batch(columns.t(), &options, 1).unwrap(), single);
    }

    /// One that lets everything pass makes no difference; with none to spare there are as many hits all the same.
    fn check_epsilon(&self) {
        let query = self.query(2);
        for filter in [Filter::None, Filter::Predicate(&third)] {
            let options = Search::new(7).ef(EF).filter(filter);
            let hits = self.index.search(&query, &options).unwrap();
            let all = self.index.search(&query, &options.epsilon(1e30)).unwrap();
            assert_eq!(all, hits);
            let options = options.epsilon(0.0);
            let (few, cost) = self.index.search_counted(&query, &options).unwrap();
            let (_, usual) = self.index.search_counted(&query, &options.epsilon(1e30)).unwrap();
            assert!(few.len() == hits.len() && cost.hops <= usual.hops);
            self.oracle.check_true(&query, &few);
            let batch = self.index.search_batch(self.queries.view(), &options, 1).unwrap();
            assert_eq!(batch[2], few);
        }
    }

    /// A cursor comes to every vector once, however it is read.
    fn check_cursor(&mut self) {
        let query = self.query(1);
        for (filter, accept) in
            [(Filter::None, (|_| true) as fn(u64) -> bool), (Filter::Predicate(&third), third)]
        {
            let mut cursor = self.index.cursor(&query, 10).unwrap();
            let wanted = self.oracle.rows.keys().filter(|&&key| accept(key)).count();
            let mut met = HashSet::new();
            for n in [0, 1, 5, 50].into_iter().chain(std::iter::repeat(200)) {
                let hits = self.index.resume(&mut cursor, n, filter).unwrap();
                assert!(hits.len() <= n);
                for hit in &hits {
                    self.oracle.check_true(&query, &[*hit]);
                    assert!(accept(hit.key) && met.insert(hit.key), "key {} again", hit.key);
                }
                if hits.len() < n {
                    assert!(self.index.resume(&mut cursor, 1, filter).unwrap().is_empty());
                    break;
                }
            }
            assert_eq!(met.len(), wanted, "the cursor did not come to all");
        }
    }

    fn check_filters(&mut self) {
        let keys: Vec<u64> = self.oracle.rows.keys().copied().collect();
        let rng = &mut Rng(5);
        for percent in [0, 1, 10, 50, 100] {
            let mut chosen: Vec<u64> =
                keys.iter().copied().filter(|_| rng.below(100) < percent).collect();
            let set: HashSet<u64> = chosen.iter().copied().collect();
            let accept = |key: u64| set.contains(&key);
            // Unknown, removed and repeated keys make no difference.
            chosen.extend([u64::MAX, 1 << 40]);
            let held = |key: &&u64| self.oracle.rows.contains_key(key);
            chosen.extend(self.gone.iter().filter(|key| !held(key)).take(3));
            chosen.extend(set.iter().take(5));
            for at in 0..4 {
                let query = self.query(at);
                self.check_search(&query, 10, Filter::Keys(&chosen), accept);
                self.check_search(&query, 10, Filter::Predicate(&accept), accept);
            }
            let options = Search::new(10).ef(EF).filter(Filter::Keys(&chosen));
            let batch = self.index.search_batch(self.queries.view(), &options, 2).unwrap();
            assert_eq!(batch[3], self.index.search(&self.query(3), &options).unwrap());
        }
    }

    fn check_stats(&self) {
        let stats = self.index.stats().unwrap();
        assert_eq!((stats.kind, stats.len), (self.index.kind(), self.index.len()));
        assert_eq!(stats.page_size, 4096);
        assert!(stats.slots >= stats.len + stats.tombstones);
        assert!(stats.bytes >= stats.bytes_by_part.iter().sum::<u64>() + 4096);
        let rounds = K::rounds(T::DTYPE, self.index.metric());
        let stored = if rounds { DType::I8 } else { T::DTYPE };
        assert_eq!(stats.vectors, Some(stored));
        let vectors = stats.slots * self.index.dim() * stored.size();
        assert!(stats.bytes_by_part[0] >= vectors as u64);
        assert!(stats.len == 0 || stats.key_map_bytes > 0, "`get` has needed the key map");
        assert!(stats.twins <= stats.len && !stats.instruction_set.is_empty());
        let in_graph = stats.len - stats.twins;
        assert_eq!(stats.links[0] > 0, K::DEGREE > 0 && in_graph > 1);
        assert!(stats.links[0] <= K::DEGREE * stats.slots);
    }

    /// Saves the index and goes on with the saved one.
    fn reopen(&mut self, name: &str) {
        self.index.save(&self.path(name)).unwrap();
        self.index = K::open(self.home.open(&self.path(name)).unwrap()).unwrap();
    }

    /// The answers to all queries.
    fn answers(&self) -> Vec<Vec<Hit>> {
        self.index.search_batch(self.queries.view(), &Search::new(20).ef(EF), 1).unwrap()
    }
}

fn third(key: u64) -> bool {
    key.is_multiple_of(3)
}

/// The life of an index, with a look at everything after each phase.
fn suite<K: Kind, T: Element>(home: Home, metric: Metric) {
    let dim = 12;
    let mut case = Case::<K, T>::new(home, dim, metric);
    assert_eq!((case.index.dim(), case.index.metric()), (dim, metric));
    assert_eq!(case.index.dtype(), T::DTYPE);
    case.check();
    let rows: Array2<T> = common::cast(&common::clustered(ROWS, dim, 1));
    let none = rows.slice(s![..0, ..]);
    assert!(case.add(none, Some(&[])).is_empty());
    assert!(case.add(none, None).is_empty());
    assert_eq!(case.index.remove(&[3]).unwrap(), 0);

    // Keys: automatic ones continue after the largest ever given.
    assert_eq!(case.add(rows.slice(s![..1, ..]), None), [0]);
    case.check();
    let given: Vec<u64> = (0..150).map(|i| 1000 - 3 * i).collect();
    assert_eq!(case.add(rows.slice(s![1..151, ..]), Some(&given)), given);
    let automatic = case.add(rows.slice(s![151..250, ..]), None);
    assert_eq!(automatic, (1001..1100).collect::<Vec<u64>>());
    case.check();

    case.remove(&[1000, 997, 5, 1000]);
    case.remove(&automatic[..40]);
    case.check();
    // Removed keys can be given again, and vectors equal to others added.
    case.add(rows.slice(s![..60, ..]), Some(&(4000..4060).collect::<Vec<u64>>()));
    case.add(rows.slice(s![1..2, ..]), Some(&[1000]));
    case.check();

    let keys: Vec<u64> = case.oracle.rows.keys().copied().step_by(5).collect();
    case.update(rows.slice(s![250..250 + keys.len(), ..]), &keys);
    case.update(rows.slice(s![250..250 + keys.len(), ..]), &keys);
    case.check();

    case.reopen("first");
    case.check();
    let before = case.answers();
    K::sweep(&mut case.index, 2).unwrap();
    case.check();
    let mut cursor = case.index.cursor(&case.query(0), 5).unwrap();
    case.add(rows.slice(s![330.., ..]), None);
    let resumed = case.index.resume(&mut cursor, 1, Filter::None);
    assert!(matches!(resumed, Err(Error::Changed)));
    assert_ne!(case.answers(), before);
    case.check();

    let all: Vec<u64> = case.oracle.rows.keys().copied().collect();
    case.remove(&all);
    case.check();
    case.add(rows.slice(s![..90, ..]), Some(&all[..90]));
    case.index.flush().unwrap();
    case.reopen("second");
    case.check();
    read_only::<K, T>(&case.path("second"), case.index.len());
}

/// A file that was opened for reading answers, and refuses changes.
fn read_only<K: Kind, T: Element>(path: &Path, len: usize) {
    // The writer's lock goes with the writer; a copy needs no waiting.
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).unwrap();
    let mut index = K::open(AnyStore::File(MmapStore::open(&copy).unwrap())).unwrap();
    let row: Array2<T> = common::cast(&common::clustered(1, index.dim(), 3));
    let query = row.row(0).to_vec();
    let before = index.search(&query, &Search::new(5)).unwrap();
    let known = before[0].key;
    let options = AddOptions::new;
    assert!(matches!(index.add(row.view(), None, options()), Err(Error::ReadOnly)));
    assert!(matches!(index.update(row.view(), &[known], options()), Err(Error::ReadOnly)));
    assert!(matches!(index.remove(&[known]), Err(Error::ReadOnly)));
    assert_eq!(index.remove(&[u64::MAX]).unwrap(), 0);
    index.verify().unwrap();
    assert_eq!(index.len(), len);
    assert_eq!(index.search(&query, &Search::new(5)).unwrap(), before);
}

/// Rows longer than a page, and, under the metrics that keep a number behind the vector, one that has this number
/// on a page of its own.
fn spanning<K: Kind, T: Element>(home: Home, dim: usize, metric: Metric) {
    let mut case = Case::<K, T>::new(home, dim, metric);
    let rows: Array2<T> = common::cast(&common::clustered(60, dim, 1));
    case.add(rows.slice(s![..50, ..]), None);
    case.check();
    case.remove(&(0..25).collect::<Vec<u64>>());
    K::sweep(&mut case.index, 1).unwrap();
    case.add(rows.slice(s![50.., ..]), None);
    case.reopen("spanning");
    case.check();
}

/// Bad input is refused with the fitting error, and leaves the index as it was.
#[path = "index_conformance/door.rs"]
mod door;

macro_rules! metrics {
    ($kind:ty, $home:expr, $($module:ident $dtype:ty),*) => {$(
        mod $module {
            use super::*;

            #[test]
            fn l2sq() {
                suite::<$kind, $dtype>($home, Metric::L2sq);
            }

            #[test]
            fn ip() {
                suite::<$kind, $dtype>($home, Metric::InnerProduct);
            }

            #[test]
            fn cosine() {
                suite::<$kind, $dtype>($home, Metric::Cosine);
            }
        }
    )*};
}

macro_rules! homes {
    ($($module:ident: $kind:ty, $home:expr;)*) => {$(
        mod $module {
            use super::*;

            metrics!($kind, $home, of_f32 f32, of_f16 f16, of_i8 i8, of_u8 u8);

            #[test]
            fn spanning_rows() {
                spanning::<$kind, f32>($home, 2100, Metric::L2sq);
                spanning::<$kind, f16>($home, 4040, Metric::InnerProduct);
                spanning::<$kind, u8>($home, 9000, Metric::Cosine);
            }

            #[test]
            fn spanning_rows_whose_number_has_its_own_page() {
                spanning::<$kind, f32>($home, 2 * 1008, Metric::Cosine);
                spanning::<$kind, f16>($home, 4031, Metric::InnerProduct);
                spanning::<$kind, u8>($home, 8063, Metric::Cosine);
                spanning::<$kind, i8>($home, 8061, Metric::InnerProduct);
            }

            #[test]
            fn bad_input() {
                door::suite::<$kind>($home);
            }
        }
    )*};
}

homes! {
    flat_in_memory: AFlat, Home::Memory;
    flat_in_a_file: AFlat, Home::File;
    flat_under_latches: AFlat, Home::Latches;
    hnsw_in_memory: AnHnsw, Home::Memory;
    hnsw_in_a_file: AnHnsw, Home::File;
    hnsw_under_latches: AnHnsw, Home::Latches;
    diskann_in_memory: ADiskAnn, Home::Memory;
    diskann_in_a_file: ADiskAnn, Home::File;
    diskann_under_latches: ADiskAnn, Home::Latches;
    compact_in_memory: ACompact, Home::Memory;
    compact_in_a_file: ACompact, Home::File;
    compact_under_latches: ACompact, Home::Latches;
    coded_hnsw_in_memory: ACodedHnsw, Home::Memory;
    coded_hnsw_under_latches: ACodedHnsw, Home::Latches;
    ivfpq_in_memory: AnIvfPq, Home::Memory;
    ivfpq_in_a_file: AnIvfPq, Home::File;
    ivfpq_under_latches: AnIvfPq, Home::Latches;
    ivfpq_of_bytes: ByteIvfPq, Home::Memory;
    ivfpq_of_rabitq: TurnedIvfPq, Home::Latches;
}

/// Where all that is kept of vectors is their direction.
macro_rules! rounded {
    ($($module:ident: $kind:ty, $home:expr;)*) => {$(
        mod $module {
            use super::*;

            #[test]
            fn of_f32() {
                suite::<$kind, f32>($home, Metric::Cosine);
            }

            #[test]
            fn of_f16() {
                suite::<$kind, f16>($home, Metric::Cosine);
            }

            #[test]
            fn spanning_rows() {
                spanning::<$kind, f32>($home, 9000, Metric::Cosine);
                spanning::<$kind, f32>($home, 8063, Metric::Cosine);
            }

            #[test]
            fn bad_input() {
                door::suite::<$kind>($home);
            }
        }
    )*};
}

rounded! {
    rounded_diskann_in_memory: ARoundedDiskAnn, Home::Memory;
    rounded_diskann_under_latches: ARoundedDiskAnn, Home::Latches;
    rounded_ivfpq_under_latches: RoundedIvfPq, Home::Latches;
}
