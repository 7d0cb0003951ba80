//! What the tests of the indexes share: real and made-up vectors, and recall.

// Each test file compiles this module and uses its own part of it.
#![allow(dead_code)]

pub mod home;
pub mod metered;
pub mod oracle;

use std::path::PathBuf;

use ann_core::testing::Rng;
use ann_core::{AddOptions, Element, Hit, Index, Search};
use half::f16;
use ndarray::{Array2, ArrayView2};

/// The real vectors that ship with the repository, and the rows nearest to each query by angle, nearest first.
pub struct SmallSet {
    pub base: Array2<f32>,
    pub queries: Array2<f32>,
    pub neighbors: Vec<Vec<u32>>,
}

/// Reads the small set; its layout is in `datasets/README.md`.
pub fn small_set() -> SmallSet {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../datasets/small/glove-small-100-angular.bin");
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(&bytes[..8], b"ANNSMALL", "{} is not the small set", path.display());
    let (words, _) = bytes[8..24].as_chunks();
    let [n, queries, dim, k] = [0, 1, 2, 3].map(|i| u32::from_le_bytes(words[i]) as usize);
    let (vectors, neighbors) = bytes[24..].split_at(2 * (n + queries) * dim);
    let floats: Vec<f32> =
        vectors.as_chunks().0.iter().map(|&half| f16::from_le_bytes(half).to_f32()).collect();
    let ids: Vec<u32> = neighbors.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id)).collect();
    let (base, rest) = floats.split_at(n * dim);
    SmallSet {
        base: Array2::from_shape_vec((n, dim), base.to_vec()).unwrap(),
        queries: Array2::from_shape_vec((queries, dim), rest.to_vec()).unwrap(),
        neighbors: ids.chunks(k).map(<[u32]>::to_vec).collect(),
    }
}

/// A float in `[0, 1)`.
pub fn uniform(rng: &mut Rng) -> f32 {
    (rng.next() >> 40) as f32 / (1u64 << 24) as f32
}

/// A number about as the normal distribution draws them.
pub fn normal(rng: &mut Rng) -> f32 {
    (0..12).map(|_| uniform(rng)).sum::<f32>() - 6.0
}

/// Numbers from about -100 to 100 in clusters whose spread is a third of their distances.
pub fn clustered(n: usize, dim: usize, seed: u64) -> Array2<f32> {
    let rng = &mut Rng(seed);
    let centers = Array2::from_shape_simple_fn((1 + n / 50, dim), || 24.0 * normal(rng));
    let mut rows = Array2::zeros((n, dim));
    for mut row in rows.rows_mut() {
        let center = centers.row(rng.below(centers.nrows()));
        row.zip_mut_with(&center, |value, center| *value = center + 8.0 * normal(rng));
    }
    rows
}

/// The same vectors in another element type; unsigned ones are moved up to be positive.
pub fn cast<T: Element>(floats: &Array2<f32>) -> Array2<T> {
    let shift = if T::DTYPE == ann_core::DType::U8 { 128.0 } else { 0.0 };
    floats.mapv(|value| T::from_f32(value + shift))
}

/// The vectors as integers: the largest value becomes 127.
pub fn quantised(floats: &Array2<f32>, largest: f32) -> Array2<i8> {
    floats.mapv(|value| i8::from_f32((value * 127.0 / largest).clamp(-127.0, 127.0)))
}

/// The share of the `k` nearest that were found. A hit counts if it is no farther than the true `k`-th, up to
/// rounding; `truth` is the true distances, nearest first.
pub fn recall(hits: &[Hit], truth: &[f32], k: usize) -> f64 {
    let k = k.min(truth.len());
    let Some(&bound) = truth[..k].last() else {
        return 1.0;
    };
    let bound = bound + 1e-5 * bound.abs().max(1e-2);
    let near = hits.iter().take(k).filter(|hit| hit.distance <= bound).count();
    near as f64 / k as f64
}

/// The mean recall@k over all queries, against the truth of `exact`, which holds the same vectors.
pub fn mean_recall<T: Element>(
    index: &impl Index,
    exact: &impl Index,
    queries: ArrayView2<'_, T>,
    k: usize,
    ef: usize,
) -> f64 {
    let found = index.search_batch(queries, &Search::new(k).ef(ef), 0).unwrap();
    let truth = exact.search_batch(queries, &Search::new(k), 0).unwrap();
    let sum: f64 = found
        .iter()
        .zip(&truth)
        .map(|(hits, truth)| {
            recall(hits, &truth.iter().map(|hit| hit.distance).collect::<Vec<_>>(), k)
        })
        .sum();
    sum / queries.nrows() as f64
}

/// Adds rows under their row numbers.
pub fn add_all<T: Element>(index: &mut impl Index, rows: ArrayView2<'_, T>) {
    let keys: Vec<u64> = (0..rows.nrows() as u64).collect();
    index.add(rows, Some(&keys), AddOptions::new()).unwrap();
}

/// The numbers below `n` in a random order.
pub fn shuffled(n: usize, seed: u64) -> Vec<u64> {
    let rng = &mut Rng(seed);
    let mut numbers: Vec<u64> = (0..n as u64).collect();
    for i in (1..n).rev() {
        numbers.swap(i, rng.below(i + 1));
    }
    numbers
}
