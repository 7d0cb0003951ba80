//! Searches that can be continued: first as any search, then some lists at a time, and of their entries the nearest by
//! code at a time.
//!
//! How many hits will be wanted is not known. So candidates are measured a few at a time, nearest by code first, and
//! one is a hit once those that follow are not expected to be nearer. When there are none left, lists are read again,
//! the same and then others, and whatever was not measured waits for its turn; each time it is twice as much as before.
//! What is measured then may be nearer than the farther half of what was: that half waits for it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use hashbrown::HashSet;

use crate::error::Result;
use crate::index::{Cost, Hit};
use crate::page::PageStore;
use crate::rows::{Matcher, nearest};

use super::IvfPq;
use super::measure::{CALL, Errors, KNOWN, deviations};
use super::model::{Model, key, unkey};
use super::rank::{Ranking, Turn};
use super::search::{Effort, Scratch};

/// Where such a search is.
#[derive(Default)]
pub(crate) struct Walk {
    pub scratch: Scratch,
    pub(super) effort: Effort,
    stage: Stage,
    /// Whether all candidates are measured before the first is returned, and then all are: the search does not go on.
    pub ends: bool,
    /// Candidates that have been measured, and by how much their estimates were off.
    measured: usize,
    errors: Errors,
    /// Measured ones that are no hits yet: distances above slots.
    near: BinaryHeap<Reverse<u64>>,
    /// Slots that have been measured.
    known: HashSet<u32>,
    /// The lists that are still to be read, nearest last.
    lists: Vec<Turn>,
    /// Entries that were scored and not measured, by code.
    waiting: Vec<u64>,
    /// Lists that are read next, and entries that are measured then.
    probes: usize,
    pool: usize,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Stage {
    #[default]
    Begin,
    /// Candidates of the first lists are measured.
    Pool,
    /// Lists are read, again and again.
    Rest,
    Done,
}

impl<S: PageStore> IvfPq<S> {
    /// Appends the next hits to `ready`. False if there are no more.
    pub(super) fn walk_on(
        &self,
        walk: &mut Walk,
        matcher: &Matcher<'_>,
        ready: &mut VecDeque<Hit>,
    ) -> Result<bool> {
        let model = self.model()?;
        match (walk.stage, model) {
            (Stage::Done, _) => Ok(false),
            (Stage::Begin, Some(model)) => {
                let mut cost = Cost::default();
                self.collect(model, &mut walk.scratch, matcher, walk.effort, &mut cost)?;
                self.ask(&walk.scratch.collected.candidates);
                walk.stage = Stage::Pool;
                self.walk_pool(walk, matcher, ready)
            }
            (Stage::Pool, Some(_)) => self.walk_pool(walk, matcher, ready),
            (Stage::Rest, Some(model)) => self.walk_lists(model, walk, matcher, ready),
            (_, None) => {
                walk.stage = Stage::Done;
                let ids = self.rows.visible(|_| true)?;
                self.measure_all(walk, ids.into_iter().map(u64::from).collect())?;
                self.return_until(&mut walk.near, 0, matcher, ready)?;
                Ok(true)
            }
        }
    }

    /// Measures candidates until some are hits.
    fn walk_pool(
        &self,
        walk: &mut Walk,
        matcher: &Matcher<'_>,
        ready: &mut VecDeque<Hit>,
    ) -> Result<bool> {
        let deviations = deviations(self.rows.space.metric);
        loop {
            let Walk { scratch, ends, measured, errors, near, known, .. } = &mut *walk;
            let Scratch { collected, batch, probe, .. } = scratch;
            let rest = &collected.candidates[*measured..];
            if !self.rows.has_rows() {
                near.extend(rest.iter().copied().map(Reverse));
                known.extend(rest.iter().map(|&candidate| candidate as u32));
                *measured = collected.candidates.len();
            }
            let rest = &collected.candidates[*measured..];
            let Some(&next) = rest.first() else {
                let last = if *ends { 0 } else { known.len() / 2 };
                self.return_until(near, last, matcher, ready)?;
                walk.stage = Stage::Rest;
                (walk.probes, walk.pool) = (2 * walk.effort.probes.max(1), 2 * walk.effort.rerank);
                return Ok(true);
            };
            // Whoever has the vectors elsewhere puts what comes in one piece in the order of these.
            let unknown =
                *measured < KNOWN || collected.takes_all || *ends || !self.rows.has_vectors();
            let least = match unknown {
                true => f32::NEG_INFINITY,
                false => errors.least(unkey(next).0, deviations),
            };
            let before = ready.len();
            while let Some(&Reverse(nearest)) = near.peek()
                && unkey(nearest).0 <= least
            {
                near.pop();
                self.return_hit(nearest, matcher, ready)?;
            }
            if ready.len() > before {
                return Ok(true);
            }
            let call = &rest[..rest.len().min(CALL)];
            self.ask(&rest[call.len()..]);
            batch.ids.clear();
            // While an entry moves there are two of it.
            batch.ids.extend(call.iter().map(|&at| at as u32).filter(|&slot| known.insert(slot)));
            batch.score(&self.rows, probe)?;
            for (&distance, &slot) in batch.distances.iter().zip(&batch.ids) {
                near.push(Reverse(key(distance, slot)));
            }
            for &candidate in call {
                let slot = candidate as u32;
                if let Some(at) = batch.ids.iter().position(|&id| id == slot) {
                    errors.add(batch.distances[at] - unkey(candidate).0);
                }
            }
            *measured += call.len();
        }
    }

    /// Reads some lists, and measures some of the entries that wait.
    fn walk_lists(
        &self,
        model: &Model,
        walk: &mut Walk,
        matcher: &Matcher<'_>,
        ready: &mut VecDeque<Hit>,
    ) -> Result<bool> {
        if walk.lists.is_empty() && walk.waiting.is_empty() {
            // None are to be read any more, and what had been measured was returned.
            if walk.probes == 0 {
                walk.stage = Stage::Done;
                return Ok(false);
            }
            walk.lists = Ranking::default().all(model, &walk.scratch.prepared.floats);
            walk.lists.reverse();
        }
        let mut cost = Cost::default();
        for _ in 0..walk.probes {
            let Some(Turn { base, place, .. }) = walk.lists.pop() else { break };
            let list = model.lists[place as usize];
            let Walk { scratch, waiting, known, .. } = &mut *walk;
            let mut bound = f32::INFINITY;
            let (bounded, prepared) = ((&mut bound, true), &scratch.prepared);
            self.scan(list, base, prepared, &Matcher::All, bounded, &mut cost, |d, slot| {
                if !known.contains(&slot) {
                    waiting.push(key(d, slot));
                }
                f32::INFINITY
            })?;
        }
        walk.probes = if walk.lists.is_empty() { 0 } else { walk.probes.saturating_mul(2) };
        let count = walk.pool.min(walk.waiting.len());
        walk.pool = walk.pool.saturating_mul(2);
        if count < walk.waiting.len() {
            walk.waiting.select_nth_unstable(count);
        }
        let Walk { waiting, known, .. } = &mut *walk;
        if !self.rows.has_rows() {
            // Of two entries of a vector the nearer counts.
            waiting[..count].sort_unstable();
        }
        let candidates = waiting.drain(..count);
        let candidates = candidates.filter(|&candidate| known.insert(candidate as u32)).collect();
        self.measure_all(walk, candidates)?;
        let is_last = walk.lists.is_empty() && walk.waiting.is_empty();
        let last = if is_last { 0 } else { walk.near.len() / 2 };
        self.return_until(&mut walk.near, last, matcher, ready)?;
        Ok(true)
    }

    /// Measures what is in the slots of candidates, if there is something besides their codes.
    fn measure_all(&self, walk: &mut Walk, candidates: Vec<u64>) -> Result<()> {
        if !self.rows.has_rows() {
            walk.near.extend(candidates.into_iter().map(Reverse));
            return Ok(());
        }
        let (probe, all) = (&walk.scratch.probe, (usize::MAX, f32::INFINITY));
        let slots = candidates.into_iter().map(|candidate| candidate as u32);
        let found = nearest(&self.rows, probe, slots, all.0, all.1)?;
        walk.near.extend(found.into_iter().map(|(distance, slot)| Reverse(key(distance, slot))));
        Ok(())
    }

    /// Appends what was measured to the hits, nearest first, until so many are left.
    fn return_until(
        &self,
        near: &mut BinaryHeap<Reverse<u64>>,
        last: usize,
        matcher: &Matcher<'_>,
        ready: &mut VecDeque<Hit>,
    ) -> Result<()> {
        while near.len() > last
            && let Some(Reverse(nearest)) = near.pop()
        {
            self.return_hit(nearest, matcher, ready)?;
        }
        Ok(())
    }

    /// Appends a hit, unless it is not to be returned.
    fn return_hit(
        &self,
        found: u64,
        matcher: &Matcher<'_>,
        ready: &mut VecDeque<Hit>,
    ) -> Result<()> {
        let (distance, slot) = unkey(found);
        let node = self.rows.node(slot)?;
        let key = node.key.get();
        if node.is_visible() && matcher.accepts(slot, key) {
            ready.push_back(Hit { key, distance });
        }
        Ok(())
    }
}
