//! The file store: a mapping of the file, and for a writer the journal that makes each flush all or nothing.
//!
//! A writer changes a private mapping, which the file never sees. A flush then
//! 1. writes pages that the file does not have yet, past its end, where no reader looks, and syncs;
//! 2. writes the changed pages and page 0, which has the new page count, to the [journal](super::journal) and syncs;
//! 3. writes the same pages to the file and syncs, and empties the journal.
//!
//! Stopped before the journal is whole, the file is as the flush before left it; stopped later, the next open finds
//! all of it in the journal. A full disk is met in step 1 or 2, where nothing is lost by it.
//!
//! The file is extended before new pages are mapped, by zeros that are written: a hole would do on most file systems,
//! but on some a full disk would then be met by touching memory, which is a signal, and not by `grow`, which is an
//! error. What a mapping cannot survive is a disk that fails to read, or another program that cuts the file under it;
//! the lock on the file keeps away those that ask.

use std::collections::BTreeSet;
use std::fs::File;
use std::iter;
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, MmapMut, MmapOptions};

use super::disk::{Disk, DiskFile};
use super::file::{self, Header};
use super::journal::{Journal, Redo};
use super::layout::Layout;
use super::{PageId, PageStore, Pages, Patches, check_page_size};
use crate::error::{Error, Result};

/// Bytes of changed pages from which on a write flushes first.
const DIRTY: usize = 64 << 20;

/// The least by which a file is extended, in bytes.
const STEP: u64 = 1 << 20;

/// A page store in a file that is mapped, not read: opening takes the same short time whatever the size.
///
/// One writer or many readers may have a file open, in this or any other process. When changes add up to 64 MiB a
/// write flushes those before it by itself. Dropping a writer flushes it too, but cannot say whether that worked:
/// call [`flush`](PageStore::flush) to know.
pub struct MmapStore {
    layout: Layout,
    access: Access,
}

enum Access {
    Reader { map: Mmap, _lock: DiskFile },
    Writer(Box<Writer>),
}

struct Writer {
    map: MmapMut,
    file: DiskFile,
    journal: Journal,
    /// Page 0's header in the newest transaction, or in the file if there is none.
    first: Header,
    /// The last flush that was tried.
    sequence: u64,
    /// Pages that changed since the last flush that succeeded. They have stale checksums.
    dirty: BTreeSet<u32>,
    /// How many of them are enough for a flush.
    dirty_limit: usize,
    patches: Patches,
}

impl MmapStore {
    /// Opens a file to read it. Pages that a writer left in the journal, when it was stopped in the middle of a flush,
    /// are read into memory; the file stays as it is.
    ///
    /// # Errors
    /// [`Error::Locked`] while a writer has it open; [`Error::NotAnIndex`], [`Error::Version`] or [`Error::Corrupt`]
    /// for what is not a whole page store in this format; [`Error::Io`].
    pub fn open(path: &Path) -> Result<MmapStore> {
        let file = Disk::default().open(path, false)?;
        let redo = Redo::of(&file)?;
        let layout = file::read_first(&file, redo.image(0))?.layout();
        let map = if redo.images().next().is_none() {
            map_shared(&file, layout.file_len())?
        } else {
            let mut map = map_private(&file)?;
            for (page, image) in redo.images() {
                map[layout.run(page..page + 1)].copy_from_slice(image);
            }
            map.make_read_only().map_err(Error::io("mapping", path))?
        };
        Ok(MmapStore { layout, access: Access::Reader { map, _lock: file } })
    }

    /// Opens a file to read and change it. A flush in which an earlier writer was stopped is finished first, if it got
    /// far enough, or else undone.
    ///
    /// # Errors
    /// As [`open`](MmapStore::open); [`Error::Locked`] also while a reader has it open.
    pub fn open_writable(path: &Path) -> Result<MmapStore> {
        MmapStore::open_writable_on(Disk::default(), path)
    }

    pub(super) fn open_writable_on(disk: Disk, path: &Path) -> Result<MmapStore> {
        let file = disk.open(path, true)?;
        let redo = Redo::of(&file)?;
        let first = file::read_first(&file, redo.image(0))?;
        let layout = first.layout();
        let mut journal = Journal::of(&file, disk);
        journal.replay(&redo, &file)?;
        // Pages beyond the count are of a flush that was not finished. New pages must be zero.
        if file.len()? > layout.file_len() {
            file.set_len(layout.file_len())?;
        }
        let writer = Writer {
            map: map_private(&file)?,
            file,
            journal,
            first,
            sequence: first.sequence.get(),
            dirty: BTreeSet::new(),
            dirty_limit: DIRTY / layout.page_size,
            patches: Patches::default(),
        };
        Ok(MmapStore { layout, access: Access::Writer(Box::new(writer)) })
    }

    /// Makes a file with no pages, and opens it to change it.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless `page_size` is a power of two from 4 KiB to 1 MiB; [`Error::Io`], also if there is
    /// a file of that name.
    pub fn create(path: &Path, page_size: usize) -> Result<MmapStore> {
        MmapStore::create_on(Disk::default(), path, page_size)
    }

    pub(super) fn create_on(disk: Disk, path: &Path, page_size: usize) -> Result<MmapStore> {
        check_page_size(page_size)?;
        let file = disk.create_new(path)?;
        let made = || {
            // New files all begin alike, so a journal that outlived its file might seem to continue this one.
            let journal = file::journal_path(path);
            if journal.exists() {
                disk.remove(&journal)?;
                disk.sync_folder_of(path)?;
            }
            let mut image = file::bytes(page_size, "a page")?;
            Header::first(page_size, 0).seal(&mut image);
            file.write_at(0, &image)?;
            file.sync()?;
            disk.sync_folder_of(path)
        };
        if let Err(error) = made() {
            // The first error is the one to report.
            let _ = disk.remove(path);
            return Err(error);
        }
        MmapStore::open_writable_on(disk, path)
    }

    /// Checks every page against its checksum. Pages that were changed and not flushed have none yet.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first damaged page.
    pub fn verify_pages(&self) -> Result<()> {
        let (layout, changed) = match &self.access {
            Access::Reader { .. } => (self.layout, None),
            Access::Writer(writer) => (writer.first.layout(), Some(&writer.dirty)),
        };
        let on_disk = &self.bytes()[..layout.file_len() as usize];
        file::check_all(on_disk, layout.page_size, |page| {
            changed.is_some_and(|changed| changed.contains(&page))
        })
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        match &self.access {
            Access::Reader { map, .. } => map,
            Access::Writer(writer) => &writer.map,
        }
    }

    fn writer(&mut self) -> Result<(&mut Writer, Layout)> {
        match &mut self.access {
            Access::Reader { .. } => Err(Error::ReadOnly),
            Access::Writer(writer) => Ok((writer, self.layout)),
        }
    }

    /// Makes writes flush from this many changed pages on.
    #[cfg(test)]
    pub(super) fn set_dirty_limit(&mut self, pages: usize) -> Result<()> {
        self.writer()?.0.dirty_limit = pages;
        Ok(())
    }
}

impl PageStore for MmapStore {
    type Page<'a> = &'a [u8];

    #[inline]
    fn page_size(&self) -> usize {
        self.layout.page_size
    }

    #[inline]
    fn page_count(&self) -> u32 {
        self.layout.pages
    }

    #[inline]
    fn read(&self, page: PageId) -> Result<&[u8]> {
        Ok(&self.bytes()[self.layout.body(page)?])
    }

    #[inline]
    fn prefetch(&self, page: PageId, bytes: Range<usize>) {
        self.layout.prefetch(self.bytes(), page, bytes);
    }

    #[inline]
    fn contiguous(&self) -> Option<&[u8]> {
        Some(&self.bytes()[..self.layout.len()])
    }

    fn grow(&mut self, pages: u32) -> Result<()> {
        let (writer, layout) = self.writer()?;
        if pages > layout.pages {
            let grown = Layout { pages, ..layout };
            if grown.file_len() > writer.map.len() as u64 {
                writer.extend(grown)?;
            }
            self.layout = grown;
        }
        Ok(())
    }

    fn write<R>(
        &mut self,
        pages: &[PageId],
        change: impl FnOnce(&mut Pages<'_>) -> Result<R>,
    ) -> Result<R> {
        let (writer, layout) = self.writer()?;
        // Only here, between writes, are all pages in a state that may outlive this process.
        if writer.dirty.len() >= writer.dirty_limit {
            writer.flush(layout)?;
        }
        let Writer { map, patches, dirty, .. } = writer;
        layout.change(map, pages, patches, change, |page| {
            dirty.insert(page.0);
        })
    }

    fn flush(&mut self) -> Result<()> {
        match &mut self.access {
            Access::Reader { .. } => Ok(()),
            Access::Writer(writer) => writer.flush(self.layout),
        }
    }
}

impl Drop for MmapStore {
    fn drop(&mut self) {
        let Ok((writer, layout)) = self.writer() else {
            return;
        };
        if writer.flush(layout).is_ok() {
            // Tidying up; the next open does without.
            let _ = writer.file.set_len(layout.file_len());
            let _ = writer.journal.remove();
        }
    }
}

impl Writer {
    /// Maps the file with room for `layout`, and more, so that growing page by page does not map each time.
    fn extend(&mut self, layout: Layout) -> Result<()> {
        let len = self.map.len() as u64;
        let more = (len + (len / 4).max(STEP)).next_multiple_of(layout.page_size as u64);
        if self.write_zeros(more.max(layout.file_len())).is_err() {
            self.write_zeros(layout.file_len())?;
        }
        let mut map = map_private(&self.file)?;
        for run in runs(&self.dirty) {
            map[layout.run(run.clone())].copy_from_slice(&self.map[layout.run(run)]);
        }
        self.map = map;
        Ok(())
    }

    /// Extends the file, or leaves it as it is if there is no room.
    fn write_zeros(&self, len: u64) -> Result<()> {
        let from = self.map.len() as u64;
        file::zeros(from, len, |at, zeros| self.file.write_at(at, zeros)).inspect_err(|_| {
            // The first error is the one to report.
            let _ = self.file.set_len(from);
        })
    }

    fn flush(&mut self, layout: Layout) -> Result<()> {
        let on_disk = self.first.pages.get().max(1);
        if self.dirty.is_empty() && layout.pages == self.first.pages.get() {
            return Ok(());
        }
        self.journal.trim()?;
        self.sequence += 1;
        // Page 0 has the page count and the sequence number. It stays dirty, like the others, if anything fails.
        self.dirty.insert(0);
        if on_disk < layout.pages {
            let mut blank = file::bytes(layout.page_size, "a page")?;
            for page in on_disk..layout.pages {
                let changed = self.dirty.contains(&page);
                let place = layout.run(page..page + 1);
                let at = place.start as u64;
                let image = if changed { &mut self.map[place] } else { &mut blank[..] };
                Header::new(page, self.sequence).seal(image);
                self.file.write_at(at, image)?;
            }
            self.file.sync()?;
        }

        let mut first = self.first;
        first.sequence.set(self.sequence);
        first.pages.set(layout.pages);
        first.checksum = first.seal(&mut self.map[layout.run(0..1)]);
        for &page in self.dirty.range(1..on_disk) {
            Header::new(page, self.sequence).seal(&mut self.map[layout.run(page..page + 1)]);
        }
        let changed: Vec<_> =
            runs(self.dirty.range(..on_disk)).map(|run| layout.run(run)).collect();
        let images: Vec<_> = changed.iter().map(|run| &self.map[run.clone()]).collect();
        self.journal.append(self.sequence, layout.page_size, self.first.checksum, &images)?;
        self.first = first;

        for (run, image) in changed.iter().zip(images) {
            self.file.write_at(run.start as u64, image)?;
        }
        self.file.sync()?;
        self.journal.clear()?;
        for run in runs(&self.dirty) {
            // The file has the same bytes now: memory does not grow with what was ever changed.
            let run = layout.run(run);
            release(&mut self.map, run.start, run.len());
        }
        self.dirty.clear();
        Ok(())
    }
}

/// Ascending numbers, gathered into runs without a gap.
fn runs<'a>(numbers: impl IntoIterator<Item = &'a u32>) -> impl Iterator<Item = Range<u32>> {
    let mut numbers = numbers.into_iter().copied().peekable();
    iter::from_fn(move || {
        let start = numbers.next()?;
        let mut end = start + 1;
        while numbers.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(start..end)
    })
}

fn map_shared(file: &DiskFile, len: u64) -> Result<Mmap> {
    let what = "the mapping of a file";
    let len = usize::try_from(len).map_err(|_| Error::OutOfMemory { what, bytes: len })?;
    // SAFETY: the file is locked against every writer that asks, this process among them. Were a byte to change all
    // the same, it would still be a `u8`, and whoever reads pages trusts none of them.
    let map = unsafe { MmapOptions::new().len(len).map(file.as_file()) };
    map.map_err(Error::io("mapping", file.path()))
}

/// A mapping of the whole file, whose changes stay in memory.
fn map_private(file: &DiskFile) -> Result<MmapMut> {
    // SAFETY: as above, but for the changes of this store itself, which it makes through `&mut self`, when nothing
    // borrows the mapping, and which never cut the file before the end of its pages.
    let map = unsafe { MmapOptions::new().no_reserve_swap().map_copy(file.as_file()) };
    map.map_err(Error::io("mapping", file.path()))
}

/// A mapping of a temporary file of ours, whose changes go to the file when the system likes. It may be longer than the
/// file, and whoever has it stays within the file.
pub(super) fn map_temporary(file: &File, len: u64) -> Result<MmapMut> {
    let what = "the mapping of a temporary file";
    let bytes = usize::try_from(len).map_err(|_| Error::OutOfMemory { what, bytes: len })?;
    // SAFETY: the file is ours alone and only ever grows; any bytes are valid `u8`s.
    let map = unsafe { MmapOptions::new().len(bytes).map_mut(file) };
    map.map_err(|_| Error::OutOfMemory { what, bytes: len })
}

/// Gives memory back to the system: the bytes are as the mapped file has them afterwards, or zero if there is none.
pub(super) fn release(map: &mut MmapMut, at: usize, len: usize) {
    #[cfg(target_os = "linux")]
    {
        let dont_need = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: nothing else borrows the bytes, and any value is a valid `u8`.
        // Refused, the memory stays as it is, which costs no more than memory.
        let _ = unsafe { map.unchecked_advise_range(dont_need, at, len) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (map, at, len);
}
