//! What IVF-PQ promises beyond the trait: recall of codes and of searches, training, upkeep of lists, and tuning.

mod common;

use ann_core::{
    AddOptions, AnyIndex, Error, Filter, Flat, Index, IvfCode, IvfPq, IvfPqBuilder, MemStore,
    Metric, Search,
};
use common::{add_all, clustered, mean_recall, recall, shuffled, small_set};
use ndarray::{Array2, Axis, concatenate, s};

fn builder(metric: Metric) -> IvfPqBuilder {
    IvfPq::builder(100).metric(metric)
}

fn flat(metric: Metric, rows: &Array2<f32>) -> Flat {
    let mut exact = Flat::builder(rows.ncols()).metric(metric).build().unwrap();
    add_all(&mut exact, rows.view());
    exact
}

/// The mean recall@10 of the small set's queries.
fn recall_of(index: &IvfPq, exact: &Flat, queries: &Array2<f32>, options: &Search<'_>) -> f64 {
    let found = index.search_batch(queries.view(), options, 2).unwrap();
    let truth = exact.search_batch(queries.view(), &Search::new(10), 2).unwrap();
    let pairs = found.iter().zip(&truth);
    let sum: f64 = pairs
        .map(|(hits, truth)| {
            recall(hits, &truth.iter().map(|hit| hit.distance).collect::<Vec<_>>(), 10)
        })
        .sum();
    sum / queries.nrows() as f64
}

#[test]
fn recall_of_real_vectors() {
    let set = small_set();
    for metric in [Metric::Cosine, Metric::L2sq, Metric::InnerProduct] {
        let exact = flat(metric, &set.base);
        let mut index = builder(metric).build().unwrap();
        add_all(&mut index, set.base.view());
        index.verify().unwrap();
        let lists = index.lists().unwrap();
        assert!((150..200).contains(&lists), "{lists}");
        let of = |probes, rerank| {
            let options = Search::new(10).probes(probes).rerank(rerank);
            recall_of(&index, &exact, &set.queries, &options)
        };
        let (all, some, few) = (of(lists, 1000), of(lists / 4, 100), of(8, 100));
        assert!(all > 0.999, "{metric}: {all} of all lists");
        // Long vectors answer inner products, wherever their lists lie.
        let bars = if metric == Metric::InnerProduct { [0.9, 0.55] } else { [0.93, 0.7] };
        assert!(some > bars[0] && few > bars[1], "{metric}: {some}, {few}");
        // The nearest by codes alone.
        let codes = of(lists, 10);
        assert!(codes > 0.6, "{metric}: codes alone find {codes}");
    }
}

#[test]
fn codes_for_inner_products_find_more() {
    let set = small_set();
    let exact = flat(Metric::Cosine, &set.base);
    let of = |anisotropic| {
        let index = builder(Metric::Cosine).anisotropic(anisotropic).subvectors(25);
        let mut index = index.build().unwrap();
        add_all(&mut index, set.base.view());
        let options = Search::new(10).probes(1000).rerank(20);
        recall_of(&index, &exact, &set.queries, &options)
    };
    let (with, without) = (of(true), of(false));
    assert!(with > without, "{with}, {without}");
}

/// Second entries bring what is found in fewer lists, whatever happens to the lists, and each vector is returned once.
#[test]
fn spilled_entries_find_more_in_as_many_lists() {
    let set = small_set();
    for metric in [Metric::Cosine, Metric::L2sq] {
        let exact = flat(metric, &set.base);
        let made = |spill| {
            let mut index = builder(metric).spill(spill).build().unwrap();
            add_all(&mut index, set.base.view());
            index.verify().unwrap();
            index
        };
        let (mut twice, once) = (made(true), made(false));
        let found = |index: &IvfPq, probes| {
            let options = Search::new(10).probes(probes).rerank(200);
            recall_of(index, &exact, &set.queries, &options)
        };
        let (with, without) = (found(&twice, 8), found(&once, 8));
        assert!(with > without + 0.05, "{metric}: {with}, {without}");
        // Half of the vectors are replaced by themselves, one after the other.
        let half = set.base.nrows() / 2;
        let keys: Vec<u64> = (0..half as u64).collect();
        for (rows, keys) in
            set.base.slice(s![..half, ..]).axis_chunks_iter(Axis(0), 100).zip(keys.chunks(100))
        {
            twice.update(rows, keys, AddOptions::new()).unwrap();
        }
        twice.compact().unwrap();
        twice.verify().unwrap();
        let after = found(&twice, 8);
        assert!(after > with - 0.01, "{metric}: {after}, {with} before");
        let query = set.queries.row(0).to_vec();
        let all = Search::new(set.base.nrows()).probes(1000).rerank(set.base.nrows());
        let mut hits = twice.search(&query, &all).unwrap();
        assert_eq!(hits.len(), set.base.nrows());
        hits.sort_unstable_by_key(|hit| hit.key);
        assert!(hits.windows(2).all(|pair| pair[0].key < pair[1].key));
        let radius = exact.search(&query, &Search::new(50)).unwrap()[49].distance;
        let within = twice.range_search(&query, radius, &Search::new(1)).unwrap();
        assert_eq!(within.len(), 50);
        let mut cursor = twice.cursor(&query, 100).unwrap();
        let mut keys = std::collections::HashSet::new();
        loop {
            let hits = twice.resume(&mut cursor, 500, Filter::None).unwrap();
            if hits.is_empty() {
                break;
            }
            assert!(hits.iter().all(|hit| keys.insert(hit.key)));
        }
        assert_eq!(keys.len(), set.base.nrows());
    }
}

/// RaBitQ's estimates are without bias, of as many dimensions as there are, and within their bound nearly always.
#[test]
fn rabitq_of_real_vectors() {
    let set = small_set();
    for metric in [Metric::Cosine, Metric::L2sq, Metric::InnerProduct] {
        let exact = flat(metric, &set.base);
        let mut last = 0.0;
        for code in [IvfCode::RaBitQ1, IvfCode::RaBitQ2, IvfCode::RaBitQ4] {
            let mut index = builder(metric).code(code).build().unwrap();
            add_all(&mut index, set.base.view());
            index.verify().unwrap();
            assert_eq!((index.code(), index.subvectors()), (code, 0));
            let lists = index.lists().unwrap();
            let of = |rerank| {
                let options = Search::new(10).probes(lists).rerank(rerank);
                recall_of(&index, &exact, &set.queries, &options)
            };
            let (codes, some) = (of(10), of(100));
            let bars = match code {
                IvfCode::RaBitQ1 => [0.35, 0.9],
                IvfCode::RaBitQ2 => [0.6, 0.99],
                _ => [0.8, 0.999],
            };
            assert!(codes > bars[0] && some > bars[1], "{metric}, {code}: {codes}, {some}");
            assert!(codes > last, "{metric}, {code}: {codes}, {last} with fewer bits");
            last = codes;
            let (mut found, mut wanted) = (0, 0);
            for query in set.queries.rows().into_iter().step_by(4) {
                let query = query.to_vec();
                let radius = exact.search(&query, &Search::new(30)).unwrap()[29].distance;
                let right = exact.range_search(&query, radius, &Search::new(1)).unwrap().len();
                found += index.range_search(&query, radius, &Search::new(1)).unwrap().len();
                wanted += right;
            }
            assert!(found * 1000 >= wanted * 999, "{metric}, {code}: {found} of {wanted}");
        }
    }
}

/// A learnt rotation tells more by as many bytes, where coordinates depend on one another.
#[test]
fn rotated_vectors_are_found_by_fewer_bytes() {
    let set = small_set();
    // Each coordinate with one that is far from it.
    let mix = |rows: &Array2<f32>| {
        let mut mixed = rows.clone();
        for (mut mixed, row) in mixed.rows_mut().into_iter().zip(rows.rows()) {
            let value = |at: usize| row[at] * (1.0 + (at % 10) as f32) + 3.0 * row[(at + 50) % 100];
            mixed.iter_mut().enumerate().for_each(|(at, to)| *to = value(at));
        }
        mixed
    };
    let (base, queries) = (mix(&set.base), mix(&set.queries));
    for metric in [Metric::Cosine, Metric::L2sq] {
        let exact = flat(metric, &base);
        let of = |opq| {
            let mut index = builder(metric).opq(opq).subvectors(25).build().unwrap();
            add_all(&mut index, base.view());
            index.verify().unwrap();
            assert_eq!(index.opq(), opq);
            let options = Search::new(10).probes(1000).rerank(10);
            let query = queries.row(0).to_vec();
            let radius = exact.search(&query, &Search::new(30)).unwrap()[29].distance;
            assert_eq!(index.range_search(&query, radius, &Search::new(1)).unwrap().len(), 30);
            recall_of(&index, &exact, &queries, &options)
        };
        let (with, without) = (of(true), of(false));
        assert!(with > without + 0.02, "{metric}: {with}, {without}");
    }
}

#[test]
fn more_bits_find_more() {
    let set = small_set();
    let exact = flat(Metric::L2sq, &set.base);
    let of = |subvectors, bits| {
        let mut index = builder(Metric::L2sq).subvectors(subvectors).bits(bits).build().unwrap();
        add_all(&mut index, set.base.view());
        index.verify().unwrap();
        let options = Search::new(10).probes(1000).rerank(10);
        recall_of(&index, &exact, &set.queries, &options)
    };
    let recalls = [of(10, 4), of(33, 4), of(33, 8), of(100, 4), of(100, 8)];
    assert!(recalls.is_sorted_by(|a, b| a < b) && recalls[4] > 0.97, "{recalls:?}");
}

/// Half as many vectors again, all unlike those before, a few at a time: after rebalancing, searches that cost no more
/// find what they do in an index that was made of all.
#[test]
fn a_shifted_distribution_and_rebalancing() {
    let set = small_set();
    let shift = |rows: &Array2<f32>| {
        let mut rows = rows.clone();
        for mut row in rows.rows_mut() {
            let (first, second) = (row[3], row[50]);
            row.mapv_inplace(|value| value * 0.8);
            (row[3], row[50]) = (second + 4.0, first - 3.0);
        }
        rows
    };
    let n = set.base.nrows() * 2 / 3;
    let old = set.base.slice(s![..n, ..]);
    let new = shift(&set.base.slice(s![n.., ..]).to_owned());
    let all = concatenate![Axis(0), old, new];
    let queries = concatenate![Axis(0), set.queries, shift(&set.queries)];
    let exact = flat(Metric::L2sq, &all);
    let lists = 120;
    let mut grown = builder(Metric::L2sq).lists(lists).build().unwrap();
    add_all(&mut grown, old);
    for rows in new.axis_chunks_iter(Axis(0), 500) {
        grown.add(rows, None, AddOptions::new()).unwrap();
    }
    let mut fresh = builder(Metric::L2sq).lists(lists).build().unwrap();
    add_all(&mut fresh, all.view());
    let options = Search::new(10).probes(16).rerank(100);
    let work = |index: &IvfPq| -> u64 {
        let cost = |query: ndarray::ArrayView1<'_, f32>| {
            index.search_counted(&query.to_vec(), &options).unwrap().1.hops
        };
        queries.rows().into_iter().map(cost).sum()
    };
    let mut spilled = builder(Metric::L2sq).lists(lists).spill(true).build().unwrap();
    add_all(&mut spilled, old);
    spilled.add(new.view(), None, AddOptions::new()).unwrap();
    let recall_before = recall_of(&spilled, &exact, &queries, &options);
    spilled.rebalance(2).unwrap();
    spilled.verify().unwrap();
    assert!(recall_of(&spilled, &exact, &queries, &options) > recall_before - 0.02);
    let before = work(&grown);
    assert!(recall_of(&grown, &exact, &queries, &options) > 0.9);
    grown.rebalance(2).unwrap();
    grown.verify().unwrap();
    let (of_grown, of_fresh) = (
        recall_of(&grown, &exact, &queries, &options),
        recall_of(&fresh, &exact, &queries, &options),
    );
    assert!(of_grown >= of_fresh - 0.01, "{of_grown}, {of_fresh} in a fresh index");
    assert!(work(&grown) < before && work(&grown) < work(&fresh) * 5 / 4);
    assert_eq!(grown.len(), all.nrows());
}

/// New vectors in one place: their list is split, and the others stay as they are.
#[test]
fn a_long_list_is_split() {
    let set = small_set();
    let mut index = builder(Metric::L2sq).lists(30).build().unwrap();
    add_all(&mut index, set.base.view());
    let place = set.base.row(17).to_owned();
    let near = &set.base.slice(s![..600, ..]) * 0.1 + &place;
    index.add(near.view(), None, AddOptions::new()).unwrap();
    index.verify().unwrap();
    let all = concatenate![Axis(0), set.base, near];
    let exact = flat(Metric::L2sq, &all);
    let options = Search::new(10).probes(20).rerank(100);
    let queries = concatenate![Axis(0), set.queries, near.slice(s![..100, ..])];
    let before = recall_of(&index, &exact, &queries, &options);
    index.rebalance(2).unwrap();
    index.verify().unwrap();
    let lists = index.lists().unwrap();
    assert!((31..60).contains(&lists), "{lists}");
    // The same share of all lists.
    let options = options.probes(20 * lists / 30);
    let after = recall_of(&index, &exact, &queries, &options);
    assert!(after > before - 0.02 && after > 0.9, "{before}, {after}");
}

#[test]
fn removed_places_are_used_again() {
    let set = small_set();
    let mut index = builder(Metric::Cosine).build().unwrap();
    add_all(&mut index, set.base.view());
    let bytes = index.stats().unwrap().bytes;
    let keys = shuffled(set.base.nrows(), 3);
    for round in 0..4 {
        let gone = &keys[..set.base.nrows() / 2];
        assert_eq!(index.remove(gone).unwrap(), gone.len());
        index.verify().unwrap();
        let rows =
            set.base.select(Axis(0), &gone.iter().map(|&key| key as usize).collect::<Vec<_>>());
        index.add(rows.view(), Some(gone), AddOptions::new()).unwrap();
        index.verify().unwrap();
        let now = index.stats().unwrap();
        assert!(now.bytes <= bytes + bytes / 50, "round {round}: {} of {bytes}", now.bytes);
        assert_eq!(now.slots, set.base.nrows());
    }
}

#[test]
fn compacting_joins_what_is_sparse() {
    let set = small_set();
    let exact = flat(Metric::Cosine, &set.base);
    let mut index = builder(Metric::Cosine).build().unwrap();
    add_all(&mut index, set.base.view());
    let gone: Vec<u64> = shuffled(set.base.nrows(), 3)[..set.base.nrows() * 3 / 4].to_vec();
    index.remove(&gone).unwrap();
    let options = Search::new(10).probes(30).rerank(100);
    let query = set.queries.row(0).to_vec();
    let (hits, before) = index.search_counted(&query, &options).unwrap();
    index.compact().unwrap();
    index.verify().unwrap();
    let (again, after) = index.search_counted(&query, &options).unwrap();
    assert_eq!(hits, again);
    assert!(after.hops * 3 < before.hops * 2, "{} of {} blocks", after.hops, before.hops);
    // The blocks that were left serve other lists.
    let bytes = index.stats().unwrap().bytes;
    index.add(set.base.slice(s![..2000, ..]), None, AddOptions::new()).unwrap();
    index.verify().unwrap();
    assert_eq!(index.stats().unwrap().bytes, bytes);
    assert_eq!(mean_recall(&exact, &exact, set.queries.view(), 10, 10), 1.0);
}

#[test]
fn tuning_reaches_its_recall_and_is_kept() {
    let set = small_set();
    let exact = flat(Metric::Cosine, &set.base);
    let mut index = builder(Metric::Cosine).build().unwrap();
    add_all(&mut index, set.base.view());
    let mut efforts = Vec::new();
    for target in [0.8, 0.95, 0.99] {
        let tuned = index.tune(set.queries.view(), 10, target, 2).unwrap();
        assert!(tuned.recall >= target, "{tuned:?}");
        assert_eq!(index.defaults(), (tuned.probes, tuned.rerank));
        let got = recall_of(&index, &exact, &set.queries, &Search::new(10));
        assert!((got - tuned.recall).abs() < 0.02, "{got}, {tuned:?}");
        efforts.push(tuned.probes * tuned.rerank);
    }
    assert!(efforts.is_sorted() && efforts[0] < efforts[2], "{efforts:?}");
    let folder = tempfile::tempdir().unwrap();
    index.save(&folder.path().join("tuned")).unwrap();
    match ann_core::open(&folder.path().join("tuned")).unwrap() {
        AnyIndex::IvfPq(opened) => assert_eq!(opened.defaults(), index.defaults()),
        _ => panic!("another kind"),
    }
    for recall in [0.0, -1.0, 1.5, f64::NAN] {
        parameter(index.tune(set.queries.view(), 10, recall, 1), "recall");
    }
    parameter(index.tune(set.queries.slice(s![..0, ..]), 10, 0.9, 1), "queries");
    parameter(index.tune(set.queries.view(), 0, 0.9, 1), "k");
    let mut empty = builder(Metric::Cosine).build().unwrap();
    parameter(empty.tune(set.queries.view(), 10, 0.9, 1), "len");
}

#[test]
fn an_index_that_grows_trains_itself() {
    let rows = clustered(8000, 8, 1);
    let mut index = IvfPq::builder(8).build().unwrap();
    let mut lists = Vec::new();
    for part in rows.axis_chunks_iter(Axis(0), 500) {
        index.add(part, None, AddOptions::new()).unwrap();
        lists.push(index.lists().unwrap());
    }
    index.verify().unwrap();
    assert_eq!(lists[..2], [0, 0]);
    assert!(lists[2] >= 40 && lists[15] > lists[2], "{lists:?}");
    let exact = flat(Metric::L2sq, &rows);
    let queries = rows.slice(s![..50, ..]).to_owned();
    assert!(recall_of(&index, &exact, &queries, &Search::new(10)) > 0.95);
}

#[test]
fn training_ahead() {
    let set = small_set();
    let mut index = builder(Metric::Cosine).lists(64).build().unwrap();
    index.train(set.base.slice(s![..4000, ..]), AddOptions::new()).unwrap();
    assert_eq!((index.lists().unwrap(), index.len()), (64, 0));
    index.verify().unwrap();
    assert!(index.search(&set.queries.row(0).to_vec(), &Search::new(5)).unwrap().is_empty());
    index.add(set.base.view(), None, AddOptions::new()).unwrap();
    index.verify().unwrap();
    let exact = flat(Metric::Cosine, &set.base);
    let options = Search::new(10).probes(32).rerank(200);
    assert!(recall_of(&index, &exact, &set.queries, &options) > 0.95);
    index.train(set.base.slice(s![..500, ..]), AddOptions::new()).unwrap();
    index.verify().unwrap();
    assert!(recall_of(&index, &exact, &set.queries, &options) > 0.9);
    parameter(index.train(set.base.slice(s![..0, ..]), AddOptions::new()), "vectors");
    let mut stop = |done: usize, _: usize| done == 0;
    let stopped = index.train(set.base.view(), AddOptions::new().progress(&mut stop));
    assert!(matches!(stopped, Err(Error::Cancelled { added: 0 })));
    index.verify().unwrap();
    assert_eq!(index.len(), set.base.nrows());
}

/// Stopped anywhere, the index is sound and has what it says.
#[test]
fn loading_can_be_stopped() {
    let rows = clustered(3000, 8, 1);
    let mut calls = 0usize;
    let mut count = |_: usize, _: usize| {
        calls += 1;
        true
    };
    let mut whole = IvfPq::builder(8).build().unwrap();
    whole.add(rows.view(), None, AddOptions::new().progress(&mut count)).unwrap();
    assert!(calls > 10);
    for last in 0..calls - 1 {
        let mut left: usize = last;
        let mut stop = |done: usize, total: usize| {
            assert!(done <= total && total == 3000);
            left = left.wrapping_sub(1);
            left != usize::MAX
        };
        let mut index = IvfPq::builder(8).build().unwrap();
        let result = index.add(rows.view(), None, AddOptions::new().progress(&mut stop));
        let Err(Error::Cancelled { added }) = result else { panic!("{last}: {result:?}") };
        assert_eq!(index.len(), added);
        index.verify().unwrap();
        let hits = index.search(&rows.row(5).to_vec(), &Search::new(10)).unwrap();
        assert_eq!(hits.len(), added.min(10));
    }
}

#[test]
fn odd_data() {
    // Fewer rows than lists, and one vector again and again.
    let mut few = IvfPq::builder(4).lists(500).train_at(10).build().unwrap();
    few.add(clustered(40, 4, 1).view(), None, AddOptions::new()).unwrap();
    assert_eq!(few.lists().unwrap(), 40);
    few.verify().unwrap();
    for metric in [Metric::L2sq, Metric::Cosine, Metric::InnerProduct] {
        let mut same = IvfPq::builder(6).metric(metric).build().unwrap();
        let rows = Array2::from_elem((3000, 6), 2.5f32);
        same.add(rows.view(), None, AddOptions::new()).unwrap();
        same.verify().unwrap();
        let hits = same.search(&[2.5f32; 6], &Search::new(700)).unwrap();
        assert_eq!(hits.len(), 700);
        same.rebalance(1).unwrap();
        same.remove(&(0..2900).collect::<Vec<u64>>()).unwrap();
        same.compact().unwrap();
        same.verify().unwrap();
        assert_eq!(same.search(&[1.0f32; 6], &Search::new(700)).unwrap().len(), 100);
    }
}

#[test]
fn filters_are_looked_at_before_codes() {
    let set = small_set();
    let exact = flat(Metric::Cosine, &set.base);
    let mut index = builder(Metric::Cosine).build().unwrap();
    add_all(&mut index, set.base.view());
    let keys: Vec<u64> = (0..set.base.nrows() as u64).step_by(3).collect();
    let third = |key: u64| key.is_multiple_of(3);
    for filter in [Filter::Keys(&keys), Filter::Predicate(&third)] {
        let options = Search::new(10).probes(40).rerank(100).filter(filter);
        let mut found = 0.0;
        for query in set.queries.rows() {
            let query = query.to_vec();
            let hits = index.search(&query, &options).unwrap();
            assert!(hits.iter().all(|hit| third(hit.key)));
            let truth = exact.search(&query, &Search::new(10).filter(filter)).unwrap();
            found += recall(&hits, &truth.iter().map(|hit| hit.distance).collect::<Vec<_>>(), 10);
        }
        assert!(found > 0.93 * set.queries.nrows() as f64, "{found}");
    }
}

/// Queries of a batch read lists together, and each finds what it finds alone, to the last bit.
#[test]
fn batches_find_what_single_searches_do() {
    let set = small_set();
    for (metric, bits) in [(Metric::Cosine, 4), (Metric::L2sq, 4), (Metric::InnerProduct, 8)] {
        let mut index = builder(metric).bits(bits).build().unwrap();
        add_all(&mut index, set.base.view());
        let third = |key: u64| key.is_multiple_of(3);
        let few: Vec<u64> = (0..2000).collect();
        for filter in [Filter::None, Filter::Predicate(&third), Filter::Keys(&few)] {
            for (probes, rerank) in [(1, 10), (9, 40), (60, 100), (10_000, 300)] {
                let options = Search::new(10).probes(probes).rerank(rerank).filter(filter);
                let alone: Vec<_> = set.queries.rows().into_iter().collect();
                let alone: Vec<_> = alone
                    .iter()
                    .map(|query| index.search(&query.to_vec(), &options).unwrap())
                    .collect();
                for threads in [1, 2, 3] {
                    let batch = index.search_batch(set.queries.view(), &options, threads);
                    assert!(batch.unwrap() == alone, "{metric}, {probes} x {rerank}, {threads}");
                }
            }
        }
    }
}

/// Lists that cannot be expected to have anything are not read, unless all are asked for; what matters is found.
#[test]
fn searches_end_when_nothing_is_left_to_find() {
    let rows = clustered(6000, 24, 1);
    let exact = flat(Metric::Cosine, &rows);
    let mut index = IvfPq::builder(24).metric(Metric::Cosine).lists(60).build().unwrap();
    add_all(&mut index, rows.view());
    let queries = rows.slice(s![..;97, ..]).to_owned();
    let options = Search::new(10).probes(59).rerank(60);
    let hops: u64 = queries
        .rows()
        .into_iter()
        .map(|query| index.search_counted(&query.to_vec(), &options).unwrap().1.hops)
        .sum();
    let blocks = 6000 / 32 * queries.nrows() as u64;
    assert!(hops < blocks * 9 / 10, "{hops} of {blocks} blocks");
    let all = Search::new(10).probes(60).rerank(60);
    let (_, cost) = index.search_counted(&rows.row(0).to_vec(), &all).unwrap();
    assert!(cost.hops >= 6000 / 32, "{} blocks", cost.hops);
    let found = recall_of(&index, &exact, &queries, &options);
    assert!(found > 0.99, "{found}");
}

fn parameter<R>(result: ann_core::Result<R>, name: &str) {
    match result.map(|_| ()) {
        Err(Error::Parameter { name: got, .. }) if got == name => {}
        other => panic!("{name} was not refused: {other:?}"),
    }
}

#[test]
fn parameters_of_the_builder() {
    let of = || IvfPq::builder(8);
    for lists in [0, (1 << 24) + 1] {
        parameter(of().lists(lists).build(), "lists");
    }
    for subvectors in [0, 9] {
        parameter(of().subvectors(subvectors).build(), "subvectors");
    }
    for bits in [0, 1, 5, 16] {
        parameter(of().bits(bits).build(), "bits");
    }
    parameter(of().code(IvfCode::RaBitQ1).opq(true).build(), "opq");
    parameter(IvfPq::builder(1025).opq(true).build(), "opq");
    parameter(of().code(IvfCode::RaBitQ1).bits(4).build(), "bits");
    parameter(of().code(IvfCode::RaBitQ1).subvectors(4).build(), "subvectors");
    let store = MemStore::new(4096).unwrap();
    parameter(IvfPq::builder(1000).code(IvfCode::RaBitQ1).build_in(store), "code");
    parameter("rabitq3".parse::<IvfCode>(), "code");
    parameter(of().train_at(0).build(), "train_at");
    parameter(of().sample(0).build(), "sample");
    parameter(of().vectors(ann_core::DType::U8).build(), "vectors");
    let store = MemStore::new(4096).unwrap();
    parameter(IvfPq::builder(1000).subvectors(1000).build_in(store), "subvectors");
    let built = IvfPq::builder(99).build().unwrap();
    assert_eq!((built.subvectors(), built.bits()), (50, 4));
    for probes in [0, 2_000_000] {
        parameter(built.search(&[0.0f32; 99], &Search::new(1).probes(probes)), "probes");
        parameter(built.search(&[0.0f32; 99], &Search::new(1).rerank(probes)), "rerank");
    }
}
