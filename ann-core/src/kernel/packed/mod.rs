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
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
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

/// The sum of products of levels and weights; of four codes at a time, where that is faster.
///
/// Safety of the calls: the machine has the instruction set; codes are as long as the weights' code.
type Dot = unsafe fn(&Weights, &[u8]) -> i32;
type Four = unsafe fn(&Weights, [&[u8]; 4]) -> [i32; 4];

/// Dot products with packed codes, by one instruction set.
#[derive(Clone, Copy)]
pub struct Packed {
    dot: Dot,
    four: Option<Four>,
    bits: u8,
    isa: Isa,
}

impl Packed {
    /// By the widest vectors that this machine has.
    ///
    /// # Panics
    /// If `bits` is not 1, 2, 4 or 8.
    pub fn new(bits: u8) -> Packed {
        let scalar = || Packed { dot: scalar::dot(bits), four: None, bits, isa: Isa::Scalar };
        let all = [Isa::Avx512, Isa::Avx2, Isa::Neon];
        all.into_iter().find_map(|isa| Packed::with_isa(bits, isa)).unwrap_or_else(scalar)
    }

    /// By a given instruction set; `None` if this machine does not have it or it has no functions of its own.
    ///
    /// # Panics
    /// If `bits` is not 1, 2, 4 or 8.
    pub fn with_isa(bits: u8, isa: Isa) -> Option<Packed> {
        check(bits);
        let (dot, four) = match isa {
            Isa::Scalar => (scalar::dot(bits), None),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if super::avx2::available() => (avx2::dot(bits), None),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if super::avx512::available() => {
                (avx512::dot(bits), Some(avx512::four(bits)))
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => (neon::dot(bits), None),
            _ => return None,
        };
        Some(Packed { dot, four, bits, isa })
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
        let code = |offset: u64| &base[offset as usize..][..bytes];
        let (mut done, (fours, _)) = (0, offsets.as_chunks::<4>());
        if let Some(four) = self.four {
            for (&offsets, out) in fours.iter().zip(out.as_chunks_mut::<4>().0) {
                // SAFETY: `with_isa` checked the instruction set; the slices have the code's length.
                let sums = unsafe { four(weights, offsets.map(code)) };
                *out = sums.map(|sum| weights.product(sum));
            }
            done = 4 * fours.len();
        }
        for (&offset, out) in offsets[done..].iter().zip(&mut out[done..]) {
            // SAFETY: `with_isa` checked the instruction set; the slice has the code's length.
            let sum = unsafe { (self.dot)(weights, code(offset)) };
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
