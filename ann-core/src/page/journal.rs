//! The redo journal of a file: what makes a flush all or nothing.
//!
//! A transaction is a [`Head`] and the images of all pages that one flush changes, page 0 first. It counts only when
//! every image matches its checksum, all of them together match the head's, and it continues the state that page 0
//! of the file is in; everything else in a journal is left over and ignored. A flush that failed after its
//! transaction was whole leaves it there, and the next flush appends.
//!
//! | bytes | head of a transaction |
//! |---|---|
//! | 0..4 | CRC32C of bytes 4..64 |
//! | 4..8 | page size, u32 |
//! | 8..16 | `ANNREDO1` |
//! | 16..24 | sequence number of the flush, u64 |
//! | 24..28 | number of page images that follow, u32 |
//! | 28..32 | CRC32C of the images' checksums, one after the other |
//! | 32..36 | checksum of page 0 before this transaction |
//! | 36..64 | reserved |
//!
//! An image is a page as it is in the file, header included; images are in the order of their page numbers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::iter;
use std::path::{Path, PathBuf};

use crc32c::{crc32c, crc32c_append};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::disk::{Disk, DiskFile};
use super::file::{self, Header};
use super::{HEADER, check_page_size};
use crate::error::{Error, Result};

const MAGIC: [u8; 8] = *b"ANNREDO1";

/// What a transaction begins with.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Head {
    /// CRC32C of the rest of the head.
    checksum: U32,
    page_size: U32,
    magic: [u8; 8],
    sequence: U64,
    /// Images that follow.
    pages: U32,
    /// CRC32C of their checksums.
    images: U32,
    /// The checksum of page 0 before this transaction.
    before: U32,
    rest: [u8; 28],
}

const _: () = assert!(size_of::<Head>() == HEADER);

/// A file's journal, open for writing.
pub(super) struct Journal {
    disk: Disk,
    path: PathBuf,
    file: Option<DiskFile>,
    /// Bytes of whole transactions whose pages may not all be in the file yet.
    end: u64,
    /// Whether anything may follow them, from an attempt that failed or from an earlier life.
    ragged: bool,
}

impl Journal {
    /// The journal of `file`. Nothing is done on disk before it is needed.
    pub fn of(file: &DiskFile, disk: Disk) -> Journal {
        let path = file::journal_path(file.path());
        Journal { disk, path, file: None, end: 0, ragged: true }
    }

    /// Opens it, and makes its name durable before anything relies on it.
    fn open(&mut self) -> Result<&DiskFile> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = self.disk.open_or_create(&self.path)?;
                self.disk.sync_folder_of(&self.path)?;
                file
            }
        };
        Ok(self.file.insert(file))
    }

    /// Brings the file up to date, durably. To be stopped anywhere and done again changes nothing.
    pub fn replay(&mut self, redo: &Redo, file: &DiskFile) -> Result<()> {
        if redo.images.is_empty() {
            return Ok(());
        }
        // Whoever wrote the journal may have been killed before it was durable.
        self.open()?.sync()?;
        for (page, image) in redo.images() {
            file.write_at(u64::from(page) * redo.page_size as u64, image)?;
        }
        file.sync()?;
        self.clear()
    }

    /// Cuts off what is not a whole transaction of this life, durably. A transaction whose sync failed may be whole
    /// on disk nevertheless, so this comes before any page changes that it counts on.
    pub fn trim(&mut self) -> Result<()> {
        if self.ragged {
            let end = self.end;
            let file = self.open()?;
            file.set_len(end)?;
            file.sync()?;
            self.ragged = false;
        }
        Ok(())
    }

    /// Adds a transaction to a trimmed journal and makes it durable. `before` is page 0's checksum in the
    /// transaction before or in the file; `images` are runs of sealed pages, page 0 first.
    pub fn append(
        &mut self,
        sequence: u64,
        page_size: usize,
        before: U32,
        images: &[&[u8]],
    ) -> Result<()> {
        let (mut pages, mut digest) = (0, 0);
        for image in images.iter().flat_map(|run| run.chunks_exact(page_size)) {
            pages += 1;
            digest = crc32c_append(digest, &image[..4]);
        }
        let mut head = Head {
            checksum: U32::ZERO,
            page_size: U32::new(page_size as u32),
            magic: MAGIC,
            sequence: U64::new(sequence),
            pages: U32::new(pages),
            images: U32::new(digest),
            before,
            rest: [0; 28],
        };
        head.checksum.set(crc32c(&head.as_bytes()[4..]));
        self.ragged = true;
        let mut at = self.end;
        let file = self.open()?;
        for bytes in iter::once(head.as_bytes()).chain(images.iter().copied()) {
            file.write_at(at, bytes)?;
            at += bytes.len() as u64;
        }
        file.sync()?;
        (self.end, self.ragged) = (at, false);
        Ok(())
    }

    /// Empties it, once the file has all its pages. This needs no sync: to replay them again would change nothing.
    pub fn clear(&mut self) -> Result<()> {
        if let Some(file) = &self.file {
            file.set_len(0)?;
        }
        self.end = 0;
        Ok(())
    }

    /// Removes it from disk.
    pub fn remove(&mut self) -> Result<()> {
        self.file = None;
        if self.path.exists() { self.disk.remove(&self.path) } else { Ok(()) }
    }
}

/// The pages that a journal holds for a file, each in its newest image.
#[derive(Default)]
pub(super) struct Redo {
    journal: Vec<u8>,
    page_size: usize,
    /// Where the image of a page begins.
    images: BTreeMap<u32, usize>,
}

impl Redo {
    /// Reads the journal of `file`. No journal, or one that is not whole or not of this file, has no pages.
    pub fn of(file: &DiskFile) -> Result<Redo> {
        let Some(first) = Header::peek(file)? else {
            return Ok(Redo::default());
        };
        let page_size = first.layout().page_size;
        if check_page_size(page_size).is_err() {
            return Ok(Redo::default());
        }
        let journal = read(&file::journal_path(file.path()))?;
        let mut images = BTreeMap::new();
        let mut last: Option<Whole> = None;
        let mut ours = false;
        let mut at = 0;
        while let Some(whole) = transaction(&journal[at..], page_size) {
            if last.is_some_and(|last| last.after != whole.before) {
                break;
            }
            ours |= first.checksum == whole.before || first.checksum == whole.after;
            images.extend(whole.pages.iter().copied().zip((at + HEADER..).step_by(page_size)));
            images.retain(|&page, _| page < whole.count);
            at += whole.len;
            last = Some(whole);
        }
        if !ours {
            images.clear();
        }
        Ok(Redo { journal, page_size, images })
    }

    /// The image of a page, if the journal has one.
    pub fn image(&self, page: u32) -> Option<&[u8]> {
        self.images.get(&page).map(|&at| &self.journal[at..at + self.page_size])
    }

    /// All images, in the order of their pages.
    pub fn images(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.images.iter().map(|(&page, &at)| (page, &self.journal[at..at + self.page_size]))
    }
}

/// A transaction that is whole.
struct Whole {
    before: U32,
    after: U32,
    /// Pages in the store after it.
    count: u32,
    /// Pages that it has images of.
    pages: Vec<u32>,
    len: usize,
}

/// The transaction at the beginning of `bytes`, unless anything about it is wrong.
fn transaction(bytes: &[u8], page_size: usize) -> Option<Whole> {
    let (head, images) = Head::read_from_prefix(bytes).ok()?;
    let sound = crc32c(&head.as_bytes()[4..]) == head.checksum.get();
    if !sound || head.magic != MAGIC || head.page_size.get() as usize != page_size {
        return None;
    }
    let len = (head.pages.get() as usize).checked_mul(page_size)?;
    let mut digest = 0;
    let mut pages = Vec::new();
    for image in images.get(..len)?.chunks_exact(page_size) {
        let page = Header::read_from_prefix(image).ok()?.0.page.get();
        let header = Header::check(image, page).ok()?;
        digest = crc32c_append(digest, header.checksum.as_bytes());
        pages.push(page);
    }
    let (first, _) = Header::read_from_prefix(images).ok()?;
    let starts = first.is_first() && first.layout().page_size == page_size;
    let ascending = pages.first() == Some(&0) && pages.is_sorted_by(|a, b| a < b);
    let whole = starts && ascending && digest == head.images.get();
    whole.then(|| Whole {
        before: head.before,
        after: first.checksum,
        count: first.layout().pages,
        pages,
        len: size_of::<Head>() + len,
    })
}

/// All of a file, or nothing if there is none.
fn read(path: &Path) -> Result<Vec<u8>> {
    let opened = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.and_then(|file| file.metadata().map(|metadata| (file, metadata.len()))),
    };
    let (mut file, len) = opened.map_err(Error::io("opening", path))?;
    let mut bytes = file::bytes(usize::try_from(len).unwrap_or(usize::MAX), "a journal")?;
    file.read_exact(&mut bytes).map_err(Error::io("reading", path))?;
    Ok(bytes)
}
