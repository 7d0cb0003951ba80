//! Filling lists with all vectors: all is planned before anything is written.
//!
//! Each vector is assigned to a list and encoded into the blocks that its list will have. Then an index that has lists
//! is made one without, whose searches measure every vector; lists, blocks and codebook are written while nothing
//! refers to them; the write of the meta page that counts them makes them count. Vectors that are not in the index yet
//! are born before, in the order of the lists, so that what is measured together lies together.

use std::ops::Range;

use rayon::ThreadPool;
use rayon::prelude::*;
use zerocopy::IntoBytes;

use crate::code::kmeans;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::kernel::fastscan::BLOCK;
use crate::page::{MAX_WRITE, PageStore};
use crate::rows::{Change, NODES, NONE, Node, State, VECTORS, slice};

use super::lists::{Block, Extent, Links, List};
use super::model::{Model, Scratch};
use super::source::{Floats, Source};
use super::{BLOCKS, BOOK, CENTROIDS, IvfPq, LISTS};

/// Blocks that are encoded in a step, and bytes that one writes.
const STEP_BLOCKS: usize = 1024;
const STEP_BYTES: usize = 1 << 20;
/// Nodes of which one step writes where their entries are.
const STEP_OWNERS: usize = 1 << 15;
/// Node records that one write makes at most: they lie on three pages of any size.
const BIRTHS: usize = 128;

/// Where in a node its blocks are.
const OWNERS_AT: usize = 8;

/// All vectors on their way into the lists of a model.
pub(super) struct Filling<'a, T> {
    source: Source<'a, T>,
    /// The keys of vectors that are not in the index yet.
    newborn: Option<Vec<u64>>,
    /// Rows that the model was learnt from.
    trained: usize,
    /// Whether a caller is told of its share of the work.
    counts: bool,
    /// Until it is the index's own.
    model: Option<Model>,
    /// The list of each vector, as far as they are assigned.
    nearest: Vec<u32>,
    /// The second lists, if there are to be any.
    seconds: Vec<u32>,
    /// The vectors in the order of their lists, and the slots that they have or get.
    order: Vec<u32>,
    slots: Vec<u32>,
    records: Vec<List>,
    /// Places in that order, list by list: of those whose nearest list it is, then of those whose second.
    entries: Vec<u32>,
    /// The list of each block, and where among the entries its own are.
    blocks: Vec<(u32, Range<usize>)>,
    encoded: Vec<u8>,
    /// The blocks of each slot: that of its second entry, as nodes have it first, and of its first.
    owners: Vec<[u32; 2]>,
    /// The most that a code misses of its vector.
    error: f32,
    /// The sum of the squared distances of each block's vectors to their centroid.
    squares: Vec<f64>,
    stage: Stage,
    /// How much of the stage is done.
    done: usize,
}

/// The first three are planning.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Stage {
    Assign,
    Encode,
    Warm,
    Births,
    Lists,
    Blocks,
    Owners,
    Done,
}

impl<'a, T: Element> Filling<'a, T> {
    /// Of vectors that are in the index, or with `newborn` are to be, under these keys.
    pub(super) fn new(
        source: Source<'a, T>,
        newborn: Option<Vec<u64>>,
        model: Model,
        trained: usize,
        counts: bool,
    ) -> Filling<'a, T> {
        Filling {
            source,
            newborn,
            trained,
            counts,
            model: Some(model),
            nearest: Vec::new(),
            seconds: Vec::new(),
            order: Vec::new(),
            slots: Vec::new(),
            records: Vec::new(),
            entries: Vec::new(),
            blocks: Vec::new(),
            encoded: Vec::new(),
            owners: Vec::new(),
            error: 0.0,
            squares: Vec::new(),
            stage: Stage::Assign,
            done: 0,
        }
    }

    /// The share that is done.
    pub(super) fn share(&self) -> f64 {
        let of = |whole: usize| self.done as f64 / whole.max(1) as f64;
        match self.stage {
            Stage::Assign => 0.3 * of(self.source.len()),
            Stage::Encode => 0.3 + 0.6 * of(self.blocks.len()),
            Stage::Warm => 0.9,
            Stage::Births => 0.9 + 0.05 * of(self.order.len()),
            Stage::Lists | Stage::Blocks | Stage::Owners => 0.95,
            Stage::Done => 1.0,
        }
    }

    pub(super) fn counts(&self) -> bool {
        self.counts
    }

    pub(super) fn is_newborn(&self) -> bool {
        self.newborn.is_some()
    }

    /// Of vectors that were not in the index, those that have been born.
    pub(super) fn born(&self) -> usize {
        match self.stage {
            Stage::Births => self.done,
            stage if stage > Stage::Births => self.order.len(),
            _ => 0,
        }
    }

    pub(super) fn needs_write(&self) -> bool {
        self.stage >= Stage::Births
    }

    /// Whether the index is without lists until all is done.
    pub(super) fn is_applying(&self) -> bool {
        self.stage > Stage::Lists || self.stage == Stage::Lists && self.done > 0
    }

    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    fn go_on(&mut self, stage: Stage) {
        (self.stage, self.done) = (stage, 0);
    }

    /// One step of planning.
    pub(super) fn plan<S: PageStore>(&mut self, index: &IvfPq<S>, pool: &ThreadPool) -> Result<()> {
        let Some(model) = &self.model else { return Ok(()) };
        match self.stage {
            Stage::Assign => {
                let count = pool.install(|| kmeans::step_rows(model.len(), model.dim));
                let last = self.source.len().min(self.done + count.next_multiple_of(BLOCK));
                self.nearest.resize(last, 0);
                let (source, nearest) = (&self.source, &mut self.nearest[self.done..]);
                let (rows, centroids, first) = (&index.rows, &model.centroids, self.done);
                pool.install(|| source.assign(rows, centroids, first, nearest))?;
                if rows.meta.spills() && model.len() > 1 {
                    self.seconds.resize(last, 0);
                    let seconds = &mut self.seconds[first..];
                    pool.install(|| {
                        source.assign_seconds(rows, centroids, first, nearest, seconds)
                    })?;
                }
                self.done = last;
                if last == self.source.len() {
                    self.arrange(index)?;
                    self.go_on(Stage::Encode);
                }
            }
            Stage::Encode => {
                let last = self.blocks.len().min(self.done + STEP_BLOCKS);
                let stride = index.block.stride();
                let mut encoded = std::mem::take(&mut self.encoded);
                let step = &mut encoded[self.done * stride..last * stride];
                let missed = step
                    .par_chunks_mut(stride)
                    .zip(self.done..last)
                    .map_init(Default::default, |scratch, (block, number)| {
                        self.encode(index, number, block, scratch)
                    });
                let missed: Vec<(f32, f64)> = pool.install(|| missed.collect::<Result<_>>())?;
                for (missed, square) in missed {
                    self.error = self.error.max(missed);
                    self.squares.push(square);
                }
                self.encoded = encoded;
                self.done = last;
                if last == self.blocks.len() {
                    self.measure();
                    self.go_on(Stage::Warm);
                }
            }
            _ => {
                pool.install(|| model.warm());
                self.go_on(if self.newborn.is_some() { Stage::Births } else { Stage::Lists });
            }
        }
        Ok(())
    }

    /// Lays out blocks, list by list.
    fn arrange<S: PageStore>(&mut self, index: &IvfPq<S>) -> Result<()> {
        let lists = self.model.as_ref().map_or(0, Model::len);
        let (order, starts) = kmeans::by_cluster(&self.nearest, lists);
        self.nearest = Vec::new();
        let seconds: Vec<u32> = match self.seconds.is_empty() {
            true => Vec::new(),
            false => order.iter().map(|&at| self.seconds[at as usize]).collect(),
        };
        self.seconds = Vec::new();
        let (others, other_starts) = kmeans::by_cluster(&seconds, lists);
        let mut is_second = Vec::with_capacity(order.len() + others.len());
        for (list, (pair, other)) in (0..).zip(starts.windows(2).zip(other_starts.windows(2))) {
            let first = self.entries.len();
            self.entries.extend(pair[0] as u32..pair[1] as u32);
            is_second.resize(self.entries.len(), false);
            self.entries.extend(&others[other[0]..other[1]]);
            is_second.resize(self.entries.len(), true);
            let last = self.entries.len();
            let mut record = List::empty(Extent::default());
            if first < last {
                record.head = (self.blocks.len() as u32).into();
            }
            for from in (first..last).step_by(BLOCK) {
                self.blocks.push((list, from..last.min(from + BLOCK)));
            }
            if !(last - first).is_multiple_of(BLOCK) {
                record.open = (self.blocks.len() as u32 - 1).into();
            }
            self.records.push(record);
        }
        self.slots = match &self.source {
            Source::Slots(slots) => order.iter().map(|&at| slots[at as usize]).collect(),
            Source::Batch(_) => index.rows.free_ids(order.len())?,
        };
        let end = self.slots.iter().max().map_or(0, |&last| last as usize + 1);
        self.owners = vec![[NONE; 2]; end];
        for (number, (_, members)) in (0..).zip(&self.blocks) {
            for at in members.clone() {
                let slot = self.slots[self.entries[at] as usize];
                self.owners[slot as usize][usize::from(!is_second[at])] = number;
            }
        }
        self.order = order;
        let bytes = self.blocks.len() * index.block.stride();
        self.encoded.try_reserve_exact(bytes).map_err(|_| Error::OutOfMemory {
            what: "the codes of all vectors",
            bytes: bytes as u64,
        })?;
        self.encoded.resize(bytes, 0);
        Ok(())
    }

    /// Finds out how far each list's vectors lie around its centroid.
    fn measure(&mut self) {
        let Some(model) = &mut self.model else { return };
        let (mut sums, mut counts) = (vec![0f64; self.records.len()], vec![0; self.records.len()]);
        for ((list, members), square) in self.blocks.iter().zip(&self.squares) {
            sums[*list as usize] += square;
            counts[*list as usize] += members.len();
        }
        let mut extents = Vec::with_capacity(sums.len());
        for (list, record) in self.records.iter_mut().enumerate() {
            let radius = (sums[list] / counts[list].max(1) as f64).sqrt() as f32;
            record.set_extent(Extent { radius, spread: model.share * radius });
            extents.push(record.extent());
        }
        model.set_extents(extents);
    }

    /// Fills in a block's bytes. Returns the most that one of its codes misses of its vector, and the sum of the
    /// vectors' squared distances to the centroid.
    fn encode<S: PageStore>(
        &self,
        index: &IvfPq<S>,
        number: usize,
        bytes: &mut [u8],
        (scratch, floats): &mut (Scratch, Floats),
    ) -> Result<(f32, f64)> {
        let Some(model) = &self.model else { return Ok((0.0, 0.0)) };
        let (list, members) = &self.blocks[number];
        let ends = self.blocks.get(number + 1).is_none_or(|next| next.0 != *list);
        let mut links = Links::new(if ends { NONE } else { number as u32 + 1 }, *list);
        // One with room is the list's only open block.
        links.is_open = u32::from(members.len() < BLOCK).into();
        let shape: Block = index.block;
        shape.clear(bytes, links);
        let (mut codes, mut most, mut squares) = (vec![0; shape.subs], 0f32, 0f64);
        for (lane, &at) in self.entries[members.clone()].iter().enumerate() {
            let at = at as usize;
            self.source.floats(&index.rows, self.order[at] as usize, floats)?;
            let code = model.encode(&floats.values, *list as usize, &mut codes, scratch);
            most = most.max(code.missed);
            squares += f64::from(code.square);
            shape.put(bytes, lane, &codes, code.factors, self.slots[at]);
        }
        Ok((most, squares))
    }

    /// One step of writing.
    pub(super) fn write<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        match self.stage {
            Stage::Births => self.bear(index),
            Stage::Lists => self.write_lists(index),
            Stage::Blocks => self.write_blocks(index),
            _ => self.write_owners(index),
        }
    }

    /// Brings some of the new vectors into an index that has no lists.
    fn bear<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        let (Source::Batch(vectors), Some(keys)) = (&self.source, &self.newborn) else {
            return Ok(());
        };
        let rows = &mut index.rows;
        if self.done == 0 {
            self.source.choose_centre(rows)?;
            let slots = u64::from(rows.slots()).max(self.owners.len() as u64);
            rows.reserve(VECTORS, slots)?;
            rows.reserve(NODES, slots)?;
        }
        let count = (STEP_BYTES / rows.space.stride()).clamp(1, 16 * BIRTHS);
        let last = self.order.len().min(self.done + count);
        let (mut row, mut births) = (Vec::new(), Vec::<(u32, Node)>::new());
        for (&at, &id) in self.order[self.done..last].iter().zip(&self.slots[self.done..last]) {
            rows.encode(&slice(vectors.row(at as usize)), &mut row)?;
            rows.put_row(id, &row)?;
            // Slots that are used again may lie anywhere.
            let follows = births.last().is_none_or(|&(before, _)| before + 1 == id);
            if births.len() == BIRTHS || !follows {
                rows.births(&births)?;
                births.clear();
            }
            births.push((id, Node::new(keys[at as usize], State::Live, 0, 0)));
        }
        if !births.is_empty() {
            rows.births(&births)?;
        }
        self.done = last;
        if last == self.order.len() {
            self.go_on(Stage::Lists);
        }
        Ok(())
    }

    /// Writes codebook, centroids and lists, once the index has none that count.
    fn write_lists<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        let Some(model) = &self.model else { return Ok(()) };
        let lists = self.records.len();
        if self.done == 0 {
            index.abandon()?;
            let rows = &mut index.rows;
            rows.choose_centre(lists, |_, at, floats| {
                floats.clear();
                floats.extend_from_slice(model.centroid(at));
            })?;
            let book = model.coder.book(&rows.meta);
            let book = book.as_bytes();
            let body = rows.array(BOOK)?.size();
            rows.reserve(BOOK, book.len().div_ceil(body) as u64)?;
            rows.reserve(CENTROIDS, lists as u64)?;
            rows.reserve(LISTS, lists as u64)?;
            for (page, bytes) in (0..).zip(book.chunks(body)) {
                rows.put_whole(BOOK, page, bytes)?;
            }
        }
        let last = lists.min(self.done + (STEP_BYTES / (4 * model.dim)).max(1));
        for list in self.done..last {
            let (number, centroid) = (list as u32, model.centroid(list));
            index.rows.put_whole(CENTROIDS, number, centroid.as_bytes())?;
            index.rows.put_whole(LISTS, number, self.records[list].as_bytes())?;
        }
        self.done = last;
        if last == lists {
            index.rows.reserve(BLOCKS, self.blocks.len() as u64)?;
            self.go_on(Stage::Blocks);
        }
        Ok(())
    }

    fn write_blocks<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        let stride = index.block.stride();
        let last = self.blocks.len().min(self.done + STEP_BYTES.div_ceil(stride));
        let step = &self.encoded[self.done * stride..last * stride];
        for (number, bytes) in (self.done as u32..).zip(step.chunks_exact(stride)) {
            index.rows.put_whole(BLOCKS, number, bytes)?;
        }
        self.done = last;
        if last == self.blocks.len() {
            self.encoded = Vec::new();
            self.go_on(Stage::Owners);
        }
        Ok(())
    }

    /// Writes which blocks have the entries of each slot that has any, four pages at a time; then the lists count.
    fn write_owners<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        let last = self.owners.len().min(self.done + STEP_OWNERS);
        let mut change = Change::default();
        for slot in (self.done..last).filter(|&slot| self.owners[slot][1] != NONE) {
            let missing =
                || Error::corrupt(0, format!("record {slot} of the nodes does not exist"));
            let place = index.rows.array(NODES)?.locate(slot as u32);
            let (page, offset) = place.ok_or_else(missing)?;
            if change.pages() == MAX_WRITE && !change.touches(page) {
                index.rows.commit(&mut change)?;
            }
            change.put(page, offset + OWNERS_AT, &self.owners[slot].map(u32::to_le_bytes).concat());
        }
        index.rows.commit(&mut change)?;
        self.done = last;
        if last < self.owners.len() {
            return Ok(());
        }
        let (lists, blocks) = (self.records.len() as u32, self.blocks.len() as u32);
        index.rows.commit_meta(Change::default(), |meta| {
            (meta.entry_level, meta.upper, meta.entry) = (lists.into(), blocks.into(), NONE.into());
            (meta.coded, meta.book) = (0.into(), 0);
            meta.trained = (self.trained as u32).into();
            meta.error = self.error.to_bits().into();
            true
        })?;
        index.model = std::sync::OnceLock::from(self.model.take().map(Box::new));
        self.go_on(Stage::Done);
        Ok(())
    }
}

impl<S: PageStore> IvfPq<S> {
    /// Makes the index one without lists.
    fn abandon(&mut self) -> Result<()> {
        if !self.is_trained() {
            return Ok(());
        }
        self.rows.commit_meta(Change::default(), |meta| {
            (meta.entry_level, meta.upper, meta.entry) = (0.into(), 0.into(), NONE.into());
            (meta.coded, meta.book) = (0.into(), 0);
            true
        })?;
        self.forget_model();
        Ok(())
    }
}
