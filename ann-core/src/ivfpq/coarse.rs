//! Finding the nearest lists by codes of their centroids, so that it never dominates a search: 32 centroids are scored
//! in the time that one dot product takes. What the order of lists has besides the distance to the centroid is an
//! addend of its code; only those are looked at that come below the last of the nearest found so far.
//!
//! The codes are made from the centroids when these are read, and are stored nowhere.

use crate::code::pq::{Pq, Scratch};
use crate::kernel::fastscan::{
    Addends, BLOCK, FastScan, NO_ADDENDS, Tables, nibble_bytes, put_nibbles,
};
use crate::metric::Metric;

use super::model::{key, unkey};

/// Centroids below which all are measured.
const FEW: usize = 256;
/// Pieces of two dimensions each, up to so many; longer centroids have so many, or one for each four dimensions.
const PIECES: usize = 128;

/// Codes of all centroids.
pub(crate) struct Coarse {
    pq: Pq,
    blocks: Vec<u8>,
    /// What is added to each.
    addends: Vec<Addends>,
    scan: FastScan,
    count: usize,
}

impl Coarse {
    /// Of centroids, rows of `dim` floats, with what the order of each list has besides its distance; `None` if there
    /// are too few.
    pub(crate) fn new(
        centroids: &[f32],
        dim: usize,
        metric: Metric,
        besides: impl Fn(usize) -> f32,
    ) -> Option<Coarse> {
        let count = centroids.len() / dim;
        if count < FEW {
            return None;
        }
        let subs = pieces(dim);
        let sample = centroids.len().min(4096 * dim);
        let pq = Pq::train(&centroids[..sample], dim, subs, 4, 0);
        let bytes = nibble_bytes(subs);
        let mut blocks = vec![0; count.div_ceil(BLOCK) * bytes];
        let mut addends = vec![NO_ADDENDS; count.div_ceil(BLOCK)];
        let (mut codes, mut decoded) = (vec![0; subs], vec![0.0; dim]);
        let mut scratch = Scratch::default();
        for (at, centroid) in centroids.chunks_exact(dim).enumerate() {
            pq.encode(centroid, &mut codes, &mut scratch);
            let (block, lane) = (at / BLOCK, at % BLOCK);
            put_nibbles(&mut blocks[block * bytes..][..bytes], lane, &codes);
            let mut addend = besides(at);
            if metric == Metric::L2sq {
                pq.decode(&codes, &mut decoded);
                addend += decoded.iter().map(|x| x * x).sum::<f32>();
            }
            addends[block][4 * lane..][..4].copy_from_slice(&addend.to_le_bytes());
        }
        Some(Coarse { pq, blocks, addends, scan: FastScan::new(), count })
    }

    /// Fills in the tables of a query; `entries` is what they are made in.
    pub(crate) fn look_up(
        &self,
        query: &[f32],
        metric: Metric,
        tables: &mut Tables,
        entries: &mut Vec<[f32; 16]>,
    ) {
        let factor = if metric == Metric::L2sq { -2.0 } else { -1.0 };
        self.pq.tables(query, factor, entries);
        tables.fill(entries);
    }

    /// Replaces `order` with what gives the order of the nearest `count` centroids that `is_wanted`, as far as codes
    /// tell and but for a number that all have in common, above their places; in no order.
    pub(crate) fn nearest(
        &self,
        tables: &Tables,
        count: usize,
        is_wanted: impl Fn(u32) -> bool,
        order: &mut Vec<u64>,
    ) {
        order.clear();
        // Twice as many as are wanted make the selection cost O(1) a centroid.
        let room = count.saturating_mul(2);
        let (mut bound, mut out) = (f32::INFINITY, [0.0; BLOCK]);
        let blocks = self.blocks.chunks_exact(nibble_bytes(self.pq.subs()));
        for (first, (codes, addends)) in (0..).step_by(BLOCK).zip(blocks.zip(&self.addends)) {
            let mut below = self.scan.distances(codes, tables, Some(addends), 0.0, bound, &mut out);
            if self.count - first < BLOCK {
                below &= (1 << (self.count - first)) - 1;
            }
            while below != 0 {
                let lane = below.trailing_zeros();
                below &= below - 1;
                let place = first as u32 + lane;
                if is_wanted(place) {
                    order.push(key(out[lane as usize], place));
                }
            }
            if order.len() >= room {
                order.select_nth_unstable(count - 1);
                order.truncate(count);
                // Of equal ones the first places count, and these have been.
                bound = unkey(order[count - 1]).0;
            }
        }
        if order.len() > count {
            order.select_nth_unstable(count - 1);
            order.truncate(count);
        }
    }
}

/// Pieces that a centroid is cut into.
fn pieces(dim: usize) -> usize {
    dim.div_ceil(2).min(PIECES.max(dim.div_ceil(4)))
}
