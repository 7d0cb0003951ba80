//! The oracle: what an index ought to hold, in a plain map, searched by measuring every distance in f64.

use std::collections::{BTreeMap, HashSet};

use ann_core::{Element, Hit, Index, Metric};

/// Keys and vectors.
pub struct Oracle<T> {
    metric: Metric,
    /// Whether the index keeps of a vector its direction, in bytes.
    rounds: bool,
    pub rows: BTreeMap<u64, Vec<T>>,
}

/// Hits found and hits that were to be found, over many searches.
#[derive(Default)]
pub struct Tally {
    found: f64,
    wanted: f64,
}

impl Tally {
    /// The share found so far.
    pub fn recall(&self) -> f64 {
        if self.wanted == 0.0 { 1.0 } else { self.found / self.wanted }
    }
}

impl<T: Element> Oracle<T> {
    pub fn new(metric: Metric) -> Oracle<T> {
        Oracle { metric, rounds: false, rows: BTreeMap::new() }
    }

    /// The same of an index that may keep of a vector its direction, in bytes.
    pub fn rounding(self, rounds: bool) -> Oracle<T> {
        Oracle { rounds, ..self }
    }

    /// A vector as far as the index knows it.
    fn known(&self, vector: &[T]) -> Vec<f64> {
        let floats = vector.iter().map(|value| value.to_f32());
        match self.rounds {
            true => rounded(floats).map(f64::from).collect(),
            false => floats.map(f64::from).collect(),
        }
    }

    /// The distance, and how far a sum in f32 may be from it.
    pub fn distance(&self, a: &[T], b: &[T]) -> (f64, f64) {
        let (mut dot, mut square, mut norm_a, mut norm_b) = (0.0, 0.0, 0.0, 0.0);
        for (a, b) in self.known(a).into_iter().zip(self.known(b)) {
            dot += a * b;
            square += (a - b) * (a - b);
            norm_a += a * a;
            norm_b += b * b;
        }
        let norms = (norm_a * norm_b).sqrt();
        let (distance, scale) = match self.metric {
            Metric::L2sq => (square, square),
            Metric::InnerProduct => (-dot, norms),
            _ => (1.0 - dot / norms, 1.0),
        };
        (distance, 1e-5 * scale + 1e-9)
    }

    /// Keys that pass, with their distances, nearest first.
    pub fn nearest(&self, query: &[T], accept: impl Fn(u64) -> bool) -> Vec<(f64, u64)> {
        let passing = self.rows.iter().filter(|&(&key, _)| accept(key));
        let mut all: Vec<(f64, u64)> =
            passing.map(|(&key, row)| (self.distance(query, row).0, key)).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        all
    }

    /// Hits are vectors of the index, at their true distances, nearest first, none twice.
    pub fn check_true(&self, query: &[T], hits: &[Hit]) {
        let mut seen = HashSet::new();
        for hit in hits {
            let row = self.rows.get(&hit.key);
            let row = row.unwrap_or_else(|| panic!("key {} is not in the index", hit.key));
            let (distance, slack) = self.distance(query, row);
            assert!(
                (f64::from(hit.distance) - distance).abs() <= slack,
                "key {}: distance {}, not {distance}",
                hit.key,
                hit.distance
            );
            assert!(seen.insert(hit.key), "key {} was returned twice", hit.key);
        }
        assert!(hits.is_sorted_by(|a, b| a.distance <= b.distance), "hits are not in order");
    }

    /// The answer of a k-NN search: true, as many as there are, and counted in `tally`; complete if `exact`.
    pub fn check_nearest(
        &self,
        (query, k): (&[T], usize),
        hits: &[Hit],
        accept: impl Fn(u64) -> bool,
        exact: bool,
        tally: &mut Tally,
    ) {
        self.check_true(query, hits);
        assert!(hits.iter().all(|hit| accept(hit.key)), "a hit was not to pass the filter");
        let truth = self.nearest(query, accept);
        let wanted = k.min(truth.len());
        assert!(hits.len() <= wanted, "{} hits, {wanted} are possible", hits.len());
        let slack = |key: u64| self.distance(query, &self.rows[&key]).1;
        let Some(&(bound, last)) = truth[..wanted].last() else {
            return;
        };
        let near = |hit: &&Hit| f64::from(hit.distance) <= bound + 2.0 * slack(last);
        let found = hits.iter().filter(near).count();
        assert!(!exact || found == wanted, "{found} of the {wanted} nearest were found");
        tally.found += found as f64;
        tally.wanted += wanted as f64;
    }

    /// The answer of a range search, likewise.
    pub fn check_within(
        &self,
        (query, radius): (&[T], f32),
        hits: &[Hit],
        accept: impl Fn(u64) -> bool,
        exact: bool,
        tally: &mut Tally,
    ) {
        self.check_true(query, hits);
        assert!(hits.iter().all(|hit| hit.distance <= radius && accept(hit.key)));
        let keys: HashSet<u64> = hits.iter().map(|hit| hit.key).collect();
        for (distance, key) in self.nearest(query, accept) {
            let slack = self.distance(query, &self.rows[&key]).1;
            if distance < f64::from(radius) - slack {
                assert!(!exact || keys.contains(&key), "key {key} at {distance} was not found");
                tally.found += f64::from(u8::from(keys.contains(&key)));
                tally.wanted += 1.0;
            }
        }
    }

    /// The index holds these vectors under these keys and no others, and is sound.
    pub fn check_contents(&self, index: &impl Index, gone: &[u64]) {
        index.verify().unwrap();
        assert_eq!(index.len(), self.rows.len());
        assert_eq!(index.is_empty(), self.rows.is_empty());
        for (&key, row) in &self.rows {
            assert!(index.contains(key).unwrap(), "key {key} is missing");
            let got = index.get::<T>(key).unwrap().unwrap_or_default();
            if self.rounds {
                let known = self.known(row);
                let norm = known.iter().map(|value| value * value).sum::<f64>().sqrt();
                // Floats of the caller's may be halves.
                let near = |(got, known): (&T, f64)| {
                    let (got, known) = (f64::from(got.to_f32()), known / norm);
                    (got - known).abs() <= 5e-4 * known.abs() + 1e-7
                };
                assert!(got.len() == row.len() && got.iter().zip(known).all(near), "key {key}");
                continue;
            }
            assert_eq!(bytes(&got), bytes(row), "the vector of key {key}");
        }
        for &key in gone.iter().filter(|key| !self.rows.contains_key(key)) {
            assert!(!index.contains(key).unwrap(), "key {key} is still there");
            assert_eq!(index.get::<T>(key).unwrap(), None);
        }
    }
}

/// What is left of a vector in bytes: the largest coordinate becomes 127.
pub fn rounded(vector: impl Iterator<Item = f32> + Clone) -> impl Iterator<Item = f32> {
    let largest = vector.clone().fold(0f32, |largest, value| largest.max(value.abs()));
    vector.map(move |value| (value * (127.0 / largest)).round_ties_even())
}

/// What tells 0.0 from -0.0.
fn bytes<T: Element>(row: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    T::extend_bytes(row, &mut out);
    out
}
