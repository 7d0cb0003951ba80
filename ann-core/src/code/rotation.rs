//! Random rotation: it spreads what a vector holds evenly over the coordinates, which codes of one scale need.
//!
//! A rotation is a few rounds of random signs and fast Hadamard transforms (`kernel/hadamard`), each of which keeps
//! distances and dot products. It takes `d log d` additions and no matrix.

use crate::element::MAX_DIM;
use crate::kernel::hadamard::{self, Hadamard};
use crate::kernel::wide::wide;
use crate::seed::mix;

/// Two pairs: each pair spreads any coordinate over all, the second makes the outcome look random.
const ROUNDS: usize = 4;

/// A rotation of vectors of one dimension. The same seed gives the same rotation, to the last bit, on every machine.
#[derive(Clone, Debug)]
pub struct Rotation {
    dim: usize,
    padded: usize,
    /// For each round and coordinate a random sign, times what keeps the round's lengths.
    factors: Vec<f32>,
    hadamard: Hadamard,
}

impl Rotation {
    /// The rotation of `dim` coordinates that `seed` stands for.
    ///
    /// # Panics
    /// If `dim` is zero or larger than [`MAX_DIM`].
    pub fn new(dim: usize, seed: u64) -> Rotation {
        assert!((1..=MAX_DIM).contains(&dim), "dimension {dim} is not allowed: 1 to {MAX_DIM}");
        let padded = Rotation::padded_of(dim);
        let window = hadamard::window(padded);
        let mut factors = Vec::with_capacity(ROUNDS * padded);
        for round in 0..ROUNDS {
            // Butterflies stretch by the root of two: each stage of a window, and those that join the halves.
            let join = if hadamard::joins(padded, round) { 0.5f64.sqrt() } else { 1.0 };
            let scale = join / (window as f64).sqrt();
            let start = hadamard::start(padded, round);
            let stream = mix(mix(seed) ^ round as u64);
            let mut signs = 0;
            for i in 0..padded {
                if i % 64 == 0 {
                    signs = mix(stream ^ (i / 64) as u64);
                }
                let inside = (start..start + window).contains(&i);
                let size = if inside { scale } else { join } as f32;
                factors.push(if signs >> (i % 64) & 1 == 0 { size } else { -size });
            }
        }
        Rotation { dim, padded, factors, hadamard: Hadamard::new() }
    }

    /// Coordinates of a rotated vector of `dim` coordinates.
    pub fn padded_of(dim: usize) -> usize {
        dim.next_multiple_of(hadamard::STEP)
    }

    /// Coordinates of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Coordinates of a rotated vector: [`dim`](Rotation::dim) rounded up to a multiple of 8.
    pub fn padded(&self) -> usize {
        self.padded
    }

    /// Makes `out` the rotated `input`. Allocates nothing if `out` has held as much before.
    ///
    /// # Panics
    /// If `input` does not have [`dim`](Rotation::dim) coordinates.
    pub fn apply(&self, input: &[f32], out: &mut Vec<f32>) {
        assert_eq!(input.len(), self.dim, "a vector has the rotation's dimension");
        out.clear();
        out.extend_from_slice(input);
        out.resize(self.padded, 0.0);
        self.hadamard.rounds(out, &self.factors);
    }

    /// Makes `out` what [`Rotation::apply`] has rotated to `rotated`, up to rounding: the rounds one after the other
    /// from the last to the first, each of which its own transposed undoes.
    ///
    /// # Panics
    /// If `rotated` does not have [`padded`](Rotation::padded) coordinates.
    pub fn undo(&self, rotated: &[f32], out: &mut Vec<f32>) {
        assert_eq!(rotated.len(), self.padded, "a rotated vector");
        out.clear();
        out.extend_from_slice(rotated);
        let window = hadamard::window(self.padded);
        let rounds = self.factors.chunks_exact(self.padded).enumerate();
        wide(
            #[inline(always)]
            || {
                for (round, factors) in rounds.rev() {
                    if hadamard::joins(self.padded, round) {
                        butterflies(out, self.padded / 2);
                    }
                    let windowed = &mut out[hadamard::start(self.padded, round)..][..window];
                    let mut half = 1;
                    while half < window {
                        butterflies(windowed, half);
                        half *= 2;
                    }
                    out.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
                }
            },
        );
        out.truncate(self.dim);
    }
}

/// Butterflies at a distance of `half`.
#[inline(always)]
fn butterflies(values: &mut [f32], half: usize) {
    for pair in values.chunks_exact_mut(2 * half) {
        let (front, back) = pair.split_at_mut(half);
        for (a, b) in front.iter_mut().zip(back) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rotated(rotation: &Rotation, input: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        rotation.apply(input, &mut out);
        out
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn dot_products_are_kept(dim in 1usize..=2000, seed: u64, exponent in -30i32..=18) {
            let rotation = Rotation::new(dim, seed);
            prop_assert_eq!(rotation.padded(), dim.div_ceil(8) * 8);
            let scale = 10f32.powi(exponent) / (dim as f32).sqrt();
            let value = |i: usize| (mix(seed ^ i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            let a: Vec<f32> = (0..dim).map(|i| value(i) * scale).collect();
            let b: Vec<f32> = (0..dim).map(|i| value(i + dim) * scale).collect();
            let (ra, rb) = (rotated(&rotation, &a), rotated(&rotation, &b));
            let size = (dot(&a, &a) * dot(&b, &b)).sqrt();
            prop_assert!((dot(&ra, &rb) - dot(&a, &b)).abs() <= 2e-6 * size);
            prop_assert!((dot(&ra, &ra) - dot(&a, &a)).abs() <= 2e-6 * dot(&a, &a));
            let mut back = Vec::new();
            rotation.undo(&ra, &mut back);
            let most = 1e-5 * dot(&a, &a).sqrt();
            prop_assert_eq!(back.len(), dim);
            prop_assert!(back.iter().zip(&a).all(|(x, y)| f64::from((x - y).abs()) <= most));
        }
    }

    /// What one coordinate holds is spread like the coordinates of a random direction, wherever it is: their fourth
    /// moment is 3 for a normal distribution and the dimension for a single spike.
    #[test]
    fn every_coordinate_is_spread() {
        for dim in [100, 128, 200, 248, 256, 384, 504, 784, 1016, 1536] {
            let rotation = Rotation::new(dim, 7);
            let mut spread: Vec<f64> = (0..dim)
                .map(|i| {
                    let mut spike = vec![0.0; dim];
                    spike[i] = 1.0;
                    let out = rotated(&rotation, &spike);
                    let moment = |power| out.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>();
                    moment(4) / moment(2).powi(2) * out.len() as f64
                })
                .collect();
            spread.sort_by(f64::total_cmp);
            let (median, worst) = (spread[dim / 2], spread[dim - 1]);
            assert!(median < 3.3 && worst < 6.0, "{dim}: {median}, at worst {worst}");
        }
    }

    #[test]
    fn a_seed_is_one_rotation_for_ever() {
        let input: Vec<f32> = (0..100).map(|i| (i * i % 17) as f32 - 8.0).collect();
        let out = rotated(&Rotation::new(100, 42), &input);
        let hash = out.iter().fold(0, |hash, x| mix(hash ^ u64::from(x.to_bits())));
        assert_eq!((out.len(), hash), (104, 16_061_673_515_118_028_151));
        assert_ne!(out, rotated(&Rotation::new(100, 43), &input));
    }

    #[test]
    fn the_longest_and_the_shortest() {
        for dim in [1, 8, 9, MAX_DIM - 1, MAX_DIM] {
            let input = vec![1.0; dim];
            let out = rotated(&Rotation::new(dim, 1), &input);
            assert!((dot(&out, &out) / dim as f64 - 1.0).abs() < 1e-5);
        }
    }
}
