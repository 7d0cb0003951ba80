//! The query side of product quantizers: a table of 16 bytes for each sub-quantizer.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{MAX_ENTRY, SUB, fill, nibble_bytes};

/// The tables of one query, for reuse by many.
///
/// Each table's smallest entry is zero; all have one scale, at which the largest entry of all is `MAX_ENTRY`.
#[derive(Default)]
pub struct Tables {
    lines: Vec<Line>,
    /// The smallest entry of each.
    least: Vec<f32>,
    subs: usize,
    delta: f32,
    bias: f32,
}

/// One cache line; aligned so that no vector load of the tables straddles two.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Tables {
    /// Takes over what the 16 codewords of each sub-quantizer add to a distance. Allocates nothing if the tables have
    /// held as many before.
    pub fn fill(&mut self, entries: &[[f32; SUB]]) {
        self.least.clear();
        self.least.resize(entries.len(), 0.0);
        let range = fill::least(entries, &mut self.least);
        let scale = f32::from(MAX_ENTRY) / range;
        let scale = if scale.is_finite() { scale } else { 0.0 };
        self.subs = entries.len();
        self.delta = if scale > 0.0 { range / f32::from(MAX_ENTRY) } else { 0.0 };
        self.bias = sum(&self.least) as f32;
        self.lines.clear();
        self.lines.resize(nibble_bytes(self.subs).div_ceil(size_of::<Line>()), Line([0; 64]));
        let bytes = self.lines.as_mut_slice().as_mut_bytes();
        fill::bytes(entries, &self.least, scale, bytes.as_chunks_mut().0);
    }

    /// Sub-quantizers.
    pub fn subs(&self) -> usize {
        self.subs
    }

    /// What a unit of an entry stands for.
    pub fn delta(&self) -> f32 {
        self.delta
    }

    /// What the tables' zeros stand for, all together.
    pub fn bias(&self) -> f32 {
        self.bias
    }

    /// The tables; readable up to the end of their last cache line.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.lines.as_bytes()[..nibble_bytes(self.subs)]
    }
}

/// The sum, of every eighth by itself first.
fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (whole, rest) = values.as_chunks::<8>();
    for values in whole {
        lanes.iter_mut().zip(values).for_each(|(lane, &value)| *lane += f64::from(value));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &value)| *lane += f64::from(value));
    lanes.iter().sum()
}
