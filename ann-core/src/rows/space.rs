//! The space that rows live in: their layout, and distances made of the kernels' raw sums.
//!
//! A row is the vector's bytes, and under cosine, at the next multiple of four, a float: `1 / |v|`. Vectors are
//! stored as they were given, or narrower (see `narrow`).
//!
//! Graphs are built with the distances that searches use. Under inner product that is no metric, but pruning only
//! compares distances, and links chosen by it lead to long vectors, where the answers are (Morozov and Babenko,
//! NeurIPS 2018).

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::element::{DType, Element, MAX_DIM, STEP, floats_of};
use crate::error::{Error, Result};
use crate::kernel::{self, Isa, Kernel, Op, Query};
use crate::metric::Metric;
use crate::page::PageStore;

use super::array::Array;
use super::codes::Asked;
use super::narrow::{allowed, largest, narrows, scaled};

/// Dimension, element type and metric, and the kernel that serves them.
pub(crate) struct Space {
    pub dim: usize,
    /// What callers give and get.
    pub dtype: DType,
    /// What rows hold of it.
    pub stored: DType,
    pub metric: Metric,
    kernel: Kernel,
    vector_bytes: usize,
    stride: usize,
}

/// A query, prepared once for many distances.
#[derive(Default)]
pub(crate) struct Probe {
    query: Query,
    finish: Finish,
    /// The same for codes by node, where there are any.
    pub asked: Asked,
}

/// How a raw sum becomes a distance.
#[derive(Clone, Copy, Default)]
enum Finish {
    #[default]
    Raw,
    Negate,
    /// With the probe's `1 / |v|`.
    Cosine(f32),
}

impl Space {
    pub(crate) fn new(dim: usize, dtype: DType, metric: Metric, isa: Option<Isa>) -> Result<Space> {
        Space::storing(dim, dtype, dtype, metric, isa)
    }

    /// [`Space::storing`] what is checked at the door.
    pub(crate) fn narrowed(
        dim: usize,
        dtype: DType,
        stored: DType,
        metric: Metric,
        isa: Option<Isa>,
    ) -> Result<Space> {
        if stored != dtype && !narrows(dtype, stored, metric) {
            return Err(Error::parameter("vectors", stored, allowed(dtype, metric)));
        }
        Space::storing(dim, dtype, stored, metric, isa)
    }

    /// A space whose rows hold elements of another type than the caller's; see [`narrows`].
    pub(crate) fn storing(
        dim: usize,
        dtype: DType,
        stored: DType,
        metric: Metric,
        isa: Option<Isa>,
    ) -> Result<Space> {
        if !(1..=MAX_DIM).contains(&dim) {
            return Err(Error::parameter("dim", dim, format!("from 1 to {MAX_DIM}")));
        }
        let op = if metric == Metric::L2sq { Op::L2sq } else { Op::Dot };
        let kernel = match isa {
            None => Kernel::new(stored, op, dim),
            Some(isa) => Kernel::with_isa(stored, op, dim, isa).ok_or_else(|| {
                Error::parameter("isa", format!("{isa:?}"), "one that this machine has")
            })?,
        };
        let vector_bytes = dim * stored.size();
        let tail = if metric == Metric::Cosine { 4 } else { 0 };
        let stride = Space::round_stride(vector_bytes.next_multiple_of(4) + tail);
        Ok(Space { dim, dtype, stored, metric, kernel, vector_bytes, stride })
    }

    /// The coarsest alignment up to a cache line that costs at most an eighth.
    pub(crate) fn round_stride(bytes: usize) -> usize {
        let fits = |align: &usize| bytes.next_multiple_of(*align) - bytes <= bytes / 8;
        let align = [64, 32, 16, 8].into_iter().find(fits).unwrap_or(4);
        bytes.next_multiple_of(align)
    }

    /// Replaces `out` with the floats of a row, of length one where only directions count.
    pub(crate) fn floats(&self, row: &[u8], out: &mut Vec<f32>) {
        out.clear();
        let bytes = &row[..self.vector_bytes];
        let each = |floats: &[f32]| out.extend_from_slice(floats);
        match self.stored {
            DType::F32 => floats_of::<f32>(bytes, each),
            DType::F16 => floats_of::<f16>(bytes, each),
            DType::I8 => floats_of::<i8>(bytes, each),
            DType::U8 => floats_of::<u8>(bytes, each),
        }
        if self.metric == Metric::Cosine {
            let inverse = self.tail_of(row, 0);
            out.iter_mut().for_each(|value| *value *= inverse);
        }
    }

    /// Replaces `out` with the floats of what a vector's row would be, which `row` becomes; see [`Space::floats`].
    pub(crate) fn floats_of<T: Element>(
        &self,
        vector: &[T],
        row: &mut Vec<u8>,
        out: &mut Vec<f32>,
    ) {
        row.clear();
        self.encode(vector, row);
        self.floats(row, out);
    }

    /// Bytes a row takes.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Bytes of a row that are the vector.
    pub(crate) fn vector_bytes(&self) -> usize {
        self.vector_bytes
    }

    /// The instruction set in use.
    pub(crate) fn isa(&self) -> Isa {
        self.kernel.isa()
    }

    /// Checks a vector at the door; `row` is for the message.
    pub(crate) fn check<T: Element>(&self, vector: &[T], row: usize) -> Result<()> {
        if self.is_scaled() {
            return self.check_scaled(vector, row).map(drop);
        }
        match self.checked_halves(vector, row)? {
            Some(halves) => self.stored_norm2(&halves, row).map(drop),
            None => self.stored_norm2(vector, row).map(drop),
        }
    }

    /// Checks the element type and the dimension.
    pub(crate) fn check_shape<T: Element>(&self, dim: usize) -> Result<()> {
        if T::DTYPE != self.dtype {
            return Err(Error::ElementType { got: T::DTYPE, want: self.dtype });
        }
        match dim == self.dim {
            true => Ok(()),
            false => Err(Error::Dimension { got: dim, want: self.dim }),
        }
    }

    /// [`Space::halves`] of a vector of the right shape, none of whose values is lost.
    fn checked_halves<T: Element>(&self, vector: &[T], row: usize) -> Result<Option<Vec<f16>>> {
        self.check_shape::<T>(vector.len())?;
        let Some(halves) = self.halves(vector) else { return Ok(None) };
        // All are finite, mostly, which a loop that does not stop on the way sees faster.
        let largest = halves.iter().fold(0, |largest, half| (half.to_bits() << 1).max(largest));
        if largest < f16::INFINITY.to_bits() << 1 {
            return Ok(Some(halves));
        }
        let lost = |(half, given): (&f16, &T)| given.to_f32().is_finite() && !half.is_finite();
        match halves.iter().zip(vector).position(lost) {
            Some(column) => {
                let value = vector[column].to_f32();
                Err(Error::DoesNotFit { row, column, value, dtype: self.stored })
            }
            None => Ok(Some(halves)),
        }
    }

    /// A vector as it is to be stored, if that is another type.
    fn halves<T: Element>(&self, vector: &[T]) -> Option<Vec<f16>> {
        (self.stored != self.dtype).then(|| {
            let (mut floats, mut halves) = ([0f32; STEP], vec![f16::ZERO; vector.len()]);
            for (values, halves) in vector.chunks(STEP).zip(halves.chunks_mut(STEP)) {
                T::to_f32s(values, &mut floats);
                halves.convert_from_f32_slice(&floats[..values.len()]);
            }
            halves
        })
    }

    /// The squared norm of a vector that passes, as it is given; zero where it does not matter.
    pub(super) fn stored_norm2<T: Element>(&self, vector: &[T], row: usize) -> Result<f64> {
        // Integers are finite, and their norms are no worry.
        let is_float = matches!(T::DTYPE, DType::F32 | DType::F16);
        if !is_float && self.metric != Metric::Cosine {
            return Ok(0.0);
        }
        let norm = norm2(vector);
        if is_float {
            if !norm.is_finite() {
                let bad = vector.iter().position(|v| !v.to_f32().is_finite());
                if let Some(column) = bad {
                    return Err(Error::NotFinite { row, column, value: vector[column].to_f32() });
                }
            }
            // Beyond it, sums of products could become infinite and their difference NaN.
            if norm > f64::from(f32::MAX) / 4.0 {
                return Err(Error::TooLong { row, norm: norm.sqrt() });
            }
        }
        if self.metric == Metric::Cosine && !inverse(norm).is_finite() {
            return Err(Error::ZeroVector { row });
        }
        Ok(norm)
    }

    /// What is wrong with an encoded row.
    pub(crate) fn verify(&self, row: &[u8]) -> std::result::Result<(), String> {
        match self.stored {
            DType::F32 => self.verify_as::<f32>(row),
            DType::F16 => self.verify_as::<half::f16>(row),
            DType::I8 => self.verify_as::<i8>(row),
            DType::U8 => self.verify_as::<u8>(row),
        }
    }

    fn verify_as<T: Element>(&self, row: &[u8]) -> std::result::Result<(), String> {
        let vector = T::from_bytes(row.get(..self.vector_bytes).unwrap_or_default());
        if vector.len() != self.dim {
            return Err(format!("{} of {} elements", vector.len(), self.dim));
        }
        if self.is_scaled() {
            self.verify_scaled(row)?;
        }
        let norm = self.stored_norm2(&vector, 0).map_err(|error| error.to_string())?;
        let tail = self.tail_of(row, 0);
        let right = self.metric != Metric::Cosine || tail == inverse(norm);
        if right { Ok(()) } else { Err(format!("{tail} is not the inverse of its norm")) }
    }

    /// Appends the row of a vector that passed [`Space::check`].
    pub(crate) fn encode<T: Element>(&self, vector: &[T], out: &mut Vec<u8>) {
        if self.is_scaled() {
            let (bytes, norm2) = scaled(vector, largest(vector));
            return self.encode_of_norm(&bytes, norm2, out);
        }
        match self.halves(vector) {
            Some(halves) => self.encode_stored(&halves, out),
            None => self.encode_stored(vector, out),
        }
    }

    fn encode_stored<T: Element>(&self, vector: &[T], out: &mut Vec<u8>) {
        let norm = if self.metric == Metric::Cosine { norm2(vector) } else { 0.0 };
        self.encode_of_norm(vector, norm, out);
    }

    fn encode_of_norm<T: Element>(&self, vector: &[T], norm2: f64, out: &mut Vec<u8>) {
        let start = out.len();
        T::extend_bytes(vector, out);
        if self.metric == Metric::Cosine {
            out.resize(start + self.tail_at(), 0);
            out.extend_from_slice(&inverse(norm2).to_le_bytes());
        }
        out.resize(start + self.stride, 0);
    }

    /// Where in a row its float is.
    fn tail_at(&self) -> usize {
        self.vector_bytes.next_multiple_of(4)
    }

    fn tail_of(&self, bytes: &[u8], row: usize) -> f32 {
        float_at(bytes, row + self.tail_at())
    }

    /// Checks and prepares a query given by the caller; `row` is for messages, `bytes` is scratch.
    pub(crate) fn query<T: Element>(
        &self,
        query: &[T],
        row: usize,
        bytes: &mut Vec<u8>,
        probe: &mut Probe,
    ) -> Result<()> {
        bytes.clear();
        if self.is_scaled() {
            let (stored, norm2) = scaled(query, self.check_scaled(query, row)?);
            self.encode_of_norm(&stored, norm2, bytes);
        } else if let Some(halves) = self.checked_halves(query, row)? {
            self.encode_of_norm(&halves, self.stored_norm2(&halves, row)?, bytes);
        } else {
            self.encode_of_norm(query, self.stored_norm2(query, row)?, bytes);
        }
        self.probe(bytes, probe);
        Ok(())
    }

    /// Prepares an encoded row (without its padding, if need be) as a query.
    pub(crate) fn probe(&self, row: &[u8], probe: &mut Probe) {
        self.kernel.prepare(&row[..self.vector_bytes], &mut probe.query);
        probe.finish = match self.metric {
            Metric::L2sq => Finish::Raw,
            Metric::InnerProduct => Finish::Negate,
            Metric::Cosine => Finish::Cosine(self.tail_of(row, 0)),
        };
        // The products of two very short vectors would vanish: the query is made one of unit length.
        if let Finish::Cosine(inverse) = probe.finish
            && self.stored == DType::F32
            && inverse > SHORT
        {
            let mut unit = Vec::with_capacity(self.vector_bytes);
            for value in f32::from_bytes(&row[..self.vector_bytes]) {
                unit.extend_from_slice(&(value * inverse).to_le_bytes());
            }
            self.kernel.prepare(&unit, &mut probe.query);
            probe.finish = Finish::Cosine(1.0);
        }
    }

    fn finish(&self, finish: Finish, raw: f32, tail: impl Fn() -> f32) -> f32 {
        match finish {
            Finish::Raw => raw,
            Finish::Negate => -raw,
            Finish::Cosine(inverse) => (1.0 - raw * inverse * tail()).max(0.0),
        }
    }

    /// The distance to a row that lies in one piece.
    pub(crate) fn distance(&self, probe: &Probe, row: &[u8]) -> f32 {
        let raw = self.kernel.one(&probe.query, row);
        self.finish(probe.finish, raw, || self.tail_of(row, 0))
    }

    /// Distances to rows at byte offsets of `bytes`; false if one of them lies outside. What comes out at `bound` or
    /// above is at least `bound` away, but perhaps more than it says.
    #[inline]
    pub(crate) fn distances(
        &self,
        probe: &Probe,
        bytes: &[u8],
        offsets: &[u64],
        bound: f32,
        out: &mut [f32],
    ) -> bool {
        for &offset in offsets {
            kernel::prefetch(bytes, offset, self.stride.min(PREFETCH));
        }
        if !self.kernel.rows(&probe.query, bytes, offsets, bound, out) {
            return false;
        }
        if !matches!(probe.finish, Finish::Raw) {
            for (out, &offset) in out.iter_mut().zip(offsets) {
                *out = self.finish(probe.finish, *out, || self.tail_of(bytes, offset as usize));
            }
        }
        true
    }

    /// Distances from the probe to the rows of `ids`, which must all be below the array's capacity; `bound` as for
    /// [`Space::distances`]. `offsets` is scratch; `out` is replaced.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "the parts of one batch")]
    pub(crate) fn score<S: PageStore>(
        &self,
        store: &S,
        vectors: &Array,
        probe: &Probe,
        ids: &[u32],
        bound: f32,
        offsets: &mut Vec<u64>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        out.clear();
        out.resize(ids.len(), 0.0);
        if let (Some(bytes), 1) = (store.contiguous(), vectors.span()) {
            vectors.offsets(ids, offsets);
            if !self.distances(probe, bytes, offsets, bound, out) {
                return Err(Error::corrupt(0, "the vector array ends outside the store"));
            }
            return Ok(());
        }
        for &id in ids {
            if let Some((page, offset)) = vectors.locate(id) {
                store.prefetch(page, offset..offset + self.stride.min(PREFETCH));
            }
        }
        for (out, &id) in out.iter_mut().zip(ids) {
            *out = self.score_one(store, vectors, probe, id)?;
        }
        Ok(())
    }

    /// The distance from the probe to one row, wherever its pages are.
    pub(crate) fn score_one<S: PageStore>(
        &self,
        store: &S,
        vectors: &Array,
        probe: &Probe,
        id: u32,
    ) -> Result<f32> {
        let missing = || Error::corrupt(0, format!("vector {id} lies outside its array"));
        let (page, offset) = vectors.locate(id).ok_or_else(missing)?;
        if vectors.span() == 1 {
            let body = store.read(page)?;
            let row = body.get(offset..offset + self.stride).ok_or_else(missing)?;
            return Ok(self.distance(probe, row));
        }
        let (mut raw, mut tail, mut at) = (0.0, 0.0, 0);
        for part in 0..vectors.span() {
            let body = store.read(vectors.part(id, part).ok_or_else(missing)?)?;
            let vector = self.vector_bytes.saturating_sub(at).min(body.len());
            if vector > 0 {
                raw += self.kernel.part(&probe.query, at / self.stored.size(), &body[..vector]);
            }
            if (at..at + body.len()).contains(&self.tail_at()) {
                tail = float_at(&body, self.tail_at() - at);
            }
            at += body.len();
        }
        Ok(self.finish(probe.finish, raw, || tail))
    }
}

/// Vectors shorter than the inverse of it count as very short.
const SHORT: f32 = 1e9;

/// How much of a row is prefetched; the hardware follows a longer one by itself.
const PREFETCH: usize = 1024;

fn float_at(bytes: &[u8], at: usize) -> f32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => 0.0,
    }
}

fn inverse(norm2: f64) -> f32 {
    norm2.sqrt().recip() as f32
}

/// Summed in eight lanes, or each addition would wait for the one before it.
fn norm2<T: Element>(vector: &[T]) -> f64 {
    let (mut lanes, mut floats) = ([0f64; 8], [0f32; STEP]);
    for chunk in vector.chunks(STEP) {
        T::to_f32s(chunk, &mut floats);
        floats[chunk.len()..].fill(0.0);
        for eight in floats.as_chunks().0 {
            let eight: &[f32; 8] = eight;
            lanes
                .iter_mut()
                .zip(eight)
                .for_each(|(lane, &value)| *lane += f64::from(value).powi(2));
        }
    }
    lanes.iter().sum()
}
