//! The functions of schema `ann`, declared in `sql/`.

use ann_core::{Error, Index, Metric, PageId, PageStore, SharedIndex, Stats};
use pgrx::PgRelation;
use pgrx::PgSqlErrorCode as Code;
use pgrx::prelude::*;
use std::collections::HashSet;
use std::ffi::c_void;

use crate::build::key_of;
use crate::column::{Column, elements, has_direction, with_elements};
use crate::failure::{OrReport, refuse};
use crate::handle::{self, Handle, UPDATE_LOCK};
use crate::method::{AnnDiskAnn, AnnHnsw, AnnIvfPq, Method, is_of};
use crate::scan::keys;

/// Calls `$body` with `$index` as the open index and `$M` as its access method.
macro_rules! with_index {
    ($oid:expr, $index:ident, $M:ident, $body:expr) => {{
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        must_have_pages($oid);
        // SAFETY: it is an ERROR if there is no such index; an ERROR closes it.
        let $index = unsafe { pg_sys::index_open($oid, lock) };
        // SAFETY: the index is open.
        let (hnsw, diskann, ivfpq) = unsafe {
            (is_of::<AnnHnsw>($index), is_of::<AnnDiskAnn>($index), is_of::<AnnIvfPq>($index))
        };
        let answer = if hnsw {
            type $M = AnnHnsw;
            $body
        } else if diskann {
            type $M = AnnDiskAnn;
            $body
        } else if ivfpq {
            type $M = AnnIvfPq;
            $body
        } else {
            not_ours($index, "ann_hnsw, ann_diskann or ann_ivfpq")
        };
        // SAFETY: it was opened above.
        unsafe { pg_sys::index_close($index, lock) };
        answer
    }};
}

/// Ends the statement, whose index is not of these methods.
fn not_ours(index: pg_sys::Relation, methods: &str) -> ! {
    // SAFETY: the index is open.
    let name = unsafe { PgRelation::from_pg(index) }.name().to_owned();
    let message = format!("\"{name}\" is not an index of {methods}");
    refuse(Code::ERRCODE_WRONG_OBJECT_TYPE, &message)
}

/// Ends the statement unless there is such an index, and not one that is divided into others.
fn must_have_pages(index: pg_sys::Oid) {
    // SAFETY: a look-up in the catalogue, of whatever number.
    match unsafe { pg_sys::get_rel_relkind(index) } as u8 {
        0 => {
            let message = format!("there is no index with OID {}", index.to_u32());
            refuse(Code::ERRCODE_UNDEFINED_TABLE, &message)
        }
        pg_sys::RELKIND_PARTITIONED_INDEX => {
            // SAFETY: as above; null if it is gone by now.
            let name = unsafe { pg_sys::get_rel_name(index) };
            let name = match name.is_null() {
                true => index.to_u32().to_string(),
                // SAFETY: a C string in the current memory context.
                false => unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned(),
            };
            let message = format!("index \"{name}\" is partitioned: give that of a partition");
            refuse(Code::ERRCODE_WRONG_OBJECT_TYPE, &message)
        }
        _ => {}
    }
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

/// What an index is made of, and how many lists it has.
fn stats_of<M: Method>(index: pg_sys::Relation) -> (Stats, usize) {
    // SAFETY: the index is open and of the method.
    let mut graph = unsafe { handle::take::<M>(index) };
    graph.refresh().or_report();
    alone(index, || Ok((graph.stats()?, M::lists(&graph)?))).or_report()
}

/// What an index is made of and how large it is. New columns come last: with the script of an older version, whose
/// function has fewer, they are left out.
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
        name!(lists, i32),
    ),
> {
    let (stats, lists) = with_index!(index, relation, M, stats_of::<M>(relation));
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
        lists as i32,
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

/// Who called, and with what settings.
struct Outside {
    user: pg_sys::Oid,
    security: i32,
    settings: i32,
}

/// From here on, what an index computes runs with the rights of its table's owner, and not with those of the caller.
/// An ERROR ends it too.
///
/// # Safety
/// `table` is open.
unsafe fn as_owner(table: pg_sys::Relation) -> Outside {
    // SAFETY: the caller's; the places are this function's own.
    unsafe {
        let mut outside = Outside { user: pg_sys::Oid::INVALID, security: 0, settings: 0 };
        pg_sys::GetUserIdAndSecContext(&raw mut outside.user, &raw mut outside.security);
        let restricted = pg_sys::SECURITY_RESTRICTED_OPERATION as i32;
        let owner = (*(*table).rd_rel).relowner;
        pg_sys::SetUserIdAndSecContext(owner, outside.security | restricted);
        outside.settings = pg_sys::NewGUCNestLevel();
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        pg_sys::RestrictSearchPath();
        outside
    }
}

/// # Safety
/// `outside` is what the last [`as_owner`] has returned.
unsafe fn as_before(outside: Outside) {
    // SAFETY: the caller's.
    unsafe {
        pg_sys::AtEOXact_GUC(false, outside.settings);
        pg_sys::SetUserIdAndSecContext(outside.user, outside.security);
    }
}

/// # Safety
/// `index` is open.
unsafe fn check_heap<M: Method>(index: pg_sys::Relation, graph: &mut Handle<M>) {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the caller's; the scan makes a snapshot of its own, and `state` outlives it. Keys are read after that:
    // rows of the snapshot are in the index by then.
    unsafe {
        let table = pg_sys::table_open((*(*index).rd_index).indrelid, lock);
        let outside = as_owner(table);
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
        as_before(outside);
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

/// Lists of an index of `ann_ivfpq`; 0 until it is trained.
#[pg_extern(sql = false)]
fn index_lists(index: pg_sys::Oid) -> i32 {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    must_have_pages(index);
    // SAFETY: it is an ERROR if there is no such index; an ERROR closes it.
    unsafe {
        let relation = pg_sys::index_open(index, lock);
        if !is_of::<AnnIvfPq>(relation) {
            not_ours(relation, "ann_ivfpq");
        }
        let mut lists = handle::take::<AnnIvfPq>(relation);
        lists.refresh().or_report();
        let count = lists.lists().or_report();
        handle::put::<AnnIvfPq>(relation, lists);
        pg_sys::index_close(relation, lock);
        count as i32
    }
}
