//! The access methods: what is particular to each, and the routines that they give to Postgres. One more is one more
//! implementation of [`Method`].

use ann_core::{DType, DiskAnn, Graph, Hierarchy, Hnsw, PageStore, Result, Topology, Vamana};
use pgrx::{AllocatedByRust, PgBox, pg_sys};

use crate::column::{Column, of_opclass};
use crate::options::{self, DISKANN_LIST_SIZE, DiskAnnOptions, HNSW_EF_SEARCH, HnswOptions};
use crate::{build, cost, insert, scan, vacuum};

/// An access method.
pub trait Method: Sized + 'static {
    /// The core's kind of graph.
    type Topology: Topology;

    /// Its name in SQL.
    const NAME: &'static str;

    /// Parses its storage parameters.
    const OPTIONS: pg_sys::amoptions_function;

    /// Makes an empty index with the storage parameters of `index`.
    ///
    /// # Safety
    /// `index` is an open index of this method.
    unsafe fn create<S: PageStore>(
        store: S,
        column: &Column,
        index: pg_sys::Relation,
    ) -> Result<Graph<S, Self::Topology>>;

    /// Candidates that a search keeps.
    fn pool() -> usize;
}

/// `ann_hnsw`.
pub enum AnnHnsw {}

/// `ann_diskann`.
pub enum AnnDiskAnn {}

impl Method for AnnHnsw {
    type Topology = Hierarchy;

    const NAME: &'static str = "ann_hnsw";

    const OPTIONS: pg_sys::amoptions_function = Some(options::hnsw);

    unsafe fn create<S: PageStore>(
        store: S,
        column: &Column,
        index: pg_sys::Relation,
    ) -> Result<Hnsw<S>> {
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

    fn pool() -> usize {
        HNSW_EF_SEARCH.get() as usize
    }
}

impl Method for AnnDiskAnn {
    type Topology = Vamana;

    const NAME: &'static str = "ann_diskann";

    const OPTIONS: pg_sys::amoptions_function = Some(options::diskann);

    unsafe fn create<S: PageStore>(
        store: S,
        column: &Column,
        index: pg_sys::Relation,
    ) -> Result<DiskAnn<S>> {
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

    fn pool() -> usize {
        DISKANN_LIST_SIZE.get() as usize
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
