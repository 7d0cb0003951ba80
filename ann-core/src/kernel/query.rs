//! The query side of a comparison, laid out once for many.

use half::f16;
use half::slice::HalfFloatSliceExt;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::element::DType;

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
    // half converts slices with the machine's vector instructions, single values without.
    const STEP: usize = 32;
    let mut buffer = [0f32; STEP];
    for (halves, floats) in halves.chunks(2 * STEP).zip(floats.chunks_mut(4 * STEP)) {
        let mut values = [f16::ZERO; STEP];
        for (value, &bytes) in values.iter_mut().zip(halves.as_chunks().0) {
            *value = f16::from_le_bytes(bytes);
        }
        values.convert_to_f32_slice(&mut buffer);
        for (bytes, value) in floats.as_chunks_mut().0.iter_mut().zip(buffer) {
            *bytes = value.to_le_bytes();
        }
    }
}
