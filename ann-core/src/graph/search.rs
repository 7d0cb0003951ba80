//! Best-first search: the one loop behind k-NN, range, filtered and resumable search on every graph.
//!
//! Take the nearest candidate that has not been expanded, score the neighbours that the search has not met, keep
//! those that come below the pool's bound; stop when every candidate in the pool has been expanded (Malkov and
//! Yashunin, arXiv 1603.09320, algorithm 2).

use std::collections::VecDeque;

use crate::error::Result;
use crate::rows::{Batch, Probe};

use super::best::{Best, UNMET};
use super::fused::Table;
use super::links;
use super::pool::{Pool, sorting};
use super::visited::Visited;

/// What is to be expanded next.
pub(crate) struct Step {
    pub node: u32,
    /// The node that will probably come after it.
    pub next: Option<u32>,
    /// Distances need be right only below it.
    pub bound: f32,
}

/// What a search has met.
pub(crate) struct Met<'a> {
    pub visited: &'a mut Visited,
    pub best: &'a mut Best,
    /// Of the batch, where distances are estimates: the best before.
    pub olds: &'a mut Vec<u16>,
}

/// What a search needs besides the graph; reused from search to search, so that none allocates.
#[derive(Default)]
pub(crate) struct Scratch {
    pub probe: Probe,
    /// Candidates, by their distance or an estimate of it.
    pub pool: Pool,
    /// Where these are estimates: what has been expanded, by its distance.
    pub found: Pool,
    pub visited: Visited,
    pub batch: Batch,
    pub row: Vec<u8>,
    pub links: Vec<u32>,
    pub met: Vec<(f32, u32)>,
    pub table: Table,
    /// Whether distances in the pool are estimates. A node is then met as often as one is better than those before.
    pub estimated: bool,
    /// Candidates that are expanded one after the other while the next are fetched; what suits the records without it.
    pub beam: Option<usize>,
    pub best: Best,
    olds: Vec<u16>,
    ahead: VecDeque<(u32, bool)>,
    pub hops: u64,
    pub scored: u64,
}

impl Scratch {
    /// Adds what the batch holds, scored, as starting points of a search that has met nothing yet.
    pub(crate) fn enter(&mut self, admit: &mut impl FnMut(u32) -> Result<bool>) -> Result<()> {
        let Scratch { pool, visited, best, batch, estimated, .. } = self;
        for (&id, &distance) in batch.ids.iter().zip(&batch.distances) {
            let is_new = match estimated {
                true => best.improve(id, sorting(distance))? == Some(UNMET),
                false => links::fresh(visited, id)?,
            };
            if !is_new {
                continue;
            }
            if distance < pool.bound() {
                pool.insert(distance, id, admit(id)?);
            } else {
                pool.refuse(distance, id);
            }
        }
        Ok(())
    }

    /// Expands candidates until the pool has no more. `expand` replaces the batch with the neighbours, not met
    /// before, of a node, and their distances; where these are estimates, it returns the node's exact one. A
    /// candidate is taken from the pool while `beam - 1` others are ahead of it, and `fetch` called with it for part 0 of
    /// what it is to fetch; for parts 1 and 2 later, in between other work.
    pub(crate) fn best_first(
        &mut self,
        beam: usize,
        mut fetch: impl FnMut(u32, usize),
        mut expand: impl FnMut(Step, Met<'_>, &mut Batch, (&Probe, &Table)) -> Result<Option<f32>>,
        admit: &mut impl FnMut(u32) -> Result<bool>,
    ) -> Result<()> {
        let Scratch { probe, pool, found, visited, best, olds, batch, table, ahead, .. } = self;
        ahead.clear();
        olds.clear();
        loop {
            while ahead.len() < beam
                && let Some(candidate) = pool.pop()
            {
                if self.estimated && !best.expand(candidate.0) {
                    continue;
                }
                fetch(candidate.0, 0);
                ahead.push_back(candidate);
            }
            let Some((node, admitted)) = ahead.pop_front() else {
                return Ok(());
            };
            let step = Step { node, next: pool.peek(), bound: pool.exact_below() };
            let met = Met { visited, best, olds };
            let own = expand(step, met, batch, (probe, table))?;
            self.hops += 1;
            if let Some(last) = ahead.back() {
                fetch(last.0, 1);
            }
            match own {
                None => self.scored += batch.ids.len() as u64,
                Some(distance) => {
                    self.scored += 1;
                    if distance < found.bound() {
                        found.insert(distance, node, admitted);
                    }
                }
            }
            for (at, (&id, &distance)) in batch.ids.iter().zip(&batch.distances).enumerate() {
                if distance < pool.bound() {
                    let admitted = admit(id)?;
                    match olds.get(at) {
                        Some(&old) if old != UNMET => pool.improve(old, distance, id, admitted),
                        _ => pool.insert(distance, id, admitted),
                    }
                } else {
                    pool.refuse(distance, id);
                }
            }
            pool.met_again(best.met_again());
            if let Some(last) = ahead.back() {
                fetch(last.0, 2);
            }
        }
    }
}
