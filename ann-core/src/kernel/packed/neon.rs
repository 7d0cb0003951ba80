//! Packed codes with NEON: 16 coordinates a vector.

use std::arch::aarch64::*;

use super::{CHUNK, Dot, Weights};

/// The function for codes of so many bits.
pub(super) fn dot(bits: u8) -> Dot {
    match bits {
        1 => narrow::<1>,
        2 => narrow::<2>,
        4 => narrow::<4>,
        _ => bytes,
    }
}

/// # Safety
/// `code` must have as many bytes as the weights' code.
#[target_feature(enable = "neon")]
unsafe fn narrow<const BITS: i8>(weights: &Weights, code: &[u8]) -> i32 {
    debug_assert!(weights.bytes().len() >= code.len() * (8 / BITS as usize));
    let mask = vdupq_n_u8((1 << BITS) - 1);
    let mut weights = weights.bytes().as_ptr();
    let mut total = vdupq_n_s32(0);
    for chunk in code.as_chunks::<CHUNK>().0 {
        // SAFETY: 16 bytes are as large as the vector.
        let bytes = unsafe { vld1q_u8(chunk.as_ptr()) };
        for field in 0..8 / BITS {
            // A shift to the left by less than nothing is one to the right.
            let shifted = vshlq_u8(bytes, vdupq_n_s8(-field * BITS));
            let levels = vreinterpretq_s8_u8(vandq_u8(shifted, mask));
            // SAFETY: weights go on for as many coordinates as the code has.
            let of_query = unsafe { vld1q_s8(weights.cast()) };
            weights = weights.wrapping_add(CHUNK);
            // Two products of 15 and 127 at most fit 16 bits.
            let low = vmull_s8(vget_low_s8(levels), vget_low_s8(of_query));
            total = vpadalq_s16(total, vmlal_high_s8(low, levels, of_query));
        }
    }
    vaddvq_s32(total)
}

/// # Safety
/// `code` must have as many bytes as the weights' code.
#[target_feature(enable = "neon")]
unsafe fn bytes(weights: &Weights, code: &[u8]) -> i32 {
    debug_assert!(weights.bytes().len() >= 2 * code.len());
    let mut weights = weights.bytes().as_ptr();
    let mut totals = [vdupq_n_s32(0); 2];
    for chunk in code.as_chunks::<CHUNK>().0 {
        // SAFETY: 16 bytes are as large as the vector; weights are two bytes for each of the code.
        let (bytes, low, high) = unsafe {
            let bytes = vld1q_u8(chunk.as_ptr());
            (bytes, vld1q_s16(weights.cast()), vld1q_s16(weights.add(CHUNK).cast()))
        };
        weights = weights.wrapping_add(2 * CHUNK);
        let halves = [vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)];
        for ((total, levels), of_query) in totals.iter_mut().zip(halves).zip([low, high]) {
            let levels = vreinterpretq_s16_u16(levels);
            let sum = vmlal_s16(*total, vget_low_s16(levels), vget_low_s16(of_query));
            *total = vmlal_high_s16(sum, levels, of_query);
        }
    }
    vaddvq_s32(vaddq_s32(totals[0], totals[1]))
}
