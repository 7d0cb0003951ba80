//! The class behind the Python classes: an index of any kind, in memory or in a file.

use std::path::PathBuf;
use std::sync::Arc;

use ann_core::{
    AnyIndex, DEFAULT_EF, DType, DiskAnn, Error, Flat, Hit, Hnsw, Index, IvfPq, IvfPqSteps,
    MAX_BEAM, MAX_DIM, MAX_EF, MemStore, Metric, PageStore, Search,
};
use ndarray::{Array1, Array2, s};
use numpy::{IntoPyArray, PyReadonlyArray1, ToPyArray};
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::cursor::{Cursor, Found};
use crate::failure::{Answer, Failure};
use crate::filter::{Asked, Chosen, Given, Measure, Prepared};
use crate::input::{self, Vectors, whole};
use crate::insert::{Rows, insert, take_steps};
use crate::search::{at_row, each};
use crate::shared::{Held, Shared};
use crate::{any, graph_of, lists_of, typed};

/// An index and what never changes about it.
#[pyclass(frozen, module = "ann._ann")]
pub struct Engine {
    shared: Arc<Shared>,
    writable: bool,
    dtype: DType,
    metric: Metric,
    #[pyo3(get)]
    kind: &'static str,
    #[pyo3(get)]
    dim: usize,
    /// Links of a vector (`m` or `degree`) and candidates while building; `None` unless it is a graph.
    #[pyo3(get)]
    links: Option<usize>,
    #[pyo3(get)]
    candidates: Option<usize>,
    /// Bits of a code and the type of stored vectors, if they are stored; `None` unless it is a graph.
    #[pyo3(get)]
    code_bits: Option<u8>,
    #[pyo3(get)]
    vectors: Option<String>,
    /// Alpha and where codes are; `None` unless it is a DiskANN index.
    #[pyo3(get)]
    alpha: Option<f32>,
    #[pyo3(get)]
    placement: Option<String>,
    /// Sub-quantizers of a code; `None` unless it is an IVF-PQ index.
    #[pyo3(get)]
    subvectors: Option<usize>,
    /// Bits a coordinate of the codes that stand in for vectors; 0 if there are none.
    #[pyo3(get)]
    row_code_bits: u8,
    /// What codes are, and whether they are of rotated vectors; `None` unless it is an IVF-PQ index.
    #[pyo3(get)]
    code: Option<String>,
    #[pyo3(get)]
    opq: bool,
}

/// k of a search, and what it is asked to do: ef, beam, probes, rerank; epsilon.
type Sizes<'py> = (Bound<'py, PyAny>, [Option<Bound<'py, PyAny>>; 4], Option<f32>);

/// Kind, links (or sub-quantizers), candidates; bits of a code, what vectors are stored as; alpha, where codes are.
type Measures = (&'static str, [Option<usize>; 2], Kept, (Option<f32>, Option<String>));

/// Bits of a code, and what vectors are stored as. Of an index to be made: what suits it if there are no bits, its own
/// element type if vectors are "auto".
type Kept = (Option<u8>, Option<String>);

impl Engine {
    fn new(held: Held, writable: bool) -> Engine {
        fn hnsw<S: PageStore>(index: &Hnsw<S>) -> Measures {
            let kept = (Some(index.code_bits()), index.vectors().map(|dtype| dtype.to_string()));
            ("hnsw", [Some(index.m()), Some(index.ef_construction())], kept, (None, None))
        }
        fn diskann<S: PageStore>(index: &DiskAnn<S>) -> Measures {
            let kept = (Some(index.code_bits()), index.vectors().map(|dtype| dtype.to_string()));
            let own = (Some(index.alpha()), Some(index.placement().to_string()));
            ("diskann", [Some(index.degree()), Some(index.build_list_size())], kept, own)
        }
        fn ivfpq<S: PageStore>(index: &IvfPq<S>) -> Measures {
            let kept = (Some(index.bits()), index.vectors().map(|dtype| dtype.to_string()));
            ("ivfpq", [Some(index.subvectors()), None], kept, (None, None))
        }
        let (kind, [links, candidates], kept, own) = match &held {
            Held::Hnsw(index) => hnsw(index),
            Held::HnswFile(index) => hnsw(index),
            Held::DiskAnn(index) => diskann(index),
            Held::DiskAnnFile(index) => diskann(index),
            Held::IvfPq(index) => ivfpq(index),
            Held::IvfPqFile(index) => ivfpq(index),
            Held::Flat(_) | Held::FlatFile(_) => ("flat", [None, None], (None, None), (None, None)),
        };
        let ((code_bits, vectors), (alpha, placement)) = (kept, own);
        let row_code_bits = match &held {
            Held::IvfPq(index) => index.code_bits(),
            Held::IvfPqFile(index) => index.code_bits(),
            _ => code_bits.filter(|_| vectors.is_none()).unwrap_or(0),
        };
        let code = match &held {
            Held::IvfPq(index) => Some((index.code(), index.opq())),
            Held::IvfPqFile(index) => Some((index.code(), index.opq())),
            _ => None,
        };
        let (code, opq) =
            (code.map(|(code, _)| code.to_string()), code.is_some_and(|(_, opq)| opq));
        any!(&held, index => Engine {
            writable,
            dtype: index.dtype(),
            metric: index.metric(),
            kind,
            dim: index.dim(),
            links: links.filter(|_| kind != "ivfpq"),
            subvectors: links.filter(|_| kind == "ivfpq"),
            candidates,
            code_bits,
            vectors,
            alpha,
            placement,
            row_code_bits,
            code,
            opq,
            shared: Arc::new(Shared::new(held)),
        })
    }

    /// Before anything else that changes the index.
    fn check_writable(&self) -> Answer<()> {
        if self.writable { Ok(()) } else { Err(Error::ReadOnly.into()) }
    }

    fn vectors<'py>(&self, array: &Bound<'py, PyAny>) -> Answer<Vectors<'py>> {
        Ok(Vectors::of(self.dtype, array)?)
    }

    fn check_dim(&self, got: usize) -> Answer<()> {
        match got == self.dim {
            true => Ok(()),
            false => Err(Error::Dimension { got, want: self.dim }.into()),
        }
    }

    /// Hits for each query, as `place` puts them into `found`.
    #[expect(clippy::too_many_arguments, reason = "what all searches have in common")]
    fn search_each<F: Send>(
        &self,
        py: Python<'_>,
        queries: &Vectors<'_>,
        search: Search<'_>,
        asked: &Asked<'_>,
        radius: Option<f32>,
        threads: usize,
        found: &mut [F],
        place: impl Fn(Vec<Hit>, &mut F) -> Answer<()> + Sync,
    ) -> Answer<()> {
        typed!(*queries, rows => {
            self.check_dim(rows.ncols())?;
            py.detach(|| {
                let len = any!(self.shared.read().index()?, index => index.len());
                let ef = search.rerank.or(search.ef).map(|ef| ef.max(search.k));
                let prepared = asked.filter.prepare(ef, len);
                if let Prepared::Keys(_) = prepared {
                    // The first list makes the index map all its keys, which takes a while.
                    any!(self.shared.read_long().index()?, index => index.contains(0))?;
                }
                let search = search.filter(prepared.filter());
                let pool = search.rerank.or(search.ef).unwrap_or(DEFAULT_EF).max(search.k);
                each(&self.shared, asked, threads, pool, found, |held, first, found| {
                    let rows = rows.slice(s![first..first + found.len(), ..]);
                    // Of one query: where a function is asked, queries come one at a time.
                    let exact = asked.exact.as_ref();
                    let exact = exact.map(|exact| move |key: u64| exact.distance(first, key));
                    let mut search = search;
                    if let Some(exact) = &exact {
                        search = search.exact(exact);
                    }
                    let all = any!(held, index => match radius {
                        None => index.search_batch(rows, &search, 1)?,
                        Some(radius) => {
                            let rows = rows.rows().into_iter().enumerate();
                            let within = rows.map(|(at, query)| {
                                let query = query.to_slice().ok_or_else(not_contiguous)?;
                                let found = index.range_search(query, radius, &search);
                                found.map_err(|error| at_row(error.into(), at).1)
                            });
                            within.collect::<Answer<Vec<_>>>()?
                        }
                    });
                    all.into_iter().zip(found).try_for_each(|(hits, found)| place(hits, found))
                })
            })
        })
    }
}

/// Has an engine's index, if `$of` knows its kind, find what reaches a recall, and keep it; evaluates to what was found.
macro_rules! tuned {
    (($engine:expr, $py:expr, $q:expr, $k:expr, $recall:expr, $threads:expr), $of:ident, $find:ident, $keep:ident) => {{
        $engine.check_writable()?;
        let (k, threads) = (whole("k", $k, 1..=u64::MAX)?, input::threads($threads)?);
        let queries = $engine.vectors($q)?;
        let _turn = $engine.shared.take_turn($py)?;
        typed!(queries, rows => $py.detach(|| {
            let find = |held: &Held| {
                $of!(held, index => Ok(index.$find(rows, k, $recall, threads)?), else other_kind())
            };
            // However long that takes, no write waits for it: nobody else has the turn.
            let tuned = find($engine.shared.read().index()?)?;
            $engine.shared.write(|held| {
                $of!(held, index => Ok(index.$keep(tuned)?), else other_kind())
            })?;
            Answer::Ok(tuned)
        }))
    }};
}

#[pymethods]
impl Engine {
    #[staticmethod]
    fn hnsw(
        dim: &Bound<'_, PyAny>,
        metric: &str,
        dtype: &str,
        m: &Bound<'_, PyAny>,
        ef_construction: &Bound<'_, PyAny>,
        kept: Kept,
        seed: &Bound<'_, PyAny>,
    ) -> Answer<Engine> {
        let mut builder = Hnsw::builder(whole("dim", dim, 1..=MAX_DIM as u64)?)
            .metric(metric.parse()?)
            .dtype(dtype.parse()?)
            .m(whole("m", m, 2..=256)?)
            .ef_construction(whole("ef_construction", ef_construction, 1..=100_000)?)
            .seed(whole("seed", seed, 0..=u64::MAX)? as u64);
        if let Some(bits) = kept.0 {
            builder = builder.code_bits(bits);
        }
        match kept.1.as_deref() {
            Some("auto") => {}
            vectors => builder = builder.vectors(vectors.map(str::parse).transpose()?),
        }
        Ok(Engine::new(Held::Hnsw(builder.build()?), true))
    }

    #[staticmethod]
    fn diskann(
        dim: &Bound<'_, PyAny>,
        metric: &str,
        dtype: &str,
        measures: (Bound<'_, PyAny>, Bound<'_, PyAny>, f32),
        kept: Kept,
        limits: (Option<String>, Option<Bound<'_, PyAny>>),
        seed: &Bound<'_, PyAny>,
    ) -> Answer<Engine> {
        let ((degree, build_list_size, alpha), (code_bits, vectors)) = (measures, kept);
        let (placement, memory_limit) = limits;
        let mut builder = DiskAnn::builder(whole("dim", dim, 1..=MAX_DIM as u64)?)
            .metric(metric.parse()?)
            .dtype(dtype.parse()?)
            .degree(whole("degree", &degree, 1..=u64::MAX)?)
            .build_list_size(whole("build_list_size", &build_list_size, 1..=100_000)?)
            .alpha(alpha)
            .seed(whole("seed", seed, 0..=u64::MAX)? as u64);
        if let Some(bits) = code_bits {
            builder = builder.code_bits(bits);
        }
        match vectors.as_deref() {
            Some("auto") => {}
            vectors => builder = builder.vectors(vectors.map(str::parse).transpose()?),
        }
        if let Some(placement) = placement {
            builder = builder.placement(placement.parse()?);
        }
        if let Some(bytes) = memory_limit {
            builder = builder.memory_limit(whole("memory_limit", &bytes, 1..=u64::MAX)? as u64);
        }
        Ok(Engine::new(Held::DiskAnn(builder.build()?), true))
    }

    /// Bytes of pages and of memory beside them that adding so many vectors takes; only of a graph.
    fn needs(
        &self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        threads: &Bound<'_, PyAny>,
    ) -> Answer<(u64, u64)> {
        let rows = whole("rows", rows, 0..=1 << 30)?;
        let threads = match input::threads(threads)? {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        py.detach(|| {
            let reading = self.shared.read();
            graph_of!(reading.index()?, index => {
                let needs = index.needs(rows, threads);
                Ok((needs.pages, needs.memory))
            }, else other_kind())
        })
    }

    #[staticmethod]
    fn ivfpq(
        dim: &Bound<'_, PyAny>,
        metric: &str,
        dtype: &str,
        measures: [Option<Bound<'_, PyAny>>; 3],
        kept: (Option<String>, Option<u8>, bool, bool, bool),
        code: &str,
        seed: &Bound<'_, PyAny>,
    ) -> Answer<Engine> {
        let [lists, subvectors, bits] = measures;
        let (vectors, code_bits, anisotropic, opq, spill) = kept;
        let mut builder = IvfPq::builder(whole("dim", dim, 1..=MAX_DIM as u64)?)
            .metric(metric.parse()?)
            .dtype(dtype.parse()?)
            .code(code.parse()?)
            .anisotropic(anisotropic)
            .opq(opq)
            .spill(spill)
            .seed(whole("seed", seed, 0..=u64::MAX)? as u64);
        if let Some(bits) = bits {
            builder = builder.bits(whole("bits", &bits, 1..=255)? as u8);
        }
        if let Some(lists) = lists {
            builder = builder.lists(whole("lists", &lists, 1..=u64::MAX)?);
        }
        if let Some(subvectors) = subvectors {
            builder = builder.subvectors(whole("subvectors", &subvectors, 1..=u64::MAX)?);
        }
        match vectors.as_deref() {
            Some("auto") => {}
            vectors => builder = builder.vectors(vectors.map(str::parse).transpose()?),
        }
        if let Some(bits) = code_bits {
            builder = builder.code_bits(bits);
        }
        Ok(Engine::new(Held::IvfPq(builder.build()?), true))
    }

    #[staticmethod]
    fn flat(dim: &Bound<'_, PyAny>, metric: &str, dtype: &str) -> Answer<Engine> {
        let index = Flat::builder(whole("dim", dim, 1..=MAX_DIM as u64)?)
            .metric(metric.parse()?)
            .dtype(dtype.parse()?)
            .build()?;
        Ok(Engine::new(Held::Flat(index), true))
    }

    /// Maps a file.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf, writable: bool) -> Answer<Engine> {
        py.detach(|| {
            let index = match writable {
                true => ann_core::open_writable(&path),
                false => ann_core::open(&path),
            };
            match index {
                Ok(index) => {
                    let held = Held::in_file(index).ok_or_else(unknown_kind)?;
                    Ok(Engine::new(held, writable))
                }
                Err(error) if path.is_dir() => Err(Failure::Directory(error.to_string())),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Reads a file into memory.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> Answer<Engine> {
        py.detach(|| {
            let index = AnyIndex::open_in(MemStore::load(&path)?)?;
            Ok(Engine::new(Held::in_memory(index).ok_or_else(unknown_kind)?, true))
        })
    }

    #[getter]
    fn metric(&self) -> String {
        self.metric.to_string()
    }

    #[getter]
    fn dtype(&self) -> String {
        self.dtype.to_string()
    }

    fn __len__(&self, py: Python<'_>) -> Answer<usize> {
        py.detach(|| Ok(any!(self.shared.read().index()?, index => index.len())))
    }

    /// Adds rows, or with `replace` gives those ids new vectors. Returns the ids.
    fn insert<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        ids: Option<PyReadonlyArray1<'py, i64>>,
        replace: bool,
        threads: &Bound<'py, PyAny>,
        report: Option<Bound<'py, PyAny>>,
    ) -> Answer<Bound<'py, PyAny>> {
        self.check_writable()?;
        let threads = input::threads(threads)?;
        let vectors = self.vectors(x)?;
        let keys = ids.map(|ids| ids.as_array().iter().map(|&id| id as u64).collect());
        let _turn = self.shared.take_turn(py)?;
        let keys = typed!(vectors, vectors => {
            let rows = Rows { vectors, keys, replace, threads };
            insert(py, &self.shared, rows, report.as_ref())?
        });
        let ids: Vec<i64> = keys.into_iter().map(key_to_id).collect::<Answer<_>>()?;
        Ok(ids.into_pyarray(py).into_any())
    }

    /// Learns lists and codes from rows; only of an IVF-PQ index.
    fn train(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        threads: &Bound<'_, PyAny>,
    ) -> Answer<()> {
        self.check_writable()?;
        let threads = input::threads(threads)?;
        let vectors = self.vectors(x)?;
        let _turn = self.shared.take_turn(py)?;
        typed!(vectors, rows => take_steps(py, &self.shared, |held| {
            lists_of!(held, index => Ok(IvfPqSteps::train(index, rows, threads)?), else other_kind())
        }))
    }

    /// Probes, rerank and recall, chosen for a recall; only of an IVF-PQ index.
    fn tune(
        &self,
        py: Python<'_>,
        q: &Bound<'_, PyAny>,
        k: &Bound<'_, PyAny>,
        recall: f64,
        threads: &Bound<'_, PyAny>,
    ) -> Answer<(usize, usize, f64)> {
        let tuned = tuned!((self, py, q, k, recall, threads), lists_of, find_effort, keep_effort)?;
        Ok((tuned.probes, tuned.rerank, tuned.recall))
    }

    /// The size of a search's pool, recall and epsilon, chosen for a recall; only of a graph.
    fn tune_ef(
        &self,
        py: Python<'_>,
        q: &Bound<'_, PyAny>,
        k: &Bound<'_, PyAny>,
        recall: f64,
        threads: &Bound<'_, PyAny>,
    ) -> Answer<(usize, f64, Option<f32>)> {
        let tuned = tuned!((self, py, q, k, recall, threads), graph_of, find_ef, keep_ef)?;
        Ok((tuned.ef, tuned.recall, tuned.epsilon))
    }

    /// Joins sparse blocks; only of an IVF-PQ index.
    fn compact(&self, py: Python<'_>) -> Answer<()> {
        self.check_writable()?;
        let _turn = self.shared.take_turn(py)?;
        take_steps(
            py,
            &self.shared,
            |held| lists_of!(held, index => Ok(IvfPqSteps::compact(index)?), else other_kind()),
        )
    }

    /// Splits long lists and gives away tiny ones; only of an IVF-PQ index.
    fn rebalance(&self, py: Python<'_>, threads: &Bound<'_, PyAny>) -> Answer<()> {
        self.check_writable()?;
        let threads = input::threads(threads)?;
        let _turn = self.shared.take_turn(py)?;
        take_steps(
            py,
            &self.shared,
            |held| lists_of!(held, index => Ok(IvfPqSteps::rebalance(index, threads)?), else other_kind()),
        )
    }

    /// Lists in use, and the defaults of searches; only of an IVF-PQ index.
    fn measures(&self, py: Python<'_>) -> Answer<(usize, usize, usize)> {
        py.detach(|| {
            let reading = self.shared.read();
            lists_of!(reading.index()?, index => {
                let (probes, rerank) = index.defaults();
                Ok((index.lists()?, probes, rerank))
            }, else other_kind())
        })
    }

    fn remove(&self, py: Python<'_>, ids: PyReadonlyArray1<'_, i64>) -> Answer<usize> {
        self.check_writable()?;
        let keys: Vec<u64> = ids.as_array().iter().map(|&id| id as u64).collect();
        let _turn = self.shared.take_turn(py)?;
        py.detach(|| self.shared.write(|held| Ok(any!(held, index => index.remove(&keys))?)))
    }

    /// Ids and distances: k of each for one query, as many rows of k as there are queries for several.
    fn search<'py>(
        &self,
        py: Python<'py>,
        q: &Bound<'py, PyAny>,
        sizes: Sizes<'py>,
        asked: (Option<Given<'py>>, Option<Bound<'py, PyAny>>),
        threads: &Bound<'py, PyAny>,
    ) -> Answer<Bound<'py, PyTuple>> {
        let ((k, [ef, beam, probes, rerank], epsilon), (filter, exact)) = (sizes, asked);
        let k = whole("k", &k, 1..=u64::MAX)?;
        let mut search = options(k, ef.as_ref())?;
        if let Some(beam) = beam {
            search = search.beam(whole("beam", &beam, 1..=MAX_BEAM as u64)?);
        }
        if let Some(probes) = probes {
            search = search.probes(whole("probes", &probes, 1..=MAX_EF as u64)?);
        }
        if let Some(rerank) = rerank {
            search = search.rerank(whole("rerank", &rerank, 1..=MAX_EF as u64)?);
        }
        if let Some(epsilon) = epsilon {
            search = search.epsilon(epsilon);
        }
        let threads = input::threads(threads)?;
        let queries = self.vectors(q)?;
        let exact = exact.map(|exact| Measure::new(&exact, q, queries.is_one()));
        let asked = Asked { filter: Chosen::new(filter.as_ref())?, exact };
        let count = typed!(queries, rows => rows.nrows());
        let mut ids = filled(-1i64, count, k)?;
        let mut distances = filled(f32::INFINITY, count, k)?;
        let mut found: Vec<_> = ids.chunks_mut(k).zip(distances.chunks_mut(k)).collect();
        let place = |hits: Vec<Hit>, (ids, distances): &mut (&mut [i64], &mut [f32])| {
            for ((hit, id), distance) in hits.iter().zip(ids.iter_mut()).zip(distances.iter_mut()) {
                (*id, *distance) = (key_to_id(hit.key)?, hit.distance);
            }
            Ok(())
        };
        self.search_each(py, &queries, search, &asked, None, threads, &mut found, place)?;
        if queries.is_one() {
            let (ids, distances) = (Array1::from(ids), Array1::from(distances));
            return Ok((ids.into_pyarray(py), distances.into_pyarray(py)).into_pyobject(py)?);
        }
        let shaped = |_| Failure::from(PyOverflowError::new_err("too many results"));
        let ids = Array2::from_shape_vec((count, k), ids).map_err(shaped)?;
        let distances = Array2::from_shape_vec((count, k), distances).map_err(shaped)?;
        Ok((ids.into_pyarray(py), distances.into_pyarray(py)).into_pyobject(py)?)
    }

    /// A pair of ids and distances for each query.
    fn range_search<'py>(
        &self,
        py: Python<'py>,
        q: &Bound<'py, PyAny>,
        radius: f32,
        ef: Option<Bound<'py, PyAny>>,
        filter: Option<Given<'py>>,
    ) -> Answer<Vec<Found<'py>>> {
        let search = options(1, ef.as_ref())?;
        let queries = self.vectors(q)?;
        let asked = Asked { filter: Chosen::new(filter.as_ref())?, exact: None };
        let mut found = vec![(Vec::new(), Vec::new()); typed!(queries, rows => rows.nrows())];
        let place = |hits: Vec<Hit>, (ids, distances): &mut (Vec<i64>, Vec<f32>)| {
            *ids = hits.iter().map(|hit| key_to_id(hit.key)).collect::<Answer<_>>()?;
            *distances = hits.iter().map(|hit| hit.distance).collect();
            Ok(())
        };
        self.search_each(py, &queries, search, &asked, Some(radius), 1, &mut found, place)?;
        let arrays = found.into_iter();
        Ok(arrays
            .map(|(ids, distances)| (ids.into_pyarray(py), distances.into_pyarray(py)))
            .collect())
    }

    fn cursor(
        &self,
        py: Python<'_>,
        q: &Bound<'_, PyAny>,
        ef: &Bound<'_, PyAny>,
    ) -> Answer<Cursor> {
        let ef = input::ef(ef)?;
        let query = self.vectors(q)?;
        typed!(query, rows => {
            self.check_dim(rows.ncols())?;
            let query = rows.to_slice().ok_or_else(not_contiguous)?;
            let cursor = py.detach(|| -> Answer<_> {
                Ok(any!(self.shared.read().index()?, index => index.cursor(query, ef))?)
            })?;
            Ok(Cursor::new(Arc::clone(&self.shared), cursor))
        })
    }

    /// The vector of an id, or `None`.
    fn get<'py>(&self, py: Python<'py>, id: u64) -> Answer<Option<Bound<'py, PyAny>>> {
        macro_rules! get {
            ($type:ty) => {{
                let vector = py.detach(|| -> Answer<Option<Vec<$type>>> {
                    Ok(any!(self.shared.read_long().index()?, index => index.get(id))?)
                })?;
                vector.map(|vector| vector.to_pyarray(py).into_any())
            }};
        }
        Ok(match self.dtype {
            DType::F16 => get!(half::f16),
            DType::I8 => get!(i8),
            DType::U8 => get!(u8),
            _ => get!(f32),
        })
    }

    fn contains(&self, py: Python<'_>, id: u64) -> Answer<bool> {
        py.detach(|| Ok(any!(self.shared.read_long().index()?, index => index.contains(id))?))
    }

    fn stats<'py>(&self, py: Python<'py>) -> Answer<Bound<'py, PyDict>> {
        let stats = py.detach(|| -> Answer<_> {
            Ok(any!(self.shared.read_long().index()?, index => index.stats())?)
        })?;
        let parts = PyDict::new(py);
        for (name, bytes) in ["vectors", "nodes", "links", "upper_links", "codes"]
            .into_iter()
            .zip(stats.bytes_by_part)
        {
            parts.set_item(name, bytes)?;
        }
        let dict = PyDict::new(py);
        dict.set_item("kind", self.kind)?;
        dict.set_item("len", stats.len)?;
        dict.set_item("tombstones", stats.tombstones)?;
        dict.set_item("slots", stats.slots)?;
        dict.set_item("twins", stats.twins)?;
        dict.set_item("links", stats.links[0])?;
        dict.set_item("upper_links", stats.links[1])?;
        dict.set_item("levels", stats.levels)?;
        dict.set_item("vectors", stats.vectors.map(|dtype| dtype.to_string()))?;
        dict.set_item("code_bits", stats.code_bits)?;
        dict.set_item("row_code_bits", stats.row_code_bits)?;
        dict.set_item("codes_in_use", stats.codes_in_use)?;
        dict.set_item("layout", stats.layout.to_string())?;
        dict.set_item("page_size", stats.page_size)?;
        dict.set_item("bytes", stats.bytes)?;
        dict.set_item("bytes_by_part", parts)?;
        dict.set_item("key_map_bytes", stats.key_map_bytes)?;
        let tuned = PyDict::new(py);
        for (name, value) in stats.tuned {
            match name {
                "epsilon" => tuned.set_item(name, value)?,
                _ => tuned.set_item(name, value as usize)?,
            }
        }
        dict.set_item("tuned", tuned)?;
        dict.set_item("instruction_set", stats.instruction_set)?;
        Ok(dict)
    }

    fn verify(&self, py: Python<'_>) -> Answer<()> {
        py.detach(|| {
            let reading = self.shared.read_long();
            let index = reading.index()?;
            any!(index, index => index.verify())?;
            match index {
                Held::HnswFile(index) => Ok(index.store().verify_pages()?),
                Held::DiskAnnFile(index) => Ok(index.store().verify_pages()?),
                Held::IvfPqFile(index) => Ok(index.store().verify_pages()?),
                Held::FlatFile(index) => Ok(index.store().verify_pages()?),
                _ => Ok(()),
            }
        })
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> Answer<()> {
        py.detach(|| Ok(any!(self.shared.read_long().index()?, index => index.save(&path))?))
    }

    fn flush(&self, py: Python<'_>) -> Answer<()> {
        let _turn = self.shared.take_turn(py)?;
        py.detach(|| self.shared.write(|held| Ok(any!(held, index => index.flush())?)))
    }

    fn close(&self, py: Python<'_>) -> Answer<()> {
        let _turn = self.shared.take_turn(py)?;
        py.detach(|| self.shared.close(|held| Ok(any!(held, index => index.flush())?)))
    }
}

/// The id that Python has for a key. Rust can give keys that Python cannot.
pub fn key_to_id(key: u64) -> Answer<i64> {
    i64::try_from(key).map_err(|_| {
        PyOverflowError::new_err(format!("id {key} does not fit int64: it was given in Rust"))
            .into()
    })
}

fn options(k: usize, ef: Option<&Bound<'_, PyAny>>) -> Answer<Search<'static>> {
    let search = Search::new(k);
    Ok(match ef {
        Some(ef) => search.ef(input::ef(ef)?),
        None => search,
    })
}

/// `count * k` times the same, or an error where there is no memory for so many.
fn filled<T: Copy>(value: T, count: usize, k: usize) -> Answer<Vec<T>> {
    let bytes = (count as u64).saturating_mul(k as u64).saturating_mul(size_of::<T>() as u64);
    let mut all = Vec::new();
    all.try_reserve_exact(count.saturating_mul(k))
        .map_err(|_| Error::OutOfMemory { what: "the results", bytes })?;
    all.resize(count * k, value);
    Ok(all)
}

fn not_contiguous() -> Failure {
    let (value, allowed) = ("not contiguous".into(), "a contiguous array".into());
    Error::Parameter { name: "q", value, allowed }.into()
}

fn other_kind() -> Failure {
    unknown_kind().into()
}

fn unknown_kind() -> Error {
    Error::NotAnIndex { what: "the file holds an index of a kind that this package lacks".into() }
}
