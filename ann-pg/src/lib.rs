//! The Postgres extension `ann`: the core's indexes as index access methods over pgvector's types.
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
mod heap;
mod insert;
mod load;
mod method;
mod options;
mod recent;
mod scan;
mod spill;
mod store;
mod vacuum;

pgrx::pg_module_magic!();

/// Called when the library is loaded.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // With RUST_BACKTRACE set, each ERROR would carry a backtrace, which takes hundreds of megabytes: not when memory
    // has just run out.
    const BACKTRACES: &str = "RUST_LIB_BACKTRACE";
    if std::env::var_os(BACKTRACES).is_none() {
        // SAFETY: the library is being loaded, by the only thread.
        unsafe { std::env::set_var(BACKTRACES, "0") };
    }
    options::register();
}
