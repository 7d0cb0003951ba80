//! Adding, replacing and removing rows.
//!
//! A row that comes to a trained index is encoded for its nearest list and born in the same write that puts its entry
//! into a block; the next one puts its second entry, if it is to have one, into a block of another list, and that is
//! taken out first. A replaced row is a tombstone, which searches pass over, from the write that brings the new one to
//! the next, which takes its entry out; a removed one loses entry and slot in one write. Places and slots are used
//! again.

use std::ops::Range;

use rayon::ThreadPool;
use zerocopy::IntoBytes;

use crate::code::kmeans;
use crate::element::Element;
use crate::error::Result;
use crate::kernel::fastscan::BLOCK;
use crate::page::PageStore;
use crate::rows::{Change, NODES, NONE, Node, State, VECTORS, slice};

use super::lists::{Extent, Place};
use super::source::{Coded, Source};
use super::{BLOCKS, IvfPq, LISTS};

/// Rows that are encoded in a step.
const STEP: usize = 1024;
/// Bytes of vectors that a step writes.
const STEP_BYTES: usize = 1 << 20;

/// An entry whose squared distance to its list's centroid is so many times the mean lies outside of the list's extent.
pub(super) const WIDE: f32 = 2.0;

/// Rows on their way into an index, a few at a time.
pub(super) struct Adding<'a, T> {
    source: Source<'a, T>,
    replace: bool,
    /// The place of each row's list, if there are any.
    nearest: Vec<u32>,
    /// Rows whose entries, if they are to have any, are known, and these.
    coded: Range<usize>,
    entries: Vec<Coded>,
    seconds: Vec<Coded>,
}

impl<'a, T: Element> Adding<'a, T> {
    pub(super) fn new(source: Source<'a, T>, replace: bool) -> Adding<'a, T> {
        let (nearest, entries, seconds) = (Vec::new(), Vec::new(), Vec::new());
        Adding { source, replace, nearest, coded: 0..0, entries, seconds }
    }

    /// Rows that are in the index.
    pub(super) fn done(&self) -> usize {
        self.coded.start
    }

    pub(super) fn is_done(&self) -> bool {
        self.coded.start == self.source.len()
    }

    pub(super) fn needs_write(&self) -> bool {
        !self.coded.is_empty()
    }

    /// One step of planning.
    pub(super) fn plan<S: PageStore>(&mut self, index: &IvfPq<S>, pool: &ThreadPool) -> Result<()> {
        let rows = &index.rows;
        if let Some(model) = index.model()?
            && self.nearest.len() < self.source.len()
        {
            let first = self.nearest.len();
            let count = pool.install(|| kmeans::step_rows(model.len(), model.dim));
            self.nearest.resize(self.source.len().min(first + count.max(STEP)), 0);
            let (source, nearest) = (&self.source, &mut self.nearest[first..]);
            pool.install(|| source.assign(rows, &model.centroids, first, nearest))?;
            if self.nearest.len() < self.source.len() {
                return Ok(());
            }
        }
        let first = self.coded.end;
        let last = self.source.len().min(first + STEP);
        self.entries.clear();
        self.seconds.clear();
        if let Some(model) = index.model()? {
            let (centroids, nearest) = (&model.centroids, &self.nearest[first..last]);
            self.entries = pool.install(|| self.source.code(index, model, first, nearest))?;
            if rows.meta.spills() && model.len() > 1 {
                let mut seconds = vec![0; last - first];
                self.seconds = pool.install(|| {
                    self.source.assign_seconds(rows, centroids, first, nearest, &mut seconds)?;
                    self.source.code(index, model, first, &seconds)
                })?;
            }
        }
        self.coded = first..last;
        Ok(())
    }

    /// One step of writing, under these keys.
    pub(super) fn write<S: PageStore>(&mut self, index: &mut IvfPq<S>, keys: &[u64]) -> Result<()> {
        let Source::Batch(vectors) = &self.source else { return Ok(()) };
        if self.coded.start == 0 {
            self.source.choose_centre(&mut index.rows)?;
        }
        if self.coded.start == 0 && !self.replace {
            let rows = &mut index.rows;
            let slots = u64::from(rows.slots()).max((rows.len() + self.source.len()) as u64);
            rows.reserve(VECTORS, slots)?;
            rows.reserve(NODES, slots)?;
            if rows.len() == 0 && rows.meta.upper.get() == 0 && !rows.meta.spills() {
                // All at once, so that none is left over.
                let lists = self.nearest.iter().max().map_or(0, |&last| last as usize + 1);
                let mut counts = vec![0usize; lists];
                self.nearest.iter().for_each(|&list| counts[list as usize] += 1);
                let blocks: usize = counts.into_iter().map(|count| count.div_ceil(BLOCK)).sum();
                rows.reserve(BLOCKS, blocks as u64)?;
            }
        }
        let count = (STEP_BYTES / index.rows.space.stride()).max(1);
        let before = self.coded.end - self.entries.len();
        let mut row = Vec::new();
        let next = self.coded.start..self.coded.end.min(self.coded.start + count);
        for (at, &key) in next.clone().zip(&keys[next]) {
            index.rows.encode(&slice(vectors.row(at)), &mut row)?;
            let old = if self.replace { index.rows.id_of(key)? } else { None };
            let entries = [&self.entries, &self.seconds];
            let [coded, second] =
                entries.map(|entries| at.checked_sub(before).and_then(|at| entries.get(at)));
            index.put_one(&row, key, old, coded, second)?;
            self.coded.start = at + 1;
        }
        Ok(())
    }
}

impl<S: PageStore> IvfPq<S> {
    /// One row, into its list if there are any.
    fn put_one(
        &mut self,
        row: &[u8],
        key: u64,
        replaces: Option<u32>,
        coded: Option<&Coded>,
        second: Option<&Coded>,
    ) -> Result<()> {
        let list = match (coded, self.model()?) {
            (Some(coded), Some(model)) => Some(model.lists[coded.at as usize]),
            _ => None,
        };
        let place: Option<Place> = match list {
            Some(list) => Some(self.place(list)?),
            None => None,
        };
        if let (Some(coded), Some(list)) = (coded, list) {
            self.widen(list, coded.encoded.square)?;
        }
        let id = self.rows.free_ids(1)?[0];
        self.rows.reserve(NODES, u64::from(id) + 1)?;
        self.rows.put_row(id, row)?;
        let mut node = Node::new(key, State::Live, 0, 0);
        let mut change = Change::default();
        let mut missed = 0f32;
        if let (Some(place), Some(coded)) = (place, coded) {
            node.owner = place.block.into();
            self.put_entry(&mut change, place, &coded.codes, coded.encoded.factors, id)?;
            missed = coded.encoded.missed;
        }
        let born = self.rows.birth(change, id, node, replaces, |meta| {
            let error = f32::from_bits(meta.error.get()).max(missed);
            meta.error = error.to_bits().into();
            true
        })?;
        if !born {
            return Err(self.rows.corrupt_node(id, "its list changed meanwhile".into()));
        }
        if let Some(second) = second {
            self.put_second(id, second)?;
        }
        match replaces {
            Some(old) => self.take_out(old),
            None => Ok(()),
        }
    }

    /// Gives a slot that has an entry a second one.
    fn put_second(&mut self, id: u32, coded: &Coded) -> Result<()> {
        let Some(list) = self.model()?.map(|model| model.lists[coded.at as usize]) else {
            return Ok(());
        };
        let place = self.place(list)?;
        self.widen(list, coded.encoded.square)?;
        let mut node = self.rows.node(id)?;
        let mut change = Change::default();
        self.put_entry(&mut change, place, &coded.codes, coded.encoded.factors, id)?;
        node.twin = place.block.into();
        change.put_record(self.rows.array(NODES)?, id, node.as_bytes())?;
        self.commit_moved(change, place, coded.encoded.missed)
    }

    /// Takes a slot's second entry out of its list, if it has one.
    pub(super) fn drop_second(&mut self, id: u32) -> Result<()> {
        let mut node = self.rows.node(id)?;
        if !self.rows.meta.spills() || node.twin.get() == NONE || node.is(State::Free) {
            return Ok(());
        }
        let mut change = Change::default();
        self.clear_entry(&mut change, node.twin.get(), id, true)?;
        node.twin = NONE.into();
        change.put_record(self.rows.array(NODES)?, id, node.as_bytes())?;
        self.rows.commit_meta(change, |_| true)?;
        Ok(())
    }

    /// Forgets a list's extent if an entry comes to it that lies well outside, by its squared distance to the centroid:
    /// where there is one of another kind, there may be many in one place, of which an extent does not tell.
    pub(super) fn widen(&mut self, list: u32, square: f32) -> Result<()> {
        let mut record = self.list(list)?;
        let Extent { radius, .. } = record.extent();
        if radius == 0.0 || square <= WIDE * radius * radius {
            return Ok(());
        }
        record.set_extent(Extent::default());
        let mut change = Change::default();
        change.put_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
        self.rows.commit(&mut change)?;
        if let Some(model) = self.model.get_mut().and_then(Option::as_mut)
            && let Some(at) = model.position(list)
        {
            model.extents[at] = Extent::default();
        }
        Ok(())
    }

    /// Takes a slot's entry out of its list and frees the slot.
    pub(super) fn take_out(&mut self, id: u32) -> Result<()> {
        let mut change = Change::default();
        if self.is_trained() {
            self.drop_second(id)?;
            let block = self.rows.node(id)?.owner.get();
            self.clear_entry(&mut change, block, id, true)?;
        }
        self.rows.free_with(change, id)
    }

    /// Slots whose replacement lacks its second write.
    pub(super) fn unsettled(&self) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        if self.rows.meta.tombstones.get() > 0 {
            for id in 0..self.rows.slots() {
                let node = self.rows.node(id)?;
                if !node.is_visible() && !node.is(State::Free) {
                    ids.push(id);
                }
            }
        }
        Ok(ids)
    }

    /// Finishes replacements of which the second write is missing.
    pub(super) fn settle(&mut self, ids: &[u32]) -> Result<()> {
        ids.iter().try_for_each(|&id| self.take_out(id))
    }
}
