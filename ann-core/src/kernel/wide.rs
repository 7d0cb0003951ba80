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
