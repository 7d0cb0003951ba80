//! Exact search: score every one of a list of slots, many at a time.

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::error::{Error, Result};
use crate::page::PageStore;

use super::space::{Probe, Space};
use super::{CODES, Rows};

/// Slots that are scored in one kernel call.
const BLOCK: usize = 64;

/// Slots to score and their distances to a query.
#[derive(Default)]
pub(crate) struct Batch {
    pub ids: Vec<u32>,
    pub distances: Vec<f32>,
    offsets: Vec<u64>,
}

impl Batch {
    /// Scores `self.ids`.
    #[inline]
    pub(crate) fn score<S: PageStore>(&mut self, rows: &Rows<S>, probe: &Probe) -> Result<()> {
        self.score_below(rows, probe, f32::INFINITY)
    }

    /// Scores `self.ids`. Distances that come out at `bound` or above are so, but need not be right.
    #[inline]
    pub(crate) fn score_below<S: PageStore>(
        &mut self,
        rows: &Rows<S>,
        probe: &Probe,
        bound: f32,
    ) -> Result<()> {
        let Batch { ids, distances, offsets } = self;
        rows.score(probe, ids, bound, offsets, distances)
    }

    /// Estimates the distances to `self.ids` by their codes.
    #[inline]
    pub(crate) fn estimate<S: PageStore>(&mut self, rows: &Rows<S>, probe: &Probe) -> Result<()> {
        let Batch { ids, distances, offsets } = self;
        rows.estimates(CODES, &probe.asked, ids, offsets, distances)
    }

    /// Makes `id` all that the batch holds, and scores it.
    pub(crate) fn score_only<S: PageStore>(
        &mut self,
        rows: &Rows<S>,
        probe: &Probe,
        id: u32,
    ) -> Result<()> {
        self.ids.clear();
        self.ids.push(id);
        self.score(rows, probe)
    }

    /// As [`Batch::score_below`], in a plain array of rows; false if one lies outside.
    pub(crate) fn score_plain(
        &mut self,
        space: &Space,
        vectors: &[u8],
        probe: &Probe,
        bound: f32,
    ) -> bool {
        let Batch { ids, distances, offsets } = self;
        distances.clear();
        distances.resize(ids.len(), 0.0);
        offsets.clear();
        let stride = space.stride() as u64;
        offsets.extend(ids.iter().map(|&id| u64::from(id) * stride));
        space.distances(probe, vectors, offsets, bound, distances)
    }
}

/// Bytes of copies beyond which the next ones take the place of all.
const COPIED: usize = 4 << 20;

/// Copies of a few rows whose distances to one another are wanted: of many reads of a page that has to be pinned each
/// time, one is left. There are none where rows lie in one piece of memory.
#[derive(Default)]
pub(crate) struct Copies {
    bytes: Vec<u8>,
    /// Where in the bytes the row of a slot begins.
    places: HashMap<u32, u64>,
}

impl Copies {
    /// Sees to it that there are copies of these rows, where that is of use. None may change while they are kept.
    pub(crate) fn take<S: PageStore>(
        &mut self,
        rows: &Rows<S>,
        ids: impl Iterator<Item = u32>,
        row: &mut Vec<u8>,
    ) -> Result<()> {
        if self.bytes.len() > COPIED {
            self.bytes.clear();
            self.places.clear();
        }
        if rows.store.contiguous().is_some() || !rows.has_vectors() {
            return Ok(());
        }
        for id in ids {
            if let Entry::Vacant(place) = self.places.entry(id) {
                rows.row(id, row)?;
                place.insert(self.bytes.len() as u64);
                self.bytes.extend_from_slice(row);
            }
        }
        Ok(())
    }

    /// As [`Rows::row_probe`].
    pub(crate) fn probe<S: PageStore>(
        &self,
        rows: &Rows<S>,
        id: u32,
        row: &mut Vec<u8>,
        probe: &mut Probe,
    ) -> Result<()> {
        let place = self.places.get(&id).map(|&place| place as usize);
        match place.and_then(|place| self.bytes.get(place..place + rows.space.stride())) {
            Some(row) => rows.space.probe(row, probe),
            None => rows.row_probe(id, row, probe)?,
        }
        Ok(())
    }

    /// As [`Batch::score`], of slots that are all among those copied.
    pub(crate) fn score<S: PageStore>(
        &self,
        rows: &Rows<S>,
        probe: &Probe,
        batch: &mut Batch,
    ) -> Result<()> {
        if self.places.is_empty() {
            return batch.score(rows, probe);
        }
        let Batch { ids, distances, offsets } = batch;
        offsets.clear();
        offsets.extend(ids.iter().filter_map(|id| self.places.get(id)));
        distances.clear();
        distances.resize(offsets.len(), 0.0);
        match rows.space.distances(probe, &self.bytes, offsets, f32::INFINITY, distances) {
            true if offsets.len() == ids.len() => Ok(()),
            _ => Err(Error::corrupt(0, "a row is shorter than its vector")),
        }
    }
}

/// The `k` nearest of `ids` that lie within `radius`, nearest first; equally near ones by slot.
pub(crate) fn nearest<S: PageStore>(
    rows: &Rows<S>,
    probe: &Probe,
    mut ids: impl Iterator<Item = u32>,
    k: usize,
    radius: f32,
) -> Result<Vec<(f32, u32)>> {
    let order = |a: &(f32, u32), b: &(f32, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    let mut batch = Batch::default();
    let mut found: Vec<(f32, u32)> = Vec::new();
    let mut bound = radius;
    loop {
        batch.ids.clear();
        batch.ids.extend(ids.by_ref().take(BLOCK));
        if batch.ids.is_empty() {
            break;
        }
        batch.score_below(rows, probe, bound.next_up())?;
        let scored = batch.distances.iter().copied().zip(batch.ids.iter().copied());
        found.extend(scored.filter(|&(distance, _)| distance <= bound));
        // Keeping up to twice as many as asked for makes the selection cost O(1) a slot.
        if found.len() >= k.saturating_mul(2).max(BLOCK) && found.len() > k {
            found.select_nth_unstable_by(k, order);
            found.truncate(k);
            bound = found.iter().map(|hit| hit.0).fold(f32::NEG_INFINITY, f32::max).min(radius);
        }
    }
    found.sort_unstable_by(order);
    found.truncate(k);
    Ok(found)
}
