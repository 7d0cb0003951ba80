//! The page store: a numbered set of equal-sized pages that an index lives in.
//!
//! An index never sees a file or an allocation, only pages. The first [`HEADER`] bytes of each page belong to the
//! store (checksum, page number, a database's own header); the index has the rest, the page's *body*, which
//! therefore starts 64-byte aligned.
//!
//! Reading is `&self` and writing is `&mut self`: within one process the borrow checker is the latch. A store
//! whose pages other processes can change (Postgres) latches in [`PageStore::read`] and [`PageStore::write`];
//! its callers hold one read guard at a time and decide on what they see *inside* a write, not on an earlier read.

#[doc(hidden)]
pub mod conformance;
mod disk;
mod file;
mod journal;
mod layout;
mod mem;
mod memory;
mod mmap;
mod testdisk;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;

use std::ops::{Deref, Range};

pub use file::save;
pub use mem::MemStore;
pub use mmap::MmapStore;

use crate::error::{Error, Result};

/// Bytes at the start of each page that belong to the store.
pub const HEADER: usize = 64;

/// The most pages that one [`PageStore::write`] takes (Postgres logs at most four pages in one record).
pub const MAX_WRITE: usize = 4;

/// Smallest page size, in bytes.
pub const MIN_PAGE_SIZE: usize = 4 << 10;

/// Largest page size, in bytes.
pub const MAX_PAGE_SIZE: usize = 1 << 20;

/// A page's number, from 0. Page 0 is the index's meta page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

/// A numbered set of equal-sized pages. `tests/` holds every store to the contract written here.
pub trait PageStore: Send + Sync {
    /// Read access to one page's body; a latch, where the store has latches.
    type Page<'a>: Deref<Target = [u8]>
    where
        Self: 'a;

    /// Whether others can change the pages while a handle has them: what a handle remembers may then be out of date.
    const SHARED: bool = false;

    /// Bytes a page, header included: a power of two from 4 KiB to 1 MiB. Never changes.
    fn page_size(&self) -> usize;

    /// Pages in the store.
    fn page_count(&self) -> u32;

    /// The body of a page, without copying it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is no such page; whatever the store's medium reports.
    fn read(&self, page: PageId) -> Result<Self::Page<'_>>;

    /// A hint that `bytes` of the body of `page` will be read soon. Never fails, whatever the numbers.
    fn prefetch(&self, page: PageId, bytes: Range<usize>);

    /// All pages as one slice, headers included, where they lie in memory one after the other and nobody else
    /// can change them during a borrow: page `p` starts at `p * page_size`. `None` elsewhere.
    fn contiguous(&self) -> Option<&[u8]>;

    /// Moves what is in memory to where the system can write it out when memory is short: a temporary file. Does
    /// nothing where that is so already.
    ///
    /// # Errors
    /// [`Error::Io`]; the pages are then where they were.
    fn leave_memory(&mut self) -> Result<()> {
        Ok(())
    }

    /// Makes the store at least `pages` pages large. New pages' bodies are all zero.
    ///
    /// # Errors
    /// When memory or disk space runs out; the store is then as it was.
    fn grow(&mut self, pages: u32) -> Result<()>;

    /// Changes up to [`MAX_WRITE`] different pages, which take effect together or not at all, crash included.
    /// `change` sees the pages as they are now, under the exclusive latch, and says what to put where; if it
    /// returns an error, nothing is changed. The order in `pages` is the caller's own; a store that latches does
    /// so in ascending order.
    ///
    /// # Errors
    /// What `change` returns; [`Error::Corrupt`] for a page that does not exist; [`Error::ReadOnly`]; whatever
    /// the medium reports. The pages are then as they were.
    fn write<R>(
        &mut self,
        pages: &[PageId],
        change: impl FnOnce(&mut Pages<'_>) -> Result<R>,
    ) -> Result<R>;

    /// Makes all that was written durable before it returns.
    ///
    /// # Errors
    /// Whatever the medium reports; what was written stays visible and can be flushed again.
    fn flush(&mut self) -> Result<()>;
}

/// The pages of one write: their bodies as they are, and the changes that will be made to them.
pub struct Pages<'a> {
    bodies: [&'a [u8]; MAX_WRITE],
    patches: &'a mut Patches,
}

impl<'a> Pages<'a> {
    /// For stores: the bodies in the order of the caller's list, and a buffer that is empty.
    pub fn new(bodies: [&'a [u8]; MAX_WRITE], patches: &'a mut Patches) -> Pages<'a> {
        patches.clear();
        Pages { bodies, patches }
    }

    /// The body of the `index`-th page of the write, without the changes put so far.
    pub fn body(&self, index: usize) -> &'a [u8] {
        self.bodies[index]
    }

    /// Replaces bytes of the `index`-th page's body from `offset` on, when the write takes effect.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the bytes do not fit the body.
    pub fn put(&mut self, index: usize, offset: usize, bytes: &[u8]) -> Result<()> {
        let body = self.bodies[index].len();
        if offset > body || bytes.len() > body - offset {
            let what = format!("a change at {offset}..+{} leaves the page", bytes.len());
            return Err(Error::corrupt(0, what));
        }
        self.patches.push(index, offset, bytes);
        Ok(())
    }
}

/// The changes of one write, gathered before any of them is made. A store keeps one and uses it again.
#[derive(Default)]
pub struct Patches {
    list: Vec<(u32, u32, u32)>,
    bytes: Vec<u8>,
}

impl Patches {
    fn clear(&mut self) {
        self.list.clear();
        self.bytes.clear();
    }

    fn push(&mut self, index: usize, offset: usize, bytes: &[u8]) {
        self.list.push((index as u32, offset as u32, bytes.len() as u32));
        self.bytes.extend_from_slice(bytes);
    }

    /// The changes in the order in which they were put: index into the write's list, offset in the body, bytes.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize, &[u8])> {
        let mut at = 0;
        self.list.iter().map(move |&(index, offset, len)| {
            let bytes = &self.bytes[at..at + len as usize];
            at += len as usize;
            (index as usize, offset as usize, bytes)
        })
    }
}

/// Checks a page size at the door.
pub(crate) fn check_page_size(page_size: usize) -> Result<()> {
    if page_size.is_power_of_two() && (MIN_PAGE_SIZE..=MAX_PAGE_SIZE).contains(&page_size) {
        return Ok(());
    }
    let allowed = format!("a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}");
    Err(Error::parameter("page_size", page_size, allowed))
}
