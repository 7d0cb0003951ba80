//! Vectors that an index leaves to the heap: a scan fetches the rows that codes have found, and measures them by the
//! operator itself.

use pgrx::{PgMemoryContexts, pg_sys};

use crate::build::tid_of;

/// What fetches the rows of a table for a scan, and computes what the index is on.
pub struct Heap {
    fetch: *mut pg_sys::IndexFetchTableData,
    slot: *mut pg_sys::TupleTableSlot,
    info: *mut pg_sys::IndexInfo,
    estate: *mut pg_sys::EState,
    context: *mut pg_sys::ExprContext,
}

impl Heap {
    /// # Safety
    /// `scan` has begun, on a table.
    pub unsafe fn open(scan: pg_sys::IndexScanDesc) -> Heap {
        // SAFETY: the caller's; what is made here lives as long as the scan.
        unsafe {
            let table = (*scan).heapRelation;
            let mut home = PgMemoryContexts::For(pg_sys::GetMemoryChunkContext(scan.cast()));
            home.switch_to(|_| {
                let slot = pg_sys::table_slot_create(table, std::ptr::null_mut());
                let begin = (*(*table).rd_tableam).index_fetch_begin;
                let fetch = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                    begin.map_or(std::ptr::null_mut(), |begin| begin(table))
                });
                let info = pg_sys::BuildIndexInfo((*scan).indexRelation);
                let estate = pg_sys::CreateExecutorState();
                let context = pg_sys::MakePerTupleExprContext(estate);
                (*context).ecxt_scantuple = slot;
                Heap { fetch, slot, info, estate, context }
            })
        }
    }

    /// The distance of a row by the scan's operator; none of a row that the scan's snapshot does not show.
    ///
    /// # Safety
    /// `scan` is the one that this was opened for, with its order key.
    pub unsafe fn distance(&mut self, scan: pg_sys::IndexScanDesc, key: u64) -> Option<f64> {
        // SAFETY: the caller's; all that is allocated here goes with the context at the next row.
        unsafe {
            pg_sys::MemoryContextReset((*self.context).ecxt_per_tuple_memory);
            let mut tid = tid_of(key);
            let fetch = (*(*(*scan).heapRelation).rd_tableam).index_fetch_tuple?;
            let (mut more, mut dead) = (false, false);
            let found = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let (snapshot, tid) = ((*scan).xs_snapshot, &raw mut tid);
                fetch(self.fetch, tid, snapshot, self.slot, &raw mut more, &raw mut dead)
            });
            if !found {
                return None;
            }
            let mut row = PgMemoryContexts::For((*self.context).ecxt_per_tuple_memory);
            row.switch_to(|_| {
                let mut values = [pg_sys::Datum::null(); pg_sys::INDEX_MAX_KEYS as usize];
                let mut nulls = [true; pg_sys::INDEX_MAX_KEYS as usize];
                let (values, nulls) = (values.as_mut_ptr(), nulls.as_mut_ptr());
                pg_sys::FormIndexDatum(self.info, self.slot, self.estate, values, nulls);
                if *nulls {
                    return None;
                }
                let order = &mut *(*scan).orderByData;
                let operator = &raw mut order.sk_func;
                let answer = pg_sys::FunctionCall2Coll(
                    operator,
                    order.sk_collation,
                    *values,
                    order.sk_argument,
                );
                Some(f64::from_bits(answer.value() as u64))
            })
        }
    }

    /// Lets go of the page that the last row was on.
    ///
    /// # Safety
    /// The scan that this was opened for has not ended.
    pub unsafe fn rest(&mut self, scan: pg_sys::IndexScanDesc) {
        // SAFETY: the caller's.
        unsafe {
            let clear = (*(*self.slot).tts_ops).clear;
            let reset = (*(*(*scan).heapRelation).rd_tableam).index_fetch_reset;
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                if let Some(clear) = clear {
                    clear(self.slot);
                }
                if let Some(reset) = reset {
                    reset(self.fetch);
                }
            });
        }
    }

    /// # Safety
    /// The scan that this was opened for has not ended.
    pub unsafe fn close(self, scan: pg_sys::IndexScanDesc) {
        // SAFETY: the caller's: all of it was made by `open`.
        unsafe {
            pg_sys::FreeExecutorState(self.estate);
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            let end = (*(*(*scan).heapRelation).rd_tableam).index_fetch_end;
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                if let Some(end) = end {
                    end(self.fetch);
                }
            });
        }
    }
}
