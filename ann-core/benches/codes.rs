//! Time to rotate a vector, to encode it, to make a query's tables, and to score in cache a block of 32 codes, of RaBitQ
//! and of a product quantizer, and 16 packed codes, by every instruction set.

use std::hint::black_box;

use ann_core::code::{Rotation, rabitq};
use ann_core::kernel::fastscan::{Block, FastScan, Lut, Tables, nibble_bytes, plane_bytes};
use ann_core::kernel::packed::{Packed, Weights, code_bytes};
use ann_core::kernel::{Isa, Op};
use criterion::{Criterion, criterion_group, criterion_main};

const DIMS: [usize; 5] = [100, 128, 384, 784, 1536];
const BITS: [u8; 4] = [1, 2, 4, 8];
const ISAS: [Isa; 4] = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Scalar];

fn codes(c: &mut Criterion) {
    for dim in DIMS {
        let mut group = c.benchmark_group(format!("codes {dim}"));
        let rotation = Rotation::new(dim, 1);
        let vector: Vec<f32> = (0..dim).map(|i| (i as f32).sin()).collect();
        let mut rotated = Vec::new();
        group.bench_function("rotate", |b| {
            b.iter(|| rotation.apply(black_box(&vector), black_box(&mut rotated)));
        });

        let padded = rotation.padded();
        let mut codes = vec![0; padded];
        for bits in BITS {
            group.bench_function(format!("encode {bits}"), |b| {
                b.iter(|| {
                    rabitq::encode(Op::L2sq, bits, black_box(&rotated), Some(&rotated), &mut codes)
                });
            });
        }

        let mut lut = Lut::default();
        group.bench_function("tables", |b| b.iter(|| lut.fill(black_box(&rotated))));

        // Room for a start on a cache line.
        let len = 8 * plane_bytes(padded);
        let bytes: Vec<u8> = (0..len + 64).map(|i| ((i * 7919) >> 3) as u8).collect();
        let planes = &bytes[bytes.as_ptr().align_offset(64)..][..len];
        let mut out = [0.0; 32];
        for scan in ISAS.into_iter().filter_map(FastScan::with_isa) {
            for bits in BITS {
                let block = Block {
                    planes: &planes[..usize::from(bits) * plane_bytes(padded)],
                    bits,
                    add: &[0x3800; 32],
                    mul: &[0x3400; 32],
                    scales: [1.0; 2],
                };
                group.bench_function(format!("{:?} estimates {bits}", scan.isa()), |b| {
                    b.iter(|| scan.estimates(black_box(&block), &lut, 1.0, 2.0, &mut out));
                });
            }
        }
    }
}

/// Sub-quantizers.
const SUBS: [usize; 4] = [50, 64, 96, 196];

fn product_codes(c: &mut Criterion) {
    for subs in SUBS {
        let mut group = c.benchmark_group(format!("product codes {subs}"));
        let entries: Vec<[f32; 16]> =
            (0..subs * 16).map(|i| (i as f32).sin()).collect::<Vec<f32>>().as_chunks().0.to_vec();
        let mut tables = Tables::default();
        group.bench_function("tables", |b| b.iter(|| tables.fill(black_box(&entries))));
        let len = nibble_bytes(subs);
        let bytes: Vec<u8> = (0..len + 64).map(|i| ((i * 7919) >> 3) as u8).collect();
        let codes = &bytes[bytes.as_ptr().align_offset(64)..][..len];
        let mut out = [0.0; 32];
        for scan in ISAS.into_iter().filter_map(FastScan::with_isa) {
            // Of blocks that searches read, few have anything below the bound.
            for (name, bound) in [("none below", -1e9), ("all below", 1e9)] {
                group.bench_function(format!("{:?} {name}", scan.isa()), |b| {
                    b.iter(|| {
                        scan.distances(black_box(codes), &tables, None, 0.0, bound, &mut out)
                    });
                });
            }
        }
    }
}

/// Codes that are scored in one call: about what a hop meets.
const ROWS: usize = 16;

fn packed_codes(c: &mut Criterion) {
    for dim in DIMS {
        let mut group = c.benchmark_group(format!("packed codes {dim}"));
        let query: Vec<f32> = (0..dim).map(|i| (i as f32).sin()).collect();
        for bits in BITS {
            let mut weights = Weights::default();
            weights.fill(&query, bits);
            let stride = code_bytes(dim, bits) + 16;
            let bytes: Vec<u8> = (0..ROWS * stride).map(|i| ((i * 7919) >> 3) as u8).collect();
            let offsets: Vec<u64> = (0..ROWS).map(|row| (row * stride + 16) as u64).collect();
            let mut out = [0.0; ROWS];
            for isa in ISAS {
                let Some(packed) = Packed::with_isa(bits, isa) else { continue };
                group.bench_function(format!("{isa:?} {bits}"), |b| {
                    b.iter(|| packed.rows(&weights, black_box(&bytes), &offsets, &mut out));
                });
            }
        }
    }
}

criterion_group!(benches, codes, product_codes, packed_codes);
criterion_main!(benches);
