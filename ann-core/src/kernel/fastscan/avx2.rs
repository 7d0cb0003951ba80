//! FastScan with AVX2: two sub-quantizers a vector.

use std::arch::x86_64::*;

use super::{
    Addends, BLOCK, Block, FULL, Factors, Functions, Halves, Line, Sums, Terms, functions,
};

functions!(Codes, "avx2,f16c");

/// Eight codes a vector.
#[derive(Clone, Copy)]
struct Codes([__m256i; 4]);

/// Running 16-bit sums of one nibble of the bytes: of whole pairs of lookups, high byte and all, wrapping; and of the
/// pairs' high bytes. What the second has can be taken from the first in the end, so that low bytes need no masking.
#[derive(Clone, Copy)]
struct Nibble {
    pairs: __m256i,
    odd: __m256i,
}

impl Nibble {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn add(&mut self, lookups: __m256i) {
        self.pairs = _mm256_add_epi16(self.pairs, lookups);
        self.odd = _mm256_add_epi16(self.odd, _mm256_srli_epi16::<8>(lookups));
    }

    /// The sums of 16 codes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn sums(self) -> __m256i {
        let even = _mm256_sub_epi16(self.pairs, _mm256_slli_epi16::<8>(self.odd));
        // The two sub-quantizers of a vector together: even codes in one half, odd codes in the other.
        let both = _mm256_add_epi16(
            _mm256_permute2x128_si256::<0x20>(even, self.odd),
            _mm256_permute2x128_si256::<0x31>(even, self.odd),
        );
        let (even, odd) = (_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
        _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd))
    }
}

/// The sums of a piece of a plane, at most [`FULL`] bytes, of 16 codes a vector. `GROUP` entries of one place in the
/// tables, a vector apart, add up to 255 at most: so many lookups are added as bytes.
///
/// # Safety
/// `plane` and `tables` are good for `bytes`, a multiple of 32.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn piece<const GROUP: usize>(
    plane: *const u8,
    tables: *const u8,
    bytes: usize,
) -> [__m256i; 2] {
    let nibbles = _mm256_set1_epi8(15);
    let zero = Nibble { pairs: _mm256_setzero_si256(), odd: _mm256_setzero_si256() };
    let (mut low, mut high) = (zero, zero);
    let look_up = |at: usize| {
        // SAFETY: the caller's; `at` is below `bytes` and a multiple of 32.
        let (codes, tables) = unsafe {
            (_mm256_loadu_si256(plane.add(at).cast()), _mm256_loadu_si256(tables.add(at).cast()))
        };
        let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibbles);
        let lower = _mm256_shuffle_epi8(tables, _mm256_and_si256(codes, nibbles));
        (lower, _mm256_shuffle_epi8(tables, upper))
    };
    let mut at = 0;
    while at + 32 * GROUP <= bytes {
        let (mut lower, mut upper) = look_up(at);
        for step in 1..GROUP {
            let more = look_up(at + 32 * step);
            lower = _mm256_add_epi8(lower, more.0);
            upper = _mm256_add_epi8(upper, more.1);
        }
        low.add(lower);
        high.add(upper);
        at += 32 * GROUP;
    }
    while at < bytes {
        let (lower, upper) = look_up(at);
        low.add(lower);
        high.add(upper);
        at += 32;
    }
    [low.sums(), high.sums()]
}

impl Codes {
    /// From 16 sums a vector.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn of([low, high]: [__m256i; 2]) -> Codes {
        Codes([
            _mm256_cvtepu16_epi32(_mm256_castsi256_si128(low)),
            _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(low)),
            _mm256_cvtepu16_epi32(_mm256_castsi256_si128(high)),
            _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(high)),
        ])
    }

    /// Twice these plus the sums of a plane.
    ///
    /// # Safety
    /// As for [`Sums::then`], and as for [`piece`].
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn plus<const GROUP: usize>(self, plane: &[u8], tables: &[u8]) -> Codes {
        let mut sums = self.0.map(|sum| _mm256_add_epi32(sum, sum));
        for (plane, tables) in plane.chunks(FULL).zip(tables.chunks(FULL)) {
            // SAFETY: the caller's.
            let more = unsafe { piece::<GROUP>(plane.as_ptr(), tables.as_ptr(), plane.len()) };
            for (sum, more) in sums.iter_mut().zip(Codes::of(more).0) {
                *sum = _mm256_add_epi32(*sum, more);
            }
        }
        Codes(sums)
    }
}

impl Sums for Codes {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn zero() -> Codes {
        Codes([_mm256_setzero_si256(); 4])
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn then(self, plane: &[u8], tables: &[u8]) -> Codes {
        // SAFETY: the caller's.
        unsafe { self.plus::<1>(plane, tables) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn then_few(self, plane: &[u8], tables: &[u8]) -> Codes {
        // SAFETY: the caller's; four entries are 4 * 63 at most.
        unsafe { self.plus::<4>(plane, tables) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn store(self, out: &mut [u32; BLOCK]) {
        for (sums, out) in self.0.into_iter().zip(out.as_chunks_mut::<8>().0) {
            // SAFETY: eight integers are as large as the vector.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn estimates(
        self,
        add: &Halves,
        mul: &Halves,
        terms: Terms,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        let mut below = 0;
        for (i, sums) in self.0.into_iter().enumerate() {
            let at = 8 * i;
            // SAFETY: `at` and the 7 behind it are within each array.
            let (add, mul) = unsafe {
                (
                    _mm_loadu_si128(add.as_ptr().add(at).cast()),
                    _mm_loadu_si128(mul.as_ptr().add(at).cast()),
                )
            };
            let add = _mm256_mul_ps(_mm256_set1_ps(terms.scale), _mm256_cvtph_ps(add));
            let mul = _mm256_cvtph_ps(mul);
            let scaled = _mm256_mul_ps(_mm256_set1_ps(terms.delta), _mm256_cvtepi32_ps(sums));
            let dots = _mm256_add_ps(scaled, _mm256_set1_ps(terms.offset));
            let from = _mm256_add_ps(_mm256_set1_ps(terms.base), add);
            let estimates = _mm256_add_ps(from, _mm256_mul_ps(mul, dots));
            let less = _mm256_cmp_ps::<_CMP_LT_OQ>(estimates, _mm256_set1_ps(terms.bound));
            below |= (_mm256_movemask_ps(less) as u32) << at;
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(at), estimates) };
        }
        below
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scaled(
        self,
        factors: Factors<'_>,
        line: Line,
        offset: f32,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        let mut below = 0;
        for (i, sums) in self.0.into_iter().enumerate() {
            let at = 8 * i;
            // SAFETY: number `at` and the 7 behind it are within each array.
            let (add, mul) = unsafe {
                (
                    _mm256_loadu_ps(factors.add.as_ptr().cast::<f32>().add(at)),
                    _mm256_loadu_ps(factors.mul.as_ptr().cast::<f32>().add(at)),
                )
            };
            let scaled = _mm256_mul_ps(_mm256_set1_ps(line.delta), _mm256_cvtepi32_ps(sums));
            let dots = _mm256_add_ps(scaled, _mm256_set1_ps(offset));
            let from = _mm256_add_ps(_mm256_set1_ps(line.base), add);
            let distances = _mm256_add_ps(from, _mm256_mul_ps(mul, dots));
            let less = _mm256_cmp_ps::<_CMP_LT_OQ>(distances, _mm256_set1_ps(line.bound));
            below |= (_mm256_movemask_ps(less) as u32) << at;
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(at), distances) };
        }
        below
    }

    #[inline]
    #[target_feature(enable = "avx2")]
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
                let halves = piece::<4>(codes.as_ptr(), tables.as_ptr(), codes.len());
                if addends.is_none() {
                    let limit = _mm256_set1_epi16(line.limit());
                    let below = halves.map(|sums| _mm256_cmpgt_epi16(limit, sums));
                    let any = _mm256_or_si256(below[0], below[1]);
                    if _mm256_testz_si256(any, any) == 1 {
                        return 0;
                    }
                }
                Codes::of(halves)
            }
        };
        let mut below = 0;
        for (i, sums) in sums.0.into_iter().enumerate() {
            let at = 8 * i;
            let scaled = _mm256_mul_ps(_mm256_set1_ps(line.delta), _mm256_cvtepi32_ps(sums));
            let mut from = _mm256_set1_ps(line.base);
            if let Some(addends) = addends {
                // SAFETY: number `at` and the 7 behind it are within the array.
                let addends = unsafe { _mm256_loadu_ps(addends.as_ptr().cast::<f32>().add(at)) };
                from = _mm256_add_ps(from, addends);
            }
            let distances = _mm256_add_ps(from, scaled);
            let less = _mm256_cmp_ps::<_CMP_LT_OQ>(distances, _mm256_set1_ps(line.bound));
            below |= (_mm256_movemask_ps(less) as u32) << at;
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(at), distances) };
        }
        below
    }
}
