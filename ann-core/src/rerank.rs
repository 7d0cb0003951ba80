//! Ranking candidates by the caller's own distances, where an index keeps none of its vectors.

use crate::error::{Error, Result};
use crate::index::{Exact, Hit, Search};
use crate::page::PageStore;
use crate::rows::{Probe, Rows, VECTORS, nearest};

/// A candidate for an exact distance: its estimate, its slot and its key.
pub(crate) type Estimated = (f32, u32, u64);

/// The nearest so far, by the caller's distances.
pub(crate) struct Ranked<'a> {
    exact: Exact<'a>,
    k: usize,
    radius: f32,
    hits: Vec<Hit>,
}

impl<'a> Ranked<'a> {
    /// The `k` nearest within `radius` are wanted.
    pub(crate) fn new(exact: Exact<'a>, (k, radius): (usize, f32)) -> Ranked<'a> {
        Ranked { exact, k, radius, hits: Vec::new() }
    }

    /// What is farther is none of the results.
    pub(crate) fn bound(&self) -> f32 {
        let worst = self.hits.last().filter(|_| self.hits.len() >= self.k);
        worst.map_or(self.radius, |worst| worst.distance.min(self.radius))
    }

    /// Whether there are as many as are wanted.
    pub(crate) fn is_full(&self) -> bool {
        self.hits.len() >= self.k
    }

    /// Asks the caller for the distance of a key, and takes it in; `None` if the key is not to be returned.
    pub(crate) fn measure(&mut self, key: u64) -> Result<Option<f32>> {
        let Some(distance) = (self.exact)(key)? else { return Ok(None) };
        if distance.is_nan() {
            return Err(Error::parameter("exact", distance, "a distance for each key"));
        }
        if distance <= self.bound() {
            let at = self.hits.partition_point(|hit| hit.distance <= distance);
            self.hits.insert(at, Hit { key, distance });
            self.hits.truncate(self.k);
        }
        Ok(Some(distance))
    }

    /// The results, nearest first.
    pub(crate) fn hits(self) -> Vec<Hit> {
        self.hits
    }
}

/// Checks at the door that distances are given only to an index that keeps no vectors.
pub(crate) fn check<S: PageStore>(rows: &Rows<S>, options: &Search<'_>) -> Result<()> {
    match options.exact.is_some() && rows.has_vectors() {
        true => Err(Error::parameter("exact", "given", "none: the index keeps its vectors")),
        false => Ok(()),
    }
}

/// The `k` nearest within `radius` of candidates in the order of their estimates by the codes that are rows.
pub(crate) fn rerank<S: PageStore>(
    rows: &Rows<S>,
    probe: &Probe,
    candidates: impl Iterator<Item = Estimated>,
    limits: (usize, f32),
    exact: Exact<'_>,
) -> Result<Vec<Hit>> {
    let mut ranked = Ranked::new(exact, limits);
    for (estimate, id, key) in candidates {
        if estimate - rows.slack(VECTORS, &probe.asked, id)? <= ranked.bound() {
            ranked.measure(key)?;
        }
    }
    Ok(ranked.hits())
}

/// [`rerank`] of slots in no order.
pub(crate) fn rerank_all<S: PageStore>(
    rows: &Rows<S>,
    probe: &Probe,
    ids: impl Iterator<Item = u32>,
    limits: (usize, f32),
    exact: Exact<'_>,
) -> Result<Vec<Hit>> {
    let found = nearest(rows, probe, ids, usize::MAX, f32::INFINITY)?;
    let mut candidates = Vec::with_capacity(found.len());
    for (estimate, id) in found {
        candidates.push((estimate, id, rows.node(id)?.key.get()));
    }
    rerank(rows, probe, candidates.into_iter(), limits, exact)
}
