//! Bad input is refused with the error that names it, and leaves the index as it was.

use super::*;

use ann_core::{AnyIndex, DType, Flat, Hnsw, MAX_DIM, MAX_EF};

pub fn suite<K: Kind>(home: Home) {
    for metric in [Metric::L2sq, Metric::InnerProduct, Metric::Cosine] {
        floats::<K>(home, metric);
    }
    halves::<K>(home);
    keys_and_options::<K>(home);
    dimensions::<K>();
}

fn filled<K: Kind, T: Element>(home: Home, metric: Metric) -> Case<K, T> {
    let mut case = Case::new(home, 8, metric);
    let rows: Array2<T> = common::cast(&common::clustered(80, 8, 1));
    case.add(rows.view(), None);
    case
}

/// Runs calls that must fail and shows that nothing came of them.
fn unharmed<K: Kind, T: Element>(case: &mut Case<K, T>, calls: impl FnOnce(&mut K::Index)) {
    let before = (case.answers(), case.index.stats().unwrap());
    calls(&mut case.index);
    case.check();
    let after = (case.answers(), case.index.stats().unwrap());
    assert_eq!(before.0, after.0);
    assert_eq!((before.1.slots, before.1.bytes), (after.1.slots, after.1.bytes));
}

/// Every way in which a vector can enter: two rows, of which the second is to be refused.
fn refused<T: Element>(
    index: &mut impl Index,
    rows: ArrayView2<'_, T>,
    fits: impl Fn(&Error, usize) -> bool,
) {
    let check = |error: Error, row: usize| assert!(fits(&error, row), "{error:?}");
    let last = rows.nrows() - 1;
    let query = rows.row(last).to_vec();
    let options = Search::new(3);
    check(index.add(rows, None, AddOptions::new()).unwrap_err(), last);
    check(index.add(rows, Some(&[900, 901]), AddOptions::new().threads(2)).unwrap_err(), last);
    check(index.update(rows, &[3, 4], AddOptions::new()).unwrap_err(), last);
    check(index.search(&query, &options).unwrap_err(), 0);
    check(index.search_counted(&query, &options).unwrap_err(), 0);
    check(index.search_batch(rows, &options, 2).unwrap_err(), last);
    check(index.range_search(&query, 1.0, &options).unwrap_err(), 0);
    check(index.cursor(&query, 10).map(|_| ()).unwrap_err(), 0);
}

fn floats<K: Kind>(home: Home, metric: Metric) {
    let mut case = filled::<K, f32>(home, metric);
    let good = common::clustered(2, 8, 2);
    let with = |column: usize, value: f32| {
        let mut rows = good.clone();
        rows[(1, column)] = value;
        rows
    };
    unharmed(&mut case, |index| {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            refused(index, with(5, value).view(), |error, at| {
                matches!(error, &Error::NotFinite { row, column: 5, value: got }
                    if row == at && got.to_bits() == value.to_bits())
            });
        }
        refused(
            index,
            with(2, 1e19).view(),
            |error, at| matches!(error, &Error::TooLong { row, norm } if row == at && norm > 9.9e18),
        );
        if metric == Metric::Cosine {
            let zero = {
                let mut rows = good.clone();
                rows.row_mut(1).fill(0.0);
                rows
            };
            refused(
                index,
                zero.view(),
                |error, at| matches!(error, &Error::ZeroVector { row } if row == at),
            );
        }
        for dim in [0, 7, 9] {
            refused(
                index,
                Array2::from_elem((2, dim), 1.0f32).view(),
                |error, _| matches!(error, &Error::Dimension { got, want: 8 } if got == dim),
            );
        }
        let bytes = Array2::from_elem((2, 8), 1i8);
        refused(index, bytes.view(), |error, _| {
            matches!(error, Error::ElementType { got: DType::I8, want: DType::F32 })
        });
        for key in [0, 700] {
            let got = index.get::<i8>(key);
            assert!(matches!(got, Err(Error::ElementType { got: DType::I8, want: DType::F32 })));
        }
    });
}

fn halves<K: Kind>(home: Home) {
    let mut case = filled::<K, f16>(home, Metric::Cosine);
    unharmed(&mut case, |index| {
        for value in [f16::NAN, f16::INFINITY] {
            let mut rows = Array2::from_elem((2, 8), f16::ONE);
            rows[(1, 7)] = value;
            refused(
                index,
                rows.view(),
                |error, at| matches!(error, &Error::NotFinite { row, column: 7, .. } if row == at),
            );
        }
        let mut rows = Array2::from_elem((2, 8), f16::ONE);
        rows.row_mut(1).fill(f16::NEG_ZERO);
        refused(
            index,
            rows.view(),
            |error, at| matches!(error, &Error::ZeroVector { row } if row == at),
        );
    });
}

fn parameter<R>(result: ann_core::Result<R>, name: &str) {
    match result.map(|_| ()) {
        Err(Error::Parameter { name: got, .. }) if got == name => {}
        other => panic!("{name} was not refused: {other:?}"),
    }
}

fn keys_and_options<K: Kind>(home: Home) {
    let mut case = filled::<K, u8>(home, Metric::L2sq);
    let rows: Array2<u8> = common::cast(&common::clustered(3, 8, 2));
    let query = case.query(0);
    unharmed(&mut case, |index| {
        let mut add = |keys: &[u64]| index.add(rows.view(), Some(keys), AddOptions::new());
        assert!(matches!(add(&[90, 91]), Err(Error::KeyCount { keys: 2, rows: 3 })));
        assert!(matches!(add(&[]), Err(Error::KeyCount { keys: 0, rows: 3 })));
        assert!(matches!(add(&[90, 91, 90]), Err(Error::DuplicateKey { key: 90, row: 2 })));
        assert!(matches!(add(&[90, 79, 91]), Err(Error::DuplicateKey { key: 79, row: 1 })));
        parameter(add(&[90, 91, u64::MAX]), "key");
        parameter(index.add(rows.view(), None, AddOptions::new().threads(5000)), "threads");

        let mut update = |keys: &[u64]| index.update(rows.view(), keys, AddOptions::new());
        assert!(matches!(update(&[1, 80, 2]), Err(Error::UnknownKey { key: 80, row: 1 })));
        assert!(matches!(update(&[1, 2, u64::MAX]), Err(Error::UnknownKey { row: 2, .. })));
        assert!(matches!(update(&[1, 2, 1]), Err(Error::DuplicateKey { key: 1, row: 2 })));
        assert!(matches!(update(&[1]), Err(Error::KeyCount { keys: 1, rows: 3 })));

        for (name, options) in [
            ("k", Search::new(0)),
            ("ef", Search::new(1).ef(0)),
            ("ef", Search::new(1).ef(MAX_EF + 1)),
            ("epsilon", Search::new(1).epsilon(-0.1)),
            ("epsilon", Search::new(1).epsilon(f32::INFINITY)),
            ("epsilon", Search::new(1).epsilon(f32::NAN)),
        ] {
            parameter(index.search(&query, &options), name);
            parameter(index.search_batch(rows.view(), &options, 1), name);
            parameter(index.range_search(&query, 1.0, &options), name);
        }
        parameter(index.cursor(&query, 0), "ef");
        parameter(index.cursor(&query, MAX_EF + 1), "ef");
        parameter(index.range_search(&query, f32::NAN, &Search::new(1)), "radius");
        parameter(index.search_batch(rows.view(), &Search::new(1), 5000), "threads");
        assert_eq!(index.search(&query, &Search::new(usize::MAX)).unwrap().len(), 80);
    });

    // The largest key is a key; after it, there are no automatic ones.
    case.add(rows.slice(s![..1, ..]), Some(&[u64::MAX - 1]));
    unharmed(&mut case, |index| {
        parameter(index.add(rows.view(), None, AddOptions::new()), "keys");
        assert!(index.add(rows.slice(s![..0, ..]), None, AddOptions::new()).unwrap().is_empty());
    });
    case.add(rows.slice(s![1.., ..]), Some(&[700, 701]));
    case.check();
}

/// A dimension that is not allowed makes no index, and an index makes no other.
fn dimensions<K: Kind>() {
    let memory = || AnyStore::Memory(ann_core::MemStore::new(4096).unwrap());
    for dtype in [DType::F32, DType::U8] {
        for metric in [Metric::L2sq, Metric::Cosine] {
            for dim in [0, MAX_DIM + 1, usize::MAX] {
                parameter(K::build(dim, dtype, metric, memory()), "dim");
            }
            assert!(K::build(MAX_DIM, dtype, metric, memory()).unwrap().is_empty());
            assert!(K::build(1, dtype, metric, memory()).unwrap().is_empty());
        }
    }
}

#[test]
fn parameters_of_the_builders() {
    for dim in [0, MAX_DIM + 1, usize::MAX] {
        parameter(Flat::builder(dim).build(), "dim");
        parameter(Hnsw::builder(dim).build(), "dim");
    }
    for m in [0, 1, 257, usize::MAX] {
        parameter(Hnsw::builder(4).m(m).build(), "m");
    }
    for ef in [0, 100_001, usize::MAX] {
        parameter(Hnsw::builder(4).ef_construction(ef).build(), "ef_construction");
    }
    for page_size in [0, 100, 2048, 5000, 2 << 20] {
        parameter(ann_core::MemStore::new(page_size), "page_size");
    }
    let smallest = Hnsw::builder(1).m(2).ef_construction(1).build().unwrap();
    assert_eq!((smallest.m(), smallest.ef_construction()), (2, 2));
    assert_eq!(Hnsw::builder(1).m(256).build().unwrap().m(), 256);
}

#[test]
fn a_store_that_holds_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let flat = Flat::builder(4).build().unwrap();
    let path = folder.path().join("flat");
    flat.save(&path).unwrap();
    let load = || ann_core::MemStore::load(&path).unwrap();
    parameter(Hnsw::builder(4).build_in(load()), "store");
    parameter(Flat::builder(4).build_in(load()), "store");
    assert!(matches!(Hnsw::open_in(load()), Err(Error::Kind { .. })));
    assert!(Flat::open_in(load()).is_ok());
    assert!(matches!(AnyIndex::open_in(load()), Ok(AnyIndex::Flat(_))));
    let empty = ann_core::MemStore::new(4096).unwrap();
    assert!(matches!(AnyIndex::open_in(empty), Err(Error::NotAnIndex { .. })));
    let mut blank = ann_core::MemStore::new(4096).unwrap();
    ann_core::PageStore::grow(&mut blank, 3).unwrap();
    assert!(matches!(Flat::open_in(blank), Err(Error::NotAnIndex { .. })));
}
