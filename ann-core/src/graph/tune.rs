//! Finding the size of the candidate pool for a recall.

use ndarray::ArrayView2;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::index::{Index, MAX_EF, Search};
use crate::page::PageStore;
use crate::rows::Change;
use crate::threads;
use crate::tune::Sample;

use super::index::{Graph, Topology};

/// What [`Graph::tune`] has found.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct TunedEf {
    /// The size of the candidate pool that searches have from now on.
    pub ef: usize,
    /// The number of hits that this was found for.
    pub k: usize,
    /// The recall of the sample with it.
    pub recall: f64,
}

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// Finds the smallest `ef`, to within a thirty-second, with which the `k` nearest of the queries (of 256 of them
    /// at most) are found with a recall, and has the index keep it: searches for up to `k` use it unless they are told
    /// otherwise, and those for more than `k` at least that. If nothing reaches the recall before it costs as much as
    /// measuring all vectors, what comes nearest is kept. `threads` as for searches.
    ///
    /// [`Graph::find_ef`] and [`Graph::keep_ef`] in one.
    ///
    /// # Errors
    /// [`Error::Parameter`] without queries, for an empty index, `k` = 0, or a recall outside (0, 1];
    /// [`Error::NoVectors`] if the index keeps none: there is no truth then; those of searches and of the store.
    pub fn tune<T: Element>(
        &mut self,
        queries: ArrayView2<'_, T>,
        k: usize,
        recall: f64,
        threads: usize,
    ) -> Result<TunedEf> {
        let tuned = self.find_ef(queries, k, recall, threads)?;
        self.keep_ef(tuned)?;
        Ok(tuned)
    }

    /// The first half of [`Graph::tune`], which changes nothing. O(queries n dim).
    ///
    /// # Errors
    /// As [`Graph::tune`].
    pub fn find_ef<T: Element>(
        &self,
        queries: ArrayView2<'_, T>,
        k: usize,
        recall: f64,
        threads: usize,
    ) -> Result<TunedEf> {
        if !self.rows.has_vectors() {
            return Err(Error::NoVectors);
        }
        threads::pool(threads)?.install(|| {
            let sample = Sample::new(&self.rows, queries, k, recall)?;
            self.least_ef(&sample, k, recall)
        })
    }

    /// Has searches do what was found, unless they are told otherwise.
    ///
    /// # Errors
    /// Those of the store.
    pub fn keep_ef(&mut self, tuned: TunedEf) -> Result<()> {
        self.rows.commit_meta(Change::default(), |meta| {
            meta.probes = (tuned.k.min(MAX_EF) as u32).into();
            meta.rerank = (tuned.ef as u32).into();
            true
        })?;
        Ok(())
    }

    /// The `ef` of a search for `k` that is not told it: what was tuned, or the larger of 64 and `2 k`.
    pub fn default_ef(&self, k: usize) -> usize {
        let meta = &self.rows.meta;
        let twice = k.saturating_mul(2);
        let ef = match (meta.rerank.get() as usize, meta.probes.get() as usize) {
            (0, _) => Search::new(k).list_size(),
            (ef, of) if k <= of => ef.max(k),
            (ef, _) => ef.max(twice),
        };
        ef.min(MAX_EF)
    }

    /// By doubling, then by halving what lies between what did not do and what does.
    fn least_ef<T: Element>(
        &self,
        sample: &Sample<'_, T>,
        k: usize,
        recall: f64,
    ) -> Result<TunedEf> {
        let most = self.rows.len().max(k).min(MAX_EF);
        let try_out = |ef| {
            let options = Search::new(k).ef(ef);
            sample.try_out(|query| self.search_counted(query, &options))
        };
        let (mut below, mut ef) = (0, k.min(most));
        let mut best = TunedEf { ef, k, recall: -1.0 };
        loop {
            let trial = try_out(ef)?;
            if trial.recall > best.recall {
                best = TunedEf { ef, k, recall: trial.recall };
            }
            if trial.recall >= recall {
                break;
            }
            let work = trial.cost.hops + trial.cost.distances;
            if ef == most || work >= sample.scan(self.rows.len()) {
                return Ok(best);
            }
            (below, ef) = (ef, ef.saturating_mul(2).min(most));
        }
        while below > 0 && best.ef - below > 1 + best.ef / 32 {
            let ef = below + (best.ef - below) / 2;
            let trial = try_out(ef)?;
            match trial.recall >= recall {
                true => best = TunedEf { ef, k, recall: trial.recall },
                false => below = ef,
            }
        }
        Ok(best)
    }
}
