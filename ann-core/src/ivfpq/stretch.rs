//! How much what codes stand for is stretched where they are chosen for inner products.
//!
//! Codewords are means, and means are shorter than what they stand in for: the inner product of a query with a vector
//! near to it comes out too small, the more of the vector lies off its centroid. What makes up for it is the slope of the
//! true products over those by code, of neighbours in the sample: of 64 codes of 256 dimensions 1.35, of 50 of 100 1.01.

use std::ops::RangeInclusive;

use rayon::prelude::*;

use crate::code::opq;
use crate::code::pq::Pq;
use crate::kernel::wide::sum_of;

use super::code::{WordsScratch, choose};

/// Points that are taken for queries, and how many of the nearest to each tell of the stretch.
const ASKING: usize = 128;
const NEAR: usize = 3;
/// Floats of the points that these are among, at most: a training is to be interrupted within a second.
const FLOATS: usize = 1 << 22;

/// Outside of it there is something wrong with what it was learnt from, or read.
pub(super) const ALLOWED: RangeInclusive<f32> = 0.5..=8.0;

/// What a training has learnt from.
pub(super) struct Sample<'a> {
    /// What each point has beside its centroid as far as codes lean on that, rotated as it is to be.
    pub residuals: &'a [f32],
    /// The centroids of the points.
    pub nearest: &'a [u32],
    pub centroids: &'a [f32],
}

/// The stretch of a quantizer's codes, which `lean` on centroids, if what they miss along a vector counts `weight` times;
/// 1 if the sample does not tell. O(points * dim) for each of 128 of them, on the current thread pool.
pub(super) fn learn(
    pq: &Pq,
    rotation: Option<&opq::Rotation>,
    sample: &Sample<'_>,
    (lean, weight): (f32, f32),
) -> f32 {
    let &Sample { residuals, nearest, centroids } = sample;
    let dim = pq.dim();
    let nearest = &nearest[..nearest.len().min((FLOATS / dim).max(1))];
    let mut centres = centroids.to_vec();
    if let Some(rotation) = rotation {
        rotation.apply_all(centroids, &mut centres);
    }
    centres.iter_mut().for_each(|c| *c *= lean);
    let centre = |at: usize| &centres[nearest[at] as usize * dim..][..dim];
    let residual = |at: usize| &residuals[at * dim..][..dim];
    let vector = |at: usize| -> Vec<f32> {
        residual(at).iter().zip(centre(at)).map(|(r, c)| r + c).collect()
    };
    let products = |scratch: &mut WordsScratch, asking: usize| {
        let query = vector(asking);
        let to_lists: Vec<f32> = centres.chunks_exact(dim).map(|c| dot(&query, c)).collect();
        let product = |at: usize| dot(&query, residual(at)) + to_lists[nearest[at] as usize];
        let others = (0..nearest.len()).filter(|&at| at != asking);
        let mut near: Vec<(f32, usize)> = others.map(|at| (product(at), at)).collect();
        if NEAR < near.len() {
            near.select_nth_unstable_by(NEAR, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            near.truncate(NEAR);
        }
        near.sort_unstable_by_key(|&(_, at)| at);
        let (mut codes, mut decoded) = (vec![0; pq.subs()], vec![0.0; dim]);
        let (mut both, mut squares) = (0f64, 0f64);
        for (_, at) in near {
            choose(pq, residual(at), &vector(at), weight, &mut codes, scratch);
            pq.decode(&codes, &mut decoded);
            let by_code = f64::from(dot(&query, &decoded));
            both += f64::from(dot(&query, residual(at))) * by_code;
            squares += by_code * by_code;
        }
        (both, squares)
    };
    let step = nearest.len().div_ceil(ASKING).max(1);
    let asking = (0..nearest.len()).into_par_iter().step_by(step);
    let found: Vec<(f64, f64)> = asking.map_init(WordsScratch::default, products).collect();
    let (both, squares) = found.iter().fold((0.0, 0.0), |all, one| (all.0 + one.0, all.1 + one.1));
    let stretch = (both / squares) as f32;
    if ALLOWED.contains(&stretch) { stretch } else { 1.0 }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of(
        a,
        b,
        #[inline(always)]
        |a, b| a * b,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::testing::Rng;

    /// Points around two centroids, and codewords of a given share of what they stand in for.
    fn stretch(share: f32, lists: &[f32]) -> f32 {
        let (dim, mut rng) = (4, Rng(3));
        let book: Vec<f32> = (0..dim)
            .flat_map(|_| (0..16).map(|word| share * (word as f32 - 7.5)).collect::<Vec<f32>>())
            .collect();
        let pq = Pq::new(dim, dim, 4, book).unwrap();
        let mut number = || (rng.next() % 16) as f32 - 7.5;
        let residuals: Vec<f32> = (0..400 * dim).map(|_| number()).collect();
        let nearest: Vec<u32> = (0..400).map(|at| at % (lists.len() / dim) as u32).collect();
        let sample = Sample { residuals: &residuals, nearest: &nearest, centroids: lists };
        learn(&pq, None, &sample, (1.0, 1.0))
    }

    #[test]
    fn what_codes_fall_short_of_is_made_up_for() {
        let lists = [1.0, 0.0, 0.0, 2.0, 0.0, -1.0, 0.5, 0.0];
        assert!((stretch(1.0, &lists) - 1.0).abs() < 1e-3);
        let stretched = stretch(0.8, &lists);
        assert!((1.1..1.4).contains(&stretched), "{stretched}");
    }

    #[test]
    fn what_tells_nothing_stretches_nothing() {
        assert_eq!(stretch(0.0, &[0.0; 4]), 1.0);
        assert_eq!(stretch(1.0, &[f32::NAN; 4]), 1.0);
        assert_eq!(stretch(1e-30, &[0.0; 4]), 1.0);
    }
}
