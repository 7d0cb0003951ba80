//! Finding how many lists to read and how many candidates to measure for a recall.

use ndarray::ArrayView2;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::index::{Cost, Index, Search};
use crate::page::PageStore;
use crate::rows::Change;
use crate::threads;
use crate::tune::Sample;

use super::IvfPq;
use super::search::default_rerank;

/// What scoring a sub-quantizer of a block costs, and reading a vector and each of its dimensions, in nanoseconds. Only
/// their ratios matter, and a fixed price makes the choice the same every time.
const SUB: f64 = 0.7;
const VECTOR: f64 = 25.0;
const DIMENSION: f64 = 0.1;

/// What [`IvfPq::tune`] has found.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Tuned {
    /// Lists that searches read from now on.
    pub probes: usize,
    /// Candidates that they measure.
    pub rerank: usize,
    /// The recall of the sample with these.
    pub recall: f64,
}

impl<S: PageStore> IvfPq<S> {
    /// Finds the cheapest `probes` and `rerank` with which the `k` nearest of the queries (of 256 of them at most) are
    /// found with a recall, and has the index keep them: searches use them unless they are told otherwise. If nothing
    /// reaches the recall, what comes nearest is kept. `threads` as for searches. Where codes stand in for vectors, the
    /// nearest are those by these codes.
    ///
    /// [`IvfPq::find_effort`] and [`IvfPq::keep_effort`] in one.
    ///
    /// # Errors
    /// [`Error::Parameter`](crate::Error::Parameter) without queries, for an empty index, `k` = 0, or a recall outside
    /// (0, 1]; [`Error::NoVectors`] without vectors and codes that stand in for them: there is no truth then; those of
    /// searches and of the store.
    pub fn tune<T: Element>(
        &mut self,
        queries: ArrayView2<'_, T>,
        k: usize,
        recall: f64,
        threads: usize,
    ) -> Result<Tuned> {
        let tuned = self.find_effort(queries, k, recall, threads)?;
        self.keep_effort(tuned)?;
        Ok(tuned)
    }

    /// The first half of [`IvfPq::tune`], which changes nothing. O(queries n dim).
    ///
    /// # Errors
    /// As [`IvfPq::tune`].
    pub fn find_effort<T: Element>(
        &self,
        queries: ArrayView2<'_, T>,
        k: usize,
        recall: f64,
        threads: usize,
    ) -> Result<Tuned> {
        if !self.rows.has_rows() {
            return Err(Error::NoVectors);
        }
        threads::pool(threads)?.install(|| {
            let sample = Sample::new(&self.rows, queries, k, recall)?;
            match self.lists()? {
                0 => Ok(Tuned { probes: 1, rerank: default_rerank(k), recall: 1.0 }),
                lists => self.cheapest(&sample, k, recall, lists),
            }
        })
    }

    /// Has searches do what was found, unless they are told otherwise.
    ///
    /// # Errors
    /// Those of the store.
    pub fn keep_effort(&mut self, tuned: Tuned) -> Result<()> {
        self.rows.commit_meta(Change::default(), |meta| {
            meta.probes = (tuned.probes as u32).into();
            meta.rerank = (tuned.rerank as u32).into();
            true
        })?;
        Ok(())
    }

    fn cheapest<T: Element>(
        &self,
        sample: &Sample<'_, T>,
        k: usize,
        recall: f64,
        lists: usize,
    ) -> Result<Tuned> {
        let try_out = |probes, rerank| {
            let options = Search::new(k).probes(probes).rerank(rerank);
            let trial = sample.try_out(|query| self.search_counted(query, &options))?;
            Ok((trial.recall, self.price(trial.cost)))
        };
        let mut best: Option<(f64, Tuned)> = None;
        let mut nearest: Option<(f64, Tuned)> = None;
        let reranks = (0..7).map(|step| k.saturating_mul(1 << step).max(k + 6 * step * step));
        for rerank in reranks.take_while(|&rerank| rerank <= self.rows.len().max(2 * k)) {
            // The fewest lists that do, by halving.
            let (mut from, mut to) = (1, lists);
            let (mut got, mut cost) = try_out(to, rerank)?;
            let all = Tuned { probes: to, rerank, recall: got };
            if nearest.is_none_or(|(of, _)| got > of) {
                nearest = Some((got, all));
            }
            if got < recall {
                continue;
            }
            while from < to {
                // Few lists are enough more often than many.
                let middle = (from + (to - from) / 4).min(to - 1);
                let (of, price) = try_out(middle, rerank)?;
                if of >= recall {
                    (to, got, cost) = (middle, of, price);
                } else {
                    from = middle + 1;
                }
            }
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, Tuned { probes: to, rerank, recall: got }));
            }
        }
        let found = best.or(nearest).map(|(_, tuned)| tuned);
        Ok(found.unwrap_or(Tuned { probes: lists, rerank: default_rerank(k), recall: 0.0 }))
    }

    /// What searches cost.
    fn price(&self, cost: Cost) -> f64 {
        let block = SUB * self.block.subs as f64 + 10.0;
        let vector = VECTOR + DIMENSION * self.rows.space.dim as f64;
        cost.hops as f64 * block + cost.distances as f64 * vector
    }
}
