//! The Postgres extension `ann`: the core's graph indexes as index access methods over pgvector's types.
//!
//! The adapter is thin: [`store`] lets the core work on a relation's pages, the other modules are the callbacks that
//! Postgres asks of an access method. What is algorithm is in `ann-core`.

mod build;
mod column;
#[cfg(feature = "conformance")]
mod conformance;
mod cost;
mod failure;
mod functions;
mod handle;
mod insert;
mod method;
mod options;
mod scan;
mod store;
mod vacuum;

pgrx::pg_module_magic!();

/// Called when the library is loaded.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    options::register();
}
