//! Turning a query's tables into bytes: the least entry of each table, and what each entry is above it.
//!
//! Compilers take such short rows apart; so the wide ones are written out. All give the same bits as the plain loops.

use super::SUB;

/// Adding this rounds, and leaves the number in the low bits.
const WHOLE: f32 = (1u32 << 23) as f32;

/// Makes `least` the least entry of each table. Returns how far the others reach above, at most.
pub(super) fn least(entries: &[[f32; SUB]], least: &mut [f32]) -> f32 {
    let mut reach = [0f32; SUB];
    #[cfg(target_arch = "x86_64")]
    {
        if crate::kernel::avx512::available() {
            // SAFETY: just checked.
            unsafe { avx512::least(entries, least, &mut reach) };
            return most(&reach);
        }
        if crate::kernel::avx2::available() {
            // SAFETY: just checked.
            unsafe { avx2::least(entries, least, &mut reach) };
            return most(&reach);
        }
    }
    plain::least(entries, least, &mut reach);
    most(&reach)
}

/// Makes `out` what entries are above the least of their table, times `scale`, rounded to a byte.
pub(super) fn bytes(entries: &[[f32; SUB]], least: &[f32], scale: f32, out: &mut [[u8; SUB]]) {
    #[cfg(target_arch = "x86_64")]
    {
        if crate::kernel::avx512::available() {
            // SAFETY: just checked.
            return unsafe { avx512::bytes(entries, least, scale, out) };
        }
        if crate::kernel::avx2::available() {
            // SAFETY: just checked.
            return unsafe { avx2::bytes(entries, least, scale, out) };
        }
    }
    plain::bytes(entries, least, scale, out);
}

fn most(reach: &[f32; SUB]) -> f32 {
    reach.iter().fold(0.0, |a, &b| if b > a { b } else { a })
}

/// The lesser; where one is not a number, the second.
fn lesser(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

mod plain {
    use super::{SUB, WHOLE, lesser};

    pub fn least(entries: &[[f32; SUB]], least: &mut [f32], reach: &mut [f32; SUB]) {
        for (least, table) in least.iter_mut().zip(entries) {
            let mut lanes = *table;
            for half in [8, 4, 2, 1] {
                for i in 0..half {
                    lanes[i] = lesser(lanes[i + half], lanes[i]);
                }
            }
            *least = lanes[0];
            for (reach, entry) in reach.iter_mut().zip(table) {
                let above = entry - lanes[0];
                *reach = if above > *reach { above } else { *reach };
            }
        }
    }

    pub fn bytes(entries: &[[f32; SUB]], least: &[f32], scale: f32, out: &mut [[u8; SUB]]) {
        for ((out, table), least) in out.iter_mut().zip(entries).zip(least) {
            for (out, entry) in out.iter_mut().zip(table) {
                *out = ((entry - least) * scale + WHOLE).to_bits() as u8;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{SUB, WHOLE};

    /// # Safety
    /// The machine must have AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub unsafe fn least(entries: &[[f32; SUB]], least: &mut [f32], reach: &mut [f32; SUB]) {
        let mut most = _mm512_setzero_ps();
        for (least, table) in least.iter_mut().zip(entries) {
            // SAFETY: a table is as long as the vector.
            let table = unsafe { _mm512_loadu_ps(table.as_ptr()) };
            let upper = _mm512_shuffle_f32x4::<0b11_10>(table, table);
            let lanes = _mm256_min_ps(_mm512_castps512_ps256(upper), _mm512_castps512_ps256(table));
            let lanes =
                _mm_min_ps(_mm256_extractf128_ps::<1>(lanes), _mm256_castps256_ps128(lanes));
            let lanes = _mm_min_ps(_mm_movehl_ps(lanes, lanes), lanes);
            let lanes = _mm_min_ss(_mm_movehdup_ps(lanes), lanes);
            *least = _mm_cvtss_f32(lanes);
            let above = _mm512_sub_ps(table, _mm512_broadcastss_ps(lanes));
            most = _mm512_max_ps(above, most);
        }
        // SAFETY: as long as the vector.
        unsafe { _mm512_storeu_ps(reach.as_mut_ptr(), most) };
    }

    /// # Safety
    /// The machine must have AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub unsafe fn bytes(entries: &[[f32; SUB]], least: &[f32], scale: f32, out: &mut [[u8; SUB]]) {
        let (scale, whole) = (_mm512_set1_ps(scale), _mm512_set1_ps(WHOLE));
        for ((out, table), &least) in out.iter_mut().zip(entries).zip(least) {
            // SAFETY: a table is as long as the vector.
            let table = unsafe { _mm512_loadu_ps(table.as_ptr()) };
            let above = _mm512_sub_ps(table, _mm512_set1_ps(least));
            // Not one fused operation: it would round otherwise than the others.
            let sums = _mm512_add_ps(_mm512_mul_ps(above, scale), whole);
            let low = _mm512_cvtepi32_epi8(_mm512_castps_si512(sums));
            // SAFETY: 16 bytes, as many as there are in a table's.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), low) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{SUB, WHOLE};

    /// # Safety
    /// The machine must have AVX2.
    #[target_feature(enable = "avx2")]
    pub unsafe fn least(entries: &[[f32; SUB]], least: &mut [f32], reach: &mut [f32; SUB]) {
        let mut most = [_mm256_setzero_ps(); 2];
        for (least, table) in least.iter_mut().zip(entries) {
            // SAFETY: a table is as long as two vectors.
            let [low, high] = unsafe {
                [_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))]
            };
            let lanes = _mm256_min_ps(high, low);
            let lanes =
                _mm_min_ps(_mm256_extractf128_ps::<1>(lanes), _mm256_castps256_ps128(lanes));
            let lanes = _mm_min_ps(_mm_movehl_ps(lanes, lanes), lanes);
            let lanes = _mm_min_ss(_mm_movehdup_ps(lanes), lanes);
            *least = _mm_cvtss_f32(lanes);
            let by = _mm256_broadcastss_ps(lanes);
            most[0] = _mm256_max_ps(_mm256_sub_ps(low, by), most[0]);
            most[1] = _mm256_max_ps(_mm256_sub_ps(high, by), most[1]);
        }
        // SAFETY: as long as two vectors.
        unsafe {
            _mm256_storeu_ps(reach.as_mut_ptr(), most[0]);
            _mm256_storeu_ps(reach.as_mut_ptr().add(8), most[1]);
        }
    }

    /// # Safety
    /// The machine must have AVX2.
    #[target_feature(enable = "avx2")]
    pub unsafe fn bytes(entries: &[[f32; SUB]], least: &[f32], scale: f32, out: &mut [[u8; SUB]]) {
        let (scale, whole) = (_mm256_set1_ps(scale), _mm256_set1_ps(WHOLE));
        let low_byte = _mm256_set1_epi32(0xff);
        for ((out, table), &least) in out.iter_mut().zip(entries).zip(least) {
            // SAFETY: a table is as long as two vectors.
            let halves = unsafe {
                [_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))]
            };
            let [low, high] = halves.map(|half| {
                let above = _mm256_sub_ps(half, _mm256_set1_ps(least));
                let sums = _mm256_add_ps(_mm256_mul_ps(above, scale), whole);
                _mm256_and_si256(_mm256_castps_si256(sums), low_byte)
            });
            // Packing goes by halves of vectors: 0 to 3 and 8 to 11 lie in the first, the others in the second.
            let words = _mm256_packus_epi32(low, high);
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let packed = _mm_packus_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            // SAFETY: 16 bytes, as many as there are in a table's.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), packed) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::mix;

    type Least = unsafe fn(&[[f32; SUB]], &mut [f32], &mut [f32; SUB]);
    type Bytes = unsafe fn(&[[f32; SUB]], &[f32], f32, &mut [[u8; SUB]]);

    /// Also of what is not a number, or has no end.
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let mut others: Vec<(Least, Bytes)> = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if crate::kernel::avx512::available() {
                others.push((avx512::least, avx512::bytes));
            }
            if crate::kernel::avx2::available() {
                others.push((avx2::least, avx2::bytes));
            }
        }
        for seed in 0..200u64 {
            let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e38, -1e38];
            let value = |at: u64| match mix(seed << 20 | at) {
                bits if seed % 4 == 3 && bits % 5 == 0 => odd[(bits >> 32) as usize % odd.len()],
                bits => (bits >> 40) as f32 / (1u64 << 22) as f32 - 2.0,
            };
            let tables: Vec<[f32; SUB]> = (0..seed % 40)
                .map(|table| std::array::from_fn(|at| value(table * 16 + at as u64)))
                .collect();
            let run = |(least, bytes): (Least, Bytes)| {
                let (mut lowest, mut reach) = (vec![9.0; tables.len()], [0.0; SUB]);
                let mut out = vec![[7; SUB]; tables.len()];
                // SAFETY: only those that this machine has.
                unsafe {
                    least(&tables, &mut lowest, &mut reach);
                    bytes(&tables, &lowest, 50.0 / most(&reach), &mut out);
                }
                let bits = |values: &[f32]| -> Vec<u32> {
                    values.iter().map(|value| value.to_bits()).collect()
                };
                // The bits of what is not a number are anyone's, and it has no byte.
                let sound = |value: f32| if value.is_nan() { 0.0 } else { value };
                let kept = match tables.iter().flatten().all(|entry| entry.is_finite()) {
                    true => out,
                    false => Vec::new(),
                };
                (bits(&lowest.into_iter().map(sound).collect::<Vec<_>>()), bits(&reach), kept)
            };
            let right = run((plain::least, plain::bytes));
            for other in &others {
                assert_eq!(run(*other), right, "{tables:?}");
            }
        }
    }
}
