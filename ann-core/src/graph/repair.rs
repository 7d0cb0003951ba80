//! Sweeping: removed vectors leave the graph, and their slots become free.
//!
//! A removed vector stays in the graph as a tombstone, so that paths through it hold, until a sweep:
//! 1. A tombstone with living twins takes over the key of one of them, and lives; dead twins leave their chains.
//! 2. The entry point, and all of the sample around it, become living nodes.
//! 3. The spanning tree closes over each tombstone: its tree neighbours are joined to one another, then it is let go.
//! 4. Every list that names a tombstone is chosen anew, among the names that stay and the tombstone's own neighbours.
//! 5. No list names a tombstone now, so their slots can be used again.
//!
//! Each step is a series of small writes, and after each of those every living vector can be reached.

use hashbrown::HashSet;
use rayon::prelude::*;
use zerocopy::IntoBytes;

use crate::error::Result;
use crate::graph::links::{self, TREE, target};
use crate::graph::prune::{Candidate, Pruner};
use crate::graph::search::Scratch;
use crate::graph::tree;
use crate::page::PageStore;
use crate::rows::{Change, LINKS, NODES, NONE, State};

use super::apply::Beside;
use super::query::place;
use super::{Graph, Topology};

/// Lists that are computed before any of them is written.
const BLOCK: u32 = 1 << 14;

/// A list that was chosen anew, and where it belongs.
struct Mended {
    place: (usize, u32),
    list: Vec<u32>,
}

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// Whether so many vectors are tombstones that searches and space suffer.
    pub(super) fn sweep_is_due(&self) -> bool {
        let (dead, live) = (self.rows.meta.tombstones.get(), self.rows.meta.live.get());
        dead > 64 && dead > (dead + live) / 10 || live == 0 && dead > 0
    }

    /// Takes all removed vectors out of the graph. Runs on the current thread pool.
    pub(super) fn sweep_now(&mut self) -> Result<()> {
        if self.rows.meta.tombstones.get() == 0 {
            return Ok(());
        }
        self.promote_twins()?;
        self.drop_dead_twins()?;
        let (mut dead, mut claimed) = (Vec::new(), Vec::new());
        for id in 0..self.rows.slots() {
            let node = self.rows.node(id)?;
            if node.is(State::Tombstone) {
                dead.push(id);
            } else if node.is(State::Claimed) {
                claimed.push(id);
            }
        }
        let dead_set: HashSet<u32> = dead.iter().copied().collect();
        self.choose_entries()?;
        self.move_entry()?;
        let mut counts = tree::Counts::default();
        for &id in &dead {
            self.close_tree(id, &mut counts)?;
        }
        for first in (0..self.rows.slots()).step_by(BLOCK as usize) {
            self.mend_lists(first, &dead_set)?;
        }
        for &id in &dead {
            self.empty_lists(id)?;
        }
        self.rows.count_sweep()?;
        for &id in dead.iter().chain(&claimed) {
            self.rows.free(id)?;
        }
        Ok(())
    }

    /// Takes all links from a node that no list names, so that it names none either.
    fn empty_lists(&mut self, id: u32) -> Result<()> {
        for level in 0..=self.rows.node(id)?.level {
            self.put_list(place(&self.rows, id, level)?, &[])?;
        }
        Ok(())
    }

    fn promote_twins(&mut self) -> Result<()> {
        for id in 0..self.rows.slots() {
            let mut node = self.rows.node(id)?;
            if !node.is(State::Tombstone) {
                continue;
            }
            let mut heir = None;
            self.rows.each_visible(id, |twin, _| {
                heir = Some(twin);
                false
            })?;
            let Some(heir) = heir else { continue };
            let mut twin = self.rows.node(heir)?;
            node.key = twin.key;
            node.set_state(State::Live);
            twin.set_state(State::DeadTwin);
            let mut change = Change::default();
            let nodes = self.rows.array(NODES)?;
            change.put_record(nodes, id, node.as_bytes())?;
            change.put_record(nodes, heir, twin.as_bytes())?;
            self.rows.commit_meta(change, |_| true)?;
            self.rows.move_key(node.key.get(), id);
        }
        Ok(())
    }

    fn drop_dead_twins(&mut self) -> Result<()> {
        let mut owners = HashSet::new();
        for id in 0..self.rows.slots() {
            let node = self.rows.node(id)?;
            if node.is(State::DeadTwin) {
                owners.insert(node.owner.get());
            }
        }
        let mut owners: Vec<u32> = owners.into_iter().collect();
        owners.sort_unstable();
        for owner in owners {
            let mut before = owner;
            let mut steps = 0;
            loop {
                let mut node = self.rows.node(before)?;
                let next = node.twin.get();
                if next == NONE {
                    break;
                }
                steps += 1;
                if steps > self.rows.slots() {
                    return Err(self.rows.corrupt_node(owner, "its chain goes round".into()));
                }
                let twin = self.rows.node(next)?;
                if !twin.is(State::DeadTwin) {
                    before = next;
                    continue;
                }
                node.twin = twin.twin;
                let mut change = Change::default();
                change.put_record(self.rows.array(NODES)?, before, node.as_bytes())?;
                self.rows.free_with(change, next)?;
            }
        }
        Ok(())
    }

    fn move_entry(&mut self) -> Result<()> {
        let entry = self.rows.meta.entry.get();
        if entry != NONE && self.rows.node(entry)?.is(State::Live) {
            return Ok(());
        }
        let mut best: Option<(u8, u32)> = None;
        for id in 0..self.rows.slots() {
            let node = self.rows.node(id)?;
            if node.is(State::Live) && best.is_none_or(|(level, _)| node.level > level) {
                best = Some((node.level, id));
            }
        }
        let (level, id) = best.unwrap_or((0, NONE));
        self.rows.commit_meta(Change::default(), |meta| {
            meta.entry = id.into();
            meta.entry_level = u32::from(level).into();
            true
        })?;
        Ok(())
    }

    /// Joins the tree neighbours of a node to one another, then unmarks its own edges.
    fn close_tree(&mut self, id: u32, counts: &mut tree::Counts) -> Result<()> {
        let width = self.width(0);
        let mut list = Vec::new();
        links::read(&self.rows, LINKS, id, &mut list)?;
        let marked: Vec<u32> =
            list.iter().filter(|&&l| l & TREE != 0).map(|&l| target(l)).collect();
        for pair in marked.windows(2) {
            let a = counts.claim(&self.rows, std::iter::once(pair[0]), width, Some(id))?;
            let b = counts.claim(&self.rows, std::iter::once(pair[1]), width, Some(id))?;
            // A sweep that was cut short may have joined them already.
            if a == b {
                counts.release(a);
                counts.release(b);
                continue;
            }
            self.edit_edge(a, b, |list, other| {
                tree::mark(list, other, width);
            })?;
        }
        for &neighbour in &marked {
            // The dead node keeps its ways out, for searches that are inside it.
            let own = |list: &mut Vec<u32>, other: u32| {
                list.iter_mut()
                    .filter(|link| target(**link) == other)
                    .for_each(|link| *link = other);
            };
            self.edit_edge(id, neighbour, own)?;
            counts.release(neighbour);
        }
        Ok(())
    }

    /// Changes the lists of two nodes in one write.
    fn edit_edge(&mut self, a: u32, b: u32, edit: impl Fn(&mut Vec<u32>, u32)) -> Result<()> {
        let width = self.width(0);
        loop {
            let mut change = Change::default();
            let array = self.rows.array(LINKS)?;
            for (id, other) in [(a, b), (b, a)] {
                let mut list = Vec::new();
                links::read(&self.rows, LINKS, id, &mut list)?;
                change.expect_record(array, id, &links::seen(&list, width))?;
                edit(&mut list, other);
                self.change_list(&mut change, (LINKS, id), &list, Beside::List)?;
            }
            if self.rows.commit(&mut change)? {
                return Ok(());
            }
        }
    }

    /// Chooses anew all lists that name dead nodes, of a block of nodes.
    fn mend_lists(&mut self, first: u32, dead: &HashSet<u32>) -> Result<()> {
        let last = self.rows.slots().min(first.saturating_add(BLOCK));
        let index = &*self;
        let mended: Result<Vec<Vec<Mended>>> = (first..last)
            .into_par_iter()
            .map_init(
                || (index.scratch(), Pruner::default()),
                |(scratch, pruner), id| {
                    let node = index.rows.node(id)?;
                    let mut lists = Vec::new();
                    if node.is(State::Live) {
                        for level in 0..=node.level {
                            if let Some(list) = index.mend_list(id, level, dead, scratch, pruner)? {
                                let place = place(&index.rows, id, level)?;
                                lists.push(Mended { place, list });
                            }
                        }
                    }
                    Ok(lists)
                },
            )
            .collect();
        for Mended { place, list } in mended?.into_iter().flatten() {
            self.put_list(place, &list)?;
        }
        Ok(())
    }

    /// The list of a node without dead names, if it has any.
    fn mend_list(
        &self,
        id: u32,
        level: u8,
        dead: &HashSet<u32>,
        scratch: &mut Scratch,
        pruner: &mut Pruner,
    ) -> Result<Option<Vec<u32>>> {
        let (array, record) = place(&self.rows, id, level)?;
        let mut list = Vec::new();
        links::read(&self.rows, array, record, &mut list)?;
        if !list.iter().any(|&link| dead.contains(&target(link))) {
            return Ok(None);
        }
        let marked: HashSet<u32> =
            list.iter().filter(|&&link| link & TREE != 0).map(|&link| target(link)).collect();
        // What is reached through dead nodes only, two of them in a row at most.
        let mut names: HashSet<u32> = HashSet::new();
        let mut gone: Vec<u32> = Vec::new();
        for &link in &list {
            match dead.contains(&target(link)) {
                true => gone.push(target(link)),
                false => _ = names.insert(target(link)),
            }
        }
        let mut seen: HashSet<u32> = gone.iter().copied().collect();
        for depth in 0..2 {
            let mut further = Vec::new();
            for &through in &gone {
                let (array, record) = place(&self.rows, through, level)?;
                links::read(&self.rows, array, record, &mut scratch.links)?;
                for name in scratch.links.iter().map(|&link| target(link)) {
                    match dead.contains(&name) {
                        true if seen.insert(name) => further.push(name),
                        false if name != id => _ = names.insert(name),
                        _ => {}
                    }
                }
            }
            if depth > 0 || names.len() >= 4 * self.width(level) {
                break;
            }
            gone = further;
        }
        let mut ids: Vec<u32> = names.into_iter().collect();
        ids.sort_unstable();
        self.rows.row_probe(id, &mut scratch.row, &mut scratch.probe)?;
        scratch.batch.ids.clone_from(&ids);
        scratch.batch.score(&self.rows, &scratch.probe)?;
        let scored = ids.iter().zip(&scratch.batch.distances);
        let mut candidates: Vec<Candidate> = scored
            .map(|(&id, &distance)| Candidate { distance, id, tree: marked.contains(&id) })
            .collect();
        candidates.sort_unstable_by(Candidate::order);
        pruner.select(&self.rows, &mut candidates, self.width(level))?;
        Ok(Some(candidates.iter().map(Candidate::link).collect()))
    }
}
