//! Searches that can be continued: pool after pool, and of what these have found as much at a time as is asked for.

use std::collections::VecDeque;

use crate::error::Result;
use crate::index::Hit;
use crate::page::PageStore;
use crate::rows::Matcher;

use super::search::Scratch;
use super::{Graph, Topology};

/// Where such a search is.
#[derive(Default)]
pub(crate) struct Walk {
    pub scratch: Scratch,
    /// Whether the first pool has been searched.
    started: bool,
    /// What nothing that was left out seems nearer than, nearest first: it has still to be looked up.
    settled: VecDeque<(f32, u32)>,
}

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// The hits that come next, of up to `count` nodes; `None` if there is no more. A search that `ends` with its first
    /// pool leaves out nothing.
    pub(super) fn walk_on(
        &self,
        walk: &mut Walk,
        matcher: &Matcher<'_>,
        count: usize,
        ends: bool,
    ) -> Result<Option<Vec<Hit>>> {
        if walk.settled.is_empty() && !self.next_pool(walk, matcher, ends)? {
            return Ok(None);
        }
        let count = count.min(walk.settled.len());
        let hits = self.hits(walk.settled.range(..count).copied(), matcher, usize::MAX)?;
        walk.settled.drain(..count);
        Ok(Some(hits))
    }

    /// Runs the next pool, and settles what of all that has been found can come out. False if there is no more.
    fn next_pool(&self, walk: &mut Walk, matcher: &Matcher<'_>, ends: bool) -> Result<bool> {
        let Walk { scratch, started, settled } = walk;
        if !*started {
            let ef = scratch.pool.size();
            self.search_pool(scratch, matcher, (ef, ef), f32::NEG_INFINITY, !ends)?;
            *started = true;
        } else if ends {
            return Ok(false);
        } else if scratch.refill() {
            self.go_on(scratch, &mut |id| self.rows.admits(id, matcher))?;
        } else if scratch.found.len() == 0 {
            // What was left out may all have been found meanwhile.
            return Ok(false);
        }
        if !self.ranks_twice() {
            settled.extend(scratch.pool.admitted());
            return Ok(true);
        }
        let bound = scratch.nearest_left_out().unwrap_or(f32::INFINITY);
        let nearer = scratch.found.admitted().take_while(|&(distance, _)| distance <= bound);
        let count = nearer.count();
        settled.extend(scratch.found.take_nearest(count));
        Ok(true)
    }
}
