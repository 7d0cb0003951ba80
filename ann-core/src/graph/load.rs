//! Loading an empty index: all links are computed before anything is written.
//!
//! While nothing refers to the vectors, they can be put into any order. So they are cut into leaves first and take
//! their slots in the order of these: near vectors lie near one another in the store, which a search then finds in
//! the cache more often. Level by level the nodes are linked (see `graph::bulk`), and a spanning tree is laid
//! through the bottom level. What comes out has the shape of a batch's plan: at its birth a node links to those
//! born before it, and once all are born each gets its full list.

use hashbrown::HashMap;
use rayon::ThreadPool;

use crate::element::Element;
use crate::error::Result;
use crate::graph::bulk::{Level, places};
use crate::graph::leaves::{Cut, Points};
use crate::graph::links::{TREE, target};
use crate::graph::tree;
use crate::page::{MemStore, PageStore};
use crate::rows::{NONE, Rows, next_rows};
use crate::seed::mix;

use super::insert::Staged;
use super::{Graph, Topology};

/// Rows from which on an empty index is loaded rather than added to.
pub(super) const LOAD_ROWS: usize = 256;

/// A load under way.
pub(super) struct Load<'a, T> {
    points: Points<'a, T>,
    seed: u64,
    cut: Option<Cut>,
    level: Option<Level>,
    lists: Lists,
    /// Levels that have been linked.
    done: u8,
    /// The vectors by slot, where the index keeps codes only: links chosen by those would be worse.
    exact: Option<Rows<MemStore>>,
    /// How many of them.
    copied: usize,
}

impl<'a, T: Element> Load<'a, T> {
    /// Begins with these rows; runs on the current thread pool.
    pub(super) fn new(points: Points<'a, T>, rows: &[u32], seed: u64) -> Load<'a, T> {
        let cut = Cut::new(&points, rows, mix(seed));
        Load {
            points,
            seed,
            cut: Some(cut),
            level: None,
            lists: Lists::default(),
            done: 0,
            exact: None,
            copied: 0,
        }
    }

    /// The share of the planning that is done.
    pub(super) fn share(&self) -> f64 {
        match (&self.level, self.done) {
            (Some(level), 0) => 0.03 + 0.94 * level.share(),
            (None, 0) => 0.0,
            _ => 0.97,
        }
    }

    /// Whether the order in which the rows are to take slots is known.
    pub(super) fn is_arranged(&self) -> bool {
        self.cut.as_ref().is_none_or(Cut::is_done)
    }

    /// Finds the order in which the rows are to take slots: one step of it, and the order once that is known.
    pub(super) fn arrange(&mut self, pool: &ThreadPool) -> Option<Vec<u32>> {
        let cut = self.cut.as_mut()?;
        match pool.install(|| cut.step(&self.points)) {
            true => None,
            false => Some(cut.order()),
        }
    }

    /// One step of planning a batch that is all the rows; the lists once they are made.
    pub(super) fn plan<S: PageStore, K: Topology>(
        &mut self,
        index: &Graph<S, K>,
        batch: &[Staged],
        pool: &ThreadPool,
    ) -> Result<Option<Lists>> {
        let Some(level) = &mut self.level else { return self.begin_level(index, batch, pool) };
        let step = || match &self.exact {
            Some(exact) => level.step(exact, &self.points),
            None => level.step(&index.rows, &self.points),
        };
        if !pool.install(step)?
            && let Some(level) = self.level.take()
        {
            self.lists.put(level, self.done, batch);
            self.done += 1;
        }
        Ok(None)
    }

    /// One step of beginning the next level; the lists if there is none.
    fn begin_level<S: PageStore, K: Topology>(
        &mut self,
        index: &Graph<S, K>,
        batch: &[Staged],
        pool: &ThreadPool,
    ) -> Result<Option<Lists>> {
        let Some(mut cut) = self.cut.take().or_else(|| self.next_cut(batch)) else {
            let mut lists = std::mem::take(&mut self.lists);
            lists.lay_tree(batch);
            return Ok(Some(lists));
        };
        let is_cut = cut.is_done() || !pool.install(|| cut.step(&self.points));
        if !is_cut {
            self.cut = Some(cut);
        } else if !index.rows.has_vectors() && self.copied < batch.len() {
            self.cut = Some(cut);
            self.copy_some(&index.rows, batch)?;
        } else {
            let end = batch.iter().map(|staged| staged.row as usize + 1).max().unwrap_or(0);
            let mut slots = vec![NONE; end];
            batch.iter().for_each(|staged| slots[staged.row as usize] = staged.id);
            let width = index.width(self.done);
            // Estimates lose their way where exact distances do not: better links pay for themselves.
            let share = if index.rows.meta.code_bits > 0 { 2 } else { 4 };
            let pool = (index.shape.pool / share).max(width);
            self.level = Some(Level::new(cut, &slots, width, pool));
        }
        Ok(None)
    }

    /// The members of the next level, on their way into leaves, if there are any.
    fn next_cut(&self, batch: &[Staged]) -> Option<Cut> {
        let members = batch.iter().filter(|staged| staged.level >= self.done);
        let members: Vec<u32> = members.map(|staged| staged.row).collect();
        let seed = mix(self.seed + u64::from(self.done));
        (!members.is_empty()).then(|| Cut::new(&self.points, &members, seed))
    }

    /// Copies some vectors that the index does not keep.
    fn copy_some<S: PageStore>(&mut self, rows: &Rows<S>, batch: &[Staged]) -> Result<()> {
        let exact = match &mut self.exact {
            Some(exact) => exact,
            none => none.insert(self.points.table(rows)?),
        };
        let next = next_rows(self.copied, batch.len(), rows.space.dim);
        self.copied = next.end;
        self.points.put(exact, batch[next].iter().map(|staged| (staged.row, staged.id)))
    }
}

/// The lists of a batch that is all of a graph. Members are known by their place in the batch.
#[derive(Default)]
pub(super) struct Lists {
    width: usize,
    bottom: Vec<u32>,
    /// The lists above the bottom of those that have any.
    upper: HashMap<usize, Vec<Vec<u32>>>,
    /// Each member's parent in the spanning tree.
    parents: Vec<Option<u32>>,
    /// For each slot, which member has it.
    places: Vec<u32>,
}

impl Lists {
    /// Takes over the lists of a level.
    fn put(&mut self, level: Level, number: u8, batch: &[Staged]) {
        if number == 0 {
            // Members have taken their slots in the order of the level.
            (self.width, self.bottom) = (level.lists.len() / batch.len(), level.lists);
            return;
        }
        let places = places(batch.iter().map(|staged| staged.row));
        let width = level.lists.len() / level.order.len();
        for (&row, list) in level.order.iter().zip(level.lists.chunks(width)) {
            self.upper
                .entry(places[row as usize] as usize)
                .or_default()
                .push(until_none(list).to_vec());
        }
    }

    /// Makes each member's parent the nearest of those that it links to and that are born before it.
    fn lay_tree(&mut self, batch: &[Staged]) {
        self.places = places(batch.iter().map(|staged| staged.id));
        self.parents = vec![None; batch.len()];
        let mut marks = vec![0; batch.len()];
        for at in 1..batch.len() {
            let list = until_none(&self.bottom[at * self.width..][..self.width]);
            let mut earlier = list
                .iter()
                .map(|&link| self.places[target(link) as usize] as usize)
                .filter(|&other| other < at);
            // The one born last always has room.
            let parent =
                earlier.find(|&other| marks[other] < tree::room(self.width)).unwrap_or(at - 1);
            for (from, to) in [(at, parent), (parent, at)] {
                marks[from] += 1;
                mark(&mut self.bottom[from * self.width..][..self.width], batch[to].id);
            }
            self.parents[at] = Some(batch[parent].id);
        }
    }

    pub(super) fn parent(&self, at: usize) -> Option<u32> {
        self.parents[at]
    }

    /// A member's links at a level, as they are to be once all are born.
    pub(super) fn list(&self, at: usize, level: u8) -> &[u32] {
        match level {
            0 => until_none(&self.bottom[at * self.width..][..self.width]),
            level => self.upper.get(&at).map_or(&[], |lists| &lists[usize::from(level) - 1]),
        }
    }

    /// Those that lead to members born before it; the edge to its parent is the only one of the tree so far.
    pub(super) fn list_at_birth(&self, at: usize, level: u8) -> Vec<u32> {
        let parent = self.parents[at].filter(|_| level == 0);
        let ids = self.list(at, level).iter().map(|&link| target(link));
        let born = ids.filter(|&id| (self.places[id as usize] as usize) < at);
        born.map(|id| if parent == Some(id) { id | TREE } else { id }).collect()
    }
}

fn until_none(list: &[u32]) -> &[u32] {
    &list[..list.iter().position(|&link| link == NONE).unwrap_or(list.len())]
}

/// Marks a link of a list, or puts it in the place of the farthest that is not marked.
fn mark(list: &mut [u32], id: u32) {
    let known = list.iter().position(|&link| link != NONE && target(link) == id);
    let free = || list.iter().position(|&link| link == NONE);
    let farthest = || list.iter().rposition(|&link| link & TREE == 0);
    if let Some(at) = known.or_else(free).or_else(farthest) {
        list[at] = id | TREE;
    }
}
