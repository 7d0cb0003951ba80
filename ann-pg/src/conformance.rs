//! The core's conformance suite for page stores, run on the pages of an index inside the server. For tests only.

use ann_core::conformance;
use pgrx::prelude::*;

use crate::store::PgStore;

/// Overwrites an index with the suite's pages; an ERROR names what is not as it must be.
#[pg_extern(sql = false)]
fn store_conformance(index: pg_sys::Oid) {
    let lock = pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: it is an ERROR if there is no such index; nobody else has it, and it stays open.
    unsafe {
        let relation = pg_sys::index_open(index, lock);
        conformance::suite(|| PgStore::new(relation));
        pg_sys::index_close(relation, lock);
    }
}
