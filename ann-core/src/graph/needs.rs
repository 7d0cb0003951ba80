//! What adding rows to a graph takes, known before it begins, and how to do with less.

use std::fs::File;

use crate::error::{Error, Result};
use crate::index::Needs;
use crate::page::{MemStore, PageStore};
use crate::rows::{CODES, LINKS, NODES, NONE, UPPER, VECTORS};

use super::bulk::Level;
use super::bytes::Bytes;
use super::insert::MAX_BATCH;
use super::leaves;
use super::load::LOAD_ROWS;
use super::survey::is_loaded;
use super::{Graph, Topology};

/// Bytes of a row until it is in: keys, order, hashes.
const LISTED: u64 = 64;

/// Bytes of a row of a batch for each link that it can have: a plan's candidates, the edges back, and the lists that
/// come of them.
const PLANNED: u64 = 80;

/// Rows of a batch however little memory there is.
const SMALL_BATCH: usize = 256;

/// How rows are added.
#[derive(Clone, Copy)]
pub(super) struct Portions {
    /// Rows that are loaded at one go; the others are added in batches.
    pub load: usize,
    /// Rows of a batch, at most.
    pub batch: usize,
    /// Whether pages are to leave memory first.
    pub leaves_memory: bool,
    /// Bytes of memory that this takes.
    memory: u64,
}

impl Portions {
    /// Asks for memory that will be needed bit by bit, so that running out is an error before anything is done.
    pub fn ask_for_memory(&self) -> Result<()> {
        let wanted = usize::try_from(self.memory).unwrap_or(usize::MAX);
        Vec::<u8>::new()
            .try_reserve_exact(wanted)
            .map_err(|_| Error::OutOfMemory { what: "adding rows", bytes: self.memory })
    }
}

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// What it will take to add `rows` vectors at one go on `threads` threads, without computing anything: what is
    /// found later to be equal counts like others.
    pub fn needs(&self, rows: usize, threads: usize) -> Needs {
        let memory = self.memory(rows, self.loaded_of(rows), MAX_BATCH, threads);
        Needs { pages: self.page_bytes(rows as u64), memory }
    }

    /// Makes adding vectors keep within so many bytes of memory, pages included and the caller's vectors not. If more
    /// would be needed, the pages of an index in memory move to a temporary file, and only as many vectors as fit are
    /// loaded at one go: that takes longer, and finds a little less. The limit is not saved with the index.
    ///
    /// # Errors
    /// [`Error::Parameter`] if not even the least can be done with it.
    pub fn set_memory_limit(&mut self, bytes: Option<u64>) -> Result<()> {
        if let Some(bytes) = bytes {
            self.check_least(bytes, LOAD_ROWS)?;
        }
        self.memory_limit = bytes;
        Ok(())
    }

    /// The least bytes of memory with which `rows` vectors can be added.
    pub fn least_memory(&self, rows: usize) -> u64 {
        self.memory(rows, 0, SMALL_BATCH, 1)
    }

    fn check_least(&self, limit: u64, rows: usize) -> Result<()> {
        let least = self.least_memory(rows);
        if limit >= least {
            return Ok(());
        }
        let allowed = format!("at least {least} bytes to add {rows} vectors");
        Err(Error::parameter("memory_limit", limit, allowed))
    }

    /// How to add rows so that it stays within the limit, if there is one. The memory for that is there.
    pub(super) fn portions(&self, rows: usize, threads: usize) -> Result<Portions> {
        let load = self.loaded_of(rows);
        let mut portions = Portions { load, batch: MAX_BATCH, leaves_memory: false, memory: 0 };
        let pages = u64::from(self.rows.store.page_count()) * self.rows.store.page_size() as u64;
        let needs = self.needs(rows, threads);
        if let Some(limit) =
            self.memory_limit.filter(|&limit| pages + needs.pages + needs.memory > limit)
        {
            self.check_least(limit, rows)?;
            let left = limit - LISTED * rows as u64;
            let loaded = left.saturating_sub(self.matrices(threads)) / self.loaded_row();
            let loaded = usize::try_from(loaded).unwrap_or(usize::MAX);
            let batch = left / (PLANNED * self.width(0) as u64);
            portions = Portions {
                load: if loaded < LOAD_ROWS { 0 } else { load.min(loaded) },
                batch: batch.clamp(SMALL_BATCH as u64, MAX_BATCH as u64) as usize,
                leaves_memory: true,
                memory: 0,
            };
        }
        portions.memory = self.memory(rows, portions.load, portions.batch, threads);
        portions.ask_for_memory()?;
        Ok(portions)
    }

    /// How many of so many rows are loaded at one go where memory does not matter.
    fn loaded_of(&self, rows: usize) -> usize {
        let empty = self.rows.meta.entry.get() == NONE;
        if is_loaded(empty, rows, self.rows.space.metric) { rows } else { 0 }
    }

    fn memory(&self, rows: usize, load: usize, batch: usize, threads: usize) -> u64 {
        let loading = match load {
            0 => 0,
            load => load as u64 * self.loaded_row() + self.matrices(threads),
        };
        let planning = batch.min(rows - load) as u64 * self.width(0) as u64 * PLANNED;
        LISTED * rows as u64 + loading.max(planning)
    }

    /// Bytes of a row that is loaded.
    fn loaded_row(&self) -> u64 {
        let exact = if self.rows.has_vectors() { 0 } else { self.rows.space.stride() };
        let bytes = Bytes::stride_of(&self.rows.space).unwrap_or(0);
        (Level::bytes_a_row(self.width(0)) + leaves::BYTES_A_ROW + exact + bytes) as u64
    }

    /// Bytes of what leaves are multiplied in.
    fn matrices(&self, threads: usize) -> u64 {
        leaves::bytes_a_thread(self.rows.space.dim) * (1 + threads as u64)
    }

    fn page_bytes(&self, rows: u64) -> u64 {
        let arrays = &self.rows.meta.arrays;
        let mut hosts: Vec<usize> = [VECTORS, NODES, LINKS, CODES]
            .into_iter()
            .filter(|&array| arrays[array].record() > 0)
            .map(|array| arrays[array].host(array))
            .collect();
        hosts.sort_unstable();
        hosts.dedup();
        let slots = u64::from(self.rows.slots()) + rows;
        let pages = |array: usize, records: u64| match self.rows.array(array) {
            Ok(array) => array.pages_for(records).saturating_sub(array.pages()),
            Err(_) => 0,
        };
        let bottom: u64 = hosts.into_iter().map(|array| pages(array, slots)).sum();
        let above = match self.shape.widths[1] {
            0 => 0,
            width => pages(UPPER, slots / (width as u64 - 1).max(1)),
        };
        (bottom + above) * self.rows.store.page_size() as u64
    }
}

impl<K: Topology> Graph<MemStore, K> {
    /// Moves the index's pages into a temporary file; see [`MemStore::move_to_file`].
    ///
    /// # Errors
    /// As there.
    pub fn move_to_file(&mut self, file: File) -> Result<()> {
        self.rows.store.move_to_file(file)
    }
}
