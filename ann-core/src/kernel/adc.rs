//! Distances from 8-bit codes of a product quantizer: one lookup in a table of floats for each sub-quantizer.
//!
//! Codes lie in blocks of 32: a row of 32 bytes for each sub-quantizer, a byte for each code. Lookups are added in the
//! order of the sub-quantizers, so sums are the same on every machine.

use super::fastscan::{Addends, BLOCK};
use super::wide::wide;

/// Entries of a table.
pub const ENTRIES: usize = 256;

/// Distances of a block of codes: `base` and the code's addend, and a lookup for each byte. Returns a bit for each code
/// whose distance is below `bound`.
///
/// # Panics
/// If the block does not have a row for each table.
#[must_use]
pub fn distances(
    codes: &[u8],
    tables: &[[f32; ENTRIES]],
    addends: Option<&Addends>,
    base: f32,
    bound: f32,
    out: &mut [f32; BLOCK],
) -> u32 {
    assert_eq!(codes.len(), tables.len() * BLOCK, "a block has the tables' sub-quantizers");
    wide(
        #[inline(always)]
        || {
            out.fill(base);
            for (out, addend) in
                out.iter_mut().zip(addends.iter().flat_map(|all| all.as_chunks().0))
            {
                *out += f32::from_le_bytes(*addend);
            }
            for (row, table) in codes.as_chunks::<BLOCK>().0.iter().zip(tables) {
                for (out, &code) in out.iter_mut().zip(row) {
                    *out += table[usize::from(code)];
                }
            }
            out.iter().enumerate().fold(0, |bits, (i, &d)| bits | u32::from(d < bound) << i)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::mix;

    #[test]
    fn lookups_add_up() {
        for subs in [1, 2, 7, 96] {
            let entry = |i: usize| (mix(i as u64) % 1000) as f32;
            let tables: Vec<[f32; ENTRIES]> =
                (0..subs).map(|sub| std::array::from_fn(|i| entry(sub * ENTRIES + i))).collect();
            let codes: Vec<u8> = (0..subs * BLOCK).map(|i| mix(!(i as u64)) as u8).collect();
            let mut addends: Addends = [0; 4 * BLOCK];
            addends[4..8].copy_from_slice(&2.5f32.to_le_bytes());
            let mut out = [0.0; BLOCK];
            let mask =
                distances(&codes, &tables, Some(&addends), 1.0, 500.0 * subs as f32, &mut out);
            for slot in 0..BLOCK {
                let lookup = |sub: usize| tables[sub][usize::from(codes[sub * BLOCK + slot])];
                let sum: f32 = (0..subs).map(lookup).sum();
                assert_eq!(out[slot], sum + if slot == 1 { 3.5 } else { 1.0 });
                assert_eq!(mask >> slot & 1 == 1, out[slot] < 500.0 * subs as f32);
            }
        }
    }
}
