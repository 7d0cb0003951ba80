//! Scoring a list: its blocks, 32 codes at a time.

use crate::error::Result;
use crate::index::Cost;
use crate::kernel::adc;
use crate::kernel::fastscan::{self, BLOCK, FastScan, Tables};
use crate::page::PageStore;
use crate::rows::{Matcher, NONE};

use super::model::Model;
use super::{BLOCKS, IvfPq};

/// How many blocks before its turn a block is asked for.
const AHEAD: u32 = 2;

/// A query and its tables.
#[derive(Default)]
pub(crate) struct Prepared {
    pub floats: Vec<f32>,
    /// As codes are rotated.
    pub turned: Vec<f32>,
    pub bytes: Vec<[f32; adc::ENTRIES]>,
    pub tables: Tables,
    /// What a list's distance counts, and what is added to that.
    pub lean: f32,
    pub constant: f32,
    scan: FastScan,
}

impl<S: PageStore> IvfPq<S> {
    /// Fills in the tables of the query whose row and probe are there.
    /// `entries` is what they are made in.
    pub(super) fn prepare(
        &self,
        model: &Model,
        row: &[u8],
        prepared: &mut Prepared,
        entries: &mut Vec<[f32; 16]>,
    ) {
        self.rows.space.floats(row, &mut prepared.floats);
        model.coder.prepare(model.metric, prepared, entries);
    }

    /// Asks for the first blocks of a list.
    pub(super) fn prefetch_list(&self, list: u32) -> Result<()> {
        // Where pages are pinned, that takes longer than it saves.
        if self.rows.store.contiguous().is_none() {
            return Ok(());
        }
        let head = self.list(list)?.head.get();
        (head..head.saturating_add(AHEAD)).for_each(|block| self.rows.prefetch(BLOCKS, block));
        Ok(())
    }

    /// Scores the entries of a list. `each` is called with the distance by code and the slot of each that is below the
    /// bound and passes, and returns the bound from then on. With `fetches`, blocks are asked for ahead of their turn.
    #[expect(clippy::too_many_arguments, reason = "the parts of one scan")]
    pub(super) fn scan(
        &self,
        list: u32,
        base: f32,
        prepared: &Prepared,
        matcher: &Matcher<'_>,
        (bound, fetches): (&mut f32, bool),
        cost: &mut Cost,
        mut each: impl FnMut(f32, u32) -> f32,
    ) -> Result<()> {
        let base = prepared.constant + prepared.lean * base;
        let (shape, upper, slots) = (self.block, self.rows.upper(), self.rows.ids());
        let by_slot = match matcher {
            Matcher::Slots(_) => true,
            Matcher::All | Matcher::Keys(_) => false,
        };
        // Removed vectors have entries only between the two writes of an update; or where many handles change an index,
        // as long as a sweep takes, and what is found is looked at in any case.
        let has_removed = !S::SHARED && self.rows.meta.tombstones.get() > 0;
        let looks = matches!(matcher, Matcher::Keys(_)) || has_removed;
        let (mut distances, mut held) = ([0f32; BLOCK], [NONE; BLOCK]);
        let mut next = self.list(list)?.head.get();
        let fetches = fetches && self.rows.store.contiguous().is_some();
        let mut steps = 0;
        let mut page = None;
        while next != NONE {
            if next >= upper || steps > upper {
                return Err(self.bad_block(next, format!("the chain of list {list} leads here")));
            }
            steps += 1;
            let block = next;
            let bytes = self.rows.record_of_page(BLOCKS, block, &mut page)?;
            let links = shape.links_of(bytes);
            next = links.next.get();
            if links.list.get() != list {
                let of = links.list.get();
                return Err(self.bad_block(block, format!("it is of list {of}, not {list}")));
            }
            // Blocks mostly follow one another, and one takes longer to come than to be scored.
            if fetches {
                self.rows.prefetch(BLOCKS, block + AHEAD);
                if next != block + 1 {
                    self.rows.prefetch(BLOCKS, next);
                }
            }
            cost.hops += 1;
            let mut allowed = !0u32;
            if by_slot {
                held = shape.slots_of(bytes);
                allowed = 0;
                for (lane, &slot) in held.iter().enumerate() {
                    allowed |= u32::from(slot != NONE && matcher.accepts(slot, 0)) << lane;
                }
                if allowed == 0 {
                    continue;
                }
            }
            let codes = &bytes[..shape.codes()];
            let Prepared { tables, bytes: wide, scan, .. } = prepared;
            let below = match (shape.factors_of(bytes), shape.bits) {
                ([Some(add), Some(mul)], _) => {
                    let factors = fastscan::Factors { add, mul };
                    scan.scaled(codes, tables, factors, base, *bound, &mut distances)
                }
                ([addends, _], 4) => {
                    scan.distances(codes, tables, addends, base, *bound, &mut distances)
                }
                ([addends, _], _) => {
                    adc::distances(codes, wide, addends, base, *bound, &mut distances)
                }
            };
            let mut below = below & allowed;
            if below != 0 && !by_slot {
                held = shape.slots_of(bytes);
            }
            if looks {
                // What is looked at lies on other pages.
                page = None;
            }
            while below != 0 {
                let lane = below.trailing_zeros() as usize;
                below &= below - 1;
                let (distance, slot) = (distances[lane], held[lane]);
                if slot == NONE || distance >= *bound {
                    continue;
                }
                if slot >= slots {
                    return Err(self.bad_block(block, format!("slot {slot} does not exist")));
                }
                if looks {
                    let node = self.rows.node(slot)?;
                    if !node.is_visible() || !matcher.accepts(slot, node.key.get()) {
                        continue;
                    }
                }
                *bound = each(distance, slot);
            }
        }
        Ok(())
    }
}
