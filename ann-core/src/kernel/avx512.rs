//! AVX-512: vectors of 16 floats or 32 widened bytes, with masked tails.

use std::arch::x86_64::*;

use super::lanes::{self, Load, Sum};
use super::{Functions, Op};
use crate::element::DType;

lanes::functions!("avx512f,avx512bw,avx512vl,avx512vnni");

/// Whether this machine has what [`functions`] needs.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

macro_rules! load {
    ($type:ident: $vector:ty, $mask:ty, $size:literal, $width:literal, $signed:literal,
     |$at:ident| $full:expr, |$tail:ident| $masked:expr) => {
        struct $type;

        impl Load for $type {
            type Vector = $vector;
            type Tail = $mask;
            const SIZE: usize = $size;
            const WIDTH: usize = $width;
            const SIGNED: bool = $signed;

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            unsafe fn full($at: *const u8) -> $vector {
                // SAFETY: the caller's: a whole vector's elements are readable.
                unsafe { $full }
            }

            // The last lanes, not the first: a load that ran past the row would fetch a cache line for nothing.
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            unsafe fn tail_of(count: usize) -> $mask {
                !0 << ($width - count % $width)
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            unsafe fn tail(end: *const u8, $tail: $mask) -> $vector {
                let $at = end.wrapping_sub($width * $size);
                // SAFETY: the caller's: the elements in the mask are readable, and lanes outside it are not read.
                unsafe { $masked }
            }
        }
    };
}

load!(F32: __m512, __mmask16, 4, 16, true,
    |at| _mm512_loadu_ps(at.cast()),
    |tail| _mm512_maskz_loadu_ps(tail, at.cast()));
load!(F16: __m512, __mmask16, 2, 16, true,
    |at| _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
    |tail| _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(tail, at.cast())));
load!(I8: __m512i, __mmask32, 1, 32, true,
    |at| _mm512_cvtepi8_epi16(_mm256_loadu_si256(at.cast())),
    |tail| _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(tail, at.cast())));
load!(U8: __m512i, __mmask32, 1, 32, false,
    |at| _mm512_cvtepu8_epi16(_mm256_loadu_si256(at.cast())),
    |tail| _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(tail, at.cast())));

impl Sum for __m512 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add(self, other: __m512) -> __m512 {
        _mm512_add_ps(self, other)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add_products(self, a: __m512, b: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, self)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add_squares(self, a: __m512, b: __m512) -> __m512 {
        let d = _mm512_sub_ps(a, b);
        _mm512_fmadd_ps(d, d, self)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn totals([a, b, c, d]: [__m512; 4], _: bool) -> [f32; 4] {
        // Blocks of four lanes: 0 + 2 and 1 + 3 of two rows in one vector, then one block each of four rows.
        let halves = |a, b| {
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
        };
        let (ab, cd) = (halves(a, b), halves(c, d));
        let abcd = _mm512_add_ps(
            _mm512_shuffle_f32x4::<0x88>(ab, cd),
            _mm512_shuffle_f32x4::<0xdd>(ab, cd),
        );
        let pairs = _mm512_add_ps(abcd, _mm512_permute_ps::<0b01_00_11_10>(abcd));
        let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0b10_11_00_01>(pairs));
        let first_of_each = _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, sums));
        // SAFETY: four floats are as large as the vector, and all bits are valid in both.
        unsafe { std::mem::transmute(first_of_each) }
    }
}

impl Sum for __m512i {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn zero() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add(self, other: __m512i) -> __m512i {
        _mm512_add_epi32(self, other)
    }

    #[inline]
    #[target_feature(enable = "avx512vnni")]
    unsafe fn add_products(self, a: __m512i, b: __m512i) -> __m512i {
        _mm512_dpwssd_epi32(self, a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512bw,avx512vnni")]
    unsafe fn add_squares(self, a: __m512i, b: __m512i) -> __m512i {
        let d = _mm512_sub_epi16(a, b);
        _mm512_dpwssd_epi32(self, d, d)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn totals([a, b, c, d]: [__m512i; 4], signed: bool) -> [f32; 4] {
        // As for floats.
        let halves = |a, b| {
            _mm512_add_epi32(_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b))
        };
        let (ab, cd) = (halves(a, b), halves(c, d));
        let abcd = _mm512_add_epi32(
            _mm512_shuffle_i32x4::<0x88>(ab, cd),
            _mm512_shuffle_i32x4::<0xdd>(ab, cd),
        );
        let pairs = _mm512_add_epi32(abcd, _mm512_shuffle_epi32::<0b01_00_11_10>(abcd));
        let sums = _mm512_add_epi32(pairs, _mm512_shuffle_epi32::<0b10_11_00_01>(pairs));
        let floats = if signed { _mm512_cvtepi32_ps(sums) } else { _mm512_cvtepu32_ps(sums) };
        let first_of_each = _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, floats));
        // SAFETY: four floats are as large as the vector, and all bits are valid in both.
        unsafe { std::mem::transmute(first_of_each) }
    }
}
