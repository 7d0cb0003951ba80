//! Searching: down the hierarchy by greedy steps, then best-first at the bottom.

use crate::error::{Error, Result};
use crate::index::{Cost, Hit, MAX_EF};
use crate::page::PageStore;
use crate::rows::{LINKS, Matcher, NODES, NONE, Rows, UPPER, WHOLE};

use super::pool::{Pool, sorting};
use super::search::{Met, Scratch};
use super::{Fused, Graph, Topology, fused, links};

/// The size of a pool of estimates for `ef` candidates: when a candidate is met again with a better estimate, the one
/// that it had keeps its place.
fn with_repeats(ef: usize) -> usize {
    ef.saturating_add(ef / 4)
}

/// The array and record that hold a node's links at a level.
pub(super) fn place<S: PageStore>(rows: &Rows<S>, id: u32, level: u8) -> Result<(usize, u32)> {
    if level == 0 {
        return Ok((LINKS, id));
    }
    let node = rows.node(id)?;
    if node.level < level {
        return Err(rows.corrupt_node(id, format!("a link at level {level} leads to it")));
    }
    let record = node.upper.get().checked_add(u32::from(level) - 1);
    match record.filter(|&record| record < rows.upper()) {
        Some(record) => Ok((UPPER, record)),
        None => Err(rows.corrupt_node(id, "its upper links do not exist".into())),
    }
}

/// The entry point and its level, if the graph has one.
pub(super) fn entry<S: PageStore>(rows: &Rows<S>) -> Result<Option<(u32, u8)>> {
    let id = rows.meta.entry.get();
    if id == NONE {
        return Ok(None);
    }
    match u8::try_from(rows.meta.entry_level.get()) {
        Ok(level) if id < rows.slots() && level <= rows.node(id)?.level => Ok(Some((id, level))),
        _ => Err(Error::corrupt(0, format!("entry point {id}"))),
    }
}

/// Nodes of each level above the bottom that a way down is followed from: one alone would end in the nearest cluster
/// that has links to none nearer.
const WAYS: usize = 4;

/// From `id` at level `from`, steps to ever nearer nodes, level by level, and returns the nearest at level `to`: at
/// each, until the [`WAYS`] nearest that were met have been expanded. The batch then holds what was met at level `to`,
/// scored.
pub(super) fn descend<S: PageStore>(
    rows: &Rows<S>,
    scratch: &mut Scratch,
    (id, from): (u32, u8),
    to: u8,
    cost: &mut Cost,
) -> Result<u32> {
    let Scratch { probe, batch, visited, met, .. } = scratch;
    batch.score_only(rows, probe, id)?;
    cost.distances += 1;
    visited.reset(rows.ids());
    links::fresh(visited, id)?;
    // The nearest, nearest first, and whether they have been expanded.
    let mut ways = [(f32::INFINITY, NONE, true); WAYS];
    ways[0] = (batch.distances[0], id, false);
    for level in (to..=from).rev() {
        met.clear();
        for way in ways.iter_mut().filter(|way| way.1 != NONE) {
            met.push((way.0, way.1));
            way.2 = false;
        }
        while let Some(way) = ways.iter_mut().find(|way| !way.2) {
            way.2 = true;
            // What was met before is among the ways, or no nearer than they are.
            let list = place(rows, way.1, level)?;
            links::expand(rows, list, visited, batch, probe, f32::INFINITY)?;
            cost.hops += 1;
            cost.distances += batch.ids.len() as u64;
            for (&distance, &id) in batch.distances.iter().zip(&batch.ids) {
                met.push((distance, id));
                if distance < ways[WAYS - 1].0 {
                    let at = ways.partition_point(|way| way.0 <= distance);
                    ways[at..].rotate_right(1);
                    ways[at] = (distance, id, false);
                }
            }
        }
    }
    batch.ids.clear();
    batch.distances.clear();
    batch.ids.extend(met.iter().map(|met| met.1));
    batch.distances.extend(met.iter().map(|met| met.0));
    Ok(ways[0].1)
}

/// Best-first search of one level, into the scratch's pool, which has been reset. It starts from all that the batch
/// holds, scored: more than one starting point costs nothing and gets a search out of many a dead end.
pub(super) fn search_level<S: PageStore>(
    rows: &Rows<S>,
    scratch: &mut Scratch,
    level: u8,
    admit: &mut impl FnMut(u32) -> Result<bool>,
) -> Result<()> {
    scratch.estimated = false;
    scratch.visited.reset(rows.ids());
    scratch.enter(admit)?;
    best_first(rows, scratch, level, admit)
}

/// Continues a search with what is in the pool.
pub(super) fn best_first<S: PageStore>(
    rows: &Rows<S>,
    scratch: &mut Scratch,
    level: u8,
    admit: &mut impl FnMut(u32) -> Result<bool>,
) -> Result<()> {
    scratch.best_first(
        1,
        |_, _| (),
        |step, Met { visited, .. }, batch, (probe, _)| {
            if let (Some(next), 0) = (step.next, level) {
                rows.prefetch(LINKS, next);
            }
            let list = place(rows, step.node, level)?;
            links::expand(rows, list, visited, batch, probe, step.bound)?;
            Ok(None)
        },
        admit,
    )
}

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// Searches the bottom level for the scratch's probe, for at least `least` candidates of `ef` in the end. Of fused
    /// lists only `ef` are expanded if that is less; the others are measured.
    pub(super) fn search_pool(
        &self,
        scratch: &mut Scratch,
        matcher: &Matcher<'_>,
        sizes: (usize, usize),
        radius: f32,
        resumable: bool,
    ) -> Result<Cost> {
        let mut cost = self.approach(scratch, sizes, radius, resumable)?;
        if self.all_count(matcher) {
            scratch.enter(&mut |_| Ok(true))?;
            self.go_on(scratch, &mut |_| Ok(true))?;
        } else {
            let admit = &mut |id| self.rows.admits(id, matcher);
            scratch.enter(admit)?;
            self.go_on(scratch, admit)?;
        }
        cost.hops += scratch.hops;
        cost.distances += scratch.scored;
        Ok(cost)
    }

    /// Whether every node of the graph may be returned: there are neither tombstones nor a filter.
    pub(super) fn all_count(&self, matcher: &Matcher<'_>) -> bool {
        matcher.is_all() && self.rows.meta.tombstones.get() == 0
    }

    /// Readies a search: the pools are empty, and the batch holds where it is to start from, scored.
    pub(super) fn approach(
        &self,
        scratch: &mut Scratch,
        (ef, least): (usize, usize),
        radius: f32,
        resumable: bool,
    ) -> Result<Cost> {
        let rows = &self.rows;
        let mut cost = Cost::default();
        let is_fused = self.shape.fused.is_some();
        let (expands, pool) = (ef, ef.max(least).min(MAX_EF));
        let ef = if is_fused { with_repeats(pool) } else { pool };
        scratch.pool.reset(ef, radius, resumable);
        if is_fused && expands < pool {
            scratch.pool.expand_only(expands);
        }
        // A search that may be resumed returns all that it expands.
        scratch.found.reset(if resumable { usize::MAX } else { least }, radius, false);
        scratch.estimated = is_fused;
        scratch.pool.shrink_to(least);
        (scratch.hops, scratch.scored) = (0, 0);
        let Some(entry) = entry(rows)? else {
            scratch.batch.ids.clear();
            scratch.batch.distances.clear();
            return Ok(cost);
        };
        self.enter(scratch, entry, &mut cost)?;
        if rows.goes_by_codes() {
            // One pool holds estimates only.
            scratch.batch.estimate(rows, &scratch.probe)?;
        }
        match &self.shape.fused {
            Some(_) => scratch.best.reset(rows.ids(), ef),
            None => scratch.visited.reset(rows.ids()),
        }
        Ok(cost)
    }

    /// Fills the batch with nodes of the bottom level for the scratch's probe to start from, scored or estimated.
    pub(super) fn enter(
        &self,
        scratch: &mut Scratch,
        (id, level): (u32, u8),
        cost: &mut Cost,
    ) -> Result<()> {
        let rows = &self.rows;
        if let Some(fused) = &self.shape.fused {
            fused.table(rows, &scratch.row, &mut scratch.table);
            self.enter_fused(scratch, id)?;
            cost.distances += 1;
        } else if self.has_sample() && rows.meta.upper.get() > 0 {
            self.enter_sample(scratch, id)?;
        } else if level > 0 {
            descend(rows, scratch, (id, level), 1, cost)?;
        } else {
            scratch.batch.score_only(rows, &scratch.probe, id)?;
            cost.distances += 1;
        }
        Ok(())
    }

    /// Whether a search has a pool of estimates and a second one of distances.
    pub(super) fn ranks_twice(&self) -> bool {
        self.shape.fused.is_some() || self.rows.goes_by_codes()
    }

    /// Where a search has put what it found.
    pub(super) fn found<'a>(&self, scratch: &'a Scratch) -> &'a Pool {
        if self.ranks_twice() { &scratch.found } else { &scratch.pool }
    }

    /// Continues a search of the bottom level with what is in the pool.
    pub(super) fn go_on(
        &self,
        scratch: &mut Scratch,
        admit: &mut impl FnMut(u32) -> Result<bool>,
    ) -> Result<()> {
        let rows = &self.rows;
        if rows.goes_by_codes() {
            self.best_first_by_codes(scratch, admit)?;
            scratch.scored = self.rerank(scratch)?;
            return Ok(());
        }
        let Some(fused) = &self.shape.fused else {
            return best_first(rows, scratch, 0, admit);
        };
        let beam = scratch.beam.unwrap_or(Fused::beam(rows.array(WHOLE)?.size()));
        loop {
            scratch.best_first(
                beam,
                |node, part| rows.prefetch_part(WHOLE, node, part),
                |step, met, batch, query| {
                    fused::expand(rows, fused, &step, met, batch, query).map(Some)
                },
                admit,
            )?;
            if self.is_complete(scratch)? {
                return Ok(());
            }
        }
    }

    /// Measures what a search of fused lists was not to expand. False if there is less than was asked for: the search
    /// then has to go on without that limit.
    pub(super) fn is_complete(&self, scratch: &mut Scratch) -> Result<bool> {
        let Scratch { pool, found, best, batch, probe, .. } = scratch;
        if !pool.is_limited() {
            return Ok(true);
        }
        let is_left = |&(distance, id): &(f32, u32)| best.is_best(id, sorting(distance));
        batch.ids.clear();
        batch.ids.extend(pool.not_expanded().filter(is_left).map(|(_, id)| id));
        pool.expand_only(usize::MAX);
        if found.len() + batch.ids.len() < found.size() {
            return Ok(false);
        }
        batch.score(&self.rows, probe)?;
        scratch.scored += batch.ids.len() as u64;
        found.take_in(&batch.ids, &batch.distances);
        Ok(true)
    }

    /// The hits for graph nodes in ascending order of distance: each node and its twins, up to `k`.
    pub(super) fn hits(
        &self,
        found: impl Iterator<Item = (f32, u32)> + Clone,
        matcher: &Matcher<'_>,
        k: usize,
    ) -> Result<Vec<Hit>> {
        found.clone().take(k).for_each(|(_, id)| self.rows.prefetch(NODES, id));
        let mut hits = Vec::with_capacity(k.min(1024));
        for (distance, id) in found {
            if hits.len() >= k {
                break;
            }
            self.rows.each_visible(id, |id, key| {
                if matcher.accepts(id, key) {
                    hits.push(Hit { key, distance });
                }
                hits.len() < k
            })?;
        }
        Ok(hits)
    }
}
