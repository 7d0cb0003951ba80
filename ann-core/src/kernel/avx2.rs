//! AVX2 with FMA and F16C: vectors of 8 floats or 16 widened bytes.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::lanes::{self, Ending, Load, Sum};
use super::{Functions, Op};
use crate::element::DType;

lanes::functions!("avx2,fma,f16c");

/// Whether this machine has what [`functions`] needs.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

macro_rules! load {
    ($type:ident: $vector:ty, $tail:ty, $size:literal, $width:literal, $signed:literal,
     |$at:ident| $full:expr, |$count:ident| $tail_of:expr, |$end:ident, $of:ident| $last:expr) => {
        struct $type;

        impl Load for $type {
            type Vector = $vector;
            type Tail = $tail;
            const SIZE: usize = $size;
            const WIDTH: usize = $width;
            const SIGNED: bool = $signed;

            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn full($at: *const u8) -> $vector {
                // SAFETY: the caller's: a whole vector's elements are readable.
                unsafe { $full }
            }

            #[inline]
            #[target_feature(enable = "avx2")]
            unsafe fn tail_of($count: usize) -> $tail {
                $tail_of
            }

            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn tail($end: *const u8, $of: $tail) -> $vector {
                // SAFETY: the caller's: the row up to `end` is readable, and nothing outside it is read.
                unsafe { $last }
            }
        }
    };
}

// Tails are in the last lanes, not the first: a load that ran past the row would fetch a cache line for nothing.
load!(F32: __m256, __m256i, 4, 8, true,
    |at| _mm256_loadu_ps(at.cast()),
    |count| last(count % 8),
    |end, tail| _mm256_maskload_ps(end.wrapping_sub(32).cast(), tail));
load!(F16: __m256, Ending<16>, 2, 8, true,
    |at| _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
    |count| Ending::new(2 * count),
    |end, tail| _mm256_cvtph_ps(transmute::<[u8; 16], __m128i>(tail.before(end))));
load!(I8: __m256i, Ending<16>, 1, 16, true,
    |at| _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())),
    |count| Ending::new(count),
    |end, tail| _mm256_cvtepi8_epi16(transmute::<[u8; 16], __m128i>(tail.before(end))));
load!(U8: __m256i, Ending<16>, 1, 16, false,
    |at| _mm256_cvtepu8_epi16(_mm_loadu_si128(at.cast())),
    |count| Ending::new(count),
    |end, tail| _mm256_cvtepu8_epi16(transmute::<[u8; 16], __m128i>(tail.before(end))));

/// A mask of the last `count` of eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn last(count: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0))
}

impl Sum for __m256 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn zero() -> __m256 {
        _mm256_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(self, other: __m256) -> __m256 {
        _mm256_add_ps(self, other)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add_products(self, a: __m256, b: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, self)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add_squares(self, a: __m256, b: __m256) -> __m256 {
        let d = _mm256_sub_ps(a, b);
        _mm256_fmadd_ps(d, d, self)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn totals([a, b, c, d]: [__m256; 4], _: bool) -> [f32; 4] {
        // The two halves of two rows side by side, then lanes 0 + 2 and 1 + 3 of all four.
        let halves = |a, b| {
            _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(a, b),
                _mm256_permute2f128_ps::<0x31>(a, b),
            )
        };
        let (ab, cd) = (halves(a, b), halves(c, d));
        let pairs = _mm256_add_ps(_mm256_unpacklo_ps(ab, cd), _mm256_unpackhi_ps(ab, cd));
        let ac_bd = _mm256_add_ps(pairs, _mm256_permute_ps::<0b01_00_11_10>(pairs));
        let (ac, bd) = (_mm256_castps256_ps128(ac_bd), _mm256_extractf128_ps::<1>(ac_bd));
        // SAFETY: four floats are as large as the vector, and all bits are valid in both.
        unsafe { transmute(_mm_unpacklo_ps(ac, bd)) }
    }
}

impl Sum for __m256i {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn zero() -> __m256i {
        _mm256_setzero_si256()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(self, other: __m256i) -> __m256i {
        _mm256_add_epi32(self, other)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_products(self, a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi32(self, _mm256_madd_epi16(a, b))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_squares(self, a: __m256i, b: __m256i) -> __m256i {
        let d = _mm256_sub_epi16(a, b);
        _mm256_add_epi32(self, _mm256_madd_epi16(d, d))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn totals([a, b, c, d]: [__m256i; 4], signed: bool) -> [f32; 4] {
        let quads = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
        let sums =
            _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256::<1>(quads));
        // SAFETY: four integers are as large as the vector, and all bits are valid in both.
        let sums: [i32; 4] = unsafe { transmute(sums) };
        sums.map(|sum| if signed { sum as f32 } else { sum as u32 as f32 })
    }
}
