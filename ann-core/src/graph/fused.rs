//! Fused lists: a node's links with its neighbours' codes beside them.
//!
//! The codes of a list are a block for every 32 links: for each neighbour the two factors of its estimate, then the
//! bits of the codes, transposed for FastScan, one plane for each bit of a coordinate. A code is of what leads from
//! the node to the neighbour (RaBitQ, arXiv 2405.12497), so estimates are the better the nearer the
//! neighbour. One call scores a block: exact distance of the node itself plus what the codes say.
//!
//! Factors are halves, times a power of two that the list's factors of a kind share, since those of one list are all
//! of one size, but not those of all data.

use std::ops::Range;

use half::f16;
use zerocopy::FromBytes;

use crate::code::Rotation;
use crate::code::rabitq;
use crate::error::{Error, Result};
use crate::kernel::Op;
use crate::kernel::fastscan::{self, Block, FastScan, Lut};
use crate::metric::Metric;
use crate::page::PageStore;
use crate::rows::{Batch, Meta, NONE, Probe, Rows, VECTORS, WHOLE};

use super::best::Estimate;
use super::links::{self, target};
use super::pool::{AGAIN, sorting};
use super::search::{Met, Step};

pub(super) use crate::kernel::fastscan::BLOCK;

/// Bytes from which on a record takes longer to come than a hop to be computed.
const LONG: usize = 2048;
/// Bytes up to which two searches that take turns do better than one.
const TWO: usize = 2560;

/// Bytes of a list's scales, which stand behind its blocks.
const SCALES: usize = 8;

/// How lists of one index are laid out, and what makes their codes.
pub(crate) struct Fused {
    degree: usize,
    bits: u8,
    bytes: usize,
    /// Whether vectors lie in the records of lists.
    joined: bool,
    rotation: Rotation,
    scan: FastScan,
}

/// A query, laid out for the estimates of fused lists.
#[derive(Default)]
pub(crate) struct Table {
    floats: Vec<f32>,
    rotated: Vec<f32>,
    lut: Lut,
}

/// What encoding needs; reused from list to list.
#[derive(Default)]
pub(crate) struct Encoder {
    row: Vec<u8>,
    centre: Vec<f32>,
    rotated_centre: Vec<f32>,
    residual: Vec<f32>,
    rotated: Vec<f32>,
    code: Vec<u8>,
    factors: Vec<[f32; 2]>,
    known: Vec<u32>,
    known_codes: Vec<u8>,
}

impl Fused {
    pub(crate) fn new(meta: &Meta, degree: usize, bits: u8) -> Fused {
        let rotation = Rotation::new(meta.dim.get() as usize, meta.seed.get());
        let bytes = Fused::bytes_of(rotation.dim(), degree, bits);
        let joined = meta.arrays[VECTORS].host(VECTORS) == WHOLE;
        Fused { degree, bits, bytes, joined, rotation, scan: FastScan::new() }
    }

    /// Bytes of the codes of a list.
    pub(crate) fn bytes_of(dim: usize, degree: usize, bits: u8) -> usize {
        let plane = fastscan::plane_bytes(Rotation::padded_of(dim));
        let block = 4 * BLOCK + usize::from(bits) * plane;
        degree / BLOCK * block + SCALES
    }

    /// Bytes of the codes of a list.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many nodes had better be on their way at a time, if a record has so many bytes: what a node's neighbours
    /// have to say is not known to the choice of those that are ahead of them, and of long records two fill the time.
    pub(super) fn beam(record: usize) -> usize {
        if record > LONG { 2 } else { 3 }
    }

    /// How many searches had better take turns, if a record has so many bytes: of long ones, more than come from memory
    /// at a time are on their way already.
    pub(super) fn lanes(record: usize) -> usize {
        match record {
            0..=LONG => 3,
            _ if record <= TWO => 2,
            _ => 1,
        }
    }

    /// Where in a list a block's additions, its factors and its planes are.
    fn block(&self, number: usize) -> [Range<usize>; 3] {
        let planes = usize::from(self.bits) * fastscan::plane_bytes(self.rotation.padded());
        let start = number * (4 * BLOCK + planes);
        let (mul, bits) = (start + 2 * BLOCK, start + 4 * BLOCK);
        [start..mul, mul..bits, bits..bits + planes]
    }

    /// What a list's factors are to be multiplied by: those of the first kind, and those of the second.
    fn scales(&self, codes: &[u8]) -> [f32; 2] {
        let (scales, _) = codes[self.bytes - SCALES..].as_chunks();
        [f32::from_le_bytes(scales[0]), f32::from_le_bytes(scales[1])]
    }

    /// Lays out a query.
    pub(crate) fn table<S: PageStore>(&self, rows: &Rows<S>, row: &[u8], table: &mut Table) {
        let Table { floats, rotated, lut } = table;
        rows.space.floats(row, floats);
        self.rotation.apply(floats, rotated);
        lut.fill(rotated);
    }

    /// The codes of a list around node `id`. Those that stand in record `old` of two arrays (links and codes), if
    /// given, are taken from there.
    pub(crate) fn encode<S: PageStore>(
        &self,
        rows: &Rows<S>,
        id: u32,
        list: &[u32],
        old: Option<([usize; 2], u32)>,
        encoder: &mut Encoder,
    ) -> Result<Vec<u8>> {
        let Encoder {
            row,
            centre,
            rotated_centre,
            residual,
            rotated,
            code,
            factors,
            known,
            known_codes,
        } = encoder;
        factors.clear();
        known.clear();
        known_codes.clear();
        if let Some((arrays, record)) = old {
            rows.record(arrays[0], record, |bytes| known.extend(links::each(bytes).map(target)))?;
            rows.record(arrays[1], record, |bytes| known_codes.extend_from_slice(bytes))?;
        }
        rows.floats(id, row, centre)?;
        self.rotation.apply(centre, rotated_centre);
        let mut bytes = vec![0; self.bytes()];
        // Most links of a list that changes stay in their places.
        let stays = list.len() >= known.len() && known_codes.len() == bytes.len();
        if stays {
            bytes.copy_from_slice(known_codes);
        }
        code.resize(self.rotation.padded(), 0);
        for (at, &link) in list.iter().enumerate() {
            let planes = self.block(at / BLOCK)[2].clone();
            if let Some(from) = known.iter().position(|&known| known == target(link))
                && let Some(found) = self.factors(known_codes, from)
            {
                factors.push(found);
                if stays && from == at {
                    continue;
                }
                let from_planes = self.block(from / BLOCK)[2].clone();
                fastscan::get(&known_codes[from_planes], self.bits, from % BLOCK, code);
                fastscan::put(&mut bytes[planes], self.bits, at % BLOCK, code);
                continue;
            }
            if let Some(&next) = list.get(at + 1) {
                rows.prefetch(VECTORS, target(next));
            }
            rows.floats(target(link), row, residual)?;
            residual.iter_mut().zip(&*centre).for_each(|(value, centre)| *value -= centre);
            self.rotation.apply(residual, rotated);
            let op = match rows.space.metric {
                Metric::InnerProduct => Op::Dot,
                Metric::L2sq | Metric::Cosine => Op::L2sq,
            };
            let mut found = rabitq::encode(op, self.bits, rotated, Some(rotated_centre), code);
            if rows.space.metric == Metric::Cosine {
                // Half the squared distance of vectors of length one.
                (found.add, found.mul) = (found.add / 2.0, found.mul / 2.0);
            }
            fastscan::put(&mut bytes[planes], self.bits, at % BLOCK, code);
            factors.push([found.add, found.mul].map(rounded));
        }
        self.put_factors(&mut bytes, factors);
        Ok(bytes)
    }

    /// Writes the factors of all lanes, and their scales.
    fn put_factors(&self, bytes: &mut [u8], factors: &[[f32; 2]]) {
        for kind in 0..2 {
            let largest = factors.iter().map(|factors| factors[kind].abs()).fold(0.0, f32::max);
            let scale = scale(largest);
            for (lane, factors) in factors.iter().enumerate() {
                let range = self.block(lane / BLOCK)[kind].clone();
                let half = f16::from_f32(factors[kind] / scale);
                bytes[range][2 * (lane % BLOCK)..][..2].copy_from_slice(&half.to_le_bytes());
            }
            let at = self.bytes - SCALES + 4 * kind;
            bytes[at..at + 4].copy_from_slice(&scale.to_le_bytes());
        }
    }

    /// The factors of a lane, if they have kept all the bits that a half has.
    fn factors(&self, codes: &[u8], lane: usize) -> Option<[f32; 2]> {
        let [add, mul, _] = self.block(lane / BLOCK);
        let (scales, at) = (self.scales(codes), 2 * (lane % BLOCK));
        let half = |range: Range<usize>| {
            let bytes = &codes[range][at..at + 2];
            f16::from_le_bytes([bytes[0], bytes[1]])
        };
        let halves = [half(add), half(mul)];
        let [add, mul] = halves;
        halves
            .iter()
            .all(|half| half.is_normal())
            .then(|| [add.to_f32() * scales[0], mul.to_f32() * scales[1]])
    }

    /// Calls `found` with the links of a list whose estimates come below `bound`. `ids` and `codes` are the list's
    /// bytes; it is of a node at the exact distance `base` from the query.
    #[inline(always)]
    pub(super) fn below(
        &self,
        (ids, codes): (&[u8], &[u8]),
        (base, bound): (f32, f32),
        table: &Table,
        mut found: impl FnMut(u32, f32) -> Result<()>,
    ) -> Result<()> {
        let misplaced = || Error::corrupt(0, "codes at an odd place");
        let scales = self.scales(codes);
        for number in 0..self.degree / BLOCK {
            let mut estimates = [0f32; BLOCK];
            let [add, mul, planes] = self.block(number).map(|range| &codes[range]);
            let block = Block {
                planes,
                bits: self.bits,
                add: FromBytes::ref_from_bytes(add).map_err(|_| misplaced())?,
                mul: FromBytes::ref_from_bytes(mul).map_err(|_| misplaced())?,
                scales,
            };
            let mut mask = self.scan.estimates(&block, &table.lut, base, bound, &mut estimates);
            let (ids, _) = ids[4 * BLOCK * number..].as_chunks::<4>();
            while mask != 0 {
                let lane = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                let link = u32::from_le_bytes(ids[lane]);
                if link == NONE {
                    break;
                }
                found(link, estimates[lane])?;
            }
        }
        Ok(())
    }
}

/// A number with no more bits than a half has. A half made of it is the same whether or not it has been one before.
fn rounded(number: f32) -> f32 {
    const LOST: u32 = 13;
    let bits = number.to_bits();
    let even = bits >> LOST & 1;
    // It wraps for no number, but may for what a damaged page holds in its place.
    f32::from_bits(bits.wrapping_add((1 << (LOST - 1)) - 1 + even) & !((1 << LOST) - 1))
}

/// The power of two that brings numbers up to `largest` into the range of halves.
fn scale(largest: f32) -> f32 {
    const TOP: u32 = 14;
    let exponent = (largest.to_bits() >> 23).max(TOP + 1);
    f32::from_bits((exponent - TOP) << 23)
}

/// Replaces the batch with the neighbours of a node whose estimated distances come below the step's bound and, if they
/// are near, are the best so far, marked if there are worse ones; returns the node's exact distance.
#[inline]
pub(super) fn expand<S: PageStore>(
    rows: &Rows<S>,
    fused: &Fused,
    step: &Step,
    Met { best, .. }: Met<'_>,
    batch: &mut Batch,
    (probe, table): (&Probe, &Table),
) -> Result<f32> {
    batch.ids.clear();
    batch.distances.clear();
    // A vector that lies elsewhere is read first: no two pages are held at a time.
    let apart = match fused.joined {
        true => None,
        false => {
            let vectors = rows.array(VECTORS)?;
            Some(rows.space.score_one(&rows.store, vectors, probe, step.node)?)
        }
    };
    rows.record(WHOLE, step.node, |record| {
        let (ids, rest) = record.split_at(4 * fused.degree);
        let (codes, vector) = rest.split_at(fused.bytes);
        let own = apart.unwrap_or_else(|| rows.space.distance(probe, vector));
        fused.below((ids, codes), (own, step.bound), table, |link, distance| {
            let id = target(link);
            batch.ids.push(if distance < step.near {
                match best.improve(id, sorting(distance))? {
                    Estimate::First => id,
                    Estimate::Nearer => id | AGAIN,
                    Estimate::NoNearer => return Ok(()),
                }
            } else {
                // Most never are of use to a search that goes on.
                best.check(id)?;
                id
            });
            batch.distances.push(distance);
            Ok(())
        })?;
        Ok(own)
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_keep_what_is_rounded() {
        for number in [0.0f32, 1.0, -1.0, 0.1, 3.3, -65_519.0, 1e-30, 1e30] {
            let rounded = rounded(number);
            assert!((rounded - number).abs() <= number.abs() / 2048.0);
            let scale = scale(rounded.abs());
            assert_eq!(f16::from_f32(rounded / scale).to_f32() * scale, rounded);
        }
        // Bits that no computation makes, but a damaged page may hold.
        for bits in [u32::MAX, 0x7fff_ffff, 0xffff_f000] {
            let _ = rounded(f32::from_bits(bits));
        }
    }
}
