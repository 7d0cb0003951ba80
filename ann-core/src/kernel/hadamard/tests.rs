//! Every instruction set against the scalar rounds, and those against the definition.

use proptest::prelude::*;

use super::*;

fn all() -> impl Iterator<Item = Hadamard> {
    [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Scalar].into_iter().filter_map(Hadamard::with_isa)
}

fn random(seed: u64, len: usize) -> Vec<f32> {
    let bits = (0..len as u64).map(|i| crate::seed::mix(seed.wrapping_add(i)) >> 40);
    bits.map(|bits| bits as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

fn check(len: usize, rounds: usize, seed: u64) {
    let (values, factors) = (random(seed, len), random(seed ^ 1, rounds * len));
    let mut right = values.clone();
    scalar(&mut right, &factors);
    for hadamard in all() {
        let mut got = values.clone();
        hadamard.rounds(&mut got, &factors);
        let same = got.iter().zip(&right).all(|(got, right)| got.to_bits() == right.to_bits());
        assert!(same, "{hadamard:?}, {len} elements, {rounds} rounds");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn instruction_sets_agree_to_the_last_bit(steps in 1usize..=300, rounds in 0usize..=5, seed: u64) {
        check(steps * STEP, rounds, seed);
    }
}

#[test]
fn instruction_sets_agree_at_long_and_round_lengths() {
    for shift in 3..=16 {
        check(1 << shift, 3, shift);
    }
    check(65_528, 4, 1);
    check(16_000, 4, 2);
}

#[test]
fn a_window_is_transformed_by_the_matrix() {
    // Entry (i, j) of the matrix is -1 to the number of ones in i & j.
    let values = random(3, 64);
    let mut got = values.clone();
    scalar(&mut got, &[1.0; 64]);
    for (i, got) in got.into_iter().enumerate() {
        let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let right: f32 = values.iter().enumerate().map(|(j, value)| sign(j) * value).sum();
        assert!((got - right).abs() < 1e-4);
    }
}

#[test]
#[should_panic(expected = "no windows fit")]
fn odd_lengths_are_refused() {
    Hadamard::new().rounds(&mut [0.0; 12], &[]);
}

#[test]
#[should_panic(expected = "a factor for each")]
fn half_a_round_is_refused() {
    Hadamard::new().rounds(&mut [0.0; 16], &[1.0; 24]);
}
