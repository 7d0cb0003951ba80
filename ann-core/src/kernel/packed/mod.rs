//! Packed codes: dot products of one query with codes that each lie for themselves, 1, 2, 4 or 8 bits a coordinate.
//!
//! The query is made small integers once ([`Weights`]): bytes beside codes of up to four bits, whose own error is many
//! times that of a byte; 16 bits beside codes of eight. A dot product then is a sum of products of integers, the same
//! on all instruction sets, and what is made of it is computed in one place.
//!
//! A code is a sequence of 16 bytes. With `f = 8 / bits` fields a byte, number `c` of these has the coordinates from
//! `16 f c` on: field `j` (from the least significant bits up) of byte `t` is coordinate `16 f c + 16 j + t`. So one
//! shift and one mask bring 16 coordinates into the order in which the query has them.

use super::{Isa, within};

mod scalar;
mod weights;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(test)]
mod tests;

pub use weights::Weights;

/// Bytes that are unpacked together.
const CHUNK: usize = 16;

/// Bytes of a code of `dim` coordinates.
pub fn code_bytes(dim: usize, bits: u8) -> usize {
    dim.div_ceil(coordinates(bits)) * CHUNK
}

/// Coordinates that [`CHUNK`] bytes have.
fn coordinates(bits: u8) -> usize {
    CHUNK * (8 / usize::from(bits))
}

/// Packs `levels`, one byte a coordinate and each below `2^bits`; what is left of the last bytes is zero.
///
/// # Panics
/// If `bits` is not 1, 2, 4 or 8, or `out` is not [`code_bytes`] long.
pub fn pack(levels: &[u8], bits: u8, out: &mut [u8]) {
    check(bits);
    assert_eq!(out.len(), code_bytes(levels.len(), bits), "a code has its length");
    out.fill(0);
    let chunks = levels.chunks(coordinates(bits)).zip(out.as_chunks_mut::<CHUNK>().0);
    for (levels, bytes) in chunks {
        for (field, levels) in levels.chunks(CHUNK).enumerate() {
            let shift = field * usize::from(bits);
            bytes.iter_mut().zip(levels).for_each(|(byte, level)| *byte |= level << shift);
        }
    }
}

/// Makes `levels` what [`pack`] was given.
///
/// # Panics
/// If `bits` is not 1, 2, 4 or 8, or `code` is not [`code_bytes`] long.
pub fn unpack(code: &[u8], bits: u8, levels: &mut [u8]) {
    check(bits);
    assert_eq!(code.len(), code_bytes(levels.len(), bits), "a code has its length");
    let mask = (u16::from(u8::MAX) >> (8 - bits)) as u8;
    let chunks = levels.chunks_mut(coordinates(bits)).zip(code.as_chunks::<CHUNK>().0);
    for (levels, bytes) in chunks {
        for (field, levels) in levels.chunks_mut(CHUNK).enumerate() {
            let shift = field * usize::from(bits);
            levels.iter_mut().zip(bytes).for_each(|(level, byte)| *level = byte >> shift & mask);
        }
    }
}

fn check(bits: u8) {
    assert!(matches!(bits, 1 | 2 | 4 | 8), "packed codes of {bits} bits");
}

/// The sum of products of levels and weights, for a code of as many chunks as the weights are.
///
/// Safety of the call: the machine has the instruction set; `code` is as long as the weights' code.
type Dot = unsafe fn(&Weights, &[u8]) -> i32;

/// Dot products with packed codes, by one instruction set.
#[derive(Clone, Copy)]
pub struct Packed {
    dot: Dot,
    bits: u8,
    isa: Isa,
}

impl Packed {
    /// By the widest vectors that there are functions for. The scalar ones are plain loops, of which the compiler makes
    /// vectors where every machine of a kind has them.
    ///
    /// # Panics
    /// If `bits` is not 1, 2, 4 or 8.
    pub fn new(bits: u8) -> Packed {
        let scalar = || Packed { dot: scalar::dot(bits), bits, isa: Isa::Scalar };
        Packed::with_isa(bits, Isa::Avx2).unwrap_or_else(scalar)
    }

    /// By a given instruction set; `None` if this machine does not have it or it has no functions of its own.
    ///
    /// # Panics
    /// If `bits` is not 1, 2, 4 or 8.
    pub fn with_isa(bits: u8, isa: Isa) -> Option<Packed> {
        check(bits);
        let dot = match isa {
            Isa::Scalar => scalar::dot(bits),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if super::avx2::available() => avx2::dot(bits),
            _ => return None,
        };
        Some(Packed { dot, bits, isa })
    }

    /// Bits a coordinate.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Makes `out[i]` about the dot product of the query and the levels of the code at `base[offsets[i]..]`, which lie
    /// symmetric about zero. Returns false, before any code is read, if one of them does not lie within `base`.
    ///
    /// # Panics
    /// If `out` is not as long as `offsets`, or the weights are for other bits.
    #[must_use]
    pub fn rows(&self, weights: &Weights, base: &[u8], offsets: &[u64], out: &mut [f32]) -> bool {
        assert_eq!(offsets.len(), out.len(), "one result for each offset");
        assert_eq!(weights.bits(), self.bits, "weights for codes of as many bits");
        let bytes = weights.code_bytes();
        if !within(base, bytes, offsets) {
            return false;
        }
        for (&offset, out) in offsets.iter().zip(out) {
            // SAFETY: `with_isa` checked the instruction set; the slice has the code's length.
            let sum = unsafe { (self.dot)(weights, &base[offset as usize..][..bytes]) };
            *out = weights.product(sum);
        }
        true
    }

    /// What [`rows`](Packed::rows) makes of one code.
    ///
    /// # Panics
    /// If `code` is shorter than a code, or the weights are for other bits.
    pub fn one(&self, weights: &Weights, code: &[u8]) -> f32 {
        assert_eq!(weights.bits(), self.bits, "weights for codes of as many bits");
        // SAFETY: `with_isa` checked the instruction set; the slice has the code's length.
        let sum = unsafe { (self.dot)(weights, &code[..weights.code_bytes()]) };
        weights.product(sum)
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({:?}, {} bits)", self.isa, self.bits)
    }
}
