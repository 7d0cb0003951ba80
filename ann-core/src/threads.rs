//! Threads: a pool of our own for each parallel call, never the global one.

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// The most threads that a call takes.
pub(crate) const MAX_THREADS: usize = 1024;

/// A pool of `threads` threads; 0 means one for each core.
pub(crate) fn pool(threads: usize) -> Result<ThreadPool> {
    if threads > MAX_THREADS {
        return Err(Error::parameter("threads", threads, format!("from 0 to {MAX_THREADS}")));
    }
    ThreadPoolBuilder::new().num_threads(threads).build().map_err(|error| {
        Error::parameter("threads", threads, format!("as many as the system can start ({error})"))
    })
}
