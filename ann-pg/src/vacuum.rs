//! VACUUM: vectors whose rows are gone become tombstones; a sweep takes them out of the index, and their slots are used
//! again.

use std::ffi::c_void;

use ann_core::{Index, PageStore, SharedIndex};
use pgrx::{PgBox, pg_sys};

use crate::build::tid_of;
use crate::failure::OrReport;
use crate::handle::{self, ENTRIES_LOCK, UPDATE_LOCK};
use crate::method::Method;

/// Vectors between two pauses that vacuum's cost limits may ask for.
const PAUSE: usize = 256;

/// Nodes that a step of a sweep changes, about: those who insert wait for some tens of milliseconds.
const STEP: usize = 64;

fn pause() {
    // SAFETY: no page is locked.
    unsafe {
        #[cfg(feature = "pg18")]
        pg_sys::vacuum_delay_point(false);
        #[cfg(not(feature = "pg18"))]
        pg_sys::vacuum_delay_point();
    }
}

/// `ambulkdelete`. CREATE INDEX CONCURRENTLY calls it to see all keys; nothing is repaired here.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ambulkdelete<M: Method>(
    info: *mut pg_sys::IndexVacuumInfo,
    stats: *mut pg_sys::IndexBulkDeleteResult,
    callback: pg_sys::IndexBulkDeleteCallback,
    callback_state: *mut c_void,
) -> *mut pg_sys::IndexBulkDeleteResult {
    // SAFETY: Postgres calls this with an open index, and a function that takes the places of rows.
    unsafe {
        let stats = or_new(stats);
        let Some(callback) = callback else { return stats };
        let mut graph = handle::take::<M>((*info).index);
        let mut seen = 0;
        // Whoever verifies the index does so while nothing changes.
        let share = pg_sys::ShareLock as pg_sys::LOCKMODE;
        pg_sys::LockPage((*info).index, UPDATE_LOCK, share);
        let removed = graph
            .remove_where(|key| {
                seen += 1;
                if seen % PAUSE == 0 {
                    pause();
                }
                let mut tid = tid_of(key);
                pg_sys::ffi::pg_guard_ffi_boundary(|| callback(&raw mut tid, callback_state))
            })
            .or_report();
        pg_sys::UnlockPage((*info).index, UPDATE_LOCK, share);
        (*stats).tuples_removed += removed as f64;
        describe::<M>(&mut *stats, &graph);
        handle::put::<M>((*info).index, graph);
        stats
    }
}

/// `amvacuumcleanup`.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn amvacuumcleanup<M: Method>(
    info: *mut pg_sys::IndexVacuumInfo,
    stats: *mut pg_sys::IndexBulkDeleteResult,
) -> *mut pg_sys::IndexBulkDeleteResult {
    // SAFETY: Postgres calls this with an open index.
    unsafe {
        if (*info).analyze_only {
            return stats;
        }
        let stats = or_new(stats);
        let index = (*info).index;
        let mut graph = handle::take::<M>(index);
        graph.refresh().or_report();
        let (live, dead) = graph.counts();
        if M::sweep_is_due(live, dead) {
            let alone = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
            pg_sys::LockPage(index, ENTRIES_LOCK, alone);
            sweep(index, &mut *graph);
            pg_sys::UnlockPage(index, ENTRIES_LOCK, alone);
        }
        describe::<M>(&mut *stats, &graph);
        handle::put::<M>(index, graph);
        stats
    }
}

/// Sweeps an index, a step at a time.
///
/// # Safety
/// `index` is the open index that the handle is of, and nobody else sweeps it.
pub unsafe fn sweep(index: pg_sys::Relation, handle: &mut impl SharedIndex) {
    let (share, alone) =
        (pg_sys::ShareLock as pg_sys::LOCKMODE, pg_sys::ExclusiveLock as pg_sys::LOCKMODE);
    let mut sweep = handle.begin_sweep(STEP).or_report();
    let mut more = true;
    while more {
        // Whoever inserts waits for a step, not for the sweep.
        let lock = if handle.is_alone(&sweep) { alone } else { share };
        // SAFETY: the caller's. An ERROR gives the lock back by itself.
        unsafe {
            pg_sys::LockPage(index, UPDATE_LOCK, lock);
            more = handle.step(&mut sweep).or_report();
            pg_sys::UnlockPage(index, UPDATE_LOCK, lock);
        }
        pause();
    }
}

/// # Safety
/// Null, or statistics of this vacuum.
unsafe fn or_new(stats: *mut pg_sys::IndexBulkDeleteResult) -> *mut pg_sys::IndexBulkDeleteResult {
    match stats.is_null() {
        // SAFETY: a struct of numbers.
        true => unsafe { PgBox::<pg_sys::IndexBulkDeleteResult>::alloc0().into_pg() },
        false => stats,
    }
}

fn describe<M: Method>(stats: &mut pg_sys::IndexBulkDeleteResult, graph: &handle::Handle<M>) {
    stats.num_pages = graph.store().page_count();
    stats.estimated_count = false;
    stats.num_index_tuples = graph.len() as f64;
}
