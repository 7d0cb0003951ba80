//! FastScan with AVX2: two sub-quantizers a vector.

use std::arch::x86_64::*;

use super::{Addends, BLOCK, Block, FULL, Functions, Halves, Line, Sums, Terms, functions};

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

    /// The sums of 16 codes, eight a vector.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn sums(self) -> [__m256i; 2] {
        let even = _mm256_sub_epi16(self.pairs, _mm256_slli_epi16::<8>(self.odd));
        // The two sub-quantizers of a vector together: even codes in one half, odd codes in the other.
        let both = _mm256_add_epi16(
            _mm256_permute2x128_si256::<0x20>(even, self.odd),
            _mm256_permute2x128_si256::<0x31>(even, self.odd),
        );
        let (even, odd) = (_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
        [
            _mm256_cvtepu16_epi32(_mm_unpacklo_epi16(even, odd)),
            _mm256_cvtepu16_epi32(_mm_unpackhi_epi16(even, odd)),
        ]
    }
}

/// The sums of a piece of a plane, at most [`FULL`] bytes.
///
/// # Safety
/// `plane` and `tables` are good for `bytes`, a multiple of 32.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn piece(plane: *const u8, tables: *const u8, bytes: usize) -> [__m256i; 4] {
    let nibbles = _mm256_set1_epi8(15);
    let zero = Nibble { pairs: _mm256_setzero_si256(), odd: _mm256_setzero_si256() };
    let (mut low, mut high) = (zero, zero);
    for at in (0..bytes).step_by(32) {
        // SAFETY: the caller's.
        let (codes, tables) = unsafe {
            (_mm256_loadu_si256(plane.add(at).cast()), _mm256_loadu_si256(tables.add(at).cast()))
        };
        low.add(_mm256_shuffle_epi8(tables, _mm256_and_si256(codes, nibbles)));
        let codes = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibbles);
        high.add(_mm256_shuffle_epi8(tables, codes));
    }
    let ([a, b], [c, d]) = (low.sums(), high.sums());
    [a, b, c, d]
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
        let mut sums = self.0.map(|sum| _mm256_add_epi32(sum, sum));
        for (plane, tables) in plane.chunks(FULL).zip(tables.chunks(FULL)) {
            // SAFETY: the caller's.
            let more = unsafe { piece(plane.as_ptr(), tables.as_ptr(), plane.len()) };
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum = _mm256_add_epi32(*sum, more);
            }
        }
        Codes(sums)
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
    unsafe fn distances(self, addends: &Addends, line: Line, out: &mut [f32; BLOCK]) -> u32 {
        let mut below = 0;
        for (i, sums) in self.0.into_iter().enumerate() {
            let at = 8 * i;
            // SAFETY: number `at` and the 7 behind it are within the array.
            let addends = unsafe { _mm256_loadu_ps(addends.as_ptr().cast::<f32>().add(at)) };
            let scaled = _mm256_mul_ps(_mm256_set1_ps(line.delta), _mm256_cvtepi32_ps(sums));
            let from = _mm256_add_ps(_mm256_set1_ps(line.base), addends);
            let distances = _mm256_add_ps(from, scaled);
            let less = _mm256_cmp_ps::<_CMP_LT_OQ>(distances, _mm256_set1_ps(line.bound));
            below |= (_mm256_movemask_ps(less) as u32) << at;
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(at), distances) };
        }
        below
    }
}
