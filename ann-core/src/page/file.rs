//! The file format of a page store: page `p` at byte `p * page_size`, each page under a checksum of its own.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process;

use crc32c::{crc32c, crc32c_append};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::disk::{Disk, DiskFile};
use super::layout::Layout;
use super::{HEADER, PageId, PageStore, check_page_size};
use crate::error::{Error, Result};

const MAGIC: [u8; 8] = *b"ANNPAGES";

/// The file format that is written, and the newest that is read.
const VERSION: u32 = 1;

/// Bytes gathered for one call of the system.
pub(super) const CHUNK: usize = 1 << 20;

/// The store's part of a page. What follows the first three fields is zero outside page 0.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct Header {
    /// CRC32C of the rest of the page.
    pub checksum: U32,
    pub page: U32,
    /// The flush that wrote the page; in page 0 the newest flush of the file.
    pub sequence: U64,
    magic: [u8; 8],
    version: U32,
    page_size: U32,
    /// Pages in the store. What the file holds beyond them is left over.
    pub pages: U32,
    /// CRC32C of the checksums of pages 1.. at the last save, to tell files apart whose page 0 is else the same.
    saved: U32,
    rest: [u8; 24],
}

const _: () = assert!(size_of::<Header>() == HEADER);

impl Header {
    /// For any page but the first.
    pub fn new(page: u32, sequence: u64) -> Header {
        let mut header = Header::new_zeroed();
        header.page.set(page);
        header.sequence.set(sequence);
        header
    }

    /// For page 0 of a new file.
    pub fn first(page_size: usize, pages: u32) -> Header {
        let mut header = Header::new(0, 1);
        header.magic = MAGIC;
        header.version.set(VERSION);
        header.page_size.set(page_size as u32);
        header.pages.set(pages);
        header
    }

    /// Whether this is page 0's.
    pub fn is_first(&self) -> bool {
        self.magic == MAGIC
    }

    /// What page 0 says of all pages.
    pub fn layout(&self) -> Layout {
        Layout { page_size: self.page_size.get() as usize, pages: self.pages.get() }
    }

    /// Writes itself into a page, with the checksum, which it returns.
    pub fn seal(&self, image: &mut [u8]) -> U32 {
        image[..HEADER].copy_from_slice(self.as_bytes());
        let checksum = U32::new(crc32c(&image[4..]));
        image[..4].copy_from_slice(checksum.as_bytes());
        checksum
    }

    /// The header that a page has, checked against the page's bytes if it can be `page`.
    pub fn check(image: &[u8], page: u32) -> Result<Header> {
        let (header, _) = Header::read_from_prefix(image)
            .map_err(|_| Error::corrupt(page, "it is shorter than a header"))?;
        let (named, found) = (header.checksum.get(), crc32c(&image[4..]));
        if named != found {
            let what = format!("its checksum is {named:08x}, its content's {found:08x}");
            return Err(Error::corrupt(page, what));
        }
        if header.page.get() != page {
            return Err(Error::corrupt(page, format!("page {} lies in its place", header.page)));
        }
        Ok(header)
    }

    /// The first bytes of a file, if they are those of a page store; nothing else is checked.
    pub fn peek(file: &DiskFile) -> Result<Option<Header>> {
        if file.len()? < HEADER as u64 {
            return Ok(None);
        }
        let mut header = Header::new_zeroed();
        file.read_at(0, header.as_mut_bytes())?;
        Ok(Some(header).filter(Header::is_first))
    }
}

/// Reads and checks page 0 and the length of a file. `redo` is page 0 as a journal has it, if one does.
pub(super) fn read_first(file: &DiskFile, redo: Option<&[u8]>) -> Result<Header> {
    let not_ours = |what: String| {
        let what = format!("{} is not an index: {what}", file.path().display());
        Err(Error::NotAnIndex { what })
    };
    let len = file.len()?;
    if len < HEADER as u64 {
        return not_ours(match len {
            0 => "it is empty".into(),
            _ => format!("it ends after {len} bytes"),
        });
    }
    let Some(mut header) = Header::peek(file)? else {
        return not_ours("it does not have ANNPAGES at byte 16".into());
    };
    if let Some(image) = redo {
        header = Header::check(image, 0)?;
    }
    let version = header.version.get();
    if version > VERSION {
        return Err(Error::Version { got: version, newest: VERSION });
    }
    let page_size = header.page_size.get() as usize;
    if version == 0 || check_page_size(page_size).is_err() {
        let what = format!("it names format version {version} and page size {page_size}");
        return Err(Error::corrupt(0, what));
    }
    let pages = header.pages.get();
    let end = u64::from(pages.max(1)) * page_size as u64;
    if len < end {
        let what = format!("the file ends at byte {len}, its {pages} pages at {end}");
        return Err(Error::corrupt((len / page_size as u64) as u32, what));
    }
    if redo.is_none() {
        let mut image = bytes(page_size, "a page")?;
        file.read_at(0, &mut image)?;
        Header::check(&image, 0)?;
    }
    Ok(header)
}

/// Checks all pages that lie in `bytes`, but for those that `skip` names.
pub(super) fn check_all(bytes: &[u8], page_size: usize, skip: impl Fn(u32) -> bool) -> Result<()> {
    let mut newest = u64::MAX;
    for (page, image) in (0..).zip(bytes.chunks_exact(page_size)) {
        if skip(page) {
            continue;
        }
        let sequence = Header::check(image, page)?.sequence.get();
        if page == 0 {
            newest = sequence;
        } else if sequence > newest {
            let what = format!("it is of flush {sequence}, page 0 of flush {newest}");
            return Err(Error::corrupt(page, what));
        }
    }
    Ok(())
}

/// Writes all pages of a store to a file, which [`MmapStore::open`](super::MmapStore::open) opens and
/// [`MemStore::load`](super::MemStore::load) loads. A file of that name is replaced, at once and only when the new
/// one is whole and durable.
///
/// # Errors
/// [`Error::Locked`] if the file is open for writing; [`Error::Io`]; what reading the store reports. A file that
/// was there is then as it was.
pub fn save(store: &impl PageStore, path: &Path) -> Result<()> {
    save_on(&Disk::default(), store, path)
}

pub(super) fn save_on(disk: &Disk, store: &impl PageStore, path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::io("saving to", path)(ErrorKind::IsADirectory.into()));
    }
    // Held to the end: nobody may have the old file open for writing when it loses its name.
    let old = match disk.open(path, false) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => None,
        old => Some(old?),
    };
    let path = old.as_ref().map_or(path, |old| old.path());
    let new = create_beside(disk, path)?;
    // Locked, so that no writer makes a journal of its own before the old one is removed.
    let done = new.lock(false).and_then(|()| write_all(store, &new)).and_then(|()| new.sync());
    if let Err(error) = done.and_then(|()| disk.rename(new.path(), path)) {
        // The first error is the one to report.
        let _ = disk.remove(new.path());
        return Err(error);
    }
    disk.sync_folder_of(path)?;
    let journal = journal_path(path);
    if journal.exists() {
        // It was the old file's and is no more than a nuisance: nothing in it matches the new one.
        let _ = disk.remove(&journal);
    }
    Ok(())
}

/// A new file in the same folder, so that it can be renamed.
fn create_beside(disk: &Disk, path: &Path) -> Result<DiskFile> {
    let mut attempt = 0;
    loop {
        match disk.create_new(&beside(path, &format!(".{}-{attempt}.tmp", process::id()))) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {
                attempt += 1;
            }
            Err(Error::Io { source, .. }) => return Err(Error::io("saving to", path)(source)),
            file => return file,
        }
    }
}

fn write_all(store: &impl PageStore, file: &DiskFile) -> Result<()> {
    let (size, pages) = (store.page_size(), store.page_count());
    let mut chunk = bytes(CHUNK.max(size), "a buffer for saving")?;
    let mut saved = 0;
    let per_chunk = chunk.len() / size;
    for from in (1..pages).step_by(per_chunk) {
        let mut end = 0;
        for (page, image) in (from..pages).zip(chunk.chunks_exact_mut(size)) {
            image[HEADER..].copy_from_slice(&store.read(PageId(page))?);
            saved = crc32c_append(saved, Header::new(page, 1).seal(image).as_bytes());
            end += size;
        }
        file.write_at(u64::from(from) * size as u64, &chunk[..end])?;
    }
    let image = &mut chunk[..size];
    match pages {
        0 => image.fill(0),
        _ => image[HEADER..].copy_from_slice(&store.read(PageId(0))?),
    }
    Header { saved: U32::new(saved), ..Header::first(size, pages) }.seal(image);
    file.write_at(0, image)
}

/// Where a file's journal lies.
pub(super) fn journal_path(path: &Path) -> PathBuf {
    beside(path, ".journal")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Calls `write` with an offset and zeros, piece by piece, from `from` to `to`: what is written and not left out takes
/// its room on the disk now, and not when memory is touched, where a full disk would be a signal.
pub(super) fn zeros(
    from: u64,
    to: u64,
    mut write: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let zeros = bytes(CHUNK, "a buffer of zeros")?;
    for at in (from..to).step_by(CHUNK) {
        write(at, &zeros[..(to - at).min(CHUNK as u64) as usize])?;
    }
    Ok(())
}

/// Zeroed bytes, or an error where there is no memory for them.
pub(super) fn bytes(len: usize, what: &'static str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { what, bytes: len as u64 })?;
    bytes.resize(len, 0);
    Ok(bytes)
}
