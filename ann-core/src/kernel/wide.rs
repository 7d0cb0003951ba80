//! Plain loops, compiled once more for each of the wider instruction sets.
//!
//! The compiler makes vectors of a loop by itself, but for other machines than the least it is told of only where it
//! is told so. Floats are not rearranged by that: results are the same on every machine.

/// Runs `work`, compiled for the widest vectors that this machine has, as far as `work` is inlined here: mark what it
/// calls `#[inline(always)]`.
#[inline]
pub fn wide<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        if super::avx512::available() {
            // SAFETY: just checked.
            return unsafe { avx512(work) };
        }
        if super::avx2::available() {
            // SAFETY: just checked.
            return unsafe { avx2(work) };
        }
    }
    work()
}

/// # Safety
/// The machine must have AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// # Safety
/// The machine must have AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
unsafe fn avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// The sum of what `term` makes of each pair of coordinates, in eight lanes: the same on every machine.
pub(crate) fn sum_of(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    wide(
        #[inline(always)]
        || {
            let mut lanes = [0f32; 8];
            let (a, rest_a) = a.as_chunks::<8>();
            let (b, rest_b) = b.as_chunks::<8>();
            for (a, b) in a.iter().zip(b) {
                for i in 0..8 {
                    lanes[i] += term(a[i], b[i]);
                }
            }
            let rest = rest_a.iter().zip(rest_b).map(|(&a, &b)| term(a, b));
            lanes.iter().sum::<f32>() + rest.sum::<f32>()
        },
    )
}
