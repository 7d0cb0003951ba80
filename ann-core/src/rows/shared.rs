//! Rows that others change at the same time, through other handles on the same pages.
//!
//! A handle remembers the meta page. What it decides on is looked at again under the latch of the write that it makes,
//! and where others have been faster, nothing is done, the meta page is read again, and the caller tries once more.

use zerocopy::IntoBytes;

use crate::error::{Error, Result};
use crate::page::PageStore;

use super::{
    Array, Change, LINKS, MAX_SLOTS, META, Meta, NODES, NONE, Node, Rows, State, UPPER, VECTORS,
    take_in,
};

impl<S: PageStore> Rows<S> {
    /// Makes tombstones of the vectors whose keys `is_dead` says are to go; returns how many there were.
    pub(crate) fn bury_where(&mut self, mut is_dead: impl FnMut(u64) -> bool) -> Result<usize> {
        self.refresh()?;
        let mut removed = 0;
        for id in 0..self.slots() {
            let node = self.node(id)?;
            if node.is_visible() && is_dead(node.key.get()) {
                self.bury(id)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Reads the meta page again, and with it what others have added to the arrays.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        let (meta, extents) = Meta::parse(&self.store.read(META)?, self.store.page_size())?;
        let known = self.meta.extents.get() as usize;
        for extent in extents.get(known..).unwrap_or_default() {
            take_in(&mut self.arrays, &meta, extent)?;
        }
        self.meta = meta;
        Ok(())
    }

    /// Ids that lists can name are below it. Where others add vectors, those that came after the meta page was read
    /// are as good as others, as far as the pages go.
    #[inline]
    pub(crate) fn ids(&self) -> u32 {
        if !S::SHARED {
            return self.slots();
        }
        let capacity = |number: usize| self.arrays[number].as_ref().map(Array::capacity);
        let room = [VECTORS, NODES, LINKS].into_iter().filter_map(capacity).min().unwrap_or(0);
        room.min(MAX_SLOTS) as u32
    }

    /// Upper link records that nodes can name are below it.
    #[inline]
    pub(crate) fn upper(&self) -> u32 {
        match &self.arrays[UPPER] {
            Some(upper) if S::SHARED => upper.capacity().min(MAX_SLOTS) as u32,
            _ => self.meta.upper.get(),
        }
    }

    /// Takes a slot, a freed one if there is any, before others can. It stays out of the graph, at the level that
    /// `level` says a new slot has, until its vector is born, and is a sweep's if that never happens.
    pub(crate) fn claim(&mut self, level: impl Fn(u32) -> u8) -> Result<(u32, Node)> {
        loop {
            let (free, slots, upper) = (self.meta.free, self.meta.slots, self.meta.upper);
            let mut change = Change::default();
            let (id, mut node) = if free.get() == NONE {
                let (id, level) = (slots.get(), level(slots.get()));
                self.reserve_slots(u64::from(id) + 1)?;
                if level > 0 {
                    self.reserve(UPPER, u64::from(upper.get()) + u64::from(level))?;
                }
                let first = if level > 0 { upper.get() } else { 0 };
                (id, Node::new(0, State::Claimed, level, first))
            } else {
                let old = self.node(free.get())?;
                change.expect_record(self.array(NODES)?, free.get(), old.as_bytes())?;
                (free.get(), old)
            };
            let (is_free, next) = (node.is(State::Free), node.twin);
            node.set_state(State::Claimed);
            node.twin = NONE.into();
            change.put_record(self.array(NODES)?, id, node.as_bytes())?;
            let done = self.commit_meta(change, |meta| {
                if (meta.free, meta.slots, meta.upper) != (free, slots, upper) {
                    return false;
                }
                if free.get() != NONE {
                    meta.free = next;
                    return is_free;
                }
                meta.slots = (id + 1).into();
                meta.upper = (upper.get() + u32::from(node.level)).into();
                true
            })?;
            if done {
                return Ok((id, node));
            }
            if free == self.meta.free
                && free.get() != NONE
                && !self.node(free.get())?.is(State::Free)
            {
                return Err(self.corrupt_node(id, "it is on the free list but in use".into()));
            }
        }
    }

    /// Counts a sweep, before it changes what a search may have seen of a slot.
    pub(crate) fn count_sweep(&mut self) -> Result<()> {
        self.commit_meta(Change::default(), |meta| {
            meta.sweeps = meta.sweeps.get().wrapping_add(1).into();
            true
        })?;
        Ok(())
    }

    /// Whether an error may come of a meta page that is out of date, which it is not afterwards.
    pub(crate) fn was_outdated(&mut self, error: &Error) -> Result<bool> {
        if !S::SHARED || !matches!(error, Error::Corrupt { .. } | Error::Changed) {
            return Ok(false);
        }
        let changes = self.meta.changes;
        self.refresh()?;
        Ok(changes != self.meta.changes)
    }
}
