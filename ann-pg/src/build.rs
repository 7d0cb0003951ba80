//! CREATE INDEX: the rows of the heap are loaded into an index in memory, on threads of this backend, and its pages
//! are copied. Rows that memory has no room for are inserted one by one.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use ann_core::{Element, Graph, HEADER, Insertion, MemStore, PageStore, Topology};
use ndarray::ArrayView2;
use pgrx::PgSqlErrorCode as Code;
use pgrx::{PgMemoryContexts, PgRelation, pg_sys};

use crate::column::{Column, MAX_DIM, elements, has_direction, with_elements};
use crate::failure::{OrReport, refuse};
use crate::insert::insert;
use crate::method::Method;
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
        BUILDING => c"building graph",
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
    index: pg_sys::Relation,
    column: Column,
    values: Vec<T>,
    keys: Vec<u64>,
    /// Rows for which there is memory.
    room: usize,
    /// The index, once it is in its relation.
    written: Option<Box<handle::Handle<M>>>,
    rows: u64,
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
        // A vector as it comes and as it is stored, its key, and its node.
        let row = 2 * column.dim * size_of::<T>() + 8 + 24 + M::bytes_a_row(&column, index);
        let mut state = Load::<M, T> {
            index,
            column,
            values: Vec::new(),
            keys: Vec::new(),
            room: (pg_sys::maintenance_work_mem as usize).saturating_mul(1024) / row,
            written: None,
            rows: 0,
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
        if state.written.is_none() {
            state.write_out();
        }
        [heap_rows, state.rows as f64]
    }
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
        self.rows += 1;
        if self.written.is_none() {
            if self.keys.len() < self.room {
                let room = self.values.try_reserve(vector.len());
                if room.and_then(|()| self.keys.try_reserve(1)).is_err() {
                    refuse(Code::ERRCODE_OUT_OF_MEMORY, "out of memory: the rows of an index");
                }
                self.values.extend_from_slice(vector);
                self.keys.push(key);
                return;
            }
            let count = self.keys.len();
            pgrx::notice!(
                "{} index no longer fits maintenance_work_mem after {count} rows: the others are inserted one by one",
                M::NAME
            );
            self.write_out();
        }
        let index = self.index;
        let graph = self.written.get_or_insert_with(|| {
            // SAFETY: the index is open and of the method, and its pages are there.
            unsafe { handle::take::<M>(index) }
        });
        // SAFETY: the index is open, and nobody else has it.
        unsafe { insert::<M, T>(index, graph, vector, key) };
    }

    /// Builds an index of the rows in memory, and copies it into the relation.
    fn write_out(&mut self) {
        progress(pg_sys::PROGRESS_CREATEIDX_SUBPHASE, BUILDING);
        let (values, keys) = (std::mem::take(&mut self.values), std::mem::take(&mut self.keys));
        let store = MemStore::new(PAGE).or_report();
        // SAFETY: the index is open and of the method.
        let mut graph = unsafe { M::create(store, &self.column, self.index) }.or_report();
        if !keys.is_empty() {
            fill(&mut graph, &values, &keys, self.column.dim);
        }
        drop((values, keys));
        progress(pg_sys::PROGRESS_CREATEIDX_SUBPHASE, WRITING);
        // SAFETY: the index is being built: nobody else has it, and it has no pages.
        unsafe { copy(graph.store(), self.index, pg_sys::ForkNumber::MAIN_FORKNUM) };
    }
}

/// Puts all rows into an empty index, on threads of our own.
fn fill<K: Topology, T: Element>(
    graph: &mut Graph<MemStore, K>,
    values: &[T],
    keys: &[u64],
    dim: usize,
) {
    let Ok(matrix) = ArrayView2::from_shape((keys.len(), dim), values) else {
        refuse(Code::ERRCODE_INTERNAL_ERROR, "rows of an index have different dimensions");
    };
    // SAFETY: a setting.
    let threads = unsafe { pg_sys::max_parallel_maintenance_workers } as usize + 1;
    let started = without_signals(|| Insertion::new(graph, matrix, Some(keys), false, threads));
    let mut insertion = started.or_report();
    progress(pg_sys::PROGRESS_CREATEIDX_TUPLES_TOTAL, keys.len() as i64);
    while !insertion.is_done() {
        pgrx::check_for_interrupts!();
        match insertion.needs_write() {
            true => insertion.write_step(graph),
            false => insertion.plan_step(graph),
        }
        .or_report();
        progress(pg_sys::PROGRESS_CREATEIDX_TUPLES_DONE, insertion.progress() as i64);
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
