//! Training: centroids and codebook from a sample, then every vector's entry into its list.
//!
//! An index that is trained anew is first made one without lists, whose searches measure every vector. Lists, blocks
//! and codebook are written while nothing refers to them; the write of the meta page that counts them makes them count.

use ndarray::{Array2, ArrayView2};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::code::kmeans::{self, Finder, Training};
use crate::code::pq::Pq;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::index::AddOptions;
use crate::kernel::fastscan::BLOCK;
use crate::page::PageStore;
use crate::rows::{Change, NODES, NONE, Rows, check_rows, slice};
use crate::seed::mix;
use crate::threads;
use zerocopy::IntoBytes;

use super::lists::{LIST_BYTES, Links, List};
use super::model::{Model, Scratch};
use super::{BLOCKS, BOOK, CENTROIDS, IvfPq, LISTS, MAX_LISTS};

/// Rows of the sample for each list, and in all at least.
const SAMPLE_OF_LIST: usize = 64;
const SAMPLE: usize = 1 << 14;
/// Rows that codebooks are learnt from, at most, for each codeword.
const SAMPLE_OF_WORD: usize = 1024;
/// Iterations of k-means.
const ITERATIONS: usize = 10;
/// Entries that a list has at least, on average, if it is not told otherwise.
const ENTRIES: usize = 32;
/// Rows that are assigned at a time by a thread.
const ROWS: usize = 256;
/// Blocks that are encoded between two looks at progress.
const STEP: usize = 1024;

/// Where in a node its block is.
const OWNER_AT: usize = 12;

/// Replaces the floats with those of a vector, given by its number; the bytes are scratch.
pub(super) type Floats<'a> = dyn Fn(usize, &mut Vec<u8>, &mut Vec<f32>) -> Result<()> + Sync + 'a;

/// Vectors by number.
pub(super) struct Source<'a> {
    pub count: usize,
    pub floats: &'a Floats<'a>,
}

/// Whom to tell of the share that is done; false ends the work.
pub(super) type Told<'a> = &'a mut (dyn FnMut(f64) -> bool + Send);

/// Floats of vectors that are in the index.
pub(super) fn floats_of<S: PageStore>(
    rows: &Rows<S>,
    slot: u32,
    bytes: &mut Vec<u8>,
    floats: &mut Vec<f32>,
) -> Result<()> {
    rows.row(slot, bytes)?;
    rows.space.floats(bytes, floats);
    Ok(())
}

impl<S: PageStore> IvfPq<S> {
    /// Learns lists and codes from vectors that need not be in the index, and puts those that are into these lists.
    /// Adding trains an index by itself; this is for rows that come a few at a time, or that differ from all that will
    /// come. A progress function is told of shares of all rows.
    ///
    /// # Errors
    /// As [`Index::add`](crate::Index::add); [`Error::Parameter`] without vectors; [`Error::Cancelled`]: the index may be
    /// without lists then, and its searches exact and slow, until it is trained.
    pub fn train<T: Element>(
        &mut self,
        vectors: ArrayView2<'_, T>,
        mut options: AddOptions<'_>,
    ) -> Result<()> {
        let pool = threads::pool(options.threads)?;
        pool.install(|| check_rows(&self.rows.space, &vectors))?;
        if vectors.nrows() == 0 {
            return Err(Error::parameter("vectors", "0 rows", "at least 1"));
        }
        self.settle()?;
        let total = vectors.nrows();
        let mut told = |share: f64| match &mut options.progress {
            Some(progress) => progress((total as f64 * share) as usize, total),
            None => true,
        };
        let space = &self.rows.space;
        let floats = |at: usize, bytes: &mut Vec<u8>, floats: &mut Vec<f32>| {
            bytes.clear();
            space.encode(&slice(vectors.row(at)), bytes);
            space.floats(bytes, floats);
            Ok(())
        };
        let source = Source { count: total, floats: &floats };
        let learnt = pool.install(|| self.learn(&source, &mut |share| told(share / 2.0)))?;
        let model = learnt.ok_or(Error::Cancelled { added: 0 })?;
        let slots = self.rows.visible(|_| true)?;
        let nearest = pool.install(|| self.assign_slots(&model, &slots))?;
        self.abandon()?;
        let mut filling = |share: f64| told(0.5 + share / 2.0);
        if !self.fill(&pool, model, total, &slots, &nearest, &mut filling)? {
            return Err(Error::Cancelled { added: 0 });
        }
        told(1.0);
        Ok(())
    }

    /// Trains the index on the vectors in it, in place of what training there was. False if it was told to stop; the
    /// index is then as it was, or without lists.
    pub(super) fn build(&mut self, pool: &ThreadPool, told: Told<'_>) -> Result<bool> {
        let slots = self.rows.visible(|_| true)?;
        if slots.is_empty() {
            return Ok(true);
        }
        let rows = &self.rows;
        let floats = |at: usize, bytes: &mut Vec<u8>, floats: &mut Vec<f32>| {
            floats_of(rows, slots[at], bytes, floats)
        };
        let source = Source { count: slots.len(), floats: &floats };
        let Some(model) = pool.install(|| self.learn(&source, &mut |share| told(share / 2.0)))?
        else {
            return Ok(false);
        };
        let nearest = pool.install(|| self.assign_slots(&model, &slots))?;
        self.abandon()?;
        self.fill(pool, model, slots.len(), &slots, &nearest, &mut |share| told(0.5 + share / 2.0))
    }

    /// How many lists suit so many rows.
    fn wanted_lists(&self, rows: usize) -> usize {
        match self.rows.meta.ef_construction.get() {
            0 => (2.0 * (rows as f64).sqrt()) as usize,
            asked => return (asked as usize).min(rows).max(1),
        }
        .clamp(1, (rows / ENTRIES).max(1))
        .min(MAX_LISTS)
    }

    /// Whether the index has so many more rows than at its training that other lists would suit it.
    pub(super) fn has_outgrown(&self) -> bool {
        let meta = &self.rows.meta;
        let by_rows = self.is_trained() && meta.ef_construction.get() == 0;
        let before = meta.trained.get().max(meta.train_at.get() / 4).max(1);
        by_rows && self.rows.len() as u64 >= 4 * u64::from(before)
    }

    /// Learns from a sample of vectors. `None` if it was told to stop.
    pub(super) fn learn(&self, source: &Source<'_>, told: Told<'_>) -> Result<Option<Model>> {
        let meta = &self.rows.meta;
        let (dim, seed) = (self.rows.space.dim, meta.seed.get());
        let lists = self.wanted_lists(source.count);
        let limit = match meta.sweeps.get() {
            0 => (SAMPLE_OF_LIST * lists).max(SAMPLE),
            asked => (asked as usize).max(lists),
        };
        let count = limit.min(source.count);
        let mut points = Vec::new();
        points.try_reserve_exact(count * dim).map_err(|_| Error::OutOfMemory {
            what: "the training sample",
            bytes: 4 * (count * dim) as u64,
        })?;
        points.resize(count * dim, 0f32);
        // One of each of so many equal parts.
        let drawn = |at: usize| {
            let (from, to) = (at * source.count / count, (at + 1) * source.count / count);
            from + (mix(seed ^ at as u64) % (to - from) as u64) as usize
        };
        points.par_chunks_mut(dim).enumerate().try_for_each_init(
            || (Vec::new(), Vec::new()),
            |(bytes, floats), (at, point)| -> Result<()> {
                (source.floats)(drawn(at), bytes, floats)?;
                point.copy_from_slice(floats);
                Ok(())
            },
        )?;
        let training = Training { clusters: lists, iterations: ITERATIONS, spherical: false, seed };
        let trained = kmeans::train(&points, dim, &training, &mut |share| told(0.8 * share));
        let Some(centroids) = trained else {
            return Ok(None);
        };
        if !told(0.8) {
            return Ok(None);
        }
        let nearest = kmeans::assign(&points, dim, &centroids);
        points.par_chunks_mut(dim).zip(&nearest).for_each(|(point, &list)| {
            let centroid = &centroids[list as usize * dim..][..dim];
            point.iter_mut().zip(centroid).for_each(|(x, c)| *x -= c);
        });
        // The sample is in no order that matters.
        points.truncate((SAMPLE_OF_WORD << self.block.bits) * dim);
        let pq = Pq::train(&points, dim, self.block.subs, self.block.bits, mix(seed));
        let numbers = (0..(centroids.len() / dim) as u32).collect();
        let (metric, along) = (self.rows.space.metric, meta.along == 1);
        Ok(Some(Model::new(numbers, centroids, pq, metric, along, self.rows.space.isa())))
    }

    /// The place in the model of each vector's list. Runs on the current thread pool.
    pub(super) fn assign(&self, model: &Model, source: &Source<'_>) -> Result<Vec<u32>> {
        let finder = Finder::new(&model.centroids, model.dim);
        let mut nearest = vec![0; source.count];
        nearest.par_chunks_mut(ROWS).enumerate().try_for_each_init(
            || (Array2::zeros((0, 0)), Vec::new(), Vec::new(), Vec::new()),
            |(products, points, bytes, floats), (chunk, nearest)| -> Result<()> {
                points.clear();
                for at in 0..nearest.len() {
                    (source.floats)(chunk * ROWS + at, bytes, floats)?;
                    points.extend_from_slice(floats);
                }
                finder.find(points, products, nearest);
                Ok(())
            },
        )?;
        Ok(nearest)
    }

    fn assign_slots(&self, model: &Model, slots: &[u32]) -> Result<Vec<u32>> {
        let floats = |at: usize, bytes: &mut Vec<u8>, floats: &mut Vec<f32>| {
            floats_of(&self.rows, slots[at], bytes, floats)
        };
        self.assign(model, &Source { count: slots.len(), floats: &floats })
    }

    /// Makes the index one without lists.
    fn abandon(&mut self) -> Result<()> {
        if !self.is_trained() {
            return Ok(());
        }
        self.rows.commit_meta(Change::default(), |meta| {
            (meta.entry_level, meta.upper, meta.entry) = (0.into(), 0.into(), NONE.into());
            true
        })?;
        self.forget_model();
        Ok(())
    }

    /// Puts all vectors, given by slot with the place of each one's list, into the lists of an index without any. False
    /// if it was told to stop.
    pub(super) fn fill(
        &mut self,
        pool: &ThreadPool,
        model: Model,
        trained: usize,
        slots: &[u32],
        nearest: &[u32],
        told: Told<'_>,
    ) -> Result<bool> {
        let (order, starts) = kmeans::by_cluster(nearest, model.len());
        let mut blocks: Vec<(u32, std::ops::Range<usize>)> = Vec::new();
        let mut records = Vec::with_capacity(model.len());
        for (list, pair) in (0..).zip(starts.windows(2)) {
            let mut record = List::empty();
            if pair[0] < pair[1] {
                record.head = (blocks.len() as u32).into();
            }
            for from in (pair[0]..pair[1]).step_by(BLOCK) {
                blocks.push((list, from..pair[1].min(from + BLOCK)));
            }
            if (pair[1] - pair[0]) % BLOCK > 0 {
                record.open = (blocks.len() as u32 - 1).into();
            }
            records.push(record);
        }
        self.write_model(&model, &records)?;
        self.rows.reserve(BLOCKS, blocks.len() as u64)?;
        let mut owners = vec![NONE; self.rows.slots() as usize];
        let mut error = 0f32;
        let last = blocks.len();
        for first in (0..last).step_by(STEP) {
            if !told(first as f64 / last as f64) {
                return Ok(false);
            }
            let step = &blocks[first..last.min(first + STEP)];
            let encoded: Vec<(Vec<u8>, f32)> = pool.install(|| {
                let encode = |scratch: &mut _,
                                  (number, (list, range)): (
                        u32,
                        &(u32, std::ops::Range<usize>),
                    )| {
                        let ends =
                            blocks.get(number as usize + 1).is_none_or(|next| next.0 != *list);
                        let next = if ends { NONE } else { number + 1 };
                        let members = order[range.clone()].iter().map(|&at| slots[at as usize]);
                        self.encode_block(&model, *list, next, members, scratch)
                    };
                let numbered =
                    step.par_iter().enumerate().map(|(at, block)| ((first + at) as u32, block));
                numbered.map_init(Default::default, encode).collect::<Result<_>>()
            })?;
            for (at, (bytes, missed)) in encoded.into_iter().enumerate() {
                let number = (first + at) as u32;
                error = error.max(missed);
                self.rows.put_whole(BLOCKS, number, &bytes)?;
                for &member in &order[step[at].1.clone()] {
                    owners[slots[member as usize] as usize] = number;
                }
            }
        }
        self.write_owners(&owners)?;
        self.rows.commit_meta(Change::default(), |meta| {
            meta.entry_level = (model.len() as u32).into();
            meta.upper = (last as u32).into();
            meta.entry = NONE.into();
            meta.trained = (trained as u32).into();
            meta.error = error.to_bits().into();
            true
        })?;
        self.model = std::sync::OnceLock::from(Some(model));
        Ok(true)
    }

    /// Writes what an index without lists is to have.
    fn write_model(&mut self, model: &Model, records: &[List]) -> Result<()> {
        let book = model.pq.book().as_bytes();
        let body = self.rows.array(BOOK)?.size();
        let lists = records.len() as u64;
        self.rows.reserve(BOOK, book.len().div_ceil(body) as u64)?;
        self.rows.reserve(CENTROIDS, lists)?;
        self.rows.reserve(LISTS, lists)?;
        for (page, bytes) in (0..).zip(book.chunks(body)) {
            self.rows.put_whole(BOOK, page, bytes)?;
        }
        for (list, record) in (0..).zip(records) {
            self.rows.put_whole(CENTROIDS, list, model.centroid(list as usize).as_bytes())?;
            debug_assert_eq!(record.as_bytes().len(), LIST_BYTES);
            self.rows.put_whole(LISTS, list, record.as_bytes())?;
        }
        Ok(())
    }

    /// A block's bytes, and the most that one of its codes misses of its vector.
    fn encode_block(
        &self,
        model: &Model,
        list: u32,
        next: u32,
        members: impl Iterator<Item = u32>,
        scratch: &mut (Scratch, Vec<u8>, Vec<f32>),
    ) -> Result<(Vec<u8>, f32)> {
        let (scratch, bytes, floats) = scratch;
        let mut block = self.block.empty(Links::new(next, list));
        let mut codes = vec![0; self.block.subs];
        let (mut count, mut most) = (0, 0f32);
        for (lane, slot) in members.enumerate() {
            floats_of(&self.rows, slot, bytes, floats)?;
            let (addend, missed) = model.encode(floats, list as usize, &mut codes, scratch);
            most = most.max(missed);
            self.block.put(&mut block, lane, &codes, addend, slot);
            count += 1;
        }
        if count < BLOCK {
            // The list's only open block.
            let links = Links { is_open: 1.into(), ..Links::new(next, list) };
            let at = self.block.links();
            block[at..at + links.as_bytes().len()].copy_from_slice(links.as_bytes());
        }
        Ok((block, most))
    }

    /// Writes which block has the entry of each slot that has one, four pages at a time.
    fn write_owners(&mut self, owners: &[u32]) -> Result<()> {
        let mut change = Change::default();
        for (slot, &owner) in (0..).zip(owners).filter(|(_, owner)| **owner != NONE) {
            let missing =
                || Error::corrupt(0, format!("record {slot} of the nodes does not exist"));
            let (page, offset) = self.rows.array(NODES)?.locate(slot).ok_or_else(missing)?;
            if change.pages() == crate::page::MAX_WRITE && !change.touches(page) {
                self.rows.commit(&mut change)?;
            }
            change.put(page, offset + OWNER_AT, &owner.to_le_bytes());
        }
        self.rows.commit(&mut change)?;
        Ok(())
    }
}
