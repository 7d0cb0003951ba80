//! The query side of packed codes: its coordinates as integers of one scale.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{check, code_bytes, coordinates};
use crate::element::MAX_DIM;
use crate::kernel::wide::wide;

/// The largest byte, and the largest of 16 bits: a few more would tell nothing beside codes of eight.
const BYTE: f32 = 127.0;
const WORD: f32 = 8191.0;
/// Around it, floats are whole numbers: adding it rounds, and leaves the number in the low bits.
const WHOLE: f32 = (3u32 << 22) as f32;

/// The weights of one query, for reuse by many: coordinates over [`delta`](Weights::delta), rounded.
#[derive(Default)]
pub struct Weights {
    lines: Vec<Line>,
    dim: usize,
    bits: u8,
    delta: f32,
    offset: f32,
}

/// One cache line; aligned so that no vector load of the weights straddles two.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Weights {
    /// Makes these the weights of `query`, which is rotated as the codes are. Allocates nothing if they have held one
    /// as large before.
    ///
    /// # Panics
    /// If `bits` is not 1, 2, 4 or 8, or the query has more than [`MAX_DIM`] coordinates.
    pub fn fill(&mut self, query: &[f32], bits: u8) {
        check(bits);
        assert!(query.len() <= MAX_DIM, "weights of {} coordinates", query.len());
        wide(
            #[inline(always)]
            || self.fill_here(query, bits),
        )
    }

    #[inline(always)]
    fn fill_here(&mut self, query: &[f32], bits: u8) {
        let dim = query.len();
        (self.dim, self.bits) = (dim, bits);
        let size = if bits == 8 { 2 } else { 1 };
        let bytes = dim.next_multiple_of(coordinates(bits)) * size;
        self.lines.clear();
        self.lines.resize(bytes.div_ceil(size_of::<Line>()), Line([0; 64]));
        // As integers, sizes have the order that they have as floats.
        let sizes = query.iter().map(|value| value.abs().to_bits());
        let largest = f32::from_bits(sizes.fold(0, u32::max));
        // No sum over all coordinates may leave 32 bits.
        let most = match bits {
            8 => WORD.min((i32::MAX as usize / (255 * dim.max(1))) as f32),
            _ => BYTE,
        };
        let mut scale = most / largest;
        if scale.is_finite() {
            self.delta = largest / most;
        } else {
            // A query as small as this is zero: each code's dot product with it is.
            (scale, self.delta) = (0.0, 0.0);
        }
        let bytes = self.lines.as_mut_slice().as_mut_bytes();
        let mut total = 0i64;
        match bits {
            8 => {
                for (word, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(query) {
                    let weight = (value * scale + WHOLE).to_bits() as i16;
                    *word = weight.to_le_bytes();
                    total += i64::from(weight);
                }
            }
            _ => {
                for (byte, value) in bytes.iter_mut().zip(query) {
                    let weight = (value * scale + WHOLE).to_bits() as i8;
                    *byte = weight as u8;
                    total += i64::from(weight);
                }
            }
        }
        let middle = f64::from((1u32 << bits) - 1) / 2.0;
        self.offset = (-middle * total as f64 * f64::from(self.delta)) as f32;
    }

    /// Bits a coordinate of the codes that these are for.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// What a unit of a weight stands for.
    pub fn delta(&self) -> f32 {
        self.delta
    }

    /// Bytes of a code of as many coordinates.
    pub(super) fn code_bytes(&self) -> usize {
        code_bytes(self.dim, self.bits)
    }

    /// The weights of all coordinates of a code, those that fill its last bytes included: one byte each, or two where
    /// codes have eight bits.
    pub(super) fn bytes(&self) -> &[u8] {
        self.lines.as_bytes()
    }

    /// The dot product with a code's levels, from the sum of products with what it holds.
    #[inline(always)]
    pub(super) fn product(&self, sum: i32) -> f32 {
        self.delta * sum as f32 + self.offset
    }
}
