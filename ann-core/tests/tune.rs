//! Graphs that tune themselves to a recall: what they find, keep and refuse.

mod common;

use std::path::{Path, PathBuf};

use ann_core::{
    AnyIndex, DiskAnn, Error, Flat, Hnsw, Index, MemStore, Metric, PageStore, Placement, Search,
    Topology, TunedEf,
};
use common::{SmallSet, add_all, clustered, recall, small_set};
use ndarray::s;

type Graph<K, S = MemStore> = ann_core::Graph<S, K>;

fn exact(set: &SmallSet) -> Flat {
    let mut exact = Flat::builder(100).metric(Metric::Cosine).build().unwrap();
    add_all(&mut exact, set.base.view());
    exact
}

fn recall_of(index: &impl Index, exact: &Flat, set: &SmallSet, options: &Search<'_>) -> f64 {
    let found = index.search_batch(set.queries.view(), options, 2).unwrap();
    let truth = exact.search_batch(set.queries.view(), options, 2).unwrap();
    let each = found.iter().zip(&truth).map(|(hits, truth)| {
        recall(hits, &truth.iter().map(|hit| hit.distance).collect::<Vec<_>>(), options.k)
    });
    each.sum::<f64>() / set.queries.nrows() as f64
}

fn with(search: Search<'_>, epsilon: Option<f32>) -> Search<'_> {
    epsilon.map_or(search, |epsilon| search.epsilon(epsilon))
}

/// Nodes expanded and distances, for all queries.
fn work_of(index: &impl Index, set: &SmallSet, options: &Search<'_>) -> u64 {
    let costs = set.queries.rows().into_iter().map(|query| {
        let (_, cost) = index.search_counted(&query.to_vec(), options).unwrap();
        cost.hops + cost.distances
    });
    costs.sum()
}

fn opened<K: Topology>(index: &Graph<K>, path: &Path) -> AnyIndex<ann_core::MmapStore> {
    index.save(path).unwrap();
    ann_core::open(path).unwrap()
}

fn tunes_itself<K: Topology>(mut index: Graph<K>, name: &str) {
    let set = small_set();
    let exact = exact(&set);
    add_all(&mut index, set.base.view());
    assert_eq!((index.default_ef(10), index.default_ef(100)), (64, 200));
    assert!(index.stats().unwrap().tuned.is_empty());
    let mut found: Vec<TunedEf> = Vec::new();
    for target in [0.8, 0.95, 0.99] {
        let tuned = index.tune(set.queries.view(), 10, target, 2).unwrap();
        assert!(tuned.recall >= target, "{tuned:?}");
        assert_eq!(index.find_ef(set.queries.view(), 10, target, 1).unwrap(), tuned);
        // A tenth less is not enough.
        let told = with(Search::new(10).ef(tuned.ef), tuned.epsilon);
        let less = match tuned.epsilon {
            None => Search::new(10).ef((tuned.ef - tuned.ef / 10).max(10)),
            Some(epsilon) => told.epsilon(0.9 * epsilon),
        };
        let got = recall_of(&index, &exact, &set, &less);
        assert!(tuned.ef == 10 || got < target + 0.02, "{got} with less, {tuned:?}");
        // An epsilon takes less work than pools of that recall.
        if tuned.epsilon.is_some() {
            let mut pools = (10..).step_by(10).map(|ef| Search::new(10).ef(ef));
            let does = |pool: &Search<'_>| recall_of(&index, &exact, &set, pool) >= target;
            let pool = pools.find(does).unwrap();
            assert!(work_of(&index, &set, &told) < work_of(&index, &set, &pool), "{tuned:?}");
        }
        assert_eq!((index.default_ef(1), index.default_ef(10)), (tuned.ef, tuned.ef));
        assert_eq!(index.default_ef(300), 600);
        let got = recall_of(&index, &exact, &set, &Search::new(10));
        assert!((got - tuned.recall).abs() < 0.02, "{got}, {tuned:?}");
        let query = set.queries.row(0).to_vec();
        let found_by = |search: &Search<'_>| index.search_counted(&query, search).unwrap();
        assert_eq!(found_by(&Search::new(10)), found_by(&told));
        // Whoever says how large the pool is to be has all of it.
        let whole = work_of(&index, &set, &Search::new(10).ef(tuned.ef));
        assert_eq!(whole > work_of(&index, &set, &told), tuned.epsilon.is_some());
        found.push(tuned);
    }
    assert!(found.is_sorted_by_key(|tuned| tuned.ef) && found[0].ef < found[2].ef, "{found:?}");
    let epsilon = f64::from(found[2].epsilon.unwrap());
    let kept = [("k", 10.0), (name, found[2].ef as f64), ("epsilon", epsilon)];
    assert_eq!(index.stats().unwrap().tuned, kept);
    index.verify().unwrap();

    let folder = tempfile::tempdir().unwrap();
    let default = match opened(&index, &folder.path().join("tuned")) {
        AnyIndex::Hnsw(opened) => (opened.default_ef(10), opened.default_epsilon()),
        AnyIndex::DiskAnn(opened) => (opened.default_ef(10), opened.default_epsilon()),
        _ => panic!("another kind"),
    };
    assert_eq!(default, (found[2].ef, found[2].epsilon));

    for recall in [0.0, -1.0, 1.5, f64::NAN] {
        parameter(index.tune(set.queries.view(), 10, recall, 1), "recall");
    }
    parameter(index.tune(set.queries.slice(s![..0, ..]), 10, 0.9, 1), "queries");
    parameter(index.tune(set.queries.view(), 0, 0.9, 1), "k");
    let narrow = index.tune(set.queries.slice(s![.., ..99]), 10, 0.9, 1);
    assert!(matches!(narrow, Err(Error::Dimension { got: 99, want: 100 })));
    assert_eq!(index.default_ef(10), found[2].ef);
    let all: Vec<u64> = (0..set.base.nrows() as u64).collect();
    index.remove(&all).unwrap();
    parameter(index.tune(set.queries.view(), 10, 0.9, 1), "len");
}

fn parameter<R>(result: ann_core::Result<R>, name: &str) {
    match result.map(|_| ()) {
        Err(Error::Parameter { name: got, .. }) if got == name => {}
        other => panic!("{name} was not refused: {other:?}"),
    }
}

#[test]
fn hnsw() {
    tunes_itself(Hnsw::builder(100).metric(Metric::Cosine).build().unwrap(), "ef");
}

#[test]
fn diskann() {
    tunes_itself(DiskAnn::builder(100).metric(Metric::Cosine).build().unwrap(), "list_size");
}

#[test]
fn compact_diskann() {
    let builder = DiskAnn::builder(100).metric(Metric::Cosine).placement(Placement::Compact);
    tunes_itself(builder.build().unwrap(), "list_size");
}

/// As many as there are, fewer than were asked for, copies among them, and a recall that nothing reaches but all.
#[test]
fn few_vectors_and_all_of_them() {
    let rows = clustered(300, 8, 4);
    let mut index = Hnsw::builder(8).m(2).ef_construction(4).build().unwrap();
    add_all(&mut index, rows.slice(s![..5, ..]));
    assert_eq!(index.tune(rows.view(), 10, 1.0, 1).unwrap().recall, 1.0);
    let keys: Vec<u64> = (5..300).collect();
    index.add(rows.slice(s![5.., ..]), Some(&keys), Default::default()).unwrap();
    let copies: Vec<u64> = (1000..1040).collect();
    let many = rows.slice(s![..1, ..]);
    let many = many.broadcast((40, 8)).unwrap();
    index.add(many, Some(&copies), Default::default()).unwrap();
    let tuned = index.tune(rows.view(), 50, 1.0, 2).unwrap();
    assert!(tuned.recall > 0.99 && tuned.ef >= 50, "{tuned:?}");
    assert_eq!(index.default_ef(50), tuned.ef);
}

#[test]
fn without_vectors_there_is_no_truth() {
    let rows = clustered(300, 32, 4);
    let mut index = DiskAnn::builder(32).vectors(None).build().unwrap();
    add_all(&mut index, rows.view());
    assert!(matches!(index.tune(rows.view(), 10, 0.9, 1), Err(Error::NoVectors)));
    assert_eq!(index.default_ef(10), 64);
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Files of a released format open, know of no tuning, and take it.
#[test]
fn files_from_before_tuning() {
    fn takes_it<S: PageStore, K: Topology>(mut index: Graph<K, S>) {
        let rows = clustered(60, 4, 9);
        index.verify().unwrap();
        assert_eq!((index.len(), index.default_ef(10)), (60, 64));
        assert!(index.stats().unwrap().tuned.is_empty());
        for (key, row) in rows.rows().into_iter().enumerate() {
            let hits = index.search(&row.to_vec(), &Search::new(1)).unwrap();
            assert_eq!((hits[0].key, hits[0].distance), (key as u64, 0.0));
        }
        let tuned = index.tune(rows.view(), 10, 0.95, 1).unwrap();
        assert_eq!(index.default_ef(10), tuned.ef);
        index.verify().unwrap();
    }
    for name in ["hnsw-1.ann", "diskann-1.ann"] {
        match AnyIndex::open_in(MemStore::load(&fixture(name)).unwrap()).unwrap() {
            AnyIndex::Hnsw(index) => takes_it(index),
            AnyIndex::DiskAnn(index) => takes_it(index),
            _ => panic!("another kind"),
        }
    }
}

/// How the files came about. One of a released format stays as it is.
#[test]
#[ignore = "makes files that are there"]
fn make_fixtures() {
    let rows = clustered(60, 4, 9);
    let mut hnsw = Hnsw::builder(4).m(4).build_in(MemStore::new(4096).unwrap()).unwrap();
    add_all(&mut hnsw, rows.view());
    hnsw.save(&fixture("hnsw-1.ann")).unwrap();
    let mut diskann = DiskAnn::builder(4).build_in(MemStore::new(4096).unwrap()).unwrap();
    add_all(&mut diskann, rows.view());
    diskann.save(&fixture("diskann-1.ann")).unwrap();
}
