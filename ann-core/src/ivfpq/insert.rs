//! Adding, replacing and removing rows.
//!
//! A row that comes to a trained index is encoded for its nearest list and born in the same write that puts its entry
//! into a block. A replaced row is a tombstone, which searches pass over, from the write that brings the new one to the
//! next, which takes its entry out; a removed one loses entry and slot in one write. Places and slots are used again.

use ndarray::ArrayView2;
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::index::AddOptions;
use crate::page::PageStore;
use crate::rows::{Change, NODES, Node, State, VECTORS, slice};

use super::IvfPq;
use super::lists::Place;
use super::model::{Model, Scratch};
use super::train::Source;
use crate::code::kmeans;

/// Rows that are encoded at a time.
const CHUNK: usize = 1024;
/// Node records that one write makes at most: they lie on three pages of any size.
const BIRTHS: usize = 128;

/// A row's entry.
struct Coded {
    /// The place of its list in the model.
    at: usize,
    codes: Vec<u8>,
    addend: f32,
    missed: f32,
}

impl<S: PageStore> IvfPq<S> {
    /// Adds rows, or gives the keys new ones. All has been checked.
    pub(super) fn insert<T: Element>(
        &mut self,
        pool: &ThreadPool,
        vectors: ArrayView2<'_, T>,
        keys: &[u64],
        replace: bool,
        mut options: AddOptions<'_>,
    ) -> Result<()> {
        self.settle()?;
        let total = keys.len();
        let train_at = self.rows.meta.train_at.get() as usize;
        let mut told = |done: usize| match &mut options.progress {
            Some(progress) => progress(done, total),
            None => true,
        };
        if !self.is_trained() && self.rows.len() == 0 && total >= train_at {
            return self.load(pool, vectors, keys, &mut told);
        }
        if !replace {
            let slots = u64::from(self.rows.slots()).max((self.rows.len() + total) as u64);
            self.rows.reserve(VECTORS, slots)?;
            self.rows.reserve(NODES, slots)?;
        }
        let mut row = Vec::new();
        for first in (0..total).step_by(CHUNK) {
            // The last share is for training, if that is due.
            if !told(first) {
                return Err(Error::Cancelled { added: first });
            }
            let last = total.min(first + CHUNK);
            let coded = match self.model()? {
                Some(model) => pool.install(|| self.code(model, vectors, first..last))?,
                None => Vec::new(),
            };
            for (at, &key) in (first..).zip(&keys[first..last]) {
                row.clear();
                self.rows.space.encode(&slice(vectors.row(at)), &mut row);
                let old = if replace { self.rows.id_of(key)? } else { None };
                self.put_one(&row, key, old, coded.get(at - first))?;
            }
        }
        let due = !self.is_trained() && self.rows.len() >= train_at;
        if due || self.has_outgrown() {
            let stopped = !self.build(pool, &mut |_| told(total))?;
            if stopped {
                return Err(Error::Cancelled { added: total });
            }
        }
        told(total);
        Ok(())
    }

    /// Encodes some rows.
    fn code<T: Element>(
        &self,
        model: &Model,
        vectors: ArrayView2<'_, T>,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<Coded>> {
        let space = &self.rows.space;
        let floats = |at: usize, bytes: &mut Vec<u8>, floats: &mut Vec<f32>| {
            bytes.clear();
            space.encode(&slice(vectors.row(range.start + at)), bytes);
            space.floats(bytes, floats);
            Ok(())
        };
        let nearest = self.assign(model, &Source { count: range.len(), floats: &floats })?;
        let code = |(scratch, bytes, values): &mut (Scratch, Vec<u8>, Vec<f32>), at: usize| {
            floats(at, bytes, values)?;
            let (mut codes, at) = (vec![0; self.block.subs], nearest[at] as usize);
            let (addend, missed) = model.encode(values, at, &mut codes, scratch);
            Ok(Coded { at, codes, addend, missed })
        };
        (0..range.len()).into_par_iter().map_init(Default::default, code).collect()
    }

    /// One row, into its list if there are any.
    fn put_one(
        &mut self,
        row: &[u8],
        key: u64,
        replaces: Option<u32>,
        coded: Option<&Coded>,
    ) -> Result<()> {
        let list = match (coded, self.model()?) {
            (Some(coded), Some(model)) => Some(model.lists[coded.at]),
            _ => None,
        };
        let place: Option<Place> = match list {
            Some(list) => Some(self.place(list)?),
            None => None,
        };
        let id = self.rows.free_ids(1)?[0];
        self.rows.reserve(NODES, u64::from(id) + 1)?;
        self.rows.put_row(id, row)?;
        let mut node = Node::new(key, State::Live, 0, 0);
        let mut change = Change::default();
        let mut missed = 0f32;
        if let (Some(place), Some(coded)) = (place, coded) {
            node.owner = place.block.into();
            self.put_entry(&mut change, place, &coded.codes, coded.addend, id)?;
            missed = coded.missed;
        }
        let born = self.rows.birth(change, id, node, replaces, |meta| {
            let error = f32::from_bits(meta.error.get()).max(missed);
            meta.error = error.to_bits().into();
            true
        })?;
        if !born {
            return Err(self.rows.corrupt_node(id, "its list changed meanwhile".into()));
        }
        match replaces {
            Some(old) => self.take_out(old),
            None => Ok(()),
        }
    }

    /// Takes a slot's entry out of its list and frees the slot.
    pub(super) fn take_out(&mut self, id: u32) -> Result<()> {
        let mut change = Change::default();
        if self.is_trained() {
            let block = self.rows.node(id)?.owner.get();
            self.clear_entry(&mut change, block, id, true)?;
        }
        self.rows.free_with(change, id)
    }

    /// Finishes replacements of which the second write is missing.
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.rows.meta.tombstones.get() == 0 {
            return Ok(());
        }
        for id in 0..self.rows.slots() {
            let node = self.rows.node(id)?;
            if !node.is_visible() && !node.is(State::Free) {
                self.take_out(id)?;
            }
        }
        Ok(())
    }

    /// Rows for an empty index: it is trained on them, and they get their slots in the order of the lists, so that what
    /// is measured together lies together.
    fn load<T: Element>(
        &mut self,
        pool: &ThreadPool,
        vectors: ArrayView2<'_, T>,
        keys: &[u64],
        told: &mut (dyn FnMut(usize) -> bool + Send),
    ) -> Result<()> {
        let total = keys.len();
        let cancelled = |added| Error::Cancelled { added };
        let part =
            |from: f64, to: f64, share: f64| ((from + (to - from) * share) * total as f64) as usize;
        let space = &self.rows.space;
        let floats = |at: usize, bytes: &mut Vec<u8>, floats: &mut Vec<f32>| {
            bytes.clear();
            space.encode(&slice(vectors.row(at)), bytes);
            space.floats(bytes, floats);
            Ok(())
        };
        let source = Source { count: total, floats: &floats };
        let mut learning = |share: f64| told(part(0.0, 0.5, share));
        let model = pool.install(|| self.learn(&source, &mut learning))?;
        let model = model.ok_or_else(|| cancelled(0))?;
        let nearest = pool.install(|| self.assign(&model, &source))?;
        let (order, _) = kmeans::by_cluster(&nearest, model.len());
        let ids = self.rows.free_ids(total)?;
        let slots =
            u64::from(self.rows.slots()).max(ids.iter().max().map_or(0, |&id| u64::from(id) + 1));
        self.rows.reserve(VECTORS, slots)?;
        self.rows.reserve(NODES, slots)?;
        let mut row = Vec::new();
        let mut births: Vec<(u32, Node)> = Vec::new();
        for (done, (&at, &id)) in order.iter().zip(&ids).enumerate() {
            if done % CHUNK == 0 && !told(part(0.5, 0.6, done as f64 / total as f64)) {
                self.give_birth(&mut births)?;
                return Err(cancelled(done));
            }
            row.clear();
            self.rows.space.encode(&slice(vectors.row(at as usize)), &mut row);
            self.rows.put_row(id, &row)?;
            births.push((id, Node::new(keys[at as usize], State::Live, 0, 0)));
            // Reused slots may lie anywhere.
            if births.len() == BIRTHS || births[0].0 + births.len() as u32 != id + 1 {
                self.give_birth(&mut births)?;
            }
        }
        self.give_birth(&mut births)?;
        let nearest: Vec<u32> = order.iter().map(|&at| nearest[at as usize]).collect();
        let mut filling = |share: f64| told(part(0.6, 1.0, share));
        if !self.fill(pool, model, total, &ids, &nearest, &mut filling)? {
            return Err(cancelled(total));
        }
        told(total);
        Ok(())
    }

    /// Makes rows visible: those that follow one another in one write.
    fn give_birth(&mut self, births: &mut Vec<(u32, Node)>) -> Result<()> {
        for run in births.chunk_by(|a, b| a.0 + 1 == b.0) {
            self.rows.births(run)?;
        }
        births.clear();
        Ok(())
    }
}
