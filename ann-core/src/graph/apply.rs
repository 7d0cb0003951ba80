//! Making planned changes, one small write at a time: births, and lists with edges to what was born.

use ndarray::ArrayView2;
use zerocopy::IntoBytes;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::graph::links::{self, TREE};
use crate::graph::prune::Pruner;
use crate::graph::search::Scratch;
use crate::graph::tree;
use crate::page::PageStore;
use crate::rows::{CODES, Change, LINKS, NODES, NONE, Node, State, slice};

use super::fused::Encoder;
use super::insert::Staged;
use super::plan::{Merge, merge};
use super::{Graph, Topology};

/// What a list's codes are taken from.
pub(super) enum Beside<'a> {
    /// Nothing: the node has had no list.
    Nothing,
    /// The list that the node has now, as far as that names the same nodes.
    List,
    /// They are known.
    Codes(&'a [u8]),
}

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
        self.rows.encode(&slice(vectors.row(row as usize)), &mut new)?;
        let node = self.rows.node(id)?;
        let owner = if node.is(State::Twin) { node.owner.get() } else { id };
        Ok((old == new).then_some(owner))
    }

    /// Prepares a staged row as the scratch's probe. What is kept of it, if not a vector, would know less of it.
    pub(super) fn ask_row<T: Element>(
        &self,
        vectors: &ArrayView2<'_, T>,
        staged: &Staged,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Scratch { row, probe, .. } = scratch;
        match self.rows.has_vectors() {
            true => self.rows.row_probe(staged.id, row, probe),
            false => self.rows.query(&slice(vectors.row(staged.row as usize)), 0, row, probe),
        }
    }

    /// Writes the links of a node that is about to be born, at all its levels. `codes` are those of the bottom level,
    /// if they are known.
    pub(super) fn write_links(
        &mut self,
        staged: &Staged,
        lists: impl Iterator<Item = Vec<u32>>,
        codes: Option<&[u8]>,
    ) -> Result<()> {
        for (level, list) in (0..).zip(lists) {
            let mut change = Change::default();
            let codes = codes.map_or(Beside::Nothing, Beside::Codes);
            self.change_list(&mut change, staged.place(level), &list, codes)?;
            self.rows.commit(&mut change)?;
        }
        Ok(())
    }

    /// Replaces a list, whatever it is now.
    pub(super) fn put_list(&mut self, place: (usize, u32), list: &[u32]) -> Result<()> {
        let mut change = Change::default();
        self.change_list(&mut change, place, list, Beside::List)?;
        self.rows.commit(&mut change)?;
        Ok(())
    }

    /// The codes that belong beside a list at the bottom level; nothing where there are none. What the place holds
    /// now is used unless the list is the first of a `fresh` node.
    pub(super) fn codes(
        &self,
        (array, record): (usize, u32),
        list: &[u32],
        fresh: bool,
        encoder: &mut Encoder,
    ) -> Result<Vec<u8>> {
        match &self.shape.fused {
            Some(fused) if array == LINKS => {
                let old = (!fresh).then_some(([LINKS, CODES], record));
                fused.encode(&self.rows, record, list, old, encoder)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Adds a list, and at the bottom level its codes, to a change.
    pub(super) fn change_list(
        &self,
        change: &mut Change,
        (array, record): (usize, u32),
        list: &[u32],
        beside: Beside<'_>,
    ) -> Result<()> {
        let width = self.width(u8::from(array != LINKS));
        change.put_record(self.rows.array(array)?, record, &links::encode(list, width))?;
        if self.shape.fused.is_none() || array != LINKS {
            return Ok(());
        }
        let made;
        let codes = match beside {
            Beside::Codes(codes) => codes,
            now => {
                let fresh = matches!(now, Beside::Nothing);
                made = self.codes((array, record), list, fresh, &mut Encoder::default())?;
                &made
            }
        };
        change.put_record(self.rows.array(CODES)?, record, codes)
    }

    /// A node's birth: it becomes visible, and its parent links to it, in one write.
    pub(super) fn bear_node(
        &mut self,
        id: u32,
        node: Node,
        parent: Option<u32>,
        replaces: Option<u32>,
    ) -> Result<()> {
        while !self.try_to_bear(id, node, parent, replaces)? {}
        Ok(())
    }

    /// The same, unless somebody else has changed what the birth is to change. Only the first node has no parent.
    pub(super) fn try_to_bear(
        &mut self,
        id: u32,
        node: Node,
        parent: Option<u32>,
        replaces: Option<u32>,
    ) -> Result<bool> {
        let width = self.width(0);
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
            self.change_list(&mut change, (LINKS, parent), &list, Beside::List)?;
        }
        let level = node.level;
        self.rows.birth(change, id, node, replaces, |meta| {
            let none = meta.entry.get() == NONE;
            if none || u32::from(level) > meta.entry_level.get() {
                meta.entry = id.into();
                meta.entry_level = u32::from(level).into();
            }
            none || parent.is_some() || !S::SHARED
        })
    }

    /// A twin's birth, on the chain of its equal.
    pub(super) fn bear_twin(
        &mut self,
        owner: u32,
        id: u32,
        mut node: Node,
        replaces: Option<u32>,
    ) -> Result<()> {
        node.set_state(State::Twin);
        node.owner = owner.into();
        loop {
            let mut head = self.rows.node(owner)?;
            let (nodes, mut change) = (self.rows.array(NODES)?, Change::default());
            change.expect_record(nodes, owner, head.as_bytes())?;
            node.twin = head.twin;
            head.twin = id.into();
            change.put_record(nodes, owner, head.as_bytes())?;
            if self.rows.birth(change, id, node, replaces, |_| true)? {
                return Ok(());
            }
        }
    }
}

/// Gives a node the list that was planned for it. If its marked links are not what the plan has seen, the list is
/// computed anew from what is there.
pub(super) fn apply_merge<S: PageStore, K: Topology>(
    index: &mut Graph<S, K>,
    plan: &Merge,
    codes: Option<&[u8]>,
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
        let codes = codes.filter(|_| holds).map_or(Beside::List, Beside::Codes);
        index.change_list(&mut change, (plan.array, plan.record), &list, codes)?;
        if index.rows.commit(&mut change)? {
            return Ok(());
        }
    }
}
