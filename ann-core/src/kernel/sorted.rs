//! Merging a few integers into a sorted array of many, of which only the upper halves are compared.
//!
//! From the end of the array on, what is above the largest new value moves up by as many places as there are new
//! values, what is above the next by one place less, and so on; what is below all of them stays. Whole blocks move at
//! once, and of the block in which a value's place is found, the part that has to: no branch depends on the data but
//! the one that ends a run of blocks.

use super::Isa;

/// The merge, by one instruction set.
#[derive(Clone, Copy)]
pub struct Sorted {
    function: unsafe fn(&mut [u64], usize, &[u64]) -> usize,
}

impl Sorted {
    /// By the widest vectors that this machine has.
    pub fn new() -> Sorted {
        let found = [Isa::Avx512, Isa::Avx2, Isa::Scalar].into_iter();
        found.filter_map(Sorted::with_isa).next().unwrap_or(Sorted { function: scalar })
    }

    /// By a given instruction set; `None` if this machine does not have it or it has no merge of its own.
    pub fn with_isa(isa: Isa) -> Option<Sorted> {
        let function: unsafe fn(&mut [u64], usize, &[u64]) -> usize = match isa {
            Isa::Scalar => scalar,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if super::avx2::available() => avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if super::avx512::available() => avx512,
            _ => return None,
        };
        Some(Sorted { function })
    }

    /// Puts each of `coming`, which is sorted, behind all `values` whose upper half is not larger, and returns the
    /// first of their places.
    #[inline(always)]
    pub fn merge(self, values: &mut Vec<u64>, coming: &[u64]) -> usize {
        let end = values.len();
        values.resize(end + coming.len(), 0);
        // SAFETY: `with_isa` checked the instruction set.
        unsafe { (self.function)(values, end, coming) }
    }
}

impl Default for Sorted {
    fn default() -> Sorted {
        Sorted::new()
    }
}

fn scalar(values: &mut [u64], end: usize, coming: &[u64]) -> usize {
    blocks::<4>(values, end, coming)
}

/// # Safety
/// The machine must have AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn avx512(values: &mut [u64], end: usize, coming: &[u64]) -> usize {
    blocks::<8>(values, end, coming)
}

/// # Safety
/// The machine must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(values: &mut [u64], end: usize, coming: &[u64]) -> usize {
    blocks::<4>(values, end, coming)
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
            mut known in prop::collection::vec((0u64..40, any::<u32>()), 0..100),
            mut coming in prop::collection::vec((0u64..40, any::<u32>()), 0..40),
        ) {
            let sorted = |list: &mut Vec<(u64, u32)>| -> Vec<u64> {
                list.sort_by_key(|known| known.0);
                list.iter().map(|&(upper, lower)| upper << 32 | u64::from(lower)).collect()
            };
            let (known, coming) = (sorted(&mut known), sorted(&mut coming));
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
                    let mut values = known.clone();
                    prop_assert_eq!(sorted.merge(&mut values, &coming), first);
                    prop_assert_eq!(&values, &all);
                }
            }
        }
    }
}
