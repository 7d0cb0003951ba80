//! Keeping lists in shape: sparse blocks are joined, large lists split, tiny ones given away.
//!
//! All of it is entries that move, each in one write that takes it out of one block and puts it into another: searches
//! find every entry once, whatever they come between.

use zerocopy::IntoBytes;

use crate::code::kmeans::{self, Training};
use crate::error::{Error, Result};
use crate::kernel::fastscan::BLOCK;
use crate::page::PageStore;
use crate::rows::{Change, NODES, NONE};
use crate::seed::mix;
use crate::threads;

use super::lists::{Links, List, Place, entries, taken};
use super::model::Scratch;
use super::train::floats_of;
use super::{CENTROIDS, IvfPq, LISTS, MAX_LISTS};

/// A list this many times as long as the mean is split.
const LONG: usize = 2;
/// One shorter than the mean by this factor is given away.
const SHORT: usize = 8;
/// Lists of so few entries are not split: their blocks would stay half empty.
const SPLIT: usize = 2 * BLOCK;
/// An index of so many lists at least is trained anew if this part of them would become new.
const MANY: usize = 32;
const REBUILD: usize = 4;
/// Iterations of the k-means that splits a list.
const ITERATIONS: usize = 8;

/// What moving an entry needs for a while.
#[derive(Default)]
struct Mover {
    scratch: Scratch,
    bytes: Vec<u8>,
    floats: Vec<f32>,
    codes: Vec<u8>,
}

impl<S: PageStore> IvfPq<S> {
    /// Joins the entries of lists that have more blocks than they need; blocks that become empty are used again, by any
    /// list.
    ///
    /// # Errors
    /// Those of the store; the index then holds the same vectors as before.
    pub fn compact(&mut self) -> Result<()> {
        self.settle()?;
        let count = self.model()?.map_or(0, |model| model.len());
        let mover = &mut Mover::default();
        for at in 0..count {
            self.compact_list(at, mover)?;
        }
        Ok(())
    }

    /// Splits lists that have grown past twice the mean, and gives the entries of those below an eighth of it to others.
    /// If that would make more than a quarter of all lists new, or the index has outgrown its lists altogether, trains it
    /// anew. Searches in between find everything. `threads`
    /// as for adding.
    ///
    /// # Errors
    /// As [`IvfPq::compact`].
    pub fn rebalance(&mut self, threads: usize) -> Result<()> {
        let pool = threads::pool(threads)?;
        self.settle()?;
        if !self.is_trained() || self.has_outgrown() {
            if self.rows.len() >= self.rows.meta.train_at.get() as usize {
                self.build(&pool, &mut |_| true)?;
            }
            return Ok(());
        }
        let lists = self.model()?.map_or(Vec::new(), |model| model.lists.clone());
        let mean = self.rows.len() / lists.len().max(1);
        let mut long = Vec::new();
        for &list in &lists {
            let slots = self.slots_of(list)?;
            if slots.len() > SPLIT.max(LONG * mean) && mean > 0 {
                let parts = slots.len().div_ceil(mean.max(BLOCK)).max(2);
                long.push((list, slots, parts));
            }
        }
        let parts: usize = long.iter().map(|(_, _, parts)| parts).sum();
        if lists.len() >= MANY && parts > lists.len() / REBUILD {
            self.build(&pool, &mut |_| true)?;
            return Ok(());
        }
        for (list, slots, parts) in long {
            pool.install(|| self.split(list, &slots, parts))?;
        }
        for &list in &lists {
            let in_use = self
                .model()?
                .is_some_and(|model| model.len() > 1 && model.position(list).is_some());
            let slots = self.slots_of(list)?;
            if in_use && slots.len() < mean / SHORT {
                pool.install(|| self.give_away(list, &slots))?;
            }
        }
        Ok(())
    }

    /// The slots of a list's entries.
    fn slots_of(&self, list: u32) -> Result<Vec<u32>> {
        let blocks = self.blocks_of(list)?;
        Ok(blocks.iter().flat_map(|(_, slots)| taken(slots)).collect())
    }

    /// Moves an entry into a list, or to a given place of it.
    fn move_entry(
        &mut self,
        slot: u32,
        at: usize,
        to: Option<Place>,
        mover: &mut Mover,
    ) -> Result<()> {
        let Mover { scratch, bytes, floats, codes } = mover;
        floats_of(&self.rows, slot, bytes, floats)?;
        codes.resize(self.block.subs, 0);
        let missing = || Error::corrupt(0, format!("list number {at} does not exist"));
        let model = self.model()?.filter(|model| at < model.len()).ok_or_else(missing)?;
        let list = model.lists[at];
        let (addend, missed) = model.encode(floats, at, codes, scratch);
        let place = match to {
            Some(place) => place,
            None => self.place(list)?,
        };
        let mut node = self.rows.node(slot)?;
        let mut change = Change::default();
        self.clear_entry(&mut change, node.owner.get(), slot, false)?;
        self.put_entry(&mut change, place, codes, addend, slot)?;
        node.owner = place.block.into();
        change.put_record(self.rows.array(NODES)?, slot, node.as_bytes())?;
        let done = self.rows.commit_meta(change, |meta| {
            meta.error = f32::from_bits(meta.error.get()).max(missed).to_bits().into();
            true
        });
        match done? {
            true => Ok(()),
            false => Err(self.bad_block(place.block, "it changed meanwhile")),
        }
    }

    /// New lists around the centres of one, whose entries go to them.
    fn split(&mut self, list: u32, slots: &[u32], parts: usize) -> Result<()> {
        let dim = self.rows.space.dim;
        let (mut points, mut bytes, mut floats) = (Vec::new(), Vec::new(), Vec::new());
        points.try_reserve_exact(slots.len() * dim).map_err(|_| Error::OutOfMemory {
            what: "splitting a list",
            bytes: 4 * (slots.len() * dim) as u64,
        })?;
        for &slot in slots {
            floats_of(&self.rows, slot, &mut bytes, &mut floats)?;
            points.extend_from_slice(&floats);
        }
        let training = Training {
            clusters: parts,
            iterations: ITERATIONS,
            spherical: false,
            seed: mix(self.rows.meta.seed.get() ^ u64::from(list)),
        };
        let centroids = kmeans::train(&points, dim, &training, &mut |_| true).unwrap_or_default();
        let nearest = kmeans::assign(&points, dim, &centroids);
        if nearest.iter().all(|&part| part == nearest[0]) {
            // They all coincide: no cut would part them.
            return Ok(());
        }
        let mut numbers = Vec::new();
        for centroid in centroids.chunks_exact(dim) {
            numbers.push(self.new_list(centroid)?);
        }
        let mover = &mut Mover::default();
        for (&slot, &part) in slots.iter().zip(&nearest) {
            let at = self.model()?.and_then(|model| model.position(numbers[part as usize]));
            let at = at.ok_or_else(|| Error::corrupt(0, "a new list is missing"))?;
            self.move_entry(slot, at, None, mover)?;
        }
        self.retire(list)
    }

    /// Moves the entries of a list to the nearest of the others.
    fn give_away(&mut self, list: u32, slots: &[u32]) -> Result<()> {
        let Some(model) = self.model()? else { return Ok(()) };
        let Some(own) = model.position(list) else { return Ok(()) };
        let dim = model.dim;
        let mut others = model.centroids.clone();
        others.drain(own * dim..(own + 1) * dim);
        let (mut points, mut bytes, mut floats) = (Vec::new(), Vec::new(), Vec::new());
        for &slot in slots {
            floats_of(&self.rows, slot, &mut bytes, &mut floats)?;
            points.extend_from_slice(&floats);
        }
        let nearest = kmeans::assign(&points, dim, &others);
        let mover = &mut Mover::default();
        for (&slot, &at) in slots.iter().zip(&nearest) {
            let at = at as usize + usize::from(at as usize >= own);
            self.move_entry(slot, at, None, mover)?;
        }
        self.retire(list)
    }

    /// A list around a centroid: one that was retired, or a new one.
    fn new_list(&mut self, centroid: &[f32]) -> Result<u32> {
        let count = self.rows.meta.entry_level.get();
        let mut number = count;
        for list in 0..count {
            if self.list(list)?.retired.get() != 0 {
                number = list;
                break;
            }
        }
        if number as usize >= MAX_LISTS {
            return Err(Error::Full { limit: MAX_LISTS as u64, wanted: u64::from(number) + 1 });
        }
        self.rows.reserve(LISTS, u64::from(number) + 1)?;
        self.rows.put_whole(CENTROIDS, number, centroid.as_bytes())?;
        let mut change = Change::default();
        change.put_record(self.rows.array(LISTS)?, number, List::empty().as_bytes())?;
        self.rows.commit_meta(change, |meta| {
            meta.entry_level = count.max(number + 1).into();
            true
        })?;
        self.forget_model();
        Ok(number)
    }

    /// Ends a list without entries; its blocks become unused ones.
    fn retire(&mut self, list: u32) -> Result<()> {
        for (block, slots) in self.blocks_of(list)? {
            if entries(&slots) > 0 {
                return Err(self.bad_block(block, format!("list {list} still has entries")));
            }
            self.unlink(list, None, block)?;
        }
        let mut change = Change::default();
        let record = List { retired: 1.into(), ..List::empty() };
        change.put_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
        self.rows.commit_meta(change, |_| true)?;
        self.forget_model();
        Ok(())
    }

    /// Takes a block without entries, which follows `before` or comes first, out of a list's chain. Nothing is on the
    /// list's stack of open blocks afterwards.
    fn unlink(&mut self, list: u32, before: Option<u32>, block: u32) -> Result<()> {
        let (_, links) = self.block(block, list)?;
        let mut record = self.list(list)?;
        let mut change = Change::default();
        match before {
            None => record.head = links.next,
            Some(before) => {
                let (_, mut own) = self.block(before, list)?;
                own.next = links.next;
                self.put_links(&mut change, before, own)?;
            }
        }
        record.open = NONE.into();
        change.put_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
        self.put_links(&mut change, block, Links::new(self.rows.meta.entry.get(), NONE))?;
        // The block before it, the list, the block and the meta page.
        self.rows.commit_meta(change, |meta| {
            meta.entry = block.into();
            true
        })?;
        Ok(())
    }

    /// Joins the entries of one list, given by its place in the model.
    fn compact_list(&mut self, at: usize, mover: &mut Mover) -> Result<()> {
        let Some(list) = self.model()?.and_then(|model| model.lists.get(at).copied()) else {
            return Ok(());
        };
        let mut blocks = self.blocks_of(list)?;
        let total: usize = blocks.iter().map(|(_, slots)| entries(slots)).sum();
        if blocks.len() <= total.div_ceil(BLOCK) {
            return Ok(());
        }
        // From the emptiest into the fullest that have room.
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|&at| (BLOCK - entries(&blocks[at].1), at));
        let (mut to, mut from) = (0, order.len() - 1);
        while to < from {
            let (target, source) = (order[to], order[from]);
            let Some(lane) = blocks[target].1.iter().position(|&slot| slot == NONE) else {
                to += 1;
                continue;
            };
            let Some(held) = blocks[source].1.iter().position(|&slot| slot != NONE) else {
                from -= 1;
                continue;
            };
            let slot = blocks[source].1[held];
            let place = Place { block: blocks[target].0, lane };
            self.move_entry(slot, at, Some(place), mover)?;
            blocks[source].1[held] = NONE;
            blocks[target].1[lane] = slot;
        }
        let mut before = None;
        for &(block, slots) in &blocks {
            if entries(&slots) == 0 {
                self.unlink(list, before, block)?;
            } else {
                before = Some(block);
            }
        }
        // What is left has one block with room at the most.
        for &(block, slots) in blocks.iter().filter(|(_, slots)| entries(slots) > 0) {
            let (_, mut links) = self.block(block, list)?;
            let mut record = self.list(list)?;
            let open = entries(&slots) < BLOCK;
            (links.is_open, links.open) = (u32::from(open).into(), NONE.into());
            let mut change = Change::default();
            if open {
                links.open = record.open;
                record.open = block.into();
                change.put_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
            }
            self.put_links(&mut change, block, links)?;
            self.rows.commit(&mut change)?;
        }
        Ok(())
    }
}
