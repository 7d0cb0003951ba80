//! The native half of the Python package `ann`. Its face, with the documentation, is in `python/ann/`.

mod cursor;
mod engine;
mod failure;
mod filter;
mod input;
mod insert;
mod search;
mod shared;

use pyo3::prelude::*;

/// Gives back what a bulk load took for a while, which the C library's allocator mostly keeps.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What the Python classes of the package are made of.
#[pymodule]
mod _ann {
    #[pymodule_export]
    use crate::cursor::Cursor;
    #[pymodule_export]
    use crate::engine::Engine;

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the name that Python has for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
