//! Hadamard rounds with AVX2 and FMA: vectors of 8.

use std::arch::x86_64::*;

use super::Lanes;

#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn rounds(values: &mut [f32], factors: &[f32]) {
    // SAFETY: the instruction set is this function's own.
    unsafe { super::rounds::<__m256>(values, factors) }
}

impl Lanes for __m256 {
    const WIDTH: usize = 8;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(at: *const f32) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_ps(at) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_ps(at, self) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn butterfly(self, other: __m256) -> (__m256, __m256) {
        (_mm256_add_ps(self, other), _mm256_sub_ps(self, other))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn within(self) -> __m256 {
        // Lane `i` meets lane `i ^ distance`. A product with 1 or -1 is exact: only the sum is rounded.
        let fours = _mm256_setr_ps(1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0);
        let twos = _mm256_setr_ps(1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0);
        let ones = _mm256_setr_ps(1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0);
        let x = self;
        let x = _mm256_fmadd_ps(x, fours, _mm256_permute2f128_ps::<0x01>(x, x));
        let x = _mm256_fmadd_ps(x, twos, _mm256_permute_ps::<0b01_00_11_10>(x));
        _mm256_fmadd_ps(x, ones, _mm256_permute_ps::<0b10_11_00_01>(x))
    }
}
