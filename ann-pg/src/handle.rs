//! Open indexes. The one that was used last is kept for the next statement, which then reads no more than the meta
//! page.

use std::any::Any;
use std::cell::{OnceCell, RefCell};

use ann_core::SharedIndex;
use pgrx::PgSqlErrorCode as Code;
use pgrx::pg_sys;

use crate::failure::{OrReport, refuse};
use crate::method::Method;
use crate::store::PgStore;

/// Page locks of an index: they lock no page, only one another. Changes share it, and a sweep has it
/// alone.
pub const UPDATE_LOCK: pg_sys::BlockNumber = 0;
/// Whoever chooses new entry points or sweeps has it alone.
pub const ENTRIES_LOCK: pg_sys::BlockNumber = 1;

/// An index of an access method.
pub type Handle<M> = <M as Method>::Beside;

/// Which index, and which file of it.
type Name = (pg_sys::Oid, pg_sys::Oid);

thread_local! {
    static LAST: RefCell<Option<(Name, Box<dyn Any>)>> = const { RefCell::new(None) };
}

/// # Safety
/// `index` is an open index.
unsafe fn name(index: pg_sys::Relation) -> Name {
    // SAFETY: the caller's.
    unsafe {
        #[cfg(feature = "pg15")]
        let file = (*index).rd_node.relNode;
        #[cfg(not(feature = "pg15"))]
        let file = (*index).rd_locator.relNumber;
        ((*index).rd_id, file)
    }
}

/// Opens an index, or takes it from where [`put`] has put it.
///
/// # Safety
/// `index` is an open index of the method, and stays open as long as the handle is used.
pub unsafe fn take<M: Method>(index: pg_sys::Relation) -> Box<Handle<M>> {
    on_this_thread();
    // SAFETY: the caller's.
    let wanted = unsafe { name(index) };
    let known = LAST.with_borrow_mut(|last| last.take_if(|known| known.0 == wanted));
    if let Some(handle) = known.and_then(|(_, handle)| handle.downcast::<Handle<M>>().ok()) {
        // SAFETY: the same index with the same file.
        unsafe { handle.store().attach(index) };
        return handle;
    }
    // SAFETY: the caller's.
    Box::new(M::open(unsafe { PgStore::new(index) }).or_report())
}

/// Keeps a handle for the next who asks for that index. Not after an error.
///
/// # Safety
/// `index` is the open index that the handle is of.
pub unsafe fn put<M: Method>(index: pg_sys::Relation, handle: Box<Handle<M>>) {
    // SAFETY: the caller's.
    let name = unsafe { name(index) };
    LAST.set(Some((name, handle)));
}

/// Forgets what [`put`] has put away: an index is built anew, perhaps in the same file.
pub fn forget() {
    LAST.set(None);
}

/// Makes this thread a pool of its own, for ever: what the core does in parallel is then done here, since other
/// threads must not call Postgres.
fn on_this_thread() {
    thread_local! {
        static POOL: OnceCell<rayon::ThreadPool> = const { OnceCell::new() };
    }
    POOL.with(|pool| {
        if pool.get().is_some() {
            return;
        }
        match rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build() {
            Ok(new) => _ = pool.set(new),
            Err(error) => refuse(Code::ERRCODE_INTERNAL_ERROR, &error.to_string()),
        }
    });
}
