//! What a search needs besides the lists: centroids and codebook, read from their pages at first use.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::FromBytes;

use crate::element::DType;
use crate::error::{Error, Result};
use crate::kernel::{Kernel, Op};
use crate::metric::Metric;
use crate::page::PageStore;
use crate::rows::{ALONG, Rows, Space};
use crate::threads;

use super::coarse::Coarse;
use super::code::{self, Coder, Wanted, Words};
use super::lists::{Extent, Factors, List};
use super::rank;
use super::stretch::Sample;
use super::{BOOK, CENTROIDS, LISTS};

/// The share of a query's length along a vector from which on codes are chosen to be right (ScaNN's threshold).
const THRESHOLD: f32 = 0.2;
/// What is missed along a vector counts at most once and this many times the square of the bits a dimension: coarser
/// codes that were chosen for it would miss too much otherwise.
const FINE: f32 = 0.78125;

/// Searches that take less time with codes of centroids than it takes to make these, about.
const SEARCHES: u32 = 256;

/// Centroids and codebook in memory.
pub(crate) struct Model {
    /// The numbers of the lists that are in use, in the order of the centroids.
    pub lists: Vec<u32>,
    pub dim: usize,
    /// A row for each of these lists.
    pub centroids: Vec<f32>,
    /// How far each list's entries lie around its centroid.
    pub extents: Vec<Extent>,
    /// Of the lists of which that is known, the mean.
    pub mean: Extent,
    pub(super) coder: Coder,
    pub metric: Metric,
    /// The share of its length that an entry's residual has in the direction of near queries, root mean square; 0 if
    /// that is not known.
    pub share: f32,
    /// What is missed along a vector counts so much more; 1 where codes are not chosen for that.
    weight: f32,
    pub(super) kernel: Kernel,
    coarse: OnceLock<Option<Coarse>>,
    /// Where they are not made at once: searches so far.
    waits: Option<AtomicU32>,
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
    coder: code::Scratch,
}

/// What encoding tells of a vector besides its code.
#[derive(Clone, Copy, Default)]
pub(crate) struct Encoded {
    pub factors: Factors,
    /// What estimates by the code may be off: see [`Coder::encode`].
    pub missed: f32,
    /// Its squared distance to its list's centroid.
    pub square: f32,
}

impl Model {
    pub(crate) fn new(
        lists: Vec<u32>,
        centroids: Vec<f32>,
        extents: Vec<Extent>,
        coder: Coder,
        space: &Space,
        along: bool,
    ) -> Model {
        let &Space { dim, metric, .. } = space;
        let op = if metric == Metric::L2sq { Op::L2sq } else { Op::Dot };
        let kernel = Kernel::with_isa(DType::F32, op, dim, space.isa());
        let kernel = kernel.unwrap_or_else(|| Kernel::new(DType::F32, op, dim));
        let square = THRESHOLD * THRESHOLD;
        let weight = match (along, &coder) {
            (true, Coder::Pq { words: Words { pq, .. }, .. }) => {
                let bits = f32::from(pq.bits()) * pq.subs() as f32 / dim as f32;
                let most = 1.0 + FINE * bits * bits;
                ((dim as f32 - 1.0) * square / (1.0 - square)).clamp(1.0, most)
            }
            _ => 1.0,
        };
        let coarse = OnceLock::new();
        let (mean, share) = (mean_of(&extents), 0.0);
        let waits = None;
        Model {
            lists,
            dim,
            centroids,
            extents,
            mean,
            coder,
            metric,
            share,
            weight,
            kernel,
            coarse,
            waits,
        }
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
        let floats = Coder::floats(meta, dim);
        for record in book_at(rows).. {
            if book.len() >= floats {
                break;
            }
            rows.copy(BOOK, record, &mut bytes)?;
            book.extend(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
        }
        book.truncate(floats);
        let (mut lists, mut centroids, mut extents) = (Vec::new(), Vec::new(), Vec::new());
        for list in meta.coded.get()..count {
            let record = rows.record(LISTS, list, |bytes| List::read_from_bytes(bytes).ok())?;
            let Some(record) = record.filter(|record| record.retired.get() == 0) else {
                continue;
            };
            rows.copy(CENTROIDS, list, &mut bytes)?;
            centroids.extend(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
            lists.push(list);
            extents.push(record.extent());
        }
        let coder = Coder::read(meta, dim, book)
            .ok_or_else(|| Error::corrupt(0, "the codebook does not fit its measures"))?;
        if lists.is_empty() {
            return Err(Error::corrupt(0, "all lists are retired"));
        }
        let along = meta.entries & ALONG != 0;
        Ok(Some(Model::new(lists, centroids, extents, coder, &rows.space, along)))
    }

    /// The same with other lists, given by their numbers, centroids and extents, and without some.
    pub(crate) fn with(
        &self,
        numbers: &[u32],
        centroids: &[f32],
        extents: &[Extent],
        gone: &[u32],
    ) -> Model {
        let own = self.lists.iter().zip(self.centroids.chunks_exact(self.dim)).zip(&self.extents);
        let more = numbers.iter().zip(centroids.chunks_exact(self.dim)).zip(extents);
        let mut all: Vec<((&u32, &[f32]), &Extent)> = own.chain(more).collect();
        all.retain(|((list, _), _)| !gone.contains(list));
        all.sort_unstable_by_key(|((list, _), _)| **list);
        let lists: Vec<u32> = all.iter().map(|((list, _), _)| **list).collect();
        let extents: Vec<Extent> = all.iter().map(|(_, extent)| **extent).collect();
        let mean = mean_of(&extents);
        let centroids = all.iter().flat_map(|((_, centroid), _)| *centroid).copied().collect();
        let (coder, kernel, coarse) = (self.coder.clone(), self.kernel, OnceLock::new());
        let waits = None;
        Model { lists, centroids, extents, mean, coder, kernel, coarse, waits, ..*self }
    }

    /// Learns how much codes are to be stretched, of what points have beside their `nearest` centroids as far as codes
    /// lean on these, rotated as they are to be.
    pub(super) fn learn_stretch(&mut self, residuals: &[f32], nearest: &[u32]) {
        let sample = Sample { residuals, nearest, centroids: &self.centroids };
        self.coder.learn_stretch(&sample, self.weight);
    }

    /// Lists in use.
    pub(crate) fn len(&self) -> usize {
        self.lists.len()
    }

    /// Where a list stands among those in use.
    pub(crate) fn position(&self, list: u32) -> Option<usize> {
        self.lists.binary_search(&list).ok()
    }

    /// Where in the bytes of the centroids one begins.
    pub(crate) fn offset(&self, at: usize) -> u64 {
        (at * 4 * self.dim) as u64
    }

    /// Takes over other extents.
    pub(crate) fn set_extents(&mut self, extents: Vec<Extent>) {
        (self.mean, self.extents) = (mean_of(&extents), extents);
        self.coarse = OnceLock::new();
    }

    pub(crate) fn centroid(&self, at: usize) -> &[f32] {
        &self.centroids[at * self.dim..][..self.dim]
    }

    /// The distance, not squared, of a query to a centroid.
    pub(super) fn distance(&self, at: usize, query: &[f32]) -> f32 {
        let terms = query.iter().zip(self.centroid(at)).map(|(q, c)| (q - c) * (q - c));
        terms.sum::<f32>().sqrt()
    }

    fn make_coarse(&self) -> Option<Coarse> {
        let besides = |at: usize| rank::besides(self.metric, &self.extents[at], &self.mean);
        Coarse::new(&self.centroids, self.dim, self.metric, besides)
    }

    /// Makes what the first search would, on the current thread pool.
    pub(crate) fn warm(&self) {
        if self.coarse.get().is_none() {
            let made = self.make_coarse();
            self.coarse.get_or_init(|| made);
        }
    }

    /// For one of many processes, each of which reads it whenever it changes: codes of centroids are made after so many
    /// searches that they pay, on the current thread pool.
    pub(super) fn beside(mut self) -> Model {
        self.waits = Some(AtomicU32::new(0));
        self
    }

    /// Codes of the centroids, if there are many. Made now if this is their first use; by a thread of its own, since
    /// one of a pool that waits takes up other searches meanwhile, which would wait for this.
    pub(super) fn coarse(&self) -> Option<&Coarse> {
        if let Some(searches) = &self.waits {
            if searches.fetch_add(1, Ordering::Relaxed) < SEARCHES {
                return None;
            }
            self.warm();
        }
        let coarse = self.coarse.get_or_init(|| {
            let pool = threads::pool(1).ok()?;
            std::thread::scope(|scope| {
                let make = || pool.install(|| self.make_coarse());
                let made = std::thread::Builder::new().spawn_scoped(scope, make).ok()?;
                made.join().ok().flatten()
            })
        });
        coarse.as_ref()
    }

    /// Encodes a vector for the list at a place of the model.
    pub(crate) fn encode(
        &self,
        vector: &[f32],
        at: usize,
        codes: &mut [u8],
        scratch: &mut Scratch,
    ) -> Encoded {
        let Scratch { residual, coder } = scratch;
        let centroid = self.centroid(at);
        residual.clear();
        let lean = self.coder.lean();
        residual.extend(vector.iter().zip(centroid).map(|(x, c)| x - lean * c));
        let away = vector.iter().zip(centroid).map(|(x, c)| f64::from(x - c).powi(2));
        let square: f64 = away.sum();
        let (metric, weight) = (self.metric, self.weight);
        let wanted = Wanted { vector, residual, centroid, at, metric, weight };
        let (factors, missed) = self.coder.encode(wanted, codes, coder);
        Encoded { factors, missed, square: square as f32 }
    }
}

/// The first record of the codebook in use.
pub(super) fn book_at<S: PageStore>(rows: &Rows<S>) -> u32 {
    u32::from(rows.meta.book) * book_pages(rows)
}

/// Records that a codebook takes.
pub(super) fn book_pages<S: PageStore>(rows: &Rows<S>) -> u32 {
    let bytes = Coder::floats(&rows.meta, rows.space.dim) * 4;
    bytes.div_ceil(rows.store.page_size() - crate::page::HEADER) as u32
}

/// The mean of the extents that are known.
fn mean_of(extents: &[Extent]) -> Extent {
    let known = extents.iter().filter(|extent| extent.radius > 0.0);
    let (mut mean, mut count) = (Extent::default(), 0f32);
    for extent in known {
        mean.radius += extent.radius;
        mean.spread += extent.spread;
        count += 1.0;
    }
    let count = count.max(1.0);
    Extent { radius: mean.radius / count, spread: mean.spread / count }
}
