//! Searching: the nearest lists are read block by block, the nearest of their codes' vectors are measured.
//!
//! 1. Lists are read in the order of what is to be expected of them (`rank.rs`), a round of them at a time (`collect.rs`).
//! 2. A block of 32 codes is scored at once (`scan.rs`); what is near enough by code becomes a candidate.
//! 3. Candidates are measured by their vectors, or by what stands in for these, nearest by code first (`measure.rs`).
//!
//! Queries of a batch read lists together (`together.rs`).

use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::index::{Cost, Exact, Hit, Search};
use crate::page::PageStore;
use crate::rerank::{Ranked, rerank_all};
use crate::rows::{Batch, Matcher, Plan, Probe, nearest};

use super::IvfPq;
use super::collect::Collected;
use super::model::{key, unkey};
use super::scan::Prepared;

/// What a search needs for a while; reused by the next.
#[derive(Default)]
pub(crate) struct Scratch {
    pub row: Vec<u8>,
    pub probe: Probe,
    pub prepared: Prepared,
    pub(super) collected: Collected,
    pub(super) found: Vec<u64>,
    pub(super) batch: Batch,
    /// What tables of queries are made in.
    pub(super) entries: Vec<[f32; 16]>,
}

/// Candidates that are kept, at least: by the last of them it is judged which lists are of use.
const POOL: usize = 64;

/// How many lists a search reads, and how many candidates it measures.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Effort {
    pub probes: usize,
    pub rerank: usize,
    /// Candidates that are kept.
    pub pool: usize,
    /// Whether vectors may be met twice.
    pub twice: bool,
}

impl<S: PageStore> IvfPq<S> {
    /// What a search does, by its options, by what was tuned, or by what suits the index.
    pub(super) fn effort(&self, options: &Search<'_>) -> Effort {
        let meta = &self.rows.meta;
        let tuned = |value: u32| (value > 0).then_some(value as usize);
        let probes = options.probes.or(tuned(meta.probes.get()));
        let probes = probes.unwrap_or_else(|| default_probes(self.numbers().len()));
        let rerank = options.rerank.or(options.ef).or(tuned(meta.rerank.get()));
        let k = options.k.min(self.rows.len().max(1));
        let rerank = rerank.unwrap_or_else(|| default_rerank(k));
        let (rerank, twice) = (rerank.max(k), meta.spills());
        let pool = rerank.max(POOL);
        // Where two may be the same, as many more as these mostly are; or all that can be, if nearly all are asked for.
        let more = match twice {
            false => 0,
            true if pool >= self.rows.len() / 4 => pool,
            true => pool / 2,
        };
        Effort { probes, rerank, pool: pool.saturating_add(more), twice }
    }

    /// Borrows a scratch; it goes back by itself.
    pub(super) fn scratch(&self) -> Borrowed<'_> {
        let mut free = self.scratches.lock().unwrap_or_else(PoisonError::into_inner);
        Borrowed { scratch: free.pop().unwrap_or_default(), home: &self.scratches }
    }

    /// The hits of a query that is prepared as far as its row and probe, nearest first.
    pub(super) fn search_planned(
        &self,
        scratch: &mut Scratch,
        options: &Search<'_>,
        plan: &Plan<'_>,
    ) -> Result<(Vec<Hit>, Cost)> {
        let k = options.k.min(self.rows.len());
        if k == 0 {
            return Ok((Vec::new(), Cost::default()));
        }
        let (Some(model), None) = (self.model()?, &plan.exact) else {
            return self.exact(scratch, plan, (k, f32::INFINITY), options.exact);
        };
        let mut effort = self.effort(options);
        // While an entry moves there are two of it.
        effort.twice |= S::SHARED;
        let mut cost = Cost::default();
        self.collect(model, scratch, &plan.matcher, effort, &mut cost)?;
        self.ask(&scratch.collected.candidates);
        if let Some(exact) = options.exact {
            return Ok((self.measure_by(scratch, k, exact, &mut cost)?, cost));
        }
        self.measure(scratch, k, &mut cost)?;
        Ok((self.hits(&scratch.found)?, cost))
    }

    /// The nearest of the slots that a plan leaves, each measured.
    pub(super) fn exact(
        &self,
        scratch: &Scratch,
        plan: &Plan<'_>,
        (k, radius): (usize, f32),
        exact: Option<Exact<'_>>,
    ) -> Result<(Vec<Hit>, Cost)> {
        let ids = match (&plan.exact, &plan.matcher) {
            (Some(ids), _) => ids.clone(),
            (None, Matcher::Keys(accept)) => self.rows.visible(accept)?,
            (None, matcher) => {
                let mut ids = self.rows.visible(|_| true)?;
                ids.retain(|&id| matcher.accepts(id, 0));
                ids
            }
        };
        let cost = Cost { hops: 0, distances: ids.len() as u64 };
        if let Some(exact) = exact {
            let (all, limits) = (ids.into_iter(), (k, radius));
            return Ok((rerank_all(&self.rows, &scratch.probe, all, limits, exact)?, cost));
        }
        let found = nearest(&self.rows, &scratch.probe, ids.into_iter(), k, radius)?;
        let hit = |(distance, id)| Ok(Hit { key: self.rows.node(id)?.key.get(), distance });
        Ok((found.into_iter().map(hit).collect::<Result<_>>()?, cost))
    }

    pub(super) fn hits(&self, found: &[u64]) -> Result<Vec<Hit>> {
        let mut hits = Vec::with_capacity(found.len());
        for (distance, slot) in found.iter().copied().map(unkey) {
            let node = self.rows.node(slot)?;
            // Where others remove rows, their entries stay for a while.
            if !S::SHARED || node.is_visible() {
                hits.push(Hit { key: node.key.get(), distance });
            }
        }
        Ok(hits)
    }

    /// All within a radius: every list is read, unless `probes` says otherwise, and what may be within by its code is
    /// measured.
    pub(super) fn search_range(
        &self,
        scratch: &mut Scratch,
        radius: f32,
        options: &Search<'_>,
        plan: &Plan<'_>,
    ) -> Result<Vec<Hit>> {
        let (Some(model), None) = (self.model()?, &plan.exact) else {
            return Ok(self.exact(scratch, plan, (usize::MAX, radius), options.exact)?.0);
        };
        let Scratch { row, prepared, collected, entries, .. } = scratch;
        self.prepare(model, row, prepared, entries);
        let probes = options.probes.unwrap_or(model.len());
        let turns = collected.ranking.all(model, &prepared.floats);
        let by_codes = !self.rows.has_rows() && options.exact.is_none();
        let error = f32::from_bits(self.rows.meta.error.get());
        let mut near = Vec::new();
        let mut cost = Cost::default();
        for turn in turns.into_iter().take(probes) {
            let away = model.distance(turn.place as usize, &prepared.floats);
            let slack = match by_codes {
                true => 0.0,
                false => model.coder.slack(model.metric, prepared, error, radius, away),
            };
            let limit = radius + slack;
            // What is not a number is no reason to leave something out.
            let mut bound = if limit.is_nan() { f32::INFINITY } else { limit.next_up() };
            let all = bound;
            let list = model.lists[turn.place as usize];
            self.scan(
                list,
                turn.base,
                prepared,
                &plan.matcher,
                (&mut bound, true),
                &mut cost,
                |distance, slot| {
                    near.push(key(distance, slot));
                    all
                },
            )?;
        }
        if by_codes || self.rows.meta.spills() {
            near.sort_unstable_by_key(|&near| (near as u32, near));
            near.dedup_by_key(|near| *near as u32);
        }
        if by_codes {
            near.sort_unstable();
            return self.hits(&near);
        }
        let slots = near.into_iter().map(|near| near as u32);
        if let Some(exact) = options.exact {
            let limits = (usize::MAX, radius);
            if self.rows.has_rows() {
                return rerank_all(&self.rows, &scratch.probe, slots, limits, exact);
            }
            let mut ranked = Ranked::new(exact, limits);
            for slot in slots {
                ranked.measure(self.rows.node(slot)?.key.get())?;
            }
            return Ok(ranked.hits());
        }
        let found = nearest(&self.rows, &scratch.probe, slots, usize::MAX, radius)?;
        let found: Vec<u64> = found.into_iter().map(|(distance, id)| key(distance, id)).collect();
        self.hits(&found)
    }
}

/// Lists that are read unless something else was asked for or tuned.
pub(super) fn default_probes(lists: usize) -> usize {
    (lists / 16).max(8)
}

/// Candidates that are measured unless something else was asked for or tuned.
pub(super) fn default_rerank(k: usize) -> usize {
    k.saturating_mul(4).saturating_add(40)
}

/// A scratch on loan.
pub(super) struct Borrowed<'a> {
    scratch: Scratch,
    home: &'a Mutex<Vec<Scratch>>,
}

impl std::ops::Deref for Borrowed<'_> {
    type Target = Scratch;

    fn deref(&self) -> &Scratch {
        &self.scratch
    }
}

impl std::ops::DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut Scratch {
        &mut self.scratch
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let mut free = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(std::mem::take(&mut self.scratch));
    }
}
