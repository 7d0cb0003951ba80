//! Errors on their way to Python: each becomes the exception that fits, with the core's own message.

use std::io;

use ann_core::Error;
use pyo3::exceptions::{PyIsADirectoryError, PyMemoryError, PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyType;

/// Why a call failed. Made without the GIL; it becomes an exception where it meets Python.
pub enum Failure {
    /// The core refused.
    Core(Error),
    /// Python code that was called raised.
    Raised(PyErr),
    /// A directory where a file is needed.
    Directory(String),
    /// The index has been closed.
    Closed,
    /// A change from inside a filter, or from inside another change, on the thread that makes it.
    Nested,
}

/// The result of what can fail.
pub type Answer<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Core(error)
    }
}

impl From<PyErr> for Failure {
    fn from(raised: PyErr) -> Failure {
        Failure::Raised(raised)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> PyErr {
        match failure {
            Failure::Core(error) => of_core(error),
            Failure::Raised(raised) => raised,
            Failure::Directory(what) => PyIsADirectoryError::new_err(what),
            Failure::Closed => of_class("InputError", "the index is closed".into()),
            Failure::Nested => PyRuntimeError::new_err(
                "a filter, a progress function or a signal handler must not change the index that it serves",
            ),
        }
    }
}

fn of_core(error: Error) -> PyErr {
    let class = match error {
        Error::Dimension { .. } => "DimensionError",
        Error::UnknownKey { .. } => "UnknownIdError",
        Error::NotAnIndex { .. }
        | Error::Kind { .. }
        | Error::Version { .. }
        | Error::Corrupt { .. } => "FormatError",
        Error::Locked { .. } => "LockedError",
        Error::ReadOnly => "ReadOnlyError",
        Error::Changed => "ChangedError",
        Error::OutOfMemory { .. } => return PyMemoryError::new_err(error.to_string()),
        Error::Io { what, ref source, ref path } => {
            // With the number, Python finds the subclass: FileNotFoundError and the like.
            return match source.raw_os_error() {
                Some(number) => {
                    let text = source.to_string();
                    let text = text.split(" (os error").next().unwrap_or_default();
                    let path = path.clone().into_os_string();
                    PyOSError::new_err((number, format!("{what}: {text}"), path))
                }
                None => io::Error::new(source.kind(), error.to_string()).into(),
            };
        }
        _ => "InputError",
    };
    of_class(class, error.to_string())
}

/// An exception of a class in `ann.errors`.
fn of_class(class: &str, message: String) -> PyErr {
    Python::attach(|py| {
        let found = py.import("ann.errors").and_then(|errors| errors.getattr(class));
        match found.and_then(|class| Ok(class.cast_into::<PyType>()?)) {
            Ok(class) => PyErr::from_type(class, message),
            Err(raised) => raised,
        }
    })
}
