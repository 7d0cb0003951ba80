//! Search among some of the vectors: those with certain keys, or those of which a function says yes.
//!
//! The index looks at how many vectors pass. Are they few, it scores each of them; are they many, it searches the
//! graph and walks through the others as well. Either way the answer is the nearest that pass.
//!
//! `cargo run --release --example filtered`

use ann_core::{AddOptions, Error, Filter, Flat, Hnsw, Index, Metric, Search};
use ndarray::Array2;

/// Runs the example.
pub fn main() -> Result<(), Error> {
    // Keys are the caller's: here, the upper half of one is a shop, the lower half an article.
    let (shops, articles, dim) = (20u64, 300u64, 24);
    let keys: Vec<u64> = (0..shops)
        .flat_map(|shop| (0..articles).map(move |article| shop << 32 | article))
        .collect();
    let mut state = 1u64;
    let vectors = Array2::from_shape_simple_fn((keys.len(), dim), || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32
    });

    let mut index = Hnsw::builder(dim).metric(Metric::L2sq).build()?;
    index.add(vectors.view(), Some(&keys), AddOptions::new())?;
    let mut exact = Flat::builder(dim).metric(Metric::L2sq).build()?;
    exact.add(vectors.view(), Some(&keys), AddOptions::new())?;

    let query = vectors.row(17).to_vec();
    let one_shop = |key: u64| key >> 32 == 3;
    let most_shops = |key: u64| key >> 32 != 0;
    let wanted = [5 << 32 | 1, 5 << 32 | 2, 9 << 32 | 7, 999 << 32];
    for (name, filter) in [
        ("no filter", Filter::None),
        ("four keys, of which one is unknown", Filter::Keys(&wanted)),
        ("one shop of twenty", Filter::Predicate(&one_shop)),
        ("all shops but one", Filter::Predicate(&most_shops)),
    ] {
        let options = Search::new(5).ef(200).filter(filter);
        let (hits, cost) = index.search_counted(&query, &options)?;
        println!("{name}: {} hits, {} distances computed", hits.len(), cost.distances);
        for hit in &hits {
            println!(
                "  shop {:2} article {:3}  {:.4}",
                hit.key >> 32,
                hit.key as u32,
                hit.distance
            );
        }
        let truth = exact.search(&query, &options)?;
        assert_eq!(hits.len(), truth.len());
        assert!(hits[0].distance <= truth[0].distance);
    }

    // All within a distance, in one shop.
    let options = Search::new(1).filter(Filter::Predicate(&one_shop));
    let hits = index.range_search(&query, 3.0, &options)?;
    println!("{} articles of shop 3 within a squared distance of 3", hits.len());
    assert!(hits.iter().all(|hit| hit.distance <= 3.0 && one_shop(hit.key)));
    assert_eq!(hits.len(), exact.range_search(&query, 3.0, &options)?.len());
    Ok(())
}
