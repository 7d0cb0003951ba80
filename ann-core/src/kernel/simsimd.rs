//! simsimd's kernels, one row at a time. It has none for sums over u8; its f16 kernels are left out because on some
//! machines they sum in f16, which overflows at 65,504 and keeps three digits.

use std::marker::PhantomData;

use ::simsimd::SpatialSimilarity;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Functions, Op, Single};
use crate::element::DType;

/// Elements a call: its integer sums are signed 32-bit numbers, and an unaligned row is copied piece by piece.
const PIECE: usize = 4096;

/// The entry points for an element type and operation, if simsimd has them.
pub(super) fn functions(dtype: DType, op: Op) -> Option<Functions> {
    match (dtype, op) {
        // Its numbers are in the machine's byte order, ours are little-endian.
        _ if cfg!(target_endian = "big") => None,
        (DType::F32, Op::Dot) => Some(Simsimd::<f32, false>::functions()),
        (DType::F32, Op::L2sq) => Some(Simsimd::<f32, true>::functions()),
        (DType::I8, Op::Dot) => Some(Simsimd::<i8, false>::functions()),
        (DType::I8, Op::L2sq) => Some(Simsimd::<i8, true>::functions()),
        _ => None,
    }
}

struct Simsimd<T, const L2SQ: bool>(PhantomData<T>);

impl<T, const L2SQ: bool> Single for Simsimd<T, L2SQ>
where
    T: SpatialSimilarity + FromBytes + IntoBytes + Immutable + Copy,
{
    fn one(query: &[u8], row: &[u8]) -> f32 {
        let len = PIECE * size_of::<T>();
        let pieces = query.chunks(len).zip(row.chunks(len));
        pieces.map(|(query, row)| piece::<T, L2SQ>(query, row)).sum::<f64>() as f32
    }
}

fn piece<T, const L2SQ: bool>(query: &[u8], row: &[u8]) -> f64
where
    T: SpatialSimilarity + FromBytes + IntoBytes + Immutable + Copy,
{
    let score = |row| {
        let query = <[T]>::ref_from_bytes(query).ok()?;
        if L2SQ { T::l2sq(query, row) } else { T::dot(query, row) }
    };
    let sum = match <[T]>::ref_from_bytes(row) {
        Ok(row) => score(row),
        Err(_) => {
            let mut copy = [T::new_zeroed(); PIECE];
            let copy = &mut copy[..row.len() / size_of::<T>()];
            copy.as_mut_bytes().copy_from_slice(row);
            score(copy)
        }
    };
    sum.expect("a query is aligned and as long as the row")
}
