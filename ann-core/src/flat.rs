//! Exact search: every vector is scored. The oracle in tests, and the right index for a few thousand vectors.

use std::path::Path;

use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::element::{DType, Element};
use crate::error::{Error, Result};
use crate::index::{AddOptions, Cost, Cursor, CursorState, Filter, Hit, Index, Search, Stats};
use crate::kernel::Isa;
use crate::metric::Metric;
use crate::page::{self, MemStore, PageStore};
use crate::rerank;
use crate::rows::{Array, Change, Kind, Matcher, NONE, Node, Plan, Probe, Rows, Space, State};
use crate::rows::{NODES, check_rows, nearest, slice};
use crate::threads;

/// An index that scores every vector: exact, O(n d) a query.
///
/// ```
/// use ann_core::{AddOptions, Flat, Index, Metric, Search};
/// use ndarray::array;
///
/// let mut index = Flat::builder(2).metric(Metric::L2sq).build()?;
/// index.add(array![[0.0f32, 0.0], [3.0, 4.0]].view(), None, AddOptions::new())?;
/// let hits = index.search(&[3.0f32, 3.0], &Search::new(1))?;
/// assert_eq!((hits[0].key, hits[0].distance), (1, 1.0));
/// # Ok::<(), ann_core::Error>(())
/// ```
pub struct Flat<S: PageStore = MemStore> {
    rows: Rows<S>,
}

/// Makes a [`Flat`] index.
#[derive(Clone, Debug)]
pub struct FlatBuilder {
    dim: usize,
    metric: Metric,
    dtype: DType,
    isa: Option<Isa>,
}

impl FlatBuilder {
    /// The metric; squared L2 unless it is set.
    pub fn metric(mut self, metric: Metric) -> FlatBuilder {
        self.metric = metric;
        self
    }

    /// The element type; `f32` unless it is set.
    pub fn dtype(mut self, dtype: DType) -> FlatBuilder {
        self.dtype = dtype;
        self
    }

    /// Forces an instruction set, for results that are equal on all machines.
    pub fn instruction_set(mut self, isa: Isa) -> FlatBuilder {
        self.isa = Some(isa);
        self
    }

    /// An empty index in memory, with a page size that suits the dimension.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a dimension that is not allowed.
    pub fn build(self) -> Result<Flat> {
        let space = self.space()?;
        self.build_in(MemStore::new(Array::page_size(space.stride()))?)
    }

    /// An empty index in a store that has no pages yet.
    ///
    /// # Errors
    /// As [`FlatBuilder::build`], and those of the store.
    pub fn build_in<S: PageStore>(self, store: S) -> Result<Flat<S>> {
        let space = self.space()?;
        Ok(Flat { rows: Rows::create(store, Kind::Flat, space, |_| ())? })
    }

    fn space(&self) -> Result<Space> {
        Space::new(self.dim, self.dtype, self.metric, self.isa)
    }
}

impl Flat {
    /// A builder for vectors of `dim` elements, from 1 to 65,536.
    pub fn builder(dim: usize) -> FlatBuilder {
        FlatBuilder { dim, metric: Metric::L2sq, dtype: DType::F32, isa: None }
    }
}

impl<S: PageStore> Flat<S> {
    /// Opens the index in a store: one page is read.
    ///
    /// # Errors
    /// [`Error::NotAnIndex`], [`Error::Kind`], [`Error::Version`], [`Error::Corrupt`].
    pub fn open_in(store: S) -> Result<Flat<S>> {
        Flat::from_rows(Rows::open(store, None)?)
    }

    pub(crate) fn from_rows(rows: Rows<S>) -> Result<Flat<S>> {
        match rows.meta.kind() {
            Kind::Flat => Ok(Flat { rows }),
            kind => Err(Error::Kind { got: kind.to_string(), want: Kind::Flat.to_string() }),
        }
    }

    /// The store that the index lives in.
    pub fn store(&self) -> &S {
        &self.rows.store
    }

    fn add_one(&mut self, row: &[u8], key: u64, replaces: Option<u32>) -> Result<()> {
        let id = self.rows.free_ids(1)?[0];
        self.rows.reserve(NODES, u64::from(id) + 1)?;
        self.rows.put_row(id, row)?;
        let node = Node::new(key, State::Live, 0, 0);
        self.rows.birth(Change::default(), id, node, replaces, |_| true)?;
        Ok(())
    }

    fn add_all<T: Element>(
        &mut self,
        vectors: ArrayView2<'_, T>,
        keys: &[u64],
        replace: bool,
        mut options: AddOptions<'_>,
    ) -> Result<()> {
        if !replace {
            let slots = u64::from(self.rows.slots()) + keys.len() as u64;
            self.rows.reserve(crate::rows::VECTORS, slots)?;
            self.rows.reserve(NODES, slots)?;
        }
        let mut row = Vec::new();
        for (done, (vector, &key)) in vectors.rows().into_iter().zip(keys).enumerate() {
            if done % 1024 == 0
                && let Some(progress) = &mut options.progress
                && !progress(done, keys.len())
            {
                return Err(Error::Cancelled { added: done });
            }
            row.clear();
            self.rows.space.encode(&slice(vector), &mut row);
            let old = if replace { self.rows.id_of(key)? } else { None };
            self.add_one(&row, key, old)?;
        }
        if let Some(progress) = &mut options.progress {
            progress(keys.len(), keys.len());
        }
        Ok(())
    }

    /// The nearest of the slots that a plan leaves, as (distance, slot).
    fn scan(
        &self,
        probe: &Probe,
        plan: &Plan<'_>,
        k: usize,
        radius: f32,
    ) -> Result<(Vec<(f32, u32)>, Cost)> {
        let all = plan.matcher.is_all() && self.rows.len() == self.rows.slots() as usize;
        let ids: Vec<u32> = match &plan.exact {
            Some(ids) => ids.clone(),
            None if all => (0..self.rows.slots()).collect(),
            None => self.rows.visible(|_| true)?,
        };
        let cost = Cost { hops: 0, distances: ids.len() as u64 };
        Ok((nearest(&self.rows, probe, ids.into_iter(), k, radius)?, cost))
    }

    fn hits(&self, found: Vec<(f32, u32)>) -> Result<Vec<Hit>> {
        let hit = |(distance, id)| Ok(Hit { key: self.rows.node(id)?.key.get(), distance });
        found.into_iter().map(hit).collect()
    }

    fn probe<T: Element>(&self, query: &[T], row: usize) -> Result<Probe> {
        let mut probe = Probe::default();
        self.rows.space.query(query, row, &mut Vec::new(), &mut probe)?;
        Ok(probe)
    }

    fn plan<'a>(&self, filter: Filter<'a>) -> Result<Plan<'a>> {
        self.rows.plan(filter, usize::MAX)
    }
}

impl<S: PageStore> Index for Flat<S> {
    fn kind(&self) -> Kind {
        Kind::Flat
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
        threads::pool(options.threads)?.install(|| check_rows(&self.rows.space, &vectors))?;
        let keys = self.rows.new_keys(vectors.nrows(), keys)?;
        self.add_all(vectors, &keys, false, options)?;
        Ok(keys)
    }

    fn update<T: Element>(
        &mut self,
        vectors: ArrayView2<'_, T>,
        keys: &[u64],
        options: AddOptions<'_>,
    ) -> Result<()> {
        threads::pool(options.threads)?.install(|| check_rows(&self.rows.space, &vectors))?;
        let keys = self.rows.known_keys(vectors.nrows(), keys)?;
        self.add_all(vectors, &keys, true, options)
    }

    fn remove(&mut self, keys: &[u64]) -> Result<usize> {
        let mut removed = 0;
        for &key in keys {
            if let Some(id) = self.rows.id_of(key)? {
                self.rows.free(id)?;
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
        options.check()?;
        rerank::check(&self.rows, options)?;
        let probe = self.probe(query, 0)?;
        let (found, cost) =
            self.scan(&probe, &self.plan(options.filter)?, options.k, f32::INFINITY)?;
        Ok((self.hits(found)?, cost))
    }

    fn search_batch<T: Element>(
        &self,
        queries: ArrayView2<'_, T>,
        options: &Search<'_>,
        threads: usize,
    ) -> Result<Vec<Vec<Hit>>> {
        options.check()?;
        rerank::check(&self.rows, options)?;
        let plan = self.plan(options.filter)?;
        threads::pool(threads)?.install(|| {
            check_rows(&self.rows.space, &queries)?;
            (0..queries.nrows())
                .into_par_iter()
                .map(|row| {
                    let probe = self.probe(&slice(queries.row(row)), row)?;
                    self.hits(self.scan(&probe, &plan, options.k, f32::INFINITY)?.0)
                })
                .collect()
        })
    }

    fn range_search<T: Element>(
        &self,
        query: &[T],
        radius: f32,
        options: &Search<'_>,
    ) -> Result<Vec<Hit>> {
        options.check()?;
        rerank::check(&self.rows, options)?;
        crate::index::check_radius(radius)?;
        let probe = self.probe(query, 0)?;
        let plan = self.plan(options.filter)?;
        self.hits(self.scan(&probe, &plan, usize::MAX, radius)?.0)
    }

    fn cursor<T: Element>(&self, query: &[T], ef: usize) -> Result<Cursor> {
        Search::new(1).ef(ef).check()?;
        let probe = self.probe(query, 0)?;
        let plan = Plan { matcher: Matcher::All, exact: None };
        let mut found = self.scan(&probe, &plan, usize::MAX, f32::INFINITY)?.0;
        found.reverse();
        Ok(Cursor::new(self.rows.mark(), CursorState::Flat(found)))
    }

    fn resume(&self, cursor: &mut Cursor, n: usize, filter: Filter<'_>) -> Result<Vec<Hit>> {
        self.rows.check_mark(&cursor.mark)?;
        let CursorState::Flat(rest) = &mut cursor.state else {
            return Err(Error::Changed);
        };
        let matcher = match filter {
            Filter::None => Matcher::All,
            filter => self.plan(filter)?.matcher,
        };
        let mut hits = Vec::new();
        while hits.len() < n
            && let Some((distance, id)) = rest.pop()
        {
            let key = self.rows.node(id)?.key.get();
            if matcher.accepts(id, key) {
                hits.push(Hit { key, distance });
            }
        }
        Ok(hits)
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
        for id in 0..self.rows.slots() {
            let node = self.rows.node(id)?;
            if node.is(State::Live) && node.twin.get() != NONE
                || !node.is(State::Live) && !node.is(State::Free)
            {
                return Err(self.rows.corrupt_node(id, "a flat index has no such slot".into()));
            }
        }
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<()> {
        page::save(&self.rows.store, path)
    }

    fn flush(&mut self) -> Result<()> {
        self.rows.store.flush()
    }
}
