//! The scan in plain Rust: the reference of all others.

use half::f16;

use super::{Addends, BLOCK, Block, Factors, Functions, Line, NO_ADDENDS, SUB, Terms};

/// The entry points.
pub(super) const FUNCTIONS: Functions = Functions { scan, estimates, distances, scaled };

fn scan(plane: &[u8], tables: &[u8], out: &mut [u32; BLOCK]) {
    *out = [0; BLOCK];
    add(plane, tables, out);
}

fn add(plane: &[u8], tables: &[u8], sums: &mut [u32; BLOCK]) {
    let (low, high) = sums.split_at_mut(SUB);
    for (codes, table) in plane.as_chunks::<SUB>().0.iter().zip(tables.as_chunks::<SUB>().0) {
        for ((low, high), byte) in low.iter_mut().zip(high.iter_mut()).zip(codes) {
            *low += u32::from(table[usize::from(byte & 15)]);
            *high += u32::from(table[usize::from(byte >> 4)]);
        }
    }
}

fn estimates(block: &Block<'_>, tables: &[u8], terms: Terms, out: &mut [f32; BLOCK]) -> u32 {
    let mut sums = [0; BLOCK];
    for plane in block.planes.chunks_exact(tables.len()) {
        sums = sums.map(|sum| 2 * sum);
        add(plane, tables, &mut sums);
    }
    let mut below = 0;
    for i in 0..BLOCK {
        let [add, mul] = [block.add, block.mul].map(|halves| f16::from_bits(halves[i]).to_f32());
        let dot = terms.delta * sums[i] as f32 + terms.offset;
        out[i] = (terms.base + terms.scale * add) + mul * dot;
        below |= u32::from(out[i] < terms.bound) << i;
    }
    below
}

fn distances(
    codes: &[u8],
    tables: &[u8],
    addends: Option<&Addends>,
    line: Line,
    out: &mut [f32; BLOCK],
) -> u32 {
    let mut sums = [0; BLOCK];
    add(codes, tables, &mut sums);
    let addends = addends.unwrap_or(&NO_ADDENDS);
    let mut below = 0;
    for (i, (sum, addend)) in sums.into_iter().zip(addends.as_chunks().0).enumerate() {
        out[i] = (line.base + f32::from_le_bytes(*addend)) + line.delta * sum as f32;
        below |= u32::from(out[i] < line.bound) << i;
    }
    below
}

fn scaled(
    codes: &[u8],
    tables: &[u8],
    factors: Factors<'_>,
    (line, offset): (Line, f32),
    out: &mut [f32; BLOCK],
) -> u32 {
    let mut sums = [0; BLOCK];
    for plane in codes.chunks_exact(tables.len()) {
        sums = sums.map(|sum| 2 * sum);
        add(plane, tables, &mut sums);
    }
    let mut below = 0;
    for i in 0..BLOCK {
        let number = |bytes: &Addends| f32::from_le_bytes(bytes.as_chunks().0[i]);
        let dot = line.delta * sums[i] as f32 + offset;
        out[i] = (line.base + number(factors.add)) + number(factors.mul) * dot;
        below |= u32::from(out[i] < line.bound) << i;
    }
    below
}
