//! The scalar twin of every kernel: the reference that the others are tested against, and the one whose results
//! are the same on every machine.

use half::f16;

use super::{Functions, Op, Single};
use crate::element::DType;

/// The entry points for an element type and operation.
pub(super) fn functions(dtype: DType, op: Op) -> Functions {
    match (dtype, op) {
        (DType::F32, Op::Dot) => F32::<false>::functions(),
        (DType::F32, Op::L2sq) => F32::<true>::functions(),
        (DType::F16, Op::Dot) => F16::<false>::functions(),
        (DType::F16, Op::L2sq) => F16::<true>::functions(),
        (DType::I8, Op::Dot) => I8::<false>::functions(),
        (DType::I8, Op::L2sq) => I8::<true>::functions(),
        (DType::U8, Op::Dot) => U8::<false>::functions(),
        (DType::U8, Op::L2sq) => U8::<true>::functions(),
    }
}

struct F32<const L2SQ: bool>;
struct F16<const L2SQ: bool>;
struct I8<const L2SQ: bool>;
struct U8<const L2SQ: bool>;

impl<const L2SQ: bool> Single for F32<L2SQ> {
    fn one(query: &[u8], row: &[u8]) -> f32 {
        floats::<L2SQ, 4>(query, row, f32::from_le_bytes)
    }
}

impl<const L2SQ: bool> Single for F16<L2SQ> {
    fn one(query: &[u8], row: &[u8]) -> f32 {
        floats::<L2SQ, 2>(query, row, |bytes| f16::from_le_bytes(bytes).to_f32())
    }
}

impl<const L2SQ: bool> Single for I8<L2SQ> {
    fn one(query: &[u8], row: &[u8]) -> f32 {
        integers::<L2SQ>(query, row, |byte| i32::from(byte as i8))
    }
}

impl<const L2SQ: bool> Single for U8<L2SQ> {
    fn one(query: &[u8], row: &[u8]) -> f32 {
        integers::<L2SQ>(query, row, i32::from)
    }
}

/// Sums in 16 lanes, element `i` in lane `i % 16`, then halves of the lanes onto each other. Products are rounded
/// before they are added: fused operations are not on every machine.
fn floats<const L2SQ: bool, const SIZE: usize>(
    query: &[u8],
    row: &[u8],
    read: impl Fn([u8; SIZE]) -> f32,
) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let (query, _) = query.as_chunks::<4>();
    let (row, _) = row.as_chunks::<SIZE>();
    for (query, row) in query.chunks(LANES).zip(row.chunks(LANES)) {
        for ((sum, &q), &r) in sums.iter_mut().zip(query).zip(row) {
            let (q, r) = (f32::from_le_bytes(q), read(r));
            *sum += if L2SQ { (q - r) * (q - r) } else { q * r };
        }
    }
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

/// Sums in pieces of 4096 terms, which 32 bits hold: the compiler has vectors for that.
fn integers<const L2SQ: bool>(query: &[u8], row: &[u8], read: impl Fn(u8) -> i32) -> f32 {
    let piece = |(query, row): (&[u8], &[u8])| {
        let pairs = query.iter().zip(row).map(|(&q, &r)| (read(q), read(r)));
        i64::from(pairs.map(|(q, r)| if L2SQ { (q - r) * (q - r) } else { q * r }).sum::<i32>())
    };
    query.chunks(4096).zip(row.chunks(4096)).map(piece).sum::<i64>() as f32
}
