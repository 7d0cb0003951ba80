//! Vectors in a byte a coordinate, for the searches of a load: what is read of each is a quarter of its floats, and
//! more of them stay in the cache. What such a search finds is measured exactly after it.
//!
//! Rounding adds about a sixth for each coordinate to a squared distance, the same for all but for noise that grows
//! with the distance. Among neighbours nearer than some fifty steps noise would choose: they are searched for exactly.

use rayon::prelude::*;

use crate::element::{DType, Element};
use crate::kernel::Isa;
use crate::metric::Metric;
use crate::rows::{Batch, Probe, Space, next_rows};

use super::leaves::Points;

/// Dimensions from which on it is the vectors that a search waits for.
const LEAST_DIM: usize = 64;
/// The largest coordinate of the sample becomes this.
const LARGEST: f32 = 127.0;
/// Squared distance in steps up to which noise would choose.
const NOISE: f32 = 2500.0;

/// Vectors by place.
pub(super) struct Bytes {
    space: Space,
    scale: f32,
    rows: Vec<u8>,
    /// Rows that are there.
    filled: usize,
}

impl Bytes {
    /// Bytes of a row, if rows like these would be searched so.
    pub(super) fn stride_of(space: &Space) -> Option<usize> {
        Bytes::space(space).map(|space| space.stride())
    }

    fn space(space: &Space) -> Option<Space> {
        let is_wide = matches!(space.stored, DType::F32 | DType::F16) && space.dim >= LEAST_DIM;
        // Its kernels for bytes are not faster than those for floats.
        let isa = Some(space.isa()).filter(|&isa| is_wide && isa != Isa::Simsimd)?;
        Space::new(space.dim, DType::I8, Metric::L2sq, Some(isa)).ok()
    }

    /// Room for the rows of `order`, if they are searched so.
    pub(super) fn new<T: Element>(
        points: &Points<'_, T>,
        order: &[u32],
        like: &Space,
    ) -> Option<Bytes> {
        let space = Bytes::space(like)?;
        let largest = points.largest(order);
        if largest == 0.0 {
            return None;
        }
        let rows = vec![0; order.len() * space.stride()];
        Some(Bytes { space, scale: LARGEST / largest, rows, filled: 0 })
    }

    /// Takes in some rows of `order`. False once all are there. Runs on the current thread pool.
    pub(super) fn fill<T: Element>(&mut self, points: &Points<'_, T>, order: &[u32]) -> bool {
        let Bytes { space, scale, rows, filled } = self;
        let next = next_rows(*filled, order.len(), space.dim);
        let stride = space.stride();
        let out = &mut rows[next.start * stride..next.end * stride];
        out.par_chunks_mut(stride).zip(&order[next.clone()]).for_each_init(
            || vec![0f32; space.dim],
            |point, (out, &row)| {
                points.fill(row as usize, point);
                for (out, value) in out.iter_mut().zip(point) {
                    *out = (*value * *scale).round().clamp(-LARGEST, LARGEST) as i8 as u8;
                }
            },
        );
        *filled = next.end;
        !next.is_empty()
    }

    /// Makes a row what is searched for.
    pub(super) fn probe(&self, place: usize, probe: &mut Probe) {
        self.space.probe(&self.rows[place * self.space.stride()..], probe);
    }

    /// Scores the batch's ids, which are places; see [`Batch::score_below`].
    #[inline]
    pub(super) fn score(&self, batch: &mut Batch, probe: &Probe, bound: f32) {
        let is_inside = batch.score_plain(&self.space, &self.rows, probe, bound);
        debug_assert!(is_inside, "places are those of rows");
    }

    /// Whether noise chose among what a search has found, the farthest of it at this distance.
    pub(super) fn is_noise(farthest: f32) -> bool {
        farthest < NOISE
    }
}
