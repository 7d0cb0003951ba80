//! HNSW: a hierarchy of proximity graphs (Malkov and Yashunin, arXiv 1603.09320).
//!
//! Level 0 links every vector to at most `2 m` neighbours; each level above holds one in `m` of the nodes below it,
//! with at most `m` links each, and serves to find a starting point near the query in a few steps.

mod apply;
mod builder;
mod insert;
mod load;
#[doc(hidden)]
pub mod plain;
mod plan;
mod repair;
mod search;
mod verify;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::element::{DType, Element};
use crate::error::{Error, Result};
use crate::graph::links;
use crate::graph::search::Scratch;
use crate::index::check_radius;
use crate::index::{AddOptions, Cost, Cursor, CursorState, Filter, Hit, Index, Search, Stats};
use crate::kernel::Isa;
use crate::metric::Metric;
use crate::page::{self, MemStore, PageStore};
use crate::rows::{Kind, LINKS, Matcher, Plan, Rows, State, UPPER, check_rows, nearest, slice};
use crate::seed::mix;
use crate::threads;

pub use builder::HnswBuilder;
pub use insert::Insertion;

/// Levels above the bottom one, at most.
const MAX_LEVEL: u8 = 30;

/// A hierarchical navigable small world graph.
///
/// ```
/// use ann_core::{AddOptions, Hnsw, Index, Metric, Search};
/// use ndarray::Array2;
///
/// let vectors = Array2::from_shape_fn((1000, 8), |(i, j)| ((i * 7 + j * 13) % 101) as f32);
/// let mut index = Hnsw::builder(8).metric(Metric::L2sq).m(16).build()?;
/// index.add(vectors.view(), None, AddOptions::new())?;
/// let query: Vec<f32> = vectors.row(42).to_vec();
/// let hits = index.search(&query, &Search::new(10).ef(64))?;
/// assert_eq!(hits[0].distance, 0.0);
/// # Ok::<(), ann_core::Error>(())
/// ```
pub struct Hnsw<S: PageStore = MemStore> {
    rows: Rows<S>,
    scratches: Mutex<Vec<Scratch>>,
}

impl Hnsw {
    /// A builder for vectors of `dim` elements, from 1 to 65,536.
    pub fn builder(dim: usize) -> HnswBuilder {
        HnswBuilder::new(dim)
    }
}

impl<S: PageStore> Hnsw<S> {
    /// Opens the index in a store: one page is read.
    ///
    /// # Errors
    /// [`Error::NotAnIndex`], [`Error::Kind`], [`Error::Version`], [`Error::Corrupt`].
    pub fn open_in(store: S) -> Result<Hnsw<S>> {
        Hnsw::from_rows(Rows::open(store, None)?)
    }

    /// [`Hnsw::open_in`] with a forced instruction set.
    ///
    /// # Errors
    /// As [`Hnsw::open_in`]; [`Error::Parameter`] if this machine does not have it.
    pub fn open_with(store: S, isa: Isa) -> Result<Hnsw<S>> {
        Hnsw::from_rows(Rows::open(store, Some(isa))?)
    }

    pub(crate) fn from_rows(rows: Rows<S>) -> Result<Hnsw<S>> {
        let kind = rows.meta.kind();
        if kind != Kind::Hnsw {
            return Err(Error::Kind { got: kind.to_string(), want: Kind::Hnsw.to_string() });
        }
        let m = rows.meta.m.get() as usize;
        let strides = [(LINKS, 8 * m), (UPPER, 4 * m)];
        let right = |&(array, stride): &(usize, usize)| {
            rows.meta.arrays[array].stride.get() as usize == stride
        };
        if !(2..=256).contains(&m) || !strides.iter().all(right) {
            return Err(Error::corrupt(0, format!("m = {m}")));
        }
        if rows.meta.ef_construction.get() == 0 {
            return Err(Error::corrupt(0, "ef_construction = 0"));
        }
        Ok(Hnsw { rows, scratches: Mutex::default() })
    }

    /// The store that the index lives in.
    pub fn store(&self) -> &S {
        &self.rows.store
    }

    /// Links that a node can have on each level but 0, which holds twice as many.
    pub fn m(&self) -> usize {
        self.rows.meta.m.get() as usize
    }

    /// Size of the candidate pool while building.
    pub fn ef_construction(&self) -> usize {
        self.rows.meta.ef_construction.get() as usize
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
    fn width(&self, level: u8) -> usize {
        self.m() * if level == 0 { 2 } else { 1 }
    }

    /// The level of a slot, for all its occupants: at least `l` with probability `m^-l`.
    fn level(&self, id: u32) -> u8 {
        let mut x = mix(self.rows.meta.seed.get().wrapping_add(u64::from(id)));
        let mut level = 0;
        while level < MAX_LEVEL && x.is_multiple_of(self.m() as u64) {
            level += 1;
            x = mix(x);
        }
        level
    }

    /// The level of a slot that has been used before, and its first record above the bottom: both stay with the slot.
    fn kept_levels(&self, id: u32) -> Result<(u8, u32)> {
        let node = self.rows.node(id)?;
        if node.level > MAX_LEVEL {
            return Err(self.rows.corrupt_node(id, format!("level {}", node.level)));
        }
        search::place(&self.rows, id, node.level)?;
        Ok((node.level, node.upper.get()))
    }

    /// Borrows a scratch; it goes back by itself.
    fn scratch(&self) -> Borrowed<'_> {
        let mut free = self.scratches.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = free.pop().unwrap_or_default();
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
            match insertion.needs_write() {
                true => insertion.write_step(self)?,
                false => insertion.plan_step(self)?,
            }
        }
        if let Some(progress) = &mut options.progress {
            progress(total, total);
        }
        if replace && self.sweep_is_due() {
            self.sweep(options.threads)?;
        }
        Ok(insertion.keys().to_vec())
    }

    fn search_planned<T: Element>(
        &self,
        query: &[T],
        row: usize,
        options: &Search<'_>,
        plan: &Plan<'_>,
    ) -> Result<(Vec<Hit>, Cost)> {
        let scratch = &mut *self.scratch();
        self.rows.space.query(query, row, &mut scratch.row, &mut scratch.probe)?;
        if let Some(ids) = &plan.exact {
            let cost = Cost { hops: 0, distances: ids.len() as u64 };
            return Ok((self.scan(scratch, ids, options.k, f32::INFINITY)?, cost));
        }
        let (ef, radius) = (options.pool_size(), f32::NEG_INFINITY);
        let cost = self.search_pool(scratch, &plan.matcher, ef, radius, false)?;
        Ok((self.hits(scratch.pool.admitted(), &plan.matcher, options.k)?, cost))
    }

    /// The nearest of a list of slots, each on its own account (twins are slots like others here).
    fn scan(&self, scratch: &Scratch, ids: &[u32], k: usize, radius: f32) -> Result<Vec<Hit>> {
        let found = nearest(&self.rows, &scratch.probe, ids.iter().copied(), k, radius)?;
        let hit = |(distance, id)| Ok(Hit { key: self.rows.node(id)?.key.get(), distance });
        found.into_iter().map(hit).collect()
    }
}

/// A scratch on loan.
struct Borrowed<'a> {
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

impl<S: PageStore> Index for Hnsw<S> {
    fn kind(&self) -> Kind {
        Kind::Hnsw
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
        options.check()?;
        let plan = self.rows.plan(options.filter, options.pool_size())?;
        self.search_planned(query, 0, options, &plan)
    }

    fn search_batch<T: Element>(
        &self,
        queries: ArrayView2<'_, T>,
        options: &Search<'_>,
        threads: usize,
    ) -> Result<Vec<Vec<Hit>>> {
        options.check()?;
        let plan = self.rows.plan(options.filter, options.pool_size())?;
        threads::pool(threads)?.install(|| {
            check_rows(&self.rows.space, &queries)?;
            let search = |row| {
                let query = slice(queries.row(row));
                self.search_planned(&query, row, options, &plan).map(|(hits, _)| hits)
            };
            (0..queries.nrows()).into_par_iter().map(search).collect()
        })
    }

    fn range_search<T: Element>(
        &self,
        query: &[T],
        radius: f32,
        options: &Search<'_>,
    ) -> Result<Vec<Hit>> {
        options.check()?;
        check_radius(radius)?;
        let plan = self.rows.plan(options.filter, options.pool_size())?;
        let scratch = &mut *self.scratch();
        self.rows.space.query(query, 0, &mut scratch.row, &mut scratch.probe)?;
        if let Some(ids) = &plan.exact {
            return self.scan(scratch, ids, usize::MAX, radius);
        }
        self.search_pool(scratch, &plan.matcher, options.pool_size(), radius, false)?;
        let within = scratch.pool.admitted().take_while(|&(distance, _)| distance <= radius);
        self.hits(within, &plan.matcher, usize::MAX)
    }

    fn cursor<T: Element>(&self, query: &[T], ef: usize) -> Result<Cursor> {
        Search::new(1).ef(ef).check()?;
        let mut scratch = Box::<Scratch>::default();
        self.rows.space.query(query, 0, &mut scratch.row, &mut scratch.probe)?;
        scratch.pool.reset(ef, f32::NEG_INFINITY, true);
        Ok(Cursor::new(self.rows.mark(), CursorState::Graph(scratch, false)))
    }

    fn resume(&self, cursor: &mut Cursor, n: usize, filter: Filter<'_>) -> Result<Vec<Hit>> {
        self.rows.check_mark(&cursor.mark)?;
        let Cursor { ready, state, .. } = cursor;
        let CursorState::Graph(scratch, started) = state else {
            return Err(Error::Changed);
        };
        let matcher = match filter {
            Filter::None => Matcher::All,
            filter => self.rows.plan(filter, 0)?.matcher,
        };
        while ready.len() < n {
            if !*started {
                let ef = scratch.pool.size();
                self.search_pool(scratch, &matcher, ef, f32::NEG_INFINITY, true)?;
                *started = true;
            } else {
                if !scratch.pool.refill() {
                    break;
                }
                let admit = &mut |id| self.rows.admits(id, &matcher);
                search::best_first(&self.rows, scratch, 0, admit)?;
            }
            ready.extend(self.hits(scratch.pool.admitted(), &matcher, usize::MAX)?);
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
                let (array, record) = search::place(&self.rows, id, level)?;
                links::read(&self.rows, array, record, &mut list)?;
                stats.links[usize::from(level > 0)] += list.len();
            }
        }
        stats.levels = search::entry(&self.rows)?.map_or(0, |(_, level)| level as usize);
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
