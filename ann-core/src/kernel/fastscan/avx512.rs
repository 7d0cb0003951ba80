//! FastScan with AVX-512: four sub-quantizers a vector, whose 64 bytes of codes meet 64 bytes of tables.

use std::arch::x86_64::*;

use super::{
    Addends, BLOCK, Block, FULL, Factors, Functions, Halves, Line, NO_ADDENDS, Sums, Terms,
    functions,
};

functions!(Codes, "avx512f,avx512bw,avx512vl");

/// Codes 0 to 15, and 16 to 31.
#[derive(Clone, Copy)]
struct Codes([__m512i; 2]);

/// Running 16-bit sums of one nibble of the bytes: of whole pairs of lookups, high byte and all, wrapping; and of the
/// pairs' high bytes. What the second has can be taken from the first in the end, so that low bytes need no masking.
#[derive(Clone, Copy)]
struct Nibble {
    pairs: __m512i,
    odd: __m512i,
}

impl Nibble {
    #[inline]
    #[target_feature(enable = "avx512bw")]
    fn add(&mut self, lookups: __m512i) {
        self.pairs = _mm512_add_epi16(self.pairs, lookups);
        self.odd = _mm512_add_epi16(self.odd, _mm512_srli_epi16::<8>(lookups));
    }

    /// The sums of even codes, and those of odd ones.
    #[inline]
    #[target_feature(enable = "avx512bw")]
    fn parts(self) -> (__m512i, __m512i) {
        (_mm512_sub_epi16(self.pairs, _mm512_slli_epi16::<8>(self.odd)), self.odd)
    }
}

/// The sums of a piece of a plane, at most [`FULL`] bytes, of 32 codes. `GROUP` entries of one place in the tables, a
/// vector apart, add up to 255 at most: so many lookups are added as bytes.
///
/// # Safety
/// `plane` and `tables` are good for `bytes`, a multiple of 32, and `tables` to the end of its last 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn piece<const GROUP: usize>(plane: *const u8, tables: *const u8, bytes: usize) -> __m512i {
    let nibbles = _mm512_set1_epi8(15);
    let zero = Nibble { pairs: _mm512_setzero_si512(), odd: _mm512_setzero_si512() };
    let (mut low, mut high) = (zero, zero);
    let look_up = |at: usize| {
        // SAFETY: the caller's; `at` is below `bytes`, and where it is the last the codes are half a vector. Tables
        // past the end are zeros.
        let (codes, tables) = unsafe {
            let codes = match at + 64 <= bytes {
                true => _mm512_loadu_si512(plane.add(at).cast()),
                false => _mm512_maskz_loadu_epi64(0x0f, plane.add(at).cast()),
            };
            (codes, _mm512_loadu_si512(tables.add(at).cast()))
        };
        let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), nibbles);
        let lower = _mm512_shuffle_epi8(tables, _mm512_and_si512(codes, nibbles));
        (lower, _mm512_shuffle_epi8(tables, upper))
    };
    let mut at = 0;
    while at + 64 * GROUP <= bytes {
        let (mut lower, mut upper) = look_up(at);
        for step in 1..GROUP {
            let more = look_up(at + 64 * step);
            lower = _mm512_add_epi8(lower, more.0);
            upper = _mm512_add_epi8(upper, more.1);
        }
        low.add(lower);
        high.add(upper);
        at += 64 * GROUP;
    }
    // What is left are fewer than `GROUP` vectors.
    if at < bytes {
        let (mut lower, mut upper) = look_up(at);
        at += 64;
        while at < bytes {
            let more = look_up(at);
            lower = _mm512_add_epi8(lower, more.0);
            upper = _mm512_add_epi8(upper, more.1);
            at += 64;
        }
        low.add(lower);
        high.add(upper);
    }
    // Blocks of eight lanes: 0 + 2 and 1 + 3 of two vectors in one, then one block each of four vectors.
    let halves = |a, b| {
        _mm512_add_epi16(_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b))
    };
    let ((a, b), (c, d)) = (low.parts(), high.parts());
    let (ab, cd) = (halves(a, b), halves(c, d));
    let sums = _mm512_add_epi16(
        _mm512_shuffle_i32x4::<0x88>(ab, cd),
        _mm512_shuffle_i32x4::<0xdd>(ab, cd),
    );
    // Even and odd codes by turns.
    let turns = _mm512_set_epi16(
        31, 23, 30, 22, 29, 21, 28, 20, 27, 19, 26, 18, 25, 17, 24, 16, 15, 7, 14, 6, 13, 5, 12, 4,
        11, 3, 10, 2, 9, 1, 8, 0,
    );
    _mm512_permutexvar_epi16(turns, sums)
}

impl Codes {
    /// From 32 sums in a vector.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn of(sums: __m512i) -> Codes {
        Codes([
            _mm512_cvtepu16_epi32(_mm512_castsi512_si256(sums)),
            _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(sums)),
        ])
    }

    /// Twice these plus the sums of a plane.
    ///
    /// # Safety
    /// As for [`Sums::then`], and as for [`piece`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn plus<const GROUP: usize>(self, plane: &[u8], tables: &[u8]) -> Codes {
        let mut sums = self.0.map(|sum| _mm512_add_epi32(sum, sum));
        for (plane, tables) in plane.chunks(FULL).zip(tables.chunks(FULL)) {
            // SAFETY: the caller's; pieces but the last are whole cache lines.
            let more = unsafe { piece::<GROUP>(plane.as_ptr(), tables.as_ptr(), plane.len()) };
            for (sum, more) in sums.iter_mut().zip(Codes::of(more).0) {
                *sum = _mm512_add_epi32(*sum, more);
            }
        }
        Codes(sums)
    }
}

impl Sums for Codes {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn zero() -> Codes {
        Codes([_mm512_setzero_si512(); 2])
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn then(self, plane: &[u8], tables: &[u8]) -> Codes {
        // SAFETY: the caller's.
        unsafe { self.plus::<1>(plane, tables) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn then_few(self, plane: &[u8], tables: &[u8]) -> Codes {
        // SAFETY: the caller's; four entries are 4 * 63 at most.
        unsafe { self.plus::<4>(plane, tables) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(self, out: &mut [u32; BLOCK]) {
        for (sums, out) in self.0.into_iter().zip(out.as_chunks_mut::<16>().0) {
            // SAFETY: sixteen integers are as large as the vector.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sums) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn estimates(
        self,
        add: &Halves,
        mul: &Halves,
        terms: Terms,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        let mut below = 0;
        for (i, sums) in self.0.into_iter().enumerate() {
            let at = 16 * i;
            // SAFETY: `at` and the 15 behind it are within each array.
            let (add, mul) = unsafe {
                (
                    _mm256_loadu_si256(add.as_ptr().add(at).cast()),
                    _mm256_loadu_si256(mul.as_ptr().add(at).cast()),
                )
            };
            let add = _mm512_mul_ps(_mm512_set1_ps(terms.scale), _mm512_cvtph_ps(add));
            let mul = _mm512_cvtph_ps(mul);
            let scaled = _mm512_mul_ps(_mm512_set1_ps(terms.delta), _mm512_cvtepi32_ps(sums));
            let dots = _mm512_add_ps(scaled, _mm512_set1_ps(terms.offset));
            let from = _mm512_add_ps(_mm512_set1_ps(terms.base), add);
            let estimates = _mm512_add_ps(from, _mm512_mul_ps(mul, dots));
            let bound = _mm512_set1_ps(terms.bound);
            below |= u32::from(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(estimates, bound)) << at;
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(at), estimates) };
        }
        below
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scaled(
        self,
        factors: Factors<'_>,
        line: Line,
        offset: f32,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        let mut below = 0;
        for (i, sums) in self.0.into_iter().enumerate() {
            let at = 16 * i;
            // SAFETY: number `at` and the 15 behind it are within each array.
            let (add, mul) = unsafe {
                (
                    _mm512_loadu_ps(factors.add.as_ptr().cast::<f32>().add(at)),
                    _mm512_loadu_ps(factors.mul.as_ptr().cast::<f32>().add(at)),
                )
            };
            let scaled = _mm512_mul_ps(_mm512_set1_ps(line.delta), _mm512_cvtepi32_ps(sums));
            let dots = _mm512_add_ps(scaled, _mm512_set1_ps(offset));
            let from = _mm512_add_ps(_mm512_set1_ps(line.base), add);
            let distances = _mm512_add_ps(from, _mm512_mul_ps(mul, dots));
            let bound = _mm512_set1_ps(line.bound);
            below |= u32::from(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(distances, bound)) << at;
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(at), distances) };
        }
        below
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn distances(
        codes: &[u8],
        tables: &[u8],
        addends: Option<&Addends>,
        line: Line,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        // SAFETY: the caller's; four entries are 4 * 63 at most, and 256 of them fit 15 bits.
        let sums = unsafe {
            if codes.len() > FULL {
                Codes::zero().plus::<4>(codes, tables)
            } else {
                let sums = piece::<4>(codes.as_ptr(), tables.as_ptr(), codes.len());
                if addends.is_none() {
                    let limit = _mm512_set1_epi16(line.limit());
                    if _mm512_cmpgt_epi16_mask(limit, sums) == 0 {
                        return 0;
                    }
                }
                Codes::of(sums)
            }
        };
        let addends = addends.unwrap_or(&NO_ADDENDS);
        let mut below = 0;
        for (i, sums) in sums.0.into_iter().enumerate() {
            let at = 16 * i;
            // SAFETY: number `at` and the 15 behind it are within the array.
            let addends = unsafe { _mm512_loadu_ps(addends.as_ptr().cast::<f32>().add(at)) };
            let scaled = _mm512_mul_ps(_mm512_set1_ps(line.delta), _mm512_cvtepi32_ps(sums));
            let from = _mm512_add_ps(_mm512_set1_ps(line.base), addends);
            let distances = _mm512_add_ps(from, scaled);
            let bound = _mm512_set1_ps(line.bound);
            below |= u32::from(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(distances, bound)) << at;
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(at), distances) };
        }
        below
    }
}
