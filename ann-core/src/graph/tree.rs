//! The spanning tree that keeps a graph connected.
//!
//! Pruning makes a graph good to search but may cut a node off. So each node but the first has a *parent*: the
//! nearest of its neighbours that has room. The edge stands in both link lists, marked, and pruning leaves marked
//! edges alone. Marked edges form a tree over all nodes, hence every node can be reached from every other, always.
//! A node takes new children only while at most half of its list is marked; there are twice as many marked links
//! as nodes, so one with room is never far.

use hashbrown::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::page::PageStore;
use crate::rows::{LINKS, Rows};

use super::links::{self, TREE, target};

/// Marked links, of a list of `width`, up to which a node takes another child. At least three, a parent and two
/// children, or a tree could only grow at its ends.
pub(crate) const fn room(width: usize) -> usize {
    if width / 2 > 3 { width / 2 } else { 3 }
}

/// Counts marked links, edges planned but not yet made included.
#[derive(Default)]
pub(crate) struct Counts {
    known: HashMap<u32, usize>,
    list: Vec<u32>,
}

impl Counts {
    fn count<S: PageStore>(&mut self, rows: &Rows<S>, id: u32) -> Result<usize> {
        if let Some(&count) = self.known.get(&id) {
            return Ok(count);
        }
        links::read(rows, LINKS, id, &mut self.list)?;
        let count = self.list.iter().filter(|&&link| link & TREE != 0).count();
        self.known.insert(id, count);
        Ok(count)
    }

    /// Claims a place for one more marked link at the first of `candidates` that has room, or at the nearest
    /// node in the tree around the first of them; `avoid` is never chosen nor walked through.
    pub(crate) fn claim<S: PageStore>(
        &mut self,
        rows: &Rows<S>,
        candidates: impl Iterator<Item = u32> + Clone,
        width: usize,
        avoid: Option<u32>,
    ) -> Result<u32> {
        for id in candidates.clone() {
            if self.count(rows, id)? < room(width) {
                return Ok(self.take(id));
            }
        }
        let mut queue: Vec<u32> = candidates.take(1).collect();
        let mut met: HashSet<u32> = queue.iter().copied().chain(avoid).collect();
        let mut at = 0;
        while at < queue.len() {
            let id = queue[at];
            at += 1;
            if Some(id) != avoid && self.count(rows, id)? < room(width) {
                return Ok(self.take(id));
            }
            links::read(rows, LINKS, id, &mut self.list)?;
            for &link in self.list.iter().filter(|&&link| link & TREE != 0) {
                if met.insert(target(link)) {
                    queue.push(target(link));
                }
            }
        }
        Err(Error::corrupt(0, "no node of the graph has room for another child"))
    }

    fn take(&mut self, id: u32) -> u32 {
        *self.known.entry(id).or_insert(0) += 1;
        id
    }

    /// Takes note that a node's list has lost a marked link.
    pub(crate) fn release(&mut self, id: u32) {
        if let Some(count) = self.known.get_mut(&id) {
            *count = count.saturating_sub(1);
        }
    }
}

/// Adds a marked link to a list: marks the link if it is there, appends it, or puts it in the place of the last
/// link that is not marked. False if every link is marked.
pub(crate) fn mark(list: &mut Vec<u32>, id: u32, width: usize) -> bool {
    if let Some(link) = list.iter_mut().find(|link| target(**link) == id) {
        *link |= TREE;
        return true;
    }
    if list.len() < width {
        list.push(id | TREE);
        return true;
    }
    match list.iter_mut().rev().find(|link| **link & TREE == 0) {
        Some(link) => {
            *link = id | TREE;
            true
        }
        None => false,
    }
}
