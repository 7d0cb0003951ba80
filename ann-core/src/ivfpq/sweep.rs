//! Sweeping lists that others change at the same time: what is gone leaves its blocks, slots and blocks are used again,
//! and lists get into shape.
//!
//! 1. Entries of removed rows leave their blocks, and with them those that a move was to take away and a crash has left:
//!    of several of a slot, one stays. Blocks of lists that are out of use become unused.
//! 2. The sweep counts itself. No search that began since has met a removed row's slot: they are free from here on.
//! 3. Entries move to other lists (`moving.rs`): of an index that needs other lists and codes, all; else those of lists that
//!    are long, short, or sparse.
//! 4. Blocks of the lists that they left become unused.
//!
//! Each step is a series of small writes, and after each of those every row has an entry where searches look for it.

use crate::error::Result;
use crate::page::PageStore;
use crate::rows::{Change, NONE, State};

use super::IvfPq;
use super::lists::{Links, entries};
use super::moving::Moving;

/// Blocks that a step looks through at most, for each that it may change.
const PATIENCE: usize = 16;

/// A sweep of an [`IvfPq`] index under way: see [`SharedIndex::begin_sweep`](crate::SharedIndex::begin_sweep).
pub struct IvfPqSweep {
    stage: Stage,
    /// Blocks or vectors that a step changes, about.
    size: usize,
    /// How far the stage is.
    at: usize,
    /// Slots of removed rows, and those that may have been claimed for rows that never came.
    dead: Vec<u32>,
    claimed: Vec<u32>,
    gone: Slots,
    seen: Slots,
    moving: Option<Box<Moving>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Clean,
    Free,
    Choose,
    Reset,
    Move,
    Release,
    Done,
}

/// A set of slots: a bit for each.
#[derive(Default)]
pub(super) struct Slots(Vec<u64>);

impl Slots {
    pub(super) fn contains(&self, slot: u32) -> bool {
        self.0.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// Whether it was not there yet.
    pub(super) fn insert(&mut self, slot: u32) -> bool {
        let (word, bit) = (slot as usize / 64, 1 << (slot % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }
}

impl IvfPqSweep {
    pub(super) fn begin<S: PageStore>(index: &mut IvfPq<S>, size: usize) -> Result<IvfPqSweep> {
        index.rows.refresh()?;
        index.rows.count_sweep()?;
        index.renew();
        let (mut dead, mut claimed, mut gone) = (Vec::new(), Vec::new(), Slots::default());
        for id in 0..index.rows.slots() {
            match index.rows.node(id)?.state() {
                Some(State::Tombstone) => {
                    dead.push(id);
                    gone.insert(id);
                }
                Some(State::Claimed) => claimed.push(id),
                _ => {}
            }
        }
        let (stage, seen) = (Stage::Clean, Slots::default());
        let size = size.max(1);
        Ok(IvfPqSweep { stage, size, at: 0, dead, claimed, gone, seen, moving: None })
    }

    pub(super) fn is_alone(&self) -> bool {
        match self.stage {
            Stage::Clean | Stage::Free | Stage::Reset | Stage::Release => true,
            Stage::Move => self.moving.as_ref().is_some_and(|moving| moving.is_alone()),
            Stage::Choose | Stage::Done => false,
        }
    }

    pub(super) fn step<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<bool> {
        index.rows.refresh()?;
        index.renew();
        match self.stage {
            Stage::Clean => {
                if !self.clean(index, true)? {
                    index.rows.count_sweep()?;
                    // From here on both are slots to free.
                    self.dead.append(&mut self.claimed);
                    self.go_on(Stage::Free);
                }
            }
            Stage::Free => {
                let last = self.dead.len().min(self.at + self.size);
                for &id in &self.dead[self.at..last] {
                    let node = index.rows.node(id)?;
                    if node.is(State::Tombstone) || node.is(State::Claimed) {
                        index.rows.free(id)?;
                    }
                }
                self.at = last;
                if last == self.dead.len() {
                    self.go_on(Stage::Choose);
                }
            }
            Stage::Choose => {
                self.moving = Moving::choose(index, self.size)?.map(Box::new);
                let is_empty = index.is_trained() && index.rows.len() == 0;
                self.go_on(match self.moving {
                    Some(_) => Stage::Move,
                    None if is_empty => Stage::Reset,
                    None => Stage::Done,
                });
            }
            Stage::Reset => {
                index.rows.commit_meta(Change::default(), |meta| {
                    meta.sweeps = meta.sweeps.get().wrapping_add(1).into();
                    if meta.live.get() == 0 {
                        (meta.coded, meta.entry_level) = (0.into(), 0.into());
                    }
                    true
                })?;
                self.go_on(Stage::Release);
            }
            Stage::Move => {
                let more = match &mut self.moving {
                    Some(moving) => moving.step(index)?,
                    None => false,
                };
                if !more {
                    self.moving = None;
                    self.go_on(Stage::Release);
                }
            }
            Stage::Release => {
                if !self.clean(index, false)? {
                    self.go_on(Stage::Done);
                }
            }
            Stage::Done => {}
        }
        Ok(self.stage != Stage::Done)
    }

    fn go_on(&mut self, stage: Stage) {
        (self.stage, self.at) = (stage, 0);
    }

    /// Looks at the next blocks, and takes those of no list out of use; with `clears`, what is not a row's entry leaves
    /// the others. False once there are no more.
    fn clean<S: PageStore>(&mut self, index: &mut IvfPq<S>, clears: bool) -> Result<bool> {
        let end = (index.rows.meta.upper.get() as usize).min(self.at + PATIENCE * self.size);
        let mut changed = 0;
        while self.at < end && changed < self.size {
            let block = self.at as u32;
            let (slots, links) = index.any_block(block)?;
            self.at += 1;
            let list = links.list.get();
            if list == NONE {
                continue;
            }
            let in_use = index.model()?.is_some_and(|model| model.position(list).is_some());
            if !in_use {
                index.release(block, links)?;
                changed += 1;
                continue;
            }
            if !clears || entries(&slots) == 0 {
                continue;
            }
            let mut lanes = 0u32;
            for (lane, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != NONE) {
                let stays = !self.gone.contains(slot) && self.seen.insert(slot);
                lanes |= u32::from(!stays) << lane;
            }
            if lanes != 0 {
                index.clear_lanes(block, lanes)?;
                changed += 1;
            }
        }
        Ok(self.at < index.rows.meta.upper.get() as usize)
    }
}

impl<S: PageStore> IvfPq<S> {
    /// Makes a block that no list needs one that any list can have.
    fn release(&mut self, block: u32, links: Links) -> Result<()> {
        loop {
            let unused = self.rows.meta.entry;
            let mut change = Change::default();
            self.expect_links(&mut change, block, links)?;
            self.put_links(&mut change, block, Links::new(unused.get(), NONE))?;
            let done = self.rows.commit_meta(change, |meta| {
                let stands = meta.entry == unused;
                meta.entry = block.into();
                stands
            })?;
            if done {
                return Ok(());
            }
            if self.any_block(block)?.1.list != links.list {
                return Err(self.bad_block(block, "it changed meanwhile"));
            }
        }
    }
}
