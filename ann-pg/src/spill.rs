//! The rows of an index that is being built: in memory, and once that has no room for more, in a temporary file.

use std::fs::File;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

use ann_core::Element;
use memmap2::Mmap;
use pgrx::PgSqlErrorCode as Code;
use pgrx::pg_sys;

use crate::failure::{code_of, refuse};

/// Bytes that are gathered for one write.
const CHUNK: usize = 1 << 20;

/// A temporary file of Postgres', in a tablespace for those. It has no more than a transaction's life.
pub struct Temporary {
    handle: pg_sys::File,
    file: File,
}

impl Temporary {
    /// A new, empty one.
    pub fn new() -> Temporary {
        // SAFETY: within a transaction, whose resource owner closes and removes the file if nobody else does. The
        // number is an open file's until the next call that opens one.
        let (handle, copy) = unsafe {
            pg_sys::PrepareTempTablespaces();
            let handle = pg_sys::OpenTemporaryFile(false);
            let file = BorrowedFd::borrow_raw(pg_sys::FileGetRawDesc(handle));
            (handle, file.try_clone_to_owned())
        };
        match copy {
            Ok(file) => Temporary { handle, file: file.into() },
            Err(error) => fail(&error),
        }
    }

    /// Another handle of the file.
    pub fn share(&self) -> File {
        self.file.try_clone().unwrap_or_else(|error| fail(&error))
    }

    /// Removes the file. What is mapped of it stays.
    pub fn close(self) {
        // SAFETY: it is open.
        unsafe { pg_sys::FileClose(self.handle) };
    }
}

/// Ends the statement if temporary files of so many bytes are more than `temp_file_limit` allows.
pub fn check_limit(bytes: u64) {
    // SAFETY: a setting, in kilobytes.
    let limit = unsafe { pg_sys::temp_file_limit };
    if u64::try_from(limit).is_ok_and(|limit| bytes > limit * 1024) {
        let message = format!("temporary file size exceeds \"temp_file_limit\" ({limit}kB)");
        refuse(Code::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, &message);
    }
}

fn fail(error: &io::Error) -> ! {
    refuse(code_of(error), &format!("could not write a temporary file: {error}"))
}

/// Makes room for so many more, or ends the statement.
pub fn reserve<V>(values: &mut Vec<V>, more: usize) {
    if values.try_reserve(more).is_err() {
        refuse(Code::ERRCODE_OUT_OF_MEMORY, "out of memory: the rows of an index");
    }
}

/// Vectors, one after the other.
pub enum Rows<T> {
    /// In memory.
    Memory(Vec<T>),
    /// In a file, but for the last few.
    File { temporary: Temporary, written: u64, last: Vec<u8>, elements: PhantomData<T> },
}

impl<T: Element> Rows<T> {
    /// Appends a vector.
    pub fn push(&mut self, vector: &[T]) {
        match self {
            Rows::Memory(values) => {
                reserve(values, vector.len());
                values.extend_from_slice(vector);
            }
            Rows::File { temporary, written, last, .. } => {
                T::extend_bytes(vector, last);
                if last.len() >= CHUNK {
                    write(temporary, written, last);
                }
            }
        }
    }

    /// Moves all that is in memory into a file.
    pub fn spill(&mut self) {
        let Rows::Memory(values) = self else { return };
        let (values, temporary) = (std::mem::take(values), Temporary::new());
        *self = Rows::File { temporary, written: 0, last: Vec::new(), elements: PhantomData };
        values.chunks(CHUNK / size_of::<T>()).for_each(|values| self.push(values));
    }

    /// Calls `read` with all vectors, then forgets them.
    pub fn consume<R>(self, read: impl FnOnce(&[T]) -> R) -> R {
        match self {
            Rows::Memory(values) => read(&values),
            Rows::File { temporary, mut written, mut last, .. } => {
                write(&temporary, &mut written, &mut last);
                // SAFETY: nobody else knows the file.
                let map = unsafe { Mmap::map(&temporary.file) };
                let map = map.unwrap_or_else(|error| fail(&error));
                let count = written as usize / size_of::<T>();
                // SAFETY: `written` bytes of `T`s, which any bytes are, from a page's beginning on.
                let values = unsafe { std::slice::from_raw_parts(map.as_ptr().cast::<T>(), count) };
                let result = read(values);
                drop(map);
                temporary.close();
                result
            }
        }
    }

    /// Bytes in the file.
    pub fn spilled(&self) -> u64 {
        match self {
            Rows::Memory(_) => 0,
            Rows::File { written, last, .. } => written + last.len() as u64,
        }
    }
}

fn write(temporary: &Temporary, written: &mut u64, last: &mut Vec<u8>) {
    check_limit(*written + last.len() as u64);
    (&temporary.file).write_all(last).unwrap_or_else(|error| fail(&error));
    *written += last.len() as u64;
    last.clear();
}
