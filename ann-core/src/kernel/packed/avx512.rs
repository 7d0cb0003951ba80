//! Packed codes with AVX-512 and its dot products of bytes: 64 coordinates a vector, or 32 where codes have eight bits.

use std::arch::x86_64::*;

use super::{CHUNK, Dot, Four, Weights};

/// The function for codes of so many bits. The machine must have what `kernel/avx512.rs` asks for.
pub(super) fn dot(bits: u8) -> Dot {
    match bits {
        1 => one_bit::dot,
        2 => two_bits::dot,
        4 => four_bits::dot,
        _ => eight_bits::dot,
    }
}

/// The function for four codes at a time: their sums have no need to wait for one another.
pub(super) fn four(bits: u8) -> Four {
    match bits {
        1 => one_bit::four,
        2 => two_bits::four,
        4 => four_bits::four,
        _ => eight_bits::four,
    }
}

macro_rules! entries {
    ($name:ident, $of:expr) => {
        mod $name {
            use super::*;

            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            pub(super) unsafe fn dot(weights: &Weights, code: &[u8]) -> i32 {
                // SAFETY: the caller's.
                unsafe { $of(weights, [code])[0] }
            }

            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            pub(super) unsafe fn four(weights: &Weights, codes: [&[u8]; 4]) -> [i32; 4] {
                // SAFETY: the caller's.
                unsafe { $of(weights, codes) }
            }
        }
    };
}

entries!(one_bit, narrow::<1, 1, 2, _>);
entries!(two_bits, narrow::<2, 1, 1, _>);
entries!(four_bits, narrow::<4, 2, 1, _>);
entries!(eight_bits, bytes);

/// `CHUNKS` chunks, 1 or 2, are spread over a vector's four quarters, which are shifted to fields next to one another,
/// `VECTORS` times.
///
/// # Safety
/// The machine must have the instruction set, and each of `codes` as many bytes as the weights' code.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn narrow<const BITS: i32, const CHUNKS: usize, const VECTORS: usize, const ROWS: usize>(
    weights: &Weights,
    codes: [&[u8]; ROWS],
) -> [i32; ROWS] {
    let len = weights.code_bytes();
    debug_assert!(codes.iter().all(|code| code.len() == len));
    let mask = _mm512_set1_epi8((1 << BITS) - 1);
    let shifts: [__m512i; VECTORS] = std::array::from_fn(|vector| {
        let quarter = |at: usize| _mm_set1_epi32((4 * vector + at % (4 / CHUNKS)) as i32 * BITS);
        let half = |at| _mm256_set_m128i(quarter(at + 1), quarter(at));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(0)), half(2))
    });
    let mut weights = weights.bytes().as_ptr();
    let mut totals = [_mm512_setzero_si512(); ROWS];
    for at in (0..len).step_by(CHUNK * CHUNKS) {
        let bytes = codes.map(|code| {
            // SAFETY: codes are of whole chunks of 16 bytes; the last of two may be missing.
            unsafe {
                let first = code.as_ptr().add(at);
                if CHUNKS == 1 {
                    return _mm512_broadcast_i32x4(_mm_loadu_si128(first.cast()));
                }
                let both = match at + CHUNK == len {
                    true => _mm256_zextsi128_si256(_mm_loadu_si128(first.cast())),
                    false => _mm256_loadu_si256(first.cast()),
                };
                let both = _mm512_castsi256_si512(both);
                _mm512_shuffle_i32x4::<0b01_01_00_00>(both, both)
            }
        });
        for shift in shifts {
            // SAFETY: weights go on for as many coordinates as the code has, and to the end of a cache line.
            let of_query = unsafe { _mm512_load_si512(weights.cast()) };
            weights = weights.wrapping_add(64);
            for (total, bytes) in totals.iter_mut().zip(bytes) {
                // Bits of neighbouring bytes come in at the top, where the mask takes them away.
                let levels = _mm512_and_si512(_mm512_srlv_epi32(bytes, shift), mask);
                *total = _mm512_dpbusd_epi32(*total, levels, of_query);
            }
        }
    }
    sums(totals)
}

/// # Safety
/// The machine must have the instruction set, and each of `codes` as many bytes as the weights' code.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn bytes<const ROWS: usize>(weights: &Weights, codes: [&[u8]; ROWS]) -> [i32; ROWS] {
    let len = weights.code_bytes();
    debug_assert!(codes.iter().all(|code| code.len() == len));
    let mut weights = weights.bytes().as_ptr();
    let mut totals = [_mm512_setzero_si512(); ROWS];
    for at in (0..len).step_by(2 * CHUNK) {
        // SAFETY: weights are two bytes for each of the code, and go on to the end of a cache line.
        let of_query = unsafe { _mm512_load_si512(weights.cast()) };
        weights = weights.wrapping_add(64);
        for (total, code) in totals.iter_mut().zip(codes) {
            // SAFETY: codes are of whole chunks of 16 bytes; the last of two may be missing.
            let bytes = unsafe {
                let first = code.as_ptr().add(at);
                match at + CHUNK == len {
                    true => _mm256_zextsi128_si256(_mm_loadu_si128(first.cast())),
                    false => _mm256_loadu_si256(first.cast()),
                }
            };
            *total = _mm512_dpwssd_epi32(*total, _mm512_cvtepu8_epi16(bytes), of_query);
        }
    }
    sums(totals)
}

/// The sum of each vector's sixteen integers.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums<const ROWS: usize>(totals: [__m512i; ROWS]) -> [i32; ROWS] {
    let [a, b, c, d] = match *totals.as_slice() {
        [a, b, c, d] => [a, b, c, d],
        _ => return totals.map(|total| _mm512_reduce_add_epi32(total)),
    };
    // Blocks of four lanes: 0 + 2 and 1 + 3 of two codes in one vector, then one block each of four codes.
    let halves = |a, b| {
        _mm512_add_epi32(_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b))
    };
    let (ab, cd) = (halves(a, b), halves(c, d));
    let blocks = _mm512_add_epi32(
        _mm512_shuffle_i32x4::<0x88>(ab, cd),
        _mm512_shuffle_i32x4::<0xdd>(ab, cd),
    );
    let pairs = _mm512_add_epi32(blocks, _mm512_shuffle_epi32::<0b01_00_11_10>(blocks));
    let sums = _mm512_add_epi32(pairs, _mm512_shuffle_epi32::<0b10_11_00_01>(pairs));
    let first_of_each = _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, sums));
    let mut out = [0; ROWS];
    // SAFETY: the vector is as large as four integers, and so many there are.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), first_of_each) };
    out
}
