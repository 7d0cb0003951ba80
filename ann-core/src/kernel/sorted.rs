//! Merging a few integers into a sorted array of many, of which only the upper halves are compared.
//!
//! From the end of the array on, what is above the largest new value moves up by as many places as there are new
//! values, what is above the next by one place less, and so on; what is below all of them stays. Whole blocks move at
//! once, and of the block in which a value's place is found, the part that has to: no branch depends on the data but
//! the one that ends a run of blocks.
//!
//! AVX-512 puts up to eight into a short array without even that: it sorts them by counting those below each, finds the
//! place of each by halves, and spreads out blocks of eight, from the end on, around what comes in.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::Isa;

/// The merge, by one instruction set.
#[derive(Clone, Copy)]
pub struct Sorted {
    function: unsafe fn(&mut Vec<u64>, &mut [u64]) -> usize,
}

impl Sorted {
    /// By the widest vectors that this machine has.
    pub fn new() -> Sorted {
        let found = [Isa::Avx512, Isa::Avx2, Isa::Scalar].into_iter();
        found.filter_map(Sorted::with_isa).next().unwrap_or(Sorted { function: scalar })
    }

    /// By a given instruction set; `None` if this machine does not have it or it has no merge of its own.
    pub fn with_isa(isa: Isa) -> Option<Sorted> {
        let function: unsafe fn(&mut Vec<u64>, &mut [u64]) -> usize = match isa {
            Isa::Scalar => scalar,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if super::avx2::available() => avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if super::avx512::available() && is_x86_feature_detected!("popcnt") => {
                avx512
            }
            _ => return None,
        };
        Some(Sorted { function })
    }

    /// Sorts `coming`, puts each of it behind all `values` whose upper half is not larger, and returns the first of
    /// their places.
    #[inline(always)]
    pub fn merge(self, values: &mut Vec<u64>, coming: &mut [u64]) -> usize {
        // SAFETY: `with_isa` checked the instruction set.
        unsafe { (self.function)(values, coming) }
    }
}

impl Default for Sorted {
    fn default() -> Sorted {
        Sorted::new()
    }
}

fn scalar(values: &mut Vec<u64>, coming: &mut [u64]) -> usize {
    by_blocks::<4>(values, coming)
}

/// # Safety
/// The machine must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(values: &mut Vec<u64>, coming: &mut [u64]) -> usize {
    by_blocks::<4>(values, coming)
}

/// Values that AVX-512 handles at a time, and new ones up to which it does.
#[cfg(target_arch = "x86_64")]
const EIGHT: usize = 8;
/// Values up to which spreading out blocks takes less than looking for those that move as they are.
#[cfg(target_arch = "x86_64")]
const SHORT: usize = 128;

/// # Safety
/// The machine must have AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
unsafe fn avx512(values: &mut Vec<u64>, coming: &mut [u64]) -> usize {
    let (known, few) = (values.len(), coming.len());
    let all = known + few;
    if few == 0 || few > EIGHT || all > SHORT {
        return by_blocks::<EIGHT>(values, coming);
    }
    let sorted = sort_few(coming);
    // A bit for each place that a new value comes to.
    let (mut taken, mut first) = (0u128, 0);
    for (before, &value) in sorted[..few].iter().enumerate().rev() {
        first = place_of(values, value | u64::from(u32::MAX)) + before;
        taken |= 1 << first;
    }
    values.reserve(few + EIGHT);
    let (start, mut left) = (values.as_mut_ptr(), few);
    // SAFETY: an array of eight.
    let sorted = unsafe { _mm512_loadu_epi64(sorted.as_ptr().cast()) };
    for block in (first / EIGHT..all.div_ceil(EIGHT)).rev() {
        let to = block * EIGHT;
        let mask = (taken >> to) as u8;
        left -= mask.count_ones() as usize;
        // SAFETY: there is room for a whole block behind all values, and what is read beyond them is not kept. What is
        // read lies before what is written, so what is still to be read has not been overwritten.
        unsafe {
            let known = _mm512_loadu_epi64(start.add(to - left).cast());
            let known = _mm512_maskz_expand_epi64(!mask, known);
            let new = _mm512_maskz_compress_epi64((!0 << left) as u8, sorted);
            let both = _mm512_mask_expand_epi64(known, mask, new);
            _mm512_storeu_epi64(start.add(to).cast(), both);
        }
    }
    // SAFETY: there is room for it, and all of it has been written.
    unsafe { values.set_len(all) };
    first
}

/// A mask of the first `count` of eight.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn first_of(count: usize) -> u8 {
    ((1u32 << count.min(EIGHT)) - 1) as u8
}

/// How many of `values`, which are sorted, are not above `limit`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn place_of(values: &[u64], limit: u64) -> usize {
    let (mut from, mut left) = (0, values.len());
    while left > EIGHT {
        let half = left / 2;
        from = if values[from + half - 1] <= limit { from + half } else { from };
        left -= half;
    }
    // SAFETY: the mask leaves out what lies behind the values.
    let known =
        unsafe { _mm512_maskz_loadu_epi64(first_of(left), values.as_ptr().add(from).cast()) };
    let above = _mm512_cmpgt_epu64_mask(known, _mm512_set1_epi64(limit as i64));
    from + left - above.count_ones() as usize
}

/// Up to eight values in ascending order, found by counting those that come before each.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn sort_few(few: &[u64]) -> [u64; EIGHT] {
    let mut sorted = [u64::MAX; EIGHT];
    let behind = _mm512_set1_epi64(-1);
    // SAFETY: the mask leaves out what lies behind the values.
    let values =
        unsafe { _mm512_mask_loadu_epi64(behind, first_of(few.len()), few.as_ptr().cast()) };
    for (at, &value) in few.iter().enumerate() {
        let value_of_all = _mm512_set1_epi64(value as i64);
        let below = _mm512_cmplt_epu64_mask(values, value_of_all);
        let same = _mm512_cmpeq_epu64_mask(values, value_of_all) & first_of(at);
        sorted[(below | same).count_ones() as usize % EIGHT] = value;
    }
    sorted
}

#[inline(always)]
fn by_blocks<const W: usize>(values: &mut Vec<u64>, coming: &mut [u64]) -> usize {
    coming.sort_unstable();
    let end = values.len();
    values.resize(end + coming.len(), 0);
    blocks::<W>(values, end, coming)
}

#[inline(always)]
fn blocks<const W: usize>(values: &mut [u64], mut end: usize, coming: &[u64]) -> usize {
    for (before, &value) in coming.iter().enumerate().rev() {
        // The largest integer with the upper half of this one.
        let limit = value | u64::from(u32::MAX);
        let by = before + 1;
        while end >= W && values[end - W] > limit {
            values.copy_within(end - W..end, end - W + by);
            end -= W;
        }
        if let Some(block) = last_block::<W>(values, end) {
            let moved = &mut values[end - W + by..][..W];
            let mut above = 0;
            for (moved, known) in moved.iter_mut().zip(block) {
                *moved = if known > limit { known } else { *moved };
                above += usize::from(known > limit);
            }
            end -= above;
        } else {
            while end > 0 && values[end - 1] > limit {
                values[end - 1 + by] = values[end - 1];
                end -= 1;
            }
        }
        values[end + before] = value;
    }
    end
}

/// The last `W` values before `end`.
#[inline(always)]
fn last_block<const W: usize>(values: &[u64], end: usize) -> Option<[u64; W]> {
    values[..end].last_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_one_by_one(
            mut known in prop::collection::vec((0u64..40, any::<u32>()), 0..160),
            coming in prop_oneof![
                prop::collection::vec((0u64..40, any::<u32>()), 0..9),
                prop::collection::vec((0u64..40, 0u32..3), 0..40),
            ],
        ) {
            let joined = |list: &[(u64, u32)]| -> Vec<u64> {
                list.iter().map(|&(upper, lower)| upper << 32 | u64::from(lower)).collect()
            };
            known.sort_by_key(|known| known.0);
            let (known, given) = (joined(&known), joined(&coming));
            let mut coming = given.clone();
            coming.sort_unstable();
            let mut all = known.clone();
            let mut first = all.len();
            for (at, &value) in coming.iter().enumerate() {
                let place =
                    all.iter().position(|known| known >> 32 > value >> 32).unwrap_or(all.len());
                all.insert(place, value);
                first = if at == 0 { place } else { first };
            }
            for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512] {
                if let Some(sorted) = Sorted::with_isa(isa) {
                    let (mut values, mut given) = (known.clone(), given.clone());
                    prop_assert_eq!(sorted.merge(&mut values, &mut given), first);
                    prop_assert_eq!(&values, &all);
                }
            }
        }
    }
}
