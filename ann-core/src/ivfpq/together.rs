//! Queries of a batch that read lists together: a list that several of them are to read comes from memory once.
//!
//! Each query goes by its own rounds and finds what it finds alone. What they read in a round is put in the order of
//! the lists.

use crate::error::Result;
use crate::index::{Cost, Hit};
use crate::kernel::adc::ENTRIES;
use crate::kernel::fastscan::SUB;
use crate::page::PageStore;
use crate::rows::Matcher;

use super::IvfPq;
use super::model::Model;
use super::rank::Turn;
use super::search::{Borrowed, Effort, Scratch};

/// Queries that read together, at most, and bytes of their tables: what they need beside lists stays in the cache.
const GROUP: usize = 256;
const TABLES: usize = 2 << 20;

impl<S: PageStore> IvfPq<S> {
    /// How many queries read together, at most.
    pub(super) fn group(&self) -> usize {
        let table = if self.block.bits == 8 { size_of::<[f32; ENTRIES]>() } else { SUB };
        (TABLES / (table * self.block.subs)).clamp(8, GROUP)
    }

    /// The `k` nearest of each query whose row and probe are there.
    pub(super) fn search_together(
        &self,
        model: &Model,
        scratches: &mut [Borrowed<'_>],
        matcher: &Matcher<'_>,
        effort: Effort,
        k: usize,
    ) -> Result<Vec<Vec<Hit>>> {
        let mut cost = Cost::default();
        // Of all queries: what each keeps of its own is to stay in the cache.
        let mut entries = Vec::new();
        for scratch in &mut *scratches {
            let Scratch { row, prepared, collected, .. } = &mut **scratch;
            self.prepare(model, row, prepared, &mut entries);
            collected.begin(model, &prepared.floats, effort, &mut entries);
        }
        let mut going: Vec<usize> = (0..scratches.len()).collect();
        let mut turns: Vec<(usize, Turn)> = Vec::new();
        loop {
            turns.clear();
            going.retain(|&query| {
                let collected = &mut scratches[query].collected;
                let goes_on = collected.turn(model, effort);
                turns.extend(collected.turns.iter().map(|&turn| (query, turn)));
                goes_on
            });
            if turns.is_empty() {
                break;
            }
            turns.sort_unstable_by_key(|&(query, turn)| (turn.place, query));
            for at in 0..turns.len() {
                let (query, turn) = turns[at];
                if let Some((_, next)) = turns.get(at + 1)
                    && next.place != turn.place
                {
                    self.prefetch_list(model.lists[next.place as usize])?;
                }
                let is_first = at == 0 || turns[at - 1].1.place != turn.place;
                let Scratch { prepared, collected, .. } = &mut *scratches[query];
                self.read(model, turn, prepared, collected, matcher, effort, is_first, &mut cost)?;
            }
            going.iter().for_each(|&query| scratches[query].collected.settle(effort));
        }
        scratches.iter_mut().for_each(|scratch| scratch.collected.finish(effort));
        let mut hits = Vec::with_capacity(scratches.len());
        for at in 0..scratches.len() {
            if at == 0 {
                self.ask(&scratches[0].collected.candidates);
            }
            if let Some(next) = scratches.get(at + 1) {
                self.ask(&next.collected.candidates);
            }
            self.measure(&mut scratches[at], k, &mut cost)?;
            hits.push(self.hits(&scratches[at].found)?);
        }
        Ok(hits)
    }
}
