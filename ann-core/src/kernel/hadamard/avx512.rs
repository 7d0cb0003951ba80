//! Hadamard rounds with AVX-512: vectors of 16.

use std::arch::x86_64::*;

use super::Lanes;

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn rounds(values: &mut [f32], factors: &[f32]) {
    // SAFETY: the instruction set is this function's own.
    unsafe { super::rounds::<__m512>(values, factors) }
}

impl Lanes for __m512 {
    const WIDTH: usize = 16;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(at: *const f32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(at) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_ps(at, self) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn butterfly(self, other: __m512) -> (__m512, __m512) {
        (_mm512_add_ps(self, other), _mm512_sub_ps(self, other))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn within(self) -> __m512 {
        // Lane `i` meets lane `i ^ distance`. A product with 1 or -1 is exact: only the sum is rounded.
        let signs =
            |plus: __mmask16| _mm512_mask_blend_ps(plus, _mm512_set1_ps(-1.0), _mm512_set1_ps(1.0));
        let x = self;
        let x = _mm512_fmadd_ps(x, signs(0x00ff), _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x));
        let x = _mm512_fmadd_ps(x, signs(0x0f0f), _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x));
        let x = _mm512_fmadd_ps(x, signs(0x3333), _mm512_permute_ps::<0b01_00_11_10>(x));
        _mm512_fmadd_ps(x, signs(0x5555), _mm512_permute_ps::<0b10_11_00_01>(x))
    }
}
