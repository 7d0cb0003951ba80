//! Every instruction set of this machine, for every type and operation, against exact sums and the scalar twin.

use half::f16;
use proptest::prelude::*;

use super::*;
use crate::element::Element;

const OPS: [Op; 2] = [Op::Dot, Op::L2sq];
const DTYPES: [DType; 4] = [DType::F32, DType::F16, DType::I8, DType::U8];
const DIMS: [usize; 6] = [784, 1536, 4096, 4097, 16_000, MAX_DIM];

/// All kernels that this machine has.
fn kernels(dtype: DType, op: Op, dim: usize) -> Vec<Kernel> {
    by_speed(dtype).into_iter().filter_map(|isa| Kernel::with_isa(dtype, op, dim, isa)).collect()
}

/// A small generator, so that a row of 65,536 elements is one number to proptest.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Finite elements of `dtype`, as bytes.
    fn elements(&mut self, dtype: DType, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let float = |random: &mut Random| random.next() as f32 / (1u64 << 30) as f32 - 1.0;
        match dtype {
            DType::F32 => (0..count).for_each(|_| f32::extend_bytes(&[float(self)], &mut bytes)),
            DType::F16 => {
                (0..count)
                    .for_each(|_| f16::extend_bytes(&[f16::from_f32(float(self))], &mut bytes));
            }
            DType::I8 | DType::U8 => bytes = self.bytes(count),
        }
        bytes
    }
}

fn values(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    fn widened<T: Element>(bytes: &[u8]) -> Vec<f64> {
        T::from_bytes(bytes).into_iter().map(|value| f64::from(value.to_f32())).collect()
    }
    match dtype {
        DType::F32 => widened::<f32>(bytes),
        DType::F16 => widened::<f16>(bytes),
        DType::I8 => widened::<i8>(bytes),
        DType::U8 => widened::<u8>(bytes),
    }
}

/// The sum in f64, which is exact for bytes, and the sum of the terms' sizes.
fn exact(dtype: DType, op: Op, a: &[u8], b: &[u8]) -> (f64, f64) {
    let (a, b) = (values(dtype, a), values(dtype, b));
    let terms = a.iter().zip(&b).map(|(a, b)| match op {
        Op::Dot => a * b,
        Op::L2sq => (a - b) * (a - b),
    });
    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
}

/// Bytes must be right to the last bit of an f32; floats to the rounding of a sum.
fn assert_close(kernel: &Kernel, got: f32, (sum, size): (f64, f64), what: &str) {
    let right = match kernel.dtype {
        DType::I8 | DType::U8 => got == sum as f32,
        DType::F32 | DType::F16 => (f64::from(got) - sum).abs() <= 1e-5 * size,
    };
    assert!(right, "{kernel:?}, {what}: {got}, not {sum}");
}

fn prepared(kernel: &Kernel, row: &[u8]) -> Query {
    let mut query = Query::default();
    kernel.prepare(row, &mut query);
    query
}

/// `count` rows that begin at odd places in one buffer, some of them overlapping, and their offsets.
fn unaligned_rows(
    random: &mut Random,
    dtype: DType,
    dim: usize,
    count: usize,
) -> (Vec<u8>, Vec<u64>) {
    let size = dtype.size();
    let row_bytes = dim * size;
    // Whole elements from one start, so that a row at any element is finite.
    let start = 1 + random.next() as usize % 64;
    let mut base = random.bytes(start);
    base.extend(random.elements(dtype, 3 * dim + 17));
    let places = (base.len() - start - row_bytes) / size;
    let offsets = (0..count).map(|_| (start + random.next() as usize % (places + 1) * size) as u64);
    let offsets = offsets.collect();
    (base, offsets)
}

/// Groups of every length, each row alone, the exact sum, and the scalar twin.
fn check(dtype: DType, op: Op, dim: usize, seed: u64) {
    let random = &mut Random(seed);
    let (base, offsets) = unaligned_rows(random, dtype, dim, 11);
    let query_row = random.elements(dtype, dim);
    let rows: Vec<&[u8]> =
        offsets.iter().map(|&at| &base[at as usize..][..dim * dtype.size()]).collect();
    let sums: Vec<_> = rows.iter().map(|row| exact(dtype, op, &query_row, row)).collect();
    for kernel in kernels(dtype, op, dim) {
        let query = prepared(&kernel, &query_row);
        let singles: Vec<f32> = rows.iter().map(|row| kernel.one(&query, row)).collect();
        for (&got, &sum) in singles.iter().zip(&sums) {
            assert_close(&kernel, got, sum, "one row");
        }
        for count in 0..=offsets.len() {
            let mut out = vec![f32::NAN; count];
            assert!(kernel.rows(&query, &base, &offsets[..count], f32::INFINITY, &mut out));
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&out), bits(&singles[..count]), "{kernel:?} in groups");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sums_are_right_at_every_length(dim in 1usize..=300, seed: u64) {
        for dtype in DTYPES {
            for op in OPS {
                check(dtype, op, dim, seed);
            }
        }
    }

    #[test]
    fn parts_add_up(dim in 1usize..=2000, cuts in prop::collection::vec(0usize..=2000, 0..4), seed: u64) {
        for (dtype, op) in DTYPES.into_iter().flat_map(|dtype| OPS.map(|op| (dtype, op))) {
            let random = &mut Random(seed);
            let (query_row, row) = (random.elements(dtype, dim), random.elements(dtype, dim));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (dim + 1)).collect();
            cuts.extend([0, dim]);
            cuts.sort_unstable();
            let (sum, size) = exact(dtype, op, &query_row, &row);
            for kernel in kernels(dtype, op, dim) {
                let query = prepared(&kernel, &query_row);
                let mut total = 0.0;
                for cut in cuts.windows(2) {
                    let range = cut[0] * dtype.size()..cut[1] * dtype.size();
                    let part = kernel.part(&query, cut[0], &row[range.clone()]);
                    let right = exact(dtype, op, &query_row[range.clone()], &row[range]);
                    assert_close(&kernel, part, right, "a part");
                    total += f64::from(part);
                }
                prop_assert!((total - sum).abs() <= 1e-5 * size);
            }
        }
    }

    #[test]
    fn sums_below_the_bound_are_whole(dim in 1usize..=3000, count in 0usize..=150, at in 0usize..150, seed: u64) {
        for (dtype, op) in DTYPES.into_iter().flat_map(|dtype| OPS.map(|op| (dtype, op))) {
            let random = &mut Random(seed);
            let (base, offsets) = unaligned_rows(random, dtype, dim, count);
            let row = random.elements(dtype, dim);
            for kernel in kernels(dtype, op, dim) {
                let query = prepared(&kernel, &row);
                let (mut whole, mut out) = (vec![f32::NAN; count], vec![f32::NAN; count]);
                prop_assert!(kernel.rows(&query, &base, &offsets, f32::INFINITY, &mut whole));
                let bound = whole.get(at).copied().unwrap_or(1.0);
                prop_assert!(kernel.rows(&query, &base, &offsets, bound, &mut out));
                for (&whole, &got) in whole.iter().zip(&out) {
                    let given_up = op == Op::L2sq && (bound..=whole).contains(&got);
                    prop_assert!(got.to_bits() == whole.to_bits() || given_up, "{kernel:?}: {got} for {whole}");
                }
            }
        }
    }

    #[test]
    fn rows_outside_are_refused(
        dim in 1usize..=100,
        good in 0usize..=12,
        place in 0usize..=12,
        bad in prop_oneof![0u64..=3, Just(1 << 62), Just(1 << 63), (u64::MAX - 3)..=u64::MAX],
    ) {
        for kernel in kernels(DType::F32, Op::L2sq, dim) {
            let base = vec![0u8; 2 * kernel.row_bytes()];
            let query = prepared(&kernel, &base[..kernel.row_bytes()]);
            let last = kernel.row_bytes() as u64;
            let mut offsets = vec![last; good];
            let mut out = vec![f32::NAN; good];
            prop_assert!(kernel.rows(&query, &base, &offsets, f32::INFINITY, &mut out));
            prop_assert!(out.iter().all(|&sum| sum == 0.0));

            offsets.insert(place.min(good), bad.max(last + 1 + bad % 4));
            out.push(f32::NAN);
            prop_assert!(!kernel.rows(&query, &base, &offsets, f32::INFINITY, &mut out));
            prop_assert!(!kernel.rows(&query, &base[..dim], &offsets, f32::INFINITY, &mut out));
        }
    }
}

#[test]
fn sums_are_right_at_long_lengths() {
    for dim in DIMS {
        for (dtype, op) in DTYPES.into_iter().flat_map(|dtype| OPS.map(|op| (dtype, op))) {
            check(dtype, op, dim, dim as u64);
        }
    }
}

#[test]
fn the_largest_bytes_do_not_overflow() {
    let extremes = [
        (DType::I8, -128i8 as u8, 127),
        (DType::I8, 128, 128),
        (DType::U8, 255, 255),
        (DType::U8, 255, 0),
    ];
    for (dtype, a, b) in extremes {
        for op in OPS {
            for (a, b) in [(a, b), (b, a)] {
                for kernel in kernels(dtype, op, MAX_DIM) {
                    let (a, b) = (vec![a; MAX_DIM], vec![b; MAX_DIM]);
                    let query = prepared(&kernel, &a);
                    let mut out = [f32::NAN; 5];
                    assert!(kernel.rows(&query, &b, &[0; 5], f32::INFINITY, &mut out));
                    for got in out {
                        assert_close(&kernel, got, exact(dtype, op, &a, &b), "extreme bytes");
                    }
                }
            }
        }
    }
}

#[test]
fn f16_query_widens_every_value() {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let finite: Vec<f16> = all.into_iter().filter(|value| value.is_finite()).collect();
    let mut row = Vec::new();
    f16::extend_bytes(&finite, &mut row);
    let kernel = Kernel::new(DType::F16, Op::Dot, finite.len());
    let query = prepared(&kernel, &row);
    let wide = f32::from_bytes(query.elements(DType::F16, finite.len()));
    assert!(
        wide.iter().zip(&finite).all(|(wide, value)| wide.to_bits() == value.to_f32().to_bits())
    );
}

#[test]
fn a_query_is_reused_without_allocation() {
    let mut query = Query::default();
    let large = Kernel::new(DType::F16, Op::Dot, 1000);
    large.prepare(&[0; 2000], &mut query);
    let address = query.elements(DType::F16, 1000).as_ptr();
    assert_eq!(address as usize % 64, 0);
    let small = Kernel::new(DType::F32, Op::Dot, 3);
    small.prepare(&[0; 12], &mut query);
    large.prepare(&[0; 2000], &mut query);
    assert_eq!(query.elements(DType::F16, 1000).as_ptr(), address);
}

#[test]
#[should_panic(expected = "prepared for another kernel")]
fn a_query_of_another_dimension_is_refused() {
    let query = prepared(&Kernel::new(DType::F32, Op::Dot, 3), &[0; 12]);
    Kernel::new(DType::F32, Op::Dot, 4).one(&query, &[0; 16]);
}

#[test]
#[should_panic(expected = "past the row's end")]
fn a_part_past_the_end_is_refused() {
    let kernel = Kernel::new(DType::F32, Op::Dot, 3);
    kernel.part(&prepared(&kernel, &[0; 12]), 2, &[0; 8]);
}

#[test]
fn prefetch_is_harmless_anywhere() {
    let base = vec![0u8; 1000];
    for offset in [0, 1, 63, 64, 999, 1000, 1001, 1 << 40, u64::MAX] {
        for len in [0, 1, 64, 1000, usize::MAX] {
            prefetch(&base, offset, len);
        }
    }
    prefetch(&[], 0, 1);
}
