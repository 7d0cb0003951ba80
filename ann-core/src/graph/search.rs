//! Best-first search: the one loop behind k-NN, range, filtered and resumable search on every graph.
//!
//! Take the nearest candidate that has not been expanded, score the neighbours that the search has not met, keep
//! those that come below the pool's bound; stop when every candidate in the pool has been expanded (Malkov and
//! Yashunin, arXiv 1603.09320, algorithm 2).

use std::collections::VecDeque;

use crate::error::Result;
use crate::rows::{Batch, PARTS, Probe};

use super::best::{Best, Estimate};
use super::fused::Table;
use super::links;
use super::pool::{AGAIN, ID, Pool, sorting};
use super::visited::Visited;

/// Candidates that a search of estimates begins with beside half as many again as it has to find.
const FIRST: usize = 8;

/// What is to be expanded next.
pub(crate) struct Step {
    pub node: u32,
    /// The node that will probably come after it.
    pub next: Option<u32>,
    /// Distances need be right only below it.
    pub bound: f32,
    /// Candidates are of use only below it, for now.
    pub near: f32,
}

/// What a search has met.
pub(crate) struct Met<'a> {
    pub visited: &'a mut Visited,
    pub best: &'a mut Best,
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
    /// How much farther than what has been found candidates may be, see [`crate::Search::epsilon`].
    pub epsilon: Option<f32>,
    pub best: Best,
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
                true => best.improve(id, sorting(distance))? != Estimate::NoNearer,
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
        pool.settle();
        Ok(())
    }

    /// Starts the next pool of a resumable search. False if there is nothing left.
    pub(crate) fn refill(&mut self) -> bool {
        let Scratch { pool, best, estimated, .. } = self;
        pool.refill(of_use(best, *estimated))
    }

    /// The nearest candidate that a resumable search has left out.
    pub(crate) fn nearest_left_out(&mut self) -> Option<f32> {
        let Scratch { pool, best, estimated, .. } = self;
        pool.nearest_left_out(of_use(best, *estimated))
    }

    /// Expands candidates until the pool has no more.
    pub(crate) fn best_first(
        &mut self,
        beam: usize,
        mut fetch: impl FnMut(u32, usize),
        mut expand: impl FnMut(Step, Met<'_>, &mut Batch, (&Probe, &Table)) -> Result<Option<f32>>,
        admit: &mut impl FnMut(u32) -> Result<bool>,
    ) -> Result<()> {
        self.set_out(beam, &mut fetch);
        let mut coming = None;
        while !self.is_done() {
            coming = self.hop(beam, coming, &mut fetch, &mut expand, admit)?;
        }
        Ok(())
    }

    /// Takes the first candidates from the pool, and fetches them.
    pub(crate) fn set_out(&mut self, beam: usize, fetch: &mut impl FnMut(u32, usize)) {
        self.ahead.clear();
        self.fill(beam);
        for &(node, _) in &self.ahead {
            (0..PARTS).for_each(|part| fetch(node, part));
        }
    }

    /// Whether there is no candidate left that is worth expanding.
    pub(crate) fn is_done(&self) -> bool {
        self.ahead.is_empty()
    }

    /// Has the batch filled for the candidate whose turn it is, ahead of its hop.
    pub(crate) fn meet(
        &mut self,
        meet: impl FnOnce(u32, &mut Visited, &mut Batch) -> Result<()>,
    ) -> Result<()> {
        match self.ahead.front() {
            Some(&(node, _)) => meet(node, &mut self.visited, &mut self.batch),
            None => Ok(()),
        }
    }

    /// What candidates must not be beyond to be expanded: the nearest itself may be what it is reckoned from.
    fn reach(&self) -> f32 {
        reach(&self.pool, &self.found, self.estimated, self.epsilon)
    }

    /// Takes candidates from the pool until `beam` are waiting for their turn; returns the last.
    #[inline]
    fn fill(&mut self, beam: usize) -> Option<u32> {
        let mut last = None;
        while self.ahead.len() < beam
            && (self.epsilon.is_none() || self.pool.next_distance() <= self.reach())
            && let Some(candidate) = self.pool.pop()
        {
            if self.estimated && !self.best.expand(candidate.0) {
                self.pool.pass_over();
                continue;
            }
            self.ahead.push_back(candidate);
            last = Some(candidate.0);
        }
        last
    }

    /// Expands the candidate whose turn it is. `expand` replaces the batch with the neighbours, not met before, of a
    /// node, and their distances; where these are estimates, it returns the node's exact one. In between, `fetch` is
    /// called for the parts of what is `coming`: what the hop before this one returned, of this search or another.
    #[inline]
    pub(crate) fn hop(
        &mut self,
        beam: usize,
        coming: Option<u32>,
        fetch: &mut impl FnMut(u32, usize),
        expand: &mut impl FnMut(Step, Met<'_>, &mut Batch, (&Probe, &Table)) -> Result<Option<f32>>,
        admit: &mut impl FnMut(u32) -> Result<bool>,
    ) -> Result<Option<u32>> {
        let mut fetch = |part| {
            if let Some(node) = coming {
                fetch(node, part);
            }
        };
        let Scratch { probe, pool, found, visited, best, batch, table, ahead, .. } = self;
        let Some((node, admitted)) = ahead.pop_front() else {
            return Ok(None);
        };
        fetch(0);
        let (estimated, epsilon) = (self.estimated, self.epsilon);
        let limit = |pool: &Pool, found: &Pool| {
            let first = if estimated { beginning(pool, found) } else { f32::INFINITY };
            first.min(reach(pool, found, estimated, epsilon))
        };
        let limited = limit(pool, found);
        let (bound, near) = (pool.exact_below().min(limited), pool.bound().min(limited));
        let step = Step { node, next: pool.peek(), bound, near };
        let met = Met { visited, best };
        let own = expand(step, met, batch, (probe, table))?;
        self.hops += 1;
        fetch(1);
        match own {
            None => self.scored += batch.ids.len() as u64,
            Some(distance) => {
                self.scored += 1;
                if distance < found.bound() {
                    found.insert(distance, node, admitted);
                    found.settle();
                }
            }
        }
        // Candidates that come again, nearer, and could be results, where they stood before.
        let mut stale = 0;
        let bound = near.min(limit(pool, found));
        for (&id, &distance) in batch.ids.iter().zip(&batch.distances) {
            let (id, again) = (id & ID, id & AGAIN != 0);
            if distance < bound {
                let admitted = admit(id)?;
                pool.insert(distance, id, admitted);
                stale += usize::from(again && admitted);
            } else {
                pool.refuse(distance, id);
            }
        }
        pool.met_again(best.met_again(), stale, found.bound() == f32::INFINITY);
        pool.settle();
        fetch(2);
        Ok(self.fill(beam))
    }
}

/// Which candidates that have been left out are of use still: where they are estimates, the best of their nodes'.
fn of_use(best: &mut Best, estimated: bool) -> impl FnMut(u32, f32) -> bool {
    move |id, distance| !estimated || best.is_of_use(id, sorting(distance))
}

/// What is beyond `epsilon` of the farthest that a search is to find, once it has met as many, is not worth a turn.
#[inline(always)]
fn reach(pool: &Pool, found: &Pool, estimated: bool, epsilon: Option<f32>) -> f32 {
    let Some(epsilon) = epsilon else { return f32::INFINITY };
    let farthest = if estimated { found.bound() } else { pool.farthest_of(found.size()) };
    match farthest < f32::INFINITY {
        true => farthest + epsilon * farthest.abs(),
        false => f32::INFINITY,
    }
}

/// Where estimates are of no use while a search has found less than it is for: behind half as many again. Later it is
/// nearer, and the first neighbours would only be in the way.
#[inline(always)]
fn beginning(pool: &Pool, found: &Pool) -> f32 {
    match found.bound() < f32::INFINITY {
        true => f32::INFINITY,
        false => pool.bound_of(found.size().saturating_add(found.size() / 2 + FIRST)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entry point may be in the sample as well, and its estimate there be the better one: a search that goes on
    /// takes up what is best of a node only.
    #[test]
    fn a_starting_point_that_comes_nearer_is_not_lost() {
        let mut scratch = Scratch { estimated: true, ..Scratch::default() };
        scratch.pool.reset(1, f32::NEG_INFINITY, true);
        scratch.best.reset(10, 1);
        scratch.batch.ids = vec![3, 3, 4];
        scratch.batch.distances = vec![5.0, 2.0, 1.0];
        scratch.enter(&mut |_| Ok(true)).unwrap();
        assert_eq!(scratch.pool.pop(), Some((4, true)));
        assert!(scratch.refill());
        assert_eq!(scratch.pool.pop(), Some((3, true)));
    }
}
