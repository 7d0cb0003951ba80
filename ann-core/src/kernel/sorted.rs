//! Insertion into a sorted array of integers, of which only the upper halves are compared.
//!
//! What a place holds afterwards depends on it and the place before it only: itself if it is not above the new
//! value, else the one before it, or the new value if that is not above it. So places are done some at a time, from the
//! end to where nothing changes any more, without a search and without a branch that depends on the data but the last.
//! In long arrays a search and one move are faster.

use super::Isa;

/// The insertion, by one instruction set.
#[derive(Clone, Copy)]
pub struct Sorted {
    function: unsafe fn(&mut [u64], u64) -> usize,
}

impl Sorted {
    /// By the widest vectors that this machine has.
    pub fn new() -> Sorted {
        let found = [Isa::Avx512, Isa::Avx2, Isa::Scalar].into_iter();
        found.filter_map(Sorted::with_isa).next().unwrap_or(Sorted { function: scalar })
    }

    /// By a given instruction set; `None` if this machine does not have it or it has no insertion of its own.
    pub fn with_isa(isa: Isa) -> Option<Sorted> {
        let function: unsafe fn(&mut [u64], u64) -> usize = match isa {
            Isa::Scalar => scalar,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if super::avx2::available() => avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if super::avx512::available() => avx512,
            _ => return None,
        };
        Some(Sorted { function })
    }

    /// Puts `value` behind all `values` whose upper half is not larger, and drops the last of them. Returns its place;
    /// that is behind the end if it is itself what is dropped.
    #[inline(always)]
    pub fn insert(self, values: &mut [u64], value: u64) -> usize {
        // SAFETY: `with_isa` checked the instruction set.
        unsafe { (self.function)(values, value) }
    }
}

impl Default for Sorted {
    fn default() -> Sorted {
        Sorted::new()
    }
}

/// Values from which on a search pays.
const LONG: usize = 64;

/// The largest integer with the upper half of this one.
fn limit(value: u64) -> u64 {
    value | u64::from(u32::MAX)
}

fn scalar(values: &mut [u64], value: u64) -> usize {
    let limit = limit(value);
    let at = values.partition_point(|&known| known <= limit);
    if at < values.len() {
        values.copy_within(at..values.len() - 1, at + 1);
        values[at] = value;
    }
    at
}

/// # Safety
/// The machine must have AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn avx512(values: &mut [u64], value: u64) -> usize {
    blocks::<8>(values, value)
}

/// # Safety
/// The machine must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(values: &mut [u64], value: u64) -> usize {
    blocks::<4>(values, value)
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn blocks<const W: usize>(values: &mut [u64], value: u64) -> usize {
    if values.len() > LONG {
        return scalar(values, value);
    }
    let limit = limit(value);
    let mut end = values.len();
    while end > W {
        let (front, block) = values[..end].split_at_mut(end - W);
        let (Some(&before_all), Ok(block)) = (front.last(), <&mut [u64; W]>::try_from(block))
        else {
            break;
        };
        let now = *block;
        let mut before = [before_all; W];
        before[1..].copy_from_slice(&now[..W - 1]);
        let mut below = 0;
        for i in 0..W {
            let moved = if before[i] > limit { before[i] } else { value };
            block[i] = if now[i] > limit { moved } else { now[i] };
            below += usize::from(now[i] <= limit);
        }
        end -= W;
        if before_all <= limit {
            return end + below;
        }
    }
    scalar(&mut values[..end], value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_the_scalar_twin(
            mut known in prop::collection::vec((0u64..40, any::<u32>()), 0..200),
            upper in 0u64..40,
            lower: u32,
        ) {
            known.sort_by_key(|known| known.0);
            let known: Vec<u64> = known.iter().map(|&(u, l)| u << 32 | u64::from(l)).collect();
            let value = upper << 32 | u64::from(lower);
            let mut all = known.clone();
            let place = all.iter().position(|known| known >> 32 > upper).unwrap_or(all.len());
            all.insert(place, value);
            all.pop();
            for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512] {
                if let Some(sorted) = Sorted::with_isa(isa) {
                    let mut values = known.clone();
                    prop_assert_eq!(sorted.insert(&mut values, value), place);
                    prop_assert_eq!(&values, &all);
                }
            }
        }
    }
}
