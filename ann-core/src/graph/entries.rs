//! Entry points of a graph without levels: a sample of its nodes, with their codes around the one in the middle.
//!
//! The sample's lists lie one after the other in an array of their own, so that a search finds its starting points
//! by scanning a few kilobytes, and reads no node but the middle one.

use crate::error::Result;
use crate::page::PageStore;
use crate::rows::{Change, State, UPPER, UPPER_CODES, UPPER_WHOLE, VECTORS};

use super::fused::{BLOCK, Encoder};
use super::index::{Graph, Topology};
use super::links::{self, target};
use super::search::Scratch;

/// Nodes in the sample, at most.
const MOST: usize = 1024;
/// Starting points that a search takes from the sample.
const STARTS: usize = 4;

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// How many lists the sample should have: twice the root of the graph's size is in proportion to what a search
    /// costs, and comes near to all but the smallest clusters.
    fn wanted_entries(&self) -> usize {
        let nodes = (2.0 * (self.rows.len() as f64).sqrt()).ceil() as usize;
        let nodes = nodes.clamp(BLOCK, MOST);
        nodes / self.width(0)
    }

    /// Whether the graph has outgrown its sample.
    pub(super) fn entries_are_due(&self) -> bool {
        let lists = self.rows.meta.upper.get() as usize;
        if self.has_sample() {
            return self.wanted_sample() > 2 * lists;
        }
        self.shape.fused.is_some() && self.wanted_entries() > 2 * lists
    }

    /// Takes the sample out of use: searches start from the entry point.
    fn drop_entries(&mut self) -> Result<()> {
        if (self.shape.fused.is_some() || self.has_sample()) && self.rows.meta.upper.get() > 0 {
            self.rows.commit_meta(Change::default(), |meta| {
                meta.upper = 0.into();
                true
            })?;
        }
        Ok(())
    }

    /// Chooses a sample and its middle.
    pub(super) fn choose_entries(&mut self) -> Result<()> {
        self.drop_entries()?;
        if self.has_sample() {
            return self.choose_sample();
        }
        let Some(fused) = self.shape.fused.as_ref() else { return Ok(()) };
        let (width, count) = (self.width(0), self.wanted_entries() * self.width(0));
        // Slots near one another hold near vectors: evenly spaced ones are spread evenly.
        let mut live = Vec::with_capacity(self.rows.len());
        for id in 0..self.rows.slots() {
            if self.rows.node(id)?.is(State::Live) {
                live.push(id);
            }
        }
        if live.len() < count {
            return Ok(());
        }
        let sample: Vec<u32> = (0..count).map(|at| live[at * live.len() / count]).collect();
        let (mut row, mut floats) = (Vec::new(), Vec::new());
        let mut mean = vec![0f32; self.rows.space.dim];
        for &id in &sample {
            self.rows.row(id, &mut row)?;
            self.rows.space.floats(&row, &mut floats);
            let share = 1.0 / sample.len() as f32;
            mean.iter_mut().zip(&floats).for_each(|(mean, value)| *mean += value * share);
        }
        let mut middle = (f32::INFINITY, self.rows.meta.entry.get());
        for &id in &sample {
            self.rows.row(id, &mut row)?;
            self.rows.space.floats(&row, &mut floats);
            let squares = mean.iter().zip(&floats).map(|(mean, value)| (mean - value).powi(2));
            let distance = squares.sum::<f32>();
            if distance < middle.0 {
                middle = (distance, id);
            }
        }
        let middle = middle.1;
        let mut lists = Vec::new();
        let mut encoder = Encoder::default();
        for list in sample.chunks_exact(width) {
            let codes = fused.encode(&self.rows, middle, list, None, &mut encoder)?;
            lists.push((links::encode(list, width), codes));
        }
        self.rows.reserve(UPPER, lists.len() as u64)?;
        for (record, (list, codes)) in (0..).zip(&lists) {
            let mut change = Change::default();
            change.put_record(self.rows.array(UPPER)?, record, list)?;
            change.put_record(self.rows.array(UPPER_CODES)?, record, codes)?;
            self.rows.commit(&mut change)?;
        }
        self.rows.commit_meta(Change::default(), |meta| {
            meta.entry = middle.into();
            meta.entry_level = 0.into();
            meta.upper = (lists.len() as u32).into();
            true
        })?;
        Ok(())
    }

    /// Puts the entry point `id` into the batch, and the nearest of the sample, with estimates of their distances.
    pub(super) fn enter_fused(&self, scratch: &mut Scratch, id: u32) -> Result<()> {
        let Some(fused) = self.shape.fused.as_ref() else { return Ok(()) };
        let rows = &self.rows;
        let Scratch { probe, batch, met, table, .. } = scratch;
        let own = rows.space.score_one(&rows.store, rows.array(VECTORS)?, probe, id)?;
        met.clear();
        let mut bound = own;
        for record in 0..rows.meta.upper.get() {
            rows.record(UPPER_WHOLE, record, |list| {
                let list = list.split_at(4 * self.width(0));
                fused.below(list, (own, bound), table, |link, distance| {
                    let at = met.partition_point(|near| near.0 <= distance);
                    if at < STARTS && target(link) < rows.ids() {
                        met.truncate(STARTS - 1);
                        met.insert(at, (distance, target(link)));
                        if met.len() == STARTS {
                            bound = met[STARTS - 1].0;
                        }
                    }
                    Ok(())
                })
            })??;
        }
        batch.ids.clear();
        batch.distances.clear();
        batch.ids.push(id);
        batch.distances.push(own);
        batch.ids.extend(met.iter().map(|near| near.1));
        batch.distances.extend(met.iter().map(|near| near.0));
        Ok(())
    }
}
