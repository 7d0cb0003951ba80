//! Adding in steps: progress and cancellation, searches in between, and rows however they lie in memory.

mod common;

use ann_core::{
    AddOptions, Error, Filter, Flat, Hnsw, Index, Insertion, IvfPq, IvfPqSteps, Metric, PageId,
    PageStore, Search,
};
use common::{mean_recall, small_set};
use ndarray::{Array2, ArrayView2, Axis, s};

fn hnsw() -> Hnsw {
    Hnsw::builder(100).metric(Metric::Cosine).ef_construction(80).build().unwrap()
}

fn lists() -> IvfPq {
    IvfPq::builder(100).metric(Metric::Cosine).train_at(500).build().unwrap()
}

fn pages(index: &Hnsw) -> Vec<Vec<u8>> {
    pages_of(index.store())
}

fn pages_of(store: &impl PageStore) -> Vec<Vec<u8>> {
    (0..store.page_count()).map(|page| store.read(PageId(page)).unwrap().to_vec()).collect()
}

#[test]
fn progress_is_told_to_the_end() {
    let set = small_set();
    told(&mut hnsw(), set.base.slice(s![..3000, ..]));
    told(&mut Flat::builder(100).build().unwrap(), set.base.slice(s![..3000, ..]));
    told(&mut lists(), set.base.slice(s![..3000, ..]));
}

fn told(index: &mut impl Index, rows: ArrayView2<'_, f32>) {
    let mut seen = Vec::new();
    let mut listen = |done, total| {
        seen.push((done, total));
        true
    };
    index.add(rows, None, AddOptions::new().progress(&mut listen)).unwrap();
    assert!(seen.len() > 2 && seen.is_sorted());
    assert!(seen.iter().all(|&(_, total)| total == 3000));
    assert_eq!((seen[0], seen[seen.len() - 1]), ((0, 3000), (3000, 3000)));
}

/// Stopped at any moment, the index holds the rows that it says it has added, and takes the others later.
#[test]
fn cancelled_and_continued() {
    let set = small_set();
    let rows = set.base.slice(s![..3000, ..]);
    let keys: Vec<u64> = (0..3000).collect();
    let mut exact = Flat::builder(100).metric(Metric::Cosine).build().unwrap();
    exact.add(rows, Some(&keys), AddOptions::new()).unwrap();
    let mut whole = hnsw();
    whole.add(rows, Some(&keys), AddOptions::new()).unwrap();
    // Batches link a little less well than a load.
    let bar = mean_recall(&whole, &exact, set.queries.view(), 10, 64) - 0.02;
    // An empty index is loaded at once, one that holds something takes batches.
    for (held, calls) in
        [(0, 0), (0, 1), (0, 2), (0, 4), (100, 0), (100, 1), (100, 7), (100, 60), (100, 200)]
    {
        let mut index = hnsw();
        index.add(rows.slice(s![..held, ..]), Some(&keys[..held]), AddOptions::new()).unwrap();
        let mut left = calls;
        let mut stop = |_, _| {
            left -= 1;
            left >= 0
        };
        let options = AddOptions::new().progress(&mut stop);
        let result = index.add(rows.slice(s![held.., ..]), Some(&keys[held..]), options);
        let Err(Error::Cancelled { added }) = result else { panic!("{result:?}") };
        let added = held + added;
        index.verify().unwrap();
        assert_eq!(index.len(), added);
        let (done, rest): (Vec<u64>, Vec<u64>) =
            keys.iter().partition(|&&key| index.contains(key).unwrap());
        assert_eq!(done.len(), added);
        for &key in &done {
            assert_eq!(index.get::<f32>(key).unwrap().unwrap(), rows.row(key as usize).to_vec());
        }
        let places: Vec<usize> = rest.iter().map(|&key| key as usize).collect();
        index.add(rows.select(Axis(0), &places).view(), Some(&rest), AddOptions::new()).unwrap();
        index.verify().unwrap();
        let recall = mean_recall(&index, &exact, set.queries.view(), 10, 64);
        assert!(recall >= bar, "cancelled after {added}: recall {recall}, bar {bar}");
    }
}

#[test]
fn searches_between_the_steps() {
    let set = small_set();
    let rows = set.base.slice(s![..2000, ..]);
    let mut at_once = hnsw();
    at_once.add(rows, None, AddOptions::new()).unwrap();
    let mut index = hnsw();
    let mut insertion = Insertion::new(&index, rows, None, false, 2).unwrap();
    let mut last = 0;
    while !insertion.is_done() {
        match insertion.needs_write() {
            true => insertion.write_step(&mut index).unwrap(),
            false => insertion.plan_step(&index).unwrap(),
        }
        assert!(insertion.done() >= last && index.len() == insertion.done());
        if insertion.done() > last + 100 {
            last = insertion.done();
            index.verify().unwrap();
            let hits = index.search(&rows.row(1).to_vec(), &Search::new(10)).unwrap();
            assert_eq!(hits.len(), 10);
        }
    }
    assert_eq!(insertion.keys(), (0..2000).collect::<Vec<u64>>());
    assert!(pages(&index) == pages(&at_once), "steps make another index than `add` does");
}

/// A load can be left between any two looks at its rows: beginning it looks at none.
#[test]
fn bad_rows_are_told_by_the_first_step() {
    let mut rows = common::clustered(2000, 8, 1);
    rows[[1999, 3]] = f32::NAN;
    let is_told = |step: Result<(), Error>| match step {
        Err(Error::NotFinite { row: 1999, column: 3, .. }) => {}
        other => panic!("{other:?}"),
    };
    let index = Hnsw::builder(8).build().unwrap();
    let mut insertion = Insertion::new(&index, rows.view(), None, false, 2).unwrap();
    assert!(!insertion.needs_write());
    is_told(insertion.plan_step(&index));
    let index = IvfPq::builder(8).build().unwrap();
    let mut steps = IvfPqSteps::insert(&index, rows.view(), None, false, 2).unwrap();
    assert!(!steps.needs_write());
    is_told(steps.plan_step(&index));
}

/// Somebody changes the index between two steps, which is not allowed: an error may come of it, but no unsound index.
#[test]
fn changes_between_the_steps() {
    let rows = common::clustered(600, 8, 1);
    let build = || Hnsw::builder(8).m(4).ef_construction(20).build().unwrap();
    let changes: [fn(&mut Hnsw); 3] = [
        |index| assert_eq!(index.remove(&(0..80).collect::<Vec<u64>>()).unwrap(), 80),
        |index| {
            let row = common::clustered(1, 8, 5);
            index.add(row.view(), Some(&[590]), AddOptions::new()).unwrap();
        },
        |index| {
            let rows = common::clustered(30, 8, 6);
            let keys: Vec<u64> = (0..30).collect();
            index.update(rows.view(), &keys, AddOptions::new()).unwrap();
        },
    ];
    for change in changes {
        for stop in 0..60 {
            let mut index = build();
            index.add(rows.slice(s![..300, ..]), None, AddOptions::new().threads(1)).unwrap();
            let new = rows.slice(s![300.., ..]);
            let mut insertion = Insertion::new(&index, new, None, false, 1).unwrap();
            let mut steps = 0;
            let result = loop {
                if insertion.is_done() {
                    break Ok(());
                }
                if steps == stop {
                    change(&mut index);
                }
                steps += 1;
                let step = match insertion.needs_write() {
                    true => insertion.write_step(&mut index),
                    false => insertion.plan_step(&index),
                };
                if step.is_err() {
                    break step;
                }
            };
            let sound = index.verify();
            sound.unwrap_or_else(|error| panic!("changed after step {stop}, {result:?}: {error}"));
        }
    }
}

/// A change of lists in steps, each of which `watch` is told of with the index after it.
fn in_steps<'a, T: ann_core::Element>(
    index: &mut IvfPq,
    mut steps: IvfPqSteps<'a, T>,
    mut watch: impl FnMut(&mut IvfPq, &IvfPqSteps<'a, T>),
) -> Result<(), Error> {
    while !steps.is_done() {
        match steps.needs_write() {
            true => steps.write_step(index)?,
            false => steps.plan_step(index)?,
        }
        watch(index, &steps);
    }
    Ok(())
}

/// Everything that changes lists: searches between the steps find all, and the index is that of a change at once.
#[test]
fn searches_between_the_steps_of_lists() {
    let set = small_set();
    let rows = set.base.slice(s![..2600, ..]);
    let (first, more) = (rows.slice(s![..500, ..]), rows.slice(s![500.., ..]));
    let other = set.base.slice(s![3000..3600, ..]);
    let keys: Vec<u64> = (0..600).collect();
    let gone: Vec<u64> = (600..2200).collect();
    let (mut index, mut at_once) = (lists(), lists());
    let watch = |index: &mut IvfPq, done: usize, row: Vec<f32>, verifies: bool| {
        assert_eq!(index.len(), done);
        if verifies {
            index.verify().unwrap();
        }
        let hits = index.search(&row, &Search::new(10).probes(1000).rerank(600)).unwrap();
        assert_eq!(hits.len(), done.min(10));
        assert!(done < 20 || hits[0].distance < 1e-5, "{hits:?} of {done} rows");
    };

    // A load: its rows come in the order of their lists.
    let mut count = 0;
    let steps = IvfPqSteps::insert(&index, first, None, false, 2).unwrap();
    in_steps(&mut index, steps, |index, steps| {
        count += 1;
        assert_eq!(index.len(), steps.done());
        if steps.done() == 500 {
            watch(index, 500, first.row(7).to_vec(), true);
        }
    })
    .unwrap();
    assert!(count > 15, "{count} steps");
    at_once.add(first, None, AddOptions::new()).unwrap();
    // Rows for lists that there are, and then a training.
    let mut trains = 0;
    let steps = IvfPqSteps::insert(&index, more, None, false, 2).unwrap();
    in_steps(&mut index, steps, |index, steps| {
        trains += usize::from(steps.done() == 2100);
        let done = 500 + steps.done();
        watch(index, done, first.row(trains).to_vec(), trains % 4 == 0);
    })
    .unwrap();
    assert!(trains > 15, "{trains} steps of training");
    at_once.add(more, None, AddOptions::new()).unwrap();
    let steps = IvfPqSteps::insert(&index, other, Some(&keys), true, 2).unwrap();
    in_steps(&mut index, steps, |index, _| watch(index, 2600, rows.row(601).to_vec(), true))
        .unwrap();
    at_once.update(other, &keys, AddOptions::new()).unwrap();
    let near = &other * 0.05 + set.base.row(5000);
    for index in [&mut index, &mut at_once] {
        index.add(near.view(), None, AddOptions::new()).unwrap();
        assert_eq!(index.remove(&gone).unwrap(), gone.len());
    }
    let mut count = 0;
    let steps = IvfPqSteps::rebalance(&index, 2).unwrap();
    in_steps(&mut index, steps, |index, _| {
        count += 1;
        watch(index, 1600, near.row(count).to_vec(), true);
    })
    .unwrap();
    assert!(count > 8, "{count} steps");
    at_once.rebalance(1).unwrap();
    let steps = IvfPqSteps::compact(&index).unwrap();
    in_steps(&mut index, steps, |index, _| watch(index, 1600, near.row(3).to_vec(), true)).unwrap();
    at_once.compact().unwrap();
    let steps = IvfPqSteps::train(&index, near.view(), 2).unwrap();
    in_steps(&mut index, steps, |index, _| watch(index, 1600, near.row(3).to_vec(), true)).unwrap();
    at_once.train(near.view(), AddOptions::new()).unwrap();
    assert!(pages_of(index.store()) == pages_of(at_once.store()), "steps make another index");
}

/// Whatever changes lists between two steps, the next step refuses; dropped after any step, the index is sound and
/// goes on.
#[test]
fn changes_between_the_steps_of_lists() {
    let rows = common::clustered(900, 8, 1);
    let (old, new) = (rows.slice(s![..200, ..]), rows.slice(s![200.., ..]));
    let changes: [fn(&mut IvfPq); 5] = [
        |index| assert!(index.remove(&(0..80).collect::<Vec<u64>>()).unwrap() > 0),
        |index| {
            let row = common::clustered(1, 8, 5);
            index.add(row.view(), Some(&[5000]), AddOptions::new()).unwrap();
        },
        |index| index.train(common::clustered(30, 8, 6).view(), AddOptions::new()).unwrap(),
        |index| {
            index.tune(common::clustered(5, 8, 6).view(), 3, 0.9, 1).unwrap();
        },
        |_| (),
    ];
    for (number, change) in changes.iter().enumerate() {
        let held = if number == 2 { 0 } else { 200 };
        for stop in 0.. {
            let builder = IvfPq::builder(8).train_at(100);
            let mut index = builder.build().unwrap();
            index.add(old.slice(s![..held, ..]), None, AddOptions::new().threads(1)).unwrap();
            if number == 0 {
                index.remove(&[3, 5]).unwrap();
            }
            let mut steps = IvfPqSteps::insert(&index, new, None, false, 1).unwrap();
            let mut step = |index: &mut IvfPq| match steps.needs_write() {
                true => steps.write_step(index).map(|()| steps.is_done()),
                false => steps.plan_step(index).map(|()| steps.is_done()),
            };
            let done = (0..stop).any(|_| step(&mut index).unwrap());
            change(&mut index);
            if !done && number < 4 {
                assert!(matches!(step(&mut index), Err(Error::Changed)), "after step {stop}");
            }
            index.verify().unwrap_or_else(|error| panic!("change {number}, {stop}: {error}"));
            let len = index.len();
            let all = index.search(&rows.row(1).to_vec(), &Search::new(2000).probes(1000)).unwrap();
            assert_eq!(all.len(), len, "change {number} after step {stop}");
            let row = common::clustered(120, 8, 9);
            index.add(row.view(), None, AddOptions::new().threads(1)).unwrap();
            index.verify().unwrap();
            assert_eq!(index.len(), len + 120);
            assert!(index.lists().unwrap() > 0, "change {number} after step {stop}");
            if done {
                assert!(stop > 15, "{stop} steps");
                break;
            }
        }
    }
}

#[test]
fn rows_in_any_layout() {
    let wide = common::clustered(300, 24, 1);
    let plain = |rows: ArrayView2<'_, f32>| rows.as_standard_layout().into_owned();
    let fortran = {
        let mut rows = Array2::zeros(ndarray::ShapeBuilder::f((300, 8)));
        rows.assign(&wide.slice(s![.., ..8]));
        rows
    };
    for rows in [
        wide.slice(s![.., ..8]),
        wide.slice(s![.., 1..;3]),
        wide.slice(s![..;-1, ..8]),
        wide.slice(s![..;2, 8..16;-1]),
        fortran.view(),
    ] {
        let build = |rows: ArrayView2<'_, f32>| {
            let mut index = Hnsw::builder(8).build().unwrap();
            index.add(rows, None, AddOptions::new()).unwrap();
            index
                .update(
                    rows,
                    &(0..rows.nrows() as u64).rev().collect::<Vec<u64>>(),
                    AddOptions::new(),
                )
                .unwrap();
            index
        };
        let copy = plain(rows);
        assert!(pages(&build(rows)) == pages(&build(copy.view())));
    }
}

#[test]
fn searches_on_many_threads() {
    let set = small_set();
    let mut index = hnsw();
    index.add(set.base.slice(s![..2000, ..]), None, AddOptions::new()).unwrap();
    let options = Search::new(10).ef(64);
    let wanted = index.search_batch(set.queries.view(), &options, 1).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (query, wanted) in set.queries.rows().into_iter().zip(&wanted) {
                    let query = query.to_vec();
                    assert_eq!(&index.search(&query, &options).unwrap(), wanted);
                    assert_eq!(index.get::<f32>(5).unwrap().unwrap(), set.base.row(5).to_vec());
                }
            });
        }
    });
}

/// A cursor belongs to the index that made it.
#[test]
fn a_cursor_of_another_index() {
    let build = |dim: usize, n: usize| {
        let mut index = Hnsw::builder(dim).build().unwrap();
        index.add(common::clustered(n, dim, 1).view(), None, AddOptions::new()).unwrap();
        index
    };
    let (one, wider, longer) = (build(8, 50), build(16, 50), build(8, 60));
    let mut flat = Flat::builder(8).build().unwrap();
    flat.add(common::clustered(50, 8, 1).view(), None, AddOptions::new()).unwrap();
    let query = common::clustered(1, 8, 3).row(0).to_vec();
    let fresh = || one.cursor(&query, 10).unwrap();
    assert!(matches!(wider.resume(&mut fresh(), 100, Filter::None), Err(Error::Changed)));
    assert!(matches!(longer.resume(&mut fresh(), 100, Filter::None), Err(Error::Changed)));
    assert!(matches!(flat.resume(&mut fresh(), 100, Filter::None), Err(Error::Changed)));
    assert_eq!(one.resume(&mut fresh(), 100, Filter::None).unwrap().len(), 50);
}
