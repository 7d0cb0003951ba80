//! The memory store: all pages in one mapping that grows.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use super::disk::Disk;
use super::file;
use super::journal::Redo;
use super::layout::Layout;
use super::memory::Memory;
use super::{PageId, PageStore, Pages, Patches, check_page_size};
use crate::error::{Error, Result};

/// A page store in memory. Saving an index writes it to a file, which [`MemStore::load`] reads back.
pub struct MemStore {
    layout: Layout,
    memory: Memory,
    patches: Patches,
}

impl MemStore {
    /// An empty store of pages of `page_size` bytes, header included.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless `page_size` is a power of two from 4 KiB to 1 MiB; [`Error::OutOfMemory`].
    pub fn new(page_size: usize) -> Result<MemStore> {
        check_page_size(page_size)?;
        let layout = Layout { page_size, pages: 0 };
        Ok(MemStore { layout, memory: Memory::new()?, patches: Patches::default() })
    }

    /// Moves the pages into a temporary file, from which they are mapped: the system may then write them out when
    /// memory is short. The file's content means nothing to others; best it has no name. It grows with the store, so
    /// that a full disk is an error of [`PageStore::grow`].
    ///
    /// # Errors
    /// [`Error::Io`]; the pages are then where they were.
    pub fn move_to_file(&mut self, file: File) -> Result<()> {
        self.memory.move_to_file(file, self.layout.len())
    }

    /// Whether the pages are in a temporary file.
    pub fn is_in_file(&self) -> bool {
        self.memory.is_in_file()
    }

    /// Reads a file into memory and checks every page of it.
    ///
    /// # Errors
    /// As [`MmapStore::open`](super::MmapStore::open); [`Error::Corrupt`] for any damaged page;
    /// [`Error::OutOfMemory`].
    pub fn load(path: &Path) -> Result<MemStore> {
        let file = Disk::default().open(path, false)?;
        let redo = Redo::of(&file)?;
        let first = file::read_first(&file, redo.image(0))?;
        let mut store = MemStore::new(first.layout().page_size)?;
        store.grow(first.layout().pages)?;
        let page_size = store.layout.page_size;
        let bytes = &mut store.memory[..store.layout.len()];
        for (index, chunk) in bytes.chunks_mut(file::CHUNK).enumerate() {
            file.read_at((index * file::CHUNK) as u64, chunk)?;
        }
        for (page, image) in redo.images() {
            bytes[store.layout.run(page..page + 1)].copy_from_slice(image);
        }
        file::check_all(bytes, page_size, |_| false)?;
        Ok(store)
    }
}

impl PageStore for MemStore {
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
        Ok(&self.memory[self.layout.body(page)?])
    }

    #[inline]
    fn prefetch(&self, page: PageId, bytes: Range<usize>) {
        self.layout.prefetch(&self.memory, page, bytes);
    }

    #[inline]
    fn contiguous(&self) -> Option<&[u8]> {
        Some(&self.memory[..self.layout.len()])
    }

    fn leave_memory(&mut self) -> Result<()> {
        if self.is_in_file() {
            return Ok(());
        }
        let file = tempfile::tempfile();
        self.move_to_file(file.map_err(Error::io("making", Path::new("a temporary file")))?)
    }

    fn grow(&mut self, pages: u32) -> Result<()> {
        let used = self.layout.len();
        let grown = Layout { pages: pages.max(self.layout.pages), ..self.layout };
        self.memory.grow(used, grown.file_len())?;
        self.layout = grown;
        Ok(())
    }

    fn write<R>(
        &mut self,
        pages: &[PageId],
        change: impl FnOnce(&mut Pages<'_>) -> Result<R>,
    ) -> Result<R> {
        self.layout.change(&mut self.memory, pages, &mut self.patches, change, |_| {})
    }

    /// Does nothing: memory is as durable as it gets.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
