//! Codes of rows: one for each, in an array by slot, relative to one centre for all (RaBitQ, arXiv 2405.12497).
//!
//! A record is four floats and the packed code: what is added to an estimate, what a dot product is multiplied by, the
//! estimate's standard error for a query at distance one of the centre, and the length of what leads from the centre to
//! the row. Estimates are made of the query's own way from the centre, so they need no more of it than that.
//!
//! A code can stand in for its row where that is not kept: it is then asked with the point that it stands for, scaled
//! so that distances between two such points are about symmetric, and that to itself is zero.

use std::sync::OnceLock;

use crate::code::{Rotation, rabitq};
use crate::error::{Error, Result};
use crate::kernel::packed::{self, Packed, Weights};
use crate::kernel::{self, Op};
use crate::metric::Metric;
use crate::page::PageStore;

use super::meta::NO_VECTORS;
use super::{Array, CENTRE, Meta, Rows, Space};

/// Bytes of a record before its code.
const FACTORS: usize = 16;

/// Rows, at most, that a centre is the mean of.
const CENTRE_ROWS: usize = 4096;
/// Rows that have to be there for their mean to say anything of those to come.
const LEAST_ROWS: usize = 32;

/// Floats of the centre that are a record of its array.
pub(crate) const CENTRE_FLOATS: usize = 256;

/// What makes codes and estimates of one index.
pub(crate) struct Coder {
    metric: Metric,
    rotation: Rotation,
    packed: Packed,
    stride: usize,
    centre: OnceLock<Centre>,
}

/// What all codes are relative to.
struct Centre {
    floats: Vec<f32>,
    square: f64,
}

/// A query for codes.
#[derive(Default)]
pub(crate) struct Asked {
    weights: Weights,
    base: f32,
    /// How far an estimate may be off, times a code's error.
    reach: f32,
    radius: f32,
    given: Vec<f32>,
    floats: Vec<f32>,
    rotated: Vec<f32>,
    levels: Vec<u8>,
}

/// What encoding and decoding need; reused from row to row.
#[derive(Default)]
pub(crate) struct Workshop {
    given: Vec<f32>,
    floats: Vec<f32>,
    rotated: Vec<f32>,
    levels: Vec<u8>,
}

/// Checks, at the door, the bits a coordinate of codes by node.
pub(crate) fn check_compact(bits: u8) -> Result<()> {
    match bits {
        1 | 2 | 4 | 8 => Ok(()),
        0 => {
            let allowed = "1, 2, 4 or 8 for codes by node, which there have to be: searches, or all that is kept of vectors, \
                           depend on them";
            Err(Error::parameter("code_bits", bits, allowed))
        }
        _ => Err(Error::parameter("code_bits", bits, "0, 1, 2, 4 or 8")),
    }
}

/// Bits a coordinate of codes by node that suit a dimension, fewer if a code is to fit so many bytes.
pub(crate) fn compact_bits(dim: usize, room: usize) -> u8 {
    let suits: &[u8] = if dim <= 64 { &[8, 4, 2] } else { &[4, 2] };
    let fits = |&bits: &u8| Coder::stride_of(dim, bits) <= room;
    suits.iter().copied().find(fits).unwrap_or(1)
}

/// Says in a meta page that codes are by node, and whether vectors are kept beside them.
pub(crate) fn by_node(meta: &mut Meta, bits: u8, keeps_vectors: bool) {
    (meta.by_node, meta.code_bits) = (1, bits);
    if !keeps_vectors {
        meta.stored = NO_VECTORS;
    }
}

impl Asked {
    /// From now on, estimates that are beyond `radius`, but not by more than they may be off, are `radius`; negative
    /// infinity for as they are.
    pub(crate) fn set_radius(&mut self, radius: f32) {
        self.radius = radius;
    }
}

impl Coder {
    pub(crate) fn new(dim: usize, metric: Metric, bits: u8, seed: u64) -> Coder {
        Coder {
            metric,
            rotation: Rotation::new(dim, seed),
            packed: Packed::new(bits),
            stride: Coder::stride_of(dim, bits),
            centre: OnceLock::new(),
        }
    }

    /// Bytes of a record.
    pub(crate) fn stride_of(dim: usize, bits: u8) -> usize {
        let code = packed::code_bytes(Rotation::padded_of(dim), bits);
        Space::round_stride(FACTORS + code)
    }

    /// Bytes of a record.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Bits a coordinate.
    pub(crate) fn bits(&self) -> u8 {
        self.packed.bits()
    }

    /// Where a record has its code.
    fn code_of<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        let bytes = packed::code_bytes(self.rotation.padded(), self.bits());
        &record[FACTORS..FACTORS + bytes]
    }

    /// Replaces `out` with the record of a row, given as floats, of length one where only directions count.
    fn encode(&self, centre: &Centre, floats: &[f32], shop: &mut Workshop, out: &mut Vec<u8>) {
        let Workshop { floats: residual, rotated, levels, .. } = shop;
        minus(floats, &centre.floats, residual);
        self.rotation.apply(residual, rotated);
        levels.resize(rotated.len(), 0);
        let op = if self.metric == Metric::InnerProduct { Op::Dot } else { Op::L2sq };
        let mut code = rabitq::encode(op, self.bits(), rotated, None, levels);
        let length = dot(residual, residual).sqrt() as f32;
        match self.metric {
            Metric::L2sq => {}
            Metric::InnerProduct => code.add = -dot(residual, &centre.floats) as f32,
            // Half the squared distance of vectors of length one.
            Metric::Cosine => {
                (code.add, code.mul, code.error) =
                    (code.add / 2.0, code.mul / 2.0, code.error / 2.0);
            }
        }
        out.clear();
        for factor in [code.add, code.mul, code.error, length] {
            out.extend_from_slice(&factor.to_le_bytes());
        }
        out.resize(self.stride, 0);
        let bytes = packed::code_bytes(levels.len(), self.bits());
        packed::pack(levels, self.bits(), &mut out[FACTORS..FACTORS + bytes]);
    }

    /// Prepares a query, given as floats, of length one where only directions count.
    fn ask(&self, centre: &Centre, floats: &[f32], asked: &mut Asked) {
        let Asked { weights, base, reach, radius, floats: residual, rotated, .. } = asked;
        *radius = f32::NEG_INFINITY;
        minus(floats, &centre.floats, residual);
        let square = dot(residual, residual);
        self.rotation.apply(residual, rotated);
        weights.fill(rotated, self.bits());
        *base = match self.metric {
            Metric::L2sq => square as f32,
            Metric::InnerProduct => -dot(floats, &centre.floats) as f32,
            Metric::Cosine => (square / 2.0) as f32,
        };
        *reach = rabitq::EPSILON * square.sqrt() as f32;
    }

    /// Makes `rotated` the point that a record stands for, less the centre.
    fn rotated(&self, record: &[u8], levels: &mut Vec<u8>, rotated: &mut Vec<f32>) {
        let [_, mul, _, length] = factors(record);
        levels.resize(self.rotation.padded(), 0);
        packed::unpack(self.code_of(record), self.bits(), levels);
        let middle = f64::from((1u32 << self.bits()) - 1) / 2.0;
        let level = |&level: &u8| f64::from(level) - middle;
        let levels_square: f64 = levels.iter().map(|code| level(code).powi(2)).sum();
        let factor = match self.metric {
            Metric::L2sq => f64::from(mul) / -2.0,
            Metric::InnerProduct | Metric::Cosine => -f64::from(mul),
        };
        // Of the point that estimates are made with, so much: a foot of the row's own way on the code's direction.
        let scale = f64::from(length).powi(2) / (factor * levels_square);
        let scale = if scale.is_finite() { scale } else { 0.0 };
        rotated.clear();
        rotated.extend(levels.iter().map(|code| (level(code) * scale) as f32));
    }

    /// Replaces `out` with the point that a record stands for, of length one where only directions count.
    fn decode(&self, centre: &Centre, record: &[u8], shop: &mut Workshop, out: &mut Vec<f32>) {
        let Workshop { rotated, levels, .. } = shop;
        self.rotated(record, levels, rotated);
        self.rotation.undo(rotated, out);
        out.iter_mut().zip(&centre.floats).for_each(|(x, c)| *x += c);
        let length = dot(out, out).sqrt();
        if self.metric == Metric::Cosine && length > 0.0 {
            out.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }

    /// Prepares the point that a record stands for as a query.
    fn ask_code(&self, centre: &Centre, record: &[u8], asked: &mut Asked) {
        let Asked { weights, base, reach, radius, rotated, levels, .. } = asked;
        *radius = f32::NEG_INFINITY;
        let [add, _, _, length] = factors(record);
        self.rotated(record, levels, rotated);
        weights.fill(rotated, self.bits());
        *base = match self.metric {
            Metric::L2sq | Metric::Cosine => add,
            Metric::InnerProduct => (f64::from(add) - centre.square) as f32,
        };
        *reach = rabitq::EPSILON * length;
    }

    /// Estimates of the distances to codes at byte offsets of `bytes`; false if one of them lies outside.
    #[inline]
    fn estimates(&self, asked: &Asked, bytes: &[u8], offsets: &[u64], out: &mut [f32]) -> bool {
        for &offset in offsets {
            kernel::prefetch(bytes, offset, self.stride);
        }
        let codes = bytes.get(FACTORS..).unwrap_or_default();
        if !self.packed.rows(&asked.weights, codes, offsets, out) {
            return false;
        }
        for (out, &offset) in out.iter_mut().zip(offsets) {
            *out = finish(asked, &bytes[offset as usize..][..FACTORS], *out);
        }
        true
    }

    fn estimate(&self, asked: &Asked, record: &[u8]) -> f32 {
        let product = self.packed.one(&asked.weights, self.code_of(record));
        finish(asked, record, product)
    }

    /// What is wrong with a record.
    pub(crate) fn verify(&self, record: &[u8]) -> std::result::Result<(), String> {
        let [add, mul, error, length] = factors(record);
        let right = add.is_finite() && mul <= 0.0 && mul.is_finite();
        match right && error >= 0.0 && error.is_finite() && length >= 0.0 && length.is_finite() {
            true => Ok(()),
            false => Err(format!("its code has the factors {add}, {mul}, {error}, {length}")),
        }
    }
}

/// The four floats that a record begins with.
fn factors(record: &[u8]) -> [f32; 4] {
    let (words, _) = record.as_chunks::<4>();
    [0, 1, 2, 3].map(|at| words.get(at).map_or(0.0, |&word| f32::from_le_bytes(word)))
}

/// The estimate from a dot product.
#[inline(always)]
fn finish(asked: &Asked, record: &[u8], product: f32) -> f32 {
    let radius = asked.radius;
    let [add, mul, error, _] = factors(record);
    let (base, add, mul) = (f64::from(asked.base), f64::from(add), f64::from(mul));
    let estimate = (base + add + mul * f64::from(product)) as f32;
    if estimate > radius && estimate - asked.reach * error <= radius {
        return radius;
    }
    // Infinitely far would mean of no use to anybody.
    if estimate > f32::MAX { f32::MAX } else { estimate }
}

/// The mean of so many vectors.
fn mean(
    dim: usize,
    count: usize,
    mut read: impl FnMut(usize, &mut Vec<f32>) -> Result<()>,
) -> Result<Vec<f32>> {
    let share = (count as f64).recip();
    let (mut floats, mut mean) = (Vec::new(), vec![0f64; dim]);
    for at in 0..count {
        read(at, &mut floats)?;
        mean.iter_mut().zip(&floats).for_each(|(mean, &value)| *mean += f64::from(value) * share);
    }
    Ok(mean.into_iter().map(|value| value as f32).collect())
}

fn minus(a: &[f32], b: &[f32], out: &mut Vec<f32>) {
    out.clear();
    out.extend(a.iter().zip(b).map(|(a, b)| a - b));
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

impl<S: PageStore> Rows<S> {
    /// Whether searches go by codes, with exact distances of what they find in the end.
    pub(crate) fn goes_by_codes(&self) -> bool {
        self.coder.is_some() && self.has_vectors() && self.meta.centre_pieces() > 0
    }

    /// Whether vectors are kept; else their codes stand in for them.
    pub(crate) fn has_vectors(&self) -> bool {
        self.meta.has_vectors()
    }

    pub(super) fn coder(&self) -> Result<&Coder> {
        self.coder.as_ref().ok_or_else(|| Error::corrupt(0, "there are no codes"))
    }

    /// The coder's centre, read on its first use.
    fn centre(&self) -> Result<(&Coder, &Centre)> {
        let coder = self.coder()?;
        if let Some(centre) = coder.centre.get() {
            return Ok((coder, centre));
        }
        let mut floats = Vec::with_capacity(self.space.dim);
        let pieces = self.meta.centre_pieces();
        if pieces == 0 {
            floats.resize(self.space.dim, 0.0);
        }
        for record in 0..pieces {
            self.record(CENTRE, record, |bytes| {
                floats.extend(bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)));
            })?;
        }
        if floats.len() < self.space.dim || floats.iter().any(|value| !value.is_finite()) {
            return Err(Error::corrupt(0, "the centre of the codes is no vector"));
        }
        floats.truncate(self.space.dim);
        let square = dot(&floats, &floats);
        Ok((coder, coder.centre.get_or_init(|| Centre { floats, square })))
    }

    /// Writes what codes are relative to. None is in use while that is so.
    pub(crate) fn put_centre(&mut self, floats: &[f32]) -> Result<u32> {
        let pieces = floats.len().div_ceil(CENTRE_FLOATS);
        self.reserve(CENTRE, pieces as u64)?;
        for (record, piece) in (0..).zip(floats.chunks(CENTRE_FLOATS)) {
            let mut bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
            bytes.resize(4 * CENTRE_FLOATS, 0);
            let mut change = super::Change::default();
            change.put_record(self.array(CENTRE)?, record, &bytes)?;
            self.commit(&mut change)?;
        }
        if let Some(coder) = &mut self.coder {
            let square = dot(floats, floats);
            coder.centre = Centre { floats: floats.to_vec(), square }.into();
        }
        Ok(pieces as u32)
    }

    /// Says whether codes are in use: with a centre of so many pieces, or not.
    pub(crate) fn use_codes(&mut self, pieces: u32) -> Result<()> {
        if pieces == 0
            && let Some(coder) = &mut self.coder
        {
            coder.centre = OnceLock::new();
        }
        let done = self.commit_meta(super::Change::default(), |meta| {
            meta.set_centre(pieces);
            true
        });
        if let (Err(_), Some(coder)) = (&done, &mut self.coder) {
            coder.centre = OnceLock::new();
        }
        done.map(drop)
    }

    /// Chooses what the codes of an index without vectors are relative to, before it has any: the mean of what it is
    /// about to be given, as `floats` tells of each of so many.
    pub(crate) fn choose_centre(
        &mut self,
        count: usize,
        mut floats: impl FnMut(&Space, usize, &mut Vec<f32>),
    ) -> Result<()> {
        let is_first = self.meta.slots.get() == 0 && self.meta.centre_pieces() == 0;
        if self.has_vectors() || self.coder.is_none() || !is_first || count < LEAST_ROWS {
            return Ok(());
        }
        let sample = count.min(CENTRE_ROWS);
        let centre = mean(self.space.dim, sample, |at, out| {
            floats(&self.space, at * count / sample, out);
            Ok(())
        })?;
        let pieces = self.put_centre(&centre)?;
        self.use_codes(pieces)
    }

    /// The mean of the vectors of some slots, of no more of these than a centre is to be made of.
    pub(crate) fn mean_of(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let count = ids.len().min(CENTRE_ROWS);
        let mut row = Vec::new();
        mean(self.space.dim, count, |at, floats| {
            self.row(ids[at * ids.len() / count], &mut row)?;
            self.space.floats(&row, floats);
            Ok(())
        })
    }

    /// Replaces `out` with the vector that the code of a slot stands for.
    pub(super) fn decode(&self, id: u32, out: &mut Vec<f32>) -> Result<()> {
        let (coder, centre) = self.centre()?;
        let mut shop = Workshop::default();
        self.record(super::VECTORS, id, |record| coder.decode(centre, record, &mut shop, out))?;
        match out.iter().all(|value| value.is_finite()) {
            true => Ok(()),
            false => Err(self.corrupt_node(id, "its code stands for no vector".into())),
        }
    }

    /// Replaces `out` with the record of a row, `row` as its vector is, or would be, stored.
    pub(crate) fn code(&self, row: &[u8], shop: &mut Workshop, out: &mut Vec<u8>) -> Result<()> {
        let (coder, centre) = self.centre()?;
        let mut given = std::mem::take(&mut shop.given);
        self.space.floats(row, &mut given);
        coder.encode(centre, &given, shop, out);
        shop.given = given;
        Ok(())
    }

    /// Prepares a query for codes, `row` as its vector would be stored.
    pub(crate) fn ask(&self, row: &[u8], asked: &mut Asked) -> Result<()> {
        let (coder, centre) = self.centre()?;
        let mut given = std::mem::take(&mut asked.given);
        self.space.floats(row, &mut given);
        coder.ask(centre, &given, asked);
        asked.given = given;
        Ok(())
    }

    /// Prepares the code of a row as a query for other codes.
    pub(super) fn ask_code(&self, record: &[u8], asked: &mut Asked) -> Result<()> {
        let (coder, centre) = self.centre()?;
        coder.ask_code(centre, record, asked);
        Ok(())
    }

    /// Estimates of the distances to the codes of `ids` in an array. `offsets` is scratch; `out` is replaced.
    #[inline]
    pub(crate) fn estimates(
        &self,
        number: usize,
        asked: &Asked,
        ids: &[u32],
        offsets: &mut Vec<u64>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (coder, array) = (self.coder()?, self.array(number)?);
        out.clear();
        out.resize(ids.len(), 0.0);
        if let Some(bytes) = self.store.contiguous() {
            array.offsets(ids, offsets);
            return match coder.estimates(asked, bytes, offsets, out) {
                true => Ok(()),
                false => Err(Error::corrupt(0, "the array of codes ends outside the store")),
            };
        }
        ids.iter().for_each(|&id| self.prefetch(number, id));
        for (out, &id) in out.iter_mut().zip(ids) {
            *out = self.record(number, id, |record| coder.estimate(asked, record))?;
        }
        Ok(())
    }

    /// How far the estimate from a row's code may be above its distance, by the bound that nearly all keep.
    pub(crate) fn slack(&self, number: usize, asked: &Asked, id: u32) -> Result<f32> {
        self.record(number, id, |record| asked.reach * factors(record)[2])
    }

    /// What is wrong with the record of a row's code.
    pub(super) fn verify_code(&self, number: usize, id: u32) -> Result<()> {
        let coder = self.coder()?;
        self.record(number, id, |record| coder.verify(record))?
            .map_err(|what| self.corrupt_at(self.array(number).ok(), id, what))
    }

    fn corrupt_at(&self, array: Option<&Array>, id: u32, what: String) -> Error {
        let page = array.and_then(|array| array.locate(id)).map_or(0, |(page, _)| page.0);
        Error::corrupt(page, format!("slot {id}: {what}"))
    }
}
