//! k-means: points cut into clusters around their means, by Lloyd's iterations.
//!
//! Points are assigned by products of small matrices: of `|c|^2 / 2 - <x, c>` over all centroids `c`, the smallest is
//! of the nearest. A cluster that runs empty is given a point of the largest. Sums run over a cluster's points in their
//! order, whatever thread takes them: the result does not depend on the number of threads.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::kernel::wide::wide;
use crate::seed::mix;

/// Rows of one matrix product.
const ROWS: usize = 128;
/// Centroids of one matrix product, so that the products stay in the cache.
const COLUMNS: usize = 512;
/// Products of floats that a step sums up, about.
const STEP: usize = 1 << 31;
/// Lanes in which minima are kept.
const LANES: usize = 16;
/// With so many clusters at most, seeds are chosen far from one another.
const SPREAD: usize = 256;
/// Points among which such seeds are chosen, for each cluster.
const SPREAD_POINTS: usize = 64;

/// How to train.
#[derive(Clone, Copy, Debug)]
pub struct Training {
    /// Clusters asked for; there are no more than points.
    pub clusters: usize,
    /// Iterations, at most; it ends before that once no point changes its cluster.
    pub iterations: usize,
    /// Whether centroids are brought to length one.
    pub spherical: bool,
    /// Of the choice of the first centroids.
    pub seed: u64,
}

/// The centroids of `points`, rows of `dim` floats, one after the other. Runs on the current thread pool.
///
/// # Panics
/// If `dim` is zero or `points` are not whole rows.
pub fn train(points: &[f32], dim: usize, training: &Training) -> Vec<f32> {
    let mut trainer = Trainer::new(points, dim, *training);
    while trainer.step(points) {}
    trainer.finish()
}

/// A training in steps.
pub struct Trainer {
    dim: usize,
    training: Training,
    centroids: Vec<f32>,
    iteration: usize,
    /// The nearest centroids in the last iteration, and as far as they are known in this.
    before: Vec<u32>,
    nearest: Vec<u32>,
}

impl Trainer {
    /// Chooses the first centroids of `points`, rows of `dim` floats.
    ///
    /// # Panics
    /// If `dim` is zero or `points` are not whole rows.
    pub fn new(points: &[f32], dim: usize, training: Training) -> Trainer {
        assert!(dim > 0 && points.len().is_multiple_of(dim), "points are rows of {dim} floats");
        let clusters = training.clusters.min(points.len() / dim);
        let mut centroids = match clusters {
            0 => Vec::new(),
            _ => seeds(points, dim, clusters, training.seed),
        };
        if training.spherical {
            normalise(&mut centroids, dim);
        }
        let (before, nearest) = (Vec::new(), Vec::new());
        Trainer { dim, training, centroids, iteration: 0, before, nearest }
    }

    /// One step, of an iteration or a part of it, with the same points. False once there is nothing left to do. Runs on
    /// the current thread pool.
    pub fn step(&mut self, points: &[f32]) -> bool {
        let (dim, clusters) = (self.dim, self.centroids.len() / self.dim);
        if self.iteration >= self.training.iterations || clusters == 0 {
            return false;
        }
        let from = dim * self.nearest.len();
        let to = points.len().min(from + dim * step_rows(clusters, dim));
        self.nearest.extend(assign(&points[from..to], dim, &self.centroids));
        if to < points.len() {
            return true;
        }
        if self.nearest == self.before {
            self.iteration = self.training.iterations;
            return false;
        }
        let seed = mix(self.training.seed ^ self.iteration as u64);
        self.centroids =
            means(points, dim, &self.nearest, std::mem::take(&mut self.centroids), seed);
        if self.training.spherical {
            normalise(&mut self.centroids, dim);
        }
        self.before = std::mem::take(&mut self.nearest);
        self.iteration += 1;
        self.iteration < self.training.iterations
    }

    /// The share of the iterations that is done.
    pub fn share(&self) -> f64 {
        let iterations = self.training.iterations.max(1) as f64;
        let of_points = match self.before.len() {
            0 => 0.0,
            points => self.nearest.len() as f64 / points as f64,
        };
        ((self.iteration as f64 + of_points) / iterations).min(1.0)
    }

    /// The centroids as they are now, one after the other.
    pub fn finish(self) -> Vec<f32> {
        self.centroids
    }
}

/// Points that can be assigned to so many clusters in a fraction of a second.
pub fn step_rows(clusters: usize, dim: usize) -> usize {
    let least = ROWS * rayon::current_num_threads();
    (STEP / (clusters * dim).max(1)).max(least).next_multiple_of(ROWS)
}

/// The nearest centroid of each point; of equally near ones the first. Runs on the current thread pool.
///
/// # Panics
/// If there are no centroids, or points or centroids are not whole rows.
pub fn assign(points: &[f32], dim: usize, centroids: &[f32]) -> Vec<u32> {
    let finder = Finder::new(centroids, dim);
    let mut nearest = vec![0; points.len() / dim];
    nearest.par_chunks_mut(ROWS).zip(points.par_chunks(ROWS * dim)).for_each_init(
        || Array2::zeros((0, 0)),
        |products, (nearest, points)| finder.find(points, products, nearest),
    );
    nearest
}

/// Finds nearest centroids, on the calling thread.
pub struct Finder<'a> {
    centroids: ArrayView2<'a, f32>,
    halves: Vec<f32>,
}

impl<'a> Finder<'a> {
    /// Of these centroids, rows of `dim` floats.
    ///
    /// # Panics
    /// If there are none, or not whole rows.
    pub fn new(centroids: &'a [f32], dim: usize) -> Finder<'a> {
        let count = centroids.len() / dim;
        assert!(count > 0, "points are nearest to something");
        let halves = centroids
            .chunks_exact(dim)
            .map(|row| (row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 2.0) as f32);
        let halves = halves.collect();
        let view = ArrayView2::from_shape((count, dim), centroids);
        Finder { centroids: view.expect("centroids are whole rows"), halves }
    }

    /// Makes `nearest` the nearest centroid of each point. `products` is scratch.
    ///
    /// # Panics
    /// If there is not a row of `points` for each place of `nearest`.
    pub fn find(&self, points: &[f32], products: &mut Array2<f32>, nearest: &mut [u32]) {
        let (count, dim) = self.centroids.dim();
        let points = ArrayView2::from_shape((nearest.len(), dim), points).expect("a row for each");
        let mut least = vec![f32::INFINITY; nearest.len()];
        nearest.fill(0);
        for first in (0..count).step_by(COLUMNS) {
            let last = count.min(first + COLUMNS);
            let shape = (nearest.len(), last - first);
            if products.dim() != shape {
                *products = Array2::zeros(shape);
            }
            let centroids = self.centroids.slice(ndarray::s![first..last, ..]);
            general_mat_mul(1.0, &points, &centroids.t(), 0.0, products);
            for (at, products) in products.outer_iter().enumerate() {
                let Some(products) = products.to_slice() else { continue };
                let (score, column) = least_of(products, &self.halves[first..last]);
                if score < least[at] {
                    (least[at], nearest[at]) = (score, (first + column) as u32);
                }
            }
        }
    }
}

/// Finds for points a second centroid that makes up for what the first is bad at (SOAR, arXiv 2404.00774): the least
/// of `|x - c|^2 + weight * <x - c, u>^2`, where `u` is the direction from the first centroid to `x`. A query for which
/// the first centroid says little of `x` lies in that direction, and should not find the same of the second.
pub struct Seconds<'a> {
    finder: Finder<'a>,
    weight: f32,
}

/// What finding second centroids needs for a while.
#[derive(Default)]
pub struct SecondsScratch {
    units: Vec<f32>,
    products: [Array2<f32>; 2],
}

impl<'a> Seconds<'a> {
    /// Of these centroids, rows of `dim` floats.
    ///
    /// # Panics
    /// If there are fewer than two, or not whole rows.
    pub fn new(centroids: &'a [f32], dim: usize, weight: f32) -> Seconds<'a> {
        assert!(centroids.len() >= 2 * dim, "a second one is another one");
        Seconds { finder: Finder::new(centroids, dim), weight }
    }

    /// Makes `seconds` the second centroid of each point, whose first is given.
    ///
    /// # Panics
    /// If there is not a row of `points` for each place of `firsts` and `seconds`.
    pub fn find(
        &self,
        points: &[f32],
        firsts: &[u32],
        scratch: &mut SecondsScratch,
        seconds: &mut [u32],
    ) {
        let Finder { centroids, halves } = &self.finder;
        let (count, dim) = centroids.dim();
        assert_eq!(firsts.len(), seconds.len(), "a first one for each");
        let SecondsScratch { units, products } = scratch;
        units.clear();
        for (point, &first) in points.chunks_exact(dim).zip(firsts) {
            let centroid = centroids.row(first as usize);
            units.extend(point.iter().zip(centroid).map(|(x, c)| x - c));
        }
        normalise(units, dim);
        // What a point has along its own direction.
        let along: Vec<f32> = points
            .chunks_exact(dim)
            .zip(units.chunks_exact(dim))
            .map(|(x, u)| x.iter().zip(u).map(|(x, u)| f64::from(x * u)).sum::<f64>() as f32)
            .collect();
        let view = |rows| ArrayView2::from_shape((seconds.len(), dim), rows).expect("a row each");
        let (points, units) = (view(points), view(&units[..]));
        let mut least = vec![f32::INFINITY; seconds.len()];
        // Where no loss is a number, one that is not the first.
        seconds.iter_mut().zip(firsts).for_each(|(second, &first)| *second = u32::from(first == 0));
        for from in (0..count).step_by(COLUMNS) {
            let to = count.min(from + COLUMNS);
            let shape = (seconds.len(), to - from);
            let those = centroids.slice(ndarray::s![from..to, ..]);
            for (products, rows) in products.iter_mut().zip([&points, &units]) {
                if products.dim() != shape {
                    *products = Array2::zeros(shape);
                }
                general_mat_mul(1.0, rows, &those.t(), 0.0, products);
            }
            let [near, across] = &mut *products;
            for (at, (mut near, across)) in
                near.outer_iter_mut().zip(across.outer_iter()).enumerate()
            {
                let (Some(near), Some(across)) = (near.as_slice_mut(), across.to_slice()) else {
                    continue;
                };
                let (halves, own) = (&halves[from..to], along[at]);
                // Halves of what both terms are, as what is compared is.
                wide(
                    #[inline(always)]
                    || {
                        for (near, &across) in near.iter_mut().zip(across) {
                            *near -= 0.5 * self.weight * (own - across) * (own - across);
                        }
                    },
                );
                if let Some(first) = (firsts[at] as usize).checked_sub(from)
                    && first < near.len()
                {
                    near[first] = f32::NEG_INFINITY;
                }
                let (loss, column) = least_of(near, halves);
                if loss < least[at] {
                    (least[at], seconds[at]) = (loss, (from + column) as u32);
                }
            }
        }
    }
}

/// The smallest of `half - product` and its place; of equal ones the first.
fn least_of(products: &[f32], halves: &[f32]) -> (f32, usize) {
    wide(
        #[inline(always)]
        || {
            let (mut least, mut places) = ([f32::INFINITY; LANES], [0u32; LANES]);
            let (products, rest) = products.as_chunks::<LANES>();
            let (halves, rest_halves) = halves.as_chunks::<LANES>();
            for (group, (products, halves)) in (0u32..).zip(products.iter().zip(halves)) {
                for i in 0..LANES {
                    let score = halves[i] - products[i];
                    let better = score < least[i];
                    least[i] = if better { score } else { least[i] };
                    places[i] = if better { group } else { places[i] };
                }
            }
            let mut best = (f32::INFINITY, 0);
            for (lane, (&score, &group)) in least.iter().zip(&places).enumerate() {
                let place = group as usize * LANES + lane;
                if score < best.0 || score == best.0 && place < best.1 {
                    best = (score, place);
                }
            }
            let behind = products.len() * LANES;
            for (i, (product, half)) in rest.iter().zip(rest_halves).enumerate() {
                if half - product < best.0 {
                    best = (half - product, behind + i);
                }
            }
            best
        },
    )
}

/// The first centroids: points drawn at random; few of them, far from one another with more chance (k-means++).
fn seeds(points: &[f32], dim: usize, clusters: usize, seed: u64) -> Vec<f32> {
    let count = points.len() / dim;
    let row = |at: usize| &points[at * dim..][..dim];
    let mut order: Vec<u32> = (0..count as u32).collect();
    let wanted = match clusters <= SPREAD {
        true => count.min(SPREAD_POINTS * clusters),
        false => clusters,
    };
    let mut state = mix(seed);
    let mut draw = move || {
        state = mix(state);
        state
    };
    for at in 0..wanted {
        order.swap(at, at + (draw() % (count - at) as u64) as usize);
    }
    order.truncate(wanted);
    let mut centroids = Vec::with_capacity(clusters * dim);
    if clusters > SPREAD {
        order.iter().for_each(|&at| centroids.extend_from_slice(row(at as usize)));
        return centroids;
    }
    let mut distances = vec![f64::INFINITY; wanted];
    let mut next = 0;
    for _ in 0..clusters {
        let from = centroids.len();
        centroids.extend_from_slice(row(order[next] as usize));
        for (distance, &at) in distances.iter_mut().zip(&order) {
            let terms = row(at as usize).iter().zip(&centroids[from..]);
            let square: f64 = terms.map(|(a, b)| f64::from(a - b).powi(2)).sum();
            *distance = distance.min(square);
        }
        let total: f64 = distances.iter().sum();
        let mut left = total * (draw() >> 11) as f64 / (1u64 << 53) as f64;
        // Where all coincide, whichever.
        next = (draw() % wanted as u64) as usize;
        if total > 0.0 {
            let passed = distances.iter().position(|&distance| {
                left -= distance;
                left < 0.0
            });
            next = passed.unwrap_or(next);
        }
    }
    centroids
}

/// The mean of each cluster; an empty one gets a point of the largest.
fn means(points: &[f32], dim: usize, nearest: &[u32], mut old: Vec<f32>, seed: u64) -> Vec<f32> {
    let clusters = old.len() / dim;
    let (order, starts) = by_cluster(nearest, clusters);
    old.par_chunks_mut(dim).enumerate().for_each(|(cluster, centroid)| {
        let members = &order[starts[cluster]..starts[cluster + 1]];
        if members.is_empty() {
            return;
        }
        let mut sums = vec![0f64; dim];
        for &at in members {
            let point = &points[at as usize * dim..][..dim];
            sums.iter_mut().zip(point).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let share = 1.0 / members.len() as f64;
        centroid.iter_mut().zip(sums).for_each(|(mean, sum)| *mean = (sum * share) as f32);
    });
    let mut sizes: Vec<usize> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let mut empty: Vec<usize> = (0..clusters).filter(|&cluster| sizes[cluster] == 0).collect();
    // No more at a time than there are large ones to take from.
    empty.truncate(clusters.div_ceil(8));
    for (turn, cluster) in empty.into_iter().enumerate() {
        let members = |other: usize| starts[other + 1] - starts[other];
        let divisible = (0..clusters).filter(|&other| members(other) > 1 && sizes[other] > 1);
        let Some(largest) = divisible.max_by_key(|&other| (sizes[other], !other)) else { break };
        let members = &order[starts[largest]..starts[largest + 1]];
        let at = members[(mix(seed ^ turn as u64) % members.len() as u64) as usize] as usize;
        old[cluster * dim..][..dim].copy_from_slice(&points[at * dim..][..dim]);
        sizes[cluster] = sizes[largest] / 2;
        sizes[largest] -= sizes[cluster];
    }
    old
}

/// The points in the order of their clusters, and where each cluster begins.
pub fn by_cluster(nearest: &[u32], clusters: usize) -> (Vec<u32>, Vec<usize>) {
    let mut starts = vec![0; clusters + 1];
    nearest.iter().for_each(|&cluster| starts[cluster as usize + 1] += 1);
    for cluster in 0..clusters {
        starts[cluster + 1] += starts[cluster];
    }
    let mut next = starts.clone();
    let mut order = vec![0; nearest.len()];
    for (at, &cluster) in (0..).zip(nearest) {
        order[next[cluster as usize]] = at;
        next[cluster as usize] += 1;
    }
    (order, starts)
}

/// Brings rows to length one, where they have a direction.
pub fn normalise(rows: &mut [f32], dim: usize) {
    for row in rows.chunks_exact_mut(dim) {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::testing::Rng;

    #[test]
    fn second_centroids_have_the_least_loss() {
        let mut rng = Rng(3);
        let mut unit = || (rng.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        let (dim, count, weight) = (7, 1100, 1.5f32);
        let centroids: Vec<f32> = (0..count * dim).map(|_| unit()).collect();
        let points: Vec<f32> = (0..200 * dim).map(|_| unit()).collect();
        let firsts = assign(&points, dim, &centroids);
        let mut seconds = vec![0; firsts.len()];
        let finder = Seconds::new(&centroids, dim, weight);
        finder.find(&points, &firsts, &mut SecondsScratch::default(), &mut seconds);
        for ((point, &first), &second) in points.chunks_exact(dim).zip(&firsts).zip(&seconds) {
            let beside = |at: usize| -> Vec<f32> {
                point.iter().zip(&centroids[at * dim..]).map(|(x, c)| x - c).collect()
            };
            let mut direction = beside(first as usize);
            normalise(&mut direction, dim);
            let loss = |at: usize| {
                let beside = beside(at);
                let along: f32 = beside.iter().zip(&direction).map(|(x, u)| x * u).sum();
                beside.iter().map(|x| x * x).sum::<f32>() + weight * along * along
            };
            let others = (0..count).filter(|&at| at != first as usize);
            let least = others.map(loss).fold(f32::INFINITY, f32::min);
            assert_ne!(first, second);
            assert!(loss(second as usize) <= least * (1.0 + 1e-5) + 1e-6);
        }
    }

    fn points(count: usize, dim: usize) -> Vec<f32> {
        let mut rng = Rng(3);
        let centers: Vec<f32> = (0..20 * dim).map(|_| (rng.next() % 2000) as f32).collect();
        let mut values = Vec::new();
        for _ in 0..count {
            let center = &centers[(rng.next() % 20) as usize * dim..][..dim];
            values.extend(center.iter().map(|x| x + (rng.next() % 100) as f32));
        }
        values
    }

    fn distance(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    fn spread(values: &[f32], dim: usize, centroids: &[f32]) -> f64 {
        let nearest = assign(values, dim, centroids);
        let of = |(at, c): (usize, &u32)| {
            distance(&values[at * dim..][..dim], &centroids[*c as usize * dim..][..dim])
        };
        nearest.iter().enumerate().map(of).sum::<f64>() / nearest.len() as f64
    }

    fn training(clusters: usize) -> Training {
        Training { clusters, iterations: 15, spherical: false, seed: 1 }
    }

    #[test]
    fn assigns_to_the_nearest() {
        for (count, dim, clusters) in [(300, 3, 7), (1000, 24, 700), (130, 100, 16)] {
            let values = points(count, dim);
            let centroids = &values[..clusters.min(count) * dim];
            let nearest = assign(&values, dim, centroids);
            for (at, &found) in nearest.iter().enumerate() {
                let row = &values[at * dim..][..dim];
                let to = |c: usize| distance(row, &centroids[c * dim..][..dim]);
                let best = (0..centroids.len() / dim).map(to).fold(f64::INFINITY, f64::min);
                assert!(to(found as usize) <= best + 1e-5 * (1.0 + distance(row, &vec![0.0; dim])));
            }
        }
    }

    /// 20 heaps of points, at most 100 wide, far from one another: 20 clusters find them.
    #[test]
    fn clusters_are_found() {
        let values = points(3000, 8);
        let trained = train(&values, 8, &training(20));
        let inside = spread(&values, 8, &trained);
        assert!(inside < 3.0 * 8.0 * 100.0 * 100.0 / 12.0, "{inside}");
        let drawn = seeds(&values, 8, 400, 1);
        let many = train(&values, 8, &training(400));
        assert!(spread(&values, 8, &many) < 0.9 * spread(&values, 8, &drawn));
    }

    #[test]
    fn threads_make_no_difference() {
        let values = points(3000, 12);
        let by = |threads| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| train(&values, 12, &training(300)))
        };
        assert!(by(1) == by(3));
    }

    #[test]
    fn empty_clusters_are_filled() {
        // All seeds of one heap: the others' clusters would stay empty.
        let mut values = points(2000, 4);
        values.truncate(1990 * 4);
        values.extend(vec![0.5; 40]);
        let trained = train(&values, 4, &training(500));
        let mut met = vec![false; 500];
        assign(&values, 4, &trained).iter().for_each(|&c| met[c as usize] = true);
        assert!(met.iter().filter(|&&met| !met).count() < 25);
    }

    #[test]
    fn few_points_one_point_and_none() {
        assert_eq!(train(&[], 4, &training(5)), Vec::<f32>::new());
        let few = train(&points(3, 4), 4, &training(5));
        assert_eq!(few.len(), 12);
        let same = train(&[2.0; 400], 4, &training(5));
        assert_eq!(same, vec![2.0; 20]);
    }

    #[test]
    fn spherical_centroids_have_length_one() {
        let options = Training { spherical: true, ..training(30) };
        let trained = train(&points(1000, 6), 6, &options);
        for row in trained.chunks_exact(6) {
            assert!((distance(row, &[0.0; 6]) - 1.0).abs() < 1e-5);
        }
    }
}
