//! Hadamard rounds with NEON: vectors of 4.

use std::arch::aarch64::*;

use super::Lanes;

#[target_feature(enable = "neon")]
pub(super) unsafe fn rounds(values: &mut [f32], factors: &[f32]) {
    // SAFETY: the instruction set is this function's own.
    unsafe { super::rounds::<float32x4_t>(values, factors) }
}

impl Lanes for float32x4_t {
    const WIDTH: usize = 4;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(at: *const f32) -> float32x4_t {
        // SAFETY: the caller's.
        unsafe { vld1q_f32(at) }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's.
        unsafe { vst1q_f32(at, self) }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn butterfly(self, other: float32x4_t) -> (float32x4_t, float32x4_t) {
        (vaddq_f32(self, other), vsubq_f32(self, other))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn within(self) -> float32x4_t {
        // Lane `i` meets lane `i ^ distance`. A product with 1 or -1 is exact: only the sum is rounded.
        let twos = vcombine_f32(vdup_n_f32(1.0), vdup_n_f32(-1.0));
        let ones = vtrn1q_f32(vdupq_n_f32(1.0), vdupq_n_f32(-1.0));
        let x = vfmaq_f32(vextq_f32::<2>(self, self), self, twos);
        vfmaq_f32(vrev64q_f32(x), x, ones)
    }
}
