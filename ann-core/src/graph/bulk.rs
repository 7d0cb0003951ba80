//! Linking all nodes of a level at once.
//!
//! 1. The vectors are cut into overlapping leaves (see `leaves`). Each finds its nearest among the members of its
//!    leaves, which makes a coarse graph, and its nearest among a sample of those: neighbours farther away.
//! 2. Each searches the coarse graph, starting from itself, for its true neighbours, and chooses links among these
//!    and those of the sample.
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
use crate::rows::{NONE, Rows};
use crate::seed::mix;

use super::leaves::{self, Cut, Points, neighbours};
use super::prune::{Candidate, Pruner};
use super::search::Scratch;

/// Neighbours of a node in the coarse graph, and from the sample, at most.
const NEAR: usize = 32;
/// Neighbours that it takes from each leaf.
const FROM_LEAF: usize = 16;
/// One in so many is in the sample.
const SAMPLE: u64 = 4;
/// Coordinates of the nodes of one step, and nodes at most.
const STEP_FLOATS: usize = 1 << 19;
const STEP_NODES: usize = 4096;

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

/// The links that a node has chosen, and behind them others that fill its list.
struct Chosen {
    links: usize,
    list: Vec<Candidate>,
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
    chosen: Vec<Chosen>,
    /// For each node, those that link to it.
    back: Vec<Vec<(f32, u32)>>,
    /// The lists, in that order.
    pub lists: Vec<Vec<Candidate>>,
}

impl Level {
    /// Begins with rows that have been cut into leaves; `slots` holds the slot of each row of the whole set.
    /// Lists will have at most `width` links, chosen from about `ef` candidates.
    pub(crate) fn new(cut: Cut, slots: &[u32], width: usize, ef: usize) -> Level {
        let order = cut.order();
        let mut places = vec![NONE; slots.len()];
        (0..).zip(&order).for_each(|(place, &row)| places[row as usize] = place);
        let empty = || (0..order.len()).map(|_| Mutex::new(Near::EMPTY)).collect();
        Level {
            leaves: cut.leaves,
            slots: order.iter().map(|&row| slots[row as usize]).collect(),
            places,
            width,
            // The sample gives others, of a greater variety.
            pool: (ef / 4).max(width),
            joined: 0,
            finds: [empty(), empty()],
            found: Default::default(),
            chosen: Vec::new(),
            back: Vec::new(),
            lists: Vec::new(),
            order,
        }
    }

    /// The share of the work that is done.
    pub(crate) fn share(&self) -> f64 {
        let joined = self.joined as f64 / self.leaves.len().max(1) as f64;
        let of_all = |count: usize| count as f64 / self.order.len().max(1) as f64;
        match self.lists.is_empty() {
            true => 0.25 * joined + 0.6 * of_all(self.chosen.len()),
            false => 0.85 + 0.15 * of_all(self.lists.len()),
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
        } else if self.chosen.len() < self.order.len() {
            self.choose(rows)?;
        } else if self.lists.len() < self.order.len() {
            self.link_both_ways(rows)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Finds neighbours in some of the leaves.
    fn join<T: Element>(&mut self, points: &Points<'_, T>) {
        let to = self.leaves.len().min(self.joined + points.leaves_a_step());
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
        let from = self.chosen.len();
        let to = self.order.len().min(from + step_nodes(rows));
        let level = &*self;
        let chosen: Result<Vec<Chosen>> = (from..to)
            .into_par_iter()
            .with_min_len(16)
            .map_init(
                || (Scratch::default(), Pruner::default(), Vec::new()),
                |(scratch, pruner, met), place| {
                    let mut list = level.candidates(rows, place, scratch, met)?;
                    let links = pruner.choose(rows, &mut list, level.width)?;
                    list.shrink_to_fit();
                    Ok(Chosen { links, list })
                },
            )
            .collect();
        self.chosen.extend(chosen?);
        Ok(())
    }

    /// What a node chooses from: what a search from itself finds, and its neighbours in the sample.
    fn candidates<S: PageStore>(
        &self,
        rows: &Rows<S>,
        place: usize,
        scratch: &mut Scratch,
        met: &mut Vec<u32>,
    ) -> Result<Vec<Candidate>> {
        let slot = |&place: &u32| self.slots[place as usize];
        let [near, sample] = &self.found;
        rows.row_probe(self.slots[place], &mut scratch.row, &mut scratch.probe)?;
        scratch.pool.reset(self.pool, f32::NEG_INFINITY, false);
        scratch.visited.reset(self.order.len() as u32);
        scratch.visited.insert(place as u32);
        scratch.pool.insert(0.0, place as u32, true);
        scratch.best_first(
            |node, visited, batch, probe, next| {
                if let Some(next) = next {
                    let at = u64::from(next) * size_of::<Places>() as u64;
                    kernel::prefetch(near.as_bytes(), at, size_of::<Places>());
                }
                met.resize(NEAR, 0);
                let mut count = 0;
                for &place in near[node as usize].iter().take_while(|&&place| place != NONE) {
                    met[count] = place;
                    count += usize::from(visited.insert(place) == Some(true));
                }
                met.truncate(count);
                batch.ids.clear();
                batch.ids.extend(met.iter().map(slot));
                batch.score(rows, probe)?;
                batch.ids.clone_from(met);
                Ok(())
            },
            &mut |_| Ok(true),
        )?;
        let Scratch { pool, batch, probe, .. } = scratch;
        let found = pool.admitted().filter(|&(_, id)| id != place as u32);
        let mut list: Vec<Candidate> = found
            .map(|(distance, id)| Candidate { distance, id: slot(&id), tree: false })
            .collect();
        batch.ids.clear();
        let new = |id: &u32| !list.iter().any(|candidate| candidate.id == *id);
        batch
            .ids
            .extend(sample[place].iter().take_while(|&&place| place != NONE).map(slot).filter(new));
        batch.score(rows, probe)?;
        let scored = batch.ids.iter().zip(&batch.distances);
        list.extend(scored.map(|(&id, &distance)| Candidate { distance, id, tree: false }));
        list.sort_unstable_by(Candidate::order);
        Ok(list)
    }

    /// Makes the lists of some nodes, from what they chose and from those that chose them.
    fn link_both_ways<S: PageStore>(&mut self, rows: &Rows<S>) -> Result<()> {
        if self.lists.is_empty() {
            self.found = Default::default();
            let places: hashbrown::HashMap<u32, usize> =
                self.slots.iter().copied().zip(0..).collect();
            self.back = vec![Vec::new(); self.order.len()];
            for (chosen, &slot) in self.chosen.iter().zip(&self.slots) {
                for link in &chosen.list {
                    self.back[places[&link.id]].push((link.distance, slot));
                }
            }
        }
        let from = self.lists.len();
        let to = self.order.len().min(from + step_nodes(rows));
        let width = self.width;
        let lists: Result<Vec<Vec<Candidate>>> = self.chosen[from..to]
            .par_iter_mut()
            .zip(&mut self.back[from..to])
            .map_init(Pruner::default, |pruner, (chosen, back)| {
                let mut list = std::mem::take(&mut chosen.list);
                let mut spare = list.split_off(chosen.links);
                let own = list.len();
                for (distance, id) in std::mem::take(back) {
                    if !list[..own].iter().any(|link| link.id == id) {
                        list.push(Candidate { distance, id, tree: false });
                    }
                }
                if list.len() > width {
                    list.sort_unstable_by(Candidate::order);
                    list.truncate(3 * width);
                    pruner.choose(rows, &mut list, width)?;
                } else {
                    spare.retain(|spare| !list.iter().any(|link| link.id == spare.id));
                    spare.truncate(width - list.len());
                    list.append(&mut spare);
                }
                list.sort_unstable_by(Candidate::order);
                Ok(list)
            })
            .collect();
        self.lists.extend(lists?);
        Ok(())
    }
}

fn step_nodes<S>(rows: &Rows<S>) -> usize {
    (STEP_FLOATS / rows.space.dim).clamp(64, STEP_NODES)
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
