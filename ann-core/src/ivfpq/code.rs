//! Codes of entries: product quantizers of what vectors have beside their list's centroid, or RaBitQ of it.
//!
//! RaBitQ's code `u` of a residual, in a space that is rotated at random, stands for its direction; the number `scale`
//! beside it makes of the dot product with a query what that is off the centroid, without bias, and `addend` is what
//! depends on the entry alone: `base + addend + scale * <q, u>`. The query's tables depend on the query alone, as a
//! product quantizer's do.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::code::kmeans;
use crate::code::opq;
use crate::code::pq::{self, Pq};
use crate::code::{Rotation, rabitq};
use crate::error::{Error, Result};
use crate::kernel::Op;
use crate::kernel::wide::wide;
use crate::metric::Metric;
use crate::rows::{FITTED, Meta, RABITQ, TURNED};

use super::lists::{Block, Factors};
use super::scan::Prepared;
use super::stretch::{self, Sample};

/// What codes of an [`IvfPq`](crate::IvfPq) index are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IvfCode {
    /// Product quantization: for each piece of a vector the number of a codeword, learnt from a sample.
    #[default]
    Pq,
    /// RaBitQ (arXiv 2405.12497) of one bit a coordinate: nothing is learnt but lists, and how far estimates are off is
    /// known.
    RaBitQ1,
    /// RaBitQ of two bits a coordinate (arXiv 2409.09913).
    RaBitQ2,
    /// RaBitQ of four bits a coordinate.
    RaBitQ4,
}

impl IvfCode {
    const ALL: [(IvfCode, &'static str); 4] = [
        (IvfCode::Pq, "pq"),
        (IvfCode::RaBitQ1, "rabitq1"),
        (IvfCode::RaBitQ2, "rabitq2"),
        (IvfCode::RaBitQ4, "rabitq4"),
    ];

    /// Bits a coordinate of RaBitQ; `None` for product quantization.
    pub(super) fn planes(self) -> Option<u8> {
        match self {
            IvfCode::Pq => None,
            IvfCode::RaBitQ1 => Some(1),
            IvfCode::RaBitQ2 => Some(2),
            IvfCode::RaBitQ4 => Some(4),
        }
    }

    /// What a meta page tells of; `None` if that is none of them.
    pub(super) fn of(meta: &Meta) -> Option<IvfCode> {
        match (meta.entries & RABITQ != 0, meta.code_bits) {
            (false, 4 | 8) => Some(IvfCode::Pq),
            (true, 1) => Some(IvfCode::RaBitQ1),
            (true, 2) => Some(IvfCode::RaBitQ2),
            (true, 4) => Some(IvfCode::RaBitQ4),
            _ => None,
        }
    }
}

impl fmt::Display for IvfCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = IvfCode::ALL.iter().find(|(code, _)| code == self);
        f.write_str(named.map_or("", |(_, name)| name))
    }
}

impl FromStr for IvfCode {
    type Err = Error;

    fn from_str(name: &str) -> Result<IvfCode> {
        let named = IvfCode::ALL.iter().find(|(_, known)| *known == name);
        let unknown = || Error::parameter("code", name, "one of pq, rabitq1, rabitq2, rabitq4");
        named.map(|(code, _)| *code).ok_or_else(unknown)
    }
}

/// The block of RaBitQ's codes of so many bits a coordinate: a plane of nibbles for each bit.
pub(super) fn rabitq_block(dim: usize, planes: u8) -> Block {
    Block::new(usize::from(planes) * Rotation::padded_of(dim) / 4, 4, 2)
}

/// An estimate is off by more than this many times its standard error about once in twenty thousand times.
const DEVIATIONS: f32 = 4.0;
/// What estimates are scaled by is at most their error divided by it, in nearly all cases about that.
const SCALED: f32 = 0.3;

/// What makes codes, and tables for them.
#[derive(Clone, Debug)]
pub(super) enum Coder {
    Pq {
        words: Words,
        /// What vectors are rotated by before they are encoded.
        rotation: Option<Arc<opq::Rotation>>,
    },
    RaBitQ(Rotation, u8),
}

/// A product quantizer, and what its codes stand for in lists.
#[derive(Clone, Debug)]
pub(super) struct Words {
    pub pq: Pq,
    /// What codes stand for counts so many times: see `stretch.rs`.
    pub stretch: f32,
    /// Codes are of what vectors have beside so many times their list's centroid: see `lean.rs`.
    pub lean: f32,
}

/// What encoding needs for a while, of one model.
#[derive(Default)]
pub(super) struct Scratch {
    words: WordsScratch,
    centre: Centre,
    /// A residual as it is rotated, and its vector.
    turned: Vec<f32>,
    vector: Vec<f32>,
    levels: Vec<u8>,
}

/// What choosing codewords needs for a while.
#[derive(Default)]
pub(super) struct WordsScratch {
    direction: Vec<f32>,
    decoded: Vec<f32>,
    pq: pq::Scratch,
}

/// The rotated centroid of the list that was encoded for last.
#[derive(Default)]
struct Centre {
    at: Option<usize>,
    turned: Vec<f32>,
}

impl Centre {
    /// That of the list that a vector is to be encoded for.
    fn of(&mut self, wanted: &Wanted<'_>, rotate: impl FnOnce(&[f32], &mut Vec<f32>)) -> &[f32] {
        if self.at != Some(wanted.at) {
            rotate(wanted.centroid, &mut self.turned);
            self.at = Some(wanted.at);
        }
        &self.turned
    }
}

/// A vector that is to be encoded for a list.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub vector: &'a [f32],
    pub residual: &'a [f32],
    pub centroid: &'a [f32],
    /// The place of the list.
    pub at: usize,
    pub metric: Metric,
    /// What is missed along a vector counts so much more; 1 where codes are not chosen for that.
    pub weight: f32,
}

impl Coder {
    /// Floats that are kept of it on pages.
    pub(super) fn floats(meta: &Meta, dim: usize) -> usize {
        let matrix = if meta.entries & TURNED == 0 { 0 } else { dim * dim };
        let fitted = if meta.entries & FITTED == 0 { 0 } else { 2 };
        if meta.entries & RABITQ == 0 { (dim << meta.code_bits) + matrix + fitted } else { 0 }
    }

    /// Of what is kept on pages. `None` if that does not fit its measures.
    pub(super) fn read(meta: &Meta, dim: usize, mut book: Vec<f32>) -> Option<Coder> {
        match IvfCode::of(meta)?.planes() {
            None => {
                let mut rows = book.split_off(book.len().min(dim << meta.code_bits));
                let (stretch, lean) = match meta.entries & FITTED {
                    0 => (1.0, 1.0),
                    _ => (rows.pop()?, rows.pop()?),
                };
                if !stretch::ALLOWED.contains(&stretch) || !(0.0..=1.0).contains(&lean) {
                    return None;
                }
                let rotation = match meta.entries & TURNED {
                    0 => None,
                    _ => Some(Arc::new(opq::Rotation::new(dim, rows)?)),
                };
                let pq = Pq::new(dim, meta.m.get() as usize, meta.code_bits, book)?;
                Some(Coder::Pq { words: Words { pq, stretch, lean }, rotation })
            }
            Some(planes) => Some(Coder::RaBitQ(Rotation::new(dim, meta.seed.get()), planes)),
        }
    }

    /// How much of a centroid is left out of what codes are of.
    pub(super) fn lean(&self) -> f32 {
        match self {
            Coder::Pq { words, .. } => words.lean,
            Coder::RaBitQ(..) => 1.0,
        }
    }

    /// What is kept of it on pages.
    pub(super) fn book(&self, meta: &Meta) -> Vec<f32> {
        let Coder::Pq { words, rotation } = self else {
            return Vec::new();
        };
        let rows = rotation.as_ref().map_or(&[][..], |rotation| rotation.rows());
        let fitted = [words.lean, words.stretch];
        let last = if meta.entries & FITTED == 0 { &[][..] } else { &fitted };
        [words.pq.book(), rows, last].concat()
    }

    /// Fills in the tables of the query whose floats are there.
    /// `entries` is what its tables are made in.
    pub(super) fn prepare(
        &self,
        metric: Metric,
        prepared: &mut Prepared,
        entries: &mut Vec<[f32; 16]>,
    ) {
        let Prepared { floats, turned, bytes, tables, lean, constant, .. } = prepared;
        *lean = self.lean();
        *constant = match metric {
            Metric::L2sq if *lean < 1.0 => {
                (1.0 - *lean) * floats.iter().map(|x| x * x).sum::<f32>()
            }
            _ => 0.0,
        };
        match self {
            Coder::Pq { words: Words { pq, stretch, .. }, rotation } => {
                let query = match rotation {
                    None => &*floats,
                    Some(rotation) => {
                        rotation.apply(floats, turned);
                        turned
                    }
                };
                let factor = if metric == Metric::L2sq { -2.0 * stretch } else { -stretch };
                match pq.bits() {
                    4 => {
                        pq.tables(query, factor, entries);
                        tables.fill(entries);
                    }
                    _ => pq.tables(query, factor, bytes),
                }
            }
            Coder::RaBitQ(rotation, _) => {
                rotation.apply(floats, turned);
                halves(turned, entries);
                tables.fill(entries);
            }
        }
    }

    /// Learns how much its codes are to be stretched. What they miss along a vector counts `weight` times.
    pub(super) fn learn_stretch(&mut self, sample: &Sample<'_>, weight: f32) {
        if let Coder::Pq { words, rotation } = self {
            let counts = (words.lean, weight);
            words.stretch = stretch::learn(&words.pq, rotation.as_deref(), sample, counts);
        }
    }

    /// Encodes a vector. Returns what its entry has beside the code, and what estimates by it may be off: of a product
    /// quantizer what the code misses of the vector, of RaBitQ the standard error of an estimate for a query at distance
    /// one of the centroid.
    pub(super) fn encode(
        &self,
        wanted: Wanted<'_>,
        codes: &mut [u8],
        scratch: &mut Scratch,
    ) -> (Factors, f32) {
        match self {
            Coder::Pq { words, rotation: None } => words.encode(wanted, codes, &mut scratch.words),
            Coder::Pq { words, rotation: Some(rotation) } => {
                words.encode_turned(rotation, wanted, codes, scratch)
            }
            Coder::RaBitQ(rotation, planes) => {
                encode_rabitq(rotation, *planes, wanted, codes, scratch)
            }
        }
    }

    /// What an entry of a list has beside its code, where the code alone tells that.
    pub(super) fn factors_of(
        &self,
        codes: &[u8],
        centroid: &[f32],
        metric: Metric,
    ) -> Option<Factors> {
        match self {
            Coder::Pq { words, rotation: None } => {
                let mut decoded = Vec::new();
                words.decode(codes, &mut decoded);
                Some(words.factors(&decoded, centroid, metric))
            }
            Coder::Pq { .. } | Coder::RaBitQ(..) => None,
        }
    }

    /// By how much a distance by code may be above the true one, if that is at most `radius`. `error` is the most of all
    /// that encoding has told, and `away` the query's distance to the list's centroid.
    ///
    /// What a code misses of a vector points anywhere: of its length, a direction takes a share that falls with the root
    /// of the dimension.
    pub(super) fn slack(
        &self,
        metric: Metric,
        prepared: &Prepared,
        error: f32,
        radius: f32,
        away: f32,
    ) -> f32 {
        let Prepared { floats, tables, .. } = prepared;
        let length = floats.iter().map(|x| x * x).sum::<f32>().sqrt();
        let (slack, rounding) = match self {
            Coder::Pq { words: Words { pq, .. }, .. } => {
                let share = (4.0 / (pq.dim() as f32).sqrt()).min(1.0);
                let slack = match metric {
                    Metric::L2sq => error * error + 2.0 * radius.max(0.0).sqrt() * error * share,
                    _ => length * error * share,
                };
                let lookups = if pq.bits() == 4 { pq.subs() as f32 } else { 0.0 };
                (slack, tables.delta() * 0.5 * lookups)
            }
            Coder::RaBitQ(_, planes) => {
                // Of planes, each counts twice the next.
                let squares = ((1u32 << (2 * planes)) - 1) as f32 / 3.0 * tables.subs() as f32;
                let rounding = tables.delta() * (squares / 12.0).sqrt() * error / SCALED;
                (DEVIATIONS * error * away, DEVIATIONS * rounding)
            }
        };
        // Sums in f32 are off by their rounding, the more the larger what they are made of.
        (slack + rounding) * 1.001 + 1e-4 * (length * length + radius.abs())
    }
}

impl Words {
    /// See [`Coder::encode`].
    fn encode(
        &self,
        wanted: Wanted<'_>,
        codes: &mut [u8],
        scratch: &mut WordsScratch,
    ) -> (Factors, f32) {
        let Wanted { vector, residual, centroid, metric, weight, .. } = wanted;
        choose(&self.pq, residual, vector, weight, codes, scratch);
        let decoded = &mut scratch.decoded;
        self.decode(codes, decoded);
        let squares = decoded.iter().zip(residual).map(|(x, r)| f64::from(r - x).powi(2));
        let missed = squares.sum::<f64>().sqrt() as f32;
        (self.factors(decoded, centroid, metric), missed)
    }

    /// [`Words::encode`] of what is rotated before.
    fn encode_turned(
        &self,
        rotation: &opq::Rotation,
        wanted: Wanted<'_>,
        codes: &mut [u8],
        scratch: &mut Scratch,
    ) -> (Factors, f32) {
        let Scratch { words, centre, turned, vector, .. } = scratch;
        let centroid = centre.of(&wanted, |centroid, out| rotation.apply(centroid, out));
        rotation.apply(wanted.residual, turned);
        vector.clear();
        vector.extend(turned.iter().zip(centroid).map(|(r, c)| r + self.lean * c));
        self.encode(Wanted { vector, residual: turned, centroid, ..wanted }, codes, words)
    }

    /// What a code stands for.
    fn decode(&self, codes: &[u8], decoded: &mut Vec<f32>) {
        decoded.resize(self.pq.dim(), 0.0);
        self.pq.decode(codes, decoded);
        decoded.iter_mut().for_each(|x| *x *= self.stretch);
    }

    /// What an entry has beside a code that stands for `decoded`.
    fn factors(&self, decoded: &[f32], centroid: &[f32], metric: Metric) -> Factors {
        let lean = f64::from(self.lean);
        let term = |(x, c): (&f32, &f32)| {
            let (x, c) = (f64::from(*x), f64::from(*c));
            x * (x + 2.0 * lean * c) + (lean - 1.0) * lean * c * c
        };
        let addend = match metric {
            Metric::L2sq => decoded.iter().zip(centroid).map(term).sum::<f64>() as f32,
            _ => 0.0,
        };
        Factors { addend, scale: 0.0 }
    }
}

/// Chooses the code of what a vector has beside a centroid. What it misses along the vector counts `weight` times.
pub(super) fn choose(
    pq: &Pq,
    residual: &[f32],
    vector: &[f32],
    weight: f32,
    codes: &mut [u8],
    scratch: &mut WordsScratch,
) {
    let WordsScratch { direction, pq: own, .. } = scratch;
    if weight <= 1.0 {
        return pq.encode(residual, codes, own);
    }
    direction.clear();
    direction.extend_from_slice(vector);
    kmeans::normalise(direction, pq.dim());
    pq.encode_along(residual, direction, weight, codes, own);
}

fn encode_rabitq(
    rotation: &Rotation,
    planes: u8,
    wanted: Wanted<'_>,
    codes: &mut [u8],
    scratch: &mut Scratch,
) -> (Factors, f32) {
    let Scratch { turned, centre, levels, .. } = scratch;
    let centroid = centre.of(&wanted, |centroid, out| rotation.apply(centroid, out));
    rotation.apply(wanted.residual, turned);
    levels.resize(turned.len(), 0);
    let op = if wanted.metric == Metric::L2sq { Op::L2sq } else { Op::Dot };
    let code = rabitq::encode(op, planes, turned, Some(centroid), levels);
    for (plane, codes) in (0..planes).rev().zip(codes.chunks_exact_mut(levels.len() / 4)) {
        for (code, four) in codes.iter_mut().zip(levels.as_chunks::<4>().0) {
            *code = (0..4).fold(0, |nibble, i| nibble | (four[i] >> plane & 1) << i);
        }
    }
    let factors = Factors { addend: code.add, scale: code.mul };
    (factors, code.error.max(SCALED * code.mul.abs()))
}

/// Makes `nibbles` the sums of halves of each four coordinates, up or down as the bits of a nibble say.
fn halves(query: &[f32], nibbles: &mut Vec<[f32; 16]>) {
    nibbles.clear();
    nibbles.resize(query.len() / 4, [0.0; 16]);
    wide(
        #[inline(always)]
        || {
            for (table, four) in nibbles.iter_mut().zip(query.as_chunks::<4>().0) {
                for (nibble, entry) in table.iter_mut().enumerate() {
                    let signed = |i: usize| {
                        if nibble >> i & 1 == 1 { 0.5 * four[i] } else { -0.5 * four[i] }
                    };
                    *entry = (signed(0) + signed(1)) + (signed(2) + signed(3));
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for (code, name) in IvfCode::ALL {
            assert_eq!((name.parse::<IvfCode>().unwrap(), code.to_string()), (code, name.into()));
        }
        assert!("rabitq".parse::<IvfCode>().is_err());
    }

    #[test]
    fn nibbles_are_sums_of_halves() {
        let mut nibbles = Vec::new();
        halves(&[1.0, 2.0, 4.0, 8.0, -1.0, 0.0, 0.0, 3.0], &mut nibbles);
        assert_eq!((nibbles.len(), nibbles[0][0], nibbles[0][15]), (2, -7.5, 7.5));
        assert_eq!((nibbles[0][1], nibbles[0][8], nibbles[1][8]), (-6.5, 0.5, 2.0));
    }
}
