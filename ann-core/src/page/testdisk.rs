//! A disk for tests of crash safety: it records what is done to it, fails on command, and can lose its power.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, Op};
use super::testing::Rng;
use super::{MmapStore, PageStore, file};
use crate::error::Result;

/// What a disk writes in one piece.
const SECTOR: usize = 512;

/// The file system, with a record of what was done to it. Clones share the record.
#[derive(Clone, Default)]
pub struct TestDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    log: Vec<Record>,
    /// Operations before the one that fails.
    left: Option<usize>,
    /// Whether it is the last one of a process that is killed by it.
    killed: bool,
    dead: bool,
}

/// An operation that was made.
#[derive(Clone, Debug)]
pub enum Record {
    /// A file was opened for writing, and made if there was none.
    Create(PathBuf),
    /// Bytes were written from an offset on.
    Write(PathBuf, u64, Vec<u8>),
    /// A file was cut or extended.
    SetLen(PathBuf, u64),
    /// A file was made durable, but for its name.
    Sync(PathBuf),
    /// All names were made durable.
    SyncFolder,
    /// The first file got the name of the second.
    Rename(PathBuf, PathBuf),
    /// A file was removed.
    Remove(PathBuf),
}

impl Record {
    fn of(op: &Op<'_>) -> Record {
        match *op {
            Op::Create(path) => Record::Create(path.into()),
            Op::Write(path, offset, bytes) => Record::Write(path.into(), offset, bytes.into()),
            Op::SetLen(path, len) => Record::SetLen(path.into(), len),
            Op::Sync(path) => Record::Sync(path.into()),
            Op::SyncFolder => Record::SyncFolder,
            Op::Rename(from, to) => Record::Rename(from.into(), to.into()),
            Op::Remove(path) => Record::Remove(path.into()),
        }
    }
}

impl TestDisk {
    /// [`MmapStore::create`] on this disk.
    ///
    /// # Errors
    /// The same.
    pub fn create(&self, path: &Path, page_size: usize) -> Result<MmapStore> {
        MmapStore::create_on(self.disk(), path, page_size)
    }

    /// [`MmapStore::open_writable`] on this disk.
    ///
    /// # Errors
    /// The same.
    pub fn open_writable(&self, path: &Path) -> Result<MmapStore> {
        MmapStore::open_writable_on(self.disk(), path)
    }

    /// Saves a store as a file on this disk, as the save of an index does.
    ///
    /// # Errors
    /// The same.
    pub fn save(&self, store: &impl PageStore, path: &Path) -> Result<()> {
        file::save_on(&self.disk(), store, path)
    }

    /// Lets `operations` succeed and the next one fail: a write when half of it is done, anything else before it is
    /// done. Later ones succeed again, or, as for a process that was killed, fail too.
    pub fn fail_after(&self, operations: usize, killed: bool) {
        let mut state = self.state();
        (state.left, state.killed) = (Some(operations), killed);
    }

    /// Ends all failing.
    pub fn heal(&self) {
        let mut state = self.state();
        (state.left, state.dead) = (None, false);
    }

    /// Operations recorded so far.
    pub fn operations(&self) -> usize {
        self.state().log.len()
    }

    /// What was recorded so far.
    pub fn log(&self) -> Vec<Record> {
        self.state().log.clone()
    }

    fn disk(&self) -> Disk {
        let state = self.clone();
        Disk { watch: Some(Arc::new(move |op| state.state().note(op))) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, op: &Op<'_>) -> io::Result<()> {
        if let Some(left) = self.left {
            self.left = left.checked_sub(1);
            if left == 0 {
                self.dead = self.killed;
                if let Op::Write(path, offset, bytes) = *op {
                    self.write_half(path, offset, bytes)?;
                }
                return Err(io::Error::other("injected"));
            }
        }
        if self.dead {
            return Err(io::Error::other("injected: the process is dead"));
        }
        self.log.push(Record::of(op));
        Ok(())
    }

    fn write_half(&mut self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let half = &bytes[..bytes.len() / 2];
        self.log.push(Record::Write(path.into(), offset, half.into()));
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(half)
    }
}

/// What a disk holds, as operations are made on it one by one: what is certain, and what is under way.
///
/// The folder is empty at first. Of what was not synced, each sector, each length and each name may be in any state
/// that it has had since its last sync, independently of all others.
#[derive(Default)]
pub struct PowerCut {
    /// The states of each file since it was last synced, the synced one first.
    files: Vec<Vec<Vec<u8>>>,
    /// The names as a running process sees them.
    names: BTreeMap<PathBuf, usize>,
    /// The names as of the last sync of the folder.
    synced: BTreeMap<PathBuf, usize>,
    /// Changes of names since: the one that goes, the one that comes.
    renames: Vec<Renaming>,
}

type Renaming = (Option<PathBuf>, Option<(PathBuf, usize)>);

impl PowerCut {
    /// Makes one more operation.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Create(path) => {
                if !self.names.contains_key(path) {
                    self.files.push(vec![Vec::new()]);
                    self.rename((None, Some((path.clone(), self.files.len() - 1))));
                }
            }
            Record::Rename(from, to) => {
                self.rename((Some(from.clone()), Some((to.clone(), self.names[from]))));
            }
            Record::Remove(path) => self.rename((Some(path.clone()), None)),
            Record::SyncFolder => {
                self.synced = self.names.clone();
                self.renames.clear();
            }
            Record::Write(path, offset, bytes) => self.change(path, |content| {
                let end = *offset as usize + bytes.len();
                content.resize(content.len().max(end), 0);
                content[*offset as usize..end].copy_from_slice(bytes);
            }),
            Record::SetLen(path, len) => self.change(path, |content| {
                content.resize(*len as usize, 0);
            }),
            Record::Sync(path) => {
                let states = &mut self.files[self.names[path]];
                states.drain(..states.len() - 1);
            }
        }
    }

    fn rename(&mut self, renaming: Renaming) {
        rename(&mut self.names, &renaming);
        self.renames.push(renaming);
    }

    fn change(&mut self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let states = &mut self.files[self.names[path]];
        let mut content = states[states.len() - 1].clone();
        change(&mut content);
        states.push(content);
    }

    /// Cuts the power: puts into `folder`, which must be empty, what might be found when it is back.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn cut(&self, rng: &mut Rng, folder: &Path) -> io::Result<()> {
        // From all of a file as it was at one moment to each sector as it was at another.
        let quarters = rng.below(5);
        let mut names = self.synced.clone();
        let made = rng.below(self.renames.len() + 1);
        for (index, renaming) in self.renames.iter().enumerate() {
            let reached = if rng.below(4) < quarters { index < made } else { rng.below(2) == 0 };
            if reached {
                rename(&mut names, renaming);
            }
        }
        for (path, file) in names {
            let states = &self.files[file];
            let moment = rng.below(states.len());
            let mut pick = || match rng.below(4) < quarters {
                true => &states[moment],
                false => &states[rng.below(states.len())],
            };
            let mut content = vec![0; pick().len()];
            for (index, sector) in content.chunks_mut(SECTOR).enumerate() {
                let state = pick();
                let start = state.len().min(index * SECTOR);
                let end = state.len().min(start + sector.len());
                sector[..end - start].copy_from_slice(&state[start..end]);
            }
            fs::write(folder.join(path.file_name().unwrap_or_default()), content)?;
        }
        Ok(())
    }
}

fn rename(names: &mut BTreeMap<PathBuf, usize>, (gone, new): &Renaming) {
    if let Some(path) = gone {
        names.remove(path);
    }
    if let Some((path, file)) = new {
        names.insert(path.clone(), *file);
    }
}
