//! The graph index: what HNSW and DiskANN have in common, which is nearly everything.

use std::marker::PhantomData;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ndarray::{ArrayView2, s};
use rayon::prelude::*;

use crate::element::{DType, Element};
use crate::error::{Error, Result};
use crate::index::check_radius;
use crate::index::{AddOptions, Cost, Cursor, CursorState, Filter, Hit, Index, Search, Stats};
use crate::kernel::Isa;
use crate::metric::Metric;
use crate::page::{self, PageStore};
use crate::rerank::{self, Estimated, rerank, rerank_all};
use crate::rows::{Kind, Matcher, Meta, Plan, Rows, State, check_rows, nearest};
use crate::seed::mix;
use crate::threads;

use super::fused::Fused;
use super::insert::Insertion;
use super::search::Scratch;
use super::together::GROUP;
use super::walk::Walk;
use super::{links, query};

/// Levels above the bottom one, at most.
const MAX_LEVEL: u8 = 30;

/// A kind of graph: [`crate::Hnsw`]'s or [`crate::DiskAnn`]'s. There are no others.
pub trait Topology: Shaped {}

/// What a kind of graph says of itself.
pub trait Shaped: Send + Sync + Sized + 'static {
    /// The kind that the meta page of such an index names.
    const KIND: Kind;

    /// Checks what the meta page says of the graph.
    #[expect(private_interfaces, reason = "sealed: nobody outside can name the trait")]
    fn shape(meta: &Meta) -> Result<Shape>;
}

/// The measures of a graph.
pub struct Shape {
    /// Links that a node can have at the bottom level, and at those above; 0 if there are none above.
    pub(crate) widths: [usize; 2],
    /// Size of the candidate pool while building.
    pub(crate) pool: usize,
    /// What makes the codes beside links, if there are any.
    pub(crate) fused: Option<Fused>,
}

/// A graph of near neighbours. Use it as [`crate::Hnsw`] or [`crate::DiskAnn`].
pub struct Graph<S: PageStore, K: Topology> {
    pub(crate) rows: Rows<S>,
    pub(crate) shape: Shape,
    /// Bytes of memory that adding rows keeps within.
    pub(super) memory_limit: Option<u64>,
    scratches: Mutex<Vec<Scratch>>,
    topology: PhantomData<K>,
}

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// Opens the index in a store: one page is read.
    ///
    /// # Errors
    /// [`Error::NotAnIndex`], [`Error::Kind`], [`Error::Version`], [`Error::Corrupt`].
    pub fn open_in(store: S) -> Result<Graph<S, K>> {
        Graph::from_rows(Rows::open(store, None)?)
    }

    /// [`Graph::open_in`] with a forced instruction set.
    ///
    /// # Errors
    /// As [`Graph::open_in`]; [`Error::Parameter`] if this machine does not have it.
    pub fn open_with(store: S, isa: Isa) -> Result<Graph<S, K>> {
        Graph::from_rows(Rows::open(store, Some(isa))?)
    }

    pub(crate) fn from_rows(rows: Rows<S>) -> Result<Graph<S, K>> {
        let kind = rows.meta.kind();
        if kind != K::KIND {
            return Err(Error::Kind { got: kind.to_string(), want: K::KIND.to_string() });
        }
        let shape = K::shape(&rows.meta)?;
        let scratches = Mutex::default();
        Ok(Graph { rows, shape, memory_limit: None, scratches, topology: PhantomData })
    }

    /// The store that the index lives in.
    pub fn store(&self) -> &S {
        &self.rows.store
    }

    /// What vectors are stored as; `None` if only their codes are.
    pub fn vectors(&self) -> Option<DType> {
        self.rows.has_vectors().then_some(self.rows.space.stored)
    }

    /// Takes removed vectors out of the graph and frees their slots. Removing does that by itself once a tenth
    /// of the graph is removed vectors.
    ///
    /// # Errors
    /// Those of the store; the index then holds the same vectors as before.
    pub fn sweep(&mut self, threads: usize) -> Result<()> {
        threads::pool(threads)?.install(|| self.sweep_now())
    }

    /// Links that a node can have at a level.
    pub(super) fn width(&self, level: u8) -> usize {
        self.shape.widths[usize::from(level > 0)]
    }

    /// The level of a slot, for all its occupants: at least `l` with probability `w^-l`, where `w` is the width of
    /// the upper levels.
    pub(super) fn level(&self, id: u32) -> u8 {
        level_of(id, self.rows.meta.seed.get(), self.shape.widths[1] as u64)
    }

    /// The level of a slot that has been used before, and its first record above the bottom: both stay with the slot.
    pub(super) fn kept_levels(&self, id: u32) -> Result<(u8, u32)> {
        let node = self.rows.node(id)?;
        if node.level > MAX_LEVEL {
            return Err(self.rows.corrupt_node(id, format!("level {}", node.level)));
        }
        query::place(&self.rows, id, node.level)?;
        Ok((node.level, node.upper.get()))
    }

    /// Borrows a scratch; it goes back by itself.
    pub(super) fn scratch(&self) -> Borrowed<'_> {
        let mut free = self.scratches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = free.pop().unwrap_or_default();
        // What the last search was told is nothing to the next, nor to an insertion.
        (scratch.beam, scratch.epsilon) = (None, None);
        Borrowed { scratch, home: &self.scratches }
    }

    fn insert<T: Element>(
        &mut self,
        vectors: ArrayView2<'_, T>,
        keys: Option<&[u64]>,
        replace: bool,
        mut options: AddOptions<'_>,
    ) -> Result<Vec<u64>> {
        let mut insertion = Insertion::new(self, vectors, keys, replace, options.threads)?;
        let total = insertion.keys().len();
        while !insertion.is_done() {
            // Within a batch it would leave nodes with half of their links.
            if let Some(progress) = &mut options.progress
                && !insertion.is_applying()
                && !progress(insertion.progress(), total)
            {
                return Err(Error::Cancelled { added: insertion.done() });
            }
            insertion.step(self)?;
        }
        if let Some(progress) = &mut options.progress {
            progress(total, total);
        }
        if replace && self.sweep_is_due() {
            self.sweep(options.threads)?;
        }
        Ok(insertion.keys().to_vec())
    }

    pub(super) fn search_planned<T: Element>(
        &self,
        query: &[T],
        row: usize,
        options: &Search<'_>,
        plan: &Plan<'_>,
    ) -> Result<(Vec<Hit>, Cost)> {
        let scratch = &mut *self.scratch();
        self.rows.query(query, row, &mut scratch.row, &mut scratch.probe)?;
        if let Some(ids) = &plan.exact {
            let cost = Cost { hops: 0, distances: ids.len() as u64 };
            if let Some(exact) = options.exact {
                let limits = (options.k, f32::INFINITY);
                let all = ids.iter().copied();
                return Ok((rerank_all(&self.rows, &scratch.probe, all, limits, exact)?, cost));
            }
            return Ok((self.scan(scratch, ids, options.k, f32::INFINITY)?, cost));
        }
        let (sizes, radius) = ((options.list_size(), options.k), f32::NEG_INFINITY);
        (scratch.beam, scratch.epsilon) = (options.beam, options.epsilon);
        let cost = self.search_pool(scratch, &plan.matcher, sizes, radius, false)?;
        let limits = (options.k, f32::INFINITY);
        Ok((self.results(scratch, &plan.matcher, limits, options)?, cost))
    }

    /// The hits of a search that is done: `k` at most, within a radius.
    fn results(
        &self,
        scratch: &Scratch,
        matcher: &Matcher<'_>,
        (k, radius): (usize, f32),
        options: &Search<'_>,
    ) -> Result<Vec<Hit>> {
        let found = self.found(scratch).admitted();
        let Some(exact) = options.exact else {
            let within = found.take_while(|&(distance, _)| distance <= radius);
            return self.hits(within, matcher, k);
        };
        let mut candidates: Vec<Estimated> = Vec::new();
        for (estimate, id) in found {
            self.rows.each_visible(id, |id, key| {
                if matcher.accepts(id, key) {
                    candidates.push((estimate, id, key));
                }
                true
            })?;
        }
        rerank(&self.rows, &scratch.probe, candidates.into_iter(), (k, radius), exact)
    }

    /// Checks options at the door.
    fn check(&self, options: &Search<'_>) -> Result<()> {
        options.check()?;
        rerank::check(&self.rows, options)
    }

    /// The options of a search for so many, checked, with the index's own `ef` and `epsilon` if they have none.
    fn checked<'a>(&self, options: &Search<'a>) -> Result<Search<'a>> {
        self.check(options)?;
        if options.ef.is_some() {
            return Ok(*options);
        }
        let epsilon = options.epsilon.or(self.default_epsilon());
        Ok(Search { epsilon, ..options.ef(self.default_ef(options.k)) })
    }

    /// The nearest of a list of slots, each on its own account (twins are slots like others here).
    fn scan(&self, scratch: &Scratch, ids: &[u32], k: usize, radius: f32) -> Result<Vec<Hit>> {
        let found = nearest(&self.rows, &scratch.probe, ids.iter().copied(), k, radius)?;
        let hit = |(distance, id)| Ok(Hit { key: self.rows.node(id)?.key.get(), distance });
        found.into_iter().map(hit).collect()
    }
}

/// The level of a slot in a graph whose upper levels are `width` wide.
pub(super) fn level_of(id: u32, seed: u64, width: u64) -> u8 {
    let mut x = mix(seed.wrapping_add(u64::from(id)));
    let mut level = 0;
    while width > 0 && level < MAX_LEVEL && x.is_multiple_of(width) {
        level += 1;
        x = mix(x);
    }
    level
}

/// A scratch on loan.
pub(super) struct Borrowed<'a> {
    scratch: Scratch,
    home: &'a Mutex<Vec<Scratch>>,
}

impl std::ops::Deref for Borrowed<'_> {
    type Target = Scratch;

    fn deref(&self) -> &Scratch {
        &self.scratch
    }
}

impl std::ops::DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut Scratch {
        &mut self.scratch
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let mut free = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(std::mem::take(&mut self.scratch));
    }
}

impl<S: PageStore, K: Topology> Index for Graph<S, K> {
    fn kind(&self) -> Kind {
        K::KIND
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
        options: AddOptions<'_>,
    ) -> Result<Vec<u64>> {
        self.insert(vectors, keys, false, options)
    }

    fn update<T: Element>(
        &mut self,
        vectors: ArrayView2<'_, T>,
        keys: &[u64],
        options: AddOptions<'_>,
    ) -> Result<()> {
        self.insert(vectors, Some(keys), true, options).map(|_| ())
    }

    fn remove(&mut self, keys: &[u64]) -> Result<usize> {
        let mut removed = 0;
        for &key in keys {
            if let Some(id) = self.rows.id_of(key)? {
                self.rows.bury(id)?;
                removed += 1;
            }
        }
        if self.sweep_is_due() {
            self.sweep(0)?;
        }
        Ok(removed)
    }

    fn search_counted<T: Element>(
        &self,
        query: &[T],
        options: &Search<'_>,
    ) -> Result<(Vec<Hit>, Cost)> {
        let options = &self.checked(options)?;
        let plan = self.rows.plan(options.filter, options.pool_size())?;
        self.search_planned(query, 0, options, &plan)
    }

    fn search_batch<T: Element>(
        &self,
        queries: ArrayView2<'_, T>,
        options: &Search<'_>,
        threads: usize,
    ) -> Result<Vec<Vec<Hit>>> {
        let options = &self.checked(options)?;
        let plan = self.rows.plan(options.filter, options.pool_size())?;
        if threads == 1 {
            self.rows.space.check_shape::<T>(queries.ncols())?;
            return self.search_rows(queries, 0, options, &plan);
        }
        threads::pool(threads)?.install(|| {
            check_rows(&self.rows.space, &queries)?;
            let search = |group: usize| {
                let first = group * GROUP;
                let queries = queries.slice(s![first..queries.nrows().min(first + GROUP), ..]);
                self.search_rows(queries, first, options, &plan)
            };
            let groups = (0..queries.nrows().div_ceil(GROUP)).into_par_iter().map(search);
            let found: Result<Vec<Vec<Vec<Hit>>>> = groups.collect();
            Ok(found?.into_iter().flatten().collect())
        })
    }

    fn range_search<T: Element>(
        &self,
        query: &[T],
        radius: f32,
        options: &Search<'_>,
    ) -> Result<Vec<Hit>> {
        self.check(options)?;
        check_radius(radius)?;
        let plan = self.rows.plan(options.filter, options.pool_size())?;
        let scratch = &mut *self.scratch();
        self.rows.query(query, 0, &mut scratch.row, &mut scratch.probe)?;
        if let Some(ids) = &plan.exact {
            if let Some(exact) = options.exact {
                let (all, limits) = (ids.iter().copied(), (usize::MAX, radius));
                return rerank_all(&self.rows, &scratch.probe, all, limits, exact);
            }
            return self.scan(scratch, ids, usize::MAX, radius);
        }
        if self.rows.has_vectors() || options.exact.is_some() {
            scratch.probe.asked.set_radius(radius);
        }
        let sizes = (options.pool_size(), options.pool_size());
        scratch.beam = options.beam;
        self.search_pool(scratch, &plan.matcher, sizes, radius, false)?;
        self.results(scratch, &plan.matcher, (usize::MAX, radius), options)
    }

    fn cursor<T: Element>(&self, query: &[T], ef: usize) -> Result<Cursor> {
        Search::new(1).ef(ef).check()?;
        let mut walk = Box::<Walk>::default();
        let scratch = &mut walk.scratch;
        self.rows.query(query, 0, &mut scratch.row, &mut scratch.probe)?;
        scratch.pool.reset(ef, f32::NEG_INFINITY, true);
        Ok(Cursor::new(self.rows.mark(), CursorState::Graph(walk)))
    }

    fn resume(&self, cursor: &mut Cursor, n: usize, filter: Filter<'_>) -> Result<Vec<Hit>> {
        self.rows.check_mark(&cursor.mark)?;
        let Cursor { ready, state, .. } = cursor;
        let CursorState::Graph(walk) = state else {
            return Err(Error::Changed);
        };
        let matcher = match filter {
            Filter::None => Matcher::All,
            filter => self.rows.plan(filter, 0)?.matcher,
        };
        while ready.len() < n
            && let Some(hits) = self.walk_on(walk, &matcher, n - ready.len(), false)?
        {
            ready.extend(hits);
        }
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
        let mut stats = self.rows.stats()?;
        let mut list = Vec::new();
        for id in 0..self.rows.slots() {
            let node = self.rows.node(id)?;
            if !node.is(State::Live) && !node.is(State::Tombstone) {
                continue;
            }
            for level in 0..=node.level {
                let (array, record) = query::place(&self.rows, id, level)?;
                links::read(&self.rows, array, record, &mut list)?;
                stats.links[usize::from(level > 0)] += list.len();
            }
        }
        stats.levels = query::entry(&self.rows)?.map_or(0, |(_, level)| level as usize);
        Ok(stats)
    }

    fn verify(&self) -> Result<()> {
        self.rows.verify()?;
        self.verify_graph()
    }

    fn save(&self, path: &Path) -> Result<()> {
        page::save(&self.rows.store, path)
    }

    fn flush(&mut self) -> Result<()> {
        self.rows.store.flush()
    }
}
