//! Joining sparse blocks: entries move from the emptiest blocks of a list into the fullest that have room.

use zerocopy::IntoBytes;

use crate::error::Result;
use crate::kernel::fastscan::BLOCK;
use crate::page::PageStore;
use crate::rows::{Change, NONE};

use super::lists::{Place, entries};
use super::{BLOCKS, IvfPq, LISTS};

/// Entries that a step moves, and blocks that it looks at, about.
const STEP: usize = 1024;

/// The lists of an index, on their way to as few blocks as they need.
pub(super) struct Compacting {
    lists: usize,
    done: usize,
}

impl Compacting {
    /// Of so many lists.
    pub(super) fn new(lists: usize) -> Compacting {
        Compacting { lists, done: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done == self.lists
    }

    /// One step of writing.
    pub(super) fn write<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        let mut left = STEP;
        while left > 0 && !self.is_done() {
            let list = index.model()?.and_then(|model| model.lists.get(self.done).copied());
            let joined = match list {
                Some(list) => index.compact_list(list, &mut left)?,
                None => true,
            };
            self.done += usize::from(joined);
        }
        Ok(())
    }
}

impl<S: PageStore> IvfPq<S> {
    /// Joins the entries of a list, as far as `left` allows. Whether all are joined.
    fn compact_list(&mut self, list: u32, left: &mut usize) -> Result<bool> {
        let mut blocks = self.blocks_of(list)?;
        *left = left.saturating_sub(blocks.len());
        let total: usize = blocks.iter().map(|(_, slots)| entries(slots)).sum();
        if blocks.len() <= total.div_ceil(BLOCK) {
            return Ok(true);
        }
        // From the emptiest into the fullest that have room.
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|&at| (BLOCK - entries(&blocks[at].1), at));
        let (mut to, mut from) = (0, order.len() - 1);
        let (mut bytes, mut codes) = (Vec::new(), vec![0; self.block.subs]);
        let mut moves = *left + 1;
        while to < from {
            let (target, source) = (order[to], order[from]);
            let Some(lane) = blocks[target].1.iter().position(|&slot| slot == NONE) else {
                to += 1;
                continue;
            };
            let Some(held) = blocks[source].1.iter().position(|&slot| slot != NONE) else {
                from -= 1;
                continue;
            };
            if moves == 0 {
                *left = 0;
                return Ok(false);
            }
            moves -= 1;
            let slot = blocks[source].1[held];
            self.rows.copy(BLOCKS, blocks[source].0, &mut bytes)?;
            let factors = self.block.get(&bytes, held, &mut codes);
            let place = Place { block: blocks[target].0, lane };
            let from = blocks[source].0;
            let is_second = self.rows.node(slot)?.owner.get() != from;
            self.move_entry(slot, is_second, place, &codes, (factors, 0.0))?;
            blocks[source].1[held] = NONE;
            blocks[target].1[lane] = slot;
        }
        *left = moves;
        let mut before = None;
        for &(block, slots) in &blocks {
            if entries(&slots) == 0 {
                self.unlink(list, before, block)?;
            } else {
                before = Some(block);
            }
        }
        // What is left has one block with room at the most.
        for &(block, slots) in blocks.iter().filter(|(_, slots)| entries(slots) > 0) {
            let (_, mut links) = self.block(block, list)?;
            let mut record = self.list(list)?;
            let open = entries(&slots) < BLOCK;
            (links.is_open, links.open) = (u32::from(open).into(), NONE.into());
            let mut change = Change::default();
            if open {
                links.open = record.open;
                record.open = block.into();
                change.put_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
            }
            self.put_links(&mut change, block, links)?;
            self.rows.commit(&mut change)?;
        }
        Ok(true)
    }
}
