//! A rotation learnt for product quantization, so that pieces of rotated vectors are told by fewer codewords (OPQ: Ge
//! et al., TPAMI 2014).
//!
//! Two steps take turns: codewords are fitted to the vectors as they are rotated, then the rotation to what codes make
//! of the vectors. The second is the orthogonal Procrustes problem, whose solution is the orthogonal factor of `X' Z`,
//! `X` being vectors and `Z` what codes stand for. It comes of products of matrices alone (Newton and Schulz). What
//! vectors have little of says little of where it is to be rotated: there the rotation stays about what it was.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use super::pq::{self, Pq};
use crate::error::{Error, Result};
use crate::kernel::wide::wide;

/// The most dimensions: learning takes their third power in time, and a search their square.
pub const MAX_DIM: usize = 1024;
/// Turns of the two steps, and of fitting codewords in each.
const ROUNDS: usize = 12;
const FITS: usize = 2;
/// Vectors that a rotation is learnt from, at most, in all or for each dimension.
const POINTS: usize = 8192;
const POINTS_OF_DIM: usize = 8;
/// What the rotation so far counts against what vectors have most of.
const STAYS: f32 = 2e-3;
/// Iterations to an orthogonal matrix, at most, and of a step.
const ITERATIONS: usize = 32;
const ITERATIONS_OF_STEP: usize = 4;
/// How far columns may be from orthogonal, and when they are near enough to go on with.
const EXACT: f32 = 1e-5;
const NEAR: f32 = 1e-3;
/// Rows of a matrix that a thread multiplies at a time.
const ROWS: usize = 128;

/// A rotation of vectors of one dimension: an orthogonal matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    dim: usize,
    /// For each coordinate, where its unit vector goes.
    rows: Vec<f32>,
}

impl Rotation {
    /// Of rows of a matrix. `None` if there are not `dim` of `dim` floats.
    pub fn new(dim: usize, rows: Vec<f32>) -> Option<Rotation> {
        (dim > 0 && rows.len() == dim * dim).then_some(Rotation { dim, rows })
    }

    /// The matrix: for each coordinate, where its unit vector goes.
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// Makes `out` the rotated `input`, the same to the last bit on every machine. O(dim^2).
    ///
    /// # Panics
    /// If `input` does not have the rotation's dimension.
    pub fn apply(&self, input: &[f32], out: &mut Vec<f32>) {
        assert_eq!(input.len(), self.dim, "a vector has the rotation's dimension");
        out.clear();
        out.resize(self.dim, 0.0);
        wide(
            #[inline(always)]
            || {
                // Four rows at a time, added in their order.
                let (inputs, input_rest) = input.as_chunks::<4>();
                let mut rows = self.rows.chunks_exact(4 * self.dim);
                for (x, rows) in inputs.iter().zip(&mut rows) {
                    let (a, rest) = rows.split_at(self.dim);
                    let (b, rest) = rest.split_at(self.dim);
                    let (c, d) = rest.split_at(self.dim);
                    for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                        *out = (((*out + x[0] * a) + x[1] * b) + x[2] * c) + x[3] * d;
                    }
                }
                for (x, row) in input_rest.iter().zip(rows.remainder().chunks_exact(self.dim)) {
                    out.iter_mut().zip(row).for_each(|(out, r)| *out += x * r);
                }
            },
        );
    }

    /// Makes `out` the rotated rows of `points`, but for rounding. Runs on the current thread pool and does not depend
    /// on its threads.
    ///
    /// # Panics
    /// If `out` is not as long as `points`, or these are not whole rows.
    pub fn apply_all(&self, points: &[f32], out: &mut [f32]) {
        assert_eq!(points.len(), out.len(), "a place for each");
        let size = ROWS * self.dim;
        out.par_chunks_mut(size).zip(points.par_chunks(size)).for_each(|(out, points)| {
            let shape = (points.len() / self.dim, self.dim);
            multiply(1.0, view(points, shape), view(&self.rows, (self.dim, self.dim)), 0.0, out);
        });
    }
}

/// A training in steps.
pub struct Trainer {
    dim: usize,
    subs: usize,
    bits: u8,
    seed: u64,
    rotation: Rotation,
    stage: Stage,
    round: usize,
    /// Points as they are rotated, then what codes make of them.
    turned: Vec<f32>,
    /// On its way to an orthogonal matrix, and how far it has come.
    matrix: Vec<f32>,
    iterations: usize,
    pq: Option<Pq>,
}

enum Stage {
    Turn,
    Begin(pq::Trainer),
    Fit,
    Correlate,
    Orthogonalise,
    Done,
}

impl Trainer {
    /// For product quantizers of these measures.
    ///
    /// # Panics
    /// As [`pq::Trainer::new`].
    pub fn new(dim: usize, subs: usize, bits: u8, seed: u64) -> Trainer {
        let mut rows = vec![0.0; dim * dim];
        rows.iter_mut().step_by(dim + 1).for_each(|one| *one = 1.0);
        Trainer {
            dim,
            subs,
            bits,
            seed,
            rotation: Rotation { dim, rows },
            stage: Stage::Turn,
            round: 0,
            turned: Vec::new(),
            matrix: Vec::new(),
            iterations: 0,
            pq: None,
        }
    }

    /// How many of so many points it looks at: the first.
    pub fn wanted(dim: usize, points: usize) -> usize {
        points.min(POINTS.max(POINTS_OF_DIM * dim))
    }

    /// A part of a round, on the current thread pool; the same points every time. False once there is nothing left to
    /// do.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], for the points as they are rotated.
    ///
    /// # Panics
    /// If `points` are not whole rows.
    pub fn step(&mut self, points: &[f32]) -> Result<bool> {
        assert!(points.len().is_multiple_of(self.dim), "points are rows of {} floats", self.dim);
        let points = &points[..Trainer::wanted(self.dim, points.len() / self.dim) * self.dim];
        match &mut self.stage {
            Stage::Turn => {
                let more = points.len().saturating_sub(self.turned.len());
                self.turned.try_reserve_exact(more).map_err(|_| {
                    let bytes = size_of_val(points) as u64;
                    Error::OutOfMemory { what: "the training sample, rotated", bytes }
                })?;
                self.turned.resize(points.len(), 0.0);
                self.rotation.apply_all(points, &mut self.turned);
                self.stage = match self.pq {
                    Some(_) => Stage::Fit,
                    None => {
                        Stage::Begin(pq::Trainer::new(self.dim, self.subs, self.bits, self.seed))
                    }
                };
            }
            Stage::Begin(trainer) => {
                if !trainer.step(&self.turned)
                    && let Stage::Begin(trainer) = std::mem::replace(&mut self.stage, Stage::Fit)
                {
                    self.pq = Some(trainer.finish());
                }
            }
            Stage::Fit => {
                if let Some(pq) = &mut self.pq {
                    pq.fit(&self.turned, FITS);
                    let dim = self.dim;
                    self.turned.par_chunks_mut(dim).for_each_init(
                        || (pq::Scratch::default(), vec![0; self.subs]),
                        |(scratch, codes), point| {
                            pq.encode(point, codes, scratch);
                            pq.decode(codes, point);
                        },
                    );
                }
                self.stage = Stage::Correlate;
            }
            Stage::Correlate => {
                self.correlate(points);
                self.stage = Stage::Orthogonalise;
            }
            Stage::Orthogonalise => self.orthogonalise(),
            Stage::Done => {}
        }
        Ok(!matches!(self.stage, Stage::Done))
    }

    /// The share of the rounds that is done.
    pub fn share(&self) -> f64 {
        self.round as f64 / ROUNDS as f64
    }

    /// The rotation, once all steps are done.
    pub fn finish(self) -> Rotation {
        self.rotation
    }

    /// Makes the matrix that whose orthogonal factor is the next rotation, at a scale at which no direction is much
    /// longer than one.
    fn correlate(&mut self, points: &[f32]) {
        let (dim, count) = (self.dim, points.len() / self.dim);
        let (points, coded) = (view(points, (count, dim)), view(&self.turned, (count, dim)));
        self.matrix.resize(dim * dim, 0.0);
        self.matrix.par_chunks_mut(ROWS * dim).enumerate().for_each(|(chunk, out)| {
            let first = chunk * ROWS;
            let columns = points.slice(ndarray::s![.., first..first + out.len() / dim]);
            multiply(1.0, columns.t(), coded, 0.0, out);
        });
        let norm = spectral_norm(&self.matrix, dim);
        let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        // Where there is nothing to go by, the rotation stays.
        let stays = if scale > 0.0 && scale.is_finite() { STAYS } else { 1.0 };
        let scale = if stays < 1.0 { scale } else { 0.0 };
        for (entry, before) in self.matrix.iter_mut().zip(&self.rotation.rows) {
            *entry = if scale > 0.0 { *entry * scale } else { 0.0 } + stays * before;
        }
        self.iterations = 0;
    }

    /// Some iterations `M = M (3 - M' M) / 2`, each of which brings all directions nearer to length one.
    fn orthogonalise(&mut self) {
        let dim = self.dim;
        let (mut square, mut next) = (vec![0f32; dim * dim], vec![0f32; dim * dim]);
        for _ in 0..ITERATIONS_OF_STEP {
            let matrix = view(&self.matrix, (dim, dim));
            square.par_chunks_mut(ROWS * dim).enumerate().for_each(|(chunk, out)| {
                let first = chunk * ROWS;
                let columns = matrix.slice(ndarray::s![.., first..first + out.len() / dim]);
                multiply(1.0, columns.t(), matrix, 0.0, out);
            });
            let off = square.iter().enumerate().map(|(at, value)| {
                let one = if at.is_multiple_of(dim + 1) { 1.0 } else { 0.0 };
                (value - one).abs()
            });
            let off = off.fold(0f32, |most, off| if off <= most { most } else { off });
            self.iterations += 1;
            // What is no number has not come nearer either.
            let fails = off.is_nan() || self.iterations == ITERATIONS && off > NEAR;
            if off <= EXACT || fails || self.iterations == ITERATIONS {
                if fails {
                    self.round = ROUNDS;
                } else {
                    self.rotation.rows.copy_from_slice(&self.matrix);
                    self.round += 1;
                }
                self.stage = if self.round >= ROUNDS { Stage::Done } else { Stage::Turn };
                return;
            }
            next.copy_from_slice(&self.matrix);
            let square = view(&square, (dim, dim));
            next.par_chunks_mut(ROWS * dim).zip(self.matrix.par_chunks(ROWS * dim)).for_each(
                |(out, rows)| {
                    multiply(-0.5, view(rows, (rows.len() / dim, dim)), square, 1.5, out);
                },
            );
            std::mem::swap(&mut self.matrix, &mut next);
        }
    }
}

/// About the most that the matrix stretches a vector, rather too much.
fn spectral_norm(matrix: &[f32], dim: usize) -> f32 {
    let mut vector = vec![1f64; dim];
    let mut norm = 0.0;
    for _ in 0..12 {
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length == 0.0 || !length.is_finite() {
            break;
        }
        vector.iter_mut().for_each(|x| *x /= length);
        // The matrix, then what it is transposed.
        let row = |row: &[f32]| row.iter().zip(&vector).map(|(a, x)| f64::from(*a) * x).sum();
        let image: Vec<f64> = matrix.chunks_exact(dim).map(row).collect();
        norm = image.iter().map(|x| x * x).sum::<f64>().sqrt();
        vector = vec![0.0; dim];
        for (row, x) in matrix.chunks_exact(dim).zip(&image) {
            row.iter().zip(&mut vector).for_each(|(a, out)| *out += f64::from(*a) * x);
        }
    }
    (1.2 * norm) as f32
}

fn view(rows: &[f32], shape: (usize, usize)) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape(shape, rows).expect("as many as the shape has")
}

/// Makes `out` the product of two matrices times `factor`, plus itself times `keeps`.
fn multiply(
    factor: f32,
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    keeps: f32,
    out: &mut [f32],
) {
    let shape = (a.nrows(), b.ncols());
    let mut out = ArrayViewMut2::from_shape(shape, out).expect("as many as the product has");
    general_mat_mul(factor, &a, &b, keeps, &mut out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::testing::Rng;

    /// Points whose coordinates depend on one another, in pairs that lie in different pieces.
    fn points(count: usize, dim: usize) -> Vec<f32> {
        let mut rng = Rng(7);
        let mut unit = || (rng.next() >> 40) as f32 / (1u64 << 24) as f32;
        let mut normal = || (0..6).map(|_| unit()).sum::<f32>() - 3.0;
        let mut points = Vec::new();
        for _ in 0..count {
            let point: Vec<f32> = (0..dim).map(|at| normal() * 3.0 / (1 + at) as f32).collect();
            let pair = |at: usize| point[at] + point[(at + dim / 2) % dim] * 2.0;
            points.extend((0..dim).map(pair));
        }
        points
    }

    fn square(values: &[f32]) -> f64 {
        values.iter().map(|x| f64::from(*x).powi(2)).sum()
    }

    /// What codes miss of points.
    fn missed(values: &[f32], dim: usize, subs: usize) -> f64 {
        let pq = Pq::train(values, dim, subs, 4, 1);
        let (mut codes, mut out) = (vec![0; subs], vec![0.0; dim]);
        let mut scratch = pq::Scratch::default();
        let of = |row: &[f32]| {
            pq.encode(row, &mut codes, &mut scratch);
            pq.decode(&codes, &mut out);
            square(&row.iter().zip(&out).map(|(a, b)| a - b).collect::<Vec<_>>())
        };
        values.chunks_exact(dim).map(of).sum()
    }

    fn train(values: &[f32], dim: usize, subs: usize) -> Rotation {
        let mut trainer = Trainer::new(dim, subs, 4, 1);
        while trainer.step(values).unwrap() {}
        trainer.finish()
    }

    #[test]
    fn codes_of_rotated_points_miss_less() {
        for (dim, subs) in [(16, 4), (24, 12), (11, 3)] {
            let values = points(3000, dim);
            let rotation = train(&values, dim, subs);
            let mut turned = vec![0.0; values.len()];
            rotation.apply_all(&values, &mut turned);
            assert!((square(&turned) / square(&values) - 1.0).abs() < 1e-4);
            let (with, without) = (missed(&turned, dim, subs), missed(&values, dim, subs));
            assert!(with < 0.9 * without, "{dim}: {with}, {without}");
        }
    }

    #[test]
    fn one_is_rotated_as_all_are() {
        let values = points(500, 21);
        let rotation = train(&values, 21, 7);
        let mut all = vec![0.0; values.len()];
        rotation.apply_all(&values, &mut all);
        let mut one = Vec::new();
        for (point, turned) in values.chunks_exact(21).zip(all.chunks_exact(21)) {
            rotation.apply(point, &mut one);
            assert!(one.iter().zip(turned).all(|(a, b)| (a - b).abs() < 1e-4));
        }
        assert_eq!(Rotation::new(21, rotation.rows().to_vec()), Some(rotation));
        assert_eq!(Rotation::new(3, vec![0.0; 8]), None);
    }

    #[test]
    fn threads_make_no_difference() {
        let values = points(1000, 150);
        let by = |threads| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| train(&values, 150, 30))
        };
        assert!(by(1) == by(3));
    }

    /// Where there is nothing to learn from, vectors stay as they are.
    #[test]
    fn degenerate_points() {
        for values in [vec![], vec![0.0; 40], vec![1e-30; 40], vec![1e18; 40], vec![3.0; 8]] {
            let rotation = train(&values, 8, 4);
            let (input, mut out) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], Vec::new());
            rotation.apply(&input, &mut out);
            assert!((square(&out) - 204.0).abs() < 0.1, "{values:?}: {out:?}");
        }
    }
}
