//! What filling an index of lists takes, known before it begins, and how to do with less.

use std::fs::File;

use crate::code::opq;
use crate::error::Result;
use crate::index::Needs;
use crate::kernel::fastscan::BLOCK;
use crate::page::{MemStore, PageStore};
use crate::rows::{NODES, VECTORS};

use super::model::book_pages;
use super::{BLOCKS, BOOK, CENTROIDS, IvfPq, LISTS};

/// Bytes of a row until it is in: keys, hashes, its list, its place in the order of these, its slot and block.
const LISTED: u64 = 64;
/// Bytes of the matrices that a thread assigns vectors with, beside these.
const MATRICES: u64 = 1 << 19;
/// Vectors that a thread has as floats meanwhile.
const FLOATS: u64 = 512;
/// Rows that training looks at however little memory there is.
const SMALL_SAMPLE: usize = 1 << 10;

impl<S: PageStore> IvfPq<S> {
    /// What it will take to fill the empty index with `rows` vectors at one go on `threads` threads, without computing
    /// anything.
    pub fn needs(&self, rows: usize, threads: usize) -> Needs {
        let meta = &self.rows.meta;
        let trains = rows >= meta.train_at.get() as usize;
        let lists = if trains { self.wanted_lists(rows) } else { 0 };
        // The last block of each list is half full.
        let blocks = if trains { rows / BLOCK + lists } else { 0 };
        let book = if trains { u64::from(book_pages(&self.rows)) } else { 0 };
        let arrays = [
            (VECTORS, rows as u64),
            (NODES, rows as u64),
            (BLOCKS, blocks as u64),
            (LISTS, lists as u64),
            (CENTROIDS, lists as u64),
            (BOOK, book),
        ];
        let pages = |(array, records): (usize, u64)| match self.rows.array(array) {
            Ok(array) => array.pages_for(records).saturating_sub(array.pages()),
            Err(_) => 0,
        };
        let pages: u64 = arrays.into_iter().map(pages).sum();
        let floats = 4 * self.rows.space.dim as u64;
        let training = match trains {
            true => {
                // Vectors that a rotation is learnt from, and matrices meanwhile.
                let dim = self.rows.space.dim;
                let turned = opq::Trainer::wanted(dim, self.sample_rows(rows)) + 6 * dim;
                let turned = if self.opq() { turned } else { 0 };
                (self.sample_rows(rows) + 2 * lists + turned) as u64 * floats
            }
            false => 0,
        };
        let codes = (blocks * self.block.stride()) as u64;
        let threads = (1 + threads as u64) * (MATRICES + FLOATS * floats);
        Needs {
            pages: pages * self.rows.store.page_size() as u64,
            memory: LISTED * rows as u64 + training.max(codes) + threads,
        }
    }

    /// Makes training look at no more vectors than half of so many bytes have room for, though at as many as there are
    /// lists. That takes something of what codes tell. The limit is not saved with the index.
    pub fn set_memory_limit(&mut self, bytes: Option<u64>) {
        self.memory_limit = bytes;
    }

    /// The most rows that training is to look at, of so many.
    pub(super) fn sample_rows(&self, rows: usize) -> usize {
        let lists = self.wanted_lists(rows);
        let room = self.memory_limit.map_or(usize::MAX, |bytes| {
            let fits = bytes / 2 / (4 * self.rows.space.dim as u64);
            usize::try_from(fits).unwrap_or(usize::MAX).max(SMALL_SAMPLE).max(lists)
        });
        self.wanted_sample(lists).min(room).min(rows)
    }
}

impl IvfPq<MemStore> {
    /// Moves the index's pages into a temporary file; see [`MemStore::move_to_file`].
    ///
    /// # Errors
    /// As there.
    pub fn move_to_file(&mut self, file: File) -> Result<()> {
        self.rows.store.move_to_file(file)
    }
}
