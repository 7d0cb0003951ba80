//! Making planned changes, one small write at a time: births, and lists with edges to what was born.

use ndarray::ArrayView2;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::graph::links::{self, TREE};
use crate::graph::prune::Pruner;
use crate::graph::tree;
use crate::page::PageStore;
use crate::rows::{Change, LINKS, NODES, NONE, Node, State, slice};

use super::insert::Staged;
use super::plan::{Merge, merge};
use super::{Graph, Topology};

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// If a key's vector is already the one in a row: the graph node on whose chain it is.
    pub(super) fn unchanged<T: Element>(
        &self,
        vectors: &ArrayView2<'_, T>,
        row: u32,
        key: u64,
    ) -> Result<Option<u32>> {
        let Some(id) = self.rows.id_of(key)? else {
            return Ok(None);
        };
        let (mut old, mut new) = (Vec::new(), Vec::new());
        self.rows.row(id, &mut old)?;
        self.rows.space.encode(&slice(vectors.row(row as usize)), &mut new);
        let node = self.rows.node(id)?;
        let owner = if node.is(State::Twin) { node.owner.get() } else { id };
        Ok((old == new).then_some(owner))
    }

    /// Writes the links of a node that is about to be born, at all its levels.
    pub(super) fn write_links(
        &mut self,
        staged: &Staged,
        lists: impl Iterator<Item = Vec<u32>>,
    ) -> Result<()> {
        for (level, list) in (0..).zip(lists) {
            self.put_list(staged.place(level), level, &list)?;
        }
        Ok(())
    }

    /// Replaces a list, whatever it is now.
    pub(super) fn put_list(
        &mut self,
        (array, record): (usize, u32),
        level: u8,
        list: &[u32],
    ) -> Result<()> {
        let mut change = Change::default();
        let bytes = links::encode(list, self.width(level));
        change.put_record(self.rows.array(array)?, record, &bytes)?;
        self.rows.commit(&mut change)?;
        Ok(())
    }

    /// A node's birth: it becomes visible, and its parent links to it, in one write.
    pub(super) fn bear_node(
        &mut self,
        id: u32,
        node: Node,
        parent: Option<u32>,
        replaces: Option<u32>,
    ) -> Result<()> {
        let width = self.width(0);
        loop {
            let mut change = Change::default();
            if let Some(parent) = parent {
                let mut list = Vec::new();
                links::read(&self.rows, LINKS, parent, &mut list)?;
                let links_array = self.rows.array(LINKS)?;
                change.expect_record(links_array, parent, &links::seen(&list, width))?;
                if !tree::mark(&mut list, id, width) {
                    let what = format!("slot {parent} has only marked links");
                    return Err(Error::corrupt(0, what));
                }
                change.put_record(links_array, parent, &links::encode(&list, width))?;
            }
            let level = node.level;
            let born = self.rows.birth(change, id, node, replaces, |meta| {
                let none = meta.entry.get() == NONE;
                if none || u32::from(level) > meta.entry_level.get() {
                    meta.entry = id.into();
                    meta.entry_level = u32::from(level).into();
                }
            })?;
            if born {
                return Ok(());
            }
        }
    }

    /// A twin's birth, on the chain of its equal.
    pub(super) fn bear_twin(
        &mut self,
        owner: u32,
        id: u32,
        mut node: Node,
        replaces: Option<u32>,
    ) -> Result<()> {
        let mut head = self.rows.node(owner)?;
        node.set_state(State::Twin);
        node.owner = owner.into();
        node.twin = head.twin;
        head.twin = id.into();
        let mut change = Change::default();
        change.put_record(self.rows.array(NODES)?, owner, zerocopy::IntoBytes::as_bytes(&head))?;
        self.rows.birth(change, id, node, replaces, |_| ())?;
        Ok(())
    }
}

/// Gives a node the list that was planned for it. If its marked links are not what the plan has seen, the list is
/// computed anew from what is there.
pub(super) fn apply_merge<S: PageStore, K: Topology>(
    index: &mut Graph<S, K>,
    plan: &Merge,
) -> Result<()> {
    let width = index.width(u8::from(plan.array != LINKS));
    loop {
        let mut now = Vec::new();
        links::read(&index.rows, plan.array, plan.record, &mut now)?;
        let marked = |list: &[u32], link| list.contains(&link);
        let holds =
            now.iter().filter(|&&link| link & TREE != 0).all(|&link| marked(&plan.list, link));
        let list = if holds {
            plan.list.clone()
        } else {
            let (mut scratch, mut pruner) = (index.scratch(), Pruner::default());
            merge(index, plan.node, plan.array, &now, &plan.sources, &mut scratch, &mut pruner)?
        };
        let mut change = Change::default();
        let array = index.rows.array(plan.array)?;
        change.expect_record(array, plan.record, &links::seen(&now, width))?;
        change.put_record(array, plan.record, &links::encode(&list, width))?;
        if index.rows.commit(&mut change)? {
            return Ok(());
        }
    }
}
