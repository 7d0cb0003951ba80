//! Every instruction set of this machine against the scalar scan, and that against the definition.

use half::f16;
use proptest::prelude::*;

use super::*;
use crate::seed::mix;

const ONES: Halves = [0x3c00; BLOCK];

fn others() -> impl Iterator<Item = FastScan> {
    [Isa::Avx512, Isa::Avx2, Isa::Neon].into_iter().filter_map(FastScan::with_isa)
}

fn scalar() -> FastScan {
    FastScan::with_isa(Isa::Scalar).expect("everywhere")
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| mix(seed.wrapping_add(i)) as u8).collect()
}

fn floats(seed: u64, len: usize, size: f32) -> Vec<f32> {
    let unit = |i| (mix(seed ^ i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    (0..len as u64).map(|i| unit(i) * size).collect()
}

fn lut(query: &[f32]) -> Lut {
    let mut lut = Lut::default();
    lut.fill(query);
    lut
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Scans and estimates of random codes that begin at an odd place.
fn check(dim: usize, planes: u8, start: usize, seed: u64) {
    let len = usize::from(planes) * plane_bytes(dim);
    let buffer = bytes(seed, start + len);
    let planes_of = &buffer[start..];
    let lut = lut(&floats(seed, dim, 3.0));
    let halves = |seed| -> Halves {
        let values: Vec<u16> =
            floats(seed, BLOCK, 1.0).into_iter().map(|x| f16::from_f32(x).to_bits()).collect();
        values.try_into().expect("32")
    };
    let (add, mul) = (halves(seed ^ 1), halves(seed ^ 2));
    let block = Block { planes: planes_of, bits: planes, add: &add, mul: &mul, scales: [4.0, 0.5] };
    let (mut right, mut sums) = ([f32::NAN; BLOCK], [0; BLOCK]);
    let _ = scalar().estimates(&block, &lut, 0.5, 0.0, &mut right);
    let bound = right[seed as usize % BLOCK];
    let mask = scalar().estimates(&block, &lut, 0.5, bound, &mut right);
    scalar().scan(&planes_of[..plane_bytes(dim)], &lut, &mut sums);
    for (i, right) in right.iter().enumerate() {
        assert_eq!(mask >> i & 1 == 1, *right < bound);
    }
    for scan in others() {
        let (mut got, mut got_sums) = ([f32::NAN; BLOCK], [7; BLOCK]);
        let got_mask = scan.estimates(&block, &lut, 0.5, bound, &mut got);
        assert_eq!((bits(&got), got_mask), (bits(&right), mask), "{scan:?}, {dim} x {planes}");
        scan.scan(&planes_of[..plane_bytes(dim)], &lut, &mut got_sums);
        assert_eq!(got_sums, sums, "{scan:?}, {dim}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn instruction_sets_agree_to_the_last_bit(steps in 1usize..=300, planes in 1u8..=8, start in 0usize..64, seed: u64) {
        check(8 * steps, planes, start, seed);
    }

    #[test]
    fn codes_come_back(steps in 1usize..=40, planes in 1u8..=8, seed: u64) {
        let dim = 8 * steps;
        let mut block = bytes(seed, usize::from(planes) * plane_bytes(dim));
        let code = |slot| -> Vec<u8> {
            bytes(seed ^ slot, dim).into_iter().map(|code| code >> (8 - planes)).collect()
        };
        // Twice, so that slots are written over.
        for slot in (0..32).chain((0..32).rev()) {
            put(&mut block, planes, slot, &code(slot as u64));
        }
        for slot in 0..32 {
            let mut got = vec![0xff; dim];
            get(&block, planes, slot, &mut got);
            prop_assert_eq!(got, code(slot as u64));
        }
    }

    /// The estimate's dot product, against that of the query and the code's levels, for queries of any size.
    #[test]
    fn estimates_are_near(steps in 1usize..=100, planes in 1u8..=8, exponent in -30i32..=18, seed: u64) {
        let dim = 8 * steps;
        let query = floats(seed, dim, 10f32.powi(exponent));
        let lut = lut(&query);
        let mut planes_of = vec![0; usize::from(planes) * plane_bytes(dim)];
        let codes: Vec<u8> = bytes(!seed, dim).into_iter().map(|code| code >> (8 - planes)).collect();
        put(&mut planes_of, planes, 19, &codes);
        let block = Block { planes: &planes_of, bits: planes, add: &[0; 32], mul: &ONES, scales: [1.0; 2] };
        let mut out = [f32::NAN; BLOCK];
        let _ = FastScan::new().estimates(&block, &lut, 0.0, 0.0, &mut out);
        let most = f64::from((1u32 << planes) - 1);
        let terms = codes.iter().zip(&query);
        let dot: f64 = terms.map(|(&u, &q)| (f64::from(u) - most / 2.0) * f64::from(q)).sum();
        // An entry is off by half a unit at most, and floats by their rounding.
        let slack = f64::from(lut.delta()) * most * (dim as f64 / 8.0 + 0.01);
        prop_assert!((f64::from(out[19]) - dot).abs() <= slack, "{} for {dot}", out[19]);
    }
}

/// Distances of random nibbles that begin at an odd place.
fn check_tables(subs: usize, start: usize, size: f32, seed: u64) {
    let buffer = bytes(seed, start + nibble_bytes(subs));
    let codes = &buffer[start..];
    let entries: Vec<[f32; SUB]> =
        (0..subs as u64).map(|sub| floats(seed ^ sub, SUB, size).try_into().expect("16")).collect();
    let mut tables = Tables::default();
    tables.fill(&entries);
    let addends: Vec<f32> = floats(!seed, BLOCK, size);
    let mut bytes = NO_ADDENDS;
    for (bytes, addend) in bytes.as_chunks_mut().0.iter_mut().zip(&addends) {
        *bytes = addend.to_le_bytes();
    }
    let mut right = [f32::NAN; BLOCK];
    let _ = scalar().distances(codes, &tables, Some(&bytes), 0.5, 0.0, &mut right);
    let bound = right[seed as usize % BLOCK];
    let mask = scalar().distances(codes, &tables, Some(&bytes), 0.5, bound, &mut right);
    for slot in 0..BLOCK {
        assert_eq!(mask >> slot & 1 == 1, right[slot] < bound);
        let mut code = vec![0; subs];
        get_nibbles(codes, slot, &mut code);
        let terms = code.iter().zip(&entries).map(|(&code, table)| f64::from(table[code as usize]));
        let exact = terms.sum::<f64>() + f64::from(addends[slot]) + 0.5;
        let slack =
            f64::from(tables.delta()) * 0.51 * subs as f64 + f64::from(size) * 1e-5 * subs as f64;
        assert!(
            (f64::from(right[slot]) - exact).abs() <= slack + 1e-5,
            "{} for {exact}",
            right[slot]
        );
    }
    for scan in others() {
        let mut got = [f32::NAN; BLOCK];
        let got_mask = scan.distances(codes, &tables, Some(&bytes), 0.5, bound, &mut got);
        assert_eq!((self::bits(&got), got_mask), (self::bits(&right), mask), "{scan:?}, {subs}");
    }
    // Without addends, of which none, one, some or all are below the bound.
    let _ = scalar().distances(codes, &tables, None, 0.5, f32::INFINITY, &mut right);
    let mut sorted = right;
    sorted.sort_unstable_by(f32::total_cmp);
    let bounds = [sorted[0], sorted[0].next_up(), sorted[seed as usize % BLOCK], f32::INFINITY];
    for (bound, scan) in
        bounds.into_iter().flat_map(|bound| others().map(move |scan| (bound, scan)))
    {
        let mut got = right;
        let mask = scan.distances(codes, &tables, None, 0.5, bound, &mut got);
        for (slot, distance) in right.iter().enumerate() {
            let is_below = mask >> slot & 1 == 1;
            assert_eq!(is_below, *distance < bound, "{scan:?}, {subs}, below {bound}");
        }
        assert_eq!(self::bits(&got), self::bits(&right), "{scan:?}, {subs}");
    }
}

/// Distances of random codes of some bits a coordinate that begin at an odd place.
fn check_scaled(dim: usize, planes: u8, start: usize, size: f32, seed: u64) {
    let buffer = bytes(seed, start + usize::from(planes) * plane_bytes(dim));
    let codes = &buffer[start..];
    let query = floats(seed, dim, size);
    let entry = |four: &[f32], n: usize| -> f32 {
        four.iter().enumerate().map(|(i, q)| if n >> i & 1 == 1 { 0.5 * q } else { -0.5 * q }).sum()
    };
    let entries: Vec<[f32; SUB]> =
        query.chunks(4).map(|four| std::array::from_fn(|n| entry(four, n))).collect();
    let mut tables = Tables::default();
    tables.fill(&entries);
    let numbers = |seed| {
        let (mut bytes, values) = (NO_ADDENDS, floats(seed, BLOCK, 2.0));
        for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(&values) {
            *bytes = value.to_le_bytes();
        }
        (bytes, values)
    };
    let ((add, adds), (mul, muls)) = (numbers(!seed), numbers(seed ^ 77));
    let factors = Factors { add: &add, mul: &mul };
    let mut right = [f32::NAN; BLOCK];
    let _ = scalar().scaled(codes, &tables, factors, 0.5, 0.0, &mut right);
    let bound = right[seed as usize % BLOCK];
    let mask = scalar().scaled(codes, &tables, factors, 0.5, bound, &mut right);
    let most = f64::from((1u32 << planes) - 1);
    for slot in 0..BLOCK {
        assert_eq!(mask >> slot & 1 == 1, right[slot] < bound);
        let mut code = vec![0; dim];
        get(codes, planes, slot, &mut code);
        let terms = code.iter().zip(&query);
        let dot: f64 = terms.map(|(&u, &q)| (f64::from(u) - most / 2.0) * f64::from(q)).sum();
        let exact = f64::from(adds[slot]) + f64::from(muls[slot]) * dot + 0.5;
        // An entry is off by half a unit at most, and floats by their rounding.
        let units = f64::from(tables.delta()) * 0.51 + f64::from(size) * 1e-5;
        let slack = 2.0 * most * units * dim as f64 / 4.0 + 1e-5;
        assert!((f64::from(right[slot]) - exact).abs() <= slack, "{} for {exact}", right[slot]);
    }
    for scan in others() {
        for bound in [bound, f32::NEG_INFINITY] {
            let mut got = [f32::NAN; BLOCK];
            let got_mask = scan.scaled(codes, &tables, factors, 0.5, bound, &mut got);
            let mask = if bound.is_finite() { mask } else { 0 };
            assert_eq!((self::bits(&got), got_mask), (self::bits(&right), mask), "{scan:?}, {dim}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn scaled_distances_agree_to_the_last_bit(
        steps in 1usize..=300, planes in 1u8..=4, start in 0usize..64, exponent in -10i32..=10, seed: u64
    ) {
        check_scaled(8 * steps, planes, start, 10f32.powi(exponent), seed);
    }

    #[test]
    fn tables_agree_to_the_last_bit(subs in 1usize..=600, start in 0usize..64, exponent in -20i32..=18, seed: u64) {
        check_tables(subs, start, 10f32.powi(exponent), seed);
    }

    #[test]
    fn nibbles_come_back(subs in 1usize..=100, seed: u64) {
        let mut block = bytes(seed, nibble_bytes(subs));
        let code = |slot| -> Vec<u8> {
            bytes(seed ^ slot, subs).into_iter().map(|code| code & 15).collect()
        };
        for slot in (0..32).chain((0..32).rev()) {
            put_nibbles(&mut block, slot, &code(slot as u64));
        }
        for slot in 0..32 {
            let mut got = vec![0xff; subs];
            get_nibbles(&block, slot, &mut got);
            prop_assert_eq!(got, code(slot as u64));
        }
    }
}

#[test]
fn many_sub_quantizers_of_the_largest_entries_do_not_overflow() {
    for subs in [256, 257, 258, 768, 1536, 16_000] {
        check_tables(subs, 3, 1.0, 5);
        let mut table = [0.0; SUB];
        table[15] = 1.0;
        let mut tables = Tables::default();
        tables.fill(&vec![table; subs]);
        for scan in others().chain([scalar()]) {
            let mut out = [0.0; BLOCK];
            let codes = vec![0xff; nibble_bytes(subs)];
            let mask = scan.distances(&codes, &tables, None, 0.0, f32::INFINITY, &mut out);
            assert_eq!(mask, !0);
            let right = subs as f32;
            assert!(out.iter().all(|got| (got / right - 1.0).abs() < 1e-5), "{scan:?}: {out:?}");
        }
    }
}

#[test]
fn tables_without_a_spread_are_zeros() {
    for value in [0.0, 1e-45, 3e38, f32::NAN] {
        let mut tables = Tables::default();
        tables.fill(&[[value; SUB]; 3]);
        assert_eq!(tables.delta(), 0.0);
        let mut out = [0.0; BLOCK];
        let _ = FastScan::new().distances(&[0xff; 64], &tables, None, 1.0, 2.0, &mut out);
    }
}

#[test]
fn long_codes_of_the_largest_lookups_do_not_overflow() {
    for dim in [8, 1024, 1032, 1536, 16_000, 65_536] {
        // Each table's largest entry is 255, of nibble 15.
        let lut = lut(&vec![1.0; dim]);
        let planes = vec![0xff; 8 * plane_bytes(dim)];
        for scan in others().chain([scalar()]) {
            let mut sums = [0; BLOCK];
            scan.scan(&planes[..plane_bytes(dim)], &lut, &mut sums);
            assert_eq!(sums, [dim as u32 / 4 * 255; BLOCK], "{scan:?}, {dim}");
            let block =
                Block { planes: &planes, bits: 8, add: &[0; 32], mul: &ONES, scales: [1.0; 2] };
            let mut out = [f32::NAN; BLOCK];
            let _ = scan.estimates(&block, &lut, 0.0, 0.0, &mut out);
            let right = 127.5 * dim as f32;
            assert!(out.iter().all(|got| (got / right - 1.0).abs() < 1e-5), "{scan:?}: {out:?}");
        }
        check(dim, 2, 1, dim as u64);
    }
}

#[test]
fn degenerate_queries_make_zeros() {
    let largest = f32::MAX / 64.0;
    for value in [0.0, -0.0, f32::MIN_POSITIVE, -1e-40, 1e-45, 1e-30, 1e18, largest, -largest] {
        for query in [vec![value; 16], [vec![value], vec![0.0; 15]].concat()] {
            let lut = lut(&query);
            let planes: Vec<u8> = bytes(1, plane_bytes(16));
            let block =
                Block { planes: &planes, bits: 1, add: &[0; 32], mul: &ONES, scales: [1.0; 2] };
            let mut out = [f32::NAN; BLOCK];
            let mask = FastScan::new().estimates(&block, &lut, 0.0, f32::INFINITY, &mut out);
            assert_eq!(mask, !0);
            assert!(out.iter().all(|out| out.is_finite()), "{value}: {out:?}");
            if value.abs() < 1e-37 {
                assert_eq!(out, [0.0; BLOCK]);
            }
        }
    }
}

#[test]
fn tables_are_reused_without_allocation() {
    let mut lut = Lut::default();
    lut.fill(&[1.0; 1000]);
    let address = lut.tables().as_ptr();
    assert_eq!(address as usize % 64, 0);
    lut.fill(&[1.0; 8]);
    lut.fill(&[1.0; 1000]);
    assert_eq!(lut.tables().as_ptr(), address);
}

#[test]
#[should_panic(expected = "a plane has the query's dimension")]
fn a_plane_of_another_dimension_is_refused() {
    FastScan::new().scan(&[0; 64], &lut(&[1.0; 8]), &mut [0; 32]);
}

#[test]
#[should_panic(expected = "planes have the query's dimension")]
fn a_missing_plane_is_refused() {
    let block = Block { planes: &[0; 32], bits: 2, add: &[0; 32], mul: &ONES, scales: [1.0; 2] };
    let _ = FastScan::new().estimates(&block, &lut(&[1.0; 8]), 0.0, 0.0, &mut [0.0; 32]);
}
