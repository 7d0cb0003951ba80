//! The memory store: all pages in one zeroed mapping that grows, on huge pages where the system has them.

use std::ops::{Deref, DerefMut};
use std::path::Path;

use memmap2::{MmapMut, MmapOptions};

use super::disk::Disk;
use super::file;
use super::journal::Redo;
use super::layout::Layout;
use super::{PageId, PageStore, Pages, Patches, check_page_size, mmap};
use crate::error::{Error, Result};

/// The size of a huge page, as x86-64 and most others have it.
const HUGE: usize = 2 << 20;

/// The first mapping's size: small, since many indexes are.
const FIRST: u64 = 64 << 10;

/// Addresses taken for a store that outgrows it, so that it grows in place: copying a large store would keep searches
/// waiting. What is not touched costs nothing.
const ADDRESSES: u64 = 64 << 30;

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
        Ok(MemStore { layout, memory: Memory::new(FIRST)?, patches: Patches::default() })
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
    fn prefetch(&self, page: PageId) {
        self.layout.prefetch(&self.memory, page);
    }

    #[inline]
    fn contiguous(&self) -> Option<&[u8]> {
        Some(&self.memory[..self.layout.len()])
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

/// Zeroed anonymous memory. What has not been touched costs nothing.
struct Memory {
    map: MmapMut,
    /// Where the first huge page begins in it.
    start: usize,
    /// Bytes that the system has been asked for; the mapping may be larger.
    promised: u64,
}

impl Memory {
    /// At least `len` bytes. Asking for more than the machine has is an error here and not the end of the process at
    /// the first touch.
    fn new(len: u64) -> Result<Memory> {
        let map = Memory::ask(len)?;
        if len < HUGE as u64 {
            return Ok(Memory { map, start: 0, promised: len });
        }
        let wide = |len: u64| {
            let room = usize::try_from(len.saturating_add(HUGE as u64)).ok()?;
            MmapOptions::new().len(room).no_reserve_swap().map_anon().ok()
        };
        let wide = wide(len.max(ADDRESSES)).or_else(|| wide(len));
        let map = wide.ok_or(Error::OutOfMemory { what: "the page store", bytes: len })?;
        // A hint: a system without huge pages refuses it and nothing is lost.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_ptr().align_offset(HUGE);
        Ok(Memory { map, start, promised: len })
    }

    /// A mapping for which memory is reserved, which the system refuses if it has not that much.
    fn ask(len: u64) -> Result<MmapMut> {
        let map = usize::try_from(len).ok().and_then(|len| MmapMut::map_anon(len).ok());
        map.ok_or(Error::OutOfMemory { what: "the page store", bytes: len })
    }

    /// Makes room for `len` bytes, of which the first `used` are kept.
    fn grow(&mut self, used: usize, len: u64) -> Result<()> {
        if len <= self.len() as u64 {
            if len > self.promised {
                Memory::ask(len)?;
                self.promised = len;
            }
            return Ok(());
        }
        let have = self.promised;
        let with_room = |room: u64| Memory::new(len.max(have + room).next_multiple_of(HUGE as u64));
        let mut new = with_room(have).or_else(|_| with_room(have / 8)).or_else(|_| with_room(0))?;
        // Piece by piece, each given back at once, so that memory is never needed twice. Moving the mapping itself
        // would be cheaper, but it lands where no huge page begins on Linux before 6.7.
        for at in (0..used).step_by(HUGE) {
            let piece = at..used.min(at + HUGE);
            // Pages that were never written have no memory yet and get none.
            if !is_zero(&self[piece.clone()]) {
                new[piece.clone()].copy_from_slice(&self[piece.clone()]);
            }
            mmap::release(&mut self.map, self.start + piece.start, piece.len());
        }
        *self = new;
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|chunk| chunk.iter().fold(0, |bits, byte| bits | byte) == 0)
}

impl Deref for Memory {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.map[self.start..]
    }
}

impl DerefMut for Memory {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..]
    }
}
