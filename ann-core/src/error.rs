//! Everything that can go wrong, as one typed error that names the value and what is allowed.

use std::path::{Path, PathBuf};

use crate::element::DType;

/// The result of every fallible call in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call was refused or could not be finished. Unless a variant says otherwise, the index is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A vector's length is not the index's dimension.
    #[error("vector has {got} dimensions, the index has {want}")]
    Dimension {
        /// The length that was given.
        got: usize,
        /// The index's dimension.
        want: usize,
    },
    /// Vectors of another element type than the index stores.
    #[error("vectors of type {got} given, the index stores {want}")]
    ElementType {
        /// The type that was given.
        got: DType,
        /// The index's element type.
        want: DType,
    },
    /// A parameter outside its allowed range.
    #[error("{name} = {value} is not allowed: {allowed}")]
    Parameter {
        /// The parameter's name, as spelled in the API.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// What would be accepted.
        allowed: String,
    },
    /// A NaN or an infinity in the input.
    #[error("row {row}, column {column} is {value}: vectors must be finite")]
    NotFinite {
        /// Row of the offending value, counted from 0.
        row: usize,
        /// Column of the offending value, counted from 0.
        column: usize,
        /// The value itself.
        value: f32,
    },
    /// A vector so long that distances to it would not be finite floats.
    #[error("row {row} has norm {norm:e}: norms up to 9.2e18 are allowed")]
    TooLong {
        /// The row, counted from 0.
        row: usize,
        /// Its Euclidean norm.
        norm: f64,
    },
    /// A value is beyond what the type that vectors are stored as has.
    #[error("row {row}, column {column} is {value}, which does not fit {dtype}")]
    DoesNotFit {
        /// Row of the offending value, counted from 0.
        row: usize,
        /// Column of the offending value, counted from 0.
        column: usize,
        /// The value itself.
        value: f32,
        /// The type of stored elements.
        dtype: DType,
    },
    /// A zero vector has no direction, so cosine distance does not exist for it.
    #[error("row {row} is a zero vector, which has no cosine distance")]
    ZeroVector {
        /// The row, counted from 0.
        row: usize,
    },
    /// Not one key for each row.
    #[error("{keys} keys given for {rows} rows: give one key a row")]
    KeyCount {
        /// How many keys were given.
        keys: usize,
        /// How many rows were given.
        rows: usize,
    },
    /// A key given twice, or one that the index already holds.
    #[error(
        "key {key} (row {row}) is already taken: keys are unique, use update to replace a vector"
    )]
    DuplicateKey {
        /// The key.
        key: u64,
        /// The row that brought it, counted from 0.
        row: usize,
    },
    /// A key that the index does not hold, where one is needed.
    #[error("key {key} (row {row}) is not in the index")]
    UnknownKey {
        /// The key.
        key: u64,
        /// The row that brought it, counted from 0.
        row: usize,
    },
    /// A vector was asked of an index that keeps only codes of them.
    #[error("the index keeps codes of its vectors, not the vectors themselves")]
    NoVectors,
    /// The index holds as many vectors as one index can.
    #[error("an index holds at most {limit} vectors, {wanted} would be needed")]
    Full {
        /// The largest number of slots.
        limit: u64,
        /// How many the call would have needed.
        wanted: u64,
    },
    /// The file or store does not hold an index of ours.
    #[error("{what}")]
    NotAnIndex {
        /// What was found instead.
        what: String,
    },
    /// The file or store holds an index of another kind.
    #[error("this is a {got} index, not a {want} index")]
    Kind {
        /// The kind found.
        got: String,
        /// The kind asked for.
        want: String,
    },
    /// The format is newer than this library.
    #[error("format version {got} is newer than {newest}, the newest that this library reads")]
    Version {
        /// The version found.
        got: u32,
        /// The newest that can be read.
        newest: u32,
    },
    /// A page's content contradicts the format.
    #[error("page {page} is corrupt: {what}")]
    Corrupt {
        /// The page.
        page: u32,
        /// What is wrong with it.
        what: String,
    },
    /// Another handle has the file open in a way that excludes this one.
    #[error("{path} is in use: one writer or many readers may have it open")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A change was asked of a handle that was opened for reading.
    #[error("the index was opened read-only: open it as writable to change it")]
    ReadOnly,
    /// A cursor was used after the index had changed.
    #[error("the index changed since this search began: start the search again")]
    Changed,
    /// The caller's progress function asked to stop. Rows added before that stay in the index.
    #[error("cancelled after {added} rows were added")]
    Cancelled {
        /// Rows that are in the index now.
        added: usize,
    },
    /// Memory for a buffer whose size the input decides could not be had.
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How many bytes were asked for.
        bytes: u64,
    },
    /// The operating system refused an operation on a file.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was being done, as a verb phrase.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
}

impl Error {
    /// Wraps a system error with what was being done to which file; for use with `map_err`.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { what, path, source }
    }

    /// A page that contradicts the format.
    pub(crate) fn corrupt(page: u32, what: impl Into<String>) -> Error {
        Error::Corrupt { page, what: what.into() }
    }

    /// A parameter outside its range.
    pub(crate) fn parameter(
        name: &'static str,
        value: impl ToString,
        allowed: impl Into<String>,
    ) -> Error {
        Error::Parameter { name, value: value.to_string(), allowed: allowed.into() }
    }
}
