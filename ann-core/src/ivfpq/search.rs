//! Searching: the nearest lists are read block by block, the nearest of their codes' vectors are measured.
//!
//! 1. The query's distances to all centroids; the nearest lists are taken in their order.
//! 2. A block of 32 codes is scored at once. What is below the bound, the distance of the last candidate that would be
//!    measured, becomes a candidate. Keeping up to twice as many as are wanted makes the selection cost O(1) an entry.
//! 3. Candidates are measured by their vectors, nearest by code first.
//!
//! A search ends after as many lists as it was asked to read, and only once it has met as many entries that may be
//! returned as it is to measure: under a filter it reads on.

use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::index::{Cost, Hit, Search};
use crate::kernel::adc;
use crate::kernel::fastscan::{BLOCK, FastScan, Tables};
use crate::metric::Metric;
use crate::page::PageStore;
use crate::rows::{Batch, Matcher, NONE, Plan, Probe, nearest};

use super::model::{Model, Ranking, key, unkey};
use super::{BLOCKS, IvfPq};

/// How many blocks before its turn a block is asked for.
const AHEAD: u32 = 2;
/// Candidates that are measured in one kernel call.
const CALL: usize = 64;

/// What a search needs for a while; reused by the next.
#[derive(Default)]
pub(crate) struct Scratch {
    pub row: Vec<u8>,
    pub probe: Probe,
    pub prepared: Prepared,
    ranking: Ranking,
    candidates: Vec<u64>,
    found: Vec<u64>,
    batch: Batch,
}

/// A query and its tables.
#[derive(Default)]
pub(crate) struct Prepared {
    pub floats: Vec<f32>,
    nibbles: Vec<[f32; 16]>,
    bytes: Vec<[f32; adc::ENTRIES]>,
    tables: Tables,
    scan: FastScan,
}

/// How many lists a search reads, and how many candidates it measures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    pub probes: usize,
    pub rerank: usize,
}

impl<S: PageStore> IvfPq<S> {
    /// What a search does, by its options, by what was tuned, or by what suits the index.
    pub(super) fn effort(&self, options: &Search<'_>) -> Effort {
        let meta = &self.rows.meta;
        let tuned = |value: u32| (value > 0).then_some(value as usize);
        let probes = options.probes.or(tuned(meta.probes.get()));
        let probes = probes.unwrap_or_else(|| default_probes(meta.entry_level.get() as usize));
        let rerank = options.rerank.or(options.ef).or(tuned(meta.rerank.get()));
        let k = options.k.min(self.rows.len().max(1));
        let rerank = rerank.unwrap_or_else(|| default_rerank(k));
        Effort { probes, rerank: rerank.max(k) }
    }

    /// Borrows a scratch; it goes back by itself.
    pub(super) fn scratch(&self) -> Borrowed<'_> {
        let mut free = self.scratches.lock().unwrap_or_else(PoisonError::into_inner);
        Borrowed { scratch: free.pop().unwrap_or_default(), home: &self.scratches }
    }

    /// Fills in the tables of the query whose row and probe are there.
    pub(super) fn prepare(&self, model: &Model, row: &[u8], prepared: &mut Prepared) {
        let Prepared { floats, nibbles, bytes, tables, .. } = prepared;
        self.rows.space.floats(row, floats);
        let factor = if self.rows.space.metric == Metric::L2sq { -2.0 } else { -1.0 };
        match model.pq.bits() {
            4 => {
                model.pq.tables(floats, factor, nibbles);
                tables.fill(nibbles);
            }
            _ => model.pq.tables(floats, factor, bytes),
        }
    }

    /// Scores the entries of a list. `each` is called with the distance by code and the slot of each that is below the
    /// bound and passes, and returns the bound from then on.
    #[expect(clippy::too_many_arguments, reason = "the parts of one scan")]
    pub(super) fn scan(
        &self,
        list: u32,
        base: f32,
        prepared: &Prepared,
        matcher: &Matcher<'_>,
        bound: &mut f32,
        cost: &mut Cost,
        mut each: impl FnMut(f32, u32) -> f32,
    ) -> Result<()> {
        let (shape, upper, slots) = (self.block, self.rows.meta.upper.get(), self.rows.slots());
        let by_slot = match matcher {
            Matcher::Slots(_) => true,
            Matcher::All | Matcher::Keys(_) => false,
        };
        // Removed vectors have entries only between the two writes of an update.
        let looks = matches!(matcher, Matcher::Keys(_)) || self.rows.meta.tombstones.get() > 0;
        let (mut distances, mut held) = ([0f32; BLOCK], [NONE; BLOCK]);
        let mut next = self.list(list)?.head.get();
        let in_one_piece = self.rows.store.contiguous().is_some();
        let mut steps = 0;
        while next != NONE {
            if next >= upper || steps > upper {
                return Err(self.bad_block(next, format!("the chain of list {list} leads here")));
            }
            steps += 1;
            let block = next;
            let (below, of, follows) = self.rows.record(BLOCKS, block, |bytes| {
                let links = shape.links_of(bytes);
                let follows = links.next.get();
                // Blocks mostly follow one another, and one takes longer to come than to be scored.
                if in_one_piece {
                    self.rows.prefetch(BLOCKS, block + AHEAD);
                    if follows != block + 1 {
                        self.rows.prefetch(BLOCKS, follows);
                    }
                }
                let mut allowed = !0u32;
                if by_slot {
                    held = shape.slots_of(bytes);
                    allowed = 0;
                    for (lane, &slot) in held.iter().enumerate() {
                        allowed |= u32::from(slot != NONE && matcher.accepts(slot, 0)) << lane;
                    }
                }
                if allowed == 0 {
                    return (0, links.list.get(), follows);
                }
                let addends = match shape.addends {
                    true => bytes[shape.codes()..].first_chunk(),
                    false => None,
                };
                let codes = &bytes[..shape.codes()];
                let Prepared { tables, bytes: wide, scan, .. } = prepared;
                let mut below = match shape.bits {
                    4 => scan.distances(codes, tables, addends, base, *bound, &mut distances),
                    _ => adc::distances(codes, wide, addends, base, *bound, &mut distances),
                };
                below &= allowed;
                if below != 0 && !by_slot {
                    held = shape.slots_of(bytes);
                }
                (below, links.list.get(), follows)
            })?;
            if of != list {
                return Err(self.bad_block(block, format!("it is of list {of}, not {list}")));
            }
            cost.hops += 1;
            next = follows;
            let mut below = below;
            while below != 0 {
                let lane = below.trailing_zeros() as usize;
                below &= below - 1;
                let (distance, slot) = (distances[lane], held[lane]);
                if slot == NONE || distance >= *bound {
                    continue;
                }
                if slot >= slots {
                    return Err(self.bad_block(block, format!("slot {slot} does not exist")));
                }
                if looks {
                    let node = self.rows.node(slot)?;
                    if !node.is_visible() || !matcher.accepts(slot, node.key.get()) {
                        continue;
                    }
                }
                *bound = each(distance, slot);
            }
        }
        Ok(())
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
        let Some(model) = self.model()? else {
            return self.exact(scratch, plan, k, f32::INFINITY);
        };
        if plan.exact.is_some() {
            return self.exact(scratch, plan, k, f32::INFINITY);
        }
        let effort = self.effort(options);
        let mut cost = Cost::default();
        self.collect(model, scratch, &plan.matcher, effort, &mut cost)?;
        self.measure(scratch, k, &mut cost)?;
        Ok((self.hits(&scratch.found)?, cost))
    }

    /// Fills in the candidates, nearest by code first.
    fn collect(
        &self,
        model: &Model,
        scratch: &mut Scratch,
        matcher: &Matcher<'_>,
        effort: Effort,
        cost: &mut Cost,
    ) -> Result<()> {
        let Scratch { row, prepared, ranking, candidates, .. } = scratch;
        let Effort { probes, rerank } = effort;
        self.prepare(model, row, prepared);
        model.rank(&prepared.floats, probes, ranking);
        candidates.clear();
        let room = rerank.saturating_mul(2).max(CALL);
        let (mut bound, mut limit) = (f32::INFINITY, f32::INFINITY);
        for at in 0..model.len() {
            if at >= probes && (limit < f32::INFINITY || candidates.len() >= rerank) {
                break;
            }
            if at == ranking.order.len() {
                self.rank_others(model, &prepared.floats, ranking);
            }
            let (base, place) = unkey(ranking.order[at]);
            let list = model.lists[place as usize];
            if let Some(&next) = ranking.order.get(at + 1) {
                let next = self.list(model.lists[unkey(next).1 as usize])?.head.get();
                (next..next.saturating_add(AHEAD))
                    .for_each(|next| self.rows.prefetch(BLOCKS, next));
            }
            self.scan(list, base, prepared, matcher, &mut bound, cost, |distance, slot| {
                candidates.push(key(distance, slot));
                if candidates.len() >= room {
                    candidates.select_nth_unstable(rerank - 1);
                    candidates.truncate(rerank);
                    limit = unkey(candidates[rerank - 1]).0;
                }
                limit
            })?;
        }
        if candidates.len() > rerank {
            candidates.select_nth_unstable(rerank - 1);
            candidates.truncate(rerank);
        }
        candidates.sort_unstable();
        Ok(())
    }

    /// Appends to an order that is not that of all lists the others, nearest first.
    fn rank_others(&self, model: &Model, query: &[f32], ranking: &mut Ranking) {
        let mut met = vec![false; model.len()];
        let before = std::mem::take(&mut ranking.order);
        before.iter().for_each(|&ranked| met[unkey(ranked).1 as usize] = true);
        model.rank(query, model.len(), ranking);
        let others = ranking.order.iter().filter(|&&ranked| !met[unkey(ranked).1 as usize]);
        ranking.order = before.iter().chain(others).copied().collect();
    }

    /// Measures the candidates; `found` becomes the `k` nearest.
    fn measure(&self, scratch: &mut Scratch, k: usize, cost: &mut Cost) -> Result<()> {
        let Scratch { candidates, found, batch, probe, .. } = scratch;
        found.clear();
        let mut bound = f32::INFINITY;
        for call in candidates.chunks(CALL) {
            batch.ids.clear();
            batch.ids.extend(call.iter().map(|&candidate| candidate as u32));
            batch.score_below(&self.rows, probe, bound.next_up())?;
            cost.distances += call.len() as u64;
            let scored = batch.distances.iter().zip(&batch.ids);
            found.extend(scored.filter(|(d, _)| **d <= bound).map(|(&d, &slot)| key(d, slot)));
            if found.len() > k {
                found.select_nth_unstable(k - 1);
                found.truncate(k);
            }
            if found.len() == k {
                bound = found.iter().max().map_or(bound, |&last| unkey(last).0);
            }
        }
        found.sort_unstable();
        Ok(())
    }

    /// The nearest of the slots that a plan leaves, each measured.
    pub(super) fn exact(
        &self,
        scratch: &Scratch,
        plan: &Plan<'_>,
        k: usize,
        radius: f32,
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
        let found = nearest(&self.rows, &scratch.probe, ids.into_iter(), k, radius)?;
        let hit = |(distance, id)| Ok(Hit { key: self.rows.node(id)?.key.get(), distance });
        Ok((found.into_iter().map(hit).collect::<Result<_>>()?, cost))
    }

    pub(super) fn hits(&self, found: &[u64]) -> Result<Vec<Hit>> {
        let hit = |&found: &u64| {
            let (distance, slot) = unkey(found);
            Ok(Hit { key: self.rows.node(slot)?.key.get(), distance })
        };
        found.iter().map(hit).collect()
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
        let Some(model) = self.model()? else {
            return Ok(self.exact(scratch, plan, usize::MAX, radius)?.0);
        };
        if plan.exact.is_some() {
            return Ok(self.exact(scratch, plan, usize::MAX, radius)?.0);
        }
        let Scratch { row, prepared, ranking, .. } = scratch;
        self.prepare(model, row, prepared);
        let probes = options.probes.unwrap_or(model.len());
        model.rank(&prepared.floats, probes, ranking);
        let limit = radius + self.slack(model, prepared, radius);
        let mut slots = Vec::new();
        let mut cost = Cost::default();
        for &ranked in ranking.order.iter().take(probes) {
            let (base, place) = unkey(ranked);
            // What is not a number is no reason to leave something out.
            let mut bound = if limit.is_nan() { f32::INFINITY } else { limit.next_up() };
            let all = bound;
            let list = model.lists[place as usize];
            self.scan(list, base, prepared, &plan.matcher, &mut bound, &mut cost, |_, slot| {
                slots.push(slot);
                all
            })?;
        }
        let found = nearest(&self.rows, &scratch.probe, slots.into_iter(), usize::MAX, radius)?;
        let hit = |(distance, id)| Ok(Hit { key: self.rows.node(id)?.key.get(), distance });
        found.into_iter().map(hit).collect()
    }

    /// By how much a distance by code may be above the true one, if that is at most `radius`. What a code misses of a
    /// vector points anywhere: of its length, a direction takes a share that falls with the root of the dimension.
    fn slack(&self, model: &Model, prepared: &Prepared, radius: f32) -> f32 {
        let error = f32::from_bits(self.rows.meta.error.get());
        let share = (4.0 / (model.dim as f32).sqrt()).min(1.0);
        let rounding = match model.pq.bits() {
            4 => prepared.tables.delta() * 0.5 * model.pq.subs() as f32,
            _ => 0.0,
        };
        let length = prepared.floats.iter().map(|x| x * x).sum::<f32>().sqrt();
        let slack = match self.rows.space.metric {
            Metric::L2sq => error * error + 2.0 * radius.max(0.0).sqrt() * error * share,
            _ => length * error * share,
        };
        // Sums in f32 are off by their rounding, the more the larger what they are made of.
        (slack + rounding) * 1.001 + 1e-4 * (length * length + radius.abs())
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
