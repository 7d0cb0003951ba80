//! Several searches by codes on one thread, a hop of each in turn: while one of them is at work, what the others need
//! arrives.
//!
//! A hop takes about as long as its record takes to come from memory. One search alone can ask for the next records
//! only as far as it knows them, and has to take them before the best are known; several keep memory and core busy.

use ndarray::ArrayView2;

use crate::element::Element;
use crate::error::Result;
use crate::index::{Hit, Search};
use crate::page::PageStore;
use crate::rows::{LINKS, Plan, WHOLE, slice};

use super::fused::{self, Fused};
use super::index::{Graph, Topology};
use super::search::{Met, Scratch};

/// Queries that are searched for together, at most: those that are left in the end have fewer others to wait beside.
pub(super) const GROUP: usize = 32;

/// Searches by codes of nodes that take turns: what one list's codes wait for fills the time of another's scoring.
const LANES: usize = 2;

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// What searches for each of these queries find, the same as one by one. `first` is the number of the first, for
    /// messages.
    pub(super) fn search_rows<T: Element>(
        &self,
        queries: ArrayView2<'_, T>,
        first: usize,
        options: &Search<'_>,
        plan: &Plan<'_>,
    ) -> Result<Vec<Vec<Hit>>> {
        if !self.ranks_twice() || plan.exact.is_some() {
            let each = queries.rows().into_iter().enumerate();
            let search =
                |(at, query)| self.search_planned(&slice(query), first + at, options, plan);
            return each.map(|query| search(query).map(|(hits, _)| hits)).collect();
        }
        match self.all_count(&plan.matcher) {
            true => self.take_turns(queries, first, options, plan, &mut |_| Ok(true)),
            false => {
                let admit = &mut |id| self.rows.admits(id, &plan.matcher);
                self.take_turns(queries, first, options, plan, admit)
            }
        }
    }

    fn take_turns<T: Element>(
        &self,
        queries: ArrayView2<'_, T>,
        first: usize,
        options: &Search<'_>,
        plan: &Plan<'_>,
        admit: &mut impl FnMut(u32) -> Result<bool>,
    ) -> Result<Vec<Vec<Hit>>> {
        let (rows, fused) = (&self.rows, self.shape.fused.as_ref());
        let (beam, most) = match fused {
            Some(_) => {
                let record = rows.array(WHOLE)?.size();
                (options.beam.unwrap_or(Fused::beam(record)), Fused::lanes(record))
            }
            None => (1, LANES),
        };
        let fetch = &|node, part| match fused {
            Some(_) => rows.prefetch_part(WHOLE, node, part),
            None if part == 0 => rows.prefetch(LINKS, node),
            None => (),
        };
        let mut found = vec![Vec::new(); queries.nrows()];
        let mut left = 0..queries.nrows();
        // The next query, if there is one.
        let mut begin = |scratch: &mut Scratch, admit: &mut _| -> Result<Option<usize>> {
            let Some(at) = left.next() else { return Ok(None) };
            let query = slice(queries.row(at));
            rows.query(&query, first + at, &mut scratch.row, &mut scratch.probe)?;
            let sizes = (options.list_size(), options.k);
            scratch.epsilon = options.epsilon;
            self.approach(scratch, sizes, f32::NEG_INFINITY, false)?;
            scratch.enter(admit)?;
            scratch.set_out(beam, &mut { fetch });
            Ok(Some(at))
        };
        let mut lanes = Vec::with_capacity(most);
        while lanes.len() < most {
            let mut scratch = self.scratch();
            match begin(&mut scratch, admit)? {
                Some(at) => lanes.push((at, scratch, false)),
                None => break,
            }
        }
        let mut coming = None;
        while !lanes.is_empty() {
            let mut lane = 0;
            while let Some((at, scratch, has_met)) = lanes.get_mut(lane) {
                if !scratch.is_done() {
                    match fused {
                        Some(fused) => {
                            let expand =
                                &mut |step, met: Met<'_>, batch: &mut _, query: (&_, &_)| {
                                    fused::expand(rows, fused, &step, met, batch, query).map(Some)
                                };
                            coming = scratch.hop(beam, coming, &mut { fetch }, expand, admit)?;
                        }
                        None => self.half_a_hop(scratch, has_met, admit)?,
                    }
                    lane += 1;
                    continue;
                }
                if fused.is_none() {
                    self.rerank(scratch)?;
                } else if !self.is_complete(scratch)? {
                    scratch.set_out(beam, &mut { fetch });
                    continue;
                }
                found[*at] = self.hits(self.found(scratch).admitted(), &plan.matcher, options.k)?;
                match begin(scratch, admit)? {
                    Some(next) => *at = next,
                    None => drop(lanes.swap_remove(lane)),
                }
            }
        }
        Ok(found)
    }
}
