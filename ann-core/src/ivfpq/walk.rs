//! Searches that can be continued: some lists at a time, and of their entries the nearest by code at a time.

use std::collections::VecDeque;

use hashbrown::HashSet;

use crate::error::Result;
use crate::index::{Cost, Hit};
use crate::page::PageStore;
use crate::rows::{Matcher, Probe, nearest};

use super::IvfPq;
use super::model::key;
use super::rank::{Ranking, Turn};
use super::scan::Prepared;
use super::search::default_probes;

/// Where such a search is.
#[derive(Default)]
pub(crate) struct Walk {
    pub row: Vec<u8>,
    pub probe: Probe,
    prepared: Prepared,
    /// The lists that are still to be read, nearest last.
    lists: Vec<Turn>,
    /// Entries that were scored and not returned, by code.
    waiting: Vec<u64>,
    /// Entries that are measured at a time.
    pool: usize,
    /// Lists that are read at a time.
    probes: usize,
    /// Slots that were met, where they may be met twice.
    met: HashSet<u32>,
    /// Without lists: whether all was returned.
    done: bool,
}

impl<S: PageStore> IvfPq<S> {
    /// Begins with a query whose row and probe are there.
    pub(super) fn begin_walk(&self, walk: &mut Walk, pool: usize) -> Result<()> {
        walk.pool = pool;
        let Some(model) = self.model()? else {
            return Ok(());
        };
        walk.probes = match self.rows.meta.probes.get() {
            0 => default_probes(model.len()),
            tuned => tuned as usize,
        };
        self.prepare(model, &walk.row, &mut walk.prepared);
        walk.lists = Ranking::default().all(model, &walk.prepared.floats);
        walk.lists.reverse();
        Ok(())
    }

    /// Appends the next pool's hits to `ready`. False if there are no more.
    pub(super) fn walk_on(
        &self,
        walk: &mut Walk,
        matcher: &Matcher<'_>,
        ready: &mut VecDeque<Hit>,
    ) -> Result<bool> {
        let Some(model) = self.model()? else {
            if walk.done {
                return Ok(false);
            }
            walk.done = true;
            let ids = self.rows.visible(|_| true)?;
            let found =
                nearest(&self.rows, &walk.probe, ids.into_iter(), usize::MAX, f32::INFINITY)?;
            for (distance, id) in found {
                let key = self.rows.node(id)?.key.get();
                if matcher.accepts(id, key) {
                    ready.push_back(Hit { key, distance });
                }
            }
            return Ok(true);
        };
        if walk.lists.is_empty() && walk.waiting.is_empty() {
            return Ok(false);
        }
        let mut cost = Cost::default();
        for _ in 0..walk.probes.max(1) {
            let Some(Turn { base, place, .. }) = walk.lists.pop() else { break };
            let list = model.lists[place as usize];
            let Walk { prepared, waiting, .. } = &mut *walk;
            let mut bound = f32::INFINITY;
            let bounded = (&mut bound, true);
            self.scan(list, base, prepared, &Matcher::All, bounded, &mut cost, |d, slot| {
                waiting.push(key(d, slot));
                f32::INFINITY
            })?;
        }
        // Later pools read fewer lists: what they bring is farther.
        walk.probes = (walk.probes / 2).max(1);
        let count = walk.pool.min(walk.waiting.len());
        if count == 0 {
            return Ok(true);
        }
        if count < walk.waiting.len() {
            walk.waiting.select_nth_unstable(count - 1);
        }
        let mut slots: Vec<u32> =
            walk.waiting.drain(..count).map(|waiting| waiting as u32).collect();
        if self.rows.meta.spill == 1 {
            slots.retain(|&slot| walk.met.insert(slot));
        }
        let found = nearest(&self.rows, &walk.probe, slots.into_iter(), usize::MAX, f32::INFINITY)?;
        for (distance, slot) in found {
            let node = self.rows.node(slot)?;
            let key = node.key.get();
            if node.is_visible() && matcher.accepts(slot, key) {
                ready.push_back(Hit { key, distance });
            }
        }
        Ok(true)
    }
}
