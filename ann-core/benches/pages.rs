//! What pages cost: the bottom level's search over pages beside the same over plain arrays, interleaved.
//!
//! `cargo bench -p ann-core --bench pages` prints the median ratio of 30 interleaved pairs. For instruction counts,
//! which `benches/pages.py` takes under callgrind, `save PATH` builds the index and saves it, and `pages PATH N` and
//! `plain PATH N` open it and run N passes of the one or the other and nothing else.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use ann_core::plain::{Plain, Work};
use ann_core::{AddOptions, Hnsw, Index, MemStore, Metric};
use criterion::Criterion;
use half::f16;
use ndarray::{Array2, ArrayView2, s};

/// Size of the candidate pool.
const EF: usize = 100;

/// The small real data set that ships with the repository: base and queries.
fn small() -> (Array2<f32>, Array2<f32>) {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../datasets/small/glove-small-100-angular.bin");
    let bytes = std::fs::read(path).expect("the small data set ships with the repository");
    let number =
        |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().expect("4 bytes")) as usize;
    let (n, queries, d) = (number(8), number(12), number(16));
    let floats: Vec<f32> = bytes[24..24 + 2 * (n + queries) * d]
        .chunks_exact(2)
        .map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32())
        .collect();
    let all = Array2::from_shape_vec((n + queries, d), floats).expect("as many as the header says");
    (all.slice(s![..n, ..]).to_owned(), all.slice(s![n.., ..]).to_owned())
}

fn pass(queries: ArrayView2<'_, f32>, mut search: impl FnMut(&[f32]) -> f32) -> f32 {
    queries.rows().into_iter().map(|query| search(query.as_slice().expect("contiguous"))).sum()
}

fn build(base: ArrayView2<'_, f32>) -> Hnsw {
    let builder = Hnsw::builder(base.ncols()).metric(Metric::L2sq).ef_construction(64);
    let mut index = builder.build().expect("parameters");
    index.add(base, None, AddOptions::new()).expect("good rows");
    index
}

fn main() {
    let (base, queries) = small();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, what, path, ..] = &arguments[..]
        && what == "save"
    {
        return build(base.view()).save(Path::new(path)).expect("a path to write to");
    }
    let counted = match &arguments[..] {
        [_, what, path, passes, ..] => {
            passes.parse().ok().map(|passes: usize| (what, path, passes))
        }
        _ => None,
    };
    let index = match counted {
        Some((_, path, _)) => {
            MemStore::load(Path::new(path)).and_then(Hnsw::open_in).expect("a saved index")
        }
        None => build(base.view()),
    };
    let plain = Plain::new(&index).expect("a good index");
    let mut work = Work::default();
    let mut on_pages = |query: &[f32]| index.search_bottom(query, EF, &mut work).expect("search");
    let mut plain_work = Work::default();
    let mut on_arrays = |query: &[f32]| plain.search(query, EF, &mut plain_work).expect("search");

    if let Some((what, _, passes)) = counted {
        for _ in 0..passes {
            black_box(match what.as_str() {
                "pages" => pass(queries.view(), &mut on_pages),
                _ => pass(queries.view(), &mut on_arrays),
            });
        }
        return;
    }

    let mut ratios: Vec<f64> = (0..30)
        .map(|_| {
            let start = Instant::now();
            let a = black_box(pass(queries.view(), &mut on_pages));
            let pages = start.elapsed();
            let start = Instant::now();
            let b = black_box(pass(queries.view(), &mut on_arrays));
            assert_eq!(a, b, "the two searches find the same");
            pages.as_secs_f64() / start.elapsed().as_secs_f64()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!("pages / plain arrays, median of 30 interleaved pairs: {:.3}", ratios[15]);

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("bottom level, 500 queries, ef 100");
    group.bench_function("pages", |bencher| bencher.iter(|| pass(queries.view(), &mut on_pages)));
    group.bench_function("arrays", |bencher| bencher.iter(|| pass(queries.view(), &mut on_arrays)));
    group.finish();
}
