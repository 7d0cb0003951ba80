//! FastScan with NEON: one sub-quantizer a vector.

use std::arch::aarch64::*;

use super::{
    Addends, BLOCK, Block, FULL, Factors, Functions, Halves, Line, NO_ADDENDS, SUB, Sums, Terms,
    functions,
};

functions!(Codes, "neon");

/// Four codes a vector.
#[derive(Clone, Copy)]
struct Codes([uint32x4_t; 8]);

/// The sums of a piece of a plane, at most [`FULL`] bytes, eight codes a vector.
///
/// # Safety
/// `plane` and `tables` are good for `bytes`, a multiple of 16.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn piece(plane: *const u8, tables: *const u8, bytes: usize) -> [uint16x8_t; 4] {
    let nibbles = vdupq_n_u8(15);
    let [mut a, mut b, mut c, mut d] = [vdupq_n_u16(0); 4];
    for at in (0..bytes).step_by(SUB) {
        // SAFETY: the caller's.
        let (codes, table) = unsafe { (vld1q_u8(plane.add(at)), vld1q_u8(tables.add(at))) };
        let low = vqtbl1q_u8(table, vandq_u8(codes, nibbles));
        let high = vqtbl1q_u8(table, vshrq_n_u8::<4>(codes));
        (a, b) = (vaddw_u8(a, vget_low_u8(low)), vaddw_high_u8(b, low));
        (c, d) = (vaddw_u8(c, vget_low_u8(high)), vaddw_high_u8(d, high));
    }
    [a, b, c, d]
}

impl Sums for Codes {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn zero() -> Codes {
        Codes([vdupq_n_u32(0); 8])
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn then(self, plane: &[u8], tables: &[u8]) -> Codes {
        let mut sums = self.0.map(|sum| vaddq_u32(sum, sum));
        for (plane, tables) in plane.chunks(FULL).zip(tables.chunks(FULL)) {
            // SAFETY: the caller's.
            let more = unsafe { piece(plane.as_ptr(), tables.as_ptr(), plane.len()) };
            for (pair, more) in sums.as_chunks_mut::<2>().0.iter_mut().zip(more) {
                *pair = [vaddw_u16(pair[0], vget_low_u16(more)), vaddw_high_u16(pair[1], more)];
            }
        }
        Codes(sums)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn then_few(self, plane: &[u8], tables: &[u8]) -> Codes {
        // SAFETY: the caller's.
        unsafe { self.then(plane, tables) }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn store(self, out: &mut [u32; BLOCK]) {
        for (sums, out) in self.0.into_iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: four integers are as large as the vector.
            unsafe { vst1q_u32(out.as_mut_ptr(), sums) };
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn estimates(
        self,
        add: &Halves,
        mul: &Halves,
        terms: Terms,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        let weights = vcombine_u32(vcreate_u32(1 | 2 << 32), vcreate_u32(4 | 8 << 32));
        // There are no stable names yet for the instructions that convert.
        let floats = |halves: &Halves| halves.map(|bits| half::f16::from_bits(bits).to_f32());
        let (add, mul) = (floats(add), floats(mul));
        let mut below = 0;
        for (i, sums) in self.0.into_iter().enumerate() {
            let at = 4 * i;
            // SAFETY: `at` and the 3 behind it are within each array.
            let (add, mul) =
                unsafe { (vld1q_f32(add.as_ptr().add(at)), vld1q_f32(mul.as_ptr().add(at))) };
            let scaled = vmulq_f32(vdupq_n_f32(terms.delta), vcvtq_f32_u32(sums));
            let dots = vaddq_f32(scaled, vdupq_n_f32(terms.offset));
            let add = vmulq_f32(vdupq_n_f32(terms.scale), add);
            let from = vaddq_f32(vdupq_n_f32(terms.base), add);
            let estimates = vaddq_f32(from, vmulq_f32(mul, dots));
            let less = vcltq_f32(estimates, vdupq_n_f32(terms.bound));
            below |= vaddvq_u32(vandq_u32(less, weights)) << at;
            // SAFETY: as above.
            unsafe { vst1q_f32(out.as_mut_ptr().add(at), estimates) };
        }
        below
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn scaled(
        self,
        factors: Factors<'_>,
        line: Line,
        offset: f32,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        let weights = vcombine_u32(vcreate_u32(1 | 2 << 32), vcreate_u32(4 | 8 << 32));
        let mut below = 0;
        for (i, sums) in self.0.into_iter().enumerate() {
            let at = 4 * i;
            // SAFETY: number `at` and the 3 behind it are within each array.
            let (add, mul) = unsafe {
                (
                    vreinterpretq_f32_u8(vld1q_u8(factors.add.as_ptr().add(4 * at))),
                    vreinterpretq_f32_u8(vld1q_u8(factors.mul.as_ptr().add(4 * at))),
                )
            };
            let scaled = vmulq_f32(vdupq_n_f32(line.delta), vcvtq_f32_u32(sums));
            let dots = vaddq_f32(scaled, vdupq_n_f32(offset));
            let from = vaddq_f32(vdupq_n_f32(line.base), add);
            let distances = vaddq_f32(from, vmulq_f32(mul, dots));
            let less = vcltq_f32(distances, vdupq_n_f32(line.bound));
            below |= vaddvq_u32(vandq_u32(less, weights)) << at;
            // SAFETY: as above.
            unsafe { vst1q_f32(out.as_mut_ptr().add(at), distances) };
        }
        below
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn distances(
        codes: &[u8],
        tables: &[u8],
        addends: Option<&Addends>,
        line: Line,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        let addends = addends.unwrap_or(&NO_ADDENDS);
        // SAFETY: the caller's.
        let sums = unsafe { Codes::zero().then(codes, tables) };
        let weights = vcombine_u32(vcreate_u32(1 | 2 << 32), vcreate_u32(4 | 8 << 32));
        let mut below = 0;
        for (i, sums) in sums.0.into_iter().enumerate() {
            let at = 4 * i;
            // SAFETY: number `at` and the 3 behind it are within the array.
            let addends = vreinterpretq_f32_u8(unsafe { vld1q_u8(addends.as_ptr().add(4 * at)) });
            let scaled = vmulq_f32(vdupq_n_f32(line.delta), vcvtq_f32_u32(sums));
            let distances = vaddq_f32(vaddq_f32(vdupq_n_f32(line.base), addends), scaled);
            let less = vcltq_f32(distances, vdupq_n_f32(line.bound));
            below |= vaddvq_u32(vandq_u32(less, weights)) << at;
            // SAFETY: as above.
            unsafe { vst1q_f32(out.as_mut_ptr().add(at), distances) };
        }
        below
    }
}
