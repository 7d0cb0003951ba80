//! IVF-PQ: lists of near vectors, each entry a code of a few bits, scored 32 at a time.
//!
//! k-means cuts the vectors into lists; a vector's code says in a few bits a dimension what it is beside its list's
//! centroid (product quantization). A search scores the codes of the lists nearest to the query by lookups in registers
//! (FastScan) and measures the best by their vectors. What is looked up depends on the query alone, not on the list:
//! squared L2 is `|q - c|^2 + (|x|^2 + 2 <x, c>) - 2 <q, x>` for a code that stands for `c + x`, of which the middle is
//! a number beside the code; for inner products it is `-<q, c> - <q, x>`. (Jégou et al., TPAMI 2011; André et al.,
//! TPAMI 2019; Guo et al., arXiv 1908.10396.) Codes may be RaBitQ's instead (`code.rs`).
//!
//! An index is trained or it is not. Without training there are no lists, and searches measure every vector: that is
//! how an index begins, and what it is for the moment in which its lists are replaced.

mod builder;
mod coarse;
mod code;
mod collect;
mod compact;
mod fill;
mod insert;
mod lean;
mod lists;
mod measure;
mod model;
mod moving;
mod needs;
mod rank;
mod rebalance;
mod scan;
mod search;
mod shared;
mod source;
mod steps;
mod stretch;
mod sweep;
mod together;
mod train;
mod tune;
mod verify;
mod walk;

use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::element::{DType, Element};
use crate::error::{Error, Result};
use crate::index::check_radius;
use crate::index::{AddOptions, Cost, Cursor, CursorState, Filter, Hit, Index, Search, Stats};
use crate::kernel::Isa;
use crate::metric::Metric;
use crate::page::{self, MemStore, PageStore};
use crate::rerank;
use crate::rows::{CODES, Kind, Plan, Rows, TURNED, UPPER, UPPER_CODES, WHOLE, check_rows, slice};
use crate::threads;

pub use builder::IvfPqBuilder;
pub use code::IvfCode;
pub use steps::IvfPqSteps;
pub use sweep::IvfPqSweep;
pub use tune::Tuned;
pub(crate) use walk::Walk;

use lists::Block;
use model::Model;
use search::Scratch;

/// The array of blocks of codes; the meta page counts its records.
const BLOCKS: usize = UPPER;
/// The array of lists.
const LISTS: usize = CODES;
/// The array of centroids.
const CENTROIDS: usize = UPPER_CODES;
/// The array of pages that hold the codebook.
const BOOK: usize = WHOLE;

/// Lists that an index can have.
const MAX_LISTS: usize = 1 << 24;

/// Inverted lists of product-quantized codes.
///
/// ```
/// use ann_core::{AddOptions, Index, IvfPq, Metric, Search};
/// use ndarray::Array2;
///
/// let vectors = Array2::from_shape_fn((3000, 8), |(i, j)| ((i * 7 + j * j * 13) % 101) as f32);
/// let mut index = IvfPq::builder(8).metric(Metric::L2sq).build()?;
/// index.add(vectors.view(), None, AddOptions::new())?;
/// let query: Vec<f32> = vectors.row(42).to_vec();
/// let hits = index.search(&query, &Search::new(10).probes(20).rerank(100))?;
/// assert_eq!(hits[0].distance, 0.0);
/// # Ok::<(), ann_core::Error>(())
/// ```
pub struct IvfPq<S: PageStore = MemStore> {
    rows: Rows<S>,
    block: Block,
    model: OnceLock<Option<Box<Model>>>,
    /// The count of sweeps that the meta page had when the model's turn to be read came.
    seen: u32,
    memory_limit: Option<u64>,
    scratches: Mutex<Vec<Scratch>>,
}

impl IvfPq {
    /// A builder for vectors of `dim` elements, from 1 to 65,536.
    pub fn builder(dim: usize) -> IvfPqBuilder {
        IvfPqBuilder::new(dim)
    }
}

impl<S: PageStore> IvfPq<S> {
    /// Opens the index in a store: one page is read.
    ///
    /// # Errors
    /// [`Error::NotAnIndex`], [`Error::Kind`], [`Error::Version`], [`Error::Corrupt`].
    pub fn open_in(store: S) -> Result<IvfPq<S>> {
        IvfPq::from_rows(Rows::open(store, None)?)
    }

    /// [`IvfPq::open_in`] with a forced instruction set.
    ///
    /// # Errors
    /// As [`IvfPq::open_in`]; [`Error::Parameter`] if this machine does not have it.
    pub fn open_with(store: S, isa: Isa) -> Result<IvfPq<S>> {
        IvfPq::from_rows(Rows::open(store, Some(isa))?)
    }

    pub(crate) fn from_rows(rows: Rows<S>) -> Result<IvfPq<S>> {
        match rows.meta.kind() {
            Kind::IvfPq => {
                let (block, seen) = (lists::shape_of(&rows)?, rows.meta.sweeps.get());
                let (model, scratches) = (OnceLock::new(), Mutex::default());
                Ok(IvfPq { rows, block, model, seen, memory_limit: None, scratches })
            }
            kind => Err(Error::Kind { got: kind.to_string(), want: Kind::IvfPq.to_string() }),
        }
    }

    /// The store that the index lives in.
    pub fn store(&self) -> &S {
        &self.rows.store
    }

    /// Lists in use; 0 until the index is trained.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn lists(&self) -> Result<usize> {
        Ok(self.model()?.map_or(0, Model::len))
    }

    /// What codes are.
    pub fn code(&self) -> IvfCode {
        IvfCode::of(&self.rows.meta).unwrap_or_default()
    }

    /// Sub-quantizers of a code; 0 if it is none of a product quantizer.
    pub fn subvectors(&self) -> usize {
        if self.code() == IvfCode::Pq { self.block.subs } else { 0 }
    }

    /// Whether vectors are rotated before they are encoded, as was learnt for that.
    pub fn opq(&self) -> bool {
        self.rows.meta.entries & TURNED != 0
    }

    /// Bits of a sub-quantizer's code, or a coordinate.
    pub fn bits(&self) -> u8 {
        self.rows.meta.code_bits
    }

    /// What vectors are stored as; `None` if only codes of them are.
    pub fn vectors(&self) -> Option<DType> {
        self.rows.has_vectors().then_some(self.rows.space.stored)
    }

    /// Bits a coordinate of the codes by which candidates are reranked where vectors are not kept; 0 if there are none.
    pub fn code_bits(&self) -> u8 {
        self.rows.row_code_bits()
    }

    /// Lists that a search reads, and candidates that it measures for ten hits, unless it is told otherwise.
    pub fn defaults(&self) -> (usize, usize) {
        let effort = self.effort(&Search::new(10));
        (effort.probes, effort.rerank)
    }

    /// The numbers of the lists, retired ones included.
    fn numbers(&self) -> Range<u32> {
        self.rows.meta.coded.get()..self.rows.meta.entry_level.get()
    }

    /// [`Index::cursor`] with the probes and the candidates of a search: those are what it begins with. It measures
    /// only as many candidates as it takes to know the next hits.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn cursor_with<T: Element>(&self, query: &[T], options: &Search<'_>) -> Result<Cursor> {
        options.check()?;
        let mut walk = Box::<Walk>::default();
        let Scratch { row, probe, .. } = &mut walk.scratch;
        self.rows.query(query, 0, row, probe)?;
        walk.effort = self.effort(options);
        Ok(Cursor::new(self.rows.mark(), CursorState::Lists(walk)))
    }

    /// Whether there are lists.
    fn is_trained(&self) -> bool {
        self.rows.meta.entry_level.get() > 0
    }

    /// Centroids and codebook, read now if this is their first use; `None` without training.
    fn model(&self) -> Result<Option<&Model>> {
        if let Some(model) = self.model.get() {
            return Ok(model.as_deref());
        }
        let loaded = Model::load(&self.rows)?;
        let loaded = if S::SHARED { loaded.map(Model::beside) } else { loaded }.map(Box::new);
        Ok(self.model.get_or_init(|| loaded).as_deref())
    }

    /// Has the model read anew at its next use.
    fn forget_model(&mut self) {
        self.model = OnceLock::new();
    }

    fn plan<'a>(&self, options: &Search<'a>) -> Result<Plan<'a>> {
        options.check()?;
        rerank::check(&self.rows, options)?;
        let enough = if self.is_trained() { self.effort(options).rerank } else { usize::MAX };
        let mut plan = self.rows.plan(options.filter, enough)?;
        if !self.rows.has_rows() {
            // What is known of vectors is in the lists.
            plan.exact = None;
        }
        Ok(plan)
    }

    fn search_one<T: Element>(
        &self,
        query: &[T],
        row: usize,
        options: &Search<'_>,
        plan: &Plan<'_>,
    ) -> Result<(Vec<Hit>, Cost)> {
        let scratch = &mut *self.scratch();
        self.rows.query(query, row, &mut scratch.row, &mut scratch.probe)?;
        self.search_planned(scratch, options, plan)
    }

    /// The hits of some of the queries, which read lists together if there are lists.
    fn search_group<T: Element>(
        &self,
        queries: ArrayView2<'_, T>,
        rows: Range<usize>,
        options: &Search<'_>,
        plan: &Plan<'_>,
    ) -> Result<Vec<Vec<Hit>>> {
        let (model, k) = (self.model()?, options.k.min(self.rows.len()));
        let (Some(model), None, None, 1..) = (model, &plan.exact, options.exact, k) else {
            let search = |row: usize| {
                let query = slice(queries.row(row));
                self.search_one(&query, row, options, plan).map(|(hits, _)| hits)
            };
            return rows.map(search).collect();
        };
        let mut scratches = Vec::with_capacity(rows.len());
        for row in rows {
            let mut scratch = self.scratch();
            let Scratch { row: bytes, probe, .. } = &mut *scratch;
            self.rows.query(&slice(queries.row(row)), row, bytes, probe)?;
            scratches.push(scratch);
        }
        let effort = self.effort(options);
        self.search_together(model, &mut scratches, &plan.matcher, effort, k)
    }
}

impl<S: PageStore> Index for IvfPq<S> {
    fn kind(&self) -> Kind {
        Kind::IvfPq
    }

    fn dim(&self) -> usize {
        self.rows.space.dim
    }

    fn metric(&self) -> Metric {
        self.rows.space.metric
    }

    fn dtype(&self) -> DType {
        self.rows.space.dtype
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn add<T: Element>(
        &mut self,
        vectors: ArrayView2<'_, T>,
        keys: Option<&[u64]>,
        mut options: AddOptions<'_>,
    ) -> Result<Vec<u64>> {
        let steps = IvfPqSteps::insert(self, vectors, keys, false, options.threads)?;
        self.take_steps(steps, &mut options)
    }

    fn update<T: Element>(
        &mut self,
        vectors: ArrayView2<'_, T>,
        keys: &[u64],
        mut options: AddOptions<'_>,
    ) -> Result<()> {
        let steps = IvfPqSteps::insert(self, vectors, Some(keys), true, options.threads)?;
        self.take_steps(steps, &mut options).map(|_| ())
    }

    fn remove(&mut self, keys: &[u64]) -> Result<usize> {
        let unsettled = self.unsettled()?;
        self.settle(&unsettled)?;
        let mut removed = 0;
        for &key in keys {
            if let Some(id) = self.rows.id_of(key)? {
                self.take_out(id)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn search_counted<T: Element>(
        &self,
        query: &[T],
        options: &Search<'_>,
    ) -> Result<(Vec<Hit>, Cost)> {
        self.search_one(query, 0, options, &self.plan(options)?)
    }

    fn search_batch<T: Element>(
        &self,
        queries: ArrayView2<'_, T>,
        options: &Search<'_>,
        threads: usize,
    ) -> Result<Vec<Vec<Hit>>> {
        let plan = self.plan(options)?;
        let group = |rows: Range<usize>| self.search_group(queries, rows, options, &plan);
        let most = self.group();
        if threads == 1 {
            self.rows.space.check_shape::<T>(queries.ncols())?;
            let mut found = Vec::with_capacity(queries.nrows());
            for first in (0..queries.nrows()).step_by(most) {
                found.extend(group(first..queries.nrows().min(first + most))?);
            }
            return Ok(found);
        }
        threads::pool(threads)?.install(|| {
            check_rows(&self.rows.space, &queries)?;
            // A group for each thread, if queries are few.
            let share = queries.nrows().div_ceil(rayon::current_num_threads());
            let size = share.clamp(8, most);
            let groups = (0..queries.nrows()).into_par_iter().step_by(size);
            let groups = groups.map(|first| group(first..queries.nrows().min(first + size)));
            let found: Vec<Vec<Vec<Hit>>> = groups.collect::<Result<_>>()?;
            Ok(found.into_iter().flatten().collect())
        })
    }

    fn range_search<T: Element>(
        &self,
        query: &[T],
        radius: f32,
        options: &Search<'_>,
    ) -> Result<Vec<Hit>> {
        check_radius(radius)?;
        let plan = self.plan(options)?;
        let scratch = &mut *self.scratch();
        self.rows.query(query, 0, &mut scratch.row, &mut scratch.probe)?;
        self.search_range(scratch, radius, options, &plan)
    }

    fn cursor<T: Element>(&self, query: &[T], ef: usize) -> Result<Cursor> {
        self.cursor_with(query, &Search::new(1).ef(ef))
    }

    fn resume(&self, cursor: &mut Cursor, n: usize, filter: Filter<'_>) -> Result<Vec<Hit>> {
        self.rows.check_mark(&cursor.mark)?;
        let Cursor { ready, state, .. } = cursor;
        let CursorState::Lists(walk) = state else {
            return Err(Error::Changed);
        };
        let matcher = match filter {
            Filter::None => crate::rows::Matcher::All,
            filter => self.rows.plan(filter, 0)?.matcher,
        };
        while ready.len() < n && self.walk_on(walk, &matcher, ready)? {}
        let count = n.min(ready.len());
        Ok(ready.drain(..count).collect())
    }

    fn get<T: Element>(&self, key: u64) -> Result<Option<Vec<T>>> {
        self.rows.get(key)
    }

    fn contains(&self, key: u64) -> Result<bool> {
        Ok(self.rows.id_of(key)?.is_some())
    }

    fn stats(&self) -> Result<Stats> {
        self.rows.stats()
    }

    fn verify(&self) -> Result<()> {
        self.rows.verify()?;
        self.verify_lists()
    }

    fn save(&self, path: &Path) -> Result<()> {
        page::save(&self.rows.store, path)
    }

    fn flush(&mut self) -> Result<()> {
        self.rows.store.flush()
    }
}
