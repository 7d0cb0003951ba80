//! Finding the nearest lists by codes of their centroids, so that it never dominates a search: 32 centroids are scored
//! in the time that one dot product takes.
//!
//! The codes are made from the centroids when these are read, and are stored nowhere.

use crate::code::pq::{Pq, Scratch};
use crate::kernel::fastscan::{
    Addends, BLOCK, FastScan, NO_ADDENDS, Tables, nibble_bytes, put_nibbles,
};
use crate::metric::Metric;

/// Centroids below which all are measured.
const FEW: usize = 256;
/// Dimensions of a piece of a centroid.
const PIECE: usize = 2;

/// Codes of all centroids.
pub(crate) struct Coarse {
    pq: Pq,
    blocks: Vec<u8>,
    /// Under squared L2, what is added to each.
    addends: Vec<Addends>,
    scan: FastScan,
    count: usize,
}

/// What scoring needs for a while.
#[derive(Default)]
pub(crate) struct Lookup {
    entries: Vec<[f32; 16]>,
    tables: Tables,
}

impl Coarse {
    /// Of centroids, rows of `dim` floats; `None` if there are too few.
    pub(crate) fn new(centroids: &[f32], dim: usize, metric: Metric) -> Option<Coarse> {
        let count = centroids.len() / dim;
        if count < FEW {
            return None;
        }
        let subs = dim.div_ceil(PIECE);
        let sample = centroids.len().min(4096 * dim);
        let pq = Pq::train(&centroids[..sample], dim, subs, 4, 0);
        let bytes = nibble_bytes(subs);
        let mut blocks = vec![0; count.div_ceil(BLOCK) * bytes];
        let mut addends = Vec::new();
        if metric == Metric::L2sq {
            addends.resize(count.div_ceil(BLOCK), NO_ADDENDS);
        }
        let (mut codes, mut decoded) = (vec![0; subs], vec![0.0; dim]);
        let mut scratch = Scratch::default();
        for (at, centroid) in centroids.chunks_exact(dim).enumerate() {
            pq.encode(centroid, &mut codes, &mut scratch);
            let (block, lane) = (at / BLOCK, at % BLOCK);
            put_nibbles(&mut blocks[block * bytes..][..bytes], lane, &codes);
            if metric == Metric::L2sq {
                pq.decode(&codes, &mut decoded);
                let square: f32 = decoded.iter().map(|x| x * x).sum();
                addends[block][4 * lane..][..4].copy_from_slice(&square.to_le_bytes());
            }
        }
        Some(Coarse { pq, blocks, addends, scan: FastScan::new(), count })
    }

    /// Replaces `out` with estimates of the query's distances to all centroids; squared L2 lacks the query's own square.
    pub(crate) fn score(
        &self,
        query: &[f32],
        metric: Metric,
        lookup: &mut Lookup,
        out: &mut Vec<f32>,
    ) {
        let factor = if metric == Metric::L2sq { -2.0 } else { -1.0 };
        self.pq.tables(query, factor, &mut lookup.entries);
        lookup.tables.fill(&lookup.entries);
        out.clear();
        out.resize(self.count.next_multiple_of(BLOCK), 0.0);
        let base = if metric == Metric::Cosine { 1.0 } else { 0.0 };
        let blocks = self.blocks.chunks_exact(nibble_bytes(self.pq.subs()));
        for (block, (codes, out)) in blocks.zip(out.as_chunks_mut().0).enumerate() {
            let (tables, addends) = (&lookup.tables, self.addends.get(block));
            let _ = self.scan.distances(codes, tables, addends, base, f32::INFINITY, out);
        }
        out.truncate(self.count);
    }
}
