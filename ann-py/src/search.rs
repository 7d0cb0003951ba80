//! Many queries, on one thread or several, a few at a time under the lock.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ann_core::Error;
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::failure::{Answer, Failure};
use crate::filter::Asked;
use crate::shared::{Held, Shared, is_filtering};

/// Queries that a thread takes at once, at most, and candidates that it keeps for all of them: what changes the index
/// waits for them.
const CHUNK: usize = 64;
const CANDIDATES: usize = 32_768;

/// How often a long call looks for signals.
const LOOK: Duration = Duration::from_millis(100);

/// Calls `search` with the index, for some rows the number of the first and their places in `found`. Of several rows
/// that fail, the first is reported: errors count from the first of the call. `pool` is the size of a search's. Call it
/// without the GIL.
pub fn each<F: Send>(
    shared: &Shared,
    asked: &Asked<'_>,
    threads: usize,
    pool: usize,
    found: &mut [F],
    search: impl Fn(&Held, usize, &mut [F]) -> Answer<()> + Sync,
) -> Answer<()> {
    let threads = match threads {
        // Other threads would queue behind writes that wait for this one.
        _ if asked.is_function() || is_filtering() || found.len() == 1 => 1,
        0 => thread::available_parallelism().map_or(1, NonZero::get),
        threads => threads,
    };
    let size = match asked.is_function() {
        true => 1,
        false => (found.len() / (4 * threads)).clamp(1, (CANDIDATES / pool).clamp(1, CHUNK)),
    };
    let threads = threads.min(found.len().div_ceil(size));
    let queue = Mutex::new(found.chunks_mut(size).enumerate());
    // The first row that is known to fail: what comes after it need not be searched.
    let end = AtomicUsize::new(usize::MAX);
    let failed = Mutex::new(None);
    let fail = |row: usize, failure| {
        let mut failed = failed.lock();
        if end.fetch_min(row, Ordering::Relaxed) > row {
            *failed = Some(failure);
        }
    };
    let work = |looks: bool| {
        let mut looked = Instant::now();
        loop {
            let Some((chunk, places)) = queue.lock().next() else {
                break;
            };
            let reading = match asked.is_function() {
                true => shared.read_long(),
                false => shared.read(),
            };
            let first = chunk * size;
            if first >= end.load(Ordering::Relaxed) {
                return;
            }
            if let Err(failure) = asked.run(|| search(reading.index()?, first, places)) {
                let (row, failure) = at_row(failure, first);
                return fail(row, failure);
            }
            drop(reading);
            if looks && looked.elapsed() > LOOK {
                looked = Instant::now();
                if let Err(raised) = Python::attach(|py| py.check_signals()) {
                    return fail(0, raised.into());
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Without one more thread the others do the work.
            let _ = thread::Builder::new().spawn_scoped(scope, || work(false));
        }
        work(true);
    });
    failed.into_inner().map_or(Ok(()), Err)
}

/// The row that a failure is of, and the failure with that; the core counts from the first that it is given.
pub fn at_row(failure: Failure, first: usize) -> (usize, Failure) {
    let Failure::Core(mut error) = failure else {
        return (first, failure);
    };
    let row = match &mut error {
        Error::NotFinite { row, .. }
        | Error::DoesNotFit { row, .. }
        | Error::TooLong { row, .. }
        | Error::ZeroVector { row } => {
            *row += first;
            *row
        }
        _ => first,
    };
    (row, Failure::Core(error))
}
