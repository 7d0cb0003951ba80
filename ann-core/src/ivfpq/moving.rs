//! Entries that move to other lists while others search and insert: all of them, once an index is to have other lists
//! and codes, or those of some lists, which are then in use no more.
//!
//! Entries are copied first. Meanwhile searches find the old ones, perhaps both, and insertions know of nothing. When
//! little is left, nobody inserts for a moment: the rest is copied, the count of sweeps goes up, and what was left
//! behind is in use no more. A search that began before begins anew; one that begins later finds the copies. A crash in
//! between leaves lists as they were, or entries in two places, and blocks that the next sweep finds.

use std::ops::Range;

use zerocopy::IntoBytes;

use crate::code::kmeans;
use crate::error::Result;
use crate::page::PageStore;
use crate::rows::Change;

use super::lists::{Entry, Extent, List, taken};
use super::model::{Model, book_pages};
use super::rebalance::{Balanced, Balancing};
use super::source::Source;
use super::sweep::Slots;
use super::train::Learning;
use super::{BOOK, CENTROIDS, IvfPq, LISTS};

/// Entries that a step copies, for each of its size; and when so few are left, the last are copied at one go.
const COPIES: usize = 16;
/// Slots that a step looks at, at most, for each entry that it may copy.
const PATIENCE: usize = 16;

/// A move under way.
pub(super) struct Moving {
    stage: Stage,
    size: usize,
    /// What lists are learnt from; empty where some are cut.
    source: Source<'static, f32>,
    learning: Learning,
    balancing: Balancing,
    /// Whether all lists are new.
    anew: bool,
    /// Lists that will be in use no more.
    leaving: Vec<u32>,
    /// The lists that there will be.
    target: Option<Model>,
    moved: Slots,
    /// Where all lists are new, the place of each slot's list, as far as it is known; then the slots in the order of
    /// these, so that a list's blocks come to lie together.
    places: Vec<u32>,
    order: Vec<u32>,
    /// How far a pass through what is to be moved is, and how much it has found.
    at: usize,
    found: usize,
    /// For each list, what entries are off its centroid: squares and their count.
    sums: Vec<(f64, u32)>,
    /// The most that a code misses of its vector.
    error: f32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Cut,
    Learn,
    Create,
    Sort,
    Copy,
    Finish,
    Done,
}

impl Moving {
    /// What an index needs, if it needs something.
    pub(super) fn choose<S: PageStore>(index: &IvfPq<S>, size: usize) -> Result<Option<Moving>> {
        let mut moving = Moving {
            stage: Stage::Cut,
            size,
            source: Source::Slots(Vec::new()),
            learning: Learning::new(),
            balancing: Balancing::default(),
            anew: false,
            leaving: Vec::new(),
            target: None,
            moved: Slots::default(),
            places: Vec::new(),
            order: Vec::new(),
            at: 0,
            found: 0,
            sums: Vec::new(),
            error: 0.0,
        };
        if index.rows.len() == 0 {
            return Ok(None);
        }
        if index.training_is_due() {
            moving.learn(index)?;
            return Ok(Some(moving));
        }
        Ok(index.is_trained().then_some(moving))
    }

    pub(super) fn is_alone(&self) -> bool {
        self.stage == Stage::Create || self.stage == Stage::Finish
    }

    /// One step, on the current thread pool. False once all is done.
    pub(super) fn step<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<bool> {
        match self.stage {
            Stage::Cut => self.cut(index)?,
            Stage::Learn => {
                if let Some(model) = self.learning.step_here(index, &self.source)? {
                    self.target = Some(index.renumbered(model));
                    self.stage = Stage::Create;
                }
            }
            Stage::Create => {
                self.create(index)?;
                self.stage = if self.anew { Stage::Sort } else { Stage::Copy };
            }
            Stage::Sort => self.sort(index)?,
            Stage::Copy => {
                let limit = COPIES * self.size;
                let slots = self.gather(index, limit)?;
                self.copy(index, slots)?;
                if self.at == self.end(index) {
                    let few = self.found <= limit && self.order.is_empty();
                    self.order = Vec::new();
                    self.begin_pass();
                    if few {
                        self.stage = Stage::Finish;
                    }
                }
            }
            Stage::Finish => {
                while self.at < self.end(index) {
                    let slots = self.gather(index, usize::MAX)?;
                    self.copy(index, slots)?;
                }
                match self.anew {
                    true => self.switch(index)?,
                    false => self.retire(index)?,
                }
                self.stage = Stage::Done;
            }
            Stage::Done => {}
        }
        Ok(self.stage != Stage::Done)
    }

    /// Has all lists learnt anew.
    fn learn<S: PageStore>(&mut self, index: &IvfPq<S>) -> Result<()> {
        self.source = Source::Slots(index.rows.visible(|_| true)?);
        (self.anew, self.stage) = (true, Stage::Learn);
        if self.source.len() == 0 {
            self.stage = Stage::Done;
        }
        Ok(())
    }

    /// Finds out which lists are out of shape, and what is to become of them.
    fn cut<S: PageStore>(&mut self, index: &IvfPq<S>) -> Result<()> {
        self.balancing.plan_here(index)?;
        if self.balancing.is_outdated() {
            return self.learn(index);
        }
        if self.balancing.is_done() {
            self.stage = Stage::Done;
        } else if self.balancing.needs_write() {
            self.stage = Stage::Create;
        }
        Ok(())
    }

    /// Makes the new lists.
    fn create<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        if !self.anew {
            let Balanced { numbers, centroids, extents, leaving, after } = self.balancing.take();
            let each = numbers.iter().zip(centroids.chunks_exact(index.rows.space.dim));
            for ((&number, centroid), &extent) in each.zip(&extents) {
                index.create_list(number, centroid, extent)?;
            }
            (self.leaving, self.target) = (leaving, after);
            return Ok(());
        }
        let Some(model) = &self.target else { return Ok(()) };
        let numbers = range_of(model);
        let (book, rows) = (index.other_book(), &mut index.rows);
        let pages = book_pages(rows);
        rows.reserve(BOOK, u64::from(pages * (u32::from(book) + 1)))?;
        rows.reserve(CENTROIDS, numbers.end.into())?;
        rows.reserve(LISTS, numbers.end.into())?;
        let body = rows.array(BOOK)?.size();
        let first = u32::from(book) * pages;
        let floats = model.coder.book(&rows.meta);
        for (page, bytes) in (first..).zip(floats.as_bytes().chunks(body)) {
            rows.put_whole(BOOK, page, bytes)?;
        }
        for (at, number) in numbers.enumerate() {
            rows.put_whole(CENTROIDS, number, model.centroid(at).as_bytes())?;
            rows.put_whole(LISTS, number, List::empty(Extent::default()).as_bytes())?;
        }
        self.sums = vec![(0.0, 0); model.len()];
        Ok(())
    }

    /// Finds the lists of some of the slots; in the end, puts all in their order.
    fn sort<S: PageStore>(&mut self, index: &IvfPq<S>) -> Result<()> {
        let Some(target) = &self.target else { return Ok(()) };
        let (first, count) = (self.places.len(), COPIES * self.size);
        let last = self.source.len().min(first + count);
        self.places.resize(last, 0);
        let places = &mut self.places[first..];
        self.source.assign(&index.rows, &target.centroids, first, places)?;
        if last < self.source.len() {
            return Ok(());
        }
        let (order, _) = kmeans::by_cluster(&self.places, target.len());
        if let Source::Slots(slots) = &self.source {
            self.order = order.into_iter().map(|at| slots[at as usize]).collect();
        }
        (self.places, self.source) = (Vec::new(), Source::Slots(Vec::new()));
        self.stage = Stage::Copy;
        Ok(())
    }

    /// Where a pass ends: a slot, one in the order of lists, or a place among the lists that are left.
    fn end<S: PageStore>(&self, index: &IvfPq<S>) -> usize {
        match (self.anew, self.order.len()) {
            (true, 0) => index.rows.slots() as usize,
            (true, slots) => slots,
            (false, _) => self.leaving.len(),
        }
    }

    fn begin_pass(&mut self) {
        (self.at, self.found) = (0, 0);
    }

    /// The next slots whose entries are to be copied: about so many at most, and none twice.
    fn gather<S: PageStore>(&mut self, index: &IvfPq<S>, limit: usize) -> Result<Vec<u32>> {
        let mut slots = Vec::new();
        let end = self.end(index).min(self.at.saturating_add(PATIENCE.saturating_mul(limit)));
        while self.at < end && slots.len() < limit {
            let all = match self.anew {
                true => vec![self.order.get(self.at).copied().unwrap_or(self.at as u32)],
                false => {
                    let blocks = index.blocks_of(self.leaving[self.at])?;
                    blocks.iter().flat_map(|(_, slots)| taken(slots)).collect()
                }
            };
            self.at += 1;
            for slot in all {
                if !self.moved.contains(slot) && index.rows.node(slot)?.is_visible() {
                    slots.push(slot);
                }
            }
        }
        self.found += slots.len();
        Ok(slots)
    }

    /// Copies the entries of slots into the lists that they are to be in.
    fn copy<S: PageStore>(&mut self, index: &mut IvfPq<S>, slots: Vec<u32>) -> Result<()> {
        let Some(target) = self.target.as_ref().filter(|_| !slots.is_empty()) else {
            return Ok(());
        };
        let source = Source::<f32>::Slots(slots.clone());
        let mut places = vec![0; slots.len()];
        source.assign(&index.rows, &target.centroids, 0, &mut places)?;
        let coded = source.code(index, target, 0, &places)?;
        let missed = coded.iter().map(|coded| coded.encoded.missed).fold(self.error, f32::max);
        if !self.anew && missed > f32::from_bits(index.rows.meta.error.get()) {
            index.rows.commit_meta(Change::default(), |meta| {
                let error = f32::from_bits(meta.error.get()).max(missed);
                meta.error = error.to_bits().into();
                true
            })?;
        }
        self.error = missed;
        let mut order: Vec<usize> = (0..slots.len()).collect();
        order.sort_by_key(|&at| places[at]);
        for group in order.chunk_by(|&a, &b| places[a] == places[b]) {
            let place = places[group[0]] as usize;
            let list = target.lists[place];
            let entry = |&at: &usize| Entry {
                slot: slots[at],
                codes: &coded[at].codes,
                factors: coded[at].encoded.factors,
            };
            let entries: Vec<Entry<'_>> = group.iter().map(entry).collect();
            for &at in group {
                let square = coded[at].encoded.square;
                if self.anew {
                    let (sum, count) = &mut self.sums[place];
                    (*sum, *count) = (*sum + f64::from(square), *count + 1);
                    continue;
                }
                while !index.widen_beside(list, square)? {
                    index.rows.refresh()?;
                }
            }
            let mut done = 0;
            while done < entries.len() {
                done += index.append(list, &entries[done..])?;
            }
        }
        slots.into_iter().for_each(|slot| _ = self.moved.insert(slot));
        Ok(())
    }

    /// Puts the new lists and codes in the place of the old.
    fn switch<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        let Some(mut model) = self.target.take() else { return Ok(()) };
        let share = model.share;
        let extent = |&(sum, count): &(f64, u32)| {
            let radius = (sum / f64::from(count.max(1))).sqrt() as f32;
            Extent { radius, spread: share * radius }
        };
        let extents: Vec<Extent> = self.sums.iter().map(extent).collect();
        for (&list, &extent) in model.lists.iter().zip(&extents) {
            let mut record = index.any_list(list)?;
            record.set_extent(extent);
            let mut change = Change::default();
            change.put_record(index.rows.array(LISTS)?, list, record.as_bytes())?;
            index.rows.commit(&mut change)?;
        }
        model.set_extents(extents);
        let (numbers, book, error) = (range_of(&model), index.other_book(), self.error);
        index.rows.commit_meta(Change::default(), |meta| {
            (meta.coded, meta.entry_level) = (numbers.start.into(), numbers.end.into());
            (meta.book, meta.trained) = (book, meta.live);
            meta.error = error.to_bits().into();
            meta.sweeps = meta.sweeps.get().wrapping_add(1).into();
            true
        })?;
        index.model = std::sync::OnceLock::from(Some(Box::new(model.beside())));
        index.seen = index.rows.meta.sweeps.get();
        Ok(())
    }

    /// Takes lists whose entries have all been copied out of use.
    fn retire<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        index.rows.count_sweep()?;
        for &list in &self.leaving {
            let mut record = List::empty(Extent::default());
            record.retired = 1.into();
            let mut change = Change::default();
            change.put_record(index.rows.array(LISTS)?, list, record.as_bytes())?;
            index.rows.commit(&mut change)?;
        }
        // Lists that were read in between may have these among them.
        index.rows.count_sweep()?;
        index.renew();
        Ok(())
    }
}

/// The numbers of lists that follow one another.
fn range_of(model: &Model) -> Range<u32> {
    let first = model.lists.first().copied().unwrap_or(0);
    first..first + model.len() as u32
}

impl<S: PageStore> IvfPq<S> {
    /// New lists under numbers that none in use has: the least, or those behind them.
    fn renumbered(&self, mut model: Model) -> Model {
        let (count, used) = (model.len() as u32, self.numbers());
        let first = if count <= used.start { 0 } else { used.end };
        model.lists = (first..first + count).collect();
        model
    }

    /// Where the codebook is to be that is not in use yet.
    fn other_book(&self) -> u8 {
        if self.is_trained() { 1 - self.rows.meta.book } else { self.rows.meta.book }
    }
}
