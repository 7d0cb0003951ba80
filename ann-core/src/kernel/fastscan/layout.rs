//! Where the bits of a code are in a block.
//!
//! A block has a plane for each bit of a coordinate, most significant first. A plane is a row of 16 bytes for each
//! four coordinates; byte `t` holds a nibble of code `t` in its low half and of code `t + 16` in its high half. Bit
//! `i` of a nibble is that of the `i`-th of the four coordinates.

use super::{BLOCK, SUB};

/// Bytes of one plane of 32 codes of `dim` coordinates, a multiple of 8.
pub fn plane_bytes(dim: usize) -> usize {
    debug_assert!(dim.is_multiple_of(8), "{dim} coordinates");
    dim / 8 * BLOCK
}

/// Makes `codes`, one byte a coordinate, code number `slot` of a block; other codes stay as they are.
///
/// # Panics
/// If `slot` is not below 32, or `planes` is not `bits` planes of codes of this length.
pub fn put(planes: &mut [u8], bits: u8, slot: usize, codes: &[u8]) {
    let shift = shift(planes, bits, slot, codes.len());
    for (plane, bit) in planes.chunks_exact_mut(plane_bytes(codes.len())).zip((0..bits).rev()) {
        for (sub, four) in plane.as_chunks_mut::<SUB>().0.iter_mut().zip(codes.as_chunks::<4>().0) {
            let nibble = (0..4).fold(0, |nibble, i| nibble | (four[i] >> bit & 1) << i);
            let byte = &mut sub[slot % SUB];
            *byte = *byte & !(0x0f << shift) | nibble << shift;
        }
    }
}

/// Reads code number `slot` of a block into `codes`, one byte a coordinate.
///
/// # Panics
/// As [`put`].
pub fn get(planes: &[u8], bits: u8, slot: usize, codes: &mut [u8]) {
    let shift = shift(planes, bits, slot, codes.len());
    codes.fill(0);
    for plane in planes.chunks_exact(plane_bytes(codes.len())) {
        for (sub, four) in plane.as_chunks::<SUB>().0.iter().zip(codes.as_chunks_mut::<4>().0) {
            for (i, code) in four.iter_mut().enumerate() {
                *code = *code << 1 | sub[slot % SUB] >> (shift + i) & 1;
            }
        }
    }
}

/// Bytes of 32 codes of `subs` nibbles, zeros to an even number of them included.
pub fn nibble_bytes(subs: usize) -> usize {
    subs.next_multiple_of(2) * SUB
}

/// Makes `codes`, a nibble of one sub-quantizer each, code number `slot` of a block; other codes stay as they are.
///
/// # Panics
/// If `slot` is not below 32, or the block does not have as many sub-quantizers.
pub fn put_nibbles(block: &mut [u8], slot: usize, codes: &[u8]) {
    assert!(slot < BLOCK, "slot {slot} of {BLOCK}");
    assert_eq!(block.len(), nibble_bytes(codes.len()), "a block of other codes");
    let shift = slot / SUB * 4;
    for (sub, code) in block.as_chunks_mut::<SUB>().0.iter_mut().zip(codes) {
        let byte = &mut sub[slot % SUB];
        *byte = *byte & !(0x0f << shift) | (code & 0x0f) << shift;
    }
}

/// Reads code number `slot` of a block into `codes`.
///
/// # Panics
/// As [`put_nibbles`].
pub fn get_nibbles(block: &[u8], slot: usize, codes: &mut [u8]) {
    assert!(slot < BLOCK, "slot {slot} of {BLOCK}");
    assert_eq!(block.len(), nibble_bytes(codes.len()), "a block of other codes");
    let shift = slot / SUB * 4;
    for (sub, code) in block.as_chunks::<SUB>().0.iter().zip(codes) {
        *code = sub[slot % SUB] >> shift & 0x0f;
    }
}

/// Checks the arguments of the first two; by how much a code's nibbles are shifted.
fn shift(planes: &[u8], bits: u8, slot: usize, dim: usize) -> usize {
    assert!(slot < BLOCK, "slot {slot} of {BLOCK}");
    assert!(dim > 0 && dim.is_multiple_of(8), "{dim} coordinates");
    assert_eq!(planes.len(), usize::from(bits) * plane_bytes(dim), "planes of another dimension");
    slot / SUB * 4
}
