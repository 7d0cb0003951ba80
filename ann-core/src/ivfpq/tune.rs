//! Finding how many lists to read and how many candidates to measure for a recall.

use ndarray::{ArrayView2, s};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::index::{Index, Search};
use crate::page::PageStore;
use crate::rows::{Change, Plan, check_rows, slice};
use crate::threads;
use rayon::prelude::*;

use super::IvfPq;
use super::search::default_rerank;

/// Queries that are tried, at most.
const QUERIES: usize = 256;
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
    /// reaches the recall, what comes nearest is kept. `threads` as for searches.
    ///
    /// [`IvfPq::find_effort`] and [`IvfPq::keep_effort`] in one.
    ///
    /// # Errors
    /// [`Error::Parameter`] without queries, for `k` = 0, or a recall outside (0, 1]; those of searches and of the
    /// store.
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
        Search::new(k).check()?;
        if !(recall > 0.0 && recall <= 1.0) {
            return Err(Error::parameter("recall", recall, "above 0, at most 1"));
        }
        if queries.nrows() == 0 {
            return Err(Error::parameter("queries", "0 rows", "at least 1"));
        }
        let pool = threads::pool(threads)?;
        pool.install(|| check_rows(&self.rows.space, &queries))?;
        let step = queries.nrows().div_ceil(QUERIES);
        let queries = queries.slice(s![..;step, ..]);
        match self.lists()? {
            0 => Ok(Tuned { probes: 1, rerank: default_rerank(k), recall: 1.0 }),
            lists => pool.install(|| self.cheapest(queries, k, recall, lists)),
        }
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
        queries: ArrayView2<'_, T>,
        k: usize,
        recall: f64,
        lists: usize,
    ) -> Result<Tuned> {
        let truth: Vec<f32> = (0..queries.nrows())
            .into_par_iter()
            .map(|row| {
                let scratch = &mut *self.scratch();
                let query = slice(queries.row(row));
                self.rows.space.query(&query, row, &mut scratch.row, &mut scratch.probe)?;
                let plan = Plan { matcher: crate::rows::Matcher::All, exact: None };
                let (hits, _) = self.exact(scratch, &plan, k, f32::INFINITY)?;
                Ok(hits.last().map_or(f32::INFINITY, |hit| hit.distance))
            })
            .collect::<Result<_>>()?;
        let mut best: Option<(f64, Tuned)> = None;
        let mut nearest: Option<(f64, Tuned)> = None;
        let reranks = (0..7).map(|step| k.saturating_mul(1 << step).max(k + 6 * step * step));
        for rerank in reranks.take_while(|&rerank| rerank <= self.rows.len().max(2 * k)) {
            // The fewest lists that do, by halving.
            let (mut from, mut to) = (1, lists);
            let (mut got, mut cost) = self.try_out(queries, &truth, k, to, rerank)?;
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
                let (of, price) = self.try_out(queries, &truth, k, middle, rerank)?;
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

    /// The recall of the queries, and what they cost.
    fn try_out<T: Element>(
        &self,
        queries: ArrayView2<'_, T>,
        truth: &[f32],
        k: usize,
        probes: usize,
        rerank: usize,
    ) -> Result<(f64, f64)> {
        let options = Search::new(k).probes(probes).rerank(rerank);
        let sums: Vec<(usize, u64, u64)> = (0..queries.nrows())
            .into_par_iter()
            .map(|row| {
                let (hits, cost) = self.search_counted(&slice(queries.row(row)), &options)?;
                let near = hits.iter().filter(|hit| hit.distance <= truth[row]).count();
                Ok((near, cost.hops, cost.distances))
            })
            .collect::<Result<_>>()?;
        let wanted = k.min(self.rows.len()).max(1) * sums.len();
        let found: usize = sums.iter().map(|sum| sum.0.min(k)).sum();
        let block = SUB * self.block.subs as f64 + 10.0;
        let vector = VECTOR + DIMENSION * self.rows.space.dim as f64;
        let price = sums.iter().map(|sum| sum.1 as f64 * block + sum.2 as f64 * vector).sum();
        Ok((found as f64 / wanted as f64, price))
    }
}
