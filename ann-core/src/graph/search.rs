//! Best-first search: the one loop behind k-NN, range, filtered and resumable search on every graph.
//!
//! Take the nearest candidate that has not been expanded, score the neighbours that the search has not met, keep
//! those that come below the pool's bound; stop when every candidate in the pool has been expanded (Malkov and
//! Yashunin, arXiv 1603.09320, algorithm 2).

use crate::error::Result;
use crate::rows::{Batch, Probe};

use super::links;
use super::pool::Pool;
use super::visited::Visited;

/// What is to be expanded next.
pub(crate) struct Step {
    pub node: u32,
    /// The node that will probably come after it.
    pub next: Option<u32>,
    /// Distances need be right only below it.
    pub bound: f32,
}

/// What a search needs besides the graph; reused from search to search, so that none allocates.
#[derive(Default)]
pub(crate) struct Scratch {
    pub probe: Probe,
    pub pool: Pool,
    pub visited: Visited,
    pub batch: Batch,
    pub row: Vec<u8>,
    pub links: Vec<u32>,
    pub met: Vec<(f32, u32)>,
    pub hops: u64,
    pub scored: u64,
}

impl Scratch {
    /// Adds what the batch holds, scored, as starting points of a search that has met nothing yet.
    pub(crate) fn enter(&mut self, admit: &mut impl FnMut(u32) -> Result<bool>) -> Result<()> {
        let Scratch { pool, visited, batch, .. } = self;
        for (&id, &distance) in batch.ids.iter().zip(&batch.distances) {
            if !links::fresh(visited, id)? {
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
    /// before, of a node, and their distances.
    pub(crate) fn best_first(
        &mut self,
        mut expand: impl FnMut(Step, &mut Visited, &mut Batch, &Probe) -> Result<()>,
        admit: &mut impl FnMut(u32) -> Result<bool>,
    ) -> Result<()> {
        let Scratch { probe, pool, visited, batch, .. } = self;
        while let Some(node) = pool.pop() {
            let step = Step { node, next: pool.peek(), bound: pool.exact_below() };
            expand(step, visited, batch, probe)?;
            self.hops += 1;
            self.scored += batch.ids.len() as u64;
            for (&id, &distance) in batch.ids.iter().zip(&batch.distances) {
                if distance < pool.bound() {
                    let admitted = admit(id)?;
                    pool.insert(distance, id, admitted);
                } else {
                    pool.refuse(distance, id);
                }
            }
        }
        Ok(())
    }
}
