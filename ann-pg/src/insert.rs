//! INSERT: one row at a time, beside those of other backends.

use ann_core::{Element, Metric, SharedIndex};
use pgrx::{PgMemoryContexts, pg_sys};

use crate::build::key_of;
use crate::column::{Column, elements, has_direction, with_elements};
use crate::failure::OrReport;
use crate::handle::{self, Handle, UPDATE_LOCK};
use crate::method::Method;

/// `aminsert`.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn aminsert<M: Method>(
    index: pg_sys::Relation,
    values: *mut pg_sys::Datum,
    nulls: *mut bool,
    tid: pg_sys::ItemPointer,
    _heap: pg_sys::Relation,
    _unique: pg_sys::IndexUniqueCheck::Type,
    _unchanged: bool,
    _info: *mut pg_sys::IndexInfo,
) -> bool {
    // SAFETY: Postgres calls this with an open index and a row that has a value for its only column.
    unsafe {
        if *nulls {
            return false;
        }
        let column = Column::of(index);
        let mut context = PgMemoryContexts::new("a row of an ann index");
        context.switch_to(|_| {
            with_elements!(column.dtype, T, {
                let vector = elements::<T>(*values);
                if column.metric != Metric::Cosine || has_direction(vector) {
                    let mut graph = handle::take::<M>(index);
                    insert::<M, T>(index, &mut graph, vector, key_of(*tid));
                    handle::put::<M>(index, graph);
                }
            });
        });
        false
    }
}

/// Inserts a vector, and does what the index needs then.
///
/// # Safety
/// `index` is the open index that the handle is of.
pub unsafe fn insert<M: Method, T: Element>(
    index: pg_sys::Relation,
    graph: &mut Handle<M>,
    vector: &[T],
    key: u64,
) {
    let share = pg_sys::ShareLock as pg_sys::LOCKMODE;
    // SAFETY: the caller's. An ERROR gives locks back by itself.
    unsafe {
        pg_sys::LockPage(index, UPDATE_LOCK, share);
        graph.insert_one(vector, key).or_report();
        pg_sys::UnlockPage(index, UPDATE_LOCK, share);
        M::tend(index, graph);
    }
}
