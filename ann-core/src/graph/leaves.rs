//! Overlapping leaves: a set of vectors cut into small groups of near ones, each vector in several of them.
//!
//! Leaders are drawn from the set, and each vector goes to the few leaders nearest to it; groups that are still too
//! large are cut again. Near vectors share a leaf with high probability, so most neighbours of a vector can be found
//! among the members of its leaves: by products of small matrices, instead of distances to one vector at a time
//! (ball carving, as PiPNN builds its graphs).

use std::collections::VecDeque;
use std::ops::Range;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use crate::element::Element;
use crate::error::Result;
use crate::metric::Metric;
use crate::page::{MemStore, PageStore};
use crate::rows::{Array, Kind, Rows, Space, slice};
use crate::seed::mix;

/// Members of a leaf, at most.
const LEAF: usize = 1024;
/// Floats in the matrix of a leaf, at most, unless that made leaves smaller than [`BLOCK`].
const LEAF_FLOATS: usize = 1 << 22;
/// Leaders that a set is cut by, at most.
const LEADERS: usize = 1000;
/// Leaders that each vector goes to at the first cut; at later ones it is one.
const FANOUT: usize = 6;
/// Rows of one matrix product.
const BLOCK: usize = 128;
/// Multiplications of one step, roughly.
const STEP: usize = 5_000_000_000;
/// As many of them take as long as reading a coordinate from anywhere.
const READING: usize = 64;

/// Rows from which mean and scale are taken.
const SAMPLE: usize = 1000;
/// A coordinate is at most this large; products of such are floats.
const FARTHEST: f32 = 1e12;
/// Edge of the cells in which rows are counted to find crowds.
const CELL: f32 = 1e-3;
/// Rows of a cell that stay in the set.
const CROWD: usize = 16;

/// Bytes that a row takes while a set is cut, and its leaves after that.
pub(crate) const BYTES_A_ROW: usize = 4 + 4 * FANOUT + 2 * 4 * FANOUT;

/// Bytes that a thread needs for the matrices of a leaf, about, and leaders do as well.
pub(crate) fn bytes_a_thread(dim: usize) -> u64 {
    let leaf = leaf_of(dim) as u64;
    4 * leaf * (dim + BLOCK) as u64
}

fn leaf_of(dim: usize) -> usize {
    (LEAF_FLOATS / dim.max(1)).clamp(BLOCK, LEAF)
}

/// Marks the one leaf in which a row is at home.
const HOME: u32 = 1 << 31;

/// Vectors as floats, in a space where squared L2 orders them as their metric does.
pub(crate) struct Points<'a, T> {
    vectors: ArrayView2<'a, T>,
    /// Where only directions count, one over the length of each.
    inverses: Vec<f32>,
    /// Products lose less when the vectors lie around zero,
    mean: Vec<f32>,
    /// and do not overflow or vanish when half of them are shorter than one.
    scale: f32,
}

impl<'a, T: Element> Points<'a, T> {
    /// Of vectors that have yet to be measured.
    pub(crate) fn new(vectors: ArrayView2<'a, T>) -> Points<'a, T> {
        Points { vectors, inverses: Vec::new(), mean: vec![0.0; vectors.ncols()], scale: 1.0 }
    }

    /// Measures rows that follow those that have been; `metric` is not inner product, which no such space orders. With
    /// the last, mean and scale are chosen. Runs on the current thread pool.
    pub(crate) fn measure(&mut self, rows: Range<usize>, metric: Metric) {
        let vectors = self.vectors;
        let is_last = rows.end == vectors.nrows();
        if metric == Metric::Cosine {
            let inverse = |row| {
                let vector = slice(vectors.row(row));
                let squares = vector.iter().map(|value| f64::from(value.to_f32()).powi(2));
                squares.sum::<f64>().sqrt().recip() as f32
            };
            self.inverses.par_extend(rows.into_par_iter().map(inverse));
        }
        if is_last {
            self.choose_scale();
        }
    }

    fn choose_scale(&mut self) {
        let (count, dim) = self.vectors.dim();
        let step = count.div_ceil(SAMPLE).max(1);
        let sample: Vec<usize> = (0..count).step_by(step).collect();
        let (mut mean, mut row) = (vec![0f32; dim], vec![0f32; dim]);
        for &at in &sample {
            self.center(at, &mut row);
            let share = (sample.len() as f32).recip();
            mean.iter_mut().zip(&row).for_each(|(mean, value)| *mean += value * share);
        }
        self.mean = mean;
        let length = |&at: &usize| {
            self.center(at, &mut row);
            row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
        };
        let mut lengths: Vec<f64> = sample.iter().map(length).collect();
        lengths.sort_unstable_by(f64::total_cmp);
        let median = lengths.get(lengths.len() / 2).copied().unwrap_or(0.0);
        let spread = if median > 0.0 { median } else { lengths.last().copied().unwrap_or(0.0) };
        self.scale = if spread > 0.0 { spread.recip() as f32 } else { 1.0 };
    }

    /// The cells in which the rows at some places of `rows` lie, each with its place, to find crowds by. Runs on the
    /// current thread pool.
    pub(crate) fn cells(&self, rows: &[u32], places: Range<usize>) -> Vec<(u64, u32)> {
        let point = || vec![0f32; self.mean.len()];
        let cell = |point: &mut Vec<f32>, place: usize| {
            self.fill(rows[place] as usize, point);
            let hash = point
                .iter()
                .fold(0, |hash, value| mix(hash ^ (value / CELL).round() as i64 as u64));
            (hash, place as u32)
        };
        places.into_par_iter().map_init(point, cell).collect()
    }

    /// An empty table for these vectors, with what `rows` says of its own.
    pub(crate) fn table<S: PageStore>(&self, rows: &Rows<S>) -> Result<Rows<MemStore>> {
        let space = &rows.space;
        let isa = Some(space.isa());
        let space = Space::new(space.dim, space.dtype, space.metric, isa)?;
        let store = MemStore::new(Array::page_size(space.stride()))?;
        Rows::create(store, Kind::Flat, space, |meta| meta.alpha = rows.meta.alpha)
    }

    /// Puts vectors into such a table, at the slots given for their rows.
    pub(crate) fn put(
        &self,
        table: &mut Rows<MemStore>,
        slots: impl Iterator<Item = (u32, u32)>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        for (row, slot) in slots {
            bytes.clear();
            table.space.encode(&slice(self.vectors.row(row as usize)), &mut bytes);
            table.put_row(slot, &bytes)?;
        }
        Ok(())
    }

    /// The largest coordinate of a sample of these rows.
    pub(super) fn largest(&self, rows: &[u32]) -> f32 {
        let mut point = vec![0f32; self.mean.len()];
        let mut largest = 0f32;
        for &row in rows.iter().step_by(rows.len().div_ceil(SAMPLE).max(1)) {
            self.fill(row as usize, &mut point);
            largest = point.iter().fold(largest, |largest, value| largest.max(value.abs()));
        }
        largest
    }

    /// Replaces `out` with the floats of a row.
    pub(super) fn fill(&self, row: usize, out: &mut [f32]) {
        self.center(row, out);
        out.iter_mut().for_each(|value| *value = (*value * self.scale).clamp(-FARTHEST, FARTHEST));
    }

    fn center(&self, row: usize, out: &mut [f32]) {
        let vector = slice(self.vectors.row(row));
        let inverse = self.inverses.get(row).copied().unwrap_or(1.0);
        for ((out, value), mean) in out.iter_mut().zip(&*vector).zip(&self.mean) {
            *out = value.to_f32() * inverse - mean;
        }
    }

    /// Members of a leaf, at most.
    fn leaf(&self) -> usize {
        leaf_of(self.mean.len())
    }

    /// How many of the first of these leaves have their neighbours found in one step.
    pub(crate) fn leaves_a_step(&self, leaves: &[Vec<u32>]) -> usize {
        let mut work = 0;
        let enough = |leaf: &Vec<u32>| {
            work += leaf.len() * leaf.len() * self.mean.len();
            work > 2 * STEP
        };
        leaves.iter().position(enough).map_or(leaves.len(), |last| last + 1)
    }

    /// Replaces `matrix` with rows.
    fn gather(&self, rows: &[u32], matrix: &mut Matrix) {
        let dim = self.vectors.ncols();
        if matrix.values.dim() != (rows.len(), dim) {
            matrix.values = Array2::zeros((rows.len(), dim));
        }
        matrix.halves.clear();
        for (&row, out) in rows.iter().zip(matrix.values.rows_mut()) {
            if let Some(out) = out.into_slice() {
                self.fill((row & !HOME) as usize, out);
                matrix.halves.push(out.iter().map(|value| value * value).sum::<f32>() / 2.0);
            }
        }
    }
}

/// Vectors, and half the square of each one's norm: `|b|^2 / 2 - a b` orders the vectors `b` by distance to `a`.
#[derive(Default)]
struct Matrix {
    values: Array2<f32>,
    halves: Vec<f32>,
}

/// Leaders by which a set is cut.
fn leaders_of(rows: usize, fanout: usize, leaf: usize) -> usize {
    (2 + 2 * fanout * rows / leaf).min(LEADERS).min(rows)
}

fn multiply(a: ArrayView2<'_, f32>, b: &Matrix, products: &mut Array2<f32>) {
    let shape = (a.nrows(), b.values.nrows());
    if products.dim() != shape {
        *products = Array2::zeros(shape);
    }
    general_mat_mul(1.0, &a, &b.values.t(), 0.0, products);
}

/// The nearest few of a row of products, nearest first; equally near ones in their order.
#[derive(Default)]
struct Nearest {
    found: Vec<(f32, u32)>,
    limit: usize,
    bound: f32,
}

impl Nearest {
    fn reset(&mut self, limit: usize, bound: f32) {
        self.found.clear();
        self.limit = limit;
        self.bound = bound;
    }

    #[inline]
    fn offer(&mut self, key: f32, at: usize) {
        if key < self.bound {
            if self.found.len() == self.limit {
                self.found.pop();
            }
            let place = self.found.partition_point(|near| near.0 <= key);
            self.found.insert(place, (key, at as u32));
            if self.found.len() == self.limit {
                self.bound = self.found[self.limit - 1].0;
            }
        }
    }

    /// Offers all of a row. Most groups hold none that is near enough, which vector instructions find out.
    fn offer_all(&mut self, products: &[f32], halves: &[f32], except: usize) {
        const GROUP: usize = 32;
        for (group, (products, halves)) in
            products.chunks(GROUP).zip(halves.chunks(GROUP)).enumerate()
        {
            let keys = || products.iter().zip(halves).map(|(product, half)| half - product);
            if keys().fold(false, |any, key| any | (key < self.bound)) {
                for (at, key) in (group * GROUP..).zip(keys()) {
                    if at != except {
                        self.offer(key, at);
                    }
                }
            }
        }
    }
}

/// Takes all but a few of rows that crowd together out of `rows`, whose cells are given, and returns them. Seen from
/// among many that all but coincide there are no other directions: who finds its neighbours in a crowd finds no way out
/// of it. Runs on the current thread pool.
pub(crate) fn set_crowds_aside(mut cells: Vec<(u64, u32)>, rows: &mut Vec<u32>) -> Vec<u32> {
    cells.par_sort_unstable();
    let mut aside = vec![false; rows.len()];
    for crowd in cells.chunk_by(|a, b| a.0 == b.0).filter(|crowd| crowd.len() > CROWD) {
        crowd[CROWD..].iter().for_each(|&(_, at)| aside[at as usize] = true);
    }
    let mut at = 0;
    let is_aside = |_: &mut u32| {
        at += 1;
        aside[at - 1]
    };
    rows.extract_if(.., is_aside).collect()
}

/// A set on its way into leaves.
pub(crate) struct Cut {
    rows: Vec<u32>,
    seed: u64,
    leaders: Matrix,
    fanout: usize,
    /// For each row, its leaders.
    nearest: Vec<u32>,
    /// How many rows they were.
    whole: usize,
    /// The rows by leader, once all have theirs, that are yet to be made leaves, numbered.
    groups: VecDeque<(usize, Vec<u32>)>,
    /// One of them that is cut by itself, since that takes more than a step.
    inner: Option<Box<Cut>>,
    stage: Stage,
    /// The leaves, once all are there.
    pub leaves: Vec<Vec<u32>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Assign,
    Divide,
    Done,
}

impl Cut {
    /// Draws leaders for `rows`, which are in no particular order.
    pub(crate) fn new<T: Element>(points: &Points<'_, T>, rows: &[u32], seed: u64) -> Cut {
        let rows = rows.iter().map(|row| row | HOME).collect();
        Cut::with_fanout(points, rows, FANOUT, seed)
    }

    fn with_fanout<T: Element>(
        points: &Points<'_, T>,
        rows: Vec<u32>,
        fanout: usize,
        seed: u64,
    ) -> Cut {
        let count = leaders_of(rows.len(), fanout, points.leaf());
        let mut draw = seed;
        let drawn: Vec<u32> = (0..count)
            .map(|at| {
                draw = mix(draw);
                let (from, to) = (at * rows.len() / count, (at + 1) * rows.len() / count);
                rows[from + draw as usize % (to - from)]
            })
            .collect();
        let mut leaders = Matrix::default();
        points.gather(&drawn, &mut leaders);
        let fanout = fanout.min(count);
        let stage = if rows.is_empty() { Stage::Done } else { Stage::Assign };
        Cut {
            rows,
            seed,
            leaders,
            fanout,
            nearest: Vec::new(),
            whole: 0,
            groups: VecDeque::new(),
            inner: None,
            stage,
            leaves: Vec::new(),
        }
    }

    /// Whether all leaves are there.
    pub(crate) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// One step, a fraction of a second long, on the current thread pool. False once there is nothing more to do.
    pub(crate) fn step<T: Element>(&mut self, points: &Points<'_, T>) -> bool {
        self.step_within(points, STEP)
    }

    /// One step of about so many multiplications.
    fn step_within<T: Element>(&mut self, points: &Points<'_, T>, limit: usize) -> bool {
        match self.stage {
            Stage::Assign => self.assign_some(points, limit),
            Stage::Divide => self.divide_some(points, limit),
            Stage::Done => {}
        }
        !self.is_done()
    }

    fn assign_some<T: Element>(&mut self, points: &Points<'_, T>, limit: usize) {
        let leaf = points.leaf();
        if self.rows.len() <= leaf {
            self.leaves.push(std::mem::take(&mut self.rows));
            self.stage = Stage::Done;
            return;
        }
        let work = self.leaders.values.len().max(1);
        let from = self.nearest.len() / self.fanout;
        let to = self.rows.len().min(from + (limit / work).max(1).next_multiple_of(BLOCK));
        if from < to {
            self.assign(points, from, to);
            return;
        }
        self.whole = self.rows.len();
        self.groups = self.groups(leaf).into_iter().enumerate().collect();
        self.stage = Stage::Divide;
    }

    /// Makes leaves of some groups, in their order.
    fn divide_some<T: Element>(&mut self, points: &Points<'_, T>, limit: usize) {
        if let Some(inner) = &mut self.inner {
            if !inner.step_within(points, limit) {
                self.leaves.append(&mut inner.leaves);
                self.inner = None;
            }
            return;
        }
        let (leaf, whole, seed) = (points.leaf(), self.whole, self.seed);
        // Leaders cannot tell those apart that are nearly all.
        let is_cut = |group: &[u32]| group.len() > leaf && group.len() <= whole / 10 * 9;
        let cut = |(at, group)| Cut::with_fanout(points, group, 1, mix(seed ^ at as u64));
        let (mut step, mut work) = (Vec::new(), 0);
        while let Some((at, group)) = self.groups.pop_front() {
            if is_cut(&group) {
                work +=
                    group.len() * (READING + leaders_of(group.len(), 1, leaf)) * points.mean.len();
            }
            if work <= limit {
                step.push((at, group));
            } else if step.is_empty() {
                self.inner = Some(Box::new(cut((at, group))));
                return;
            } else {
                self.groups.push_front((at, group));
                break;
            }
        }
        let divide = |(at, group): (usize, Vec<u32>)| {
            if !is_cut(&group) {
                return group.chunks(leaf).map(<[u32]>::to_vec).collect();
            }
            let mut cut = cut((at, group));
            while cut.step(points) {}
            cut.leaves
        };
        let leaves: Vec<Vec<Vec<u32>>> = step.into_par_iter().map(divide).collect();
        self.leaves.extend(leaves.into_iter().flatten());
        if self.groups.is_empty() {
            self.stage = Stage::Done;
        }
    }

    /// Finds the leaders of some rows.
    fn assign<T: Element>(&mut self, points: &Points<'_, T>, from: usize, to: usize) {
        let Cut { rows, leaders, fanout, nearest, .. } = self;
        let found = rows[from..to].par_chunks(BLOCK).map_init(
            || (Matrix::default(), Array2::zeros((0, 0)), Nearest::default()),
            |(block, products, nearest), rows| {
                points.gather(rows, block);
                multiply(block.values.view(), leaders, products);
                let mut found = Vec::with_capacity(rows.len() * *fanout);
                for products in products.outer_iter() {
                    nearest.reset(*fanout, f32::INFINITY);
                    nearest.offer_all(
                        products.to_slice().unwrap_or(&[]),
                        &leaders.halves,
                        usize::MAX,
                    );
                    nearest.found.resize(*fanout, (0.0, 0));
                    found.extend(nearest.found.iter().map(|near| near.1));
                }
                found
            },
        );
        let found: Vec<Vec<u32>> = found.collect();
        nearest.extend(found.into_iter().flatten());
    }

    /// The rows by leader, small groups put together.
    fn groups(&mut self, leaf: usize) -> Vec<Vec<u32>> {
        let mut groups = vec![Vec::new(); self.leaders.values.nrows()];
        for (&row, leaders) in self.rows.iter().zip(self.nearest.chunks(self.fanout)) {
            for (rank, &leader) in leaders.iter().enumerate() {
                groups[leader as usize].push(if rank == 0 { row } else { row & !HOME });
            }
        }
        (self.rows, self.nearest) = (Vec::new(), Vec::new());
        let mut merged: Vec<Vec<u32>> = Vec::new();
        for group in groups {
            match merged.last_mut() {
                Some(last) if last.len() + group.len() <= leaf / 4 => last.extend(group),
                _ => merged.push(group),
            }
        }
        for group in &mut merged {
            // A row may have come by two leaders; what stays is the one at home.
            group.sort_unstable_by_key(|&row| (row & !HOME, row & HOME == 0));
            group.dedup_by_key(|row| *row & !HOME);
        }
        merged
    }

    /// All rows, in an order in which near ones mostly stand together.
    pub(crate) fn order(&self) -> Vec<u32> {
        let home = self.leaves.iter().flatten().filter(|&row| row & HOME != 0);
        home.map(|row| row & !HOME).collect()
    }
}

/// What finding neighbours in leaves needs; reused from leaf to leaf.
#[derive(Default)]
pub(crate) struct Scratch {
    leaf: Matrix,
    products: Array2<f32>,
    nearest: Nearest,
    sample: Vec<usize>,
}

/// Calls `found` with each row of a leaf, the `limit` rows there that are nearest to it, and as many that are
/// nearest among a sample of the leaf: those that `sampled` accepts. What is not nearer than `bound` is left out.
pub(crate) fn neighbours<T: Element>(
    points: &Points<'_, T>,
    leaf: &[u32],
    limit: usize,
    sampled: impl Fn(u32) -> bool,
    scratch: &mut Scratch,
    bound: impl Fn(u32, bool) -> f32,
    mut found: impl FnMut(u32, bool, &[(f32, u32)]),
) {
    let Scratch { leaf: matrix, products, nearest, sample } = scratch;
    points.gather(leaf, matrix);
    sample.clear();
    sample.extend((0..leaf.len()).filter(|&at| sampled(leaf[at] & !HOME)));
    for from in (0..leaf.len()).step_by(BLOCK) {
        let to = leaf.len().min(from + BLOCK);
        multiply(matrix.values.slice(s![from..to, ..]), matrix, products);
        for (own, products) in (from..to).zip(products.outer_iter()) {
            let products = products.to_slice().unwrap_or(&[]);
            for of_sample in [false, true] {
                // Keys lack what is common to all of them.
                let bound = bound(leaf[own] & !HOME, of_sample) - matrix.halves[own];
                nearest.reset(limit, bound + bound.abs() * f32::EPSILON);
                match of_sample {
                    false => nearest.offer_all(products, &matrix.halves, own),
                    true => sample.iter().filter(|&&at| at != own).for_each(|&at| {
                        nearest.offer(matrix.halves[at] - products[at], at);
                    }),
                }
                for (key, at) in &mut nearest.found {
                    (*key, *at) = (*key + matrix.halves[own], leaf[*at as usize] & !HOME);
                }
                found(leaf[own] & !HOME, of_sample, &nearest.found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::testing::Rng;

    fn vectors(rows: usize, dim: usize) -> Array2<f32> {
        let mut rng = Rng(7);
        Array2::from_shape_fn((rows, dim), |_| (rng.next() % 1000) as f32 - 500.0)
    }

    fn points(vectors: &Array2<f32>, metric: Metric) -> Points<'_, f32> {
        let mut points = Points::new(vectors.view());
        points.measure(0..vectors.nrows(), metric);
        points
    }

    fn cut(points: &Points<'_, f32>, rows: usize) -> Cut {
        let rows: Vec<u32> = (0..rows as u32).collect();
        let mut cut = Cut::new(points, &rows, 1);
        while cut.step(points) {}
        cut
    }

    #[test]
    fn every_row_is_at_home_once() {
        for (rows, dim) in [(1, 3), (5, 3), (1024, 8), (1025, 8), (6000, 8), (3000, 1)] {
            let vectors = vectors(rows, dim);
            let cut = cut(&points(&vectors, Metric::L2sq), rows);
            let mut order = cut.order();
            order.sort_unstable();
            assert!(order.into_iter().eq(0..rows as u32), "{rows} rows of {dim}");
            for leaf in &cut.leaves {
                assert!(leaf.len() <= LEAF);
                let mut members: Vec<u32> = leaf.iter().map(|row| row & !HOME).collect();
                members.sort_unstable();
                assert!(members.windows(2).all(|pair| pair[0] != pair[1]));
            }
        }
    }

    #[test]
    fn the_length_of_steps_makes_no_difference() {
        let vectors = vectors(9000, 8);
        let points = points(&vectors, Metric::L2sq);
        let whole = cut(&points, 9000);
        let rows: Vec<u32> = (0..9000).collect();
        let mut cut = Cut::new(&points, &rows, 1);
        while cut.step_within(&points, 1) {}
        assert_eq!(cut.leaves, whole.leaves);
    }

    #[test]
    fn rows_that_leaders_cannot_tell_apart() {
        let vectors = Array2::from_elem((5000, 4), 1.0f32);
        let points = points(&vectors, Metric::Cosine);
        assert_eq!(cut(&points, 5000).order().len(), 5000);
        let mut rows: Vec<u32> = (0..5000).collect();
        let aside = set_crowds_aside(points.cells(&rows, 0..5000), &mut rows);
        assert_eq!((rows.len(), aside.len()), (CROWD, 5000 - CROWD));
    }

    #[test]
    fn neighbours_are_the_nearest_of_the_leaf() {
        let vectors = vectors(300, 16);
        let points = points(&vectors, Metric::L2sq);
        let leaf: Vec<u32> = (0..300).collect();
        let distance = |a: u32, b: u32| {
            let difference = &vectors.row(a as usize) - &vectors.row(b as usize);
            difference.dot(&difference)
        };
        let mut calls = 0;
        let every_third = |row: u32| row.is_multiple_of(3);
        let unbounded = |_: u32, _: bool| f32::INFINITY;
        neighbours(
            &points,
            &leaf,
            5,
            every_third,
            &mut Scratch::default(),
            unbounded,
            |row, of_sample, found| {
                calls += 1;
                let others =
                    (0..300).filter(|&other| other != row && (!of_sample || every_third(other)));
                let mut wanted: Vec<f32> = others.map(|other| distance(row, other)).collect();
                wanted.sort_unstable_by(f32::total_cmp);
                let got: Vec<f32> = found.iter().map(|near| distance(row, near.1)).collect();
                assert_eq!(got, wanted[..5]);
            },
        );
        assert_eq!(calls, 600);
    }
}
