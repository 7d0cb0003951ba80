//! The stores' file operations, in one place, so that a test can watch, fail or tear each of them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};

/// A change to a folder or file that is about to be made.
pub(super) enum Op<'a> {
    /// Opens a file for writing, making it if there is none.
    Create(&'a Path),
    /// Writes bytes from an offset on.
    Write(&'a Path, u64, &'a [u8]),
    /// Cuts or extends a file.
    SetLen(&'a Path, u64),
    /// Makes a file's content and length durable.
    Sync(&'a Path),
    /// Makes the names in the folder durable.
    SyncFolder,
    /// Gives the first file the name of the second.
    Rename(&'a Path, &'a Path),
    /// Removes a file.
    Remove(&'a Path),
}

/// Called before each operation; an error is reported in its place and the operation is not made.
pub(super) type Watch = Arc<dyn Fn(&Op<'_>) -> io::Result<()> + Send + Sync>;

/// The file system, watched in tests.
#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) watch: Option<Watch>,
}

impl Disk {
    fn note(&self, op: Op<'_>) -> io::Result<()> {
        self.watch.as_ref().map_or(Ok(()), |watch| watch(&op))
    }

    /// Opens a file and locks it: `alone` to change it, or together with other readers.
    pub(super) fn open(&self, path: &Path, alone: bool) -> Result<DiskFile> {
        // The journal lies beside the file itself, whatever link it was reached by.
        let path = fs::canonicalize(path).map_err(Error::io("opening", path))?;
        loop {
            if !fs::metadata(&path).map_err(Error::io("opening", &path))?.is_file() {
                let what = format!("{} is not an index: it is not a regular file", path.display());
                return Err(Error::NotAnIndex { what });
            }
            let file = OpenOptions::new().read(true).write(alone).open(&path);
            let file = file.map_err(Error::io("opening", &path))?;
            let file = DiskFile { disk: self.clone(), file, path: path.clone() };
            file.lock(alone)?;
            // A save may have put another file in its place between the opening and the lock.
            if file.is_still_named()? {
                return Ok(file);
            }
        }
    }

    /// Makes a file that must not exist yet.
    pub(super) fn create_new(&self, path: &Path) -> Result<DiskFile> {
        self.create(path, OpenOptions::new().read(true).write(true).create_new(true))
    }

    /// Opens a file for writing, as it is or new.
    pub(super) fn open_or_create(&self, path: &Path) -> Result<DiskFile> {
        self.create(path, OpenOptions::new().read(true).write(true).create(true).truncate(false))
    }

    fn create(&self, path: &Path, options: &OpenOptions) -> Result<DiskFile> {
        let file = self.note(Op::Create(path)).and_then(|()| options.open(path));
        let file = file.map_err(Error::io("creating", path))?;
        Ok(DiskFile { disk: self.clone(), file, path: path.to_path_buf() })
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let done = self.note(Op::Rename(from, to)).and_then(|()| fs::rename(from, to));
        done.map_err(Error::io("replacing", to))
    }

    pub(super) fn remove(&self, path: &Path) -> Result<()> {
        let done = self.note(Op::Remove(path)).and_then(|()| fs::remove_file(path));
        done.map_err(Error::io("removing", path))
    }

    /// Makes the name of `path` durable, where the system lets a folder be synced.
    pub(super) fn sync_folder_of(&self, path: &Path) -> Result<()> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let sync = || {
            if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
        };
        let done = self.note(Op::SyncFolder).and_then(|()| sync());
        done.map_err(Error::io("syncing the folder", folder))
    }
}

/// An open file. Dropping it releases its lock.
pub(super) struct DiskFile {
    disk: Disk,
    file: File,
    path: PathBuf,
}

impl DiskFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself, to be mapped.
    pub(super) fn as_file(&self) -> &File {
        &self.file
    }

    pub(super) fn lock(&self, alone: bool) -> Result<()> {
        let locked = if alone { self.file.try_lock() } else { self.file.try_lock_shared() };
        locked.map_err(|error| match error {
            TryLockError::WouldBlock => Error::Locked { path: self.path.clone() },
            TryLockError::Error(error) => Error::io("locking", &self.path)(error),
        })
    }

    #[cfg(unix)]
    fn is_still_named(&self) -> Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let mine = self.file.metadata().map_err(Error::io("opening", &self.path))?;
        let named = fs::metadata(&self.path).map_err(Error::io("opening", &self.path))?;
        Ok((mine.dev(), mine.ino()) == (named.dev(), named.ino()))
    }

    /// Elsewhere an open file cannot be replaced.
    #[cfg(not(unix))]
    fn is_still_named(&self) -> Result<bool> {
        Ok(true)
    }

    pub(super) fn len(&self) -> Result<u64> {
        let metadata = self.file.metadata().map_err(Error::io("reading", &self.path))?;
        Ok(metadata.len())
    }

    /// Fills `bytes` from `offset` on.
    pub(super) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut file = &self.file;
        let done = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(bytes));
        done.map_err(Error::io("reading", &self.path))
    }

    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut file = &self.file;
        let op = Op::Write(&self.path, offset, bytes);
        let done = self.disk.note(op).and_then(|()| file.seek(SeekFrom::Start(offset)));
        done.and_then(|_| file.write_all(bytes)).map_err(Error::io("writing", &self.path))
    }

    pub(super) fn set_len(&self, len: u64) -> Result<()> {
        let done = self.disk.note(Op::SetLen(&self.path, len));
        done.and_then(|()| self.file.set_len(len)).map_err(Error::io("resizing", &self.path))
    }

    /// Makes content and length durable.
    pub(super) fn sync(&self) -> Result<()> {
        let done = self.disk.note(Op::Sync(&self.path)).and_then(|()| self.file.sync_data());
        done.map_err(Error::io("syncing", &self.path))
    }
}
