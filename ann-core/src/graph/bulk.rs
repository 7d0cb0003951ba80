//! Linking all nodes of a level at once.
//!
//! 1. The vectors are cut into overlapping leaves (see `leaves`). Each finds its nearest among the members of its
//!    leaves, which makes a coarse graph, and its nearest among a sample of those: neighbours farther away.
//! 2. Each searches the coarse graph, starting from itself, for its true neighbours, by vectors in bytes where that is
//!    good enough (see `bytes`), and chooses links among these and those of the sample.
//! 3. The links are made to go both ways; from lists that become too long is chosen once more.
//!
//! Every step works on a set of nodes in parallel and depends on the steps before it only, so the result is the same
//! for any number of threads.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use zerocopy::IntoBytes;

use crate::element::Element;
use crate::error::Result;
use crate::kernel;
use crate::page::PageStore;
use crate::rows::{Batch, NONE, Probe, Rows};
use crate::seed::mix;

use super::bytes::Bytes;
use super::leaves::{self, Cut, Points, neighbours};
use super::prune::{Candidate, Pruner};
use super::search::{Met, Scratch};

/// Neighbours of a node in the coarse graph, and from the sample, at most.
const NEAR: usize = 32;
/// Neighbours that it takes from each leaf.
const FROM_LEAF: usize = 16;
/// One in so many is in the sample.
const SAMPLE: u64 = 4;
/// Coordinates of the nodes of one step, and nodes at most.
const STEP_FLOATS: usize = 1 << 19;
const STEP_NODES: usize = 4096;
/// Candidates up to which a step has so many; with more of them it has fewer nodes.
const USUAL_POOL: usize = 100;

/// Places of neighbours, ended by [`NONE`] if there are fewer.
type Places = [u32; NEAR];

/// The nearest offered, sorted. Which they are does not depend on the order of the offers.
struct Near {
    count: usize,
    distances: [f32; NEAR],
    places: Places,
}

impl Near {
    const EMPTY: Near = Near { count: 0, distances: [f32::INFINITY; NEAR], places: [NONE; NEAR] };

    /// What is farther away is refused.
    fn bound(&self) -> f32 {
        if self.count == NEAR { self.distances[NEAR - 1] } else { f32::INFINITY }
    }

    fn offer(&mut self, distance: f32, place: u32) {
        let last = self.count.wrapping_sub(1);
        if self.count == NEAR && (self.distances[last], self.places[last]) <= (distance, place) {
            return;
        }
        if let Some(known) = self.places.iter().position(|&known| known == place) {
            if self.distances[known] <= distance {
                return;
            }
            self.distances.copy_within(known + 1..self.count, known);
            self.places.copy_within(known + 1..self.count, known);
            self.count -= 1;
            self.places[self.count] = NONE;
        }
        let mut at = self.count.min(NEAR - 1);
        while at > 0 && (distance, place) < (self.distances[at - 1], self.places[at - 1]) {
            (self.distances[at], self.places[at]) = (self.distances[at - 1], self.places[at - 1]);
            at -= 1;
        }
        (self.distances[at], self.places[at]) = (distance, place);
        self.count = NEAR.min(self.count + 1);
    }
}

/// A level on its way to being linked. Nodes are known by their place in an order in which near ones mostly stand
/// together, so that what one search reads is in the cache for the next.
pub(crate) struct Level {
    leaves: Vec<Vec<u32>>,
    /// The rows in that order, and their slots.
    pub order: Vec<u32>,
    slots: Vec<u32>,
    /// Places by row.
    places: Vec<u32>,
    width: usize,
    pool: usize,
    joined: usize,
    /// While leaves are joined: what each node has found, in all of a leaf and in the sample.
    finds: [Vec<Mutex<Near>>; 2],
    /// And after it: the coarse graph, and the neighbours in the sample.
    found: [Vec<Places>; 2],
    /// The vectors by place in bytes, while links are chosen.
    bytes: Option<Bytes>,
    is_copied: bool,
    /// What each node has chosen, with distances: the links that the rule kept, then others that fill its list, then
    /// [`NONE`]; as many entries a node as a list has.
    chosen: Vec<(f32, u32)>,
    /// And how many the rule kept.
    kept: Vec<u16>,
    /// Those that chose a node, one node's after the other's, and where each node's begin.
    back: Vec<(f32, u32)>,
    ends: Vec<u64>,
    /// The lists, nearest first, ended by [`NONE`] if they are shorter than they could be.
    pub lists: Vec<u32>,
}

impl Level {
    /// Begins with rows that have been cut into leaves; `slots` holds the slot of each row of the whole set.
    /// Lists will have at most `width` links, chosen from `pool` candidates and the neighbours in the sample, which are
    /// of a greater variety.
    pub(crate) fn new(cut: Cut, slots: &[u32], width: usize, pool: usize) -> Level {
        let order = cut.order();
        let empty = || (0..order.len()).map(|_| Mutex::new(Near::EMPTY)).collect();
        Level {
            leaves: cut.leaves,
            slots: order.iter().map(|&row| slots[row as usize]).collect(),
            places: places(order.iter().copied()),
            width,
            pool,
            joined: 0,
            finds: [empty(), empty()],
            found: Default::default(),
            bytes: None,
            is_copied: false,
            chosen: Vec::new(),
            kept: Vec::new(),
            back: Vec::new(),
            ends: Vec::new(),
            lists: Vec::new(),
            order,
        }
    }

    /// Bytes that a row takes until its list is made, at most: what leaves have found of it while they are joined, or
    /// what it has chosen and who has chosen it.
    pub(crate) const fn bytes_a_row(width: usize) -> usize {
        let joining = 2 * size_of::<Mutex<Near>>() + size_of::<Places>();
        let choosing = 2 * size_of::<Places>() + width * size_of::<(f32, u32)>();
        let linking = 2 * width * size_of::<(f32, u32)>() + width * size_of::<u32>() + 16;
        let most = if joining > choosing { joining } else { choosing };
        // Its places and slot, beside these.
        12 + if most > linking { most } else { linking }
    }

    /// The share of the work that is done.
    pub(crate) fn share(&self) -> f64 {
        let joined = self.joined as f64 / self.leaves.len().max(1) as f64;
        let of_all = |count: usize| count as f64 / self.order.len().max(1) as f64;
        match self.lists.is_empty() {
            true => 0.25 * joined + 0.6 * of_all(self.kept.len()),
            false => 0.85 + 0.15 * of_all(self.lists.len() / self.width),
        }
    }

    /// One step, a fraction of a second long, on the current thread pool. False once there is nothing more to do.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) fn step<S: PageStore, T: Element>(
        &mut self,
        rows: &Rows<S>,
        points: &Points<'_, T>,
    ) -> Result<bool> {
        if self.joined < self.leaves.len() {
            self.join(points);
        } else if !self.is_copied {
            let bytes = self.bytes.take();
            self.bytes = bytes.or_else(|| Bytes::new(points, &self.order, &rows.space));
            let bytes = self.bytes.as_mut();
            self.is_copied = bytes.is_none_or(|bytes| !bytes.fill(points, &self.order));
        } else if self.kept.len() < self.order.len() {
            self.choose(rows)?;
        } else if self.lists.len() < self.order.len() * self.width {
            self.link_both_ways(rows)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Finds neighbours in some of the leaves.
    fn join<T: Element>(&mut self, points: &Points<'_, T>) {
        let to = self.joined + points.leaves_a_step(&self.leaves[self.joined..]);
        let (places, finds) = (&self.places, &self.finds);
        let sampled = |row: u32| mix(u64::from(row)).is_multiple_of(SAMPLE);
        self.leaves[self.joined..to].par_iter().for_each_init(
            leaves::Scratch::default,
            |scratch, leaf| {
                let near = |row: u32, of_sample: bool| {
                    let near = &finds[usize::from(of_sample)][places[row as usize] as usize];
                    near.lock().unwrap_or_else(PoisonError::into_inner)
                };
                let bound = |row, of_sample| near(row, of_sample).bound();
                let found = |row, of_sample, found: &[(f32, u32)]| {
                    let mut near = near(row, of_sample);
                    for &(distance, row) in found {
                        near.offer(distance, places[row as usize]);
                    }
                };
                neighbours(points, leaf, FROM_LEAF, sampled, scratch, bound, found);
            },
        );
        self.joined = to;
        if to == self.leaves.len() {
            let places = |near: &mut Mutex<Near>| {
                near.get_mut().unwrap_or_else(PoisonError::into_inner).places
            };
            let finds = std::mem::take(&mut self.finds);
            self.found = finds.map(|mut finds| finds.iter_mut().map(places).collect());
            self.places = Vec::new();
        }
    }

    /// Chooses the links of some nodes.
    fn choose<S: PageStore>(&mut self, rows: &Rows<S>) -> Result<()> {
        let (from, width) = (self.kept.len(), self.width);
        let to = self.order.len().min(from + step_nodes(rows, self.pool));
        let mut chosen = std::mem::take(&mut self.chosen);
        chosen.resize(to * width, (0.0, NONE));
        let level = &*self;
        let kept: Result<Vec<(u16, bool)>> = chosen[from * width..]
            .par_chunks_mut(width)
            .zip(from..to)
            .with_min_len(16)
            .map_init(
                || (Scratch::default(), Pruner::default(), Vec::new()),
                |(scratch, pruner, met), (chosen, place)| {
                    let (mut list, by_bytes) = level.candidates(rows, place, scratch, met)?;
                    let kept = pruner.choose(rows, &mut list, width)?;
                    for (chosen, link) in chosen.iter_mut().zip(list) {
                        *chosen = (link.distance, link.id);
                    }
                    Ok((kept as u16, by_bytes))
                },
            )
            .collect();
        self.chosen = chosen;
        let kept = kept?;
        let by_bytes = kept.iter().filter(|kept| kept.1).count();
        // Where noise chooses most of the time, looking for it costs more than bytes save.
        if 2 * by_bytes < kept.len() || self.kept.len() + kept.len() == self.order.len() {
            self.bytes = None;
        }
        self.kept.extend(kept.iter().map(|kept| kept.0));
        Ok(())
    }

    /// What a node chooses from: what a search from itself finds, and its neighbours in the sample. And whether it was
    /// by bytes.
    fn candidates<S: PageStore>(
        &self,
        rows: &Rows<S>,
        place: usize,
        scratch: &mut Scratch,
        met: &mut Vec<u32>,
    ) -> Result<(Vec<Candidate>, bool)> {
        let slot = |&place: &u32| self.slots[place as usize];
        let sample = &self.found[1];
        let mut by_bytes = false;
        if let Some(bytes) = &self.bytes {
            bytes.probe(place, &mut scratch.probe);
            self.search(place, scratch, met, |batch, probe, bound| {
                bytes.score(batch, probe, bound);
                Ok(())
            })?;
            let farthest = scratch.pool.admitted().last().map_or(0.0, |last| last.0);
            by_bytes = !Bytes::is_noise(farthest);
        }
        rows.row_probe(self.slots[place], &mut scratch.row, &mut scratch.probe)?;
        let mut list: Vec<Candidate> = Vec::new();
        if !by_bytes {
            self.search(place, scratch, met, |batch, probe, bound| {
                batch.ids.iter_mut().for_each(|id| *id = slot(id));
                batch.score_below(rows, probe, bound)
            })?;
            let found = scratch.pool.admitted().filter(|&(_, id)| id != place as u32);
            list.extend(found.map(|(distance, id)| candidate(distance, slot(&id))));
        }
        let Scratch { pool, batch, probe, .. } = scratch;
        batch.ids.clear();
        if by_bytes {
            let found = pool.admitted().filter(|&(_, id)| id != place as u32);
            batch.ids.extend(found.map(|(_, id)| slot(&id)));
        }
        let found = batch.ids.len();
        for id in sample[place].iter().take_while(|&&place| place != NONE).map(slot) {
            let is_known = batch.ids[..found].contains(&id);
            if !is_known && !list.iter().any(|candidate| candidate.id == id) {
                batch.ids.push(id);
            }
        }
        batch.score(rows, probe)?;
        let scored = batch.ids.iter().zip(&batch.distances);
        list.extend(scored.map(|(&id, &distance)| candidate(distance, id)));
        list.sort_unstable_by(Candidate::order);
        Ok((list, by_bytes))
    }

    /// Searches the coarse graph from a node for what is near the scratch's probe. `score` takes a batch of places.
    fn search(
        &self,
        place: usize,
        scratch: &mut Scratch,
        met: &mut Vec<u32>,
        mut score: impl FnMut(&mut Batch, &Probe, f32) -> Result<()>,
    ) -> Result<()> {
        let near = &self.found[0];
        scratch.pool.reset(self.pool, f32::NEG_INFINITY, false);
        scratch.visited.reset(self.order.len() as u32);
        scratch.visited.insert(place as u32);
        scratch.pool.insert(0.0, place as u32, true);
        scratch.pool.settle();
        scratch.best_first(
            1,
            |_, _| (),
            |step, Met { visited, .. }, batch, (probe, _)| {
                if let Some(next) = step.next {
                    let at = u64::from(next) * size_of::<Places>() as u64;
                    kernel::prefetch(near.as_bytes(), at, size_of::<Places>());
                }
                met.resize(NEAR, 0);
                let mut count = 0;
                for &place in near[step.node as usize].iter().take_while(|&&place| place != NONE) {
                    met[count] = place;
                    count += usize::from(visited.insert(place) == Some(true));
                }
                met.truncate(count);
                batch.ids.clone_from(met);
                score(batch, probe, step.bound)?;
                batch.ids.clone_from(met);
                Ok(None)
            },
            &mut |_| Ok(true),
        )
    }

    /// Turns "has chosen" round: who was chosen by whom.
    fn turn_round(&mut self) {
        let places = places(self.slots.iter().copied());
        let place = |id: u32| places[id as usize] as usize;
        let mut ends = vec![0u64; self.order.len() + 2];
        for &(_, id) in self.chosen.iter().filter(|link| link.1 != NONE) {
            ends[place(id) + 2] += 1;
        }
        (2..ends.len()).for_each(|place| ends[place] += ends[place - 1]);
        let mut back = vec![(0.0, 0); ends.last().map_or(0, |&end| end as usize)];
        for (chosen, &slot) in self.chosen.chunks(self.width).zip(&self.slots) {
            for &(distance, id) in chosen.iter().filter(|link| link.1 != NONE) {
                let next = &mut ends[place(id) + 1];
                back[*next as usize] = (distance, slot);
                *next += 1;
            }
        }
        (self.back, self.ends) = (back, ends);
    }

    /// Makes the lists of some nodes, from what they chose and from those that chose them.
    fn link_both_ways<S: PageStore>(&mut self, rows: &Rows<S>) -> Result<()> {
        if self.lists.is_empty() && self.back.is_empty() {
            self.found = Default::default();
            self.turn_round();
        }
        let width = self.width;
        let from = self.lists.len() / width;
        let to = self.order.len().min(from + step_nodes(rows, USUAL_POOL));
        self.lists.resize(to * width, NONE);
        let Level { chosen, kept, back, ends, lists, .. } = self;
        let candidate = |&(distance, id): &(f32, u32)| candidate(distance, id);
        let done: Result<()> = lists[from * width..]
            .par_chunks_mut(width)
            .zip(from..to)
            .map_init(Pruner::default, |pruner, (links, place)| {
                let (own, spare) = chosen[place * width..][..width].split_at(kept[place].into());
                let back = &back[ends[place] as usize..ends[place + 1] as usize];
                let back = back.iter().filter(|link| !own.iter().any(|own| own.1 == link.1));
                let mut list: Vec<Candidate> = own.iter().chain(back).map(candidate).collect();
                if list.len() > width {
                    list.sort_unstable_by(Candidate::order);
                    list.truncate(3 * width);
                    pruner.choose(rows, &mut list, width)?;
                } else {
                    for link in spare.iter().filter(|link| link.1 != NONE) {
                        if list.len() < width && !list.iter().any(|known| known.id == link.1) {
                            list.push(candidate(link));
                        }
                    }
                }
                list.sort_unstable_by(Candidate::order);
                links.iter_mut().zip(&list).for_each(|(link, candidate)| *link = candidate.id);
                Ok(())
            })
            .collect();
        done
    }
}

fn candidate(distance: f32, id: u32) -> Candidate {
    Candidate { distance, id, tree: false }
}

/// For each of these ids, at which place it stands; [`NONE`] for what is not among them.
pub(crate) fn places(ids: impl Iterator<Item = u32> + Clone) -> Vec<u32> {
    let end = ids.clone().max().map_or(0, |id| id as usize + 1);
    let mut places = vec![NONE; end];
    (0..).zip(ids).for_each(|(place, id)| places[id as usize] = place);
    places
}

fn step_nodes<S>(rows: &Rows<S>, pool: usize) -> usize {
    (STEP_FLOATS / rows.space.dim * USUAL_POOL / pool.max(USUAL_POOL)).clamp(64, STEP_NODES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::testing::Rng;

    #[test]
    fn the_nearest_do_not_depend_on_the_order_of_offers() {
        let mut rng = Rng(3);
        // The same neighbour is offered with slightly different distances, as it comes from different products.
        let offers: Vec<(f32, u32)> = (0..400)
            .map(|_| {
                let place = (rng.next() % 90) as u32;
                ((place / 3) as f32 + (rng.next() % 3) as f32 * 1e-3, place)
            })
            .collect();
        let mut best: std::collections::BTreeMap<u32, f32> = Default::default();
        for &(distance, place) in &offers {
            let known = best.entry(place).or_insert(distance);
            *known = known.min(distance);
        }
        let mut wanted: Vec<(f32, u32)> = best.into_iter().map(|(p, d)| (d, p)).collect();
        wanted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for turn in 0..20 {
            let mut near = Near::EMPTY;
            for at in 0..offers.len() {
                let (distance, place) = offers[(at * 7 + turn * 31) % offers.len()];
                near.offer(distance, place);
            }
            let got: Vec<(f32, u32)> = near.distances.into_iter().zip(near.places).collect();
            assert_eq!(got, wanted[..NEAR]);
        }
    }
}
