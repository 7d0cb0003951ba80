//! The loop that all vector instruction sets share: four rows at a time against one query.
//!
//! An instruction set says how some elements become a vector ([`Load`]) and how vectors are summed ([`Sum`]); the
//! loop is written once, for one row and for four, so that both add up a row in the same order. A row has two
//! running sums, because a fused multiply-add takes as long as several loads: eight chains keep the machine busy
//! in a group, and two are the most that sixteen registers hold for four rows.
//!
//! Squares only add up. So long rows are taken a chunk at a time, and those whose sum has reached the caller's bound
//! are not read any further: memory is what long rows wait for.

/// How elements of one type are read into a vector.
///
/// # Safety of calls
/// The machine must have the instruction set of the implementing module, and the elements must be readable.
pub(super) trait Load {
    /// A vector of elements, widened for arithmetic.
    type Vector: Sum;
    /// What [`tail`](Load::tail) needs to know about a tail, worked out once for many rows.
    type Tail: Copy;
    /// Bytes a stored element.
    const SIZE: usize;
    /// Elements a vector.
    const WIDTH: usize;
    /// Whether a dot product of integers can be negative.
    const SIGNED: bool;

    /// Reads `WIDTH` elements.
    unsafe fn full(at: *const u8) -> Self::Vector;
    /// The tail of rows of `count` elements, which is no multiple of `WIDTH`.
    unsafe fn tail_of(count: usize) -> Self::Tail;
    /// Reads the last `count % WIDTH` of the elements before `end` into the same lanes for every type of one
    /// `WIDTH`; the other lanes are zero.
    unsafe fn tail(end: *const u8, tail: Self::Tail) -> Self::Vector;
}

/// Arithmetic on vectors that are elements or running sums. Integer sums wrap: the total fits 32 bits, and so it
/// is right whatever happens on the way.
///
/// # Safety of calls
/// The machine must have the instruction set of the implementing module.
pub(super) trait Sum: Copy {
    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// Lane by lane `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// `self` plus the products of `a` and `b`.
    unsafe fn add_products(self, a: Self, b: Self) -> Self;
    /// `self` plus the squares of `a - b`.
    unsafe fn add_squares(self, a: Self, b: Self) -> Self;
    /// The sum over the lanes of each vector. `signed` says how to read 32-bit integers.
    unsafe fn totals(of: [Self; 4], signed: bool) -> [f32; 4];
}

/// The bytes at a row's end that do not fill a vector of `N`, for machines without masked loads.
#[derive(Clone, Copy)]
pub(super) struct Ending<const N: usize> {
    /// A row of `N` bytes or more is read up to its end, and what was read before is masked off.
    mask: [u8; N],
    /// How many bytes a shorter row has.
    short: Option<usize>,
}

impl<const N: usize> Ending<N> {
    #[inline(always)]
    pub(super) fn new(row_bytes: usize) -> Ending<N> {
        const WINDOW: [[u8; 16]; 2] = [[0; 16], [!0; 16]];
        let (masks, _) = WINDOW.as_flattened()[16 - N + row_bytes % N..].as_chunks();
        Ending { mask: masks[0], short: (row_bytes < N).then_some(row_bytes) }
    }

    /// Zeros, then the last bytes before `end`.
    ///
    /// # Safety
    /// `end` is the end of a row that is readable.
    #[inline(always)]
    pub(super) unsafe fn before(self, end: *const u8) -> [u8; N] {
        if let Some(len) = self.short {
            let mut bytes = [0; N];
            // SAFETY: the caller's: the row has `len` bytes, which is less than `N`.
            unsafe {
                std::ptr::copy_nonoverlapping(end.sub(len), bytes.as_mut_ptr().add(N - len), len)
            };
            return bytes;
        }
        // SAFETY: the caller's: the row has at least `N` bytes.
        let bytes = unsafe { end.sub(N).cast::<[u8; N]>().read() };
        std::array::from_fn(|i| bytes[i] & self.mask[i])
    }
}

/// What rows of one length have in common.
#[derive(Clone, Copy)]
struct Shape<Q, R> {
    count: usize,
    tail: Option<(Q, R)>,
}

/// # Safety
/// The machine has the instruction set of `R`.
#[inline(always)]
unsafe fn shape<Q, R>(row_bytes: usize) -> Shape<Q::Tail, R::Tail>
where
    Q: Load<Vector = R::Vector>,
    R: Load,
{
    let count = row_bytes / R::SIZE;
    // SAFETY: the caller's.
    let tail = || unsafe { (Q::tail_of(count), R::tail_of(count)) };
    Shape { count, tail: (!count.is_multiple_of(R::WIDTH)).then(tail) }
}

/// The running sums of `K` rows: two each, of the even and of the odd vectors.
type Running<V, const K: usize> = [[V; K]; 2];

/// Adds elements `from..to` of `K` rows to their running sums; `to` is the rows' end, or `from` and `to` are multiples
/// of two vectors.
///
/// # Safety
/// As for [`Load`]: `query` and all of `rows` are readable for `shape.count` elements, which `to` is at most.
#[inline(always)]
unsafe fn run<Q, R, const L2SQ: bool, const K: usize>(
    shape: Shape<Q::Tail, R::Tail>,
    query: *const u8,
    rows: [*const u8; K],
    [mut even, mut odd]: Running<R::Vector, K>,
    (from, to): (usize, usize),
) -> Running<R::Vector, K>
where
    Q: Load<Vector = R::Vector>,
    R: Load,
{
    // SAFETY: the caller's; every read below ends at or before element `to`.
    unsafe {
        let step = |sums: &mut [R::Vector; K], q: R::Vector, rs: [R::Vector; K]| {
            for (sum, r) in sums.iter_mut().zip(rs) {
                *sum = if L2SQ { sum.add_squares(q, r) } else { sum.add_products(q, r) };
            }
        };
        let full = |sums: &mut [R::Vector; K], at: usize| {
            let q = Q::full(query.add(at * Q::SIZE));
            step(sums, q, rows.map(|row| R::full(row.add(at * R::SIZE))));
        };
        let mut at = from;
        while to - at >= 2 * R::WIDTH {
            full(&mut even, at);
            full(&mut odd, at + R::WIDTH);
            at += 2 * R::WIDTH;
        }
        if to - at >= R::WIDTH {
            full(&mut even, at);
        }
        if let Some((q_tail, r_tail)) = shape.tail
            && to == shape.count
        {
            let q = Q::tail(query.add(to * Q::SIZE), q_tail);
            step(&mut odd, q, rows.map(|row| R::tail(row.add(to * R::SIZE), r_tail)));
        }
    }
    [even, odd]
}

/// The sums of four rows.
///
/// # Safety
/// The machine has the instruction set of the vectors.
#[inline(always)]
unsafe fn totals<V: Sum>([mut even, odd]: Running<V, 4>, signed: bool) -> [f32; 4] {
    // SAFETY: the caller's.
    unsafe {
        for (even, odd) in even.iter_mut().zip(odd) {
            *even = even.add(odd);
        }
        V::totals(even, signed)
    }
}

/// The sum over one row.
///
/// # Safety
/// The machine has the instruction set of `R`, and `query` has as many elements as `row`.
#[inline(always)]
pub(super) unsafe fn one<Q, R, const L2SQ: bool>(query: &[u8], row: &[u8]) -> f32
where
    Q: Load<Vector = R::Vector>,
    R: Load,
{
    // SAFETY: the caller's; `row` is readable for all of its elements.
    unsafe {
        let shape = shape::<Q, R>(row.len());
        let zero = [[R::Vector::zero()]; 2];
        let whole = (0, shape.count);
        let [[even], [odd]] =
            run::<Q, R, L2SQ, 1>(shape, query.as_ptr(), [row.as_ptr()], zero, whole);
        totals([[even; 4], [odd; 4]], R::SIGNED && !L2SQ)[0]
    }
}

/// The sums over many rows; false, with nothing read, if one of them is not within `base`. What is at `bound` or
/// above may be less than its row's sum, but not less than `bound`.
///
/// # Safety
/// The machine has the instruction set of `R`, and `query` has as many elements as a row.
#[inline(always)]
pub(super) unsafe fn rows<Q, R, const L2SQ: bool>(
    query: &[u8],
    row_bytes: usize,
    base: &[u8],
    offsets: &[u64],
    bound: f32,
    out: &mut [f32],
) -> bool
where
    Q: Load<Vector = R::Vector>,
    R: Load,
{
    if !super::within(base, row_bytes, offsets) {
        return false;
    }
    if L2SQ && row_bytes >= 2 * CHUNK && bound < f32::INFINITY {
        for (offsets, out) in offsets.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
            // SAFETY: the caller's for the query; `within` has seen that each row lies inside `base`.
            unsafe { by_chunks::<Q, R>(query, row_bytes, base, offsets, bound, out) };
        }
        return true;
    }
    // SAFETY: the caller's.
    let (shape, zero) = unsafe { (shape::<Q, R>(row_bytes), [[R::Vector::zero(); 4]; 2]) };
    let (fours, rest) = offsets.as_chunks::<4>();
    let (out_fours, out_rest) = out.as_chunks_mut::<4>();
    for (four, out) in fours.iter().zip(out_fours) {
        // SAFETY: the caller's for the query; `within` has seen that each row lies inside `base`.
        *out = unsafe {
            let rows = four.map(|offset| base.as_ptr().add(offset as usize));
            let whole = (0, shape.count);
            let sums = run::<Q, R, L2SQ, 4>(shape, query.as_ptr(), rows, zero, whole);
            totals(sums, R::SIGNED && !L2SQ)
        };
    }
    for (&offset, out) in rest.iter().zip(out_rest) {
        let row = &base[offset as usize..][..row_bytes];
        // SAFETY: the caller's.
        *out = unsafe { one::<Q, R, L2SQ>(query, row) };
    }
    true
}

/// Bytes of a row that are read before its sum is looked at: a multiple of two vectors.
pub(super) const CHUNK: usize = 1024;

/// Rows that are taken side by side.
const BLOCK: usize = 64;

/// Sums of squares over rows, a chunk of each at a time, until they reach `bound`.
///
/// # Safety
/// The machine has the instruction set of `R`, `query` has as many elements as a row, and there is a row within
/// `base` at each of `offsets`, which are [`BLOCK`] at most.
#[inline(always)]
unsafe fn by_chunks<Q, R>(
    query: &[u8],
    row_bytes: usize,
    base: &[u8],
    offsets: &[u64],
    bound: f32,
    out: &mut [f32],
) where
    Q: Load<Vector = R::Vector>,
    R: Load,
{
    const { assert!(CHUNK.is_multiple_of(2 * R::WIDTH * R::SIZE)) };
    // SAFETY: the caller's.
    let (shape, zero) = unsafe { (shape::<Q, R>(row_bytes), R::Vector::zero()) };
    let mut running = [[zero; 2]; BLOCK];
    let mut below: [usize; BLOCK] = std::array::from_fn(|row| row);
    let (mut left, mut at) = (offsets.len(), 0);
    while left > 0 && at < shape.count {
        // The last chunk is the longest, so that no chunk is a few elements only.
        let rest = shape.count - at;
        let end = if rest * R::SIZE < 2 * CHUNK { shape.count } else { at + CHUNK / R::SIZE };
        let mut kept = 0;
        for first in (0..left).step_by(4) {
            // The last group is made up with its last row, once more.
            let four: [usize; 4] = std::array::from_fn(|i| below[(first + i).min(left - 1)]);
            // SAFETY: the caller's.
            let (sums, totals) = unsafe {
                let rows = four.map(|row| base.as_ptr().add(offsets[row] as usize));
                let sums = [0, 1].map(|half| four.map(|row| running[row][half]));
                let sums = run::<Q, R, true, 4>(shape, query.as_ptr(), rows, sums, (at, end));
                (sums, totals(sums, false))
            };
            for (i, row) in (0..4.min(left - first)).zip(four) {
                running[row] = [sums[0][i], sums[1][i]];
                out[row] = totals[i];
                if totals[i] < bound {
                    below[kept] = row;
                    kept += 1;
                    super::prefetch(base, offsets[row] + (end * R::SIZE) as u64, CHUNK);
                }
            }
        }
        (left, at) = (kept, end);
    }
}

/// Gives an instruction set's module its `functions`, from its `Load` types `F32`, `F16`, `I8` and `U8`.
macro_rules! functions {
    ($features:literal) => {
        /// The entry points for an element type and operation. The machine must have this instruction set.
        pub(super) fn functions(dtype: DType, op: Op) -> Functions {
            match (dtype, op) {
                (DType::F32, Op::Dot) => of::<F32, F32, false>(),
                (DType::F32, Op::L2sq) => of::<F32, F32, true>(),
                (DType::F16, Op::Dot) => of::<F32, F16, false>(),
                (DType::F16, Op::L2sq) => of::<F32, F16, true>(),
                (DType::I8, Op::Dot) => of::<I8, I8, false>(),
                (DType::I8, Op::L2sq) => of::<I8, I8, true>(),
                (DType::U8, Op::Dot) => of::<U8, U8, false>(),
                (DType::U8, Op::L2sq) => of::<U8, U8, true>(),
            }
        }

        fn of<Q: Load<Vector = R::Vector>, R: Load, const L2SQ: bool>() -> Functions {
            Functions { rows: rows::<Q, R, L2SQ>, one: one::<Q, R, L2SQ> }
        }

        #[target_feature(enable = $features)]
        unsafe fn rows<Q: Load<Vector = R::Vector>, R: Load, const L2SQ: bool>(
            query: &[u8],
            row_bytes: usize,
            base: &[u8],
            offsets: &[u64],
            bound: f32,
            out: &mut [f32],
        ) -> bool {
            // SAFETY: the caller's; the instruction set is this function's own.
            unsafe { lanes::rows::<Q, R, L2SQ>(query, row_bytes, base, offsets, bound, out) }
        }

        #[target_feature(enable = $features)]
        unsafe fn one<Q: Load<Vector = R::Vector>, R: Load, const L2SQ: bool>(
            query: &[u8],
            row: &[u8],
        ) -> f32 {
            // SAFETY: the caller's; the instruction set is this function's own.
            unsafe { lanes::one::<Q, R, L2SQ>(query, row) }
        }
    };
}
pub(super) use functions;
