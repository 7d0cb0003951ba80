//! What all indexes share: hits, search options, filters, statistics, and the [`Index`] trait.

use std::path::Path;

use ndarray::ArrayView2;

use crate::element::{DType, Element};
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::rows::Kind;
use crate::rows::Mark;
pub use crate::rows::{Filter, Layout, Stats};

/// One search result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The key that the vector was added under.
    pub key: u64,
    /// The distance in the index's metric; smaller is nearer.
    pub distance: f32,
}

/// How to search. `Search::new(10)` is a k-NN search with the index's defaults.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Search<'a> {
    /// How many hits to return, at least 1. Fewer are returned if the index or the filter has fewer.
    pub k: usize,
    /// Size of the candidate pool in graph searches, their list_size: more is slower and finds more. At least `k` is
    /// used; but of fused lists no more candidates are expanded than this even where it is below `k`. The others are
    /// measured, and what they lead to is not looked at: the fastest searches, of easy data. Without it, what
    /// [`crate::Graph::tune`] has found, or the larger of 64 and `2 k`.
    pub ef: Option<usize>,
    /// Candidates of a [`crate::DiskAnn`] search that are fetched before the first of them is read: more hides more of
    /// the time that fetching takes, and spends more of it on candidates that better ones would have replaced. Without
    /// it, what suits the size of the index's records; other indexes do not use it.
    pub beam: Option<usize>,
    /// How much farther away than the `k`-th nearest so far candidates of a graph search may be: where that is at
    /// distance `d`, those are expanded that come below `d + epsilon |d|`, by their estimates if there are codes
    /// (Al-Jazzazi and others, arXiv 2505.15636). Hard queries then take longer than easy ones, and the same recall
    /// takes less time than with pools that are filled for each alike; `ef` is the most that a query may take, and
    /// should be large, 512 and more. From 0 on: 0.05 to 0.2 for recalls of 0.95 to 0.99, about. Without it, what
    /// [`crate::Graph::tune`] has found if there is no `ef` either, or all of the pool are expanded; ranges and cursors do
    /// not use it, nor do other indexes.
    pub epsilon: Option<f32>,
    /// Lists that a [`crate::IvfPq`] search reads at most: more is slower and finds more. It reads fewer where the
    /// others cannot be expected to have anything that would be measured. Without it, what [`crate::IvfPq::tune`] has
    /// found, or what suits the number of lists; other indexes do not use it.
    pub probes: Option<usize>,
    /// Candidates, the nearest by their codes, whose exact distances a [`crate::IvfPq`] search computes at most, fewer
    /// where the others are too far to be among the results by all likelihood; `ef` is another name for it, and at
    /// least `k` is used. Other indexes do not use it.
    pub rerank: Option<usize>,
    /// Which vectors may be returned.
    pub filter: Filter<'a>,
    /// The caller's own distances, for an index that keeps none of its vectors: results then are ranked by and carry
    /// these instead of estimates.
    pub exact: Option<Exact<'a>>,
}

/// The distance of a key's vector to the query; `None` if the key is not to be returned. An error ends the search.
pub type Exact<'a> = &'a (dyn Fn(u64) -> Result<Option<f32>> + Sync);

impl<'a> Search<'a> {
    /// A search for the `k` nearest.
    pub fn new(k: usize) -> Search<'a> {
        Search {
            k,
            ef: None,
            beam: None,
            epsilon: None,
            probes: None,
            rerank: None,
            filter: Filter::None,
            exact: None,
        }
    }

    /// Sets the size of the candidate pool, from 1 to 1,000,000.
    pub fn ef(mut self, ef: usize) -> Search<'a> {
        self.ef = Some(ef);
        self
    }

    /// Sets how many candidates are fetched at a time, from 1 to 64.
    pub fn beam(mut self, beam: usize) -> Search<'a> {
        self.beam = Some(beam);
        self
    }

    /// Sets how much farther away than what has been found candidates may be, relative to that: 0 or more.
    pub fn epsilon(mut self, epsilon: f32) -> Search<'a> {
        self.epsilon = Some(epsilon);
        self
    }

    /// Sets how many lists are read at most, from 1 to 1,000,000.
    pub fn probes(mut self, probes: usize) -> Search<'a> {
        self.probes = Some(probes);
        self
    }

    /// Sets how many candidates are measured exactly at most, from 1 to 1,000,000.
    pub fn rerank(mut self, rerank: usize) -> Search<'a> {
        self.rerank = Some(rerank);
        self
    }

    /// Restricts the results.
    pub fn filter(mut self, filter: Filter<'a>) -> Search<'a> {
        self.filter = filter;
        self
    }

    /// Sets what the distances of an index without vectors are taken from: a function of a key, called for candidates
    /// that can be among the results, as far as the errors of their estimates tell, nearest estimates first. Cursors do
    /// not use it.
    ///
    /// ```
    /// use ann_core::{AddOptions, DiskAnn, Index, Search};
    /// use ndarray::Array2;
    ///
    /// let vectors = Array2::from_shape_fn((1000, 32), |(i, j)| ((i * 7 + j * j * 13) % 101) as f32);
    /// let mut index = DiskAnn::builder(32).vectors(None).code_bits(4).build()?;
    /// index.add(vectors.view(), None, AddOptions::new())?;
    /// let query = vectors.row(42).to_vec();
    /// let exact = |key: u64| {
    ///     let row = vectors.row(key as usize);
    ///     Ok(Some(row.iter().zip(&query).map(|(a, b)| (a - b) * (a - b)).sum::<f32>()))
    /// };
    /// let hits = index.search(&query, &Search::new(10).exact(&exact))?;
    /// assert_eq!(hits[0].distance, 0.0);
    /// # Ok::<(), ann_core::Error>(())
    /// ```
    pub fn exact(mut self, exact: Exact<'a>) -> Search<'a> {
        self.exact = Some(exact);
        self
    }

    /// Checks the options at the door.
    pub(crate) fn check(&self) -> Result<()> {
        if self.k == 0 {
            return Err(Error::parameter("k", 0, "at least 1"));
        }
        if let Some(beam) = self.beam
            && !(1..=MAX_BEAM).contains(&beam)
        {
            return Err(Error::parameter("beam", beam, format!("from 1 to {MAX_BEAM}")));
        }
        if let Some(epsilon) = self.epsilon
            && !(0.0..f32::INFINITY).contains(&epsilon)
        {
            return Err(Error::parameter("epsilon", epsilon, "0 or more, and finite"));
        }
        for (name, value) in [("ef", self.ef), ("probes", self.probes), ("rerank", self.rerank)] {
            if let Some(value) = value
                && !(1..=MAX_EF).contains(&value)
            {
                return Err(Error::parameter(name, value, format!("from 1 to {MAX_EF}")));
            }
        }
        Ok(())
    }

    /// Candidates that are to be expanded, as long as that is what a pool is for: it may be less than `k`.
    pub(crate) fn list_size(&self) -> usize {
        self.ef.unwrap_or(DEFAULT_EF.max(2 * self.k.min(MAX_EF / 2)))
    }

    /// The size of the candidate pool to use.
    pub(crate) fn pool_size(&self) -> usize {
        self.list_size().max(self.k).min(MAX_EF)
    }
}

/// The default size of the candidate pool, if `2 k` is not more.
pub const DEFAULT_EF: usize = 64;

/// The largest candidate pool.
pub const MAX_EF: usize = 1_000_000;

/// The largest beam.
pub const MAX_BEAM: usize = 64;

/// What one search did; see [`Index::search_counted`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cost {
    /// Nodes expanded, or blocks of 32 codes scored.
    pub hops: u64,
    /// Distances computed.
    pub distances: u64,
}

/// A search that can be continued: see [`Index::cursor`].
pub struct Cursor {
    pub(crate) mark: Mark,
    pub(crate) ready: std::collections::VecDeque<Hit>,
    pub(crate) state: CursorState,
}

pub(crate) enum CursorState {
    /// A search of a graph.
    Graph(Box<crate::graph::walk::Walk>),
    /// All distances, nearest last.
    Flat(Vec<(f32, u32)>),
    /// A search of lists.
    Lists(Box<crate::ivfpq::Walk>),
}

impl Cursor {
    pub(crate) fn new(mark: Mark, state: CursorState) -> Cursor {
        Cursor { mark, ready: Default::default(), state }
    }
}

/// Checks a radius at the door.
pub(crate) fn check_radius(radius: f32) -> Result<()> {
    match radius.is_nan() {
        true => Err(Error::parameter("radius", radius, "any number")),
        false => Ok(()),
    }
}

/// What it takes to add rows, all at one go. See [`crate::Graph::needs`] and [`crate::IvfPq::needs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Needs {
    /// Bytes of pages that the index will have more.
    pub pages: u64,
    /// Bytes of memory beside pages and the rows themselves, at most and about, until the rows are in.
    pub memory: u64,
}

/// What to do while rows are added: how many threads, and whom to tell.
#[derive(Default)]
#[non_exhaustive]
pub struct AddOptions<'a> {
    /// Threads to use; 0 means one for each core.
    pub threads: usize,
    /// Called several times a second with the share of the work that is done, as a number of rows, and the rows in
    /// all; returning false stops the work and leaves the rows added so far in the index. All rows that an empty
    /// [`crate::Hnsw`], [`crate::DiskAnn`] or [`crate::IvfPq`] is loaded with are planned before the first of them is
    /// added.
    pub progress: Option<&'a mut (dyn FnMut(usize, usize) -> bool + Send)>,
}

impl<'a> AddOptions<'a> {
    /// One thread for each core, nobody told.
    pub fn new() -> AddOptions<'a> {
        AddOptions::default()
    }

    /// Sets the number of threads; 0 means one for each core.
    pub fn threads(mut self, threads: usize) -> AddOptions<'a> {
        self.threads = threads;
        self
    }

    /// Sets the function that is told of progress and can stop the work.
    pub fn progress(
        mut self,
        progress: &'a mut (dyn FnMut(usize, usize) -> bool + Send),
    ) -> AddOptions<'a> {
        self.progress = Some(progress);
        self
    }
}

/// What every index can do. Vectors are rows of `dim` elements of the index's element type; keys are the
/// caller's, unique, from 0 to 2^64 - 2.
///
/// Searches take `&self` and may run on many threads. An error leaves the index as it was.
pub trait Index: Send + Sync {
    /// The index's kind.
    fn kind(&self) -> Kind;

    /// The dimension.
    fn dim(&self) -> usize;

    /// The metric.
    fn metric(&self) -> Metric;

    /// The element type.
    fn dtype(&self) -> DType;

    /// Vectors in the index.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the rows of an `n x dim` matrix under `keys`, or under the next free keys in ascending order. Returns
    /// the keys. The result does not depend on the number of threads.
    ///
    /// # Errors
    /// [`Error::Dimension`], [`Error::ElementType`], [`Error::NotFinite`], [`Error::TooLong`],
    /// [`Error::ZeroVector`], [`Error::KeyCount`], [`Error::DuplicateKey`], [`Error::Full`]: nothing is added.
    /// [`Error::Cancelled`]: some rows are.
    fn add<T: Element>(
        &mut self,
        vectors: ArrayView2<'_, T>,
        keys: Option<&[u64]>,
        options: AddOptions<'_>,
    ) -> Result<Vec<u64>>;

    /// Replaces the vectors of keys that are in the index. Each key has its old vector until it has its new one.
    ///
    /// # Errors
    /// As [`Index::add`], and [`Error::UnknownKey`].
    fn update<T: Element>(
        &mut self,
        vectors: ArrayView2<'_, T>,
        keys: &[u64],
        options: AddOptions<'_>,
    ) -> Result<()>;

    /// Removes vectors by key and returns how many there were; keys that are not in the index are ignored.
    ///
    /// # Errors
    /// Those of the store.
    fn remove(&mut self, keys: &[u64]) -> Result<usize>;

    /// The nearest vectors, nearest first.
    ///
    /// # Errors
    /// A query that could not be added is refused with the same errors; [`Error::Parameter`] for options out of
    /// range; [`Error::Corrupt`].
    fn search<T: Element>(&self, query: &[T], options: &Search<'_>) -> Result<Vec<Hit>> {
        self.search_counted(query, options).map(|(hits, _)| hits)
    }

    /// [`Index::search`] with a count of the work it was. Counts are exact and repeatable.
    ///
    /// # Errors
    /// As [`Index::search`].
    fn search_counted<T: Element>(
        &self,
        query: &[T],
        options: &Search<'_>,
    ) -> Result<(Vec<Hit>, Cost)>;

    /// [`Index::search`] for every row of a matrix, on `threads` threads (0: one for each core).
    ///
    /// # Errors
    /// As [`Index::search`]; rows are counted from 0 in them.
    fn search_batch<T: Element>(
        &self,
        queries: ArrayView2<'_, T>,
        options: &Search<'_>,
        threads: usize,
    ) -> Result<Vec<Vec<Hit>>>;

    /// All vectors within `radius` of the query, nearest first, as far as a pool of `ef` finds them (all of them in
    /// a flat index). `options.k` is not used.
    ///
    /// # Errors
    /// As [`Index::search`]; [`Error::Parameter`] if the radius is NaN.
    fn range_search<T: Element>(
        &self,
        query: &[T],
        radius: f32,
        options: &Search<'_>,
    ) -> Result<Vec<Hit>>;

    /// Begins a search whose hits are fetched a few at a time, by [`Index::resume`]. `ef` is the pool's size.
    ///
    /// # Errors
    /// As [`Index::search`].
    fn cursor<T: Element>(&self, query: &[T], ef: usize) -> Result<Cursor>;

    /// The next `n` hits of a cursor; fewer only when there are no more. Hits come in ascending order within
    /// what one pool finds, and nearly so from one pool to the next; none comes twice. Give the same filter
    /// every time.
    ///
    /// # Errors
    /// [`Error::Changed`] if the index has changed since the cursor was made.
    fn resume(&self, cursor: &mut Cursor, n: usize, filter: Filter<'_>) -> Result<Vec<Hit>>;

    /// The vector of a key, if the key is in the index: as it was given, or as near to it as what is stored, of length
    /// one where that is a direction in bytes.
    ///
    /// # Errors
    /// [`Error::ElementType`] if `T` is not the index's; [`Error::NoVectors`] if it keeps none; [`Error::Corrupt`].
    fn get<T: Element>(&self, key: u64) -> Result<Option<Vec<T>>>;

    /// Whether a key is in the index.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    fn contains(&self, key: u64) -> Result<bool>;

    /// Sizes and counts. O(n).
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    fn stats(&self) -> Result<Stats>;

    /// Checks every structural invariant. O(n).
    ///
    /// # Errors
    /// [`Error::Corrupt`], naming the first that does not hold.
    fn verify(&self) -> Result<()>;

    /// Writes the index to a file, replacing one that is there, as a whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn save(&self, path: &Path) -> Result<()>;

    /// Makes all changes durable, where the store can.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn flush(&mut self) -> Result<()>;
}
