//! The query side of product quantizers: a table of 16 bytes for each sub-quantizer.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{MAX_ENTRY, SUB, nibble_bytes};
use crate::kernel::wide::wide;

/// The tables of one query, for reuse by many.
///
/// Each table's smallest entry is zero; all have one scale, at which the largest entry of all is [`MAX_ENTRY`].
#[derive(Default)]
pub struct Tables {
    lines: Vec<Line>,
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
        wide(
            #[inline(always)]
            || self.fill_here(entries),
        )
    }

    #[inline(always)]
    fn fill_here(&mut self, entries: &[[f32; SUB]]) {
        let (mut minima, mut range) = (0f64, 0f32);
        for table in entries {
            let (least, most) = ends(table);
            minima += f64::from(least);
            range = if range < most - least { most - least } else { range };
        }
        let scale = f32::from(MAX_ENTRY) / range;
        let scale = if scale.is_finite() { scale } else { 0.0 };
        self.subs = entries.len();
        self.delta = if scale > 0.0 { range / f32::from(MAX_ENTRY) } else { 0.0 };
        self.bias = minima as f32;
        self.lines.clear();
        self.lines.resize(nibble_bytes(self.subs).div_ceil(size_of::<Line>()), Line([0; 64]));
        let bytes = self.lines.as_mut_slice().as_mut_bytes();
        for (out, table) in bytes.as_chunks_mut::<SUB>().0.iter_mut().zip(entries) {
            let (least, _) = ends(table);
            for (out, entry) in out.iter_mut().zip(table) {
                // Adding this rounds, and leaves the number in the low bits.
                const WHOLE: f32 = (1u32 << 23) as f32;
                *out = ((entry - least) * scale + WHOLE).to_bits() as u8;
            }
        }
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

/// The smallest and the largest entry.
#[inline(always)]
fn ends(table: &[f32; SUB]) -> (f32, f32) {
    let (mut least, mut most) = (*table, *table);
    // By halves, which are vectors.
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            least[i] = if least[i + half] < least[i] { least[i + half] } else { least[i] };
            most[i] = if most[i + half] > most[i] { most[i + half] } else { most[i] };
        }
    }
    (least[0], most[0])
}
