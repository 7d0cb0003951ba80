//! Time to score 32 rows, in cache and at random places of a base that no cache holds, by every instruction set.
//! Throughput is rows a second.

use std::hint::black_box;

use ann_core::DType;
use ann_core::kernel::{Isa, Kernel, Op, Query, prefetch};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memmap2::MmapMut;

const ROWS: usize = 32;
const BASE_BYTES: usize = 200 << 20;
const DIMS: [usize; 4] = [100, 128, 784, 1536];
const DTYPES: [DType; 4] = [DType::F32, DType::F16, DType::I8, DType::U8];
const ISAS: [Isa; 5] = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Simsimd, Isa::Scalar];

/// xorshift: enough to defeat the hardware prefetcher.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Bytes that are ordinary numbers in every type, on huge pages where the system has them.
fn base() -> MmapMut {
    let mut base = MmapMut::map_anon(BASE_BYTES).expect("memory for the base");
    // A refusal costs speed only.
    #[cfg(target_os = "linux")]
    let _ = base.advise(memmap2::Advice::HugePage);
    let mut state = 1;
    for word in base.as_chunks_mut::<8>().0 {
        // Each half has the exponent of an f16 near 1, which is also that of a plain f32: subnormals would be slow.
        *word = (random(&mut state) & 0x83ff_83ff_83ff_83ff | 0x3800_3800_3800_3800).to_le_bytes();
    }
    base
}

fn kernels(c: &mut Criterion) {
    let base = base();
    for dtype in DTYPES {
        for (name, op) in [("l2sq", Op::L2sq), ("dot", Op::Dot)] {
            for dim in DIMS {
                let mut group = c.benchmark_group(format!("{dtype} {name} {dim}"));
                group.throughput(Throughput::Elements(ROWS as u64));
                for isa in ISAS {
                    let Some(kernel) = Kernel::with_isa(dtype, op, dim, isa) else {
                        continue;
                    };
                    let row_bytes = kernel.row_bytes();
                    let mut query = Query::default();
                    kernel.prepare(&base[..row_bytes], &mut query);
                    let mut out = [0.0; ROWS];

                    let near: Vec<u64> = (0..ROWS).map(|i| (i * row_bytes) as u64).collect();
                    group.bench_function(format!("{isa:?} cached"), |b| {
                        b.iter(|| {
                            kernel.rows(
                                &query,
                                &base,
                                black_box(&near),
                                f32::INFINITY,
                                black_box(&mut out),
                            )
                        });
                    });

                    let mut state = 1;
                    let places = (BASE_BYTES / row_bytes) as u64;
                    let mut far =
                        || [(); ROWS].map(|()| random(&mut state) % places * row_bytes as u64);
                    group.bench_function(format!("{isa:?} random"), |b| {
                        b.iter(|| {
                            let far = far();
                            far.iter().for_each(|&at| prefetch(&base, at, row_bytes));
                            kernel.rows(&query, &base, &far, f32::INFINITY, black_box(&mut out))
                        });
                    });
                }
            }
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
