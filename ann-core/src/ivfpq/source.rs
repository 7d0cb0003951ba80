//! Vectors that lists are learnt from or filled with, by number: rows of the caller's, or slots of the index.

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::code::kmeans::{Finder, Seconds, SecondsScratch};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::page::PageStore;
use crate::rows::{Rows, slice};
use crate::seed::mix;

use super::IvfPq;
use super::model::{Encoded, Model, Scratch};

/// What second lists count against being alike the first (SOAR's lambda).
const WEIGHT: f32 = 1.0;
/// Rows that a thread assigns at a time.
const ROWS: usize = 256;

/// Where vectors come from.
#[derive(Clone)]
pub(super) enum Source<'a, T> {
    /// Rows that have been checked.
    Batch(ArrayView2<'a, T>),
    /// Slots in use.
    Slots(Vec<u32>),
}

/// A vector as floats, and the bytes of its row.
#[derive(Default)]
pub(super) struct Floats {
    row: Vec<u8>,
    pub values: Vec<f32>,
}

impl Floats {
    /// Becomes the vector in a slot.
    pub(super) fn load<S: PageStore>(&mut self, rows: &Rows<S>, slot: u32) -> Result<()> {
        rows.floats(slot, &mut self.row, &mut self.values)
    }
}

/// A vector's entry.
pub(super) struct Coded {
    /// The place of its list in the model.
    pub at: u32,
    pub codes: Vec<u8>,
    pub encoded: Encoded,
}

impl<T: Element> Source<'_, T> {
    pub(super) fn len(&self) -> usize {
        match self {
            Source::Batch(vectors) => vectors.nrows(),
            Source::Slots(slots) => slots.len(),
        }
    }

    /// Makes `floats` one of the vectors, as the index has it or would have it.
    pub(super) fn floats<S: PageStore>(
        &self,
        rows: &Rows<S>,
        at: usize,
        floats: &mut Floats,
    ) -> Result<()> {
        match self {
            Source::Slots(slots) => floats.load(rows, slots[at]),
            Source::Batch(vectors) => {
                let Floats { row, values } = floats;
                rows.space.floats_of(&slice(vectors.row(at)), row, values);
                Ok(())
            }
        }
    }

    /// Chooses what the codes of rows are relative to, if these are the first that an index is given.
    pub(super) fn choose_centre<S: PageStore>(&self, rows: &mut Rows<S>) -> Result<()> {
        let Source::Batch(vectors) = self else { return Ok(()) };
        let mut row = Vec::new();
        rows.choose_centre(vectors.nrows(), |space, at, floats| {
            space.floats_of(&slice(vectors.row(at)), &mut row, floats);
        })
    }

    /// One vector drawn from each of `count` equal parts, one after the other. Runs on the current thread pool.
    pub(super) fn sample<S: PageStore>(
        &self,
        rows: &Rows<S>,
        count: usize,
        seed: u64,
    ) -> Result<Vec<f32>> {
        let (dim, len) = (rows.space.dim, self.len());
        let mut points = Vec::new();
        points.try_reserve_exact(count * dim).map_err(|_| Error::OutOfMemory {
            what: "the training sample",
            bytes: 4 * (count * dim) as u64,
        })?;
        points.resize(count * dim, 0f32);
        let drawn = |at: usize| {
            let (from, to) = (at * len / count, (at + 1) * len / count);
            from + (mix(seed ^ at as u64) % (to - from) as u64) as usize
        };
        points.par_chunks_mut(dim).enumerate().try_for_each_init(
            Floats::default,
            |floats, (at, point)| -> Result<()> {
                self.floats(rows, drawn(at), floats)?;
                point.copy_from_slice(&floats.values);
                Ok(())
            },
        )?;
        Ok(points)
    }

    /// Makes `nearest` the place among the centroids that each of so many vectors, from `first` on, is nearest to. Runs
    /// on the current thread pool.
    pub(super) fn assign<S: PageStore>(
        &self,
        rows: &Rows<S>,
        centroids: &[f32],
        first: usize,
        nearest: &mut [u32],
    ) -> Result<()> {
        let finder = Finder::new(centroids, rows.space.dim);
        nearest.par_chunks_mut(ROWS).enumerate().try_for_each_init(
            || (Array2::zeros((0, 0)), Vec::new(), Floats::default()),
            |(products, points, floats), (chunk, nearest)| -> Result<()> {
                points.clear();
                for at in 0..nearest.len() {
                    self.floats(rows, first + chunk * ROWS + at, floats)?;
                    points.extend_from_slice(&floats.values);
                }
                finder.find(points, products, nearest);
                Ok(())
            },
        )
    }

    /// Makes `seconds` the place of a second list of each of so many vectors, from `first` on, whose nearest is given;
    /// there are at least two lists. Runs on the current thread pool.
    pub(super) fn assign_seconds<S: PageStore>(
        &self,
        rows: &Rows<S>,
        centroids: &[f32],
        first: usize,
        nearest: &[u32],
        seconds: &mut [u32],
    ) -> Result<()> {
        let finder = Seconds::new(centroids, rows.space.dim, WEIGHT);
        seconds.par_chunks_mut(ROWS).zip(nearest.par_chunks(ROWS)).enumerate().try_for_each_init(
            || (SecondsScratch::default(), Vec::new(), Floats::default()),
            |(scratch, points, floats), (chunk, (seconds, nearest))| -> Result<()> {
                points.clear();
                for at in 0..nearest.len() {
                    self.floats(rows, first + chunk * ROWS + at, floats)?;
                    points.extend_from_slice(&floats.values);
                }
                finder.find(points, nearest, scratch, seconds);
                Ok(())
            },
        )
    }

    /// The entries of vectors, from `first` on, in the lists at these places of the model. Runs on the current thread
    /// pool.
    pub(super) fn code<S: PageStore>(
        &self,
        index: &IvfPq<S>,
        model: &Model,
        first: usize,
        places: &[u32],
    ) -> Result<Vec<Coded>> {
        let code = |(scratch, floats): &mut (Scratch, Floats), (by, &at): (usize, &u32)| {
            self.floats(&index.rows, first + by, floats)?;
            let mut codes = vec![0; index.block.subs];
            let encoded = model.encode(&floats.values, at as usize, &mut codes, scratch);
            Ok(Coded { at, codes, encoded })
        };
        places.par_iter().enumerate().map_init(Default::default, code).collect()
    }
}
