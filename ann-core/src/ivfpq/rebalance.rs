//! Keeping lists in shape as what they hold changes: large lists are split, tiny ones given away, and the others left
//! as they are.
//!
//! All of it is entries that move, each in one write that takes it out of one block and puts it into another: searches
//! find every entry, whatever they come between. New lists are empty before, and old ones when they go.

use std::sync::OnceLock;

use rayon::ThreadPool;
use zerocopy::IntoBytes;

use crate::code::kmeans::{self, Trainer, Training};
use crate::error::{Error, Result};
use crate::kernel::fastscan::BLOCK;
use crate::page::PageStore;
use crate::rows::{Change, NODES, NONE};
use crate::seed::mix;

use super::lists::{Extent, Factors, Links, List, Place, entries, taken};
use super::model::Model;
use super::source::{Coded, Source};
use super::steps::IvfPqSteps;
use super::{BLOCKS, CENTROIDS, IvfPq, LISTS, MAX_LISTS};
use crate::index::AddOptions;

/// A list this many times as long as the mean is split.
const LONG: usize = 2;
/// One shorter than the mean by this factor is given away.
const SHORT: usize = 8;
/// One with so many times the blocks that its entries fill is moved into new ones.
const SPARSE: usize = 2;
/// Lists of so few entries are not split: their blocks would stay half empty.
const SPLIT: usize = 2 * BLOCK;
/// An index of so many lists at least is trained anew if this part of them would become new.
const MANY: usize = 32;
const REBUILD: usize = 4;
/// Iterations of the k-means that splits a list, and the most vectors that it looks at for each part.
const ITERATIONS: usize = 8;
const SAMPLE_OF_PART: usize = 256;
/// Entries that are encoded and moved in a step, and blocks that are taken out of use in one.
const STEP: usize = 512;

/// What is to become of lists: new ones, with their numbers, centroids, one after the other, and extents, those that
/// they take the place of, and all that there will be then.
pub(super) struct Balanced {
    pub numbers: Vec<u32>,
    pub centroids: Vec<f32>,
    pub extents: Vec<Extent>,
    pub leaving: Vec<u32>,
    pub after: Option<Model>,
}

/// Lists on their way into shape.
#[derive(Default)]
pub(super) struct Balancing {
    stage: Stage,
    /// Long lists that are still to be cut, into so many parts, and the one that is being cut.
    long: Vec<Long>,
    cut: Option<(Vec<f32>, Trainer)>,
    /// The centroids of new lists, one after the other, their extents and numbers.
    centroids: Vec<f32>,
    extents: Vec<Extent>,
    numbers: Vec<u32>,
    /// Lists that will be in use no more.
    leaving: Vec<u32>,
    /// Slots whose first entries may move, and those whose second ones may.
    slots: [Vec<u32>; 2],
    moved: usize,
    /// With what the index has while entries move, and then.
    between: Option<Model>,
    after: Option<Model>,
    /// Those that are to move next, and whether they are second entries.
    next: Vec<(u32, Coded, bool)>,
}

/// A list that is to be cut.
struct Long {
    list: u32,
    /// The slots of its entries, and of those that are second ones.
    slots: [Vec<u32>; 2],
    parts: usize,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Stage {
    #[default]
    Survey,
    Cut,
    Create,
    Move,
    Empty,
    Done,
    /// So much has changed that the index had better be trained anew.
    Outdated,
}

impl Balancing {
    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    pub(super) fn is_outdated(&self) -> bool {
        self.stage == Stage::Outdated
    }

    pub(super) fn needs_write(&self) -> bool {
        match self.stage {
            Stage::Survey | Stage::Cut | Stage::Done | Stage::Outdated => false,
            Stage::Create | Stage::Empty => true,
            Stage::Move => !self.next.is_empty(),
        }
    }

    /// One step of planning.
    pub(super) fn plan<S: PageStore>(&mut self, index: &IvfPq<S>, pool: &ThreadPool) -> Result<()> {
        match self.stage {
            Stage::Survey => self.survey(index),
            Stage::Cut | Stage::Move => pool.install(|| self.plan_here(index)),
            Stage::Create | Stage::Empty | Stage::Done | Stage::Outdated => Ok(()),
        }
    }

    /// [`Balancing::plan`] on the current thread pool.
    pub(super) fn plan_here<S: PageStore>(&mut self, index: &IvfPq<S>) -> Result<()> {
        match self.stage {
            Stage::Survey => self.survey(index),
            Stage::Cut => self.cut(index),
            Stage::Move => self.code(index),
            Stage::Create | Stage::Empty | Stage::Done | Stage::Outdated => Ok(()),
        }
    }

    /// What has been planned, for whoever writes it in a way of his own.
    pub(super) fn take(&mut self) -> Balanced {
        Balanced {
            numbers: std::mem::take(&mut self.numbers),
            centroids: std::mem::take(&mut self.centroids),
            extents: std::mem::take(&mut self.extents),
            leaving: std::mem::take(&mut self.leaving),
            after: self.after.take(),
        }
    }

    /// Finds what is too long and too short.
    fn survey<S: PageStore>(&mut self, index: &IvfPq<S>) -> Result<()> {
        let lists = index.model()?.map_or(&[][..], |model| &model.lists);
        let spills = index.rows.meta.spills();
        let entries = index.rows.len() * (1 + usize::from(spills));
        let mean = entries / lists.len().max(1);
        for &list in lists {
            let blocks = index.blocks_of(list)?;
            let mut slots = [Vec::new(), Vec::new()];
            for (block, held) in &blocks {
                for slot in taken(held) {
                    let is_second = spills && index.rows.node(slot)?.owner.get() != *block;
                    slots[usize::from(is_second)].push(slot);
                }
            }
            let count = slots[0].len() + slots[1].len();
            // Beside others there is no other way to give back blocks.
            let sparse = S::SHARED && blocks.len() > SPARSE * count.div_ceil(BLOCK) + 1;
            if count > SPLIT.max(LONG * mean) && mean > 0 {
                let parts = count.div_ceil(mean.max(BLOCK)).max(2);
                self.long.push(Long { list, slots, parts });
            } else if sparse && count > 0 {
                self.long.push(Long { list, slots, parts: 1 });
            } else if count < mean / SHORT {
                self.leave(list, slots);
            }
        }
        let parts = self.long.iter().map(|long| long.parts).filter(|&parts| parts > 1);
        let parts: usize = parts.sum();
        let outdated = lists.len() >= MANY && parts > lists.len() / REBUILD;
        self.stage = if outdated { Stage::Outdated } else { Stage::Cut };
        Ok(())
    }

    /// Has a list's entries go to others.
    fn leave(&mut self, list: u32, slots: [Vec<u32>; 2]) {
        self.leaving.push(list);
        self.slots.iter_mut().zip(slots).for_each(|(all, slots)| all.extend(slots));
    }

    /// One step of cutting long lists into parts.
    fn cut<S: PageStore>(&mut self, index: &IvfPq<S>) -> Result<()> {
        let dim = index.rows.space.dim;
        let Some(Long { list, slots, parts }) = self.long.last_mut() else {
            return self.choose_numbers(index);
        };
        let Some((points, trainer)) = &mut self.cut else {
            // Second entries follow what the others do, if there are enough of these.
            let which = usize::from(slots[0].len() < *parts && slots[0].len() < slots[1].len());
            let source = Source::<f32>::Slots(std::mem::take(&mut slots[which]));
            let count = source.len().min(SAMPLE_OF_PART * *parts);
            let seed = mix(index.rows.meta.seed.get() ^ u64::from(*list));
            let points = source.sample(&index.rows, count, seed)?;
            let training =
                Training { clusters: *parts, iterations: ITERATIONS, spherical: false, seed };
            let trainer = Trainer::new(&points, dim, training);
            if let Source::Slots(taken) = source {
                slots[which] = taken;
            }
            self.cut = Some((points, trainer));
            return Ok(());
        };
        if trainer.step(points) {
            return Ok(());
        }
        let (cut, long) = (self.cut.take(), self.long.pop());
        if let (Some((points, trainer)), Some(Long { list, slots, parts })) = (cut, long) {
            let centroids = trainer.finish();
            let nearest = kmeans::assign(&points, dim, &centroids);
            let share = index.share_of(list)?;
            // Where all coincide no cut would part them.
            if parts == 1 || nearest.iter().any(|&part| part != nearest[0]) {
                self.extents.extend(extents_of(&points, &centroids, &nearest, dim, share));
                self.centroids.extend(centroids);
                self.leave(list, slots);
            }
        }
        Ok(())
    }

    /// Finds numbers for new lists: of those that are out of use, then new ones.
    fn choose_numbers<S: PageStore>(&mut self, index: &IvfPq<S>) -> Result<()> {
        if self.leaving.is_empty() {
            self.stage = Stage::Done;
            return Ok(());
        }
        let count = index.rows.meta.entry_level.get();
        let wanted = self.centroids.len() / index.rows.space.dim;
        for list in index.numbers() {
            if self.numbers.len() < wanted && index.list(list)?.retired.get() != 0 {
                self.numbers.push(list);
            }
        }
        self.numbers.extend((count..).take(wanted - self.numbers.len()));
        let most = self.numbers.last().map_or(0, |&last| last as u64 + 1);
        if most > MAX_LISTS as u64 {
            return Err(Error::Full { limit: MAX_LISTS as u64, wanted: most });
        }
        if let Some(model) = index.model()? {
            let model_of =
                |gone: &[u32]| model.with(&self.numbers, &self.centroids, &self.extents, gone);
            let (between, after) = (model_of(&[]), model_of(&self.leaving));
            // Beside others the model is read anew.
            if !S::SHARED {
                between.warm();
                after.warm();
            }
            (self.between, self.after) = (Some(between), Some(after));
        }
        self.leaving.sort_unstable();
        self.stage = Stage::Create;
        Ok(())
    }

    /// Finds where the next entries move to.
    fn code<S: PageStore>(&mut self, index: &IvfPq<S>) -> Result<()> {
        let Some(after) = &self.after else { return Ok(()) };
        // First entries, then second ones.
        let firsts = self.slots[0].len();
        let is_second = self.moved >= firsts;
        let (slots, moved) = match is_second {
            true => (&self.slots[1], self.moved - firsts),
            false => (&self.slots[0], self.moved),
        };
        let slots = slots[moved..slots.len().min(moved + STEP)].to_vec();
        self.moved += slots.len();
        let source = Source::<f32>::Slots(slots.clone());
        let mut places = vec![0; slots.len()];
        source.assign(&index.rows, &after.centroids, 0, &mut places)?;
        if is_second && after.len() > 1 {
            let nearest = places.clone();
            source.assign_seconds(&index.rows, &after.centroids, 0, &nearest, &mut places)?;
        }
        let coded = source.code(index, after, 0, &places)?;
        self.next =
            slots.into_iter().zip(coded).map(|(slot, coded)| (slot, coded, is_second)).collect();
        if self.next.is_empty() {
            self.stage = Stage::Empty;
        }
        Ok(())
    }

    /// One step of writing.
    pub(super) fn write<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        match self.stage {
            Stage::Create => {
                let centroids = self.centroids.chunks_exact(index.rows.space.dim);
                let new = self.numbers.iter().zip(centroids).zip(&self.extents);
                for ((&number, centroid), &extent) in new {
                    index.create_list(number, centroid, extent)?;
                }
                index.model = OnceLock::from(self.between.take().map(Box::new));
                self.stage = Stage::Move;
            }
            Stage::Move => {
                let Some(after) = &self.after else { return Ok(()) };
                for (slot, coded, is_second) in self.next.drain(..) {
                    let list = after.lists[coded.at as usize];
                    // A list has one entry of a vector.
                    if index.list_of(slot, !is_second)? == Some(list) {
                        index.drop_second(slot)?;
                        if is_second {
                            continue;
                        }
                    }
                    index.widen(list, coded.encoded.square)?;
                    let place = index.place(list)?;
                    let Coded { codes, encoded, .. } = &coded;
                    let beside = (encoded.factors, encoded.missed);
                    index.move_entry(slot, is_second, place, codes, beside)?;
                }
            }
            _ => {
                let mut left = STEP;
                for &list in &self.leaving {
                    if !index.free_blocks(list, &mut left)? {
                        return Ok(());
                    }
                }
                for &list in &self.leaving {
                    index.retire(list)?;
                }
                index.model = OnceLock::from(self.after.take().map(Box::new));
                self.stage = Stage::Done;
            }
        }
        Ok(())
    }
}

impl<S: PageStore> IvfPq<S> {
    /// Splits lists that have grown past twice the mean, and gives the entries of those below an eighth of it to
    /// others; all other lists stay as they are. An index of which that would make more than a quarter new, or that has
    /// four times as many rows as at its training and was not told how many lists to make, is trained anew instead.
    /// Searches in between find everything. Without vectors and codes that stand in for them nothing is done: entries
    /// that moved would have to be encoded anew, from what their codes have kept. `threads` as for adding. O(m lists dim) for the m entries of those lists.
    ///
    /// # Errors
    /// [`Error::Parameter`] for `threads`, and as [`IvfPq::compact`].
    pub fn rebalance(&mut self, threads: usize) -> Result<()> {
        let steps = IvfPqSteps::rebalance(self, threads)?;
        self.take_steps(steps, &mut AddOptions::new()).map(|_| ())
    }

    /// The part of its extent that a list has in the direction of near queries.
    fn share_of(&self, list: u32) -> Result<f32> {
        let Extent { radius, spread } = self.list(list)?.extent();
        Ok(if radius > 0.0 { spread / radius } else { 0.0 })
    }

    /// The list of a slot's second entry, or of its first; `None` if there is no such.
    fn list_of(&self, slot: u32, is_second: bool) -> Result<Option<u32>> {
        let node = self.rows.node(slot)?;
        let block = if is_second { node.twin.get() } else { node.owner.get() };
        if block == NONE {
            return Ok(None);
        }
        if block >= self.rows.meta.upper.get() {
            return Err(self.bad_block(block, "it does not exist"));
        }
        let shape = self.block;
        self.rows.record(BLOCKS, block, |bytes| Some(shape.links_of(bytes).list.get()))
    }

    /// Moves an entry to a free place, with its codes there, what it has beside them and what they miss.
    pub(super) fn move_entry(
        &mut self,
        slot: u32,
        is_second: bool,
        place: Place,
        codes: &[u8],
        (factors, missed): (Factors, f32),
    ) -> Result<()> {
        let mut node = self.rows.node(slot)?;
        let mut change = Change::default();
        let block = if is_second { &mut node.twin } else { &mut node.owner };
        self.clear_entry(&mut change, block.get(), slot, false)?;
        self.put_entry(&mut change, place, codes, factors, slot)?;
        *block = place.block.into();
        change.put_record(self.rows.array(NODES)?, slot, node.as_bytes())?;
        self.commit_moved(change, place, missed)
    }

    /// Makes a change that brings an entry, whose codes miss so much, to a place.
    pub(super) fn commit_moved(&mut self, change: Change, place: Place, missed: f32) -> Result<()> {
        let done = self.rows.commit_meta(change, |meta| {
            meta.error = f32::from_bits(meta.error.get()).max(missed).to_bits().into();
            true
        });
        match done? {
            true => Ok(()),
            false => Err(self.bad_block(place.block, "it changed meanwhile")),
        }
    }

    /// A list around a centroid, under a number that is out of use or new.
    pub(super) fn create_list(
        &mut self,
        number: u32,
        centroid: &[f32],
        extent: Extent,
    ) -> Result<()> {
        self.rows.reserve(LISTS, u64::from(number) + 1)?;
        self.rows.put_whole(CENTROIDS, number, centroid.as_bytes())?;
        let mut change = Change::default();
        change.put_record(self.rows.array(LISTS)?, number, List::empty(extent).as_bytes())?;
        self.rows.commit_meta(change, |meta| {
            meta.entry_level = meta.entry_level.get().max(number + 1).into();
            // A handle that does not know of the list would miss what comes to it.
            meta.sweeps = meta.sweeps.get().wrapping_add(u32::from(S::SHARED)).into();
            true
        })?;
        self.forget_model();
        Ok(())
    }

    /// Takes the blocks of a list without entries out of use, as far as `left` allows. Whether that are all of them.
    fn free_blocks(&mut self, list: u32, left: &mut usize) -> Result<bool> {
        loop {
            let head = self.list(list)?.head.get();
            if head == NONE || *left == 0 {
                return Ok(head == NONE);
            }
            if entries(&self.block(head, list)?.0) > 0 {
                return Err(self.bad_block(head, format!("list {list} still has entries")));
            }
            self.unlink(list, None, head)?;
            *left -= 1;
        }
    }

    /// Ends a list without blocks.
    fn retire(&mut self, list: u32) -> Result<()> {
        let mut change = Change::default();
        let mut record = List::empty(Extent::default());
        record.retired = 1.into();
        change.put_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
        self.rows.commit_meta(change, |_| true)?;
        self.forget_model();
        Ok(())
    }

    /// Takes a block without entries, which follows `before` or comes first, out of a list's chain. Nothing is on the
    /// list's stack of open blocks afterwards.
    pub(super) fn unlink(&mut self, list: u32, before: Option<u32>, block: u32) -> Result<()> {
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
}

/// How far points lie around the centroids that they are nearest to.
fn extents_of(
    points: &[f32],
    centroids: &[f32],
    nearest: &[u32],
    dim: usize,
    share: f32,
) -> Vec<Extent> {
    let mut sums = vec![(0f64, 0u32); centroids.len() / dim];
    for (point, &at) in points.chunks_exact(dim).zip(nearest) {
        let terms = point.iter().zip(&centroids[at as usize * dim..]);
        let (sum, count) = &mut sums[at as usize];
        *sum += terms.map(|(x, c)| f64::from(x - c).powi(2)).sum::<f64>();
        *count += 1;
    }
    let extent = |(sum, count): (f64, u32)| {
        let radius = (sum / f64::from(count.max(1))).sqrt() as f32;
        Extent { radius, spread: share * radius }
    };
    sums.into_iter().map(extent).collect()
}
