//! FastScan: sums over 32 codes at a time, by looking up nibbles in registers: of four coordinates of one bit each, or
//! of one sub-quantizer of a product quantizer.
//!
//! A [`Lut`] holds, for each four coordinates of the query, the sums of the coordinates that each of the 16 possible
//! nibbles picks, as bytes of one scale; [`Tables`] hold what a product quantizer's 16 codewords are worth. A block of
//! 32 codes is laid out so that one byte shuffle looks up a nibble of 16 codes ([`put`]). Sums of lookups are integers,
//! and what is made of them is multiplied and added in one order, so results are bit-identical on all instruction sets.

use super::Isa;

mod fill;
mod layout;
mod lut;
mod scalar;
mod tables;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

pub use layout::{get, get_nibbles, nibble_bytes, plane_bytes, put, put_nibbles};
pub use lut::Lut;
pub use tables::Tables;

/// Codes a block.
pub const BLOCK: usize = 32;
/// Bits a coordinate, at most.
pub const MAX_BITS: u8 = 8;

/// Bytes of a sub-quantizer, which is a nibble of each code: as many as its table has.
pub(crate) const SUB: usize = 16;
/// The largest entry of [`Tables`]: four of them fit a byte, so that four lookups are added before they are widened.
/// What sums are off by for it is a few units, where codewords are off by a hundred.
const MAX_ENTRY: u8 = 63;
/// Bytes of a plane after which 16-bit sums of lookups may be full.
const FULL: usize = 256 * SUB;

/// 32 codes and what makes estimates of their sums.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// The planes, most significant bit first, one behind the other.
    pub planes: &'a [u8],
    /// Bits a coordinate: the number of planes.
    pub bits: u8,
    /// What is added to a code's estimate, and what its dot product with the query is multiplied by: bits of f16.
    pub add: &'a Halves,
    pub mul: &'a Halves,
    /// What all of these are to be multiplied by.
    pub scales: [f32; 2],
}

/// A number for each code, as the bits of an f16.
pub type Halves = [u16; BLOCK];

/// A little-endian f32 for each code.
pub type Addends = [u8; 4 * BLOCK];

/// What codes that need no addend of their own are given.
pub const NO_ADDENDS: Addends = [0; 4 * BLOCK];

/// What turns a code's dot product with a query into a distance, a number for each code.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    /// What is added to the query's distance to the centre.
    pub add: &'a Addends,
    /// What the dot product is multiplied by.
    pub mul: &'a Addends,
}

/// The numbers of a distance that all codes share: `(base + addend) + delta * sum`.
#[derive(Clone, Copy)]
struct Line {
    delta: f32,
    base: f32,
    bound: f32,
}

impl Line {
    /// Sums below it may make distances without addends below the bound, others do not.
    #[cfg(target_arch = "x86_64")]
    fn limit(self) -> i16 {
        let rounding = (self.bound.abs() + self.base.abs()) * f32::EPSILON;
        let limit = (self.bound - self.base + rounding) / self.delta;
        // Saturates; a limit that is no number lets all pass.
        if limit.is_nan() { i16::MAX } else { (limit * 1.001 + 2.0) as i16 }
    }
}

/// The numbers of an estimate that all codes share: `(base + scale * add) + mul * (delta * sum + offset)`.
#[derive(Clone, Copy)]
struct Terms {
    delta: f32,
    offset: f32,
    scale: f32,
    base: f32,
    bound: f32,
}

/// The entry points that an instruction set has.
///
/// Safety of all calls: the machine has the instruction set; planes are as long as the tables, which are padded to
/// whole cache lines.
#[derive(Clone, Copy)]
struct Functions {
    /// `scan(plane, tables, out)`
    scan: unsafe fn(&[u8], &[u8], &mut [u32; BLOCK]),
    /// `estimates(block, tables, terms, out)`
    estimates: unsafe fn(&Block<'_>, &[u8], Terms, &mut [f32; BLOCK]) -> u32,
    /// `distances(codes, tables, addends, line, out)`
    distances: Distances,
    /// `scaled(codes, tables, factors, (line, offset), out)`
    scaled: Scaled,
}

type Distances = unsafe fn(&[u8], &[u8], Option<&Addends>, Line, &mut [f32; BLOCK]) -> u32;

type Scaled = unsafe fn(&[u8], &[u8], Factors<'_>, (Line, f32), &mut [f32; BLOCK]) -> u32;

/// The scan, by one instruction set.
#[derive(Clone, Copy)]
pub struct FastScan {
    functions: Functions,
    isa: Isa,
}

impl FastScan {
    /// By the widest vectors that this machine has.
    pub fn new() -> FastScan {
        let found = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Scalar].into_iter();
        found.filter_map(FastScan::with_isa).next().expect("the scalar scan runs everywhere")
    }

    /// By a given instruction set; `None` if this machine does not have it or it has no scan of its own.
    pub fn with_isa(isa: Isa) -> Option<FastScan> {
        let functions = match isa {
            Isa::Scalar => scalar::FUNCTIONS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if super::avx2::available() => avx2::FUNCTIONS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if super::avx512::available() => avx512::FUNCTIONS,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::FUNCTIONS,
            _ => return None,
        };
        Some(FastScan { functions, isa })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The sum of a code's lookups in one plane, for each of 32 codes. [`Lut::delta`] times that plus [`Lut::bias`]
    /// is about the sum of the query's coordinates whose bit is set.
    ///
    /// # Panics
    /// If `plane` is not as long as a plane of the query's dimension.
    pub fn scan(&self, plane: &[u8], lut: &Lut, out: &mut [u32; BLOCK]) {
        assert_eq!(plane.len(), plane_bytes(lut.dim()), "a plane has the query's dimension");
        // SAFETY: `with_isa` checked the instruction set, and the lengths are equal.
        unsafe { (self.functions.scan)(plane, lut.tables(), out) }
    }

    /// The estimates of a block's codes: `base + add + mul * d`, where `d` is about the dot product of the query and
    /// the code, whose levels lie symmetric about zero. Returns a bit for each code whose estimate is below `bound`.
    ///
    /// # Panics
    /// If the block does not have 1 to 8 planes of the query's dimension.
    #[must_use]
    pub fn estimates(
        &self,
        block: &Block<'_>,
        lut: &Lut,
        base: f32,
        bound: f32,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        assert!((1..=MAX_BITS).contains(&block.bits), "codes of {} bits", block.bits);
        let bytes = usize::from(block.bits) * plane_bytes(lut.dim());
        assert_eq!(block.planes.len(), bytes, "planes have the query's dimension");
        let [scale, mul] = block.scales;
        let (delta, offset) = (mul * lut.delta(), mul * lut.offset(block.bits));
        let terms = Terms { delta, offset, scale, base, bound };
        // SAFETY: `with_isa` checked the instruction set, and the lengths are equal.
        unsafe { (self.functions.estimates)(block, lut.tables(), terms, out) }
    }

    /// The distances of a block of 4-bit codes of a product quantizer, laid out by [`put_nibbles`]: `base` and the
    /// code's addend, plus what the tables say of its nibbles. Returns a bit for each code whose distance is below
    /// `bound`; if there is none, `out` may stay as it was.
    ///
    /// # Panics
    /// If the block does not have as many sub-quantizers as the tables.
    #[must_use]
    pub fn distances(
        &self,
        codes: &[u8],
        tables: &Tables,
        addends: Option<&Addends>,
        base: f32,
        bound: f32,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        let lookups = tables.bytes();
        assert_eq!(codes.len(), lookups.len(), "a block has the tables' sub-quantizers");
        let line = Line { delta: tables.delta(), base: base + tables.bias(), bound };
        // SAFETY: `with_isa` checked the instruction set, and the lengths are equal.
        unsafe { (self.functions.distances)(codes, lookups, addends, line, out) }
    }

    /// The distances of a block of codes of some bits a coordinate, laid out as [`estimates`](FastScan::estimates) has
    /// them: `base + add + mul * d`, where `d` is about the dot product of the code's levels and a query, which `tables`
    /// have for one bit a coordinate, a half up or down. Returns a bit for each code whose distance is below `bound`.
    ///
    /// # Panics
    /// If the block does not have 1 to 8 planes as long as the tables.
    #[must_use]
    pub fn scaled(
        &self,
        codes: &[u8],
        tables: &Tables,
        factors: Factors<'_>,
        base: f32,
        bound: f32,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        let lookups = tables.bytes();
        let planes = codes.len() / lookups.len().max(1);
        assert!((1..=usize::from(MAX_BITS)).contains(&planes), "codes of {planes} bits");
        assert_eq!(codes.len(), planes * lookups.len(), "planes as long as the tables");
        // Planes weigh so much together, and so often is what the tables' zeros stand for missing.
        let weight = ((1u32 << planes) - 1) as f32;
        let line = Line { delta: tables.delta(), base, bound };
        // SAFETY: `with_isa` checked the instruction set, and the lengths are multiples of the tables'.
        unsafe {
            (self.functions.scaled)(codes, lookups, factors, (line, weight * tables.bias()), out)
        }
    }
}

impl Default for FastScan {
    fn default() -> FastScan {
        FastScan::new()
    }
}

impl std::fmt::Debug for FastScan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FastScan({:?})", self.isa)
    }
}

/// Sums of 32 codes in vectors.
///
/// # Safety of calls
/// The machine must have the instruction set of the implementing module.
trait Sums: Copy {
    /// All sums zero.
    unsafe fn zero() -> Self;
    /// Twice `self` plus the sums of a plane. `tables` is as long as `plane`, and padded to whole cache lines.
    unsafe fn then(self, plane: &[u8], tables: &[u8]) -> Self;
    /// [`then`](Sums::then) with entries of [`MAX_ENTRY`] at most.
    unsafe fn then_few(self, plane: &[u8], tables: &[u8]) -> Self;
    /// The sums, in the order of the codes.
    unsafe fn store(self, out: &mut [u32; BLOCK]);
    /// Estimates from sums below 2^31, and which of them are below the bound. Products are rounded before they are
    /// added: fused operations are not on every machine.
    unsafe fn estimates(
        self,
        add: &Halves,
        mul: &Halves,
        terms: Terms,
        out: &mut [f32; BLOCK],
    ) -> u32;
    /// Distances from sums below 2^31 whose codes have factors, and which of them are below the bound; rounded as
    /// estimates are.
    unsafe fn scaled(
        self,
        factors: Factors<'_>,
        line: Line,
        offset: f32,
        out: &mut [f32; BLOCK],
    ) -> u32;
    /// Distances from the sums of codes, and which of them are below the bound; rounded as estimates are. If none is,
    /// `out` may stay as it was. `tables` as for [`then`](Sums::then), with entries of [`MAX_ENTRY`] at most.
    unsafe fn distances(
        codes: &[u8],
        tables: &[u8],
        addends: Option<&Addends>,
        line: Line,
        out: &mut [f32; BLOCK],
    ) -> u32;
}

/// # Safety
/// As for [`Functions`].
#[inline(always)]
unsafe fn scan<S: Sums>(plane: &[u8], tables: &[u8], out: &mut [u32; BLOCK]) {
    // SAFETY: the caller's.
    unsafe { S::zero().then(plane, tables).store(out) }
}

/// # Safety
/// As for [`Functions`].
#[inline(always)]
unsafe fn estimates<S: Sums>(
    block: &Block<'_>,
    tables: &[u8],
    terms: Terms,
    out: &mut [f32; BLOCK],
) -> u32 {
    // The sum over all planes is below 255 * 255 * 16,384 < 2^31.
    // SAFETY: the caller's.
    unsafe {
        let mut sums = S::zero();
        for plane in block.planes.chunks_exact(tables.len()) {
            sums = sums.then(plane, tables);
        }
        sums.estimates(block.add, block.mul, terms, out)
    }
}

/// # Safety
/// As for [`Functions`].
#[inline(always)]
unsafe fn scaled<S: Sums>(
    codes: &[u8],
    tables: &[u8],
    factors: Factors<'_>,
    (line, offset): (Line, f32),
    out: &mut [f32; BLOCK],
) -> u32 {
    // The sum over all planes is below 255 * 63 * 16,384 < 2^31.
    // SAFETY: the caller's.
    unsafe {
        let mut sums = S::zero();
        for plane in codes.chunks_exact(tables.len()) {
            sums = sums.then_few(plane, tables);
        }
        sums.scaled(factors, line, offset, out)
    }
}

/// Gives an instruction set's module its `FUNCTIONS`, from its type of sums.
macro_rules! functions {
    ($sums:ty, $features:literal) => {
        /// The entry points. The machine must have this instruction set.
        pub(super) const FUNCTIONS: Functions = Functions { scan, estimates, distances, scaled };

        #[target_feature(enable = $features)]
        unsafe fn scan(plane: &[u8], tables: &[u8], out: &mut [u32; BLOCK]) {
            // SAFETY: the caller's; the instruction set is this function's own.
            unsafe { super::scan::<$sums>(plane, tables, out) }
        }

        #[target_feature(enable = $features)]
        unsafe fn estimates(
            block: &Block<'_>,
            tables: &[u8],
            terms: Terms,
            out: &mut [f32; BLOCK],
        ) -> u32 {
            // SAFETY: the caller's; the instruction set is this function's own.
            unsafe { super::estimates::<$sums>(block, tables, terms, out) }
        }

        #[target_feature(enable = $features)]
        unsafe fn distances(
            codes: &[u8],
            tables: &[u8],
            addends: Option<&Addends>,
            line: Line,
            out: &mut [f32; BLOCK],
        ) -> u32 {
            // SAFETY: the caller's; the instruction set is this function's own. There are at most 65,536
            // sub-quantizers.
            unsafe { <$sums as Sums>::distances(codes, tables, addends, line, out) }
        }

        #[target_feature(enable = $features)]
        unsafe fn scaled(
            codes: &[u8],
            tables: &[u8],
            factors: super::Factors<'_>,
            terms: (Line, f32),
            out: &mut [f32; BLOCK],
        ) -> u32 {
            // SAFETY: the caller's; the instruction set is this function's own.
            unsafe { super::scaled::<$sums>(codes, tables, factors, terms, out) }
        }
    };
}
use functions;
