//! A store that counts what is asked of it, and refuses when that becomes too much: work as an exact number, and an
//! end to loops that have none.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use ann_core::{Error, PageId, PageStore, Pages, Result};

/// Counts reads and writes of pages. Not contiguous, so that every record read is counted.
pub struct Metered<S> {
    inner: S,
    used: AtomicU64,
    limit: u64,
}

impl<S: PageStore> Metered<S> {
    /// Refuses after `limit` calls.
    pub fn new(inner: S, limit: u64) -> Metered<S> {
        Metered { inner, used: AtomicU64::new(0), limit }
    }

    /// Calls so far.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn charge(&self) -> Result<()> {
        if self.used.fetch_add(1, Ordering::Relaxed) < self.limit {
            return Ok(());
        }
        Err(Error::OutOfMemory { what: "the meter", bytes: self.limit })
    }
}

/// Whether an error is the meter's own.
pub fn ran_out(error: &Error) -> bool {
    matches!(error, Error::OutOfMemory { what: "the meter", .. })
}

impl<S: PageStore> PageStore for Metered<S> {
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
        self.charge()?;
        self.inner.read(page)
    }

    fn prefetch(&self, page: PageId, bytes: Range<usize>) {
        self.inner.prefetch(page, bytes);
    }

    fn contiguous(&self) -> Option<&[u8]> {
        None
    }

    fn grow(&mut self, pages: u32) -> Result<()> {
        self.charge()?;
        self.inner.grow(pages)
    }

    fn write<R>(
        &mut self,
        pages: &[PageId],
        change: impl FnOnce(&mut Pages<'_>) -> Result<R>,
    ) -> Result<R> {
        self.charge()?;
        self.inner.write(pages, change)
    }

    fn flush(&mut self) -> Result<()> {
        self.inner.flush()
    }
}
