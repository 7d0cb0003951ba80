//! Choosing neighbours: near ones, in different directions.
//!
//! Go through the candidates from near to far and keep one unless a kept one is nearer to it than the node itself
//! is (the relative neighbourhood rule; Malkov and Yashunin, arXiv 1603.09320, algorithm 4). What is kept spans
//! directions; what is left out can be reached through what is kept. Places that remain go to the nearest of what
//! was left out: they cost no memory, and save a search hops.

use crate::error::Result;
use crate::page::PageStore;
use crate::rows::{Batch, Probe, Rows};

/// A possible neighbour and its distance to the node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub distance: f32,
    pub id: u32,
    /// An edge of the spanning tree: kept whatever the rule says.
    pub tree: bool,
}

impl Candidate {
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
    batch: Batch,
    kept: Vec<u32>,
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
        max_norm: f32,
        candidates: &mut Vec<Candidate>,
        limit: usize,
    ) -> Result<()> {
        let mut trees = candidates.iter().filter(|candidate| candidate.tree).count();
        self.kept.clear();
        self.left_out.clear();
        let mut error = None;
        candidates.retain(|candidate| {
            if error.is_some() || self.kept.len() + trees >= limit && !candidate.tree {
                return false;
            }
            let keep = candidate.tree
                || self.is_new_direction(rows, max_norm, candidate).unwrap_or_else(|e| {
                    error = Some(e);
                    false
                });
            trees -= usize::from(candidate.tree);
            match keep {
                true => self.kept.push(candidate.id),
                false => self.left_out.push(*candidate),
            }
            keep
        });
        let places = limit.saturating_sub(candidates.len());
        if places > 0 && !self.left_out.is_empty() {
            candidates.extend(self.left_out.drain(..).take(places));
            candidates.sort_unstable_by(Candidate::order);
        }
        error.map_or(Ok(()), Err)
    }

    /// Reduces `candidates`, a few more than `limit`, to it, for much less work: drops the farthest ones to which
    /// any other candidate is nearer than the node is.
    pub(crate) fn thin<S: PageStore>(
        &mut self,
        rows: &Rows<S>,
        max_norm: f32,
        candidates: &mut Vec<Candidate>,
        limit: usize,
    ) -> Result<()> {
        let mut at = candidates.len();
        while candidates.len() > limit && at > 0 {
            at -= 1;
            let candidate = candidates[at];
            self.kept.clear();
            self.kept.extend(candidates[..at].iter().map(|nearer| nearer.id));
            if !candidate.tree && !self.is_new_direction(rows, max_norm, &candidate)? {
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

    /// Whether no kept candidate is nearer to this one than the node is.
    fn is_new_direction<S: PageStore>(
        &mut self,
        rows: &Rows<S>,
        max_norm: f32,
        candidate: &Candidate,
    ) -> Result<bool> {
        if self.kept.is_empty() {
            return Ok(true);
        }
        rows.link_probe(candidate.id, max_norm, &mut self.row, &mut self.probe)?;
        for group in self.kept.chunks(GROUP) {
            self.batch.ids.clear();
            self.batch.ids.extend_from_slice(group);
            self.batch.score(rows, &self.probe)?;
            if self.batch.distances.iter().any(|&between| between <= candidate.distance) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
