//! Stores for tests of what is built on stores: one that fails on command, one that latches and changes under its
//! caller, one with many handles, files on a disk that loses its power; and the numbers that seeded tests draw.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use super::testdisk::{PowerCut, Record, TestDisk};
use super::{MemStore, PageId, PageStore, Pages};
use crate::error::{Error, Result};

/// Pseudo-random numbers (splitmix64): the same for the same seed, on every machine.
pub struct Rng(pub u64);

impl Rng {
    /// Any number.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so there is no Option to it")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number less than `end`, which must not be 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// A store that refuses one `write`, `grow` or `flush`, and is then as it was before.
pub struct Faulty<S> {
    inner: S,
    /// Calls that still succeed before the one that fails.
    left: Option<usize>,
    calls: usize,
}

impl<S: PageStore> Faulty<S> {
    /// A store that does not fail yet.
    pub fn new(inner: S) -> Faulty<S> {
        Faulty { inner, left: None, calls: 0 }
    }

    /// Lets `calls` more calls succeed and the next one fail; those after it succeed again.
    pub fn fail_after(&mut self, calls: usize) {
        self.left = Some(calls);
    }

    /// Calls of `write`, `grow` and `flush` so far.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// The store without its faults.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Counts a call, which may be the one to fail.
    fn call(&mut self) -> Result<()> {
        self.calls += 1;
        let left = self.left.take();
        if left == Some(0) {
            return Err(Error::io("writing", Path::new("faulty"))(io::Error::other("injected")));
        }
        self.left = left.map(|left| left - 1);
        Ok(())
    }
}

impl<S: PageStore> PageStore for Faulty<S> {
    type Page<'a>
        = S::Page<'a>
    where
        S: 'a;

    const SHARED: bool = S::SHARED;

    fn page_size(&self) -> usize {
        self.inner.page_size()
    }

    fn page_count(&self) -> u32 {
        self.inner.page_count()
    }

    fn read(&self, page: PageId) -> Result<S::Page<'_>> {
        self.inner.read(page)
    }

    fn prefetch(&self, page: PageId, bytes: Range<usize>) {
        self.inner.prefetch(page, bytes);
    }

    fn contiguous(&self) -> Option<&[u8]> {
        self.inner.contiguous()
    }

    fn grow(&mut self, pages: u32) -> Result<()> {
        self.call()?;
        self.inner.grow(pages)
    }

    /// Fails after `change` has run, which is where a medium fails.
    fn write<R>(
        &mut self,
        pages: &[PageId],
        change: impl FnOnce(&mut Pages<'_>) -> Result<R>,
    ) -> Result<R> {
        let call = self.call();
        self.inner.write(pages, |pages| {
            let answer = change(pages)?;
            call.map(|()| answer)
        })
    }

    fn flush(&mut self) -> Result<()> {
        self.call()?;
        self.inner.flush()
    }
}

/// One of many handles on the same pages, as a database's processes have them: each reads a page and writes a few
/// whenever it likes, and knows nothing of the others.
#[derive(Clone)]
pub struct Common(Arc<Mutex<MemStore>>);

impl Common {
    /// A first handle; the others are its clones.
    pub fn new(inner: MemStore) -> Common {
        Common(Arc::new(Mutex::new(inner)))
    }

    fn inner(&self) -> MutexGuard<'_, MemStore> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageStore for Common {
    type Page<'a> = Vec<u8>;

    const SHARED: bool = true;

    fn page_size(&self) -> usize {
        self.inner().page_size()
    }

    fn page_count(&self) -> u32 {
        self.inner().page_count()
    }

    fn read(&self, page: PageId) -> Result<Vec<u8>> {
        Ok(self.inner().read(page)?.to_vec())
    }

    fn prefetch(&self, _: PageId, _: Range<usize>) {}

    fn contiguous(&self) -> Option<&[u8]> {
        None
    }

    fn grow(&mut self, pages: u32) -> Result<()> {
        self.inner().grow(pages)
    }

    fn write<R>(
        &mut self,
        pages: &[PageId],
        change: impl FnOnce(&mut Pages<'_>) -> Result<R>,
    ) -> Result<R> {
        self.inner().write(pages, change)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

thread_local! {
    /// Read guards that this thread holds on latched stores.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// What another process does to a store before a write gets its latches.
type Meddler<S> = Box<dyn FnMut(&mut S, &[PageId]) + Send>;

/// A store as a database's: not contiguous, latched, and changed by others between a read and a write.
///
/// It panics when a thread takes a second read guard, or grows, writes or flushes while it holds one.
pub struct Latched<S> {
    inner: S,
    meddler: Option<Mutex<Meddler<S>>>,
}

impl<S: PageStore> Latched<S> {
    /// A store that nobody else changes yet.
    pub fn new(inner: S) -> Latched<S> {
        Latched { inner, meddler: None }
    }

    /// From now on `meddler` runs at the beginning of every write, with the pages that it is going to latch.
    pub fn meddle(&mut self, meddler: impl FnMut(&mut S, &[PageId]) + Send + 'static) {
        self.meddler = Some(Mutex::new(Box::new(meddler)));
    }

    /// The store without its latches.
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn no_guard(what: &str) {
        let held = HELD.get();
        assert!(held == 0, "{what} while this thread holds {held} read guard");
    }
}

/// A read latch on one page. It belongs to the thread that took it.
pub struct LatchedPage<P> {
    page: P,
    thread: PhantomData<*const ()>,
}

impl<P: Deref<Target = [u8]>> Deref for LatchedPage<P> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.page
    }
}

impl<P> Drop for LatchedPage<P> {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
    }
}

impl<S: PageStore> PageStore for Latched<S> {
    type Page<'a>
        = LatchedPage<S::Page<'a>>
    where
        S: 'a;

    const SHARED: bool = S::SHARED;

    fn page_size(&self) -> usize {
        self.inner.page_size()
    }

    fn page_count(&self) -> u32 {
        self.inner.page_count()
    }

    fn read(&self, page: PageId) -> Result<Self::Page<'_>> {
        Self::no_guard("read");
        let page = self.inner.read(page)?;
        HELD.set(HELD.get() + 1);
        Ok(LatchedPage { page, thread: PhantomData })
    }

    fn prefetch(&self, page: PageId, bytes: Range<usize>) {
        self.inner.prefetch(page, bytes);
    }

    fn contiguous(&self) -> Option<&[u8]> {
        None
    }

    fn grow(&mut self, pages: u32) -> Result<()> {
        Self::no_guard("grow");
        self.inner.grow(pages)
    }

    fn write<R>(
        &mut self,
        pages: &[PageId],
        change: impl FnOnce(&mut Pages<'_>) -> Result<R>,
    ) -> Result<R> {
        Self::no_guard("write");
        if let Some(meddler) = &mut self.meddler {
            let meddler = meddler.get_mut().unwrap_or_else(PoisonError::into_inner);
            meddler(&mut self.inner, pages);
        }
        // A latch that `change` would take beside those of the write can deadlock: a guard held counts for it too.
        HELD.set(1);
        let _held = LatchedPage { page: (), thread: PhantomData };
        self.inner.write(pages, change)
    }

    fn flush(&mut self) -> Result<()> {
        Self::no_guard("flush");
        self.inner.flush()
    }
}
