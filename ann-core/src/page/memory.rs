//! Zeroed bytes that grow: anonymous memory on huge pages where the system has them, or a mapped temporary file.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::{Deref, DerefMut};
use std::path::Path;

use memmap2::{MmapMut, MmapOptions};

use super::{file, mmap};
use crate::error::{Error, Result};

/// The size of a huge page, as x86-64 and most others have it.
const HUGE: usize = 2 << 20;

/// The first mapping's size: small, since many indexes are.
const FIRST: u64 = 64 << 10;

/// Addresses taken for a store that outgrows it, so that it grows in place: copying a large store would keep searches
/// waiting. What is not touched costs nothing.
const ADDRESSES: u64 = 64 << 30;

/// Zeroed bytes. What has not been touched costs nothing.
pub(super) struct Memory {
    map: MmapMut,
    /// Where the first huge page begins in it.
    start: usize,
    /// Bytes that the system has been asked for; the mapping may be larger.
    promised: u64,
    /// The file that is mapped, if one is. It has the promised length.
    file: Option<File>,
}

impl Memory {
    /// A little memory, to begin with.
    pub fn new() -> Result<Memory> {
        Memory::of(FIRST)
    }

    /// At least `len` bytes. Asking for more than the machine has is an error here and not the end of the process at
    /// the first touch.
    fn of(len: u64) -> Result<Memory> {
        let map = Memory::ask(len)?;
        if len < HUGE as u64 {
            return Ok(Memory { map, start: 0, promised: len, file: None });
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
        Ok(Memory { map, start, promised: len, file: None })
    }

    /// A mapping for which memory is reserved, which the system refuses if it has not that much.
    fn ask(len: u64) -> Result<MmapMut> {
        let map = usize::try_from(len).ok().and_then(|len| MmapMut::map_anon(len).ok());
        map.ok_or(Error::OutOfMemory { what: "the page store", bytes: len })
    }

    pub fn is_in_file(&self) -> bool {
        self.file.is_some()
    }

    /// Moves the first `used` bytes into a file and maps that.
    pub fn move_to_file(&mut self, mut file: File, used: usize) -> Result<()> {
        let io = |what| Error::io(what, Path::new("a temporary file"));
        file.set_len(0).map_err(io("emptying"))?;
        file.seek(SeekFrom::Start(0)).map_err(io("writing"))?;
        file.write_all(&self[..used]).map_err(io("writing"))?;
        let len = (used as u64).max(FIRST);
        write_zeros(&file, used as u64, len)?;
        *self = Memory::of_file(file, len)?;
        Ok(())
    }

    /// Maps a file of `len` bytes, with addresses to spare.
    fn of_file(file: File, len: u64) -> Result<Memory> {
        let map = mmap::map_temporary(&file, len.max(ADDRESSES))
            .or_else(|_| mmap::map_temporary(&file, len))?;
        Ok(Memory { map, start: 0, promised: len, file: Some(file) })
    }

    /// Makes room for `len` bytes, of which the first `used` are kept.
    pub fn grow(&mut self, used: usize, len: u64) -> Result<()> {
        if self.file.is_some() {
            return self.grow_file(len);
        }
        if len <= self.len() as u64 {
            if len > self.promised {
                Memory::ask(len)?;
                self.promised = len;
            }
            return Ok(());
        }
        let have = self.promised;
        let with_room = |room: u64| Memory::of(len.max(have + room).next_multiple_of(HUGE as u64));
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

    /// Makes the file at least `len` bytes long, and an eighth longer if there is room.
    fn grow_file(&mut self, len: u64) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if len <= self.promised {
            return Ok(());
        }
        let roomy = len.max(self.promised + self.promised / 8).next_multiple_of(FIRST);
        let grown = match write_zeros(file, self.promised, roomy) {
            Ok(()) => roomy,
            Err(_) => write_zeros(file, self.promised, len).map(|()| len)?,
        };
        if grown > self.map.len() as u64 {
            self.map = mmap::map_temporary(file, grown)?;
        }
        self.promised = grown;
        Ok(())
    }
}

/// Extends a file from `from` to `to` bytes. What was written stays if there is not enough room; it is zero.
fn write_zeros(mut file: &File, from: u64, to: u64) -> Result<()> {
    let io = || Error::io("extending", Path::new("a temporary file"));
    file.seek(SeekFrom::Start(from)).map_err(io())?;
    file::zeros(from, to, |_, zeros| file.write_all(zeros).map_err(io()))
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
