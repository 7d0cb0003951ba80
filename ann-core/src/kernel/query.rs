//! The query side of a comparison, laid out once for many.

use half::f16;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::element::{DType, floats_of};

/// A query, prepared by [`Kernel::prepare`](super::Kernel::prepare): 64-byte aligned, with f16 widened to f32.
#[derive(Default)]
pub struct Query {
    lines: Vec<Line>,
    of: Option<(DType, usize)>,
}

/// One cache line; aligned so that no vector load of the query straddles two.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Query {
    /// Bytes that an element of `dtype` takes in a query.
    pub(super) const fn element_size(dtype: DType) -> usize {
        match dtype {
            DType::F16 => size_of::<f32>(),
            _ => dtype.size(),
        }
    }

    /// Takes over `row`.
    pub(super) fn fill(&mut self, dtype: DType, row: &[u8]) {
        let dim = row.len() / dtype.size();
        let len = dim * Query::element_size(dtype);
        self.of = Some((dtype, dim));
        self.lines.resize(len.div_ceil(size_of::<Line>()), Line([0; 64]));
        let bytes = &mut self.lines.as_mut_slice().as_mut_bytes()[..len];
        match dtype {
            DType::F16 => widen(row, bytes),
            _ => bytes.copy_from_slice(row),
        }
    }

    /// The elements.
    ///
    /// # Panics
    /// If this is not a query of `dim` elements of `dtype`.
    pub(super) fn elements(&self, dtype: DType, dim: usize) -> &[u8] {
        assert_eq!(self.of, Some((dtype, dim)), "the query was prepared for another kernel");
        &self.lines.as_bytes()[..dim * Query::element_size(dtype)]
    }
}

/// Turns little-endian f16 into little-endian f32.
fn widen(halves: &[u8], floats: &mut [u8]) {
    let mut floats = floats.as_chunks_mut().0.iter_mut();
    floats_of::<f16>(halves, |values| {
        floats.by_ref().zip(values).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
    });
}
