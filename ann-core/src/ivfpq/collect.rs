//! Collecting candidates: lists are read in rounds, and between two of them it is decided whether to go on.
//!
//! What a query reads in a round depends on the candidates of the rounds before and on nothing else, so that it finds
//! the same in whatever order the lists of a round are read. A search ends once none of the lists whose turn has come
//! is expected to have anything nearer than its last candidate, at the latest after as many lists as it was asked to
//! read. It does not end before it has met as many entries that may be returned as it keeps: under a filter it reads
//! on.

use crate::error::Result;
use crate::index::Cost;
use crate::page::PageStore;
use crate::rows::{Matcher, NONE};

use super::IvfPq;
use super::model::{Model, key, unkey};
use super::rank::{Ranking, Turn};
use super::scan::Prepared;
use super::search::{Effort, Scratch};

/// Lists of the first round, and of the longest: each has as many as all before it.
const FIRST: usize = 8;
const MOST: usize = 64;
/// The candidates of a query, and how far it has come.
#[derive(Default)]
pub(crate) struct Collected {
    pub ranking: Ranking,
    /// The lists of the round.
    pub turns: Vec<Turn>,
    /// Distances by code above slots.
    pub candidates: Vec<u64>,
    /// The distance of the last candidate of a full pool; infinite while there are too few.
    limit: f32,
    read: usize,
    /// Whether nothing is passed over: all lists were asked for, or more candidates than there are.
    pub takes_all: bool,
    /// A hash table of the slots that have been met.
    met: Vec<u32>,
}

impl Collected {
    /// Begins with a query.
    pub(super) fn begin(
        &mut self,
        model: &Model,
        query: &[f32],
        effort: Effort,
        entries: &mut Vec<[f32; 16]>,
    ) {
        self.ranking.begin(model, query, effort.probes, entries);
        self.candidates.clear();
        (self.limit, self.read) = (f32::INFINITY, 0);
    }

    /// Chooses the lists of the next round. False if there are none.
    pub(super) fn turn(&mut self, model: &Model, effort: Effort) -> bool {
        self.turns.clear();
        self.takes_all = effort.probes >= model.len();
        let count = match effort.probes.checked_sub(self.read) {
            Some(left) if left > 0 => left.min(self.read.clamp(FIRST, MOST)),
            _ if self.candidates.len() >= effort.pool => return false,
            _ => FIRST,
        };
        self.ranking.next(model, count, &mut self.turns);
        let limit = if self.takes_all { f32::INFINITY } else { self.limit };
        // What is not a number is no reason to leave something out.
        self.turns.retain(|turn| turn.least.partial_cmp(&limit).is_none_or(|by| by.is_le()));
        self.read += self.turns.len();
        !self.turns.is_empty()
    }

    /// Leaves the nearest of the candidates.
    fn select(&mut self, pool: usize) {
        if self.candidates.len() >= pool {
            self.candidates.select_nth_unstable(pool - 1);
            self.candidates.truncate(pool);
            self.limit = unkey(self.candidates[pool - 1]).0;
        }
    }

    /// Ends a round.
    pub(super) fn settle(&mut self, effort: Effort) {
        self.select(effort.pool);
    }

    /// Leaves the candidates that are to be measured, in their order.
    pub(super) fn finish(&mut self, effort: Effort) {
        if effort.twice {
            self.candidates.sort_unstable();
            self.leave_once();
        }
        self.takes_all |= self.candidates.len() < effort.rerank;
        if self.candidates.len() > effort.rerank {
            self.candidates.select_nth_unstable(effort.rerank - 1);
            self.candidates.truncate(effort.rerank);
        }
        self.candidates.sort_unstable();
    }

    /// Leaves the first candidate of each slot.
    fn leave_once(&mut self) {
        let size = (2 * self.candidates.len()).next_power_of_two();
        self.met.clear();
        self.met.resize(size, NONE);
        let met = &mut self.met;
        self.candidates.retain(|&candidate| {
            let slot = candidate as u32;
            // The table is at most half full.
            let mut at = slot.wrapping_mul(0x9e37_79b1) as usize & (size - 1);
            while met[at] != NONE && met[at] != slot {
                at = (at + 1) & (size - 1);
            }
            let is_new = met[at] == NONE;
            met[at] = slot;
            is_new
        });
    }
}

impl<S: PageStore> IvfPq<S> {
    /// Collects the candidates of a query whose row is there, nearest by code first.
    pub(super) fn collect(
        &self,
        model: &Model,
        scratch: &mut Scratch,
        matcher: &Matcher<'_>,
        effort: Effort,
        cost: &mut Cost,
    ) -> Result<()> {
        let Scratch { row, prepared, collected, entries, .. } = scratch;
        self.prepare(model, row, prepared, entries);
        collected.begin(model, &prepared.floats, effort, entries);
        while collected.turn(model, effort) {
            for at in 0..collected.turns.len() {
                if let Some(next) = collected.turns.get(at + 1) {
                    self.prefetch_list(model.lists[next.place as usize])?;
                }
                let turn = collected.turns[at];
                self.read(model, turn, prepared, collected, matcher, effort, true, cost)?;
            }
            collected.settle(effort);
        }
        collected.finish(effort);
        Ok(())
    }

    /// Reads a list for a query. With `fetches`, blocks are asked for ahead of their turn.
    #[expect(clippy::too_many_arguments, reason = "the parts of one scan")]
    pub(super) fn read(
        &self,
        model: &Model,
        turn: Turn,
        prepared: &Prepared,
        collected: &mut Collected,
        matcher: &Matcher<'_>,
        effort: Effort,
        fetches: bool,
        cost: &mut Cost,
    ) -> Result<()> {
        let list = model.lists[turn.place as usize];
        // Of equally near ones slots decide, in whatever order they come.
        let mut bound = collected.limit.next_up();
        let room = effort.pool.saturating_mul(2);
        let bounded = (&mut bound, fetches);
        self.scan(list, turn.base, prepared, matcher, bounded, cost, |near, slot| {
            collected.candidates.push(key(near, slot));
            // Keeping up to twice as many as are wanted makes the selection cost O(1) an entry.
            if collected.candidates.len() >= room {
                collected.select(effort.pool);
            }
            collected.limit.next_up()
        })
    }
}
