//! Many queries, on one thread or several, each under the lock for itself.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ann_core::Error;
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::failure::{Answer, Failure};
use crate::filter::Chosen;
use crate::shared::{Held, Shared, is_filtering};

/// Queries that a thread takes at once, at most.
const CHUNK: usize = 16;

/// How often a long call looks for signals.
const LOOK: Duration = Duration::from_millis(100);

/// Calls `search` with the index, for each row its number and its place in `found`. Of several rows that fail, the
/// first is reported. Call it without the GIL.
pub fn each<F: Send>(
    shared: &Shared,
    filter: &Chosen<'_>,
    threads: usize,
    found: &mut [F],
    search: impl Fn(&Held, usize, &mut F) -> Answer<()> + Sync,
) -> Answer<()> {
    let threads = match threads {
        // Other threads would queue behind writes that wait for this one.
        _ if filter.is_function() || is_filtering() || found.len() == 1 => 1,
        0 => thread::available_parallelism().map_or(1, NonZero::get),
        threads => threads,
    };
    let size = match filter.is_function() {
        true => 1,
        false => (found.len() / (4 * threads)).clamp(1, CHUNK),
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
            let mut reading = match filter.is_function() {
                true => shared.read_long(),
                false => shared.read(),
            };
            for (place, row) in places.iter_mut().zip(chunk * size..) {
                if row >= end.load(Ordering::Relaxed) {
                    return;
                }
                let done = filter.run(|| search(reading.index()?, row, place));
                if let Err(failure) = done {
                    return fail(row, at_row(failure, row));
                }
                reading.give_way();
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

/// The core counts a single query as row 0.
fn at_row(failure: Failure, row: usize) -> Failure {
    let Failure::Core(error) = failure else {
        return failure;
    };
    Failure::Core(match error {
        Error::NotFinite { column, value, .. } => Error::NotFinite { row, column, value },
        Error::TooLong { norm, .. } => Error::TooLong { row, norm },
        Error::ZeroVector { .. } => Error::ZeroVector { row },
        other => other,
    })
}
