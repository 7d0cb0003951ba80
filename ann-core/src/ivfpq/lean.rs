//! How much codes lean on the centroids of their lists: a code is of what a vector has beside so many times its list's.
//!
//! All of the centroid is the usual choice, and leaves the least to the codes where vectors are as they are in all
//! directions. But where pieces of vectors take few values (the borders of pictures are one), what lies beside a centroid
//! takes many more: of 784 pixels a piece for each 4 misses half as much without centroids. So a few shares are tried.

use rayon::prelude::*;

use crate::code::pq::{self, Pq};

/// The shares, in the order in which the first of the best is taken.
const SHARES: [f32; 3] = [1.0, 0.5, 0.0];
/// Points that are tried, at most, and the bits of the codes that they are tried with.
const TRIED: usize = 2048;
const BITS: u8 = 4;

/// The share with which codes of `subs` pieces miss least of a sample: what each point has beside its `nearest` centroid.
/// O(points * dim) for each codeword, on the current thread pool, whose threads make no difference.
pub(super) fn learn(
    residuals: &[f32],
    nearest: &[u32],
    centroids: &[f32],
    (dim, subs): (usize, usize),
    seed: u64,
) -> f32 {
    let step = nearest.len().div_ceil(TRIED).max(1);
    let missed = SHARES.map(|share| {
        let mut points = Vec::with_capacity(nearest.len().div_ceil(step) * dim);
        for (point, &list) in residuals.chunks_exact(dim).zip(nearest).step_by(step) {
            points.extend_from_slice(point);
            let at = points.len() - dim;
            give_back(&mut points[at..], list, centroids, share);
        }
        let pq = Pq::train(&points, dim, subs, BITS, seed);
        let missed = |(codes, scratch): &mut (Vec<u8>, pq::Scratch), point: &[f32]| {
            let mut decoded = vec![0.0; dim];
            pq.encode(point, codes, scratch);
            pq.decode(codes, &mut decoded);
            point.iter().zip(&decoded).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>()
        };
        let scratch = || (vec![0; subs], pq::Scratch::default());
        let all: Vec<f64> = points.par_chunks_exact(dim).map_init(scratch, missed).collect();
        all.iter().sum::<f64>()
    });
    let (mut best, mut least) = (SHARES[0], missed[0]);
    for (&share, &missed) in SHARES.iter().zip(&missed) {
        if missed < least {
            (best, least) = (share, missed);
        }
    }
    best
}

/// Adds to what a point has beside the centroid of a list what it is to keep of that.
pub(super) fn give_back(point: &mut [f32], list: u32, centroids: &[f32], share: f32) {
    let centroid = &centroids[list as usize * point.len()..][..point.len()];
    point.iter_mut().zip(centroid).for_each(|(x, c)| *x += (1.0 - share) * c);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::testing::Rng;

    fn lean(centroids: &[f32], mut residual: impl FnMut(usize, &mut Rng) -> f32) -> f32 {
        let (dim, mut rng) = (8, Rng(5));
        let lists = centroids.len() / dim;
        let nearest: Vec<u32> = (0..3000).map(|at| (at % lists) as u32).collect();
        let residuals: Vec<f32> = (0..3000 * dim).map(|at| residual(at, &mut rng)).collect();
        learn(&residuals, &nearest, centroids, (dim, 4), 1)
    }

    /// Many lists far from one another, around each the same cloud.
    #[test]
    fn where_lists_tell_much_codes_lean_on_them() {
        let mut rng = Rng(9);
        let centroids: Vec<f32> = (0..64 * 8).map(|_| (rng.next() % 1000) as f32).collect();
        assert_eq!(lean(&centroids, |_, rng| (rng.next() % 100) as f32 / 50.0 - 1.0), 1.0);
    }

    /// Coordinates are 0 or 1, which no centroid is.
    #[test]
    fn where_coordinates_take_few_values_codes_stand_for_themselves() {
        let mut rng = Rng(9);
        let centroids: Vec<f32> =
            (0..64 * 8).map(|_| (rng.next() % 1000) as f32 / 1000.0).collect();
        let found = lean(&centroids, |at, rng| {
            (rng.next() % 2) as f32 - centroids[(at / 8 % 64) * 8 + at % 8]
        });
        assert_eq!(found, 0.0);
    }

    #[test]
    fn points_without_number_lean_as_usual() {
        assert_eq!(lean(&[f32::NAN; 8], |_, _| 1.0), 1.0);
        assert_eq!(learn(&[], &[], &[], (8, 4), 1), 1.0);
    }
}
