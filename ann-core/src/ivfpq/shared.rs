//! Lists that others change at the same time, through handles of their own: a database's processes.
//!
//! A row takes a slot (*claim*), writes its vector there, and is born in the write that puts its entry into its list's
//! open block, if block and lists still are what that was computed from; else it tries again. A removed row is a
//! tombstone, whose entry and slot wait for a sweep (`sweep.rs`).
//!
//! Searches take no locks. A handle's lists are those of the count of sweeps that the meta page had when it read them.
//! That goes up whenever searches have to know of something: lists come, go, or forget their extents, entries have
//! moved, slots get free. A search that finds another count at its end than at its beginning begins anew, and so need
//! not know what it has seen of the change.

use zerocopy::IntoBytes;

use crate::code::kmeans::Finder;
use crate::element::{DType, Element};
use crate::error::{Error, Result};
use crate::index::{Cursor, CursorState, Filter, Hit, Index};
use crate::page::PageStore;
use crate::rows::{Change, Node, State};
use crate::shared::SharedIndex;

use super::insert::WIDE;
use super::lists::Extent;
use super::model::Scratch;
use super::sweep::IvfPqSweep;
use super::{IvfPq, LISTS};

impl<S: PageStore> SharedIndex for IvfPq<S> {
    type Store = S;
    type Sweep = IvfPqSweep;

    fn store(&self) -> &S {
        &self.rows.store
    }

    fn vectors(&self) -> Option<DType> {
        IvfPq::vectors(self)
    }

    fn refresh(&mut self) -> Result<()> {
        self.rows.refresh()?;
        self.renew();
        Ok(())
    }

    fn insert_one<T: Element>(&mut self, vector: &[T], key: u64) -> Result<()> {
        self.rows.space.check(vector, 0)?;
        self.refresh()?;
        let (mut row, mut floats) = (Vec::new(), Vec::new());
        self.rows.space.floats_of(vector, &mut row, &mut floats);
        self.rows.keep(&mut row)?;
        let (id, _) = self.rows.claim(|_| 0)?;
        self.rows.put_row(id, &row)?;
        loop {
            self.renew();
            match self.try_to_bear(&floats, id, key) {
                Ok(true) => return Ok(()),
                Ok(false) => self.rows.refresh()?,
                Err(error) if self.rows.was_outdated(&error)? => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn remove_where(&mut self, is_dead: impl FnMut(u64) -> bool) -> Result<usize> {
        self.rows.bury_where(is_dead)
    }

    fn counts(&self) -> (usize, usize) {
        (self.rows.len(), self.rows.meta.tombstones.get() as usize)
    }

    fn next_hits(&mut self, cursor: &mut Cursor) -> Result<Vec<Hit>> {
        self.refresh()?;
        let meta = &self.rows.meta;
        let known = (meta.sweeps, meta.extents);
        let found = self.resume(cursor, 1, Filter::None);
        self.rows.refresh()?;
        match found {
            Ok(mut hits) => {
                self.rows.check_mark(&cursor.mark)?;
                hits.extend(cursor.ready.drain(..));
                Ok(hits)
            }
            // What is out of place may be so only for a handle that knows of too little.
            Err(Error::Corrupt { .. })
                if S::SHARED && known != (self.rows.meta.sweeps, self.rows.meta.extents) =>
            {
                Err(Error::Changed)
            }
            Err(error) => Err(error),
        }
    }

    fn only_hits(&mut self, cursor: &mut Cursor) -> Result<Vec<Hit>> {
        match &mut cursor.state {
            CursorState::Lists(walk) if walk.ends => return Ok(Vec::new()),
            CursorState::Lists(walk) => walk.ends = true,
            CursorState::Graph(_) | CursorState::Flat(_) => {}
        }
        self.next_hits(cursor)
    }

    fn begin_sweep(&mut self, size: usize) -> Result<IvfPqSweep> {
        IvfPqSweep::begin(self, size)
    }

    fn is_alone(&self, sweep: &IvfPqSweep) -> bool {
        sweep.is_alone()
    }

    fn step(&mut self, sweep: &mut IvfPqSweep) -> Result<bool> {
        sweep.step(self)
    }
}

impl<S: PageStore> IvfPq<S> {
    /// Whether there are so many rows, or so many more than at the last training, that a sweep would train the index.
    pub fn needs_training(&self) -> bool {
        self.training_is_due()
    }

    /// Forgets lists that the meta page no longer has.
    pub(super) fn renew(&mut self) {
        if S::SHARED && self.seen != self.rows.meta.sweeps.get() {
            self.forget_model();
            self.seen = self.rows.meta.sweeps.get();
        }
    }

    /// Makes visible a row that is stored in a claimed slot. False, and nothing done, if others have changed its list.
    fn try_to_bear(&mut self, vector: &[f32], id: u32, key: u64) -> Result<bool> {
        let mut node = Node::new(key, State::Live, 0, 0);
        let mut change = Change::default();
        let Some(model) = self.model()? else {
            return self.rows.birth(change, id, node, None, |meta| meta.entry_level.get() == 0);
        };
        let (mut nearest, mut codes) = ([0], vec![0; self.block.subs]);
        let mut products = Default::default();
        Finder::new(&model.centroids, model.dim).find(vector, &mut products, &mut nearest);
        let at = nearest[0] as usize;
        let (list, lists) = (model.lists[at], self.numbers());
        let encoded = model.encode(vector, at, &mut codes, &mut Scratch::default());
        if !self.widen_beside(list, encoded.square)? {
            return Ok(false);
        }
        let place = self.place(list)?;
        node.owner = place.block.into();
        self.put_entry(&mut change, place, &codes, encoded.factors, id)?;
        self.rows.birth(change, id, node, None, |meta| {
            let error = f32::from_bits(meta.error.get()).max(encoded.missed);
            meta.error = error.to_bits().into();
            lists == (meta.coded.get()..meta.entry_level.get())
        })
    }

    /// Forgets a list's extent if an entry comes to it that lies well outside, and lets all handles know. False if
    /// somebody else has changed the list.
    pub(super) fn widen_beside(&mut self, list: u32, square: f32) -> Result<bool> {
        let mut record = self.any_list(list)?;
        let Extent { radius, .. } = record.extent();
        if radius == 0.0 || square <= WIDE * radius * radius {
            return Ok(record.retired.get() == 0);
        }
        let mut change = Change::default();
        change.expect_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
        record.set_extent(Extent::default());
        change.put_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
        let known = self.rows.meta.sweeps;
        let done = self.rows.commit_meta(change, |meta| {
            meta.sweeps = meta.sweeps.get().wrapping_add(1).into();
            true
        })?;
        // Lists that were read just before are those of the new count, but for this extent.
        if done && self.rows.meta.sweeps.get() == known.get().wrapping_add(1) {
            if let Some(model) = self.model.get_mut().and_then(Option::as_mut)
                && let Some(at) = model.position(list)
            {
                model.extents[at] = Extent::default();
            }
            if self.seen == known.get() {
                self.seen = self.rows.meta.sweeps.get();
            }
        }
        Ok(done && record.retired.get() == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ivfpq::lists::{Entry, Factors};
    use crate::metric::Metric;
    use crate::page::MemStore;
    use crate::page::testing::{Common, Rng};

    /// Another's entry may come to a place between the look that found it free and the one that the change goes by.
    #[test]
    fn a_place_that_others_have_taken_is_left_to_them() {
        let store = Common::new(MemStore::new(4096).unwrap());
        IvfPq::builder(8).metric(Metric::L2sq).train_at(64).build_in(store.clone()).unwrap();
        let mut one = IvfPq::open_in(store.clone()).unwrap();
        let mut rng = Rng(1);
        for key in 0..100 {
            let row: Vec<f32> = (0..8).map(|_| (rng.next() % 100) as f32).collect();
            one.insert_one(&row, key).unwrap();
        }
        let mut sweep = one.begin_sweep(20).unwrap();
        while one.step(&mut sweep).unwrap() {}
        let mut other = IvfPq::open_in(store).unwrap();
        let list = one.model().unwrap().unwrap().lists[0];
        let (codes, factors) = (vec![0; one.block.subs], Factors::default());

        let place = one.place(list).unwrap();
        let entry = Entry { slot: 5, codes: &codes, factors };
        assert_eq!(other.append(list, &[entry]).unwrap(), 1);
        let mut change = Change::default();
        one.put_entry(&mut change, place, &codes, factors, 6).unwrap();
        assert!(!one.rows.commit(&mut change).unwrap());
        assert_eq!(one.any_block(place.block).unwrap().0[place.lane], 5);
    }
}
