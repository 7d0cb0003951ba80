//! A search that goes on until the caller has enough: when the test that a hit has to pass is too costly, or too much
//! elsewhere, to be a filter.
//!
//! `cargo run --release --example continued`

use ann_core::{AddOptions, Error, Filter, Hnsw, Index};
use ndarray::Array2;

/// Runs the example.
pub fn main() -> Result<(), Error> {
    let vectors = Array2::from_shape_fn((3_000, 16), |(i, j)| {
        ((i * 7919 + j * 104_729) % 1009) as f32 + (i % (j + 2)) as f32
    });
    let mut index = Hnsw::builder(16).m(12).build()?;
    index.add(vectors.view(), None, AddOptions::new())?;

    // As if each hit had to be looked up somewhere to see whether it is still for sale.
    let is_for_sale = |key: u64| key.is_multiple_of(17);
    let query = vectors.row(500).to_vec();
    let mut cursor = index.cursor(&query, 64)?;
    let (mut found, mut looked_up) = (Vec::new(), 0);
    while found.len() < 10 {
        let hits = index.resume(&mut cursor, 20, Filter::None)?;
        if hits.is_empty() {
            break;
        }
        looked_up += hits.len();
        found.extend(hits.into_iter().filter(|hit| is_for_sale(hit.key)));
    }
    found.truncate(10);
    println!("{} of {looked_up} hits are for sale", found.len());
    assert_eq!(found.len(), 10);
    assert!(found.iter().all(|hit| is_for_sale(hit.key)) && looked_up < index.len());

    // A cursor never mixes two states of the index.
    index.remove(&[500])?;
    assert!(matches!(index.resume(&mut cursor, 20, Filter::None), Err(Error::Changed)));
    Ok(())
}
