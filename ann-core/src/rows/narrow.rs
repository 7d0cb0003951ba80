//! Rows that hold less of a vector than was given: halves of floats, or where only directions count, a byte a coordinate.
//!
//! For bytes a vector is scaled so that its largest coordinate becomes 127, and rounded. What is at the door is checked
//! as it is given: there is no direction that does not fit.

use std::ops::RangeInclusive;

use crate::element::{DType, Element, MAX_DIM, STEP};
use crate::error::Result;
use crate::kernel::wide::wide;
use crate::metric::Metric;

use super::space::Space;

/// The largest coordinate becomes this.
const LARGEST: f32 = 127.0;
/// A vector whose largest coordinate is in here passes.
const USUAL: RangeInclusive<f32> = 1e-15..=1e15;
/// Below it, what makes it the largest could be infinite.
const SMALL: f32 = 1e-30;
/// Sums of squares of bytes are such integers.
const _: () = assert!(MAX_DIM * 128 * 128 <= i32::MAX as usize);
/// Makes what is smaller large enough, and loses nothing.
const LIFT: f32 = (1u128 << 80) as f32;
/// Added to a float of at most 2^22, it leaves the nearest whole number, even ones of two, in the lowest bits.
const ROUNDING: f32 = (3 << 22) as f32;

/// Whether rows may hold elements of type `stored` where callers give others, of type `dtype`.
pub(super) fn narrows(dtype: DType, stored: DType, metric: Metric) -> bool {
    match (dtype, stored) {
        (DType::F32, DType::F16) => true,
        (DType::F32 | DType::F16, DType::I8) => metric == Metric::Cosine,
        _ => false,
    }
}

/// What vectors of such elements may be stored as, for a message.
pub(super) fn allowed(dtype: DType, metric: Metric) -> String {
    match (dtype, metric) {
        (DType::F32, Metric::Cosine) => "f32, f16 or i8, for elements of type f32".into(),
        (DType::F16, Metric::Cosine) => "f16 or i8, for elements of type f16".into(),
        (DType::F32, _) => format!(
            "f32 or f16, for elements of type f32 under {metric}; i8 keeps directions only, which is for cosine"
        ),
        (dtype, _) => format!("{dtype}, for elements of that type"),
    }
}

impl Space {
    /// Whether rows hold bytes of vectors that are given as floats.
    pub(crate) fn is_scaled(&self) -> bool {
        self.stored == DType::I8 && self.dtype != DType::I8
    }

    /// Checks a vector at the door; tells its largest coordinate.
    pub(super) fn check_scaled<T: Element>(&self, vector: &[T], row: usize) -> Result<f32> {
        self.check_shape::<T>(vector.len())?;
        let largest = largest(vector);
        if !USUAL.contains(&largest) {
            self.stored_norm2(vector, row)?;
        }
        Ok(largest)
    }

    /// What is wrong with a row of such bytes.
    pub(super) fn verify_scaled(&self, row: &[u8]) -> std::result::Result<(), String> {
        let values = row[..self.vector_bytes()].iter().map(|&byte| (byte as i8).unsigned_abs());
        match values.max().unwrap_or(0) {
            127 => Ok(()),
            largest => Err(format!("its largest coordinate is {largest}, not 127")),
        }
    }
}

/// The largest coordinate by absolute value; not a number if one of them is none.
pub(super) fn largest<T: Element>(vector: &[T]) -> f32 {
    wide(
        #[inline(always)]
        || {
            let (mut floats, mut largest) = ([0f32; STEP], 0);
            for values in vector.chunks(STEP) {
                T::to_f32s(values, &mut floats);
                // Bits of positive floats are in the order of these.
                let bits = floats[..values.len()].iter().map(|value| value.abs().to_bits());
                largest = bits.fold(largest, u32::max);
            }
            f32::from_bits(largest)
        },
    )
}

/// The bytes of a vector that passed the checks, whose largest coordinate is known, and their squared norm.
pub(super) fn scaled<T: Element>(vector: &[T], largest: f32) -> (Vec<i8>, f64) {
    let lift = if largest < SMALL { LIFT } else { 1.0 };
    let scale = LARGEST / (largest * lift);
    let mut bytes = vec![0i8; vector.len()];
    let norm2 = wide(
        #[inline(always)]
        || {
            let (mut floats, mut norm2) = ([0f32; STEP], 0);
            for (values, bytes) in vector.chunks(STEP).zip(bytes.chunks_mut(STEP)) {
                T::to_f32s(values, &mut floats);
                for (byte, value) in bytes.iter_mut().zip(&floats) {
                    *byte = (value * lift * scale + ROUNDING).to_bits() as i8;
                    norm2 += i32::from(*byte) * i32::from(*byte);
                }
            }
            norm2
        },
    );
    (bytes, f64::from(norm2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::testing::Rng;

    fn scaled(vector: &[f32]) -> (Vec<i8>, f64) {
        super::scaled(vector, largest(vector))
    }

    #[test]
    fn directions_are_rounded_to_the_nearest() {
        let mut rng = Rng(5);
        for dim in [1, 7, 32, 33, 384] {
            let vector: Vec<f32> =
                (0..dim).map(|_| (rng.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
            let largest = vector.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let exact = |value: &f32| f64::from(*value) * 127.0 / f64::from(largest);
            let bytes = scaled(&vector).0;
            assert_eq!(bytes.iter().map(|byte| byte.unsigned_abs()).max(), Some(127));
            for (&byte, value) in bytes.iter().zip(&vector) {
                assert!((f64::from(byte) - exact(value)).abs() < 0.5 + 1e-4, "{byte} of {value}");
            }
            // What the scale is makes no difference, from the smallest to the largest that are let in.
            for power in [-126, -120, -100, -20, 60] {
                let factor = 2f32.powi(power);
                let other: Vec<f32> = vector.iter().map(|value| value * factor).collect();
                let is_exact = power > -126;
                let near = |(a, b): (&i8, &i8)| a == b || !is_exact && a.abs_diff(*b) <= 1;
                assert!(scaled(&other).0.iter().zip(&bytes).all(near), "2^{power}, {dim}");
            }
            // And bytes are what they are rounded to.
            let again: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) * 0.37).collect();
            let norm2 = bytes.iter().map(|&byte| f64::from(byte).powi(2)).sum();
            assert_eq!(scaled(&again), (bytes, norm2));
        }
        let tiny = f32::from_bits(1);
        assert_eq!(scaled(&[tiny, -tiny, 0.0, 2.0 * tiny]).0, [64, -64, 0, 127]);
    }
}
