//! The recall of searches for a sample of queries, and what they cost: what indexes tune themselves by.
//!
//! The truth is that of exact search. Costs are counts of work, not times: tuning finds the same each time.

use ndarray::{ArrayView2, s};
use rayon::prelude::*;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::index::{Cost, Hit, Search};
use crate::page::PageStore;
use crate::rows::{Probe, Rows, check_rows, nearest, slice};

/// Queries that are tried, at most.
const QUERIES: usize = 256;

/// Queries, and how far their `k` nearest are.
pub(crate) struct Sample<'a, T> {
    queries: ArrayView2<'a, T>,
    k: usize,
    /// The distance of each query to the last of its nearest.
    truth: Vec<f32>,
    /// The nearest of all queries, in number.
    wanted: usize,
}

/// What searches for all queries of a sample have found, and what that took.
#[derive(Clone, Copy)]
pub(crate) struct Trial {
    pub recall: f64,
    pub cost: Cost,
}

impl<'a, T: Element> Sample<'a, T> {
    /// Checks what tuning is asked for, and searches for some of the queries exactly, on the current thread pool.
    pub(crate) fn new<S: PageStore>(
        rows: &Rows<S>,
        queries: ArrayView2<'a, T>,
        k: usize,
        recall: f64,
    ) -> Result<Sample<'a, T>> {
        Search::new(k).check()?;
        if !(recall > 0.0 && recall <= 1.0) {
            return Err(Error::parameter("recall", recall, "above 0, at most 1"));
        }
        if queries.nrows() == 0 {
            return Err(Error::parameter("queries", "0 rows", "at least 1"));
        }
        check_rows(&rows.space, &queries)?;
        if rows.len() == 0 {
            return Err(Error::parameter("len", 0, "an index that has vectors"));
        }
        let step = queries.nrows().div_ceil(QUERIES);
        let queries = queries.slice_move(s![..;step, ..]);
        let ids = rows.visible(|_| true)?;
        let farthest = |(bytes, probe): &mut (Vec<u8>, Probe), row: usize| {
            rows.query(&slice(queries.row(row)), row, bytes, probe)?;
            let near = nearest(rows, probe, ids.iter().copied(), k, f32::INFINITY)?;
            Ok(near.last().map_or(f32::INFINITY, |&(distance, _)| distance))
        };
        let each = (0..queries.nrows()).into_par_iter();
        let truth: Result<_> = each.map_init(Default::default, farthest).collect();
        Ok(Sample { queries, k, truth: truth?, wanted: k.min(ids.len()) * queries.nrows() })
    }

    /// Searches for each of the queries, on the current thread pool. A hit counts if it is as near as the nearest are.
    pub(crate) fn try_out(
        &self,
        search: impl Fn(&[T]) -> Result<(Vec<Hit>, Cost)> + Sync,
    ) -> Result<Trial> {
        let each = (0..self.queries.nrows()).into_par_iter().map(|row| {
            let (hits, cost) = search(&slice(self.queries.row(row)))?;
            let near = hits.iter().filter(|hit| hit.distance <= self.truth[row]).count();
            Ok((near.min(self.k), cost))
        });
        let all: Vec<(usize, Cost)> = each.collect::<Result<_>>()?;
        let mut cost = Cost::default();
        for (_, of) in &all {
            cost.hops += of.hops;
            cost.distances += of.distances;
        }
        let found: usize = all.iter().map(|of| of.0).sum();
        Ok(Trial { recall: found as f64 / self.wanted.max(1) as f64, cost })
    }

    /// Distances that exact search for all queries computes.
    pub(crate) fn scan(&self, len: usize) -> u64 {
        self.queries.nrows() as u64 * len as u64
    }
}
