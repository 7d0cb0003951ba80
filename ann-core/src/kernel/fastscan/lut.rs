//! The query side of FastScan: tables of 16 bytes for each four coordinates.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{SUB, plane_bytes};
use crate::element::MAX_DIM;
use crate::kernel::wide::wide;

/// The tables of one query, for reuse by many.
///
/// Entry `n` of a table is the sum of those of four coordinates whose bit in `n` is set, less the smallest such sum.
/// All tables have one scale, at which the largest entry of all is 255.
#[derive(Default)]
pub struct Lut {
    lines: Vec<Line>,
    dim: usize,
    delta: f32,
    bias: f32,
    /// Twice the bias less the sum of the coordinates; see [`offset`](Lut::offset).
    lacks: f64,
}

/// One cache line; aligned so that no vector load of the tables straddles two.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Lut {
    /// Makes these the tables of `query`, which is rotated as the codes are. Allocates nothing if they have held one
    /// as large before.
    ///
    /// # Panics
    /// If the dimension is no multiple of 8 or larger than [`MAX_DIM`].
    pub fn fill(&mut self, query: &[f32]) {
        let dim = query.len();
        assert!(dim.is_multiple_of(8) && dim <= MAX_DIM, "tables of {dim} coordinates");
        wide(
            #[inline(always)]
            || self.fill_here(query),
        )
    }

    #[inline(always)]
    fn fill_here(&mut self, query: &[f32]) {
        let dim = query.len();
        let (fours, _) = query.as_chunks::<4>();
        let (mut minima, mut maxima, mut range) = (0.0, 0.0, 0f32);
        for &four in fours {
            let [a, b, c, d] = four.map(|x| positive(-x));
            let below = -((a + b) + (c + d));
            let [a, b, c, d] = four.map(positive);
            let above = (a + b) + (c + d);
            minima += f64::from(below);
            maxima += f64::from(above);
            range = if range < above - below { above - below } else { range };
        }
        let (sum, range) = (minima + maxima, f64::from(range));
        let mut scale = (255.0 / range) as f32;
        if scale.is_finite() {
            self.delta = (range / 255.0) as f32;
        } else {
            // A query as small as this is zero: each code's dot product with it is.
            (scale, self.delta, minima) = (0.0, 0.0, sum / 2.0);
        }
        self.dim = dim;
        self.bias = minima as f32;
        self.lacks = 2.0 * minima - sum;
        self.lines.clear();
        self.lines.resize(plane_bytes(dim).div_ceil(size_of::<Line>()), Line([0; 64]));
        let bytes = self.lines.as_mut_slice().as_mut_bytes();
        for (table, four) in bytes.as_chunks_mut().0.iter_mut().zip(fours) {
            *table = entries(four.map(|x| x * scale));
        }
    }

    /// Coordinates of the query.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// What a unit of an entry stands for.
    pub fn delta(&self) -> f32 {
        self.delta
    }

    /// What the tables' zeros stand for, all together.
    pub fn bias(&self) -> f32 {
        self.bias
    }

    /// What `delta` times the sum over `bits` planes lacks to the dot product of the query and a code whose levels lie
    /// symmetric about zero.
    pub(super) fn offset(&self, bits: u8) -> f32 {
        // Planes weigh 2^bits - 1 together, and so often the bias is missing. Half of that is the levels' middle,
        // which each coordinate has too much.
        let middle = f64::from((1u32 << bits) - 1) / 2.0;
        (middle * self.lacks) as f32
    }

    /// The tables; readable up to the end of their last cache line.
    pub(super) fn tables(&self) -> &[u8] {
        &self.lines.as_bytes()[..plane_bytes(self.dim)]
    }
}

/// The larger of a number and zero; zero if it is none. (For `f32::max` there is no single instruction.)
#[inline(always)]
fn positive(x: f32) -> f32 {
    if x > 0.0 { x } else { 0.0 }
}

/// A table of four scaled coordinates. A set bit adds a positive coordinate, a clear one leaves a negative one out,
/// which is as much above the smallest sum.
#[inline(always)]
fn entries(four: [f32; 4]) -> [u8; SUB] {
    // From here on, floats are whole numbers: adding it rounds, and leaves the number in the low bits.
    const WHOLE: f32 = (1u32 << 23) as f32;
    let [a, b, c, d] = four.map(|x| [positive(-x), positive(x)]);
    let pairs = |a: [f32; 2], b: [f32; 2]| [a[0] + b[0], a[1] + b[0], a[0] + b[1], a[1] + b[1]];
    let (low, high) = (pairs(a, b), pairs(c, d));
    // Four entries a word: single bytes would be stored one by one.
    let word = |high: f32| {
        let bytes = low.map(|low| (low + high + WHOLE).to_bits() & 0xff);
        (bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24).to_le_bytes()
    };
    let mut table = [0; SUB];
    for (entries, high) in table.as_chunks_mut().0.iter_mut().zip(high) {
        *entries = word(high);
    }
    table
}
