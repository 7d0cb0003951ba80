//! An index shared by threads: who may hold which lock, and when.
//!
//! - `held`, the read-write lock around the index. Searches take it query by query, a change takes it for one write
//!   of a few milliseconds, so neither waits long for the other.
//! - `gate` keeps long readers (a save, a filter written in Python) apart from writes. A write that waited for them in
//!   `held`'s queue would hold off all searches behind it; at the gate it holds off nobody.
//! - `turn` is had by one change from beginning to end.
//!
//! They are taken in the order turn, gate, held, and always with the GIL released: a thread that has a lock may wait
//! for the GIL, so no thread that has the GIL may wait for a lock.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use ann_core::{AnyIndex, DiskAnn, Flat, Hnsw, IvfPq, MemStore, MmapStore};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use pyo3::prelude::*;

use crate::failure::{Answer, Failure};

/// How often a thread that waits for its turn looks for signals.
const LOOK: Duration = Duration::from_millis(100);

/// How long a write waits for readers that it would overtake.
const LET_IN: Duration = Duration::from_millis(2);

thread_local! {
    /// Whether this thread runs a filter written in Python, and so has locks already.
    static FILTERING: Cell<bool> = const { Cell::new(false) };
}

/// An index of any kind in any store.
pub enum Held {
    Hnsw(Hnsw<MemStore>),
    HnswFile(Hnsw<MmapStore>),
    DiskAnn(DiskAnn<MemStore>),
    DiskAnnFile(DiskAnn<MmapStore>),
    IvfPq(IvfPq<MemStore>),
    IvfPqFile(IvfPq<MmapStore>),
    Flat(Flat<MemStore>),
    FlatFile(Flat<MmapStore>),
}

/// Evaluates `$body` with `$index` as the index inside a `Held`.
#[macro_export]
macro_rules! any {
    ($held:expr, $index:ident => $body:expr) => {
        match $held {
            $crate::shared::Held::Hnsw($index) => $body,
            $crate::shared::Held::HnswFile($index) => $body,
            $crate::shared::Held::DiskAnn($index) => $body,
            $crate::shared::Held::DiskAnnFile($index) => $body,
            $crate::shared::Held::IvfPq($index) => $body,
            $crate::shared::Held::IvfPqFile($index) => $body,
            $crate::shared::Held::Flat($index) => $body,
            $crate::shared::Held::FlatFile($index) => $body,
        }
    };
}

/// Evaluates `$body` with `$index` as the IVF-PQ index inside a `Held`; `$else` is the failure if it is another.
#[macro_export]
macro_rules! lists_of {
    ($held:expr, $index:ident => $body:expr, else $else:expr) => {
        match $held {
            $crate::shared::Held::IvfPq($index) => $body,
            $crate::shared::Held::IvfPqFile($index) => $body,
            _ => Err($else),
        }
    };
}

/// Evaluates `$body` with `$index` as the graph inside a `Held`; `$else` is the failure if it is another.
#[macro_export]
macro_rules! graph_of {
    ($held:expr, $index:ident => $body:expr, else $else:expr) => {
        match $held {
            $crate::shared::Held::Hnsw($index) => $body,
            $crate::shared::Held::HnswFile($index) => $body,
            $crate::shared::Held::DiskAnn($index) => $body,
            $crate::shared::Held::DiskAnnFile($index) => $body,
            _ => Err($else),
        }
    };
}

impl Held {
    /// An index in memory, if this package knows its kind.
    pub fn in_memory(index: AnyIndex<MemStore>) -> Option<Held> {
        match index {
            AnyIndex::Hnsw(index) => Some(Held::Hnsw(index)),
            AnyIndex::DiskAnn(index) => Some(Held::DiskAnn(index)),
            AnyIndex::IvfPq(index) => Some(Held::IvfPq(index)),
            AnyIndex::Flat(index) => Some(Held::Flat(index)),
            _ => None,
        }
    }

    /// An index in a file, if this package knows its kind.
    pub fn in_file(index: AnyIndex) -> Option<Held> {
        match index {
            AnyIndex::Hnsw(index) => Some(Held::HnswFile(index)),
            AnyIndex::DiskAnn(index) => Some(Held::DiskAnnFile(index)),
            AnyIndex::IvfPq(index) => Some(Held::IvfPqFile(index)),
            AnyIndex::Flat(index) => Some(Held::FlatFile(index)),
            _ => None,
        }
    }
}

/// An index and its locks.
pub struct Shared {
    held: RwLock<Option<Held>>,
    /// Threads that wait to read.
    readers: AtomicUsize,
    gate: Mutex<()>,
    turn: Mutex<Option<ThreadId>>,
    turn_is_over: Condvar,
}

impl Shared {
    pub fn new(held: Held) -> Shared {
        Shared {
            held: RwLock::new(Some(held)),
            readers: AtomicUsize::new(0),
            gate: Mutex::new(()),
            turn: Mutex::new(None),
            turn_is_over: Condvar::new(),
        }
    }

    /// For reads as short as a few searches.
    pub fn read(&self) -> Reading<'_> {
        let guard = match is_filtering() {
            // A filter's thread has the lock already: it must not queue behind a write that waits for it.
            true => self.held.read_recursive(),
            false => self.held.try_read().unwrap_or_else(|| self.wait(|| self.held.read())),
        };
        Reading { guard, _gate: None }
    }

    /// Lets writers know of a reader that waits.
    fn wait<R>(&self, until: impl FnOnce() -> R) -> R {
        self.readers.fetch_add(1, Ordering::Relaxed);
        let answer = until();
        self.readers.fetch_sub(1, Ordering::Relaxed);
        answer
    }

    /// For reads of any length.
    pub fn read_long(&self) -> Reading<'_> {
        let gate = (!is_filtering()).then(|| self.gate.lock());
        Reading { _gate: gate, ..self.read() }
    }

    /// One write, a few milliseconds long.
    pub fn write<R>(&self, change: impl FnOnce(&mut Held) -> Answer<R>) -> Answer<R> {
        let gate = self.gate.lock();
        self.let_in();
        let mut held = self.held.write();
        let answer = held.as_mut().ok_or(Failure::Closed).and_then(change);
        RwLockWriteGuard::unlock_fair(held);
        MutexGuard::unlock_fair(gate);
        answer
    }

    /// Waits a moment for readers that the last write kept out. A fair lock alone does not do that: a reader that
    /// still spins is passed over, and on the writer's own core it gets no time to do anything else.
    fn let_in(&self) {
        let begun = Instant::now();
        while self.readers.load(Ordering::Relaxed) > 0 && begun.elapsed() < LET_IN {
            thread::yield_now();
        }
    }

    /// Closes the index once `last` has succeeded on it; afterwards it does nothing.
    pub fn close(&self, last: impl FnOnce(&mut Held) -> Answer<()>) -> Answer<()> {
        let _gate = self.gate.lock();
        let mut held = self.held.write();
        if let Some(index) = held.as_mut() {
            last(index)?;
        }
        *held = None;
        Ok(())
    }

    /// Waits until no other change is being made; until the answer is dropped none other is.
    pub fn take_turn(&self, py: Python<'_>) -> Answer<Turn<'_>> {
        let me = thread::current().id();
        loop {
            let taken = py.detach(|| {
                let mut turn = self.turn.lock();
                if is_filtering() || *turn == Some(me) {
                    return Err(Failure::Nested);
                }
                if turn.is_some() {
                    self.turn_is_over.wait_for(&mut turn, LOOK);
                }
                let free = turn.is_none();
                if free {
                    *turn = Some(me);
                }
                Ok(free)
            })?;
            if taken {
                return Ok(Turn(self));
            }
            py.check_signals()?;
        }
    }
}

/// Read access to the index.
pub struct Reading<'a> {
    guard: RwLockReadGuard<'a, Option<Held>>,
    _gate: Option<MutexGuard<'a, ()>>,
}

impl Reading<'_> {
    /// The index, unless it has been closed.
    pub fn index(&self) -> Answer<&Held> {
        self.guard.as_ref().ok_or(Failure::Closed)
    }
}

/// The right to change the index.
pub struct Turn<'a>(&'a Shared);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.turn.lock() = None;
        self.0.turn_is_over.notify_one();
    }
}

/// Whether this thread runs a filter written in Python.
pub fn is_filtering() -> bool {
    FILTERING.get()
}

/// Runs a search whose filter is written in Python, and may use indexes itself.
pub fn filtering<R>(search: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            FILTERING.set(self.0);
        }
    }
    let _restore = Restore(FILTERING.replace(true));
    search()
}
