//! Measuring candidates by their vectors, nearest by code first, until no more are likely to be among the nearest.
//!
//! Where vectors are not kept, it is done by codes of higher precision, or by the caller's own distances of what is
//! nearest by these; without such codes, hits are the nearest by the codes of lists, or what the caller says of them.
//!
//! How far estimates are off is seen as candidates are measured. The others are left out once even an estimate that is
//! several deviations too far would not bring them among the nearest.

use crate::error::Result;
use crate::index::{Cost, Exact, Hit};
use crate::metric::Metric;
use crate::page::PageStore;
use crate::rerank::{Estimated, Ranked, rerank};
use crate::rows::VECTORS;

use super::IvfPq;
use super::model::{key, unkey};
use super::search::Scratch;

/// Candidates that are measured in one kernel call.
pub(super) const CALL: usize = 16;
/// Candidates that are measured before it is known how far estimates are off.
pub(super) const KNOWN: usize = 32;
/// Deviations by which hardly any estimate is off; under squared L2 they grow with the distance, and inner products are
/// off by the more the longer the vector.
const Z: f32 = 3.0;
const Z_L2SQ: f32 = 4.0;

/// How far estimates have been off.
#[derive(Default)]
pub(super) struct Errors {
    count: f32,
    sum: f32,
    squares: f32,
}

impl Errors {
    pub(super) fn add(&mut self, error: f32) {
        self.count += 1.0;
        self.sum += error;
        self.squares += error * error;
    }

    /// The least distance that is likely for an estimate. Those seen are of the least estimates, which are too near
    /// rather than too far: what they are off by on average is not taken to hold for others.
    pub(super) fn least(&self, estimate: f32, deviations: f32) -> f32 {
        let mean = self.sum / self.count;
        let variance = (self.squares / self.count - mean * mean).max(0.0);
        estimate + mean.min(0.0) - deviations * variance.sqrt()
    }
}

/// The deviations by which hardly any estimate is off.
pub(super) fn deviations(metric: Metric) -> f32 {
    match metric {
        Metric::Cosine => Z,
        Metric::L2sq => Z_L2SQ,
        Metric::InnerProduct => f32::INFINITY,
    }
}

impl<S: PageStore> IvfPq<S> {
    /// Asks for the vectors of the first few candidates.
    pub(super) fn ask(&self, candidates: &[u64]) {
        let first = candidates.iter().take(CALL);
        first.for_each(|&candidate| self.rows.prefetch(VECTORS, candidate as u32));
    }

    /// Measures the candidates, of which the first have been asked for; `found` becomes the `k` nearest.
    pub(super) fn measure(&self, scratch: &mut Scratch, k: usize, cost: &mut Cost) -> Result<()> {
        let Scratch { collected, found, batch, probe, .. } = scratch;
        let candidates = &collected.candidates;
        found.clear();
        if !self.rows.has_rows() {
            found.extend(candidates.iter().take(k));
            return Ok(());
        }
        let mut bound = f32::INFINITY;
        let mut errors = Errors::default();
        let deviations = deviations(self.rows.space.metric);
        for (at, call) in candidates.chunks(CALL).enumerate() {
            let known = at * CALL >= KNOWN.max(k) && found.len() == k && !collected.takes_all;
            if known && errors.least(unkey(call[0]).0, deviations) > bound {
                break;
            }
            let next = ((at + 1) * CALL).min(candidates.len());
            self.ask(&candidates[next..]);
            batch.ids.clear();
            batch.ids.extend(call.iter().map(|&candidate| candidate as u32));
            batch.score_below(&self.rows, probe, bound.next_up())?;
            cost.distances += call.len() as u64;
            for ((&distance, &slot), &candidate) in batch.distances.iter().zip(&batch.ids).zip(call)
            {
                errors.add(distance - unkey(candidate).0);
                // Where others remove rows, their entries stay for a while.
                if distance <= bound && (!S::SHARED || self.rows.node(slot)?.is_visible()) {
                    found.push(key(distance, slot));
                }
            }
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

    /// The `k` nearest of the candidates by the caller's own distances.
    pub(super) fn measure_by(
        &self,
        scratch: &mut Scratch,
        k: usize,
        exact: Exact<'_>,
        cost: &mut Cost,
    ) -> Result<Vec<Hit>> {
        let Scratch { collected, batch, probe, .. } = scratch;
        let candidates = &collected.candidates;
        let limits = (k, f32::INFINITY);
        if self.rows.has_rows() {
            batch.ids.clear();
            batch.ids.extend(candidates.iter().map(|&candidate| candidate as u32));
            batch.score(&self.rows, probe)?;
            cost.distances += batch.ids.len() as u64;
            let mut estimated: Vec<Estimated> = Vec::with_capacity(batch.ids.len());
            for (&estimate, &slot) in batch.distances.iter().zip(&batch.ids) {
                let node = self.rows.node(slot)?;
                if node.is_visible() {
                    estimated.push((estimate, slot, node.key.get()));
                }
            }
            estimated.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            return rerank(&self.rows, probe, estimated.into_iter(), limits, exact);
        }
        let mut ranked = Ranked::new(exact, limits);
        let mut errors = Errors::default();
        let deviations = deviations(self.rows.space.metric);
        for (at, &candidate) in candidates.iter().enumerate() {
            let (estimate, slot) = unkey(candidate);
            let known = at >= KNOWN.max(k) && ranked.is_full() && !collected.takes_all;
            if known && errors.least(estimate, deviations) > ranked.bound() {
                break;
            }
            if let Some(distance) = ranked.measure(self.rows.node(slot)?.key.get())? {
                errors.add(distance - estimate);
            }
        }
        Ok(ranked.hits())
    }
}
