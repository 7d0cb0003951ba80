//! CREATE INDEX: the rows of the heap are loaded into an index in memory, on threads of this backend, and its pages
//! are copied. What memory has no room for is built in temporary files, in several goes if need be.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use ann_core::{Element, HEADER, MemStore, PageStore, SharedIndex};
use ndarray::ArrayView2;
use pgrx::PgSqlErrorCode as Code;
use pgrx::{PgMemoryContexts, PgRelation, pg_sys};

use crate::column::{Column, MAX_DIM, elements, has_direction, with_elements};
use crate::failure::{OrReport, refuse};
use crate::load::Loaded;
use crate::method::Method;
use crate::spill::{Rows, Temporary, check_limit, reserve};
use crate::store::{self, PAGE};
use crate::{handle, scan};

/// Phases of a build, as `pg_stat_progress_create_index` shows them.
const LOADING: i64 = 2;
const BUILDING: i64 = 3;
const WRITING: i64 = 4;

/// The names of the phases.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn phase_name(phase: i64) -> *mut std::ffi::c_char {
    let name = match phase {
        1 => c"initializing",
        LOADING => c"loading tuples",
        BUILDING => c"building index",
        WRITING => c"writing pages",
        _ => return std::ptr::null_mut(),
    };
    name.as_ptr().cast_mut()
}

fn progress(parameter: u32, value: i64) {
    // SAFETY: shared counters of this backend.
    unsafe { pg_sys::pgstat_progress_update_param(parameter as i32, value) };
}

/// Rows on their way from the heap into an index.
struct Load<M: Method, T> {
    column: Column,
    graph: M::Memory,
    rows: Rows<T>,
    keys: Vec<u64>,
    /// Rows with which the index still fits `maintenance_work_mem`.
    room: usize,
    /// What a row's values are detoasted in.
    context: PgMemoryContexts,
}

/// The key of a row: its place in the heap.
pub fn key_of(tid: pg_sys::ItemPointerData) -> u64 {
    let block = u64::from(tid.ip_blkid.bi_hi) << 16 | u64::from(tid.ip_blkid.bi_lo);
    block << 16 | u64::from(tid.ip_posid)
}

/// The place of a row in the heap.
pub fn tid_of(key: u64) -> pg_sys::ItemPointerData {
    pg_sys::ItemPointerData {
        ip_blkid: pg_sys::BlockIdData { bi_hi: (key >> 32) as u16, bi_lo: (key >> 16) as u16 },
        ip_posid: key as u16,
    }
}

/// `ambuild`.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ambuild<M: Method>(
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
) -> *mut pg_sys::IndexBuildResult {
    handle::forget();
    // SAFETY: Postgres calls this with an index that is being made and its heap, both open and locked.
    unsafe {
        let column = Column::of(index);
        if column.dim > MAX_DIM as usize {
            let message = format!("column cannot have more than {MAX_DIM} dimensions");
            refuse(Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED, &message);
        }
        let [heap_rows, rows] =
            with_elements!(column.dtype, T, load::<M, T>(heap, index, info, column));
        let result = pgrx::PgBox::<pg_sys::IndexBuildResult>::alloc0().into_pg();
        (*result).heap_tuples = heap_rows;
        (*result).index_tuples = rows;
        result
    }
}

/// # Safety
/// As for [`ambuild`]; the elements of the column are of type `T`.
unsafe fn load<M: Method, T: Element>(
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    column: Column,
) -> [f64; 2] {
    // SAFETY: the caller's; `state` outlives the scan that uses it.
    unsafe {
        let graph = M::create(MemStore::new(PAGE).or_report(), &column, index).or_report();
        let room = room(&graph, column.dim * size_of::<T>());
        let mut state = Load::<M, T> {
            column,
            graph,
            rows: Rows::Memory(Vec::new()),
            keys: Vec::new(),
            room,
            context: PgMemoryContexts::new("a row of an ann index"),
        };
        progress(pg_sys::PROGRESS_CREATEIDX_SUBPHASE, LOADING);
        let scan = (*(*heap).rd_tableam).index_build_range_scan;
        let state_at: *mut c_void = (&raw mut state).cast();
        let heap_rows = pg_sys::ffi::pg_guard_ffi_boundary(|| match scan {
            Some(scan) => scan(
                heap,
                index,
                info,
                true,
                false,
                true,
                0,
                pg_sys::InvalidBlockNumber,
                Some(row_of_heap::<M, T>),
                state_at,
                std::ptr::null_mut(),
            ),
            None => 0.0,
        });
        let rows = state.keys.len() as f64;
        state.build(index);
        [heap_rows, rows]
    }
}

/// Threads of a build, and bytes that it may take.
fn means() -> (usize, u64) {
    // SAFETY: settings.
    let (workers, kilobytes) =
        unsafe { (pg_sys::max_parallel_maintenance_workers, pg_sys::maintenance_work_mem) };
    (workers as usize + 1, kilobytes as u64 * 1024)
}

/// Rows of so many bytes that can be built into an index in memory.
fn room(graph: &impl Loaded, row: usize) -> usize {
    let (threads, memory) = means();
    let fits = |rows: usize| {
        let needs = graph.needs(rows, threads);
        rows as u64 * (row as u64 + 8) + needs.pages + needs.memory <= memory
    };
    let (mut fewest, mut most) = (0, 1 << 30);
    while fewest + 1 < most {
        let rows = fewest + (most - fewest) / 2;
        if fits(rows) { fewest = rows } else { most = rows }
    }
    fewest
}

/// Takes in a row of the heap.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn row_of_heap<M: Method, T: Element>(
    _index: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    values: *mut pg_sys::Datum,
    nulls: *mut bool,
    _is_alive: bool,
    state: *mut c_void,
) {
    // SAFETY: `state` is what `load` has given to the scan, and a row has a value for the only column.
    unsafe {
        let state = &mut *state.cast::<Load<M, T>>();
        if *nulls {
            return;
        }
        let mut old = state.context.set_as_current();
        let vector = elements::<T>(*values);
        state.add(key_of(*tid), vector);
        old.set_as_current();
        state.context.reset();
    }
}

impl<M: Method, T: Element> Load<M, T> {
    fn add(&mut self, key: u64, vector: &[T]) {
        if self.column.metric == ann_core::Metric::Cosine && !has_direction(vector) {
            return;
        }
        if self.keys.len() == self.room {
            pgrx::notice!(
                "{} index no longer fits maintenance_work_mem after {} rows: it is built in temporary files",
                M::NAME,
                self.room
            );
            self.rows.spill();
        }
        reserve(&mut self.keys, 1);
        self.rows.push(vector);
        self.keys.push(key);
    }

    /// Builds an index of the rows, and copies it into the relation.
    fn build(self, index: pg_sys::Relation) {
        let Load { mut graph, rows, keys, column, .. } = self;
        progress(pg_sys::PROGRESS_CREATEIDX_SUBPHASE, BUILDING);
        let (threads, memory) = means();
        let spilled = rows.spilled();
        let pages = (spilled > 0).then(|| {
            check_limit(spilled + graph.needs(keys.len(), threads).pages);
            let temporary = Temporary::new();
            let memory = memory.saturating_sub(8 * keys.len() as u64);
            graph.spill(temporary.share(), memory, keys.len()).or_report();
            temporary
        });
        if !keys.is_empty() {
            rows.consume(|values| fill(&mut graph, values, &keys, column.dim));
        }
        progress(pg_sys::PROGRESS_CREATEIDX_SUBPHASE, WRITING);
        // SAFETY: the index is being built: nobody else has it, and it has no pages.
        unsafe { copy(graph.store(), index, pg_sys::ForkNumber::MAIN_FORKNUM) };
        drop(graph);
        if let Some(pages) = pages {
            pages.close();
        }
    }
}

/// Puts all rows into an empty index, on threads of our own.
fn fill<T: Element>(graph: &mut impl Loaded, values: &[T], keys: &[u64], dim: usize) {
    let Ok(matrix) = ArrayView2::from_shape((keys.len(), dim), values) else {
        refuse(Code::ERRCODE_INTERNAL_ERROR, "rows of an index have different dimensions");
    };
    let (threads, _) = means();
    let mut steps = without_signals(|| graph.begin(matrix, keys, threads)).or_report();
    progress(pg_sys::PROGRESS_CREATEIDX_TUPLES_TOTAL, keys.len() as i64);
    while let Some(done) = graph.load(&mut steps).or_report() {
        progress(pg_sys::PROGRESS_CREATEIDX_TUPLES_DONE, done as i64);
        pgrx::check_for_interrupts!();
    }
}

/// Calls `start` with all signals blocked, so that they are in the threads that it starts, for ever: Postgres' handlers
/// are for the main thread.
fn without_signals<R>(start: impl FnOnce() -> R) -> R {
    let (mut all, mut old) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: both sets are written by the calls before they are read.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
    }
    let result = start();
    // SAFETY: it has been written above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), std::ptr::null_mut()) };
    result
}

/// Copies all pages of an index into a fork of a relation that has none yet, and logs them.
///
/// # Safety
/// `index` is open, and nobody else writes to it.
unsafe fn copy(from: &MemStore, index: pg_sys::Relation, fork: pg_sys::ForkNumber::Type) {
    for page in 0..from.page_count() {
        pgrx::check_for_interrupts!();
        let body = from.read(ann_core::PageId(page)).or_report();
        let (new, none) = (pg_sys::InvalidBlockNumber, std::ptr::null_mut());
        let mode = pg_sys::ReadBufferMode::RBM_NORMAL;
        // SAFETY: the caller's; a new buffer is a whole page, ours alone while it is locked.
        unsafe {
            let buffer = pg_sys::ReadBufferExtended(index, fork, new, mode, none);
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
            let to = pg_sys::BufferGetPage(buffer);
            store::init(to);
            let to = to.cast::<u8>().add(HEADER);
            std::ptr::copy_nonoverlapping(body.as_ptr(), to, body.len());
            pg_sys::MarkBufferDirty(buffer);
            pg_sys::UnlockReleaseBuffer(buffer);
        }
    }
    // SAFETY: the caller's; the pages are there.
    unsafe {
        let relation = PgRelation::from_pg(index);
        let is_init = fork == pg_sys::ForkNumber::INIT_FORKNUM;
        if is_init || scan::needs_wal(&relation) {
            pg_sys::log_newpage_range(index, fork, 0, from.page_count(), true);
        }
    }
}

/// `ambuildempty`: the init fork of an UNLOGGED index.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ambuildempty<M: Method>(index: pg_sys::Relation) {
    // SAFETY: Postgres calls this with an index that is being made.
    unsafe {
        let store = MemStore::new(PAGE).or_report();
        let graph = M::create(store, &Column::of(index), index).or_report();
        copy(graph.store(), index, pg_sys::ForkNumber::INIT_FORKNUM);
    }
}
