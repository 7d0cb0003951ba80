//! The order in which a query reads lists, and what is to be expected of each.
//!
//! Around its centroid `c` a list's entries lie about as far as its radius `R`, and in the direction of a near query,
//! `q - c`, they deviate by its spread `s`. Hardly any deviates by more than a few times that, so that the nearest to
//! expect is at `-<q, c> - Z |q| s`, or under squared L2 at `|q - c|^2 + R^2 - 2 Z s |q - c|`. Lists of which that is
//! beyond the last candidate need not be read, but where inner products count vectors' lengths. Under cosine it gives
//! the order as well, since wide lists reach farther towards the query; else the nearest centroid comes first.
//!
//! Of many lists somewhat more than a query is to read are found by codes of their centroids; only these are measured,
//! and put in their order.

use zerocopy::IntoBytes;

use crate::kernel::Query;
use crate::kernel::fastscan::Tables;
use crate::metric::Metric;

use super::lists::Extent;
use super::model::{Model, key};

/// Deviations within which practically all entries lie; vectors of any length are spread less evenly.
const Z: f32 = 3.6;
const Z_L2SQ: f32 = 5.0;
/// Lists that are sorted at first; from then on as many as have been.
const SORTED: usize = 64;

/// A list's turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// The least distance to expect of its entries; minus infinity if there is no telling.
    pub least: f32,
    /// The query's distance to the centroid.
    pub base: f32,
    /// Its place in the model.
    pub place: u32,
}

/// The lists in the order of a query.
#[derive(Default)]
pub(crate) struct Ranking {
    query: Query,
    length: f32,
    /// Those of the query for centroids' codes.
    tables: Tables,
    offsets: Vec<u64>,
    scores: Vec<f32>,
    /// For each list that was measured, the query's distance to its centroid.
    bases: Vec<f32>,
    /// What gives the order above the lists' places: sorted as far as `sorted`. There may be more lists than these.
    order: Vec<u64>,
    sorted: usize,
    /// Those of `order` whose turn has come.
    given: usize,
    /// Places of the lists whose turn has come before those of `order`, sorted.
    past: Vec<u32>,
}

impl Ranking {
    /// Begins with a query that is expected to read at most `count` lists. `entries` is what tables are made in.
    pub(crate) fn begin(
        &mut self,
        model: &Model,
        query: &[f32],
        count: usize,
        entries: &mut Vec<[f32; 16]>,
    ) {
        model.kernel.prepare(query.as_bytes(), &mut self.query);
        self.length = query.iter().map(|x| x * x).sum::<f32>().sqrt();
        self.past.clear();
        self.bases.resize(model.len(), 0.0);
        match model.coarse() {
            None => {
                self.order.clear();
                self.order.extend((0..model.len()).map(|at| key(0.0, at as u32)));
            }
            Some(coarse) => {
                coarse.look_up(query, model.metric, &mut self.tables, entries);
                coarse.nearest(&self.tables, more(count), |_| true, &mut self.order);
            }
        }
        self.rank(model);
    }

    /// Finds lists behind those found so far, which have all had their turn.
    fn find_more(&mut self, model: &Model, count: usize) {
        let Some(coarse) = model.coarse() else { return };
        let Ranking { past, order, .. } = self;
        past.extend(order.iter().map(|&key| key as u32));
        past.sort_unstable();
        let count = more(count.max(past.len()));
        coarse.nearest(&self.tables, count, |at| past.binary_search(&at).is_err(), order);
        self.rank(model);
    }

    /// Measures the lists that were found, to give them their order.
    fn rank(&mut self, model: &Model) {
        let Ranking { query, length, offsets, scores, bases, order, .. } = self;
        offsets.clear();
        offsets.extend(order.iter().map(|&key| model.offset(key as u32 as usize)));
        scores.clear();
        scores.resize(offsets.len(), 0.0);
        // The offsets are those of rows.
        let bytes = model.centroids.as_bytes();
        let _ = model.kernel.rows(query, bytes, offsets, f32::INFINITY, scores);
        for (score, key_of) in scores.iter().zip(order) {
            let base = match model.metric {
                Metric::L2sq => *score,
                Metric::InnerProduct => -score,
                Metric::Cosine => 1.0 - score,
            };
            let place = *key_of as u32;
            bases[place as usize] = base;
            let own = &model.extents[place as usize];
            *key_of = key(order_of(model.metric, *length, base, own, &model.mean), place);
        }
        (self.sorted, self.given) = (0, 0);
    }

    /// Replaces `turns` with those of the next lists, `count` at most, the most promising first; none once all have had
    /// theirs.
    pub(crate) fn next(&mut self, model: &Model, count: usize, turns: &mut Vec<Turn>) {
        turns.clear();
        if self.given == self.order.len() && self.past.len() + self.given < model.len() {
            self.find_more(model, count);
        }
        let last = self.order.len().min(self.given.saturating_add(count));
        if last > self.sorted {
            let count = (last - self.sorted).max(self.sorted).max(SORTED);
            let count = count.min(self.order.len() - self.sorted);
            let rest = &mut self.order[self.sorted..];
            if count < rest.len() {
                rest.select_nth_unstable(count);
            }
            rest[..count].sort_unstable();
            self.sorted += count;
        }
        turns.extend(self.order[self.given..last].iter().map(|&key| {
            let place = key as u32;
            let (base, extent) = (self.bases[place as usize], &model.extents[place as usize]);
            Turn { least: least(model.metric, self.length, base, extent), base, place }
        }));
        self.given = last;
    }

    /// The turns of all lists of a query.
    pub(crate) fn all(&mut self, model: &Model, query: &[f32]) -> Vec<Turn> {
        self.begin(model, query, model.len(), &mut Vec::new());
        let mut turns = Vec::new();
        self.next(model, model.len(), &mut turns);
        turns
    }
}

/// How many lists are measured to find the first `count`.
fn more(count: usize) -> usize {
    count.saturating_add(count / 2)
}

/// What a list's turn goes by. One of which nothing is known is taken for one like the mean.
#[inline(always)]
fn order_of(metric: Metric, length: f32, base: f32, own: &Extent, mean: &Extent) -> f32 {
    base + length * besides(metric, own, mean)
}

/// What that has besides the distance to the centroid, for a query of length one; only of such it is not zero.
pub(super) fn besides(metric: Metric, own: &Extent, mean: &Extent) -> f32 {
    let extent = if own.radius > 0.0 { own } else { mean };
    if metric == Metric::Cosine { -Z * extent.spread } else { 0.0 }
}

/// The least distance to expect of the entries of a list whose centroid is at a distance from a query of this length.
fn least(metric: Metric, length: f32, base: f32, &Extent { radius, spread }: &Extent) -> f32 {
    // Of inner products the longest vectors decide, of which a spread does not tell.
    if radius == 0.0 || metric == Metric::InnerProduct {
        return f32::NEG_INFINITY;
    }
    if metric == Metric::Cosine {
        return base - Z * length * spread;
    }
    // Where the query is nearer to the centroid than entries deviate, it is in the middle of them.
    let (reach, away) = (Z_L2SQ * spread, base.max(0.0).sqrt());
    let beyond = (away - reach).max(0.0);
    radius * radius - reach * reach + beyond * beyond
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Extent = Extent { radius: 0.0, spread: 0.0 };

    #[test]
    fn wide_lists_may_be_nearer_than_near_ones() {
        let of = |base, spread| {
            let extent = Extent { radius: 5.0 * spread, spread };
            let order = order_of(Metric::Cosine, 1.0, base, &extent, &NONE);
            assert_eq!(order, least(Metric::Cosine, 1.0, base, &extent));
            order
        };
        assert!(of(0.5, 0.02) < of(0.6, 0.02));
        assert!(of(1.0, 0.1) < of(0.9, 0.02));
    }

    #[test]
    fn lists_of_which_nothing_is_known_are_read_and_ranked_like_the_mean() {
        let mean = Extent { radius: 2.0, spread: 0.5 };
        for metric in [Metric::L2sq, Metric::InnerProduct, Metric::Cosine] {
            assert_eq!(least(metric, 1.0, 9.0, &NONE), f32::NEG_INFINITY);
            let of = |own: &Extent| order_of(metric, 1.0, 9.0, own, &mean);
            assert_eq!(of(&NONE), of(&mean));
            assert_eq!(order_of(metric, 1.0, 9.0, &NONE, &NONE), 9.0);
        }
    }

    /// Entries lie on a sphere about the centroid: the nearer to it the query, the nearer they are to be expected.
    #[test]
    fn what_is_expected_grows_with_the_distance_to_the_centroid() {
        for (radius, spread) in [(1.0, 0.05), (1.0, 0.2), (1.0, 0.9)] {
            let extent = Extent { radius, spread };
            let all: Vec<f32> =
                (0..200).map(|at| least(Metric::L2sq, 1.0, at as f32 * 0.1, &extent)).collect();
            assert!(all.is_sorted(), "{radius}, {spread}");
        }
    }
}
