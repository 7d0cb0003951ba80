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
use crate::graph::bulk::Level;
use crate::graph::leaves::{Cut, Points};
use crate::graph::prune::Candidate;
use crate::graph::tree;
use crate::page::PageStore;
use crate::rows::{LINKS, NONE, UPPER};
use crate::seed::mix;

use super::Hnsw;
use super::insert::Staged;
use super::plan::{Merge, Planned};

/// Rows from which on an empty index is loaded rather than added to.
pub(super) const LOAD_ROWS: usize = 256;

/// A load under way.
pub(super) struct Load<'a, T> {
    points: Points<'a, T>,
    seed: u64,
    cut: Option<Cut>,
    level: Option<Level>,
    /// For each member of the batch, its lists from level 0 up.
    lists: Vec<Vec<Vec<Candidate>>>,
    /// Levels that have been linked.
    done: u8,
}

impl<'a, T: Element> Load<'a, T> {
    /// Begins with these rows; runs on the current thread pool.
    pub(super) fn new(points: Points<'a, T>, rows: &[u32], seed: u64) -> Load<'a, T> {
        let cut = Cut::new(&points, rows, mix(seed));
        Load { points, seed, cut: Some(cut), level: None, lists: Vec::new(), done: 0 }
    }

    /// The share of the planning that is done.
    pub(super) fn share(&self) -> f64 {
        match (&self.level, self.done) {
            (Some(level), 0) => 0.03 + 0.94 * level.share(),
            (None, 0) => 0.0,
            _ => 0.97,
        }
    }

    /// Finds the order in which the rows are to take slots: one step of it, and the order once that is known.
    pub(super) fn arrange(&mut self, pool: &ThreadPool) -> Option<Vec<u32>> {
        let cut = self.cut.as_mut()?;
        match pool.install(|| cut.step(&self.points)) {
            true => None,
            false => Some(cut.order()),
        }
    }

    /// One step of planning a batch that is all the rows; the plan once it is made.
    pub(super) fn plan<S: PageStore>(
        &mut self,
        index: &Hnsw<S>,
        batch: &[Staged],
        pool: &ThreadPool,
    ) -> Result<Option<(Vec<Planned>, Vec<Merge>)>> {
        let level = match &mut self.level {
            Some(level) => level,
            None => match self.begin(index, batch, pool) {
                Some(level) => self.level.insert(level),
                None => return Ok(Some(finish(index, batch, std::mem::take(&mut self.lists)))),
            },
        };
        if !pool.install(|| level.step(&index.rows, &self.points))?
            && let Some(level) = self.level.take()
        {
            let places: HashMap<u32, usize> =
                batch.iter().map(|staged| staged.row).zip(0..).collect();
            self.lists.resize_with(batch.len(), Vec::new);
            for (row, list) in level.order.iter().zip(level.lists) {
                self.lists[places[row]].push(list);
            }
            self.done += 1;
        }
        Ok(None)
    }

    /// The next level, if there is one.
    fn begin<S: PageStore>(
        &mut self,
        index: &Hnsw<S>,
        batch: &[Staged],
        pool: &ThreadPool,
    ) -> Option<Level> {
        let cut = self.cut.take().or_else(|| {
            let members = batch.iter().filter(|staged| staged.level >= self.done);
            let members: Vec<u32> = members.map(|staged| staged.row).collect();
            if members.is_empty() {
                return None;
            }
            let mut cut = Cut::new(&self.points, &members, mix(self.seed + u64::from(self.done)));
            pool.install(|| while cut.step(&self.points) {});
            Some(cut)
        })?;
        let end = batch.iter().map(|staged| staged.row as usize + 1).max().unwrap_or(0);
        let mut slots = vec![NONE; end];
        batch.iter().for_each(|staged| slots[staged.row as usize] = staged.id);
        let ef = index.ef_construction();
        Some(Level::new(cut, &slots, index.width(self.done), ef))
    }
}

/// Lays the tree, and divides each list into what a node is born with and what it gets later.
fn finish<S: PageStore>(
    index: &Hnsw<S>,
    batch: &[Staged],
    mut lists: Vec<Vec<Vec<Candidate>>>,
) -> (Vec<Planned>, Vec<Merge>) {
    let places: HashMap<u32, usize> = batch.iter().map(|staged| staged.id).zip(0..).collect();
    let width = index.width(0);
    let mut marks = vec![0; batch.len()];
    let mut parents = vec![None; batch.len()];
    for at in 1..batch.len() {
        // The nearest neighbour born before it that has room; the one born last has it always.
        let earlier = lists[at][0].iter().map(|link| places[&link.id]).filter(|&other| other < at);
        let room = |&other: &usize| marks[other] < tree::room(width);
        let parent = { earlier }.find(room).unwrap_or(at - 1);
        for (from, to) in [(at, parent), (parent, at)] {
            marks[from] += 1;
            mark(&mut lists[from][0], batch[to].id, width);
        }
        parents[at] = Some(batch[parent].id);
    }
    let mut planned = Vec::with_capacity(batch.len());
    let mut merges = Vec::with_capacity(batch.len());
    for (at, (staged, lists)) in batch.iter().zip(lists).enumerate() {
        let parent = parents[at];
        let mut first = Vec::with_capacity(lists.len());
        for (level, list) in lists.into_iter().enumerate() {
            let born = list.iter().filter(|link| places[&link.id] < at);
            let born: Vec<Candidate> = born
                .map(|link| Candidate { tree: parent == Some(link.id) && level == 0, ..*link })
                .collect();
            if born.len() < list.len() {
                let (array, record) = match level {
                    0 => (LINKS, staged.id),
                    level => (UPPER, staged.upper + level as u32 - 1),
                };
                let list = list.iter().map(Candidate::link).collect();
                merges.push(Merge { array, record, node: staged.id, sources: Vec::new(), list });
            }
            first.push(born);
        }
        planned.push(Planned::Node { lists: first, parent });
    }
    (planned, merges)
}

/// Marks a link, or puts it in the place of the farthest that is not marked.
fn mark(list: &mut Vec<Candidate>, id: u32, width: usize) {
    if let Some(known) = list.iter_mut().find(|link| link.id == id) {
        known.tree = true;
        return;
    }
    if list.len() == width
        && let Some(farthest) = list.iter().rposition(|link| !link.tree)
    {
        list.remove(farthest);
    }
    list.push(Candidate { distance: f32::INFINITY, id, tree: true });
}
