//! SIMD kernels: raw dot products and squared differences of one query against many rows.
//!
//! A [`Kernel`] is chosen once per index for its element type, operation and the machine's instruction set. Metrics
//! are made of these two sums elsewhere; nothing here knows about graphs or pages.
//!
//! Rows are little-endian bytes at any alignment. Within one instruction set a row's sum is the same to the last bit
//! whether it is computed alone or in a group; between instruction sets float sums differ in rounding, integer sums
//! never do.

use crate::element::{DType, MAX_DIM};

pub mod adc;
pub mod fastscan;
pub mod hadamard;
mod lanes;
pub mod packed;
mod query;
mod scalar;
mod simsimd;
pub mod sorted;
pub mod wide;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(test)]
mod tests;

pub use query::Query;

/// The instruction set a kernel is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust, the same result on every machine: sums run in one fixed order.
    Scalar,
    /// simsimd's own dispatch.
    Simsimd,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and VNNI.
    Avx512,
    /// AArch64 with NEON.
    Neon,
}

/// The sum that a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `sum(a[i] * b[i])`
    Dot,
    /// `sum((a[i] - b[i])^2)`
    L2sq,
}

/// The two entry points that an instruction set has for one element type and operation.
///
/// Safety of both calls: the machine has the instruction set, and the query has as many elements as a row.
#[derive(Clone, Copy)]
struct Functions {
    /// `rows(query, row_bytes, base, offsets, bound, out)`: false, with nothing read, if a row is not within `base`.
    rows: Rows,
    /// `one(query, row)`.
    one: One,
}

type Rows = unsafe fn(&[u8], usize, &[u8], &[u64], f32, &mut [f32]) -> bool;
type One = unsafe fn(&[u8], &[u8]) -> f32;

/// One operation on one element type at one dimension, by one instruction set.
#[derive(Clone, Copy)]
pub struct Kernel {
    functions: Functions,
    dtype: DType,
    isa: Isa,
    dim: usize,
}

/// Every instruction set, the one that measured fastest first. simsimd never beats our vector kernels; without
/// vectors its i8 sums beat the scalar ones, its f32 sums do not.
fn by_speed(dtype: DType) -> [Isa; 5] {
    let (fourth, last) = match dtype {
        DType::I8 => (Isa::Simsimd, Isa::Scalar),
        _ => (Isa::Scalar, Isa::Simsimd),
    };
    [Isa::Avx512, Isa::Avx2, Isa::Neon, fourth, last]
}

impl Kernel {
    /// The kernel that measured fastest among those that this machine has.
    ///
    /// # Panics
    /// If `dim` is larger than [`MAX_DIM`]: integer sums could overflow.
    pub fn new(dtype: DType, op: Op, dim: usize) -> Kernel {
        let found =
            by_speed(dtype).into_iter().find_map(|isa| Kernel::with_isa(dtype, op, dim, isa));
        found.expect("the scalar kernels run everywhere")
    }

    /// The kernel of a given instruction set; `None` if this machine does not have it or no such kernel exists.
    ///
    /// # Panics
    /// If `dim` is larger than [`MAX_DIM`]: integer sums could overflow.
    pub fn with_isa(dtype: DType, op: Op, dim: usize, isa: Isa) -> Option<Kernel> {
        assert!(dim <= MAX_DIM, "dimension {dim} is not allowed: at most {MAX_DIM}");
        let functions = match isa {
            Isa::Scalar => Some(scalar::functions(dtype, op)),
            Isa::Simsimd => simsimd::functions(dtype, op),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if avx2::available() => Some(avx2::functions(dtype, op)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if avx512::available() => Some(avx512::functions(dtype, op)),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(neon::functions(dtype, op)),
            _ => None,
        }?;
        Some(Kernel { functions, dtype, isa, dim })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Elements a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Bytes a row.
    pub fn row_bytes(&self) -> usize {
        self.dim * self.dtype.size()
    }

    /// Makes `row` the query of later calls. Allocates nothing if `query` has held one as large before.
    ///
    /// # Panics
    /// If `row` is not [`row_bytes`](Kernel::row_bytes) long.
    pub fn prepare(&self, row: &[u8], query: &mut Query) {
        assert_eq!(row.len(), self.row_bytes(), "a query is as long as a row");
        query.fill(self.dtype, row);
    }

    /// Scores many rows: `out[i]` becomes the sum over the query and the row at `base[offsets[i]..]`.
    ///
    /// A sum of squares that reaches `bound` may be given up: its row then gets what has come together so far, which
    /// is `bound` or more. With infinity every sum is whole.
    ///
    /// Offsets need no alignment. Returns false, before any row is read, if one of them does not lie within `base`.
    ///
    /// # Panics
    /// If `out` is not as long as `offsets`, or `query` was not prepared by a kernel of this type and dimension.
    #[must_use]
    pub fn rows(
        &self,
        query: &Query,
        base: &[u8],
        offsets: &[u64],
        bound: f32,
        out: &mut [f32],
    ) -> bool {
        assert_eq!(offsets.len(), out.len(), "one result for each offset");
        let query = query.elements(self.dtype, self.dim);
        // SAFETY: `with_isa` checked the instruction set; `query` holds `dim` elements.
        unsafe { (self.functions.rows)(query, self.row_bytes(), base, offsets, bound, out) }
    }

    /// Scores one row, with the same result as [`rows`](Kernel::rows). Bytes past the row's end are ignored.
    ///
    /// # Panics
    /// If `row` is shorter than [`row_bytes`](Kernel::row_bytes), or `query` was not prepared by a kernel of this
    /// type and dimension.
    pub fn one(&self, query: &Query, row: &[u8]) -> f32 {
        let query = query.elements(self.dtype, self.dim);
        // SAFETY: `with_isa` checked the instruction set; `query` holds `dim` elements, as does the piece of `row`.
        unsafe { (self.functions.one)(query, &row[..self.row_bytes()]) }
    }

    /// The sum over a piece of a row whose first element is number `start`. Pieces of a whole row add up to its sum.
    ///
    /// # Panics
    /// If `piece` is not a whole number of elements or runs past the row's end, or `query` was not prepared by a
    /// kernel of this type and dimension.
    pub fn part(&self, query: &Query, start: usize, piece: &[u8]) -> f32 {
        let size = self.dtype.size();
        let count = piece.len() / size;
        assert!(piece.len().is_multiple_of(size), "{} bytes are no whole elements", piece.len());
        assert!(
            count <= self.dim && start <= self.dim - count,
            "the piece runs past the row's end"
        );
        let wide = Query::element_size(self.dtype);
        let query = &query.elements(self.dtype, self.dim)[start * wide..][..count * wide];
        // SAFETY: `with_isa` checked the instruction set; `query` was cut to `count` elements.
        unsafe { (self.functions.one)(query, piece) }
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({:?}, {} x {})", self.isa, self.dim, self.dtype)
    }
}

/// An instruction set that takes one row at a time.
trait Single {
    /// The sum over as many elements as `row` has.
    fn one(query: &[u8], row: &[u8]) -> f32;

    /// The entry points.
    fn functions() -> Functions {
        Functions { rows: each::<Self>, one: Self::one }
    }
}

fn each<S: Single + ?Sized>(
    query: &[u8],
    row_bytes: usize,
    base: &[u8],
    offsets: &[u64],
    _: f32,
    out: &mut [f32],
) -> bool {
    if !within(base, row_bytes, offsets) {
        return false;
    }
    for (&offset, out) in offsets.iter().zip(out) {
        *out = S::one(query, &base[offset as usize..][..row_bytes]);
    }
    true
}

/// Whether a row lies within `base` at each of `offsets`.
///
/// Branch-free, so that it becomes a few vector instructions: the top bit of `last - offset` tells that `offset` is
/// too large, except for offsets that have the top bit themselves.
#[inline(always)]
fn within(base: &[u8], row_bytes: usize, offsets: &[u64]) -> bool {
    let Some(last) = base.len().checked_sub(row_bytes) else {
        return offsets.is_empty();
    };
    let last = last as u64;
    let bits = offsets.iter().fold(0, |bits, &offset| bits | offset | last.wrapping_sub(offset));
    bits >> 63 == 0
}

/// Asks for every cache line of `base[offset..offset + len]`, for a read soon. What is out of range is ignored.
#[inline]
pub fn prefetch(base: &[u8], offset: u64, len: usize) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(base.len());
    prefetch_at(base.as_ptr().wrapping_add(start), len.min(base.len() - start));
}

/// Asks for every cache line of `len` bytes from `at` on, for a read soon: for stores whose pages are in memory. The
/// address need not be valid.
#[inline]
pub fn prefetch_at(mut at: *const u8, len: usize) {
    const LINE: usize = 64;
    let end = at.wrapping_add(len);
    while at < end {
        touch(at);
        at = at.map_addr(|address| (address | (LINE - 1)) + 1);
    }
}

/// Asks for the cache line at `at`, which need not be a valid address.
#[inline(always)]
fn touch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch never faults and changes no register, flag or memory.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}
