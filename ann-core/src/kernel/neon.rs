//! NEON: vectors of 4 floats or 8 widened bytes.

use std::arch::aarch64::*;
use std::mem::transmute;

use super::lanes::{self, Ending, Load, Sum};
use super::{Functions, Op};
use crate::element::DType;

lanes::functions!("neon");

macro_rules! load {
    ($type:ident: $vector:ty, $size:literal, $width:literal, $signed:literal,
     |$bytes:ident| $widened:expr) => {
        struct $type;

        impl $type {
            #[inline]
            #[target_feature(enable = "neon")]
            fn widened($bytes: [u8; $size * $width]) -> $vector {
                // SAFETY: the bytes become a vector of the same size, for which all bits are valid.
                unsafe { $widened }
            }
        }

        impl Load for $type {
            type Vector = $vector;
            type Tail = Ending<{ $size * $width }>;
            const SIZE: usize = $size;
            const WIDTH: usize = $width;
            const SIGNED: bool = $signed;

            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn full(at: *const u8) -> $vector {
                // SAFETY: the caller's: a whole vector's elements are readable.
                $type::widened(unsafe { at.cast::<[u8; $size * $width]>().read() })
            }

            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn tail_of(count: usize) -> Self::Tail {
                Ending::new($size * count)
            }

            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn tail(end: *const u8, tail: Self::Tail) -> $vector {
                // SAFETY: the caller's: `end` is the end of a readable row.
                $type::widened(unsafe { tail.before(end) })
            }
        }
    };
}

load!(F32: float32x4_t, 4, 4, true,
    |bytes| transmute::<[u8; 16], float32x4_t>(bytes));
load!(F16: float32x4_t, 2, 4, true,
    |bytes| vcvt_f32_f16(transmute::<[u8; 8], float16x4_t>(bytes)));
load!(I8: int32x4_t, 1, 8, true,
    |bytes| vreinterpretq_s32_s16(vmovl_s8(transmute::<[u8; 8], int8x8_t>(bytes))));
load!(U8: int32x4_t, 1, 8, false,
    |bytes| vreinterpretq_s32_u16(vmovl_u8(transmute::<[u8; 8], uint8x8_t>(bytes))));

impl Sum for float32x4_t {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn zero() -> float32x4_t {
        vdupq_n_f32(0.0)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add(self, other: float32x4_t) -> float32x4_t {
        vaddq_f32(self, other)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add_products(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vfmaq_f32(self, a, b)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add_squares(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        let d = vsubq_f32(a, b);
        vfmaq_f32(self, d, d)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn totals([a, b, c, d]: [float32x4_t; 4], _: bool) -> [f32; 4] {
        let sums = vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
        // SAFETY: four floats are as large as the vector, and all bits are valid in both.
        unsafe { transmute(sums) }
    }
}

impl Sum for int32x4_t {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn zero() -> int32x4_t {
        vdupq_n_s32(0)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add(self, other: int32x4_t) -> int32x4_t {
        vaddq_s32(self, other)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add_products(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
        vmlal_high_s16(vmlal_s16(self, vget_low_s16(a), vget_low_s16(b)), a, b)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add_squares(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        let d = vsubq_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
        vmlal_high_s16(vmlal_s16(self, vget_low_s16(d), vget_low_s16(d)), d, d)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn totals([a, b, c, d]: [int32x4_t; 4], signed: bool) -> [f32; 4] {
        let sums = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
        let floats =
            if signed { vcvtq_f32_s32(sums) } else { vcvtq_f32_u32(vreinterpretq_u32_s32(sums)) };
        // SAFETY: four floats are as large as the vector, and all bits are valid in both.
        unsafe { transmute(floats) }
    }
}
