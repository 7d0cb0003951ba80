//! The functions of schema `ann`, declared in `sql/`.

use ann_core::{Error, Index, Metric, PageId, PageStore, Stats};
use pgrx::PgSqlErrorCode as Code;
use pgrx::prelude::*;
use std::collections::HashSet;
use std::ffi::c_void;

use crate::build::key_of;
use crate::column::{Column, elements, has_direction, with_elements};
use crate::failure::{OrReport, refuse};
use crate::handle::{self, Handle, UPDATE_LOCK};
use crate::method::{AnnDiskAnn, AnnHnsw, Method, is_of};
use crate::scan::keys;

/// Calls `$body` with `$index` as the open index and `$M` as its access method.
macro_rules! with_index {
    ($oid:expr, $index:ident, $M:ident, $body:expr) => {{
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        // SAFETY: it is an ERROR if there is no such index; an ERROR closes it.
        let $index = unsafe { pg_sys::index_open($oid, lock) };
        // SAFETY: the index is open.
        let (hnsw, diskann) = unsafe { (is_of::<AnnHnsw>($index), is_of::<AnnDiskAnn>($index)) };
        let answer = if hnsw {
            type $M = AnnHnsw;
            $body
        } else if diskann {
            type $M = AnnDiskAnn;
            $body
        } else {
            let message = "this is not an index of ann_hnsw or ann_diskann";
            refuse(Code::ERRCODE_WRONG_OBJECT_TYPE, message)
        };
        // SAFETY: it was opened above.
        unsafe { pg_sys::index_close($index, lock) };
        answer
    }};
}

/// Does something while nobody inserts.
fn alone<R>(index: pg_sys::Relation, what: impl FnOnce() -> R) -> R {
    let lock = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: the index is open; an ERROR gives the lock back.
    unsafe { pg_sys::LockPage(index, UPDATE_LOCK, lock) };
    let answer = what();
    // SAFETY: as above.
    unsafe { pg_sys::UnlockPage(index, UPDATE_LOCK, lock) };
    answer
}

fn stats_of<M: Method>(index: pg_sys::Relation) -> Stats {
    // SAFETY: the index is open and of the method.
    let mut graph = unsafe { handle::take::<M>(index) };
    graph.refresh().or_report();
    alone(index, || graph.stats()).or_report()
}

/// What an index is made of and how large it is.
#[pg_extern(sql = false)]
#[expect(clippy::type_complexity, reason = "the columns of a row")]
fn index_stats(
    index: pg_sys::Oid,
) -> TableIterator<
    'static,
    (
        name!(kind, String),
        name!(vectors, i64),
        name!(tombstones, i64),
        name!(slots, i64),
        name!(twins, i64),
        name!(links, i64),
        name!(levels, i32),
        name!(element, String),
        name!(code_bits, i32),
        name!(layout, String),
        name!(bytes, i64),
        name!(instruction_set, String),
    ),
> {
    let stats = with_index!(index, relation, M, stats_of::<M>(relation));
    TableIterator::once((
        stats.kind.to_string(),
        stats.len as i64,
        stats.tombstones as i64,
        stats.slots as i64,
        stats.twins as i64,
        stats.links.iter().sum::<usize>() as i64,
        stats.levels as i32,
        stats.vectors.map_or("none".into(), |dtype| dtype.to_string()),
        i32::from(stats.code_bits),
        stats.layout.to_string(),
        stats.bytes as i64,
        stats.instruction_set,
    ))
}

/// Checks every invariant of an index, and with `heap_all_indexed` that all rows of the table are in it.
#[pg_extern(sql = false)]
fn verify_index(index: pg_sys::Oid, heap_all_indexed: bool) {
    with_index!(index, relation, M, verify::<M>(relation, heap_all_indexed));
}

fn verify<M: Method>(index: pg_sys::Relation, heap_all_indexed: bool) {
    // SAFETY: the index is open and of the method.
    let mut graph = unsafe { handle::take::<M>(index) };
    alone(index, || {
        graph.refresh()?;
        graph.verify()
    })
    .or_report();
    if heap_all_indexed {
        // SAFETY: the index is open, as is its heap while this runs.
        unsafe { check_heap::<M>(index, &mut graph) };
    }
}

struct Heap {
    column: Column,
    keys: HashSet<u64>,
    missing: Option<u64>,
}

/// # Safety
/// `index` is open.
unsafe fn check_heap<M: Method>(index: pg_sys::Relation, graph: &mut Handle<M>) {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the caller's; the scan makes a snapshot of its own, and `state` outlives it. Keys are read after that:
    // rows of the snapshot are in the index by then.
    unsafe {
        let table = pg_sys::table_open((*(*index).rd_index).indrelid, lock);
        let info = pg_sys::BuildIndexInfo(index);
        (*info).ii_Concurrent = true;
        (*info).ii_Unique = false;
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetTransactionSnapshot());
        let keys = keys::<M>(graph);
        let mut state = Heap { column: Column::of(index), keys, missing: None };
        let state_at: *mut c_void = (&raw mut state).cast();
        let method = (*table).rd_tableam;
        let begin = (*method).scan_begin;
        let flags = pg_sys::ScanOptions::SO_TYPE_SEQSCAN
            | pg_sys::ScanOptions::SO_ALLOW_STRAT
            | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            let null = std::ptr::null_mut();
            if let (Some(begin), Some(scan)) = (begin, (*method).index_build_range_scan) {
                let heap = begin(table, snapshot, 0, null, std::ptr::null_mut(), flags);
                let (start, end) = (0, pg_sys::InvalidBlockNumber);
                let each = Some(row_of_heap as _);
                scan(table, index, info, false, false, false, start, end, each, state_at, heap);
            }
        });
        pg_sys::UnregisterSnapshot(snapshot);
        pg_sys::table_close(table, lock);
        if let Some(key) = state.missing {
            let what = format!("the row at ({},{}) is not in the index", key >> 16, key & 0xffff);
            crate::failure::report(&Error::Corrupt { page: 0, what });
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn row_of_heap(
    _index: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    values: *mut pg_sys::Datum,
    nulls: *mut bool,
    _is_alive: bool,
    state: *mut c_void,
) {
    // SAFETY: `state` is what `check_heap` has given to the scan.
    unsafe {
        let state = &mut *state.cast::<Heap>();
        let key = key_of(*tid);
        if *nulls || state.keys.contains(&key) {
            return;
        }
        let left_out = state.column.metric == Metric::Cosine
            && with_elements!(state.column.dtype, T, !has_direction(elements::<T>(*values)));
        if !left_out {
            state.missing.get_or_insert(key);
        }
    }
}

/// Reads all pages of an index, so that they are in memory; returns how many there are.
#[pg_extern(sql = false)]
fn prewarm(index: pg_sys::Oid) -> i64 {
    with_index!(index, relation, M, {
        // SAFETY: the index is open and of the method.
        let graph = unsafe { handle::take::<M>(relation) };
        let pages = graph.store().page_count();
        for page in 0..pages {
            drop(graph.store().read(PageId(page)).or_report());
        }
        i64::from(pages)
    })
}
