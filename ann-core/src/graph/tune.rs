//! Finding the size of the candidate pool for a recall, and what of it is expanded.

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
    /// What of it they expand, as [`Search::epsilon`] has it; all without.
    pub epsilon: Option<f32>,
    /// The number of hits that this was found for.
    pub k: usize,
    /// The recall of the sample with it.
    pub recall: f64,
}

/// Pools that are tried with an epsilon, in multiples of the smallest that does without.
const LARGER: [usize; 3] = [2, 4, 8];
/// The first epsilon tried; what is found may be half of it.
const FIRST: f32 = 1.0 / 64.0;
/// An epsilon is found once it is less than so many times one that does not do.
const NEAR: f32 = 1.02;
/// A larger pool has to save at least one part in so many of the work.
const GAIN: u64 = 32;

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// Finds the smallest `ef`, to within a thirty-second, with which the `k` nearest of the queries (of 256 of them
    /// at most) are found with a recall; or, if that takes fewer hops and distances, a larger one and the smallest
    /// `epsilon`. The index keeps it: searches for up to `k` use it unless they are told otherwise, and those for more
    /// than `k` at least that. If nothing reaches the recall before it costs as much as measuring all vectors, what
    /// comes nearest is kept. `threads` as for searches.
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
            let (plain, work) = self.least_ef(&sample, k, recall)?;
            match plain.recall >= recall {
                true => self.least_epsilon(&sample, plain, work, recall),
                false => Ok(plain),
            }
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
            meta.error = tuned.epsilon.unwrap_or(0.0).to_bits().into();
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

    /// The `epsilon` of a search that is told neither that nor an `ef`: what was tuned.
    pub fn default_epsilon(&self) -> Option<f32> {
        self.rows.meta.epsilon()
    }

    /// By doubling, then by halving what lies between what did not do and what does. Also gives the work of it.
    fn least_ef<T: Element>(
        &self,
        sample: &Sample<'_, T>,
        k: usize,
        recall: f64,
    ) -> Result<(TunedEf, u64)> {
        let most = self.rows.len().max(k).min(MAX_EF);
        let try_out = |ef| self.try_out(sample, TunedEf { ef, epsilon: None, k, recall: 0.0 });
        let (mut below, mut ef) = (0, k.min(most));
        let mut best = try_out(ef)?;
        while best.0.recall < recall {
            if ef == most || best.1 >= sample.scan(self.rows.len()) {
                return Ok(best);
            }
            (below, ef) = (ef, ef.saturating_mul(2).min(most));
            let trial = try_out(ef)?;
            best = if trial.0.recall > best.0.recall { trial } else { (best.0, trial.1) };
        }
        while below > 0 && best.0.ef - below > 1 + best.0.ef / 32 {
            let ef = below + (best.0.ef - below) / 2;
            let trial = try_out(ef)?;
            match trial.0.recall >= recall {
                true => best = trial,
                false => below = ef,
            }
        }
        Ok(best)
    }

    /// The same for an `epsilon` with larger pools than the smallest that does, whose work is given too: by factors, as
    /// long as that costs less.
    fn least_epsilon<T: Element>(
        &self,
        sample: &Sample<'_, T>,
        plain: TunedEf,
        work: u64,
        recall: f64,
    ) -> Result<TunedEf> {
        let (mut best, mut least) = (plain, work - work / GAIN);
        for ef in LARGER.map(|times| plain.ef.saturating_mul(times).min(MAX_EF)) {
            let try_out =
                |epsilon| self.try_out(sample, TunedEf { ef, epsilon: Some(epsilon), ..plain });
            let (mut below, mut epsilon) = (FIRST / 2.0, FIRST);
            let mut found = try_out(epsilon)?;
            while found.0.recall < recall && found.1 < least {
                (below, epsilon) = (epsilon, 2.0 * epsilon);
                found = try_out(epsilon)?;
            }
            if found.0.recall < recall {
                continue;
            }
            while epsilon / below > NEAR {
                let between = (below * epsilon).sqrt();
                let trial = try_out(between)?;
                match trial.0.recall >= recall {
                    true => (found, epsilon) = (trial, between),
                    false => below = between,
                }
            }
            if found.1 < least {
                (best, least) = found;
            }
        }
        Ok(best)
    }

    /// The recall of the sample with what may be tuned, and the work of that.
    fn try_out<T: Element>(
        &self,
        sample: &Sample<'_, T>,
        tuned: TunedEf,
    ) -> Result<(TunedEf, u64)> {
        let options = Search { epsilon: tuned.epsilon, ..Search::new(tuned.k).ef(tuned.ef) };
        let trial = sample.try_out(|query| self.search_counted(query, &options))?;
        let work = trial.cost.hops + trial.cost.distances;
        Ok((TunedEf { recall: trial.recall, ..tuned }, work))
    }
}
