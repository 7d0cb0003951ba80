//! Packed codes in plain Rust: the reference of all others.

use super::{CHUNK, Dot, Weights, coordinates};

/// The function for codes of so many bits.
pub(super) fn dot(bits: u8) -> Dot {
    match bits {
        1 => narrow::<1>,
        2 => narrow::<2>,
        4 => narrow::<4>,
        _ => bytes,
    }
}

fn narrow<const BITS: u8>(weights: &Weights, code: &[u8]) -> i32 {
    let mask = (1u8 << BITS) - 1;
    let chunks = code.as_chunks::<CHUNK>().0.iter();
    let weights = weights.bytes().chunks_exact(coordinates(BITS));
    let mut sum = 0;
    for (bytes, weights) in chunks.zip(weights) {
        for (field, weights) in weights.as_chunks::<CHUNK>().0.iter().enumerate() {
            let shift = field as u8 * BITS;
            let terms = bytes.iter().zip(weights);
            sum += terms
                .map(|(&byte, &weight)| i32::from(byte >> shift & mask) * i32::from(weight as i8))
                .sum::<i32>();
        }
    }
    sum
}

fn bytes(weights: &Weights, code: &[u8]) -> i32 {
    let weights = weights.bytes().as_chunks::<2>().0.iter();
    let terms = code.iter().zip(weights);
    terms.map(|(&byte, &weight)| i32::from(byte) * i32::from(i16::from_le_bytes(weight))).sum()
}
