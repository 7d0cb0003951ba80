//! Learning lists and codes from a sample of vectors, in steps that need the index only while the sample is drawn.

use std::sync::Arc;

use rayon::ThreadPool;
use rayon::prelude::*;

use crate::code::kmeans::{self, Training};
use crate::code::{Rotation, opq, pq};
use crate::element::Element;
use crate::error::Result;
use crate::kernel::wide::sum_of;
use crate::page::PageStore;
use crate::rows::{ALONG, FITTED};
use crate::seed::mix;

use super::code::{Coder, Words};
use super::lean;
use super::lists::Extent;
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

/// Points that are taken for queries to find out how lists lie around their centroids, the lists that each looks at,
/// and the entries of each of these.
const ASKING: usize = 512;
const ASKED: usize = 8;
const ANSWERS: usize = 16;

/// A training under way.
pub(super) struct Learning {
    /// The sample; once its clusters are known, what it has beside their centroids.
    points: Vec<f32>,
    stage: Stage,
    centroids: Vec<f32>,
    /// The nearest centroids of the points that have become residuals.
    nearest: Vec<u32>,
    share: f32,
    /// How much codes are to lean on centroids.
    lean: f32,
    /// What the points have been rotated by.
    rotation: Option<Arc<opq::Rotation>>,
}

enum Stage {
    Draw,
    Clusters(kmeans::Trainer),
    Residuals,
    Rotation(opq::Trainer),
    /// So many of the points are rotated.
    Turn(Arc<opq::Rotation>, usize),
    Words(pq::Trainer),
}

impl Learning {
    pub(super) fn new() -> Learning {
        let (points, centroids, nearest) = (Vec::new(), Vec::new(), Vec::new());
        let (stage, rotation) = (Stage::Draw, None);
        Learning { points, stage, centroids, nearest, share: 0.0, lean: 1.0, rotation }
    }

    /// The share that is done.
    pub(super) fn share(&self) -> f64 {
        match &self.stage {
            Stage::Draw => 0.0,
            Stage::Clusters(trainer) => 0.05 + 0.7 * trainer.share(),
            Stage::Residuals => 0.75,
            Stage::Rotation(trainer) => 0.75 + 0.05 * trainer.share(),
            Stage::Turn(..) => 0.8,
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

    /// [`Learning::step`] on the current thread pool.
    pub(super) fn step_here<S: PageStore, T: Element>(
        &mut self,
        index: &IvfPq<S>,
        source: &Source<'_, T>,
    ) -> Result<Option<Model>> {
        let (seed, dim) = (index.rows.meta.seed.get(), index.rows.space.dim);
        match &mut self.stage {
            Stage::Draw => {
                let lists = index.wanted_lists(source.len());
                let limit = index.sample_rows(source.len());
                self.points = source.sample(&index.rows, limit, seed)?;
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
                let rest = &mut self.points[self.nearest.len() * dim..];
                let lists = self.centroids.len() / dim;
                let count = (rest.len() / dim).min(kmeans::step_rows(lists, dim));
                let rest = &mut rest[..count * dim];
                let nearest = kmeans::assign(rest, dim, &self.centroids);
                rest.par_chunks_mut(dim).zip(&nearest).for_each(|(point, &list)| {
                    let centroid = &self.centroids[list as usize * dim..][..dim];
                    point.iter_mut().zip(centroid).for_each(|(x, c)| *x -= c);
                });
                self.nearest.extend(nearest);
                if self.nearest.len() * dim == self.points.len() {
                    self.share = share(&self.points, &self.nearest, &self.centroids, dim);
                    let (subs, bits) = (index.block.subs, index.block.bits);
                    if let Some(planes) = index.code().planes() {
                        return Ok(Some(
                            self.end(index, Coder::RaBitQ(Rotation::new(dim, seed), planes)),
                        ));
                    }
                    if index.rows.meta.entries & FITTED != 0 {
                        self.lean_on_centroids((dim, subs), mix(seed));
                    }
                    self.stage = match index.opq() {
                        true => Stage::Rotation(opq::Trainer::new(dim, subs, bits, mix(seed))),
                        false => Stage::Words(pq::Trainer::new(dim, subs, bits, mix(seed))),
                    };
                }
            }
            Stage::Rotation(trainer) => {
                if !trainer.step(&self.points)?
                    && let Stage::Rotation(trainer) =
                        std::mem::replace(&mut self.stage, Stage::Draw)
                {
                    self.stage = Stage::Turn(Arc::new(trainer.finish()), 0);
                }
            }
            Stage::Turn(rotation, done) => {
                let rest = &mut self.points[*done * dim..];
                let count = (rest.len() / dim).min(kmeans::step_rows(dim, dim));
                let rest = &mut rest[..count * dim];
                let before = rest.to_vec();
                rotation.apply_all(&before, rest);
                *done += count;
                if *done * dim == self.points.len() {
                    self.rotation = Some(rotation.clone());
                    let (subs, bits) = (index.block.subs, index.block.bits);
                    self.stage = Stage::Words(pq::Trainer::new(dim, subs, bits, mix(seed)));
                }
            }
            Stage::Words(trainer) => {
                if !trainer.step(&self.points)
                    && let Stage::Words(trainer) = std::mem::replace(&mut self.stage, Stage::Draw)
                {
                    let rotation = self.rotation.take();
                    let words = Words { pq: trainer.finish(), stretch: 1.0, lean: self.lean };
                    return Ok(Some(self.end(index, Coder::Pq { words, rotation })));
                }
            }
        }
        Ok(None)
    }

    /// Finds out how much codes are to lean on centroids, and gives the points back what they are not to leave out.
    fn lean_on_centroids(&mut self, (dim, subs): (usize, usize), seed: u64) {
        let Learning { points, nearest, centroids, lean, .. } = self;
        *lean = lean::learn(points, nearest, centroids, (dim, subs), seed);
        let points = points.par_chunks_exact_mut(dim).zip(&*nearest);
        points.for_each(|(point, &list)| lean::give_back(point, list, centroids, *lean));
    }

    /// What was learnt, with what makes codes.
    fn end<S: PageStore>(&mut self, index: &IvfPq<S>, coder: Coder) -> Model {
        let mut model = index.model_of(std::mem::take(&mut self.centroids), coder, self.share);
        if index.rows.meta.entries & (FITTED | ALONG) == FITTED | ALONG {
            model.learn_stretch(&self.points, &self.nearest);
        }
        (self.points, self.nearest) = (Vec::new(), Vec::new());
        model
    }
}

impl<S: PageStore> IvfPq<S> {
    /// Lists around these centroids, numbered one after the other.
    fn model_of(&self, centroids: Vec<f32>, coder: Coder, share: f32) -> Model {
        let (space, along) = (&self.rows.space, self.rows.meta.entries & ALONG != 0);
        let numbers: Vec<u32> = (0..(centroids.len() / space.dim) as u32).collect();
        let extents = vec![Extent::default(); numbers.len()];
        let mut model = Model::new(numbers, centroids, extents, coder, space, along);
        model.share = share;
        model
    }

    /// How many rows of a sample suit so many lists.
    pub(super) fn wanted_sample(&self, lists: usize) -> usize {
        match self.rows.meta.alpha.get() {
            0 => (SAMPLE_OF_LIST * lists).max(SAMPLE),
            asked => (asked as usize).max(lists),
        }
    }

    /// How many lists suit so many rows.
    pub(super) fn wanted_lists(&self, rows: usize) -> usize {
        match self.rows.meta.ef_construction.get() {
            0 => (2.0 * (rows as f64).sqrt()) as usize,
            asked => return (asked as usize).min(rows).max(1),
        }
        .clamp(1, (rows / ENTRIES).max(1))
        .min(MAX_LISTS)
    }

    /// Whether the index has so many rows that it should be trained, or trained anew for more lists.
    pub(super) fn training_is_due(&self) -> bool {
        if !self.rows.has_rows() {
            // There is nothing to learn from any more.
            return false;
        }
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

/// The part of its length that a residual has in the direction of a point of a list nearby, root mean square; 0 if none
/// was found. Most of what residuals are lies in few of all dimensions, and near queries differ from a centroid in the
/// same: so it is several times the share that a direction drawn at random would have. Runs on the current thread pool.
fn share(residuals: &[f32], nearest: &[u32], centroids: &[f32], dim: usize) -> f32 {
    let lists = centroids.len() / dim;
    let (order, starts) = kmeans::by_cluster(nearest, lists);
    let residual = |at: usize| &residuals[at * dim..][..dim];
    let centroid = |at: usize| &centroids[at * dim..][..dim];
    let squares = |at: usize| {
        let own = nearest[at] as usize;
        let point: Vec<f32> = residual(at).iter().zip(centroid(own)).map(|(r, c)| r + c).collect();
        let mut near: Vec<(f32, usize)> = (0..lists)
            .filter(|&list| list != own)
            .map(|list| (square_to(&point, centroid(list)), list))
            .collect();
        let count = near.len().min(ASKED);
        if count < near.len() {
            near.select_nth_unstable_by(count, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        }
        near.truncate(count);
        near.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let (mut sum, mut pairs) = (0f64, 0u32);
        for (square, list) in near {
            for &member in order[starts[list]..starts[list + 1]].iter().take(ANSWERS) {
                let (mut dot, mut length) = (0f64, 0f64);
                let terms = residual(member as usize).iter().zip(&point).zip(centroid(list));
                for ((r, x), c) in terms {
                    dot += f64::from(*r) * f64::from(x - c);
                    length += f64::from(*r).powi(2);
                }
                let both = length * f64::from(square);
                if both > 0.0 {
                    sum += dot * dot / both;
                    pairs += 1;
                }
            }
        }
        (sum, pairs)
    };
    let step = nearest.len().div_ceil(ASKING).max(1);
    let found: Vec<(f64, u32)> =
        (0..nearest.len()).into_par_iter().step_by(step).map(squares).collect();
    let (sum, pairs) = found.iter().fold((0.0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    if pairs > 0 { (sum / f64::from(pairs)).sqrt() as f32 } else { 0.0 }
}

/// Their squared distance.
fn square_to(a: &[f32], b: &[f32]) -> f32 {
    sum_of(
        a,
        b,
        #[inline(always)]
        |a, b| (a - b) * (a - b),
    )
}
