//! What a search needs besides the lists: centroids and codebook, read from their pages at first use.

use std::sync::OnceLock;

use zerocopy::{FromBytes, IntoBytes};

use crate::code::pq::{self, Pq};
use crate::element::DType;
use crate::error::{Error, Result};
use crate::kernel::{Isa, Kernel, Op, Query};
use crate::metric::Metric;
use crate::page::PageStore;
use crate::rows::Rows;
use crate::threads;

use super::coarse::{Coarse, Lookup};
use super::lists::List;
use super::{BOOK, CENTROIDS, LISTS};

/// The share of a query's length along a vector from which on codes are chosen to be right (ScaNN's threshold).
const THRESHOLD: f32 = 0.2;

/// Lists that are measured beyond half as many again as are wanted.
const MARGIN: usize = 32;

/// Centroids and codebook in memory.
pub(crate) struct Model {
    /// The numbers of the lists that are in use, in the order of the centroids.
    pub lists: Vec<u32>,
    pub dim: usize,
    /// A row for each of these lists.
    pub centroids: Vec<f32>,
    pub pq: Pq,
    metric: Metric,
    /// What is missed along a vector counts so much more; 1 where codes are not chosen for that.
    weight: f32,
    kernel: Kernel,
    offsets: Vec<u64>,
    coarse: OnceLock<Option<Coarse>>,
}

/// What ranking lists needs for a while.
#[derive(Default)]
pub(crate) struct Ranking {
    query: Query,
    lookup: Lookup,
    scores: Vec<f32>,
    offsets: Vec<u64>,
    /// Distances of lists, above their places: nearest first.
    pub order: Vec<u64>,
}

/// A distance above a number: one comparison tells the order.
pub(crate) fn key(distance: f32, low: u32) -> u64 {
    let bits = distance.to_bits();
    let mask = ((bits as i32 >> 31) as u32) | 0x8000_0000;
    u64::from(bits ^ mask) << 32 | u64::from(low)
}

/// The distance and the number of a key.
pub(crate) fn unkey(key: u64) -> (f32, u32) {
    let bits = (key >> 32) as u32;
    let mask = if bits >> 31 == 1 { 0x8000_0000 } else { !0 };
    (f32::from_bits(bits ^ mask), key as u32)
}

/// What encoding needs for a while.
#[derive(Default)]
pub(crate) struct Scratch {
    residual: Vec<f32>,
    direction: Vec<f32>,
    decoded: Vec<f32>,
    pq: pq::Scratch,
}

impl Model {
    pub(crate) fn new(
        lists: Vec<u32>,
        centroids: Vec<f32>,
        pq: Pq,
        metric: Metric,
        along: bool,
        isa: Isa,
    ) -> Model {
        let dim = pq.dim();
        let op = if metric == Metric::L2sq { Op::L2sq } else { Op::Dot };
        let kernel = Kernel::with_isa(DType::F32, op, dim, isa);
        let kernel = kernel.unwrap_or_else(|| Kernel::new(DType::F32, op, dim));
        let offsets = (0..lists.len() as u64).map(|at| at * 4 * dim as u64).collect();
        let square = THRESHOLD * THRESHOLD;
        let weight = match along {
            true => ((dim as f32 - 1.0) * square / (1.0 - square)).max(1.0),
            false => 1.0,
        };
        let coarse = OnceLock::new();
        Model { lists, dim, centroids, pq, metric, weight, kernel, offsets, coarse }
    }

    /// Reads the pages; `None` if the index is not trained.
    pub(crate) fn load<S: PageStore>(rows: &Rows<S>) -> Result<Option<Model>> {
        let meta = &rows.meta;
        let (count, dim) = (meta.entry_level.get(), rows.space.dim);
        if count == 0 {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let mut book = Vec::new();
        let floats = dim << meta.code_bits;
        for record in 0.. {
            if book.len() >= floats {
                break;
            }
            rows.copy(BOOK, record, &mut bytes)?;
            book.extend(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
        }
        book.truncate(floats);
        let (mut lists, mut centroids) = (Vec::new(), Vec::new());
        for list in 0..count {
            let record = rows.record(LISTS, list, |bytes| List::read_from_bytes(bytes).ok())?;
            let retired = record.is_none_or(|record| record.retired.get() != 0);
            if retired {
                continue;
            }
            rows.copy(CENTROIDS, list, &mut bytes)?;
            centroids.extend(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
            lists.push(list);
        }
        let pq = Pq::new(dim, meta.m.get() as usize, meta.code_bits, book)
            .ok_or_else(|| Error::corrupt(0, "the codebook does not fit its measures"))?;
        if lists.is_empty() {
            return Err(Error::corrupt(0, "all lists are retired"));
        }
        let (metric, along) = (rows.space.metric, meta.along == 1);
        Ok(Some(Model::new(lists, centroids, pq, metric, along, rows.space.isa())))
    }

    /// The same with other lists, given by their numbers and centroids, and without some.
    pub(crate) fn with(&self, numbers: &[u32], centroids: &[f32], gone: &[u32]) -> Model {
        let own = self.lists.iter().copied().zip(self.centroids.chunks_exact(self.dim));
        let more = numbers.iter().copied().zip(centroids.chunks_exact(self.dim));
        let mut all: Vec<(u32, &[f32])> = own.chain(more).collect();
        all.retain(|(list, _)| !gone.contains(list));
        all.sort_unstable_by_key(|&(list, _)| list);
        let lists: Vec<u32> = all.iter().map(|&(list, _)| list).collect();
        let offsets = (0..lists.len() as u64).map(|at| at * 4 * self.dim as u64).collect();
        let centroids = all.into_iter().flat_map(|(_, centroid)| centroid).copied().collect();
        let (pq, kernel, coarse) = (self.pq.clone(), self.kernel, OnceLock::new());
        Model { lists, centroids, pq, kernel, offsets, coarse, ..*self }
    }

    /// Lists in use.
    pub(crate) fn len(&self) -> usize {
        self.lists.len()
    }

    /// Where a list stands among those in use.
    pub(crate) fn position(&self, list: u32) -> Option<usize> {
        self.lists.binary_search(&list).ok()
    }

    pub(crate) fn centroid(&self, at: usize) -> &[f32] {
        &self.centroids[at * self.dim..][..self.dim]
    }

    fn make_coarse(&self) -> Option<Coarse> {
        Coarse::new(&self.centroids, self.dim, self.metric)
    }

    /// Makes what the first search would, on the current thread pool.
    pub(crate) fn warm(&self) {
        if self.coarse.get().is_none() {
            let made = self.make_coarse();
            self.coarse.get_or_init(|| made);
        }
    }

    /// Fills in the order of the lists as far as `wanted`: at least so many, or all of them.
    pub(crate) fn rank(&self, query: &[f32], wanted: usize, ranking: &mut Ranking) {
        let Ranking { query: prepared, lookup, scores, offsets, order } = ranking;
        self.kernel.prepare(query.as_bytes(), prepared);
        order.clear();
        // More than are wanted, since the nearest by code need not be the nearest.
        let measured = wanted + wanted / 2 + MARGIN;
        // Made now if this is the first search; by a thread of its own, since one of a pool that waits takes up other
        // searches meanwhile, which would wait for this.
        let coarse = self.coarse.get_or_init(|| {
            let pool = threads::pool(1).ok()?;
            std::thread::scope(|scope| {
                let make = || pool.install(|| self.make_coarse());
                let made = std::thread::Builder::new().spawn_scoped(scope, make).ok()?;
                made.join().ok().flatten()
            })
        });
        match coarse {
            Some(coarse) if measured < self.lists.len() / 2 => {
                coarse.score(query, self.metric, lookup, scores);
                order.extend((0..).zip(&*scores).map(|(at, &score)| key(score, at)));
                order.select_nth_unstable(measured);
                order.truncate(measured);
                // In their order in memory.
                order.iter_mut().for_each(|key| *key &= u64::from(u32::MAX));
                order.sort_unstable();
                offsets.clear();
                offsets.extend(order.iter().map(|&at| self.offsets[at as usize]));
            }
            _ => {
                order.extend(0..self.lists.len() as u64);
                offsets.clone_from(&self.offsets);
            }
        }
        scores.clear();
        scores.resize(offsets.len(), 0.0);
        // The offsets are those of rows.
        let bytes = self.centroids.as_bytes();
        let _ = self.kernel.rows(prepared, bytes, offsets, f32::INFINITY, scores);
        for (order, &score) in order.iter_mut().zip(&*scores) {
            let distance = match self.metric {
                Metric::L2sq => score,
                Metric::InnerProduct => -score,
                Metric::Cosine => 1.0 - score,
            };
            *order = key(distance, *order as u32);
        }
        if wanted < order.len() && order.len() < self.lists.len() {
            order.select_nth_unstable(wanted);
            order.truncate(wanted);
        }
        order.sort_unstable();
    }

    /// Encodes a vector for the list at a place of the model. Returns what is added to its distances, and what the code
    /// misses of the vector.
    pub(crate) fn encode(
        &self,
        vector: &[f32],
        at: usize,
        codes: &mut [u8],
        scratch: &mut Scratch,
    ) -> (f32, f32) {
        let Scratch { residual, direction, decoded, pq } = scratch;
        let centroid = self.centroid(at);
        residual.clear();
        residual.extend(vector.iter().zip(centroid).map(|(x, c)| x - c));
        if self.weight > 1.0 {
            direction.clear();
            direction.extend_from_slice(vector);
            crate::code::kmeans::normalise(direction, self.dim);
            self.pq.encode_along(residual, direction, self.weight, codes, pq);
        } else {
            self.pq.encode(residual, codes, pq);
        }
        decoded.resize(self.dim, 0.0);
        self.pq.decode(codes, decoded);
        let (mut addend, mut missed) = (0f64, 0f64);
        for ((x, r), c) in decoded.iter().zip(&*residual).zip(centroid) {
            addend += f64::from(*x) * (f64::from(*x) + 2.0 * f64::from(*c));
            missed += f64::from(r - x).powi(2);
        }
        let addend = if self.metric == Metric::L2sq { addend as f32 } else { 0.0 };
        (addend, missed.sqrt() as f32)
    }
}
