//! Choosing neighbours: near ones, in different directions.
//!
//! Go through the candidates from near to far and keep one unless a kept one is nearer to it than the node itself
//! is (the relative neighbourhood rule; Malkov and Yashunin, arXiv 1603.09320, algorithm 4). What is kept spans
//! directions; what is left out can be reached through what is kept. Places that remain go to the nearest of what
//! was left out: they cost no memory, and save a search hops.
//!
//! With an alpha above 1 (Vamana's, NeurIPS 2019) a kept one has to be nearer by that factor, so more are kept.

use crate::error::Result;
use crate::page::PageStore;
use crate::rows::{Batch, Copies, Probe, Rows};

use super::links::TREE;

/// A possible neighbour and its distance to the node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub distance: f32,
    pub id: u32,
    /// An edge of the spanning tree: kept whatever the rule says.
    pub tree: bool,
}

impl Candidate {
    /// The link to it.
    pub(crate) fn link(&self) -> u32 {
        if self.tree { self.id | TREE } else { self.id }
    }

    /// Near before far, then by id: a total order, so that results do not depend on the order of arrival.
    pub(crate) fn order(&self, other: &Candidate) -> std::cmp::Ordering {
        self.distance.total_cmp(&other.distance).then(self.id.cmp(&other.id))
    }
}

/// Scratch for [`select`].
#[derive(Default)]
pub(crate) struct Pruner {
    probe: Probe,
    row: Vec<u8>,
    pub copies: Copies,
    batch: Batch,
    left_out: Vec<Candidate>,
}

/// Rows that one kernel call compares a candidate with, before looking whether that settles it.
const GROUP: usize = 8;

impl Pruner {
    /// Reduces `candidates` (sorted by [`Candidate::order`], without repetitions) to at most `limit`.
    /// At most `limit` of them may be tree edges.
    pub(crate) fn select<S: PageStore>(
        &mut self,
        rows: &Rows<S>,
        candidates: &mut Vec<Candidate>,
        limit: usize,
    ) -> Result<()> {
        self.choose(rows, candidates, limit)?;
        candidates.sort_unstable_by(Candidate::order);
        Ok(())
    }

    /// [`Pruner::select`] that puts first what the rule keeps, and returns how many those are.
    pub(crate) fn choose<S: PageStore>(
        &mut self,
        rows: &Rows<S>,
        candidates: &mut Vec<Candidate>,
        limit: usize,
    ) -> Result<usize> {
        let spread = rows.meta.spread();
        let mut trees = candidates.iter().filter(|candidate| candidate.tree).count();
        self.left_out.clear();
        let ids = candidates.iter().map(|candidate| candidate.id);
        self.copies.take(rows, ids, &mut self.row)?;
        // Kept are those before `kept`, undecided those from there on, up to `end`.
        let (mut kept, mut end) = (0, candidates.len());
        while kept < end {
            let candidate = candidates[kept];
            if kept + trees >= limit && !candidate.tree {
                let (open, left_out) = (&mut candidates[kept..end], &mut self.left_out);
                end = kept + partition(open, left_out, |_, candidate| candidate.tree);
                continue;
            }
            kept += 1;
            trees -= usize::from(candidate.tree);
            if kept == end {
                break;
            }
            self.copies.probe(rows, candidate.id, &mut self.row, &mut self.probe)?;
            self.batch.ids.clear();
            self.batch.ids.extend(candidates[kept..end].iter().map(|open| open.id));
            self.copies.score(rows, &self.probe, &mut self.batch)?;
            let between = &self.batch.distances;
            end = kept
                + partition(&mut candidates[kept..end], &mut self.left_out, |at, candidate| {
                    candidate.tree || !covers(between[at] * spread, candidate.distance)
                });
        }
        candidates.truncate(kept);
        self.left_out.sort_unstable_by(Candidate::order);
        candidates.extend(self.left_out.iter().take(limit.saturating_sub(kept)));
        Ok(kept)
    }

    /// Reduces `candidates`, a few more than `limit`, to it, for much less work: drops the farthest ones to which
    /// any other candidate is nearer than the node is. Their rows have been copied.
    pub(crate) fn thin<S: PageStore>(
        &mut self,
        rows: &Rows<S>,
        candidates: &mut Vec<Candidate>,
        limit: usize,
    ) -> Result<()> {
        let mut at = candidates.len();
        while candidates.len() > limit && at > 0 {
            at -= 1;
            let candidate = candidates[at];
            if !candidate.tree && self.is_covered(rows, candidates, at)? {
                candidates.remove(at);
            }
        }
        while candidates.len() > limit
            && let Some(farthest) = candidates.iter().rposition(|candidate| !candidate.tree)
        {
            candidates.remove(farthest);
        }
        Ok(())
    }

    /// Whether one of the candidates before the one at a place is nearer to that than the node is.
    pub(crate) fn is_covered<S: PageStore>(
        &mut self,
        rows: &Rows<S>,
        candidates: &[Candidate],
        at: usize,
    ) -> Result<bool> {
        let (nearer, candidate) = (&candidates[..at], &candidates[at]);
        if nearer.is_empty() {
            return Ok(false);
        }
        let spread = rows.meta.spread();
        self.copies.probe(rows, candidate.id, &mut self.row, &mut self.probe)?;
        for group in nearer.chunks(GROUP) {
            self.batch.ids.clear();
            self.batch.ids.extend(group.iter().map(|nearer| nearer.id));
            self.copies.score(rows, &self.probe, &mut self.batch)?;
            let mut distances = self.batch.distances.iter();
            if distances.any(|&between| covers(between * spread, candidate.distance)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether a neighbour at distance `between` from a candidate stands in for it at `distance` from the node. One that
/// all but coincides with the node is not nearer to the candidate than that; only rounding could say so, and a node
/// in a crowd would lose every link that leads out.
fn covers(between: f32, distance: f32) -> bool {
    between <= distance - distance.abs() * 1e-4
}

/// Moves to the front what `stays`, the rest to `others`, both in their order; returns how many stay.
fn partition(
    candidates: &mut [Candidate],
    others: &mut Vec<Candidate>,
    stays: impl Fn(usize, &Candidate) -> bool,
) -> usize {
    let mut count = 0;
    for at in 0..candidates.len() {
        let candidate = candidates[at];
        if stays(at, &candidate) {
            candidates[count] = candidate;
            count += 1;
        } else {
            others.push(candidate);
        }
    }
    count
}
