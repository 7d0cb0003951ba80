//! A relation's pages as a page store of the core's: buffers, their locks, and generic WAL.
//!
//! A body is a page's special space, which begins behind the header's 64 bytes: Postgres then takes what is between
//! its own header and the body for the page's hole, and logs all of the body that changes.

use std::cell::Cell;
use std::ops::{Deref, Range};

use ann_core::{Error, HEADER, MAX_WRITE, PageId, PageStore, Pages, Patches, Result, prefetch_at};
use pg_sys::ForkNumber::MAIN_FORKNUM;
use pgrx::pg_sys;

use crate::recent::{NOWHERE, Recent};

/// Bytes a page.
pub const PAGE: usize = pg_sys::BLCKSZ as usize;

/// The pages of an index relation.
pub struct PgStore {
    relation: Cell<pg_sys::Relation>,
    pages: Cell<u32>,
    recent: Recent,
    patches: Patches,
}

// SAFETY: the core asks for it so that its own threads can share an index. Those that work on a relation's pages are
// the backend's main thread only: callers start no others, and pgrx stops any that call Postgres.
unsafe impl Send for PgStore {}
// SAFETY: as above.
unsafe impl Sync for PgStore {}

impl PgStore {
    /// The pages of an index.
    ///
    /// # Safety
    /// `relation` is an open index relation, and stays open until the store is dropped or gets another by
    /// [`PgStore::attach`].
    pub unsafe fn new(relation: pg_sys::Relation) -> PgStore {
        let store = PgStore {
            relation: Cell::new(relation),
            pages: Cell::new(0),
            recent: Recent::default(),
            patches: Patches::default(),
        };
        store.count_pages();
        store
    }

    /// Goes on with the same index, opened again.
    ///
    /// # Safety
    /// As [`PgStore::new`]; it is the same relation with the same file.
    pub unsafe fn attach(&self, relation: pg_sys::Relation) {
        self.relation.set(relation);
    }

    /// Asks for the relation's size.
    fn count_pages(&self) {
        // SAFETY: the relation is open.
        let pages =
            unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.relation.get(), MAIN_FORKNUM) };
        self.pages.set(pages);
    }

    fn check(&self, page: PageId) -> Result<()> {
        if page.0 >= self.pages.get() {
            self.count_pages();
        }
        match page.0 < self.pages.get() {
            true => Ok(()),
            false => {
                let what = format!("there is no such page, the relation has {}", self.pages.get());
                Err(Error::Corrupt { page: page.0, what })
            }
        }
    }

    /// Pins a page that is there.
    fn pin(&self, page: PageId) -> pg_sys::Buffer {
        let relation = self.relation.get();
        // SAFETY: the relation is open and has the page.
        unsafe {
            if let Some(buffer) = self.recent.to_pin(page.0) {
                #[cfg(feature = "pg15")]
                let file = (*relation).rd_node;
                #[cfg(not(feature = "pg15"))]
                let file = (*relation).rd_locator;
                if pg_sys::ReadRecentBuffer(file, MAIN_FORKNUM, page.0, buffer) {
                    count_hit(relation);
                    return buffer;
                }
                self.recent.was_wrong();
            }
            let (mode, none) = (pg_sys::ReadBufferMode::RBM_NORMAL, std::ptr::null_mut());
            let buffer = pg_sys::ReadBufferExtended(relation, MAIN_FORKNUM, page.0, mode, none);
            self.recent.put(page.0, buffer);
            buffer
        }
    }
}

/// Tells the statistics what they do not hear of where a page is not looked up.
///
/// # Safety
/// `relation` is an open relation.
unsafe fn count_hit(relation: pg_sys::Relation) {
    // SAFETY: the caller's; the counters are this backend's.
    unsafe {
        if let Some(info) = (*relation).pgstat_info.as_mut() {
            #[cfg(feature = "pg15")]
            {
                info.t_counts.t_blocks_fetched += 1;
                info.t_counts.t_blocks_hit += 1;
            }
            #[cfg(not(feature = "pg15"))]
            {
                info.counts.blocks_fetched += 1;
                info.counts.blocks_hit += 1;
            }
        }
    }
}

/// Makes a page of zeros one that Postgres knows, its body still zero.
///
/// # Safety
/// `page` is a whole page that the caller may write.
pub unsafe fn init(page: pg_sys::Page) {
    // SAFETY: the caller's.
    unsafe { pg_sys::PageInit(page, PAGE, PAGE - HEADER) };
}

/// Whether a page has never been written.
///
/// # Safety
/// The buffer is pinned.
unsafe fn is_new(buffer: pg_sys::Buffer) -> bool {
    // SAFETY: the caller's; a page begins with a header.
    unsafe { (*pg_sys::BufferGetPage(buffer).cast::<pg_sys::PageHeaderData>()).pd_upper == 0 }
}

/// A locked, pinned page.
pub struct Guard<'a> {
    buffer: pg_sys::Buffer,
    body: &'a [u8],
}

impl Deref for Guard<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.body
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        release(self.buffer);
    }
}

/// Gives a page back, unless an ERROR is on its way: the abort of the transaction then does it.
fn release(buffer: pg_sys::Buffer) {
    if !std::thread::panicking() {
        // SAFETY: the buffer is pinned and locked, once, by us.
        unsafe { pg_sys::UnlockReleaseBuffer(buffer) };
    }
}

/// The body of a page.
///
/// # Safety
/// The buffer stays pinned and locked during `'a`.
unsafe fn body<'a>(buffer: pg_sys::Buffer) -> &'a [u8] {
    // SAFETY: the caller's; a page has PAGE bytes.
    unsafe {
        let page = pg_sys::BufferGetPage(buffer).cast::<u8>();
        std::slice::from_raw_parts(page.add(HEADER), PAGE - HEADER)
    }
}

impl PageStore for PgStore {
    type Page<'a> = Guard<'a>;

    const SHARED: bool = true;

    fn page_size(&self) -> usize {
        PAGE
    }

    fn page_count(&self) -> u32 {
        // Others may have made the relation larger since.
        self.count_pages();
        self.pages.get()
    }

    fn read(&self, page: PageId) -> Result<Guard<'_>> {
        // Nothing is locked here: every loop of the core can be interrupted.
        pgrx::check_for_interrupts!();
        self.check(page)?;
        let buffer = self.pin(page);
        // SAFETY: the buffer is pinned, and not locked by us: the core holds one page at a time.
        let body = unsafe {
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            body(buffer)
        };
        Ok(Guard { buffer, body })
    }

    fn prefetch(&self, page: PageId, bytes: Range<usize>) {
        if page.0 >= self.pages.get() {
            return;
        }
        let buffer = match self.recent.to_ask(page.0) {
            Some(buffer) => buffer,
            // SAFETY: a setting, and the relation is open and has the page.
            None => unsafe {
                if pg_sys::effective_io_concurrency == 0 {
                    return;
                }
                let relation = self.relation.get();
                pg_sys::PrefetchBuffer(relation, MAIN_FORKNUM, page.0).recent_buffer
            },
        };
        if buffer == NOWHERE {
            return;
        }
        self.recent.put(page.0, buffer);
        if buffer > 0 {
            // SAFETY: the server made the array of pins and locks long ago, and it stays where it is.
            let descriptors = unsafe { pg_sys::BufferDescriptors };
            let at = descriptors.wrapping_add(buffer as usize - 1).cast_const();
            prefetch_at(at.cast(), size_of::<pg_sys::BufferDescPadded>());
        }
        // SAFETY: the buffer is one, whatever it holds by now.
        let at = unsafe { pg_sys::BufferGetPage(buffer) }.cast::<u8>();
        let end = bytes.end.min(PAGE - HEADER);
        prefetch_at(
            at.wrapping_add(HEADER + bytes.start.min(end)),
            end.saturating_sub(bytes.start),
        );
    }

    fn contiguous(&self) -> Option<&[u8]> {
        None
    }

    /// The last of the new pages is logged as it is, so that after a crash, and on a standby, all are there.
    fn grow(&mut self, pages: u32) -> Result<()> {
        self.count_pages();
        if pages <= self.pages.get() {
            return Ok(());
        }
        let relation = self.relation.get();
        let exclusive = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
        // SAFETY: the relation is open; the buffer of the last page is pinned and locked when it is registered, and
        // everything is released in the order in which it was taken.
        unsafe {
            pg_sys::LockRelationForExtension(relation, exclusive);
            self.count_pages();
            let mut last = None;
            while self.pages.get() < pages {
                if let Some(buffer) = last {
                    pg_sys::ReleaseBuffer(buffer);
                }
                let (new, none) = (pg_sys::InvalidBlockNumber, std::ptr::null_mut());
                let mode = pg_sys::ReadBufferMode::RBM_NORMAL;
                last = Some(pg_sys::ReadBufferExtended(relation, MAIN_FORKNUM, new, mode, none));
                self.pages.set(self.pages.get() + 1);
            }
            pg_sys::UnlockRelationForExtension(relation, exclusive);
            if let Some(buffer) = last {
                pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
                if is_new(buffer) {
                    let state = pg_sys::GenericXLogStart(relation);
                    let full = pg_sys::GENERIC_XLOG_FULL_IMAGE as i32;
                    init(pg_sys::GenericXLogRegisterBuffer(state, buffer, full));
                    pg_sys::GenericXLogFinish(state);
                }
                pg_sys::UnlockReleaseBuffer(buffer);
            }
        }
        Ok(())
    }

    fn write<R>(
        &mut self,
        pages: &[PageId],
        change: impl FnOnce(&mut Pages<'_>) -> Result<R>,
    ) -> Result<R> {
        let repeated = (1..pages.len().min(MAX_WRITE + 1)).any(|i| pages[..i].contains(&pages[i]));
        if pages.len() > MAX_WRITE || repeated {
            let allowed = format!("at most {MAX_WRITE} pages, all different");
            return Err(Error::Parameter { name: "pages", value: format!("{pages:?}"), allowed });
        }
        pgrx::check_for_interrupts!();
        for &page in pages {
            self.check(page)?;
        }
        let mut order: [usize; MAX_WRITE] = [0, 1, 2, 3];
        let order = &mut order[..pages.len()];
        order.sort_unstable_by_key(|&index| pages[index]);
        let mut buffers = [0; MAX_WRITE];
        for &index in &*order {
            buffers[index] = self.pin(pages[index]);
        }
        let mut bodies: [&[u8]; MAX_WRITE] = [&[]; MAX_WRITE];
        for &index in &*order {
            // SAFETY: the buffer is pinned; pages are locked in ascending order, here as everywhere.
            bodies[index] = unsafe {
                pg_sys::LockBuffer(buffers[index], pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
                body(buffers[index])
            };
        }
        let answer = change(&mut Pages::new(bodies, &mut self.patches));
        if answer.is_ok() && self.patches.iter().any(|(_, _, bytes)| !bytes.is_empty()) {
            let mut images: [pg_sys::Page; MAX_WRITE] = [std::ptr::null_mut(); MAX_WRITE];
            // SAFETY: registered buffers are pinned and locked for writing; the images are whole pages that we may
            // change until the record is finished, and patches lie within a body.
            unsafe {
                let state = pg_sys::GenericXLogStart(self.relation.get());
                for (index, offset, bytes) in
                    self.patches.iter().filter(|patch| !patch.2.is_empty())
                {
                    if images[index].is_null() {
                        let is_new = is_new(buffers[index]);
                        let flags = if is_new { pg_sys::GENERIC_XLOG_FULL_IMAGE as i32 } else { 0 };
                        images[index] =
                            pg_sys::GenericXLogRegisterBuffer(state, buffers[index], flags);
                        if is_new {
                            init(images[index]);
                        }
                    }
                    let at = images[index].cast::<u8>().add(HEADER + offset);
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
                }
                pg_sys::GenericXLogFinish(state);
            }
        }
        for &index in order.iter().rev() {
            release(buffers[index]);
        }
        answer
    }

    /// Does nothing: what is in the log is durable when the transaction is.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
