//! Build an index, search it, save it, open it by mmap, change it.
//!
//! `cargo run --release --example quickstart`

use std::error::Error;

use ann_core::{AddOptions, AnyIndex, Filter, Hnsw, Index, Metric, Search};
use ndarray::{Array2, s};

/// Runs the example.
pub fn main() -> Result<(), Box<dyn Error>> {
    // 5,000 points on a winding curve in 32 dimensions, so that near rows are near vectors.
    let vectors = Array2::from_shape_fn((5_000, 32), |(i, j)| {
        (i as f32 * 0.002 * (1.0 + j as f32 / 8.0) + j as f32).sin()
    });

    let mut index = Hnsw::builder(32).metric(Metric::Cosine).m(16).ef_construction(200).build()?;
    let keys = index.add(vectors.view(), None, AddOptions::new())?;
    println!("{} vectors, keys {} to {}", index.len(), keys[0], keys[keys.len() - 1]);

    let query = vectors.row(1234).to_vec();
    for hit in index.search(&query, &Search::new(5).ef(64))? {
        println!("key {:5}  distance {:.6}", hit.key, hit.distance);
    }
    assert_eq!(index.search(&query, &Search::new(1))?[0].key, 1234);

    // Many queries at once, on all cores.
    let queries = vectors.slice(s![..100, ..]);
    let hits = index.search_batch(queries, &Search::new(3), 0)?;
    assert!(hits.iter().enumerate().all(|(row, hits)| hits[0].key == row as u64));

    // A file holds the same pages as memory does. Opening it maps it and reads one page.
    let folder = std::env::temp_dir().join(format!("ann-quickstart-{}", std::process::id()));
    let path = folder.join("vectors.ann");
    std::fs::create_dir_all(&folder)?;
    index.save(&path)?;

    let AnyIndex::Hnsw(mut file) = ann_core::open_writable(&path)? else {
        return Err("a graph was saved, something else opened".into());
    };
    assert_eq!(file.search(&query, &Search::new(5))?, index.search(&query, &Search::new(5))?);

    // Changes to a file are durable once `flush` has returned.
    assert_eq!(file.remove(&[1234, 1235, 999_999])?, 2);
    file.update(vectors.slice(s![..1, ..]), &[7], AddOptions::new())?;
    file.flush()?;
    drop(file);

    let AnyIndex::Hnsw(file) = ann_core::open(&path)? else {
        return Err("a graph was saved, something else opened".into());
    };
    let odd = |key: u64| key % 2 == 1;
    let hits = file.search(&query, &Search::new(5).filter(Filter::Predicate(&odd)))?;
    println!(
        "odd keys near the removed one: {:?}",
        hits.iter().map(|hit| hit.key).collect::<Vec<_>>()
    );
    assert!(hits.iter().all(|hit| odd(hit.key) && hit.key != 1235));
    assert_eq!(file.get::<f32>(7)?, Some(vectors.row(0).to_vec()));
    file.verify()?;

    // Tidying up; a file that stays in the folder for temporary files does no harm.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(())
}
