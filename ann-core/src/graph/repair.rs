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
//!
//! Where others insert, they may do so between the steps of a [`Sweep`]: nothing is linked to tombstones while there is
//! anything else, and a tombstone that got a child all the same stays for the next sweep. What is done by then is done.

use std::ops::Range;

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

/// Nodes of a step where nobody waits for its end.
const BLOCK: usize = 1 << 14;

/// Nodes that a step looks through at most, for each that it may change.
const PATIENCE: usize = 16;

/// A sweep of an index under way: see [`Graph::begin_sweep`].
pub struct Sweep {
    stage: Stage,
    /// How far the stage is.
    at: usize,
    /// Nodes that a step changes, about.
    size: usize,
    /// The tombstones that are to go.
    dead: Vec<u32>,
    dead_set: HashSet<u32>,
    /// Nodes whose chains have dead twins.
    owners: Vec<u32>,
    /// Slots that may have been claimed for vectors that never came.
    claimed: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Promote,
    Unchain,
    Enter,
    Close,
    Mend,
    Empty,
    Free,
    Done,
}

/// What a look at a node's lists brings.
enum Found {
    /// A list that was chosen anew, and where it belongs.
    Mended((usize, u32), Vec<u32>),
    /// An edge of the tree to this tombstone.
    Edge(u32),
}

impl Found {
    fn edge(&self) -> Option<u32> {
        match self {
            Found::Edge(id) => Some(*id),
            Found::Mended(..) => None,
        }
    }
}

impl Sweep {
    /// The stage after this one.
    fn advance(&mut self) {
        self.at = 0;
        self.stage = match self.stage {
            Stage::Promote => Stage::Unchain,
            Stage::Unchain => Stage::Enter,
            Stage::Enter => Stage::Close,
            Stage::Close => Stage::Mend,
            Stage::Mend => Stage::Empty,
            Stage::Empty => Stage::Free,
            Stage::Free | Stage::Done => Stage::Done,
        };
    }

    /// The places of the next few of a list of `len`.
    fn next(&mut self, len: usize) -> Range<usize> {
        let from = self.at;
        self.at = len.min(from + self.size);
        from..self.at
    }

    /// One step, on the current thread pool. No insertion may be under way; between steps they may. False once there is
    /// nothing more to do.
    ///
    /// # Errors
    /// Those of the store; the index then holds the same vectors as before, and another sweep can begin.
    pub fn step<S: PageStore, K: Topology>(&mut self, graph: &mut Graph<S, K>) -> Result<bool> {
        if S::SHARED {
            graph.rows.refresh()?;
        }
        let more = match self.stage {
            Stage::Promote => self.promote(graph)?,
            Stage::Unchain => self.unchain(graph)?,
            Stage::Enter => {
                graph.choose_entries()?;
                graph.move_entry()?;
                false
            }
            Stage::Close => self.close(graph)?,
            Stage::Mend => self.mend(graph)?,
            Stage::Empty => self.empty(graph)?,
            Stage::Free => self.free(graph)?,
            Stage::Done => false,
        };
        if !more {
            self.advance();
        }
        Ok(self.stage != Stage::Done)
    }

    fn promote<S: PageStore, K: Topology>(&mut self, graph: &mut Graph<S, K>) -> Result<bool> {
        for at in self.next(self.dead.len()) {
            let id = self.dead[at];
            if graph.promote_twin(id)? {
                self.owners.push(id);
                self.dead_set.remove(&id);
            }
        }
        if self.at < self.dead.len() {
            return Ok(true);
        }
        self.dead.retain(|id| self.dead_set.contains(id));
        self.owners.sort_unstable();
        self.owners.dedup();
        Ok(false)
    }

    fn unchain<S: PageStore, K: Topology>(&mut self, graph: &mut Graph<S, K>) -> Result<bool> {
        for at in self.next(self.owners.len()) {
            graph.unchain_dead(self.owners[at], &mut self.claimed)?;
        }
        Ok(self.at < self.owners.len())
    }

    fn close<S: PageStore, K: Topology>(&mut self, graph: &mut Graph<S, K>) -> Result<bool> {
        let mut counts = tree::Counts::default();
        for at in self.next(self.dead.len()) {
            graph.close_tree(self.dead[at], &mut counts)?;
        }
        Ok(self.at < self.dead.len())
    }

    fn mend<S: PageStore, K: Topology>(&mut self, graph: &mut Graph<S, K>) -> Result<bool> {
        let (mut looked, mut changed) = (0, 0);
        while self.at < graph.rows.slots() as usize {
            if looked >= PATIENCE * self.size || changed >= self.size {
                return Ok(true);
            }
            let end = (self.at + self.size).min(graph.rows.slots() as usize);
            let range = self.at as u32..end as u32;
            changed += graph.mend_lists(range, &self.dead_set)?;
            looked += end - self.at;
            self.at = end;
        }
        Ok(false)
    }

    fn empty<S: PageStore, K: Topology>(&mut self, graph: &mut Graph<S, K>) -> Result<bool> {
        for at in self.next(self.dead.len()) {
            graph.empty_lists(self.dead[at])?;
        }
        if self.at < self.dead.len() {
            return Ok(true);
        }
        graph.rows.count_sweep()?;
        // From here on both are slots to free.
        self.dead.append(&mut self.claimed);
        Ok(false)
    }

    /// Frees slots, those that have come into use again excepted.
    fn free<S: PageStore, K: Topology>(&mut self, graph: &mut Graph<S, K>) -> Result<bool> {
        for at in self.next(self.dead.len()) {
            let id = self.dead[at];
            let node = graph.rows.node(id)?;
            let dead = node.is(State::Tombstone) && graph.list_of(id, 0)?.is_empty();
            if dead || node.is(State::Claimed) {
                graph.rows.free(id)?;
            }
        }
        Ok(self.at < self.dead.len())
    }
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
        let mut sweep = self.begin_sweep(BLOCK)?;
        while sweep.step(self)? {}
        Ok(())
    }

    /// Begins a [`Graph::sweep`] by steps that change about `size` nodes each, beside searches of others, and between
    /// the steps insertions of others. Removals have to wait until it ends.
    ///
    /// # Errors
    /// Those of the store; [`crate::Error::Corrupt`].
    pub fn begin_sweep(&mut self, size: usize) -> Result<Sweep> {
        if S::SHARED {
            self.rows.refresh()?;
            self.rows.count_sweep()?;
        }
        let (mut dead, mut owners, mut claimed) = (Vec::new(), Vec::new(), Vec::new());
        for id in 0..self.rows.slots() {
            let node = self.rows.node(id)?;
            match node.state() {
                Some(State::Tombstone) => dead.push(id),
                Some(State::DeadTwin) => owners.push(node.owner.get()),
                Some(State::Claimed) => claimed.push(id),
                _ => (),
            }
        }
        let dead_set = dead.iter().copied().collect();
        Ok(Sweep {
            stage: Stage::Promote,
            at: 0,
            size: size.max(1),
            dead,
            dead_set,
            owners,
            claimed,
        })
    }

    /// Takes all links from a node that no list names, so that it names none either. One that got a child keeps them.
    fn empty_lists(&mut self, id: u32) -> Result<()> {
        if self.list_of(id, 0)?.iter().any(|&link| link & TREE != 0) {
            return Ok(());
        }
        for level in 0..=self.rows.node(id)?.level {
            self.put_list(place(&self.rows, id, level)?, &[])?;
        }
        Ok(())
    }

    /// Gives a tombstone the key of a living twin, if it has one, which dies in its place.
    fn promote_twin(&mut self, id: u32) -> Result<bool> {
        let mut node = self.rows.node(id)?;
        let mut heir = None;
        self.rows.each_visible(id, |twin, _| {
            heir = Some(twin);
            false
        })?;
        let Some(heir) = heir.filter(|_| node.is(State::Tombstone)) else { return Ok(false) };
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
        Ok(true)
    }

    /// Takes dead twins from a node's chain. Their slots wait, as if claimed, until no search can be on its way to
    /// them.
    fn unchain_dead(&mut self, owner: u32, claimed: &mut Vec<u32>) -> Result<()> {
        let mut before = owner;
        let mut steps = 0;
        loop {
            let mut node = self.rows.node(before)?;
            let next = node.twin.get();
            if next == NONE {
                return Ok(());
            }
            steps += 1;
            if steps > self.rows.slots() {
                return Err(self.rows.corrupt_node(owner, "its chain goes round".into()));
            }
            let mut twin = self.rows.node(next)?;
            if !twin.is(State::DeadTwin) {
                before = next;
                continue;
            }
            node.twin = twin.twin;
            twin.twin = NONE.into();
            twin.set_state(State::Claimed);
            let mut change = Change::default();
            change.put_record(self.rows.array(NODES)?, before, node.as_bytes())?;
            change.put_record(self.rows.array(NODES)?, next, twin.as_bytes())?;
            self.rows.commit_meta(change, |meta| {
                meta.tombstones = meta.tombstones.get().saturating_sub(1).into();
                true
            })?;
            claimed.push(next);
        }
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

    /// Chooses anew all lists that name dead nodes, of a range of nodes. How many there were.
    fn mend_lists(&mut self, range: Range<u32>, dead: &HashSet<u32>) -> Result<usize> {
        let mut found = self.lists_to_mend(range.clone(), dead)?;
        let edges: HashSet<u32> = found.iter().filter_map(Found::edge).collect();
        if !edges.is_empty() {
            // Something was inserted when there was nothing else to hang on to.
            let mut counts = tree::Counts::default();
            for id in edges {
                self.close_tree(id, &mut counts)?;
            }
            found = self.lists_to_mend(range, dead)?;
        }
        let mut mended = 0;
        for found in found {
            if let Found::Mended(place, list) = found {
                self.put_list(place, &list)?;
                mended += 1;
            }
        }
        Ok(mended)
    }

    fn lists_to_mend(&self, range: Range<u32>, dead: &HashSet<u32>) -> Result<Vec<Found>> {
        let found: Result<Vec<Vec<Found>>> = range
            .into_par_iter()
            .map_init(
                || (self.scratch(), Pruner::default()),
                |(scratch, pruner), id| {
                    let node = self.rows.node(id)?;
                    let mut found = Vec::new();
                    if node.is(State::Live) {
                        for level in 0..=node.level {
                            found.extend(self.mend_list(id, level, dead, scratch, pruner)?);
                        }
                    }
                    Ok(found)
                },
            )
            .collect();
        Ok(found?.into_iter().flatten().collect())
    }

    /// The list of a node without dead names, if it has any; or an edge of the tree that leads to one.
    fn mend_list(
        &self,
        id: u32,
        level: u8,
        dead: &HashSet<u32>,
        scratch: &mut Scratch,
        pruner: &mut Pruner,
    ) -> Result<Option<Found>> {
        let place_of_list = place(&self.rows, id, level)?;
        let (array, record) = place_of_list;
        let mut list = Vec::new();
        links::read(&self.rows, array, record, &mut list)?;
        if !list.iter().any(|&link| dead.contains(&target(link))) {
            return Ok(None);
        }
        let is_edge = |&&link: &&u32| link & TREE != 0 && dead.contains(&target(link));
        if let Some(&edge) = list.iter().find(is_edge) {
            return Ok(Some(Found::Edge(target(edge))));
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
        let list = candidates.iter().map(Candidate::link).collect();
        Ok(Some(Found::Mended(place_of_list, list)))
    }
}
