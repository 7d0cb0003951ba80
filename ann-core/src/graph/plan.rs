//! Planning a batch: where its nodes come to stand in a graph that stands still. Nothing is written.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Result;
use crate::graph::links::{self, TREE, target};
use crate::graph::pool::Pool;
use crate::graph::prune::{Candidate, Pruner};
use crate::graph::search::Scratch;
use crate::graph::tree;
use crate::index::Cost;
use crate::page::PageStore;
use crate::rows::{LINKS, Matcher, NONE, Rows};

use super::insert::Staged;
use super::query::{descend, entry, place, search_level};
use super::{Graph, Topology};

/// Lists to which one planning step adds edges, at most, and coordinates of their nodes.
const MERGED: usize = 16_384;
const MERGED_FLOATS: usize = 1 << 22;

/// The way down the hierarchy to a row of the batch: the nodes at levels 4 to 1, and the row's place in the batch.
/// Rows with neighbouring routes are near one another, and planned one after the other they find most of what they
/// read in the cache; since the graph stands still, the order is free.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    nodes: [u32; 4],
    pub at: u32,
}

pub(super) enum Planned {
    /// Neighbours by level.
    Node { lists: Vec<Vec<Candidate>>, parent: Option<u32> },
    /// Equal to this node of the graph.
    Twin(u32),
}

/// An edge back to a new node, and the rank of that in the order of planning.
struct Edge {
    array: usize,
    record: u32,
    node: u32,
    source: Candidate,
    rank: u32,
}

impl Edge {
    fn place(&self) -> (usize, u32) {
        (self.array, self.record)
    }
}

/// Edges that a node gets to new nodes, and its list with them.
pub(super) struct Merge {
    pub array: usize,
    pub record: u32,
    pub node: u32,
    pub sources: Vec<Candidate>,
    pub list: Vec<u32>,
}

/// The routes to the rows of a batch, sorted; `ask` as for [`plan_node`].
pub(super) fn plan_routes<S: PageStore, K: Topology>(
    index: &Graph<S, K>,
    batch: &[Staged],
    ask: &(impl Fn(&Staged, &mut Scratch) -> Result<()> + Sync),
) -> Result<Vec<Route>> {
    let rows = &index.rows;
    let entry = entry(rows)?;
    let routes: Result<Vec<Route>> = (0..batch.len() as u32)
        .into_par_iter()
        .map_init(
            || index.scratch(),
            |scratch, at| {
                ask(&batch[at as usize], scratch)?;
                route(rows, entry, at, scratch)
            },
        )
        .collect();
    let mut routes = routes?;
    routes.par_sort_unstable();
    Ok(routes)
}

/// The route of a row that is the scratch's probe.
pub(super) fn route<S: PageStore>(
    rows: &Rows<S>,
    entry: Option<(u32, u8)>,
    at: u32,
    scratch: &mut Scratch,
) -> Result<Route> {
    let mut nodes = [NONE; 4];
    let Some((mut nearest, top)) = entry else { return Ok(Route { nodes, at }) };
    for level in (1..=top).rev() {
        nearest = descend(rows, scratch, (nearest, level), level, &mut Cost::default())?;
        if let Some(node) = nodes.get_mut(4usize.wrapping_sub(level as usize)) {
            *node = nearest;
        }
    }
    Ok(Route { nodes, at })
}

/// Finds the neighbours of a staged row at each of its levels, among `pool` candidates. `ask` prepares it as the
/// scratch's probe.
pub(super) fn plan_node<S: PageStore, K: Topology>(
    index: &Graph<S, K>,
    (staged, route): (&Staged, &Route),
    pool: usize,
    scratch: &mut Scratch,
    pruner: &mut Pruner,
    ask: &(impl Fn(&Staged, &mut Scratch) -> Result<()> + Sync),
) -> Result<Planned> {
    let rows = &index.rows;
    ask(staged, scratch)?;
    let Some((start, top)) = entry(rows)? else {
        return Ok(Planned::Node {
            lists: vec![Vec::new(); 1 + staged.level as usize],
            parent: None,
        });
    };
    if index.shape.fused.is_some() {
        return plan_by_codes(index, staged, pool, scratch, pruner);
    }
    let mut lists = vec![Vec::new(); 1 + staged.level as usize];
    match top > staged.level {
        true if staged.level > 0 => {
            descend(rows, scratch, (start, top), staged.level + 1, &mut Cost::default())?;
        }
        true => scratch.batch.score_only(rows, &scratch.probe, route.nodes[3])?,
        false if top == 0 => start_from_sample(index, staged.id, start, scratch)?,
        false => scratch.batch.score_only(rows, &scratch.probe, start)?,
    }
    for level in (0..=top.min(staged.level)).rev() {
        scratch.pool.reset(pool, f32::NEG_INFINITY, false);
        if rows.meta.tombstones.get() == 0 {
            search_level(rows, scratch, level, &mut |_| Ok(true))?;
        } else {
            let live = &mut |id| rows.admits(id, &Matcher::All);
            search_level(rows, scratch, level, live)?;
        }
        let mut list = candidates(&scratch.pool);
        if level == 0
            && let Some(owner) = equal_to(rows, &list, scratch, staged.id)?
        {
            return Ok(Planned::Twin(owner));
        }
        // The next level's search starts from all that this one found.
        (scratch.batch.distances, scratch.batch.ids) = scratch.pool.all().unzip();
        pruner.select(rows, &mut list, index.width(level))?;
        lists[level as usize] = list;
    }
    if lists[0].is_empty() {
        lists[0].extend(any(&scratch.pool));
    }
    Ok(Planned::Node { lists, parent: None })
}

/// [`plan_node`] where lists have codes: the search goes by these, and measures what it expands.
fn plan_by_codes<S: PageStore, K: Topology>(
    index: &Graph<S, K>,
    staged: &Staged,
    pool: usize,
    scratch: &mut Scratch,
    pruner: &mut Pruner,
) -> Result<Planned> {
    // Estimates pass over some of the nearest: half as many candidates again make up for it.
    let (rows, ef) = (&index.rows, pool + pool / 2);
    rows.row(staged.id, &mut scratch.row)?;
    index.search_pool(scratch, &Matcher::All, (ef, ef), f32::NEG_INFINITY, false)?;
    let mut list = candidates(&scratch.found);
    if let Some(owner) = equal_to(rows, &list, scratch, staged.id)? {
        return Ok(Planned::Twin(owner));
    }
    pruner.select(rows, &mut list, index.width(0))?;
    if list.is_empty() {
        list.extend(any(&scratch.found));
    }
    Ok(Planned::Node { lists: vec![list], parent: None })
}

/// What may be linked to, nearest first.
fn candidates(pool: &Pool) -> Vec<Candidate> {
    let found = pool.admitted();
    let mut list: Vec<Candidate> =
        found.map(|(distance, id)| Candidate { distance, id, tree: false }).collect();
    list.sort_unstable_by(Candidate::order);
    list
}

/// If only removed vectors were found: one of those to hang on to, rather than on nothing.
fn any(pool: &Pool) -> Option<Candidate> {
    pool.all().next().map(|(distance, id)| Candidate { distance, id, tree: false })
}

/// Fills the batch with what a search for the stored row `id` would start from in a graph without levels, scored.
fn start_from_sample<S: PageStore, K: Topology>(
    index: &Graph<S, K>,
    id: u32,
    start: u32,
    scratch: &mut Scratch,
) -> Result<()> {
    let rows = &index.rows;
    if rows.has_vectors() {
        let Scratch { row, probe, .. } = scratch;
        rows.row(id, row)?;
        if rows.goes_by_codes() {
            rows.ask(row, &mut probe.asked)?;
        }
    }
    index.enter(scratch, (start, 0), &mut Cost::default())?;
    scratch.batch.score(rows, &scratch.probe)
}

/// The candidate whose vector is that of `id`, for which the scratch's probe was prepared.
fn equal_to<S: PageStore>(
    rows: &Rows<S>,
    candidates: &[Candidate],
    scratch: &Scratch,
    id: u32,
) -> Result<Option<u32>> {
    let own = rows.score_one(&scratch.probe, id)?;
    // Equal vectors are equally far from anything, to the last bit; others rarely are.
    let (mut vector, mut other) = (Vec::new(), Vec::new());
    for candidate in candidates.iter().filter(|candidate| candidate.distance == own).take(64) {
        if vector.is_empty() {
            rows.row(id, &mut vector)?;
        }
        rows.row(candidate.id, &mut other)?;
        let bytes = rows.telling_bytes();
        if vector.get(..bytes) == other.get(..bytes) {
            return Ok(Some(candidate.id));
        }
    }
    Ok(None)
}

/// The distance between two stored rows, as graphs measure it.
fn distance_between<S: PageStore, K: Topology>(index: &Graph<S, K>, a: u32, b: u32) -> Result<f32> {
    let rows = &index.rows;
    let mut scratch = Scratch::default();
    rows.row_probe(a, &mut scratch.row, &mut scratch.probe)?;
    rows.score_one(&scratch.probe, b)
}

/// A node's list with edges to `sources` (sorted) added, pruned if they are too many.
pub(super) fn merge<S: PageStore, K: Topology>(
    index: &Graph<S, K>,
    node: u32,
    array: usize,
    old: &[u32],
    sources: &[Candidate],
    scratch: &mut Scratch,
    pruner: &mut Pruner,
) -> Result<Vec<u32>> {
    let width = index.width(usize::from(array != LINKS) as u8);
    let known = |id: u32| sources.iter().any(|source| source.id == id);
    let kept = old.iter().copied().filter(|&link| !known(target(link)));
    if kept.clone().count() + sources.len() <= width {
        return Ok(kept.chain(sources.iter().map(Candidate::link)).collect());
    }
    let mut candidates = measured(index, node, kept, sources, scratch, pruner)?;
    reduce(index, &mut candidates, width, pruner)?;
    Ok(candidates.iter().map(Candidate::link).collect())
}

/// What a node's list is to be chosen from, nearest first: links that it has, and `sources`. Their rows are copied.
pub(super) fn measured<S: PageStore, K: Topology>(
    index: &Graph<S, K>,
    node: u32,
    links: impl Iterator<Item = u32> + Clone,
    sources: &[Candidate],
    scratch: &mut Scratch,
    pruner: &mut Pruner,
) -> Result<Vec<Candidate>> {
    let rows = &index.rows;
    let Scratch { batch, probe, row, .. } = scratch;
    batch.ids.clear();
    batch.ids.extend(links.clone().map(target));
    let all = batch.ids.iter().copied().chain(sources.iter().map(|source| source.id));
    pruner.copies.take(rows, all, row)?;
    pruner.copies.probe(rows, node, row, probe)?;
    pruner.copies.score(rows, probe, batch)?;
    let mut candidates: Vec<Candidate> = links
        .zip(&batch.distances)
        .map(|(link, &distance)| Candidate { distance, id: target(link), tree: link & TREE != 0 })
        .chain(sources.iter().copied())
        .collect();
    candidates.sort_unstable_by(Candidate::order);
    Ok(candidates)
}

/// Chooses a list from [`measured`] candidates that are too many.
pub(super) fn reduce<S: PageStore, K: Topology>(
    index: &Graph<S, K>,
    candidates: &mut Vec<Candidate>,
    width: usize,
    pruner: &mut Pruner,
) -> Result<()> {
    match candidates.len() <= width + width / 4 {
        true => pruner.thin(&index.rows, candidates, width),
        false => pruner.select(&index.rows, candidates, width),
    }
}

/// Chooses the parent of a new node, which links to `bottom`, and marks the link to it there.
pub(super) fn choose_parent<S: PageStore, K: Topology>(
    index: &Graph<S, K>,
    node: u32,
    bottom: &mut Vec<Candidate>,
    counts: &mut tree::Counts,
) -> Result<u32> {
    let width = index.width(0);
    let id = counts.claim(&index.rows, bottom.iter().map(|c| c.id), width, None)?;
    match bottom.iter_mut().find(|candidate| candidate.id == id) {
        Some(candidate) => candidate.tree = true,
        None => {
            let distance = distance_between(index, node, id)?;
            bottom.truncate(width - 1);
            bottom.push(Candidate { distance, id, tree: true });
        }
    }
    Ok(id)
}

/// The lists that edges back to the nodes of a batch change.
pub(super) struct Merges {
    /// Those edges by list, and where the ones of each list are.
    edges: Vec<Edge>,
    groups: Vec<Range<usize>>,
    /// The lists that are known, one for each of the first groups.
    pub planned: Vec<Merge>,
}

impl Merges {
    /// Chooses parents, then groups the edges back to the new nodes. Runs on the current thread pool.
    pub(super) fn new<S: PageStore, K: Topology>(
        index: &Graph<S, K>,
        batch: &[Staged],
        ranks: &[u32],
        planned: &mut [Planned],
    ) -> Result<Merges> {
        let mut counts = tree::Counts::default();
        let mut edges: Vec<Edge> = Vec::new();
        for (staged, &rank) in batch.iter().zip(ranks) {
            let Planned::Node { lists, parent } = &mut planned[rank as usize] else { continue };
            if let Some(bottom) = lists.first_mut().filter(|list| !list.is_empty()) {
                *parent = Some(choose_parent(index, staged.id, bottom, &mut counts)?);
            }
            for (level, list) in lists.iter().enumerate() {
                for &Candidate { distance, id, tree } in list {
                    let (array, record) = place(&index.rows, id, level as u8)?;
                    let source = Candidate { distance, id: staged.id, tree };
                    edges.push(Edge { array, record, node: id, source, rank });
                }
            }
        }
        edges
            .par_sort_unstable_by(|a, b| a.place().cmp(&b.place()).then(a.source.order(&b.source)));
        let mut groups = Vec::new();
        for group in edges.chunk_by(|a, b| a.place() == b.place()) {
            let from = groups.last().map_or(0, |last: &Range<usize>| last.end);
            groups.push(from..from + group.len());
        }
        // Nodes that rows near one another link to are near one another too.
        groups.par_sort_by_key(|group| edges[group.clone()].iter().map(|edge| edge.rank).min());
        Ok(Merges { edges, groups, planned: Vec::new() })
    }

    /// Whether all lists are known.
    pub(super) fn are_planned(&self) -> bool {
        self.planned.len() == self.groups.len()
    }

    /// Computes some of the lists. Runs on the current thread pool.
    pub(super) fn plan<S: PageStore, K: Topology>(&mut self, index: &Graph<S, K>) -> Result<()> {
        let next = &self.groups[self.planned.len()..];
        let count = (MERGED_FLOATS / index.rows.space.dim).clamp(64, MERGED);
        let merges: Result<Vec<Merge>> = next[..next.len().min(count)]
            .par_iter()
            .with_min_len(64)
            .map_init(
                || (index.scratch(), Pruner::default()),
                |(scratch, pruner), group| {
                    let group = &self.edges[group.clone()];
                    let Edge { array, record, node, .. } = group[0];
                    let sources: Vec<Candidate> = group.iter().map(|edge| edge.source).collect();
                    let old = &mut scratch.links;
                    let mut list = std::mem::take(old);
                    links::read(&index.rows, array, record, &mut list)?;
                    let merged = merge(index, node, array, &list, &sources, scratch, pruner)?;
                    scratch.links = list;
                    Ok(Merge { array, record, node, sources, list: merged })
                },
            )
            .collect();
        self.planned.extend(merges?);
        Ok(())
    }
}
