//! Every instruction set of this machine against the scalar functions, and those against the definition.

use proptest::prelude::*;

use super::*;
use crate::seed::mix;

const BITS: [u8; 4] = [1, 2, 4, 8];

fn levels(seed: u64, dim: usize, bits: u8) -> Vec<u8> {
    (0..dim as u64).map(|i| mix(seed.wrapping_add(i)) as u8 >> (8 - bits)).collect()
}

fn floats(seed: u64, len: usize, size: f32) -> Vec<f32> {
    let unit = |i| (mix(seed ^ i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    (0..len as u64).map(|i| unit(i) * size).collect()
}

fn packed(levels: &[u8], bits: u8) -> Vec<u8> {
    let mut code = vec![0xff; code_bytes(levels.len(), bits)];
    pack(levels, bits, &mut code);
    code
}

fn weights(query: &[f32], bits: u8) -> Weights {
    let mut weights = Weights::default();
    weights.fill(query, bits);
    weights
}

fn all(bits: u8) -> Vec<Packed> {
    let all = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Neon];
    all.into_iter().filter_map(|isa| Packed::with_isa(bits, isa)).collect()
}

/// The result of each instruction set, of which all have to be the first one's.
fn products(weights: &Weights, code: &[u8]) -> f32 {
    let all = all(weights.bits());
    let right = all[0].one(weights, code);
    for packed in &all {
        assert_eq!(packed.one(weights, code).to_bits(), right.to_bits(), "{packed:?}");
    }
    right
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn codes_come_back(dim in 1usize..=700, which in 0usize..4, seed: u64) {
        let levels = levels(seed, dim, BITS[which]);
        let mut back = vec![0xaa; dim];
        unpack(&packed(&levels, BITS[which]), BITS[which], &mut back);
        prop_assert_eq!(back, levels);
    }

    /// However many codes there are in a call, each has the product that it has alone, on all instruction sets.
    #[test]
    fn many_at_a_time(dim in 1usize..=700, which in 0usize..4, count in 1usize..14, start in 0usize..32, seed: u64) {
        let bits = BITS[which];
        let weights = weights(&floats(seed, dim, 1.0), bits);
        let codes = (0..count as u64).map(|row| packed(&levels(mix(seed ^ row), dim, bits), bits));
        let bytes = [vec![0x55; start], codes.flatten().collect()].concat();
        let size = code_bytes(dim, bits);
        let offsets: Vec<u64> = (0..count).rev().map(|row| (start + row * size) as u64).collect();
        for packed in all(bits) {
            let mut out = vec![0.0; count];
            prop_assert!(packed.rows(&weights, &bytes, &offsets, &mut out));
            for (&offset, got) in offsets.iter().zip(out) {
                let right = products(&weights, &bytes[offset as usize..][..size]);
                prop_assert_eq!(got.to_bits(), right.to_bits(), "{:?}", packed);
            }
        }
    }

    /// Products are near those of the floats, and the same on all instruction sets, at any alignment of the codes.
    #[test]
    fn products_are_right(dim in 1usize..=3000, which in 0usize..4, start in 0usize..32, exponent in -30i32..=18, seed: u64) {
        let bits = BITS[which];
        let query = floats(seed, dim, 10f32.powi(exponent));
        let weights = weights(&query, bits);
        let levels = levels(!seed, dim, bits);
        let code = packed(&levels, bits);
        let buffer = [vec![0x55; start], code.clone()].concat();
        let got = products(&weights, &buffer[start..]);
        let middle = f64::from((1u32 << bits) - 1) / 2.0;
        let terms = levels.iter().zip(&query);
        let right: f64 = terms.map(|(&level, &q)| (f64::from(level) - middle) * f64::from(q)).sum();
        // Each weight is off by half a unit at most, and floats by their rounding.
        let slack = f64::from(weights.delta()) * middle * dim as f64 * 0.51;
        let rounding = 1e-6 * dim as f64 * middle * f64::from(10f32.powi(exponent));
        prop_assert!((f64::from(got) - right).abs() <= slack + rounding, "{got} for {right}");
        let mut out = [0.0; 2];
        let found = Packed::new(bits).rows(&weights, &buffer, &[start as u64; 2], &mut out);
        prop_assert!(found && out == [got; 2]);
        let past = [start as u64 + 1];
        prop_assert!(!Packed::new(bits).rows(&weights, &buffer, &past, &mut out[..1]));
        prop_assert!(!Packed::new(bits).rows(&weights, &buffer, &[u64::MAX], &mut out[..1]));
    }
}

#[test]
fn the_longest_and_the_largest() {
    for bits in BITS {
        for dim in [1, 16, 128, 1536, 65_535, 65_536] {
            for sign in [1.0, -1.0] {
                let weights = weights(&vec![sign; dim], bits);
                let top = (1u32 << bits) - 1;
                let code = packed(&vec![top as u8; dim], bits);
                let right = f64::from(sign) * f64::from(top) / 2.0 * dim as f64;
                let got = f64::from(products(&weights, &code));
                assert!((got / right - 1.0).abs() < 1e-5, "{bits} x {dim}: {got}, not {right}");
            }
        }
    }
}

#[test]
fn degenerate_queries_make_zeros() {
    for bits in BITS {
        for value in [0.0, -0.0, 1e-45, -1e-40, f32::MIN_POSITIVE] {
            let weights = weights(&[value; 40], bits);
            let got = products(&weights, &packed(&levels(3, 40, bits), bits));
            assert!(got.abs() <= 40.0 * 128.0 * value.abs(), "{bits} bits, {value}: {got}");
        }
        for value in [f32::MAX / 1e6, 1e18] {
            let weights = weights(&[value; 40], bits);
            assert!(products(&weights, &packed(&levels(3, 40, bits), bits)).is_finite());
        }
    }
}
