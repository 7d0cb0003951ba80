//! Learning lists and codes from a sample of vectors, in steps that need the index only while the sample is drawn.

use rayon::ThreadPool;
use rayon::prelude::*;

use crate::code::kmeans::{self, Training};
use crate::code::pq::{self, Pq};
use crate::element::Element;
use crate::error::Result;
use crate::page::PageStore;
use crate::seed::mix;

use super::model::Model;
use super::source::Source;
use super::{IvfPq, MAX_LISTS};

/// Rows of the sample for each list, and in all at least.
const SAMPLE_OF_LIST: usize = 64;
const SAMPLE: usize = 1 << 14;
/// Rows that codebooks are learnt from, at most, for each codeword.
const SAMPLE_OF_WORD: usize = 1024;
/// Iterations of k-means.
const ITERATIONS: usize = 10;
/// Entries that a list has at least, on average, if it is not told otherwise.
const ENTRIES: usize = 32;

/// A training under way.
pub(super) struct Learning {
    /// The sample; once its clusters are known, what it has beside their centroids.
    points: Vec<f32>,
    stage: Stage,
    centroids: Vec<f32>,
    /// Points that have become residuals.
    residuals: usize,
}

enum Stage {
    Draw,
    Clusters(kmeans::Trainer),
    Residuals,
    Words(pq::Trainer),
}

impl Learning {
    pub(super) fn new() -> Learning {
        let (points, centroids) = (Vec::new(), Vec::new());
        Learning { points, stage: Stage::Draw, centroids, residuals: 0 }
    }

    /// The share that is done.
    pub(super) fn share(&self) -> f64 {
        match &self.stage {
            Stage::Draw => 0.0,
            Stage::Clusters(trainer) => 0.05 + 0.7 * trainer.share(),
            Stage::Residuals => 0.75,
            Stage::Words(trainer) => 0.8 + 0.2 * trainer.share(),
        }
    }

    /// One step; what was learnt after the last.
    pub(super) fn step<S: PageStore, T: Element>(
        &mut self,
        index: &IvfPq<S>,
        source: &Source<'_, T>,
        pool: &ThreadPool,
    ) -> Result<Option<Model>> {
        pool.install(|| self.step_here(index, source))
    }

    fn step_here<S: PageStore, T: Element>(
        &mut self,
        index: &IvfPq<S>,
        source: &Source<'_, T>,
    ) -> Result<Option<Model>> {
        let (meta, dim) = (&index.rows.meta, index.rows.space.dim);
        let seed = meta.seed.get();
        match &mut self.stage {
            Stage::Draw => {
                let lists = index.wanted_lists(source.len());
                let limit = match meta.sweeps.get() {
                    0 => (SAMPLE_OF_LIST * lists).max(SAMPLE),
                    asked => (asked as usize).max(lists),
                };
                self.points = source.sample(&index.rows, limit.min(source.len()), seed)?;
                let training =
                    Training { clusters: lists, iterations: ITERATIONS, spherical: false, seed };
                self.stage = Stage::Clusters(kmeans::Trainer::new(&self.points, dim, training));
            }
            Stage::Clusters(trainer) => {
                if !trainer.step(&self.points)
                    && let Stage::Clusters(trainer) =
                        std::mem::replace(&mut self.stage, Stage::Residuals)
                {
                    self.centroids = trainer.finish();
                    // The sample is in no order that matters.
                    self.points.truncate((SAMPLE_OF_WORD << index.block.bits) * dim);
                }
            }
            Stage::Residuals => {
                let rest = &mut self.points[self.residuals * dim..];
                let lists = self.centroids.len() / dim;
                let count = (rest.len() / dim).min(kmeans::step_rows(lists, dim));
                let rest = &mut rest[..count * dim];
                let nearest = kmeans::assign(rest, dim, &self.centroids);
                rest.par_chunks_mut(dim).zip(&nearest).for_each(|(point, &list)| {
                    let centroid = &self.centroids[list as usize * dim..][..dim];
                    point.iter_mut().zip(centroid).for_each(|(x, c)| *x -= c);
                });
                self.residuals += count;
                if self.residuals * dim == self.points.len() {
                    let (subs, bits) = (index.block.subs, index.block.bits);
                    self.stage = Stage::Words(pq::Trainer::new(dim, subs, bits, mix(seed)));
                }
            }
            Stage::Words(trainer) => {
                if !trainer.step(&self.points)
                    && let Stage::Words(trainer) = std::mem::replace(&mut self.stage, Stage::Draw)
                {
                    self.points = Vec::new();
                    let centroids = std::mem::take(&mut self.centroids);
                    return Ok(Some(index.model_of(centroids, trainer.finish())));
                }
            }
        }
        Ok(None)
    }
}

impl<S: PageStore> IvfPq<S> {
    /// Lists around these centroids, numbered one after the other.
    fn model_of(&self, centroids: Vec<f32>, pq: Pq) -> Model {
        let numbers = (0..(centroids.len() / pq.dim()) as u32).collect();
        let (space, along) = (&self.rows.space, self.rows.meta.along == 1);
        Model::new(numbers, centroids, pq, space.metric, along, space.isa())
    }

    /// How many lists suit so many rows.
    fn wanted_lists(&self, rows: usize) -> usize {
        match self.rows.meta.ef_construction.get() {
            0 => (2.0 * (rows as f64).sqrt()) as usize,
            asked => return (asked as usize).min(rows).max(1),
        }
        .clamp(1, (rows / ENTRIES).max(1))
        .min(MAX_LISTS)
    }

    /// Whether the index has so many rows that it should be trained, or trained anew for more lists.
    pub(super) fn training_is_due(&self) -> bool {
        let rows = self.rows.len() as u64;
        match self.is_trained() {
            true => self.has_outgrown(),
            false => rows >= u64::from(self.rows.meta.train_at.get()),
        }
    }

    /// Whether there are so many more rows than at the training that other lists would suit them.
    fn has_outgrown(&self) -> bool {
        let meta = &self.rows.meta;
        let by_rows = self.is_trained() && meta.ef_construction.get() == 0;
        let before = meta.trained.get().max(meta.train_at.get() / 4).max(1);
        by_rows && self.rows.len() as u64 >= 4 * u64::from(before)
    }
}
