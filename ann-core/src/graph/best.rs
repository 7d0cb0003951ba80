//! The best estimate of each node that a search has met: a small hash table, so that it stays in the fastest cache
//! however many nodes there are.
//!
//! Nodes are met again and again, each time with an estimate from another neighbour. Only one that is better by more
//! than rounding makes a difference.

use crate::error::{Error, Result};

/// Nothing comes below it.
const EXPANDED: u16 = 0;

/// Places for each candidate of the pool, about: most searches then never have to make room.
const PLACES: usize = 16;
/// Places, at least.
const LEAST: usize = 256;

/// An estimate's upper bits.
#[inline(always)]
fn rounded(sorting: u32) -> u16 {
    ((sorting >> 16) as u16).max(EXPANDED + 1)
}

/// What is known of one node. It is of use to the search whose number it has only.
#[derive(Clone, Copy, Default)]
#[repr(C, align(8))]
struct Entry {
    id: u32,
    estimate: u16,
    search: u16,
}

/// What an estimate of a node is to those before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Estimate {
    First,
    Nearer,
    NoNearer,
}

/// The best estimate of each node, rounded down to its upper bits.
#[derive(Default)]
pub(crate) struct Best {
    /// A power of two of places; a node's is the first free one from its hash on.
    entries: Vec<Entry>,
    /// Of them, those in use are the first `1 << (32 - shift)`.
    shift: u32,
    count: usize,
    search: u16,
    slots: u32,
    /// How often nodes that were met before, but not expanded, have been met again.
    again: usize,
}

impl Best {
    /// Forgets everything, for a search among ids below `slots` that keeps `ef` candidates.
    pub(crate) fn reset(&mut self, slots: u32, ef: usize) {
        let places = ef.saturating_mul(PLACES).clamp(LEAST, 1 << 24).next_power_of_two();
        self.shift = 32 - places.trailing_zeros();
        self.count = 0;
        self.again = 0;
        self.slots = slots;
        if self.entries.len() < places {
            self.entries.resize(places, Entry::default());
        }
        self.search = self.search.wrapping_add(1);
        if self.search == 0 {
            self.entries.fill(Entry::default());
            self.search = 1;
        }
    }

    /// Goes on among ids below `slots`.
    pub(crate) fn grow(&mut self, slots: u32) {
        self.slots = self.slots.max(slots);
    }

    /// The place of a node: its own, or the one that it would take.
    #[inline(always)]
    fn place(&self, id: u32) -> usize {
        let last = (1usize << (32 - self.shift)) - 1;
        let mut at = (id.wrapping_mul(0x9e37_79b1) >> self.shift) as usize;
        while let Some(entry) = self.entries.get(at)
            && entry.search == self.search
            && entry.id != id
        {
            at = (at + 1) & last;
        }
        at
    }

    /// Takes note of an estimate, in its sorting form, if it is better than those before. An id that no slot can have
    /// is a corrupt link.
    #[inline(always)]
    pub(crate) fn improve(&mut self, id: u32, sorting: u32) -> Result<Estimate> {
        let rounded = rounded(sorting);
        let at = self.place(id);
        let entry = &mut self.entries[at];
        if entry.search == self.search {
            if rounded >= entry.estimate {
                self.again += usize::from(entry.estimate != EXPANDED);
                return Ok(Estimate::NoNearer);
            }
            self.again += 1;
            entry.estimate = rounded;
            return Ok(Estimate::Nearer);
        }
        self.enter(at, id, rounded)?;
        Ok(Estimate::First)
    }

    /// Takes note of a node's first estimate, at the node's place.
    #[inline(always)]
    fn enter(&mut self, at: usize, id: u32, estimate: u16) -> Result<()> {
        self.check(id)?;
        self.entries[at] = Entry { id, estimate, search: self.search };
        self.count += 1;
        if self.count > (1 << (32 - self.shift)) / 2 {
            self.make_room();
        }
        Ok(())
    }

    /// Twice as many places.
    #[cold]
    fn make_room(&mut self) {
        let places = 1usize << (32 - self.shift);
        let met: Vec<Entry> =
            self.entries[..places].iter().copied().filter(|e| e.search == self.search).collect();
        self.entries.resize(self.entries.len().max(2 * places), Entry::default());
        self.entries[..2 * places].fill(Entry::default());
        self.shift -= 1;
        for entry in met {
            let at = self.place(entry.id);
            self.entries[at] = entry;
        }
    }

    /// What has been met again since this was asked last.
    #[inline(always)]
    pub(crate) fn met_again(&mut self) -> usize {
        std::mem::take(&mut self.again)
    }

    /// Takes note of an estimate that was left out unseen. Whether it is of use: its node's best, and that not expanded.
    pub(crate) fn is_of_use(&mut self, id: u32, sorting: u32) -> bool {
        let (rounded, at) = (rounded(sorting), self.place(id));
        let entry = &mut self.entries[at];
        if entry.search != self.search {
            return self.enter(at, id, rounded).is_ok();
        }
        let known = entry.estimate;
        entry.estimate = known.min(rounded);
        rounded <= known
    }

    /// Checks an id.
    #[inline(always)]
    pub(crate) fn check(&self, id: u32) -> Result<()> {
        match id < self.slots {
            true => Ok(()),
            false => {
                Err(Error::corrupt(0, format!("a link names slot {id}, which does not exist")))
            }
        }
    }

    /// Whether this estimate of a node that has been met, but not expanded, is its best.
    pub(crate) fn is_best(&self, id: u32, sorting: u32) -> bool {
        self.entries[self.place(id)].estimate == rounded(sorting)
    }

    /// From now on no estimate of this node, which has been met, is any better. False if that is so already.
    #[inline(always)]
    pub(crate) fn expand(&mut self, id: u32) -> bool {
        let at = self.place(id);
        let entry = &mut self.entries[at];
        entry.search == self.search && std::mem::replace(&mut entry.estimate, EXPANDED) != EXPANDED
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::page::testing::Rng;

    #[test]
    fn only_what_is_better_counts() {
        let mut best = Best::default();
        best.reset(10, 1);
        assert_eq!(best.improve(3, 7 << 16).unwrap(), Estimate::First);
        assert_eq!(best.improve(3, 7 << 16).unwrap(), Estimate::NoNearer);
        assert_eq!(best.improve(3, 8 << 16).unwrap(), Estimate::NoNearer);
        assert_eq!(best.improve(3, 6 << 16).unwrap(), Estimate::Nearer);
        assert!(best.is_best(3, 6 << 16) && !best.is_best(3, 7 << 16));
        assert_eq!((best.met_again(), best.met_again()), (3, 0));
        assert!(best.expand(3) && !best.expand(3) && !best.is_best(3, 6 << 16));
        assert_eq!(best.improve(3, 0).unwrap(), Estimate::NoNearer);
        assert_eq!(best.met_again(), 0);
        assert_eq!(best.improve(4, u32::MAX).unwrap(), Estimate::First);
        assert!(best.improve(10, 0).is_err());
        best.reset(4, 1);
        assert_eq!(best.improve(3, 9 << 16).unwrap(), Estimate::First);
    }

    #[test]
    fn what_was_left_out_is_of_use_until_something_better_comes() {
        let mut best = Best::default();
        best.reset(10, 1);
        assert!(best.is_of_use(3, 7 << 16) && best.is_of_use(3, 7 << 16));
        assert!(!best.is_of_use(3, 8 << 16) && best.is_of_use(3, 6 << 16));
        assert!(best.expand(3) && !best.is_of_use(3, 5 << 16));
        assert_eq!(best.met_again(), 0);
        assert!(best.check(9).is_ok() && best.check(10).is_err() && !best.is_of_use(10, 0));
    }

    /// Against a map, over more searches than there are numbers for, of a few nodes or thousands.
    #[test]
    fn as_a_map_would() {
        let (mut best, mut rng) = (Best::default(), Rng(5));
        for search in 0..70_000u32 {
            let (count, ef) =
                if search % 7000 == 0 { (5000, 10) } else { (3, 1 + search as usize % 90) };
            best.reset(1 << 30, ef);
            let mut map = HashMap::new();
            for _ in 0..count {
                let id = (rng.next() % (count as u64 * 2)) as u32 * 4096;
                let estimate = (rng.next() % 1000 + 1) as u16;
                let wanted = match map.get(&id) {
                    None => Estimate::First,
                    Some(&known) if estimate < known => Estimate::Nearer,
                    Some(_) => Estimate::NoNearer,
                };
                assert_eq!(best.improve(id, u32::from(estimate) << 16).unwrap(), wanted);
                if wanted != Estimate::NoNearer {
                    map.insert(id, estimate);
                }
            }
        }
    }
}
