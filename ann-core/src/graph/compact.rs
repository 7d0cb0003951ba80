//! Codes by node: a dense array of them beside the link lists, in which a search finds its way.
//!
//! Expanding a node reads its list and, of each neighbour not met before, the code: a small part of what its vector
//! takes, and one access. Estimates sort the pool; of what is in it in the end, those whose vectors could still be
//! among the results, by the bound that estimates nearly always keep (RaBitQ, arXiv 2405.12497), are read for their
//! distances.
//!
//! Codes are relative to one centre, the mean of the vectors that were there when codes came into use: until a graph
//! has [`LOAD_ROWS`] of them it is searched by distances. Where no vectors are kept, codes stand in for them from the
//! first on, also in the choice of links, and results carry estimates.

use rayon::prelude::*;

use crate::error::Result;
use crate::page::PageStore;
use crate::rows::{Batch, CODES, Change, LINKS, State, UPPER, Workshop};

use super::fused::BLOCK;
use super::index::{Graph, Topology};
use super::links::{self, target};
use super::load::LOAD_ROWS;
use super::search::{Met, Scratch, Step};

/// Codes that one writing step makes.
const STEP: u32 = 4096;
/// Nodes for each in the sample of entry points, and nodes in it at most; each costs a search an estimate.
const SHARE: usize = 256;
const MOST: usize = 256;
/// Starting points that a search takes from the sample.
const STARTS: usize = 4;
/// Candidates whose vectors are read together.
const GROUP: usize = 16;

/// Codes on their way into use: the next slot, and the pieces of their centre.
pub(super) struct Coding {
    next: u32,
    pieces: u32,
}

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// Whether searches start from a sample that is scored by codes of nodes: there are such, and no levels.
    pub(super) fn has_sample(&self) -> bool {
        self.rows.meta.by_node == 1 && self.shape.widths[1] == 0
    }

    /// Whether codes, of vectors that are kept, should come into use.
    pub(super) fn codes_are_due(&self) -> bool {
        let meta = &self.rows.meta;
        let waits = meta.by_node == 1 && meta.has_vectors() && meta.coded.get() == 0;
        waits && self.rows.len() >= LOAD_ROWS
    }

    /// Chooses a centre from the vectors in the graph.
    pub(super) fn begin_coding(&mut self) -> Result<Coding> {
        let live = self.live()?;
        let centre = self.rows.mean_of(&live)?;
        let slots = u64::from(self.rows.slots());
        self.rows.reserve(CODES, slots)?;
        Ok(Coding { next: 0, pieces: self.rows.put_centre(&centre)? })
    }

    /// Makes codes for some slots; true once all have theirs, which are in use then.
    pub(super) fn code_some(&mut self, coding: &mut Coding) -> Result<bool> {
        let end = self.rows.slots().min(coding.next.saturating_add(STEP));
        let rows = &self.rows;
        let of = |(row, shop): &mut (Vec<u8>, Workshop), id: u32| {
            let mut code = Vec::new();
            if !rows.node(id)?.is(State::Free) {
                rows.row(id, row)?;
                rows.code(row, shop, &mut code)?;
            }
            Ok(code)
        };
        let ids = (coding.next..end).into_par_iter();
        let codes: Result<Vec<Vec<u8>>> = ids.map_init(Default::default, of).collect();
        for (id, code) in (coding.next..end).zip(codes?) {
            self.put_record(id, &code)?;
        }
        coding.next = end;
        if end < self.rows.slots() {
            return Ok(false);
        }
        self.rows.use_codes(coding.pieces)?;
        Ok(true)
    }

    /// Writes the code of a row that nothing refers to yet, if codes are in use.
    pub(super) fn put_code(&mut self, id: u32, row: &[u8], shop: &mut Workshop) -> Result<()> {
        if !self.rows.goes_by_codes() {
            return Ok(());
        }
        self.rows.reserve(CODES, u64::from(id) + 1)?;
        let mut code = Vec::new();
        self.rows.code(row, shop, &mut code)?;
        self.put_record(id, &code)
    }

    fn put_record(&mut self, id: u32, code: &[u8]) -> Result<()> {
        let mut change = Change::default();
        change.put_record(self.rows.array(CODES)?, id, code)?;
        self.rows.commit(&mut change).map(|_| ())
    }

    fn live(&self) -> Result<Vec<u32>> {
        let mut live = Vec::with_capacity(self.rows.len());
        for id in 0..self.rows.slots() {
            if self.rows.node(id)?.is(State::Live) {
                live.push(id);
            }
        }
        Ok(live)
    }

    /// How many lists the sample should have.
    pub(super) fn wanted_sample(&self) -> usize {
        match self.rows.goes_by_codes() || !self.rows.has_vectors() {
            true => self.rows.len().div_ceil(SHARE).clamp(BLOCK, MOST) / self.width(0),
            false => 0,
        }
    }

    /// Chooses a sample of the nodes, evenly spaced: slots near one another hold near vectors.
    pub(super) fn choose_sample(&mut self) -> Result<()> {
        let (width, lists) = (self.width(0), self.wanted_sample());
        let (live, count) = (self.live()?, lists * width);
        if lists == 0 || live.len() < count {
            return Ok(());
        }
        let sample: Vec<u32> = (0..count).map(|at| live[at * live.len() / count]).collect();
        self.rows.reserve(UPPER, lists as u64)?;
        for (record, list) in (0..).zip(sample.chunks(width)) {
            let mut change = Change::default();
            change.put_record(self.rows.array(UPPER)?, record, &links::encode(list, width))?;
            self.rows.commit(&mut change)?;
        }
        self.rows.commit_meta(Change::default(), |meta| {
            meta.upper = (lists as u32).into();
            true
        })?;
        Ok(())
    }

    /// Puts the entry point `id` and the nearest of the sample into the batch, scored.
    pub(super) fn enter_sample(&self, scratch: &mut Scratch, id: u32) -> Result<()> {
        let rows = &self.rows;
        let Scratch { probe, batch, met, links: list, .. } = scratch;
        batch.ids.clear();
        batch.ids.push(id);
        for record in 0..rows.meta.upper.get() {
            links::read(rows, UPPER, record, list)?;
            batch.ids.extend(list.iter().map(|&link| target(link)));
        }
        match rows.goes_by_codes() {
            true => batch.estimate(rows, probe)?,
            false => batch.score(rows, probe)?,
        }
        met.clear();
        let scored = batch.distances.iter().copied().zip(batch.ids.iter().copied());
        for (distance, id) in scored.skip(1) {
            let at = met.partition_point(|near| near.0 <= distance);
            if at < STARTS {
                met.truncate(STARTS - 1);
                met.insert(at, (distance, id));
            }
        }
        batch.ids.truncate(1);
        batch.distances.truncate(1);
        batch.ids.extend(met.iter().map(|near| near.1));
        batch.distances.extend(met.iter().map(|near| near.0));
        Ok(())
    }

    /// Continues a search by codes with what is in the pool.
    pub(super) fn best_first_by_codes(
        &self,
        scratch: &mut Scratch,
        admit: &mut impl FnMut(u32) -> Result<bool>,
    ) -> Result<()> {
        scratch.set_out(1, &mut |node, part| {
            if part == 0 {
                self.rows.prefetch(LINKS, node);
            }
        });
        let mut has_met = false;
        while !scratch.is_done() {
            self.half_a_hop(scratch, &mut has_met, admit)?;
        }
        Ok(())
    }

    /// Half a hop of a search, so that others can have their turn: what a node leads to, whose codes are asked for; or,
    /// if it `has_met` that, what these codes say.
    pub(super) fn half_a_hop(
        &self,
        scratch: &mut Scratch,
        has_met: &mut bool,
        admit: &mut impl FnMut(u32) -> Result<bool>,
    ) -> Result<()> {
        let rows = &self.rows;
        let in_memory = rows.store.contiguous().is_some();
        *has_met = !*has_met;
        if *has_met {
            return scratch.meet(|node, visited, batch| {
                links::meet(rows, (LINKS, node), visited, batch)?;
                if in_memory {
                    batch.ids.iter().for_each(|&id| rows.prefetch(CODES, id));
                }
                Ok(())
            });
        }
        // A page takes so long to come that it is asked for once its turn is likely; cache lines, when it is there.
        let expand = &mut |step: Step, _: Met<'_>, batch: &mut Batch, (probe, _): (&_, &_)| {
            if let (Some(next), false) = (step.next, in_memory) {
                rows.prefetch(LINKS, next);
            }
            batch.estimate(rows, probe).map(|()| None)
        };
        if let (Some(next), true) =
            (scratch.hop(1, None, &mut |_, _| (), expand, admit)?, in_memory)
        {
            rows.prefetch(LINKS, next);
        }
        Ok(())
    }

    /// Puts what the pool has, by its distances, into the scratch's second one, but for what could not stay there.
    /// Returns the number of vectors read.
    pub(super) fn rerank(&self, scratch: &mut Scratch) -> Result<u64> {
        let Scratch { pool, found, batch, probe, .. } = scratch;
        let mut candidates = pool.admitted();
        let mut read = 0;
        loop {
            batch.ids.clear();
            let bound = found.bound();
            while batch.ids.len() < GROUP
                && let Some((estimate, id)) = candidates.next()
            {
                let is_out = bound < f32::INFINITY
                    && estimate - self.rows.slack(CODES, &probe.asked, id)? >= bound;
                if !is_out {
                    batch.ids.push(id);
                }
            }
            if batch.ids.is_empty() {
                return Ok(read);
            }
            read += batch.ids.len() as u64;
            batch.score_below(&self.rows, probe, bound)?;
            found.take_in(&batch.ids, &batch.distances);
        }
    }

    /// The codes by node are those of their vectors, and entry points are nodes of the graph.
    pub(super) fn verify_by_node(&self, in_graph: impl Fn(u32) -> Result<bool>) -> Result<()> {
        let rows = &self.rows;
        let (mut row, mut right, mut shop) = (Vec::new(), Vec::new(), Workshop::default());
        for id in 0..rows.slots() {
            if !rows.goes_by_codes() || !in_graph(id)? {
                continue;
            }
            rows.row(id, &mut row)?;
            rows.code(&row, &mut shop, &mut right)?;
            if !rows.record(CODES, id, |code| code == right)? {
                return Err(rows.corrupt_node(id, "its code is not that of its vector".into()));
            }
        }
        let mut list = Vec::new();
        let lists = if self.has_sample() { rows.meta.upper.get() } else { 0 };
        for record in 0..lists {
            links::read(rows, UPPER, record, &mut list)?;
            for &id in &list {
                if !in_graph(id)? {
                    return Err(rows.corrupt_node(id, "it is an entry point".into()));
                }
            }
        }
        Ok(())
    }
}
