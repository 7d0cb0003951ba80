//! The invariants of the graph, checked one by one.

use hashbrown::HashSet;

use crate::error::{Error, Result};
use crate::graph::links::{self, TREE, target};
use crate::page::PageStore;
use crate::rows::{CODES, LINKS, Matcher, Node, State, UPPER, UPPER_CODES};

use super::fused::Encoder;
use super::query::{entry, place};
use super::{Graph, Topology};

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// Links name nodes of the graph, once each, at levels that those have; marked edges stand at both ends and
    /// connect everything that a search can return.
    pub(super) fn verify_graph(&self) -> Result<()> {
        let rows = &self.rows;
        let mut list = Vec::new();
        let mut other = Vec::new();
        let mut names = HashSet::new();
        for id in 0..rows.slots() {
            let node = rows.node(id)?;
            if !in_graph(&node) {
                continue;
            }
            for level in 0..=node.level {
                let (array, record) = place(rows, id, level)?;
                links::read(rows, array, record, &mut list)?;
                names.clear();
                for &link in &list {
                    let neighbour = target(link);
                    let bad = |what: &str| {
                        let what = format!("its link to slot {neighbour} at level {level} {what}");
                        Err(rows.corrupt_node(id, what))
                    };
                    let to = rows.node(neighbour)?;
                    if neighbour == id {
                        return bad("is to itself");
                    }
                    if !names.insert(neighbour) {
                        return bad("stands there twice");
                    }
                    if !in_graph(&to) {
                        return bad("leads out of the graph");
                    }
                    if to.level < level {
                        return bad("is above that slot's levels");
                    }
                    if link & TREE != 0 {
                        if level > 0 {
                            return bad("is marked, above the bottom level");
                        }
                        links::read(rows, LINKS, neighbour, &mut other)?;
                        if !other.contains(&(id | TREE)) {
                            return bad("is marked at one end only");
                        }
                    }
                }
            }
        }
        self.verify_codes()?;
        self.verify_reach()
    }

    /// The codes beside a list are those of its links, seen from its node; entry points are nodes of the graph.
    fn verify_codes(&self) -> Result<()> {
        let rows = &self.rows;
        if rows.meta.by_node == 1 {
            return self.verify_by_node(|id| Ok(in_graph(&rows.node(id)?)));
        }
        let Some(fused) = &self.shape.fused else { return Ok(()) };
        let (mut list, mut encoder) = (Vec::new(), Encoder::default());
        let mut check = |codes: usize, record: u32, node: u32, list: &[u32]| {
            let right = fused.encode(rows, node, list, None, &mut encoder)?;
            match rows.record(codes, record, |bytes| bytes == right)? {
                true => Ok(()),
                false => {
                    let what = format!("the codes of list {record} are not those of its links");
                    Err(rows.corrupt_node(node, what))
                }
            }
        };
        for id in 0..rows.slots() {
            if in_graph(&rows.node(id)?) {
                links::read(rows, LINKS, id, &mut list)?;
                check(CODES, id, id, &list)?;
            }
        }
        let middle = rows.meta.entry.get();
        for record in 0..rows.meta.upper.get() {
            links::read(rows, UPPER, record, &mut list)?;
            check(UPPER_CODES, record, middle, &list)?;
            for &id in &list {
                if !in_graph(&rows.node(id)?) {
                    return Err(rows.corrupt_node(id, "it is an entry point".into()));
                }
            }
        }
        Ok(())
    }

    /// Everything that can be returned is reached from the entry point over marked edges.
    fn verify_reach(&self) -> Result<()> {
        let rows = &self.rows;
        let mut met = vec![false; rows.slots() as usize];
        let mut stack = Vec::new();
        let mut list = Vec::new();
        match entry(rows)? {
            Some((id, _)) => stack.push(id),
            None if rows.len() > 0 => return Err(Error::corrupt(0, "there is no entry point")),
            None => {}
        }
        while let Some(id) = stack.pop() {
            if std::mem::replace(&mut met[id as usize], true) {
                continue;
            }
            links::read(rows, LINKS, id, &mut list)?;
            stack.extend(list.iter().filter(|&&link| link & TREE != 0).map(|&link| target(link)));
        }
        for id in 0..rows.slots() {
            let node = rows.node(id)?;
            if in_graph(&node) && !met[id as usize] && rows.admits(id, &Matcher::All)? {
                return Err(rows.corrupt_node(id, "it cannot be reached".into()));
            }
        }
        Ok(())
    }
}

fn in_graph(node: &Node) -> bool {
    node.is(State::Live) || node.is(State::Tombstone)
}
