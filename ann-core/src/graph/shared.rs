//! A graph that others change at the same time, through handles of their own: a database's processes.
//!
//! Insertions go by single vectors. One takes a slot (*claim*), writes its vector there and searches for its
//! neighbours; then it writes the lists of the new node, which nothing leads to yet. Its birth is one write: the node
//! becomes visible and its parent in the spanning tree links to it. The other edges back follow, a write for each. All
//! of these look under their latches at what they have decided on, and are tried again if that has changed.
//!
//! Searches take no locks. A sweep counts itself before slots get free; a search that finds another number at its end
//! than at its beginning has perhaps seen two vectors in one slot, and begins anew. Insertions and the steps of a sweep
//! exclude one another, which is the caller's affair.

use ndarray::{ArrayView1, Axis};

use crate::element::{DType, Element};
use crate::error::{Error, Result};
use crate::graph::links::{self, target};
use crate::graph::prune::{Candidate, Pruner};
use crate::graph::tree;
use crate::index::{Cursor, CursorState, Hit};
use crate::page::PageStore;
use crate::rows::{Change, Matcher, Node, State, Workshop};
use crate::shared::SharedIndex;

use super::apply::Beside;
use super::index::{Graph, Topology, level_of};
use super::insert::Staged;
use super::plan::{Planned, choose_parent, measured, plan_node, reduce, route};
use super::query::{entry, place};
use super::repair::Sweep;
use super::search::Scratch;

/// Nodes whose keys are looked up at a time: a statement mostly wants no more.
const LOOKED_UP: usize = 16;

impl<S: PageStore, K: Topology> SharedIndex for Graph<S, K> {
    type Store = S;
    type Sweep = Sweep;

    fn store(&self) -> &S {
        &self.rows.store
    }

    fn vectors(&self) -> Option<DType> {
        Graph::vectors(self)
    }

    fn refresh(&mut self) -> Result<()> {
        self.rows.refresh()
    }

    fn insert_one<T: Element>(&mut self, vector: &[T], key: u64) -> Result<()> {
        self.rows.space.check(vector, 0)?;
        self.rows.refresh()?;
        let mut row = Vec::new();
        self.rows.encode(vector, &mut row)?;
        let (seed, width) = (self.rows.meta.seed.get(), self.shape.widths[1] as u64);
        let (id, claimed) = self.rows.claim(|id| level_of(id, seed, width))?;
        let (level, upper) = match claimed.level {
            0 => (0, claimed.upper.get()),
            _ => self.kept_levels(id)?,
        };
        self.rows.put_row(id, &row)?;
        self.put_code(id, &row, &mut Workshop::default())?;
        let staged = Staged { row: 0, id, level, upper };
        let node = Node::new(key, State::Live, level, upper);
        let mut pruner = Pruner::default();
        let lists = loop {
            match self.try_to_place(vector, &staged, node, &mut pruner) {
                Ok(Some(lists)) => break lists,
                Ok(None) => self.rows.refresh()?,
                Err(error) if self.rows.was_outdated(&error)? => {}
                Err(error) => return Err(error),
            }
        };
        for (level, list) in (0..).zip(&lists) {
            for candidate in list {
                self.link_back(id, level, candidate, &mut pruner)?;
            }
        }
        Ok(())
    }

    fn remove_where(&mut self, is_dead: impl FnMut(u64) -> bool) -> Result<usize> {
        self.rows.bury_where(is_dead)
    }

    fn counts(&self) -> (usize, usize) {
        (self.rows.len(), self.rows.meta.tombstones.get() as usize)
    }

    fn next_hits(&mut self, cursor: &mut Cursor) -> Result<Vec<Hit>> {
        self.hits_beside(cursor, false)
    }

    fn only_hits(&mut self, cursor: &mut Cursor) -> Result<Vec<Hit>> {
        self.hits_beside(cursor, true)
    }

    fn begin_sweep(&mut self, size: usize) -> Result<Sweep> {
        Graph::begin_sweep(self, size)
    }

    fn is_alone(&self, _: &Sweep) -> bool {
        true
    }

    fn step(&mut self, sweep: &mut Sweep) -> Result<bool> {
        sweep.step(self)
    }
}

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// Hits of a cursor of this index, which others may be changing; of one that `ends` with its first pool or not.
    fn hits_beside(&mut self, cursor: &mut Cursor, ends: bool) -> Result<Vec<Hit>> {
        self.rows.refresh()?;
        self.rows.check_mark(&cursor.mark)?;
        let Cursor { mark, ready, state } = cursor;
        let CursorState::Graph(walk) = state else {
            return Err(Error::Changed);
        };
        walk.scratch.visited.grow(self.rows.ids());
        walk.scratch.best.grow(self.rows.ids());
        // Whoever has the vectors elsewhere puts what comes in one piece in the order of these.
        let count = if self.rows.has_vectors() { LOOKED_UP } else { usize::MAX };
        let read = loop {
            match self.walk_on(walk, &Matcher::All, count, ends) {
                Ok(Some(hits)) if hits.is_empty() => {}
                other => break other.map(Option::unwrap_or_default),
            }
        };
        match read {
            Ok(hits) => {
                self.rows.refresh()?;
                self.rows.check_mark(mark)?;
                Ok(ready.drain(..).chain(hits).collect())
            }
            Err(error) if self.rows.was_outdated(&error)? => Err(Error::Changed),
            Err(error) => Err(error),
        }
    }

    /// Searches for the neighbours of a row that is stored, and makes it visible. Its lists, or nothing if somebody
    /// else has changed what that rests on.
    fn try_to_place<T: Element>(
        &mut self,
        vector: &[T],
        staged: &Staged,
        node: Node,
        pruner: &mut Pruner,
    ) -> Result<Option<Vec<Vec<Candidate>>>> {
        let planned = {
            let mut scratch = self.scratch();
            let vectors = ArrayView1::from(vector).insert_axis(Axis(0));
            let ask =
                &|staged: &Staged, scratch: &mut Scratch| self.ask_row(&vectors, staged, scratch);
            ask(staged, &mut scratch)?;
            let route = route(&self.rows, entry(&self.rows)?, 0, &mut scratch)?;
            // Nobody comes after it who would choose its links anew, as a load's passes do: it has to look further.
            let pool = self.shape.pool + self.shape.pool / 4 * 3;
            plan_node(self, (staged, &route), pool, &mut scratch, pruner, ask)?
        };
        let mut lists = match planned {
            Planned::Node { lists, .. } => lists,
            Planned::Twin(owner) => {
                self.bear_twin(owner, staged.id, node, None)?;
                return Ok(Some(Vec::new()));
            }
        };
        let parent = match lists.first_mut().filter(|list| !list.is_empty()) {
            Some(list) => Some(choose_parent(self, staged.id, list, &mut tree::Counts::default())?),
            None => None,
        };
        let links = |list: &Vec<Candidate>| list.iter().map(Candidate::link).collect();
        self.write_links(staged, lists.iter().map(links), None)?;
        let born = self.try_to_bear(staged.id, node, parent, None)?;
        Ok(born.then_some(lists))
    }

    /// Gives a node a link to a new one at a level, if that is worth a place in its list.
    fn link_back(&mut self, id: u32, level: u8, to: &Candidate, pruner: &mut Pruner) -> Result<()> {
        let width = self.width(level);
        let source = Candidate { distance: to.distance, id, tree: to.tree };
        loop {
            let now = match self.list_of(to.id, level) {
                Err(error) if self.rows.was_outdated(&error)? => continue,
                now => now?,
            };
            if now.iter().any(|&link| target(link) == id) {
                return Ok(());
            }
            let (array, record) = place(&self.rows, to.id, level)?;
            let list: Vec<u32> = match now.len() < width {
                true => now.iter().copied().chain([source.link()]).collect(),
                false => {
                    let mut scratch = self.scratch();
                    let links = now.iter().copied();
                    let mut list = measured(self, to.id, links, &[source], &mut scratch, pruner)?;
                    // A node that a nearer neighbour leads to is not worth the write.
                    let at = list.iter().position(|candidate| candidate.id == id).unwrap_or(0);
                    if !source.tree && pruner.is_covered(&self.rows, &list, at)? {
                        return Ok(());
                    }
                    reduce(self, &mut list, width, pruner)?;
                    list.iter().map(Candidate::link).collect()
                }
            };
            if list.iter().all(|&link| target(link) != id) {
                return Ok(());
            }
            let list = in_place(&now, &list);
            let mut change = Change::default();
            change.expect_record(self.rows.array(array)?, record, &links::seen(&now, width))?;
            self.change_list(&mut change, (array, record), &list, Beside::List)?;
            if self.rows.commit(&mut change)? {
                return Ok(());
            }
        }
    }

    pub(super) fn list_of(&self, id: u32, level: u8) -> Result<Vec<u32>> {
        let (array, record) = place(&self.rows, id, level)?;
        let mut list = Vec::new();
        links::read(&self.rows, array, record, &mut list)?;
        Ok(list)
    }

    /// Whether so many vectors have been inserted one by one that [`Graph::renew_entries`] would make searches faster.
    pub fn needs_entries(&self) -> bool {
        self.entries_are_due()
    }

    /// Chooses the nodes that searches start from anew: O(n). Only one caller at a time, and no
    /// step of a sweep.
    ///
    /// # Errors
    /// Those of the store; [`Error::Corrupt`].
    pub fn renew_entries(&mut self) -> Result<()> {
        self.choose_entries()
    }
}

/// A list that goes from near to far, in the order of the one that it takes the place of: what stays where it was need
/// not be written. Only the farthest link that is not marked comes last of those, where [`tree::mark`] looks for it.
fn in_place(now: &[u32], list: &[u32]) -> Vec<u32> {
    let of = |links: &[u32], id: u32| links.iter().copied().find(|&link| target(link) == id);
    let mut fresh = list.iter().copied().filter(|&link| of(now, target(link)).is_none());
    let mut arranged = Vec::with_capacity(list.len());
    for &link in now {
        arranged.extend(of(list, target(link)).or_else(|| fresh.next()));
    }
    arranged.extend(fresh);
    let is_free = |&link: &u32| link & links::TREE == 0;
    if let Some(farthest) = list.iter().copied().rfind(is_free)
        && let Some(from) = arranged.iter().position(|&link| link == farthest)
        && let Some(to) = arranged.iter().rposition(is_free)
    {
        arranged.swap(from, to);
    }
    arranged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_keeps_its_place() {
        let marked = 5 | links::TREE;
        assert_eq!(in_place(&[4, marked, 2, 9], &[4, 2, marked, 7]), [4, marked, 2, 7]);
        assert_eq!(in_place(&[4, marked, 2, 9], &[7, 4, marked, 2]), [4, marked, 7, 2]);
        assert_eq!(in_place(&[4, 2], &[2, 4, 7]), [4, 2, 7]);
        assert_eq!(in_place(&[], &[7]), [7]);
    }
}
