//! Looking through the rows of an insertion before any of them is written, some of them at a time: each is checked, and
//! found are those that equal another, those that stay as they are, and those that a load would better leave to batches.

use hashbrown::HashMap;
use ndarray::ArrayView2;
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::element::Element;
use crate::error::Result;
use crate::metric::Metric;
use crate::page::PageStore;
use crate::rows::{NONE, are_equal, check_some, hashes, next_rows};
use crate::seed::mix;

use super::leaves::{Points, set_crowds_aside};
use super::load::{LOAD_ROWS, Load};
use super::{Graph, Topology};

/// Steps of a short survey that are taken as one.
const STEPS: usize = 8;

/// What is known of the rows so far, and in the end.
pub(super) struct Survey<'a, T> {
    stage: Stage<'a, T>,
    /// Rows, or places in the order, that the stage has looked at.
    seen: usize,
    /// Rows that are to be loaded at one go, if that many are left.
    most: usize,
    /// Rows in the order of insertion.
    pub order: Vec<u32>,
    /// Rows equal to an earlier one, with that one.
    pub repeats: Vec<(u32, u32)>,
    /// Where the rows that have repeats are.
    pub owners: HashMap<u32, u32>,
    /// Rows whose keys have these vectors already.
    pub unchanged: usize,
    /// The load, if there is one, and what comes after it.
    pub load: Option<Load<'a, T>>,
    pub later: Vec<u32>,
}

enum Stage<'a, T> {
    Check,
    /// The hashes of the rows.
    Hash(Vec<(u64, u32)>),
    /// These in their order, and the first that is like the last one seen.
    Compare(Vec<(u64, u32)>, usize),
    /// Rows that have changed.
    Changed(Vec<u32>),
    Measure(Points<'a, T>),
    /// The cells that the rows lie in.
    Crowds(Points<'a, T>, Vec<(u64, u32)>),
    Done,
}

/// Whether so many rows are loaded, all at once, or added in batches.
pub(super) fn is_loaded(empty: bool, rows: usize, metric: Metric) -> bool {
    empty && rows >= LOAD_ROWS && metric != Metric::InnerProduct
}

impl<'a, T: Element> Survey<'a, T> {
    /// Of so many rows, of which so many are loaded at one go if the index is empty.
    pub(super) fn new(rows: usize, seed: u64, most: usize) -> Survey<'a, T> {
        let mut order: Vec<u32> = (0..rows as u32).collect();
        // Neighbours in the input must not be neighbours in time: batches would miss what they have in common.
        order.sort_by_cached_key(|&row| mix(seed ^ mix(u64::from(row) + 1)));
        Survey {
            stage: Stage::Check,
            seen: 0,
            most,
            order,
            repeats: Vec::new(),
            owners: HashMap::new(),
            unchanged: 0,
            load: None,
            later: Vec::new(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// One step, a fraction of a second long. `replaced` are the keys of the rows, if they take the place of others.
    pub(super) fn step<S: PageStore, K: Topology>(
        &mut self,
        index: &Graph<S, K>,
        vectors: &ArrayView2<'a, T>,
        replaced: Option<&[u64]>,
        pool: &ThreadPool,
    ) -> Result<()> {
        let all = vectors.nrows();
        let is_short = next_rows(0, all, vectors.ncols()).end == all;
        for _ in 0..if is_short { STEPS } else { 1 } {
            pool.install(|| self.look(index, vectors, replaced))?;
        }
        Ok(())
    }

    fn look<S: PageStore, K: Topology>(
        &mut self,
        index: &Graph<S, K>,
        vectors: &ArrayView2<'a, T>,
        replaced: Option<&[u64]>,
    ) -> Result<()> {
        let Survey { stage, seen, order, repeats, owners, .. } = self;
        let whole = match stage {
            Stage::Check | Stage::Measure(_) => vectors.nrows(),
            Stage::Compare(hashed, _) => hashed.len(),
            Stage::Hash(_) | Stage::Changed(_) | Stage::Crowds(..) => order.len(),
            Stage::Done => return Ok(()),
        };
        let next = next_rows(*seen, whole, vectors.ncols());
        *seen = next.end;
        match stage {
            Stage::Check => check_some(&index.rows.space, vectors, next)?,
            Stage::Hash(hashed) => hashed.extend(hashes(&index.rows.space, vectors, order, next)),
            Stage::Compare(hashed, first) => {
                for at in next {
                    let (hash, place) = hashed[at];
                    if hash != hashed[*first].0 {
                        *first = at;
                    }
                    let (one, row) = (order[hashed[*first].1 as usize], order[place as usize]);
                    if one != row && are_equal(&index.rows.space, vectors, one, row) {
                        repeats.push((row, one));
                    }
                }
            }
            Stage::Changed(changed) => {
                let keys = replaced.unwrap_or_default();
                for &row in &order[next] {
                    // A vector that stays as it is needs no new slot.
                    let Some(owner) = index.unchanged(vectors, row, keys[row as usize])? else {
                        changed.push(row);
                        continue;
                    };
                    if let Some(place) = owners.get_mut(&row) {
                        *place = owner;
                    }
                }
            }
            Stage::Measure(points) => points.measure(next, index.rows.space.metric),
            Stage::Crowds(points, cells) => cells.extend(points.cells(order, next)),
            Stage::Done => {}
        }
        if self.seen == whole {
            self.seen = 0;
            self.turn(index, vectors, replaced.is_some());
        }
        Ok(())
    }

    /// Goes on to the next stage.
    fn turn<S: PageStore, K: Topology>(
        &mut self,
        index: &Graph<S, K>,
        vectors: &ArrayView2<'a, T>,
        replaces: bool,
    ) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Check => Stage::Hash(Vec::new()),
            Stage::Hash(mut hashed) => {
                hashed.par_sort_unstable();
                Stage::Compare(hashed, 0)
            }
            Stage::Compare(..) => {
                let mut is_repeat = vec![false; vectors.nrows()];
                self.repeats.iter().for_each(|&(row, _)| is_repeat[row as usize] = true);
                self.order.retain(|&row| !is_repeat[row as usize]);
                self.owners = self.repeats.iter().map(|&(_, first)| (first, NONE)).collect();
                match replaces {
                    true => Stage::Changed(Vec::new()),
                    false => self.begin_load(index, vectors),
                }
            }
            Stage::Changed(changed) => {
                self.unchanged = self.order.len() - changed.len();
                self.order = changed;
                self.begin_load(index, vectors)
            }
            Stage::Measure(points) => Stage::Crowds(points, Vec::new()),
            Stage::Crowds(points, cells) => {
                let mut later = set_crowds_aside(cells, &mut self.order);
                later.append(&mut self.later);
                self.later = later;
                self.load = Some(Load::new(points, &self.order, index.rows.meta.seed.get()));
                Stage::Done
            }
            Stage::Done => Stage::Done,
        };
    }

    fn begin_load<S: PageStore, K: Topology>(
        &mut self,
        index: &Graph<S, K>,
        vectors: &ArrayView2<'a, T>,
    ) -> Stage<'a, T> {
        let empty = index.rows.meta.entry.get() == NONE;
        let loaded = self.most.min(self.order.len());
        if !is_loaded(empty, loaded, index.rows.space.metric) {
            return Stage::Done;
        }
        // The order is as good as random: its first few are a sample of all.
        self.later = self.order.split_off(loaded);
        Stage::Measure(Points::new(*vectors))
    }
}
