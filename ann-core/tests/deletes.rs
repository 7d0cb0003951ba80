//! Removing real vectors: what remains is found as well as by an index that never held the rest, and the space is
//! used again.

mod common;

use std::collections::HashSet;

use ann_core::{AddOptions, Flat, Hnsw, Index, Metric, Search};
use common::{SmallSet, mean_recall, shuffled, small_set};
use ndarray::{Array2, Axis};

const EF: usize = 64;
const N: usize = 8000;

fn empty() -> Hnsw {
    Hnsw::builder(100).metric(Metric::Cosine).ef_construction(100).seed(1).build().unwrap()
}

fn built(set: &SmallSet, keys: &[u64]) -> Hnsw {
    let mut index = empty();
    add(&mut index, &set.base, keys);
    index
}

fn add(index: &mut impl Index, base: &Array2<f32>, keys: &[u64]) {
    let rows: Vec<usize> = keys.iter().map(|&key| key as usize % N).collect();
    index.add(base.select(Axis(0), &rows).view(), Some(keys), AddOptions::new()).unwrap();
}

fn all_keys() -> Vec<u64> {
    (0..N as u64).collect()
}

/// What an index that only ever held some keys is and finds.
struct Fresh<'a> {
    set: &'a SmallSet,
    kept: HashSet<u64>,
    exact: Flat,
    recall: f64,
}

impl<'a> Fresh<'a> {
    fn new(set: &'a SmallSet, kept: &[u64]) -> Fresh<'a> {
        let mut exact = Flat::builder(100).metric(Metric::Cosine).build().unwrap();
        add(&mut exact, &set.base, kept);
        let recall = mean_recall(&built(set, kept), &exact, set.queries.view(), 10, EF);
        Fresh { set, kept: kept.iter().copied().collect(), exact, recall }
    }

    /// An index holds the same keys and no others, and finds them as well, less a point of recall.
    fn check(&self, index: &Hnsw) {
        self.check_within(index, 0.01);
    }

    fn check_within(&self, index: &Hnsw, loss: f64) {
        index.verify().unwrap();
        assert_eq!(index.len(), self.kept.len());
        let recall = mean_recall(index, &self.exact, self.set.queries.view(), 10, EF);
        assert!(recall >= self.recall - loss, "recall {recall}, of a fresh index {}", self.recall);
        for query in self.set.queries.rows().into_iter().take(50) {
            for hit in index.search(&query.to_vec(), &Search::new(100).ef(200)).unwrap() {
                assert!(self.kept.contains(&hit.key), "key {} was removed", hit.key);
            }
        }
    }
}

/// All at once and little by little.
fn remove_at_random(share: usize) {
    let set = small_set();
    let order = shuffled(N, share as u64);
    let (gone, kept) = order.split_at(N * share / 100);
    let fresh = Fresh::new(&set, kept);
    for at_once in [N, 100] {
        let mut index = built(&set, &all_keys());
        for part in gone.chunks(at_once) {
            assert_eq!(index.remove(part).unwrap(), part.len());
        }
        fresh.check(&index);
        index.sweep(0).unwrap();
        fresh.check(&index);
        assert_eq!(index.remove(gone).unwrap(), 0);
    }
}

#[test]
fn half() {
    remove_at_random(50);
}

#[test]
fn nine_tenths() {
    remove_at_random(90);
}

#[test]
fn whole_neighbourhoods() {
    let set = small_set();
    let mut index = built(&set, &all_keys());
    let mut kept: HashSet<u64> = all_keys().into_iter().collect();
    for query in [0, 7] {
        let query = set.queries.row(query).to_vec();
        let near = index.search(&query, &Search::new(2000).ef(2500)).unwrap();
        let keys: Vec<u64> = near.iter().map(|hit| hit.key).collect();
        assert_eq!(index.remove(&keys).unwrap(), 2000);
        keys.iter().for_each(|key| assert!(kept.remove(key)));
        let kept: Vec<u64> = kept.iter().copied().collect();
        Fresh::new(&set, &kept).check(&index);
    }
}

#[test]
fn everything_and_again() {
    let set = small_set();
    let mut index = built(&set, &all_keys());
    let slots = index.stats().unwrap().slots;
    assert_eq!(index.remove(&all_keys()).unwrap(), N);
    index.verify().unwrap();
    assert!(index.is_empty());
    let query = set.queries.row(0).to_vec();
    assert!(index.search(&query, &Search::new(10)).unwrap().is_empty());
    assert!(index.range_search(&query, 9.0, &Search::new(10)).unwrap().is_empty());
    let stats = index.stats().unwrap();
    assert_eq!((stats.len, stats.tombstones, stats.links), (0, 0, [0, 0]));
    add(&mut index, &set.base, &all_keys());
    Fresh::new(&set, &all_keys()).check(&index);
    assert_eq!(index.stats().unwrap().slots, slots);
}

/// Whichever node the search starts from is removed, over and over: the next highest takes its place.
#[test]
fn entry_points() {
    let set = small_set();
    let keys = &all_keys()[..1500];
    let mut index = built(&set, keys);
    let mut kept: HashSet<u64> = keys.iter().copied().collect();
    while kept.len() > 10 {
        // A walk from the entry point to a far query begins with the entry's level, which only removing it lowers.
        let levels = index.stats().unwrap().levels;
        let batch: Vec<u64> = kept.iter().copied().take(40).collect();
        index.remove(&batch).unwrap();
        index.sweep(1).unwrap();
        batch.iter().for_each(|key| assert!(kept.remove(key)));
        index.verify().unwrap();
        assert!(index.stats().unwrap().levels <= levels);
        let hits = index.search(&set.queries.row(3).to_vec(), &Search::new(2000).ef(2000)).unwrap();
        assert_eq!(hits.len(), kept.len(), "everything can be reached");
    }
}

#[test]
fn slots_and_pages_are_used_again() {
    let set = small_set();
    let mut keys = all_keys()[..3000].to_vec();
    let mut index = built(&set, &keys);
    let before = index.stats().unwrap();
    for cycle in 1..=10 {
        // Half of the rows go; the same vectors come back under new keys.
        let order = shuffled(keys.len(), cycle);
        let places: Vec<usize> = order[..keys.len() / 2].iter().map(|&at| at as usize).collect();
        let gone: Vec<u64> = places.iter().map(|&at| keys[at]).collect();
        assert_eq!(index.remove(&gone).unwrap(), gone.len());
        for &at in &places {
            keys[at] = keys[at] % N as u64 + cycle * N as u64;
        }
        let new: Vec<u64> = places.iter().map(|&at| keys[at]).collect();
        add(&mut index, &set.base, &new);
        index.verify().unwrap();
        let now = index.stats().unwrap();
        assert!(now.slots <= before.slots * 11 / 10, "cycle {cycle}: {} slots", now.slots);
        assert!(now.bytes <= before.bytes * 11 / 10, "cycle {cycle}: {} bytes", now.bytes);
    }
    // Every vector has been replaced five times over.
    Fresh::new(&set, &keys).check_within(&index, 0.02);
}

#[test]
fn updates_use_slots_again() {
    let set = small_set();
    let mut index = built(&set, &all_keys());
    let before = index.stats().unwrap();
    for cycle in 1..=6 {
        let order = shuffled(N, cycle);
        let (keys, from) = (&order[..N / 4], &order[N / 4..N / 2]);
        let rows: Vec<usize> = from.iter().map(|&row| row as usize).collect();
        let rows = set.base.select(Axis(0), &rows);
        index.update(rows.view(), keys, AddOptions::new()).unwrap();
        index.verify().unwrap();
        for (&key, row) in keys.iter().zip(rows.rows()).step_by(100) {
            assert_eq!(index.get::<f32>(key).unwrap().unwrap(), row.to_vec());
        }
        let now = index.stats().unwrap();
        assert_eq!(now.len, N);
        // Old and new vectors are there side by side until the update ends.
        assert!(now.slots <= before.slots * 14 / 10, "cycle {cycle}: {} slots", now.slots);
    }
}

#[test]
fn removed_keys_come_back() {
    let set = small_set();
    let mut index = built(&set, &all_keys());
    let gone: Vec<u64> = all_keys().into_iter().step_by(3).collect();
    for _ in 0..2 {
        assert_eq!(index.remove(&gone).unwrap(), gone.len());
        assert!(!index.contains(gone[5]).unwrap());
        add(&mut index, &set.base, &gone);
        assert!(index.contains(gone[5]).unwrap());
    }
    Fresh::new(&set, &all_keys()).check(&index);
}
