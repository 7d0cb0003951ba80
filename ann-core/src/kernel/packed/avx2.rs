//! Packed codes with AVX2: 32 coordinates a vector, or 16 where codes have eight bits.

use std::arch::x86_64::*;

use super::{CHUNK, Dot, Weights};

/// Chunks after which sums of 16 bits may be full: at four bits, each adds up to twice 15 times 127 to one.
const FULL: usize = 8 * CHUNK;

/// The function for codes of so many bits. The machine must have AVX2.
pub(super) fn dot(bits: u8) -> Dot {
    match bits {
        1 => one_bit,
        2 => two_bits,
        4 => four_bits,
        _ => bytes,
    }
}

macro_rules! narrow {
    ($name:ident, $bits:literal) => {
        #[target_feature(enable = "avx2")]
        unsafe fn $name(weights: &Weights, code: &[u8]) -> i32 {
            // SAFETY: the caller's.
            unsafe { narrow::<$bits, { 4 / $bits }>(weights, code) }
        }
    };
}

narrow!(one_bit, 1);
narrow!(two_bits, 2);
narrow!(four_bits, 4);

/// Of 16 bytes in both halves of a vector, the halves are shifted to fields next to one another, `VECTORS` times.
///
/// # Safety
/// The machine must have AVX2, and `code` as many bytes as the weights' code.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn narrow<const BITS: i32, const VECTORS: usize>(weights: &Weights, code: &[u8]) -> i32 {
    debug_assert!(weights.bytes().len() >= code.len() * (8 / BITS as usize));
    let mask = _mm256_set1_epi8((1 << BITS) - 1);
    let ones = _mm256_set1_epi16(1);
    let shifts: [__m256i; VECTORS] = std::array::from_fn(|vector| {
        let (low, high) = (2 * vector as i32 * BITS, (2 * vector as i32 + 1) * BITS);
        _mm256_set_epi32(high, high, high, high, low, low, low, low)
    });
    let mut weights = weights.bytes().as_ptr();
    let mut total = _mm256_setzero_si256();
    for piece in code.chunks(FULL) {
        let mut sums = _mm256_setzero_si256();
        for chunk in piece.as_chunks::<CHUNK>().0 {
            // SAFETY: 16 bytes are as large as the vector; weights go on for as many coordinates as the code has.
            let bytes = unsafe { _mm_loadu_si128(chunk.as_ptr().cast()) };
            let bytes = _mm256_broadcastsi128_si256(bytes);
            for shift in shifts {
                // Bits of neighbouring bytes come in at the top, where the mask takes them away.
                let levels = _mm256_and_si256(_mm256_srlv_epi32(bytes, shift), mask);
                // SAFETY: as above.
                let of_query = unsafe { _mm256_load_si256(weights.cast()) };
                weights = weights.wrapping_add(32);
                sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(levels, of_query));
            }
        }
        total = _mm256_add_epi32(total, _mm256_madd_epi16(sums, ones));
    }
    sum(total)
}

/// # Safety
/// The machine must have AVX2, and `code` as many bytes as the weights' code.
#[target_feature(enable = "avx2")]
unsafe fn bytes(weights: &Weights, code: &[u8]) -> i32 {
    debug_assert!(weights.bytes().len() >= 2 * code.len());
    let weights = weights.bytes().as_ptr();
    // Two sums by turns: an addition waits for the one before the last.
    let (mut next, mut last) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    for (at, chunk) in code.as_chunks::<CHUNK>().0.iter().enumerate() {
        // SAFETY: 16 bytes are as large as the vector; weights are two bytes for each of the code.
        let (levels, of_query) = unsafe {
            (
                _mm256_cvtepu8_epi16(_mm_loadu_si128(chunk.as_ptr().cast())),
                _mm256_load_si256(weights.add(2 * CHUNK * at).cast()),
            )
        };
        (next, last) = (last, _mm256_add_epi32(next, _mm256_madd_epi16(levels, of_query)));
    }
    sum(_mm256_add_epi32(next, last))
}

/// The sum of a vector's eight integers.
#[inline]
#[target_feature(enable = "avx2")]
fn sum(total: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256::<1>(total));
    let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0x55>(two)))
}
