//! The invariants of lists: each vector has one entry, or a second one in another list, where its node says, whose
//! codes are the vector's. Where many handles change an index it may have several while they move, and blocks may wait
//! for a sweep.

use crate::error::{Error, Result};
use crate::page::PageStore;
use crate::rows::{NONE, State};

use super::lists::taken;
use super::model::{Model, Scratch};
use super::source::Floats;
use super::{BLOCKS, IvfPq};

impl<S: PageStore> IvfPq<S> {
    /// Checks chains, stacks of open blocks, unused blocks, and that entries and nodes name each other.
    pub(super) fn verify_lists(&self) -> Result<()> {
        for id in 0..self.rows.slots() {
            let node = self.rows.node(id)?;
            if node.is(State::Twin) || node.is(State::DeadTwin) {
                return Err(self.rows.corrupt_node(id, "lists have no such slot".into()));
            }
        }
        let Some(model) = self.model()? else {
            return Ok(());
        };
        if let Some(at) = model.centroids.iter().position(|value| !value.is_finite()) {
            let what =
                format!("the centroid of list {} is not finite", model.lists[at / model.dim]);
            return Err(Error::corrupt(0, what));
        }
        if model.coder.book(&self.rows.meta).iter().any(|value| !value.is_finite()) {
            return Err(Error::corrupt(0, "the codebook is not finite"));
        }
        let blocks = self.rows.meta.upper.get() as usize;
        let mut met = vec![false; blocks];
        // Of each slot, whether its second and its first entry were met, and the list of the one met before.
        let mut entered = vec![([false; 2], NONE); self.rows.slots() as usize];
        for list in self.numbers() {
            let record = self.list(list)?;
            if record.retired.get() > 1 {
                let what = format!("list {list} is in state {}", record.retired.get());
                return Err(Error::corrupt(0, what));
            }
            let chain = self.blocks_of(list)?;
            if record.retired.get() != 0 && !chain.is_empty() {
                return Err(Error::corrupt(0, format!("list {list} is retired and has blocks")));
            }
            let place = model.position(list);
            for (block, slots) in &chain {
                if met.get_mut(*block as usize).is_none_or(|met| std::mem::replace(met, true)) {
                    return Err(self.bad_block(*block, "it is on two chains"));
                }
                for slot in taken(slots) {
                    let bad = || self.bad_block(*block, format!("slot {slot} has no entry here"));
                    let (met, before) = entered.get_mut(slot as usize).ok_or_else(bad)?;
                    let node = self.rows.node(slot)?;
                    let is_first = S::SHARED || node.owner.get() == *block;
                    let is_second = self.rows.meta.spills() && node.twin.get() == *block;
                    if node.is(State::Free) || !(is_first || is_second) {
                        let what = format!("its entry is in block {block}");
                        return Err(self.rows.corrupt_node(slot, what));
                    }
                    let twice = std::mem::replace(&mut met[usize::from(is_first)], true)
                        | (std::mem::replace(before, list) == list);
                    if twice && !S::SHARED {
                        return Err(bad());
                    }
                }
                if let Some(place) = place {
                    self.verify_codes(model, place, *block, slots)?;
                }
            }
            self.verify_open(list, record.open.get(), chain.len())?;
        }
        let mut unused = self.rows.meta.entry.get();
        while unused != NONE {
            let (_, links) = self.block(unused, NONE)?;
            if met.get_mut(unused as usize).is_none_or(|met| std::mem::replace(met, true)) {
                return Err(self.bad_block(unused, "it is in use, or unused twice"));
            }
            unused = links.next.get();
        }
        for block in (0..).zip(&met).filter(|(_, met)| !**met).map(|(block, _)| block) {
            let list = self.any_block(block)?.1.list.get();
            if !S::SHARED || model.position(list).is_some() {
                return Err(self.bad_block(block, "no list and no chain has it"));
            }
        }
        for (id, ([second, first], _)) in (0..).zip(entered) {
            let node = self.rows.node(id)?;
            let may_lack = if S::SHARED { !node.is_visible() } else { node.is(State::Free) };
            if may_lack {
                continue;
            }
            if !first {
                return Err(self.rows.corrupt_node(id, "it has no entry".into()));
            }
            if second != (node.twin.get() != NONE) {
                let what = format!("its second entry is not in block {}", node.twin.get());
                return Err(self.rows.corrupt_node(id, what));
            }
        }
        Ok(())
    }

    /// Codes are what encoding the vectors anew makes of them, to the last bit, on any machine. Where vectors are not
    /// kept, what is beside codes is theirs.
    fn verify_codes(&self, model: &Model, place: usize, block: u32, slots: &[u32]) -> Result<()> {
        let (mut bytes, mut floats) = (Vec::new(), Floats::default());
        let (mut held, mut right) = (vec![0; self.block.subs], vec![0; self.block.subs]);
        let mut scratch = Scratch::default();
        self.rows.record(BLOCKS, block, |record| bytes.extend_from_slice(record))?;
        let entries = slots.iter().enumerate().filter(|(_, slot)| **slot != NONE);
        for (lane, &slot) in entries {
            let beside = self.block.get(&bytes, lane, &mut held);
            let factors = match self.rows.has_vectors() {
                true => {
                    floats.load(&self.rows, slot)?;
                    Some(model.encode(&floats.values, place, &mut right, &mut scratch).factors)
                }
                false => {
                    right.copy_from_slice(&held);
                    model.coder.factors_of(&held, model.centroid(place), model.metric)
                }
            };
            let is_same = factors.is_none_or(|factors| beside.same(factors, self.block.factors));
            if held != right || !is_same {
                return Err(
                    self.bad_block(block, format!("the code of slot {slot} is not its own"))
                );
            }
        }
        Ok(())
    }

    /// The blocks on a list's stack are its own, marked, and none is there twice.
    fn verify_open(&self, list: u32, first: u32, blocks: usize) -> Result<()> {
        let (mut open, mut steps) = (first, 0);
        while open != NONE {
            let (_, links) = self.block(open, list)?;
            steps += 1;
            if links.is_open.get() != 1 || steps > blocks {
                return Err(
                    self.bad_block(open, format!("the open blocks of list {list} lead here"))
                );
            }
            open = links.open.get();
        }
        Ok(())
    }
}
