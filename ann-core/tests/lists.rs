//! Lists that are changed beside other handles: at every single write others insert and search, or the process dies.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ann_core::testing::{Common, Faulty, Latched};
use ann_core::{
    Cursor, Error, Flat, Index, IvfCode, IvfPq, IvfPqBuilder, MemStore, Metric, PageStore, Search,
    SharedIndex,
};
use common::{add_all, clustered, recall};
use ndarray::{Array2, Axis, concatenate};

const DIM: usize = 8;
/// Rows of whoever makes a change have keys from here on.
const OWN: u64 = 1 << 40;

/// An empty index of which there can be many handles.
fn empty(metric: Metric, train_at: usize) -> Common {
    of(IvfPq::builder(DIM).metric(metric), train_at)
}

fn of(builder: IvfPqBuilder, train_at: usize) -> Common {
    let store = Common::new(MemStore::new(4096).unwrap());
    builder.train_at(train_at).build_in(store.clone()).unwrap();
    store
}

fn insert<S: PageStore>(index: &mut IvfPq<S>, rows: &Array2<f32>, first: u64) {
    for (key, row) in (first..).zip(rows.rows()) {
        index.insert_one(&row.to_vec(), key).unwrap();
    }
}

fn sweep<S: PageStore>(index: &mut IvfPq<S>) {
    let mut sweep = index.begin_sweep(20).unwrap();
    while index.step(&mut sweep).unwrap() {}
}

/// The same beside others, who do not insert while a step is alone.
fn sweep_beside(index: &mut IvfPq<Latched<Common>>, alone: &AtomicBool) {
    let mut sweep = index.begin_sweep(20).unwrap();
    loop {
        alone.store(index.is_alone(&sweep), Ordering::Relaxed);
        if !index.step(&mut sweep).unwrap() {
            return alone.store(false, Ordering::Relaxed);
        }
    }
}

/// A search that goes on to the last row, a few writes of others at a time.
struct Scan {
    index: IvfPq<Common>,
    query: Vec<f32>,
    cursor: Option<Cursor>,
    returned: BTreeSet<u64>,
    done: bool,
}

impl Scan {
    fn new(store: Common, query: &[f32]) -> Scan {
        let index = IvfPq::open_in(store).unwrap();
        let (query, returned) = (query.to_vec(), BTreeSet::new());
        Scan { index, query, cursor: None, returned, done: false }
    }

    /// The next hits; as a database goes on, anew and without what it had when the lists have changed.
    fn go_on(&mut self) {
        let Scan { index, query, cursor, returned, done } = self;
        let cursor = cursor.get_or_insert_with(|| {
            index.refresh().unwrap();
            index.cursor_with(query, &Search::new(10).probes(2).rerank(10)).unwrap()
        });
        match index.next_hits(cursor) {
            Ok(hits) => {
                *done = hits.is_empty();
                let mut once = BTreeSet::new();
                assert!(hits.iter().all(|hit| once.insert(hit.key)), "a key came twice");
                returned.extend(once);
            }
            Err(Error::Changed) => self.cursor = None,
            Err(error) => panic!("a search beside changes: {error}"),
        }
    }

    fn finish(&mut self) -> &BTreeSet<u64> {
        while !self.done {
            self.go_on();
        }
        &self.returned
    }
}

/// What searches find while `change` is made on a handle of its own: at each of its writes a row is inserted by
/// somebody else, one search finds all rows there are, and one that has begun long before goes on.
fn beside(
    store: &Common,
    rows: &Array2<f32>,
    keys: BTreeSet<u64>,
    change: fn(&mut IvfPq<Latched<Common>>, &AtomicBool),
) {
    let mut latched = Latched::new(store.clone());
    let (mut other, mut writes) = (IvfPq::open_in(store.clone()).unwrap(), 0);
    let mut slow = Scan::new(store.clone(), &rows.row(3).to_vec());
    let (common, new, before) = (store.clone(), rows.clone(), keys.clone());
    let keys = Arc::new(Mutex::new(keys));
    let (inner, alone) = (keys.clone(), Arc::new(AtomicBool::new(false)));
    let is_alone = alone.clone();
    latched.meddle(move |_, _| {
        let mut keys = inner.lock().unwrap();
        if writes % 5 == 0 && !is_alone.load(Ordering::Relaxed) {
            let key = 1_000_000 + writes;
            let row = new.row(writes as usize % new.nrows()).to_vec();
            other.insert_one(&row, key).unwrap();
            keys.insert(key);
        }
        if writes % 3 == 0 {
            let query = new.row(writes as usize * 7 % new.nrows()).to_vec();
            let mut found = Scan::new(common.clone(), &query).finish().clone();
            found.retain(|&key| key < OWN);
            assert!(found == *keys, "write {writes}: {} of {} found", found.len(), keys.len());
        }
        slow.go_on();
        if slow.done {
            assert!(before.is_subset(&slow.returned), "write {writes}");
            slow = Scan::new(common.clone(), &new.row(writes as usize % new.nrows()).to_vec());
        }
        writes += 1;
    });
    let mut index = IvfPq::open_in(latched).unwrap();
    change(&mut index, &alone);
    index.verify().unwrap();
    let mut fresh = IvfPq::open_in(store.clone()).unwrap();
    fresh.verify().unwrap();
    let keys = keys.lock().unwrap();
    assert_eq!(fresh.len(), keys.len());
    assert!(Scan::new(store.clone(), &rows.row(0).to_vec()).finish() == &*keys);
    sweep(&mut fresh);
    fresh.verify().unwrap();
}

fn numbers(count: usize) -> BTreeSet<u64> {
    (0..count as u64).collect()
}

/// 300 rows in lists that were made for 100, and in one place 300 more.
fn out_of_shape(metric: Metric) -> (Common, Array2<f32>) {
    let store = empty(metric, 100);
    let mut index = IvfPq::open_in(store.clone()).unwrap();
    let rows = clustered(300, DIM, 1);
    let near = &clustered(80, DIM, 2) * 0.05 + rows.row(17);
    insert(&mut index, &rows.select(Axis(0), &(0..250).collect::<Vec<_>>()), 0);
    sweep(&mut index);
    let rest = concatenate![Axis(0), rows.select(Axis(0), &(250..300).collect::<Vec<_>>()), near];
    insert(&mut index, &rest, 250);
    (store, concatenate![Axis(0), rows, near])
}

#[test]
fn nothing_is_missed_while_an_index_is_trained() {
    let builder = || IvfPq::builder(DIM);
    let turned = [builder().opq(true), builder().code(IvfCode::RaBitQ2)];
    for builder in [builder(), builder().metric(Metric::Cosine)].into_iter().chain(turned) {
        let (store, rows) = (of(builder, 200), clustered(250, DIM, 1));
        insert(&mut IvfPq::open_in(store.clone()).unwrap(), &rows, 0);
        beside(&store, &rows, numbers(rows.nrows()), sweep_beside);
        assert!(IvfPq::open_in(store).unwrap().lists().unwrap() > 1);
    }
}

#[test]
fn nothing_is_missed_while_an_index_is_trained_anew() {
    let (store, rows) = (empty(Metric::InnerProduct, 60), clustered(400, DIM, 1));
    let mut index = IvfPq::open_in(store.clone()).unwrap();
    insert(&mut index, &rows.select(Axis(0), &(0..70).collect::<Vec<_>>()), 0);
    sweep(&mut index);
    let lists = index.lists().unwrap();
    insert(&mut index, &rows.select(Axis(0), &(70..400).collect::<Vec<_>>()), 70);
    beside(&store, &rows, numbers(400), sweep_beside);
    assert!(IvfPq::open_in(store).unwrap().lists().unwrap() > 2 * lists);
}

#[test]
fn nothing_is_missed_while_lists_are_cut() {
    for metric in [Metric::L2sq, Metric::Cosine] {
        let (store, rows) = out_of_shape(metric);
        let lists = IvfPq::open_in(store.clone()).unwrap().lists().unwrap();
        beside(&store, &rows, numbers(rows.nrows()), sweep_beside);
        let index = IvfPq::open_in(store).unwrap();
        assert!(index.lists().unwrap() > lists);
    }
}

#[test]
fn nothing_is_missed_while_removed_rows_go() {
    let (store, rows) = out_of_shape(Metric::L2sq);
    let mut index = IvfPq::open_in(store.clone()).unwrap();
    index.remove_where(|key| key % 4 != 1).unwrap();
    let keys = numbers(rows.nrows()).into_iter().filter(|key| key % 4 == 1).collect();
    beside(&store, &rows, keys, |index, alone| {
        sweep_beside(index, alone);
        assert_eq!(index.counts().1, 0);
    });
}

#[test]
fn insertions_try_again_when_others_were_faster() {
    for train_at in [1000, 100] {
        let (store, rows) = (empty(Metric::L2sq, train_at), clustered(200, DIM, 3));
        let mut index = IvfPq::open_in(store.clone()).unwrap();
        insert(&mut index, &rows, 0);
        sweep(&mut index);
        beside(&store, &rows, numbers(200), |index, _| {
            insert(index, &clustered(40, DIM, 5), OWN);
            index.remove_where(|key| key >= OWN).unwrap();
        });
    }
}

/// A process that dies at any write of a sweep leaves an index that is sound and has all, and the next sweep does the
/// rest.
#[test]
fn sweeps_that_are_cut_off() {
    let of = |metric: Metric, removes: u64| {
        let (store, rows) = out_of_shape(metric);
        let mut index = IvfPq::open_in(store.clone()).unwrap();
        index.remove_where(|key| removes > 0 && key % removes == 0).unwrap();
        let keys = numbers(rows.nrows());
        (store, rows, keys.into_iter().filter(move |key| removes == 0 || key % removes != 0))
    };
    for (metric, removes) in [(Metric::Cosine, 0), (Metric::L2sq, 3)] {
        let mut step = 1;
        let mut last = 0;
        while last < 100_000 {
            let (store, rows, keys) = of(metric, removes);
            let keys: BTreeSet<u64> = keys.collect();
            let mut faulty = Faulty::new(store.clone());
            faulty.fail_after(last);
            let mut index = IvfPq::open_in(faulty).unwrap();
            let cut_off = (|| {
                let mut sweep = index.begin_sweep(20)?;
                while index.step(&mut sweep)? {}
                Ok::<(), Error>(())
            })();
            let mut after = IvfPq::open_in(store.clone()).unwrap();
            after.verify().unwrap();
            assert!(Scan::new(store.clone(), &rows.row(9).to_vec()).finish() == &keys);
            insert(&mut after, &rows.select(Axis(0), &[1, 2, 3]), 5000);
            sweep(&mut after);
            after.verify().unwrap();
            assert_eq!(after.counts(), (keys.len() + 3, 0));
            let mut all = keys;
            all.extend(5000..5003);
            assert!(Scan::new(store, &rows.row(9).to_vec()).finish() == &all);
            if cut_off.is_ok() {
                break;
            }
            last += step;
            step = 1 + last / 8;
        }
        assert!(last > 20);
    }
}

/// An index that is filled row by row and swept finds as much, for as much work, as one that was built of all rows.
#[test]
fn grown_lists_serve_as_built_ones() {
    let rows = clustered(6000, DIM, 4);
    let store = empty(Metric::L2sq, 1500);
    let mut grown = IvfPq::open_in(store).unwrap();
    for (key, row) in (0..).zip(rows.rows()) {
        grown.insert_one(&row.to_vec(), key).unwrap();
        if grown.needs_training() {
            sweep(&mut grown);
        }
    }
    sweep(&mut grown);
    grown.verify().unwrap();
    let mut built = IvfPq::builder(DIM).build().unwrap();
    add_all(&mut built, rows.view());
    let mut exact = Flat::builder(DIM).build().unwrap();
    add_all(&mut exact, rows.view());
    assert!(grown.lists().unwrap() * 5 > built.lists().unwrap() * 4);
    let queries = clustered(100, DIM, 6);
    let options = Search::new(10).probes(8).rerank(80);
    let (mut found, mut work) = ([0.0; 2], [0; 2]);
    for query in queries.rows() {
        let query = query.to_vec();
        let truth = exact.search(&query, &Search::new(10)).unwrap();
        let truth: Vec<f32> = truth.iter().map(|hit| hit.distance).collect();
        let both = [
            grown.search_counted(&query, &options).unwrap(),
            built.search_counted(&query, &options).unwrap(),
        ];
        for (at, (hits, cost)) in both.into_iter().enumerate() {
            found[at] += recall(&hits, &truth, 10) / 100.0;
            work[at] += cost.hops;
        }
    }
    assert!(found[0] > found[1] - 0.01 && found[1] > 0.95, "{found:?}");
    assert!(work[0] * 4 < work[1] * 5, "{work:?}");
}

/// Places and blocks are used again, and an index that runs empty begins anew.
#[test]
fn space_is_used_again() {
    let (store, rows) = (empty(Metric::Cosine, 200), clustered(1200, DIM, 7));
    let mut index = IvfPq::open_in(store.clone()).unwrap();
    insert(&mut index, &rows, 0);
    sweep(&mut index);
    let pages = store.page_count();
    for round in 1..6 {
        index.remove_where(|key| key % 2 == round % 2).unwrap();
        sweep(&mut index);
        index.verify().unwrap();
        insert(&mut index, &rows.select(Axis(0), &(0..600).collect::<Vec<_>>()), 10_000 * round);
        let odd = |key: u64| (10_000 * round..10_000 * round + 600).contains(&key);
        index.remove_where(|key| !odd(key) && key >= 10_000).unwrap();
    }
    sweep(&mut index);
    index.verify().unwrap();
    assert!(store.page_count() <= pages + pages / 10, "{pages}, {}", store.page_count());
    index.remove_where(|_| true).unwrap();
    sweep(&mut index);
    index.verify().unwrap();
    assert_eq!((index.lists().unwrap(), index.counts()), (0, (0, 0)));
    insert(&mut index, &rows, 0);
    sweep(&mut index);
    index.verify().unwrap();
    assert!(index.lists().unwrap() > 10);
    assert!(store.page_count() <= pages + pages / 10, "{pages}, {}", store.page_count());
}

/// A handle that was opened before there was anything finds what others have made since.
#[test]
fn handles_learn_of_new_lists() {
    let (store, rows) = (empty(Metric::L2sq, 100), clustered(600, DIM, 8));
    let mut old = IvfPq::open_in(store.clone()).unwrap();
    assert_eq!(Scan::new(store.clone(), &[0.0; DIM]).finish().len(), 0);
    let mut index = IvfPq::open_in(store.clone()).unwrap();
    for (first, part) in (0..).step_by(150).zip(rows.axis_chunks_iter(Axis(0), 150)) {
        insert(&mut index, &part.to_owned(), first);
        sweep(&mut index);
        let query = part.row(5).to_vec();
        let hits = loop {
            let mut cursor = old.cursor(&query, 20).unwrap();
            match old.next_hits(&mut cursor) {
                Err(Error::Changed) => {}
                hits => break hits.unwrap(),
            }
        };
        assert_eq!((hits[0].key, hits[0].distance), (first + 5, 0.0));
        old.insert_one(&query, 10_000 + first).unwrap();
        old.verify().unwrap();
    }
}
