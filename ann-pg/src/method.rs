//! The access methods: what is particular to each, and the routines that they give to Postgres. One more is one more
//! implementation of [`Method`].

use ann_core::{
    Cursor, DType, DiskAnn, Element, Graph, Hnsw, Index, IvfCode, IvfPq, MemStore, Result, Search,
    SharedIndex, Topology,
};
use pgrx::{AllocatedByRust, PgBox, pg_sys};

use crate::column::{Column, of_opclass};
use crate::failure::OrReport;
use crate::handle::{ENTRIES_LOCK, UPDATE_LOCK};
use crate::load::Loaded;
use crate::options::{self, DISKANN_LIST_SIZE, DiskAnnOptions, HNSW_EF_SEARCH, HnswOptions};
use crate::options::{IVFPQ_PROBES, IvfPqOptions, RERANK};
use crate::store::PgStore;
use crate::{build, cost, insert, scan, vacuum};

/// A sweep of a graph is due once there is a tombstone for so many vectors.
const SHARE: usize = 20;
/// Nodes that a search of a graph expands for each candidate that it keeps, about.
const EXPANDED: f64 = 1.5;
/// Entries of a block of codes.
const BLOCK: f64 = 32.0;
/// With more vectors, lists are left to a vacuum to learn: whoever inserts would wait for too long.
const TRAINED: usize = 20_000;
/// Dimensions times bits up to which codes have a piece for each two dimensions, so that a block fits a page.
const FINE: usize = 4 * 960;
/// Candidates that a search of lists keeps at least, or one a list; so many are measured, about.
const KEPT: usize = 160;
const MEASURED: f64 = 80.0;

/// An access method.
pub trait Method: Sized + 'static {
    /// The core's index, in memory.
    type Memory: Loaded;

    /// The same on a relation's pages, beside those of other backends.
    type Beside: SharedIndex<Store = PgStore>;

    /// Its name in SQL.
    const NAME: &'static str;

    /// Parses its storage parameters.
    const OPTIONS: pg_sys::amoptions_function;

    /// Makes an empty index with the storage parameters of `index`.
    ///
    /// # Safety
    /// `index` is an open index of this method.
    unsafe fn create(
        store: MemStore,
        column: &Column,
        index: pg_sys::Relation,
    ) -> Result<Self::Memory>;

    /// Opens an index.
    fn open(store: PgStore) -> Result<Self::Beside>;

    /// Begins a search, with the effort that the settings ask for.
    fn cursor<T: Element>(index: &Self::Beside, query: &[T]) -> Result<Cursor>;

    /// Records that a search reads in an index of so many rows, each on a page of its own.
    fn records(rows: f64) -> f64;

    /// Its lists; a graph has none, nor has an index that is not trained.
    fn lists(_index: &Self::Beside) -> Result<usize> {
        Ok(0)
    }

    /// Whether a vacuum is to sweep an index of so many vectors and tombstones. Graphs wait until that is worth it.
    fn sweep_is_due(live: usize, dead: usize) -> bool {
        dead > 0 && dead * SHARE >= live + dead
    }

    /// Does what insertions have made due.
    ///
    /// # Safety
    /// `index` is the open index that the handle is of, of whose pages we have none locked.
    unsafe fn tend(index: pg_sys::Relation, handle: &mut Self::Beside);
}

/// `ann_hnsw`.
pub enum AnnHnsw {}

/// `ann_diskann`.
pub enum AnnDiskAnn {}

/// `ann_ivfpq`.
pub enum AnnIvfPq {}

impl Method for AnnHnsw {
    type Memory = Hnsw;

    type Beside = Hnsw<PgStore>;

    const NAME: &'static str = "ann_hnsw";

    const OPTIONS: pg_sys::amoptions_function = Some(options::hnsw);

    unsafe fn create(store: MemStore, column: &Column, index: pg_sys::Relation) -> Result<Hnsw> {
        // SAFETY: the caller's.
        let options: HnswOptions = unsafe { options::of(index) };
        let builder = Hnsw::builder(column.dim)
            .metric(column.metric)
            .dtype(column.dtype)
            .m(options.m as usize)
            .ef_construction(options.ef_construction as usize)
            .vectors(options::vectors(options.vectors, column.dtype));
        match u8::try_from(options.code_bits) {
            Ok(bits) => builder.code_bits(bits).build_in(store),
            Err(_) => builder.build_in(store),
        }
    }

    fn open(store: PgStore) -> Result<Self::Beside> {
        Graph::open_in(store)
    }

    fn cursor<T: Element>(index: &Self::Beside, query: &[T]) -> Result<Cursor> {
        index.cursor(query, HNSW_EF_SEARCH.get() as usize)
    }

    fn records(_rows: f64) -> f64 {
        f64::from(HNSW_EF_SEARCH.get()) * EXPANDED
    }

    unsafe fn tend(index: pg_sys::Relation, handle: &mut Self::Beside) {
        // SAFETY: the caller's.
        unsafe { renew_entries(index, handle) };
    }
}

impl Method for AnnDiskAnn {
    type Memory = DiskAnn;

    type Beside = DiskAnn<PgStore>;

    const NAME: &'static str = "ann_diskann";

    const OPTIONS: pg_sys::amoptions_function = Some(options::diskann);

    unsafe fn create(store: MemStore, column: &Column, index: pg_sys::Relation) -> Result<DiskAnn> {
        // SAFETY: the caller's.
        let options: DiskAnnOptions = unsafe { options::of(index) };
        let builder = DiskAnn::builder(column.dim)
            .metric(column.metric)
            .dtype(column.dtype)
            .degree(options.degree as usize)
            .build_list_size(options.build_list_size as usize)
            .vectors(options::vectors(options.vectors, column.dtype));
        match u8::try_from(options.code_bits) {
            Ok(bits) => builder.code_bits(bits).build_in(store),
            Err(_) => builder.build_in(store),
        }
    }

    fn open(store: PgStore) -> Result<Self::Beside> {
        Graph::open_in(store)
    }

    fn cursor<T: Element>(index: &Self::Beside, query: &[T]) -> Result<Cursor> {
        index.cursor(query, DISKANN_LIST_SIZE.get() as usize)
    }

    fn records(_rows: f64) -> f64 {
        f64::from(DISKANN_LIST_SIZE.get()) * EXPANDED
    }

    unsafe fn tend(index: pg_sys::Relation, handle: &mut Self::Beside) {
        // SAFETY: the caller's.
        unsafe { renew_entries(index, handle) };
    }
}

impl Method for AnnIvfPq {
    type Memory = IvfPq;

    type Beside = IvfPq<PgStore>;

    const NAME: &'static str = "ann_ivfpq";

    const OPTIONS: pg_sys::amoptions_function = Some(options::ivfpq);

    unsafe fn create(store: MemStore, column: &Column, index: pg_sys::Relation) -> Result<IvfPq> {
        // SAFETY: the caller's.
        let options: IvfPqOptions = unsafe { options::of(index) };
        let mut builder = IvfPq::builder(column.dim)
            .metric(column.metric)
            .dtype(column.dtype)
            .code(options.code())
            .opq(options.opq)
            .train_at(options.train_at as usize)
            .vectors(options::vectors(options.vectors, column.dtype));
        if options.code() == IvfCode::Pq {
            builder = builder.bits(options.bits as u8);
        }
        if let Ok(bits) = u8::try_from(options.code_bits) {
            builder = builder.code_bits(bits);
        }
        if options.lists > 0 {
            builder = builder.lists(options.lists as usize);
        }
        // A vector costs a page, a longer code next to nothing: so codes are to tell more than in memory.
        match options.subvectors {
            _ if options.code() != IvfCode::Pq => {}
            0 if column.dim * options.bits as usize <= FINE => {
                builder = builder.subvectors(column.dim.div_ceil(2))
            }
            0 => {}
            subvectors => builder = builder.subvectors(subvectors as usize),
        }
        if options.sample > 0 {
            builder = builder.sample(options.sample as usize);
        }
        builder.build_in(store)
    }

    fn open(store: PgStore) -> Result<IvfPq<PgStore>> {
        IvfPq::open_in(store)
    }

    fn cursor<T: Element>(index: &IvfPq<PgStore>, query: &[T]) -> Result<Cursor> {
        let mut search = Search::new(1);
        let effort = |value: i32| usize::try_from(value).ok().filter(|&value| value > 0);
        search.probes = effort(IVFPQ_PROBES.get());
        let kept = KEPT.max(search.probes.unwrap_or(0));
        search.rerank = Some(effort(RERANK.get()).unwrap_or(kept));
        index.cursor_with(query, &search)
    }

    /// As the core chooses lists and probes: twice the root of the rows, and a sixteenth of them.
    fn records(rows: f64) -> f64 {
        let lists = (2.0 * rows.sqrt()).min(rows / BLOCK).max(1.0);
        let probes = match IVFPQ_PROBES.get() {
            0 => (lists / 16.0).max(8.0),
            probes => f64::from(probes),
        };
        let measured = if RERANK.get() > 0 { f64::from(RERANK.get()) } else { MEASURED };
        probes.min(lists) * (1.0 + rows / lists / BLOCK) + measured
    }

    fn lists(index: &IvfPq<PgStore>) -> Result<usize> {
        index.lists()
    }

    /// Always: lists may be out of shape, or too few.
    fn sweep_is_due(_live: usize, _dead: usize) -> bool {
        true
    }

    unsafe fn tend(index: pg_sys::Relation, handle: &mut IvfPq<PgStore>) {
        let alone = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
        let due = |handle: &IvfPq<PgStore>| handle.needs_training() && handle.len() <= TRAINED;
        // SAFETY: the caller's. Who does not get the lock leaves it to the one who has it.
        unsafe {
            if due(handle) && pg_sys::ConditionalLockPage(index, ENTRIES_LOCK, alone) {
                handle.refresh().or_report();
                if due(handle) {
                    vacuum::sweep(index, handle);
                }
                pg_sys::UnlockPage(index, ENTRIES_LOCK, alone);
            }
        }
    }
}

/// Chooses new entry points if a graph has outgrown those that it has.
///
/// # Safety
/// As [`Method::tend`].
unsafe fn renew_entries<K: Topology>(index: pg_sys::Relation, graph: &mut Graph<PgStore, K>) {
    let (share, alone) =
        (pg_sys::ShareLock as pg_sys::LOCKMODE, pg_sys::ExclusiveLock as pg_sys::LOCKMODE);
    // SAFETY: the caller's. An ERROR gives locks back by itself.
    unsafe {
        if graph.needs_entries() && pg_sys::ConditionalLockPage(index, ENTRIES_LOCK, alone) {
            pg_sys::LockPage(index, UPDATE_LOCK, share);
            graph.refresh().or_report();
            if graph.needs_entries() {
                graph.renew_entries().or_report();
            }
            pg_sys::UnlockPage(index, UPDATE_LOCK, share);
            pg_sys::UnlockPage(index, ENTRIES_LOCK, alone);
        }
    }
}

/// Whether an operator class is one of ours.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn validate(opclass: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in the catalogues.
    unsafe {
        let family = pg_sys::get_opclass_family(opclass);
        let input = pg_sys::get_opclass_input_type(opclass);
        matches!(of_opclass(family, input), Some((DType::F32 | DType::F16, _)))
    }
}

/// The routines of an access method.
fn routine<M: Method>() -> PgBox<pg_sys::IndexAmRoutine, AllocatedByRust> {
    // SAFETY: a node of that tag is a struct of that type, of zeros.
    let mut am =
        unsafe { PgBox::<pg_sys::IndexAmRoutine>::alloc_node(pg_sys::NodeTag::T_IndexAmRoutine) };
    am.amcanorderbyop = true;
    am.amoptionalkey = true;
    am.amusemaintenanceworkmem = false;
    am.amparallelvacuumoptions = pg_sys::VACUUM_OPTION_PARALLEL_BULKDEL as u8;
    am.ambuild = Some(build::ambuild::<M>);
    am.ambuildempty = Some(build::ambuildempty::<M>);
    am.ambuildphasename = Some(build::phase_name);
    am.aminsert = Some(insert::aminsert::<M>);
    am.ambulkdelete = Some(vacuum::ambulkdelete::<M>);
    am.amvacuumcleanup = Some(vacuum::amvacuumcleanup::<M>);
    am.amcostestimate = Some(cost::amcostestimate::<M>);
    am.amoptions = M::OPTIONS;
    am.amvalidate = Some(validate);
    am.ambeginscan = Some(scan::ambeginscan::<M>);
    am.amrescan = Some(scan::amrescan::<M>);
    am.amgettuple = Some(scan::amgettuple::<M>);
    am.amendscan = Some(scan::amendscan::<M>);
    am
}

/// Whether an index is of a method.
///
/// # Safety
/// `index` is an open index.
pub unsafe fn is_of<M: Method>(index: pg_sys::Relation) -> bool {
    // SAFETY: the caller's: an open index has the name of its method.
    unsafe {
        let name = pg_sys::get_am_name((*(*index).rd_rel).relam);
        !name.is_null() && std::ffi::CStr::from_ptr(name).to_bytes() == M::NAME.as_bytes()
    }
}

static V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };

/// The handler of `ann_hnsw`, for CREATE ACCESS METHOD.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ann_hnsw_handler(_info: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    routine::<AnnHnsw>().into_pg().into()
}

/// How to call [`ann_hnsw_handler`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_ann_hnsw_handler() -> &'static pg_sys::Pg_finfo_record {
    &V1
}

/// The handler of `ann_diskann`, for CREATE ACCESS METHOD.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ann_diskann_handler(
    _info: pg_sys::FunctionCallInfo,
) -> pg_sys::Datum {
    routine::<AnnDiskAnn>().into_pg().into()
}

/// How to call [`ann_diskann_handler`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_ann_diskann_handler() -> &'static pg_sys::Pg_finfo_record {
    &V1
}

/// The handler of `ann_ivfpq`, for CREATE ACCESS METHOD.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ann_ivfpq_handler(
    _info: pg_sys::FunctionCallInfo,
) -> pg_sys::Datum {
    routine::<AnnIvfPq>().into_pg().into()
}

/// How to call [`ann_ivfpq_handler`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_ann_ivfpq_handler() -> &'static pg_sys::Pg_finfo_record {
    &V1
}
