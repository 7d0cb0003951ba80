//! DiskANN on real vectors: recall with codes of every width and every layout, what is reported of them, and what is
//! refused.

mod common;

use std::sync::OnceLock;

use ann_core::testing::Rng;
use ann_core::{
    AddOptions, DType, DiskAnn, DiskAnnBuilder, Error, Filter, Flat, Hit, Hnsw, Index, Layout,
    MemStore, Metric, Placement, Search,
};
use common::{SmallSet, mean_recall, small_set};
use ndarray::{Array2, s};

fn builder(metric: Metric) -> DiskAnnBuilder {
    DiskAnn::builder(100).metric(metric).build_list_size(100)
}

fn exact(metric: Metric, base: &Array2<f32>) -> Flat {
    let mut exact = Flat::builder(base.ncols()).metric(metric).build().unwrap();
    exact.add(base.view(), None, AddOptions::new()).unwrap();
    exact
}

/// The small set under cosine distance, in an index with the codes that suit it and in an exact one.
fn pair() -> (&'static SmallSet, &'static DiskAnn, &'static Flat) {
    static PAIR: OnceLock<(SmallSet, DiskAnn, Flat)> = OnceLock::new();
    let (set, index, exact) = PAIR.get_or_init(|| {
        let set = small_set();
        let mut index = builder(Metric::Cosine).build().unwrap();
        index.add(set.base.view(), None, AddOptions::new()).unwrap();
        let exact = exact(Metric::Cosine, &set.base);
        (set, index, exact)
    });
    (set, index, exact)
}

/// Recall@10 at pools of 10, 64 and 200 is at least these bars.
fn clears(builder: DiskAnnBuilder, metric: Metric, base: &Array2<f32>, bars: [f64; 3]) {
    let set = small_set();
    let mut index = builder.build().unwrap();
    index.add(base.view(), None, AddOptions::new()).unwrap();
    index.verify().unwrap();
    let exact = exact(metric, base);
    let recalls = [10, 64, 200].map(|ef| mean_recall(&index, &exact, set.queries.view(), 10, ef));
    let enough = recalls.iter().zip(bars).all(|(&recall, bar)| recall >= bar);
    assert!(enough, "{metric}, {} bits: {recalls:?}, not {bars:?}", index.code_bits());
}

#[test]
fn codes_of_every_width() {
    let set = small_set();
    let bars = [
        (0, [0.78, 0.975, 0.995]),
        (1, [0.52, 0.88, 0.97]),
        (2, [0.71, 0.95, 0.99]),
        (4, [0.77, 0.96, 0.99]),
        (8, [0.79, 0.955, 0.99]),
    ];
    for (bits, bars) in bars {
        let builder = builder(Metric::Cosine).code_bits(bits);
        clears(builder, Metric::Cosine, &set.base, bars);
    }
}

#[test]
fn metrics() {
    let set = small_set();
    clears(builder(Metric::L2sq), Metric::L2sq, &set.base, [0.69, 0.94, 0.985]);
    let bars = [0.68, 0.95, 0.985];
    clears(builder(Metric::InnerProduct), Metric::InnerProduct, &set.base, bars);
}

#[test]
fn degrees_and_alpha() {
    let set = small_set();
    clears(builder(Metric::Cosine).degree(64), Metric::Cosine, &set.base, [0.73, 0.96, 0.99]);
    clears(builder(Metric::Cosine).alpha(1.2), Metric::Cosine, &set.base, [0.66, 0.89, 0.955]);
}

/// Halves cost next to no recall, and come back as floats.
#[test]
fn vectors_as_halves() {
    let set = small_set();
    for metric in [Metric::Cosine, Metric::L2sq, Metric::InnerProduct] {
        let builder = builder(metric).vectors(DType::F16);
        clears(builder.clone(), metric, &set.base, [0.68, 0.94, 0.985]);
        let mut index = builder.build().unwrap();
        index.add(set.base.slice(s![..500, ..]), None, AddOptions::new()).unwrap();
        index.add(set.base.slice(s![500..520, ..]), None, AddOptions::new()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        index.save(&path).unwrap();
        let index = DiskAnn::open_in(MemStore::load(&path).unwrap()).unwrap();
        index.verify().unwrap();
        assert_eq!((index.dtype(), index.vectors()), (DType::F32, Some(DType::F16)));
        for row in [0, 511] {
            let vector = index.get::<f32>(row as u64).unwrap().unwrap();
            let given = set.base.row(row);
            let near =
                |(got, given): (&f32, &f32)| (got - given).abs() <= given.abs() * 6e-4 + 1e-7;
            assert!(vector.iter().zip(given).all(near));
            let hits = index.search(&given.to_vec(), &Search::new(1)).unwrap();
            assert!(metric == Metric::InnerProduct || hits[0].key == row as u64);
        }
    }
    let mut index = DiskAnn::builder(2).vectors(DType::F16).build().unwrap();
    let rows = ndarray::array![[1.0f32, 2.0], [3.0, -7e4]];
    let refused = index.add(rows.view(), None, AddOptions::new()).unwrap_err();
    assert!(matches!(
        refused,
        Error::DoesNotFit { row: 1, column: 1, value: -7e4, dtype: DType::F16 }
    ));
    let rows = ndarray::array![[1.0f32, 2.0], [f32::NAN, 0.0]];
    let refused = index.add(rows.view(), None, AddOptions::new()).unwrap_err();
    assert!(matches!(refused, Error::NotFinite { row: 1, column: 0, .. }));
    assert!(index.is_empty());
}

/// The share of the truly nearest 10 among the hits of such searches.
fn share_of_nearest(index: &impl Index, ef: usize) -> f64 {
    let set = small_set();
    let found = index.search_batch(set.queries.view(), &Search::new(10).ef(ef), 0).unwrap();
    let right = |(hits, nearest): (&Vec<Hit>, &Vec<u32>)| {
        hits.iter().filter(|hit| nearest[..10].contains(&(hit.key as u32))).count()
    };
    found.iter().zip(&set.neighbors).map(right).sum::<usize>() as f64 / (10.0 * found.len() as f64)
}

/// Directions in bytes cost next to no recall, and come back at length one.
#[test]
fn directions_in_bytes() {
    let set = small_set();
    let mut halves = builder(Metric::Cosine).vectors(DType::F16).build().unwrap();
    halves.add(set.base.view(), None, AddOptions::new()).unwrap();
    let fused = builder(Metric::Cosine).vectors(DType::I8);
    let exact = exact(Metric::Cosine, &set.base);
    let mut bytes = None;
    for builder in [fused.clone().placement(Placement::Compact), fused] {
        let mut index = builder.build().unwrap();
        index.add(set.base.view(), None, AddOptions::new()).unwrap();
        index.verify().unwrap();
        let bars = [(64, 0.93), (200, 0.97)];
        for (ef, bar) in bars {
            let share = share_of_nearest(&index, ef);
            assert!(share > bar, "{share} at {ef}");
        }
        for query in set.queries.rows().into_iter().take(20) {
            let query = query.to_vec();
            let hits = index.search(&query, &Search::new(10).ef(200)).unwrap();
            let truth = exact.search(&query, &Search::new(set.base.nrows())).unwrap();
            for hit in hits {
                let right = truth.iter().find(|right| right.key == hit.key).unwrap().distance;
                assert!((hit.distance - right).abs() < 5e-3, "{}, not {right}", hit.distance);
            }
        }
        bytes = Some(index);
    }
    let index = bytes.unwrap();
    let share = share_of_nearest(&halves, 64);
    assert!(share_of_nearest(&index, 64) > share - 0.015, "{share} of halves");
    let [narrow, wide] = [&index, &halves].map(|index| index.stats().unwrap());
    assert_eq!((narrow.vectors, narrow.layout), (Some(DType::I8), Layout::Fused));
    assert!(narrow.bytes_by_part[0] < wide.bytes_by_part[0] * 6 / 10);
    let got = index.get::<f32>(7).unwrap().unwrap();
    let norm = |vector: &[f32]| vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    assert!((norm(&got) - 1.0).abs() < 1e-6);
    let given = set.base.row(7).to_vec();
    let near = |(got, of): (&f32, &f32)| (got - of / norm(&given)).abs() < 3e-3;
    assert!(got.iter().zip(&given).all(near));
}

/// Only directions count: what is very long or very short has one too, and what points the same way is the same.
#[test]
fn directions_of_odd_vectors() {
    let builder = || DiskAnn::builder(4).metric(Metric::Cosine).vectors(DType::I8);
    for n in [12, 400] {
        let rows = Array2::from_shape_fn((n, 4), |(row, column)| {
            let scale = [1.0f32, 1e-30, 3e-38, 4e18][row % 4];
            scale * [0.5f32, 1.0, -0.25, (row / 4) as f32 / n as f32][column]
        });
        let mut index = builder().build().unwrap();
        index.add(rows.view(), None, AddOptions::new()).unwrap();
        index.verify().unwrap();
        // One in each four, and of these those that round to the same bytes.
        let twins = index.stats().unwrap().twins;
        assert!((n - n / 4..n - 4.min(n / 4 - 1)).contains(&twins), "{twins} of {n} are twins");
        for row in rows.rows() {
            let hits = index.search(&row.to_vec(), &Search::new(4)).unwrap();
            assert!(hits.iter().all(|hit| hit.distance < 1e-6), "{row}: {hits:?}");
        }
        assert_eq!(index.get::<f32>(1).unwrap(), index.get::<f32>(3).unwrap());
    }
    let mut index = builder().build().unwrap();
    let mut refused = |value: [f32; 4]| {
        let rows = Array2::from_shape_fn((1, 4), |(_, column)| value[column]);
        assert!(index.search(&value, &Search::new(1)).is_err());
        index.add(rows.view(), None, AddOptions::new()).unwrap_err()
    };
    let long = refused([1e38, 0.0, 0.0, 0.0]);
    assert!(matches!(long, Error::TooLong { row: 0, .. }), "{long:?}");
    for zero in [[0.0, -0.0, 0.0, 0.0], [1e-44, 0.0, 0.0, 1e-45]] {
        assert!(matches!(refused(zero), Error::ZeroVector { row: 0 }));
    }
    let odd = refused([0.0, f32::INFINITY, f32::NAN, 0.0]);
    assert!(matches!(odd, Error::NotFinite { row: 0, column: 1, .. }), "{odd:?}");
    assert!(index.is_empty());
}

#[test]
fn layouts_are_as_reported() {
    let layout = |dim: usize, page_size: usize, bits: Option<u8>| {
        let mut builder = DiskAnn::builder(dim);
        if let Some(bits) = bits {
            builder = builder.code_bits(bits);
        }
        let index = builder.build_in(MemStore::new(page_size).unwrap()).unwrap();
        let stats = index.stats().unwrap();
        (stats.layout, stats.code_bits, stats.vectors)
    };
    let f32 = Some(DType::F32);
    assert_eq!(layout(100, 8192, None), (Layout::Fused, 2, f32));
    assert_eq!(layout(32, 8192, None), (Layout::Fused, 4, f32));
    assert_eq!(layout(768, 8192, None), (Layout::Fused, 1, f32));
    assert_eq!(layout(1536, 8192, None), (Layout::FusedLists, 1, f32));
    assert_eq!(layout(1536, 16384, None), (Layout::Fused, 1, f32));
    assert_eq!(layout(4096, 8192, None), (Layout::Compact, 4, f32));
    assert_eq!(layout(20_000, 8192, None), (Layout::Compact, 2, f32));
    assert_eq!(layout(65_536, 4096, None), (Layout::Apart, 0, f32));
    assert_eq!(layout(100, 8192, Some(0)), (Layout::Fused, 0, f32));
}

#[test]
fn what_is_refused() {
    let refused = |builder: DiskAnnBuilder, page_size: usize| match builder
        .build_in(MemStore::new(page_size).unwrap())
        .map(|_| ())
        .unwrap_err()
    {
        Error::Parameter { name, value, allowed } => (name, value, allowed),
        other => panic!("{other:?}"),
    };
    for degree in [0, 16, 33, 288] {
        let (name, value, _) = refused(DiskAnn::builder(8).degree(degree), 8192);
        assert_eq!((name, value), ("degree", degree.to_string()));
    }
    for alpha in [0.99, 0.0, -1.0, f32::NAN, f32::INFINITY, 11.0] {
        assert_eq!(refused(DiskAnn::builder(8).alpha(alpha), 8192).0, "alpha");
    }
    let products = DiskAnn::builder(8).metric(Metric::InnerProduct);
    assert_eq!(refused(products.alpha(1.1), 8192).0, "alpha");
    assert_eq!(refused(DiskAnn::builder(8).code_bits(3), 8192).0, "code_bits");
    assert_eq!(refused(DiskAnn::builder(8).build_list_size(0), 8192).0, "build_list_size");
    assert_eq!(refused(DiskAnn::builder(8).vectors(DType::U8), 8192).0, "vectors");
    let bytes = DiskAnn::builder(8).dtype(DType::U8);
    assert_eq!(refused(bytes.vectors(DType::F16), 8192).0, "vectors");
    for metric in [Metric::L2sq, Metric::InnerProduct] {
        let directions = DiskAnn::builder(8).metric(metric).vectors(DType::I8);
        let (name, value, allowed) = refused(directions, 8192);
        assert_eq!((name, value.as_str()), ("vectors", "i8"));
        assert!(allowed.contains("directions only"), "{allowed}");
    }
    let bytes = DiskAnn::builder(8).metric(Metric::Cosine).dtype(DType::U8);
    assert_eq!(refused(bytes.vectors(DType::I8), 8192).0, "vectors");
    // A page that is too small, and how large a one would do.
    let fused = DiskAnn::builder(1024).placement(Placement::Fused).code_bits(4);
    let (name, value, allowed) = refused(fused.clone(), 8192);
    assert_eq!((name, value.as_str()), ("page size", "8192"));
    assert!(allowed.starts_with("at least 32768"), "{allowed}");
    let enough = MemStore::new(32768).unwrap();
    fused.build_in(enough).unwrap();
    let beam = Search::new(1).beam(0);
    let index = DiskAnn::builder(8).build().unwrap();
    assert!(matches!(index.search(&[0f32; 8], &beam), Err(Error::Parameter { name: "beam", .. })));
}

/// More hops where queries need them: the same recall takes fewer than with pools of one size, and a larger epsilon
/// finds more for more.
#[test]
fn hard_queries_take_longer() {
    let (set, fused, exact) = pair();
    let mut hnsw = Hnsw::builder(100).metric(Metric::Cosine).build().unwrap();
    hnsw.add(set.base.view(), None, AddOptions::new()).unwrap();
    let mut compact = builder(Metric::Cosine).placement(Placement::Compact).build().unwrap();
    compact.add(set.base.view(), None, AddOptions::new()).unwrap();
    take_longer(fused, set, exact);
    take_longer(&hnsw, set, exact);
    take_longer(&compact, set, exact);
}

fn take_longer(index: &impl Index, set: &SmallSet, exact: &Flat) {
    let truths = exact.search_batch(set.queries.view(), &Search::new(10), 0).unwrap();
    let run = |options: &Search<'_>| {
        let (mut hops, mut sum) = (0, 0.0);
        for (query, truth) in set.queries.rows().into_iter().zip(&truths).step_by(2) {
            let (hits, cost) = index.search_counted(&query.to_vec(), options).unwrap();
            let truth: Vec<f32> = truth.iter().map(|hit| hit.distance).collect();
            hops += cost.hops;
            sum += common::recall(&hits, &truth, 10);
        }
        (hops, sum)
    };
    let fixed = run(&Search::new(10).ef(128));
    let mut last = (0, 0.0);
    for epsilon in 5..40 {
        let now = run(&Search::new(10).ef(512).epsilon(epsilon as f32 / 100.0));
        assert!(now.0 > last.0 && now.1 >= last.1 - 1.0, "{epsilon}: {now:?} after {last:?}");
        if now.1 >= fixed.1 {
            assert!(now.0 < fixed.0, "{epsilon}: {now:?}, {fixed:?}");
            return;
        }
        last = now;
    }
    panic!("{last:?} in the end, {fixed:?} with a pool of one size");
}

/// A wider beam finds no less, for more hops.
#[test]
fn beams() {
    let (set, index, exact) = pair();
    let mut last = (0, 0.0);
    for beam in [1, 2, 4, 16, 64] {
        let (mut hops, mut sum) = (0, 0.0);
        for query in set.queries.rows().into_iter().step_by(2) {
            let query = query.to_vec();
            let (hits, cost) =
                index.search_counted(&query, &Search::new(10).ef(32).beam(beam)).unwrap();
            let truth = exact.search(&query, &Search::new(10)).unwrap();
            let truth: Vec<f32> = truth.iter().map(|hit| hit.distance).collect();
            hops += cost.hops;
            sum += common::recall(&hits, &truth, 10);
        }
        assert!(
            hops > last.0 && sum >= last.1 - 1.0,
            "beam {beam}: {hops} hops, {sum} after {last:?}"
        );
        last = (hops, sum);
    }
}

/// Of ranges that hold a few rows or a thousand, estimates that err lose no more than HNSW does with as large a pool,
/// and what is found lies within.
#[test]
fn ranges_by_estimates() {
    let (set, index, exact) = pair();
    let mut coarse = builder(Metric::Cosine).code_bits(1).build().unwrap();
    coarse.add(set.base.view(), None, AddOptions::new()).unwrap();
    let mut hnsw = Hnsw::builder(100).metric(Metric::Cosine).ef_construction(100).build().unwrap();
    hnsw.add(set.base.view(), None, AddOptions::new()).unwrap();
    let rng = &mut Rng(11);
    for (least, most) in [(2, 30), (30, 300), (300, 1200)] {
        let (mut found, mut wanted) = ([0; 3], 0);
        for query in set.queries.rows().into_iter().step_by(3) {
            let (query, held) = (query.to_vec(), least + rng.below(most - least));
            let near = exact.search(&query, &Search::new(held + 1)).unwrap();
            let radius = (near[held - 1].distance + near[held].distance) / 2.0;
            let truth: Vec<Hit> = near.into_iter().filter(|hit| hit.distance <= radius).collect();
            wanted += truth.len();
            let mut search = |at: usize, index: &dyn Fn(&[f32], f32) -> Vec<Hit>| {
                let hits = index(&query, radius);
                assert!(hits.is_sorted_by(|a, b| a.distance <= b.distance));
                assert!(hits.iter().all(|hit| truth.contains(hit)), "{hits:?} in {radius}");
                found[at] += hits.len();
            };
            let options = Search::new(1).ef(64);
            search(0, &|query, radius| hnsw.range_search(query, radius, &options).unwrap());
            search(1, &|query, radius| index.range_search(query, radius, &options).unwrap());
            search(2, &|query, radius| coarse.range_search(query, radius, &options).unwrap());
        }
        let [hnsw, fused, coarse] = found.map(|found| found as f64 / wanted as f64);
        assert!(
            fused >= hnsw - 0.005 && coarse >= hnsw - 0.01,
            "{most}: {fused}, {coarse}, {hnsw}"
        );
    }
}

#[test]
fn filters_of_every_selectivity() {
    let (set, index, exact) = pair();
    for one_in in [2, 10, 100, 1000, 8000] {
        let accept = |key: u64| key.is_multiple_of(one_in);
        let options = Search::new(10).ef(64).filter(Filter::Predicate(&accept));
        let found = index.search_batch(set.queries.view(), &options, 0).unwrap();
        let truth = exact.search_batch(set.queries.view(), &options, 0).unwrap();
        let mut sum = 0.0;
        for (hits, truth) in found.iter().zip(&truth) {
            assert_eq!(hits.len(), truth.len());
            assert!(hits.iter().all(|hit| accept(hit.key)));
            let truth: Vec<f32> = truth.iter().map(|hit| hit.distance).collect();
            sum += common::recall(hits, &truth, 10);
        }
        let recall = sum / found.len() as f64;
        assert!(recall >= 0.95, "recall {recall} where one in {one_in} passes");
    }
}

/// Estimates may say of what lies within the radius that it does not; few of those are lost.
#[test]
fn range_searches() {
    let (set, index, exact) = pair();
    let (mut found, mut wanted) = (0, 0);
    for (query, truth) in set.queries.rows().into_iter().zip(&set.neighbors).step_by(5) {
        let query = query.to_vec();
        let radius = exact.search(&query, &Search::new(truth.len())).unwrap()[60].distance;
        let options = Search::new(1).ef(100);
        let hits = index.range_search(&query, radius, &options).unwrap();
        assert!(hits.iter().all(|hit| hit.distance <= radius));
        found += hits.len();
        wanted += exact.range_search(&query, radius, &options).unwrap().len();
    }
    let recall = found as f64 / wanted as f64;
    assert!(recall >= 0.95, "recall {recall}");
}

/// A cursor's hits, read in small portions, are as good as those of one search.
#[test]
fn cursors() {
    let (set, index, exact) = pair();
    let mut sum = 0.0;
    for query in set.queries.rows().into_iter().step_by(5) {
        let query = query.to_vec();
        let mut cursor = index.cursor(&query, 64).unwrap();
        let mut hits = Vec::new();
        for _ in 0..25 {
            hits.extend(index.resume(&mut cursor, 4, Filter::None).unwrap());
        }
        let truth = exact.search(&query, &Search::new(100)).unwrap();
        let truth: Vec<f32> = truth.iter().map(|hit| hit.distance).collect();
        sum += common::recall(&hits, &truth, 100);
    }
    let recall = sum / 100.0;
    assert!(recall >= 0.93, "recall {recall}");
}

/// A reader who leaves out what comes out of order finds nearly as much, however small the pools.
#[test]
fn cursors_come_in_order() {
    let (set, index, exact) = pair();
    for (list_size, least) in [(2, 0.60), (10, 0.75), (64, 0.90)] {
        let mut sum = 0.0;
        for query in set.queries.rows().into_iter().step_by(5) {
            let query = query.to_vec();
            let mut cursor = index.cursor(&query, list_size).unwrap();
            let mut last = f32::NEG_INFINITY;
            let mut hits = index.resume(&mut cursor, 100, Filter::None).unwrap();
            hits.retain(|hit| {
                let in_order = hit.distance >= last;
                last = hit.distance.max(last);
                in_order
            });
            let truth = exact.search(&query, &Search::new(100)).unwrap();
            let truth: Vec<f32> = truth.iter().map(|hit| hit.distance).collect();
            sum += common::recall(&hits, &truth, 100);
        }
        let recall = sum / 100.0;
        println!("{list_size}: {recall}");
        assert!(recall >= least, "list_size {list_size}: recall {recall}");
    }
}

/// A list_size below `k`: as many hits as there are, at their exact distances, the same one by one and in batches, of
/// the filter's keys only, and the fewer hops the smaller it is.
#[test]
fn lists_shorter_than_what_is_asked_for() {
    let (set, index, exact) = pair();
    let queries = set.queries.slice(s![..100, ..]);
    let keys: Vec<u64> = (0..set.base.nrows() as u64).filter(|key| key % 3 > 0).collect();
    for (k, filter) in [(10, Filter::None), (40, Filter::Keys(&keys)), (300, Filter::None)] {
        let mut hops = Vec::new();
        let mut recalls = Vec::new();
        for list_size in [1, 4, k / 2, k] {
            let search = Search::new(k).ef(list_size).filter(filter);
            let (mut sum, mut found) = (0, 0);
            let batch = index.search_batch(queries, &search, 1).unwrap();
            for (query, together) in queries.rows().into_iter().zip(&batch) {
                let query = query.to_vec();
                let (hits, cost) = index.search_counted(&query, &search).unwrap();
                assert_eq!((&hits, hits.len()), (together, k), "k {k}, list_size {list_size}");
                let all = exact.search(&query, &Search::new(set.base.nrows()).filter(filter));
                let all = all.unwrap();
                for hit in &hits {
                    let right = all.iter().find(|right| right.key == hit.key).unwrap();
                    assert!((hit.distance - right.distance).abs() < 1e-5);
                }
                assert!(hits.is_sorted_by(|a, b| a.distance <= b.distance));
                found += hits.iter().filter(|hit| hit.distance <= all[k - 1].distance).count();
                sum += cost.hops;
            }
            hops.push(sum);
            recalls.push(found);
        }
        assert!(hops.is_sorted_by(|a, b| a < b), "{hops:?}");
        assert!(recalls.is_sorted() && recalls[0] > 0, "{recalls:?}");
    }
    // Fewer rows than are asked for.
    let mut few = builder(Metric::L2sq).build().unwrap();
    few.add(set.base.slice(s![..50, ..]), None, AddOptions::new()).unwrap();
    let hits = few.search(&set.queries.row(0).to_vec(), &Search::new(100).ef(1)).unwrap();
    assert_eq!(hits.len(), 50);
}
