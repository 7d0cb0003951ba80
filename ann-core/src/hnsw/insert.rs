//! Insertion in batches, parallel and yet the same for any number of threads.
//!
//! A batch is at most 2 % of the graph. Its vectors are stored first (*stage*), where nothing refers to them yet.
//! Then each searches the graph, which stands still, for its neighbours; the edges back to it are grouped by the
//! node that they start from, and each such node gets its new list computed (*plan*: parallel, nothing written).
//! At last the changes are made one small write at a time (*apply*): a new node's own links; its birth, in which it
//! becomes visible and its parent in the spanning tree links to it; then the other edges back. After each of these
//! writes the graph is valid and connected.
//!
//! A vector equal to one in the graph does not enter it: it becomes a *twin*, on a chain that hangs on its equal.
//! So any number of identical vectors costs a search nothing and leaves the graph's edges to different ones.
//!
//! An [`Insertion`] does all that in steps of bounded length, the planning ones on a shared reference, so that a
//! caller with a lock can let searches in between.

use std::hash::{DefaultHasher, Hasher};

use hashbrown::{HashMap, HashSet};
use ndarray::ArrayView2;
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::graph::links::{self, TREE, target};
use crate::graph::prune::{Candidate, Pruner};
use crate::graph::search::Scratch;
use crate::graph::tree;
use crate::index::Cost;
use crate::page::PageStore;
use crate::rows::{
    Change, LINKS, Matcher, NODES, NONE, Node, Rows, State, UPPER, VECTORS, check_rows, slice,
};
use crate::threads;

use super::Hnsw;
use super::search::{descend, entry, place, search_level};

/// A batch is at most this part of the graph.
const BATCH_SHARE: usize = 50;
/// And at most this many rows.
const MAX_BATCH: usize = 16_384;
/// Rows that one planning step searches for.
const PLAN_ROWS: usize = 512;
/// Bytes of vectors that one writing step stores.
const STAGE_BYTES: usize = 1 << 20;
/// Records that one writing step changes.
const APPLY_RECORDS: usize = 1024;

/// Rows on their way into an [`Hnsw`] index, for callers that share the index under a lock: until
/// [`Insertion::is_done`], take the step that [`Insertion::needs_write`] names. The index must not be changed by
/// others in between; it can be searched. [`crate::Index::add`] does the same with an index of one's own.
pub struct Insertion<'a, T> {
    pool: ThreadPool,
    vectors: ArrayView2<'a, T>,
    keys: Vec<u64>,
    replace: bool,
    /// Rows in the order of insertion, and how many of them have been staged.
    order: Vec<u32>,
    next: usize,
    /// Rows equal to an earlier one, with that one.
    repeats: Vec<(u32, u32)>,
    /// Where the rows that have repeats are.
    owners: HashMap<u32, u32>,
    batch: Vec<Staged>,
    staged: usize,
    /// The batch in the order in which it is planned, and the plans in that order.
    routes: Vec<Route>,
    planned: Vec<Planned>,
    /// Where in that order each row of the batch is.
    ranks: Vec<u32>,
    merges: Option<Vec<Merge>>,
    born: usize,
    merged: usize,
    done: usize,
}

/// A row whose vector is stored, but to which nothing refers.
struct Staged {
    row: u32,
    id: u32,
    level: u8,
    upper: u32,
}

/// The way down the hierarchy to a row of the batch: the nodes at levels 4 to 1, and the row's place in the batch.
/// Rows with neighbouring routes are near one another, and planned one after the other they find most of what they
/// read in the cache; since the graph stands still, the order is free.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    nodes: [u32; 4],
    at: u32,
}

enum Planned {
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
struct Merge {
    array: usize,
    record: u32,
    node: u32,
    sources: Vec<Candidate>,
    list: Vec<u32>,
}

impl<'a, T: Element> Insertion<'a, T> {
    /// Checks rows that are to be added, or with `replace` to take the place of those that their keys have now.
    /// Nothing is changed yet. `threads` 0 means one for each core.
    ///
    /// # Errors
    /// As [`crate::Index::add`] and [`crate::Index::update`].
    pub fn new<S: PageStore>(
        index: &Hnsw<S>,
        vectors: ArrayView2<'a, T>,
        keys: Option<&[u64]>,
        replace: bool,
        threads: usize,
    ) -> Result<Insertion<'a, T>> {
        let pool = threads::pool(threads)?;
        pool.install(|| check_rows(&index.rows.space, &vectors))?;
        let count = vectors.nrows();
        let keys = match keys {
            Some(keys) if replace => index.rows.known_keys(count, keys)?,
            keys => index.rows.new_keys(count, keys)?,
        };
        let mut order: Vec<u32> = (0..count as u32).collect();
        // Neighbours in the input must not be neighbours in time: batches would miss what they have in common.
        let seed = index.rows.meta.seed.get();
        order.sort_by_cached_key(|&row| mix(seed ^ mix(u64::from(row) + 1)));
        let repeats = pool.install(|| find_repeats(&vectors, &mut order));
        let mut owners: HashMap<u32, u32> =
            repeats.iter().map(|&(_, first)| (first, NONE)).collect();
        let mut done = 0;
        if replace {
            // A vector that stays as it is needs no new slot.
            let mut unchanged = Vec::new();
            for &row in &order {
                if let Some(owner) = index.unchanged(&vectors, row, keys[row as usize])? {
                    owners.entry(row).and_modify(|place| *place = owner);
                    unchanged.push(row);
                }
            }
            done = unchanged.len();
            let unchanged: HashSet<u32> = unchanged.into_iter().collect();
            order.retain(|row| !unchanged.contains(row));
        }
        Ok(Insertion {
            pool,
            vectors,
            keys,
            replace,
            order,
            next: 0,
            repeats,
            owners,
            batch: Vec::new(),
            staged: 0,
            routes: Vec::new(),
            ranks: Vec::new(),
            planned: Vec::new(),
            merges: None,
            born: 0,
            merged: 0,
            done,
        })
    }

    /// The keys of the rows, in the order of the rows.
    pub fn keys(&self) -> &[u64] {
        &self.keys
    }

    /// Rows that are in the index.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Whether all rows are.
    pub fn is_done(&self) -> bool {
        self.done == self.keys.len() && self.batch.is_empty()
    }

    /// Whether the next step is [`Insertion::write_step`]; else it is [`Insertion::plan_step`].
    pub fn needs_write(&self) -> bool {
        self.batch.is_empty() || self.staged < self.batch.len() || self.merges.is_some()
    }

    /// One step of planning, a fraction of a second long.
    ///
    /// # Errors
    /// Those of the store; the index is valid, and holds the rows done so far.
    pub fn plan_step<S: PageStore>(&mut self, index: &Hnsw<S>) -> Result<()> {
        let Insertion { pool, batch, routes, planned, ranks, .. } = self;
        if planned.is_empty() {
            *routes = pool.install(|| plan_routes(index, batch))?;
            ranks.clear();
            ranks.resize(batch.len(), 0);
            (0..).zip(routes.iter()).for_each(|(rank, route)| ranks[route.at as usize] = rank);
        }
        if planned.len() == batch.len() {
            self.merges = Some(pool.install(|| plan_merges(index, batch, ranks, planned))?);
            return Ok(());
        }
        let next = &routes[planned.len()..];
        let next = &next[..next.len().min(PLAN_ROWS)];
        let found: Result<Vec<Planned>> = pool.install(|| {
            next.par_iter()
                .map_init(
                    || (index.scratch(), Pruner::default()),
                    |(scratch, pruner), route| {
                        plan_node(index, &batch[route.at as usize], route, scratch, pruner)
                    },
                )
                .collect()
        });
        planned.extend(found?);
        Ok(())
    }

    /// One step of writing, a few milliseconds long.
    ///
    /// # Errors
    /// Those of the store; the index is valid, and holds the rows done so far.
    pub fn write_step<S: PageStore>(&mut self, index: &mut Hnsw<S>) -> Result<()> {
        if self.batch.is_empty() {
            if self.next < self.order.len() {
                return self.begin_batch(index);
            }
            return self.add_repeats(index);
        }
        if self.staged < self.batch.len() {
            return self.stage(index);
        }
        if self.born < self.batch.len() {
            let end = self.batch.len().min(self.born + APPLY_RECORDS);
            while self.born < end {
                self.bear(index, self.born)?;
                self.born += 1;
            }
            return Ok(());
        }
        let merges = self.merges.as_deref().unwrap_or_default();
        let end = merges.len().min(self.merged + APPLY_RECORDS);
        for merge in &merges[self.merged..end] {
            apply_merge(index, merge)?;
        }
        self.merged = end;
        if end == merges.len() {
            self.batch.clear();
            self.planned.clear();
            self.merges = None;
            (self.staged, self.born, self.merged) = (0, 0, 0);
        }
        Ok(())
    }

    /// Takes slots for the next batch.
    fn begin_batch<S: PageStore>(&mut self, index: &mut Hnsw<S>) -> Result<()> {
        let rows = &mut index.rows;
        let present = rows.len() + rows.meta.tombstones.get() as usize;
        let size = (present / BATCH_SHARE).clamp(1, MAX_BATCH).min(self.order.len() - self.next);
        if self.next == 0 {
            // All at once, so that each array is one run of pages.
            let taken = present + self.order.len();
            let end = u64::from(rows.slots()).max(taken as u64);
            rows.reserve(VECTORS, end)?;
            rows.reserve(LINKS, end)?;
            rows.reserve(NODES, end)?;
        }
        let ids = rows.free_ids(size)?;
        let rows = &index.rows;
        let mut upper = rows.meta.upper.get();
        for (&row, &id) in self.order[self.next..self.next + size].iter().zip(&ids) {
            let (level, first) = if id < rows.slots() {
                let old = rows.node(id)?;
                (old.level, old.upper.get())
            } else {
                let level = index.level(id);
                upper += u32::from(level);
                (level, upper - u32::from(level))
            };
            self.batch.push(Staged { row, id, level, upper: first });
        }
        let rows = &mut index.rows;
        let end = ids.last().map_or(0, |&id| u64::from(id) + 1);
        for array in [VECTORS, LINKS, NODES] {
            rows.reserve(array, end)?;
        }
        rows.reserve(UPPER, u64::from(upper))?;
        self.next += size;
        Ok(())
    }

    fn stage<S: PageStore>(&mut self, index: &mut Hnsw<S>) -> Result<()> {
        let mut row = Vec::new();
        let mut bytes = 0;
        while self.staged < self.batch.len() && bytes < STAGE_BYTES {
            let staged = &self.batch[self.staged];
            row.clear();
            index.rows.space.encode(&slice(self.vectors.row(staged.row as usize)), &mut row);
            index.rows.put_row(staged.id, &row)?;
            index.rows.raise_norm(&row)?;
            bytes += row.len();
            self.staged += 1;
        }
        Ok(())
    }

    /// Makes one row of the batch visible.
    fn bear<S: PageStore>(&mut self, index: &mut Hnsw<S>, at: usize) -> Result<()> {
        let staged = &self.batch[at];
        let key = self.keys[staged.row as usize];
        let old = if self.replace { index.rows.id_of(key)? } else { None };
        let owner = match &self.planned[self.ranks[at] as usize] {
            Planned::Node { lists, parent } => {
                index.write_links(staged, lists)?;
                let node = Node::new(key, State::Live, staged.level, staged.upper);
                index.bear_node(staged.id, node, *parent, old)?;
                staged.id
            }
            &Planned::Twin(owner) => {
                index.bear_twin(owner, staged.id, key, staged.level, staged.upper, old)?
            }
        };
        if let Some(place) = self.owners.get_mut(&staged.row) {
            *place = owner;
        }
        self.done += 1;
        Ok(())
    }

    /// Adds rows that are equal to earlier ones.
    fn add_repeats<S: PageStore>(&mut self, index: &mut Hnsw<S>) -> Result<()> {
        let mut row = Vec::new();
        for _ in 0..APPLY_RECORDS {
            let Some((repeat, first)) = self.repeats.pop() else {
                return Ok(());
            };
            let key = self.keys[repeat as usize];
            let old = if self.replace { index.rows.id_of(key)? } else { None };
            let owner = self.owners.get(&first).copied().unwrap_or(NONE);
            if index.unchanged(&self.vectors, repeat, key)?.is_some() {
                self.done += 1;
                continue;
            }
            let rows = &mut index.rows;
            let id = rows.free_ids(1)?[0];
            let (level, upper) = match id < rows.slots() {
                true => (rows.node(id)?.level, rows.node(id)?.upper.get()),
                false => (0, 0),
            };
            for array in [VECTORS, LINKS, NODES] {
                rows.reserve(array, u64::from(id) + 1)?;
            }
            row.clear();
            rows.space.encode(&slice(self.vectors.row(repeat as usize)), &mut row);
            rows.put_row(id, &row)?;
            index.bear_twin(owner, id, key, level, upper, old)?;
            self.done += 1;
        }
        Ok(())
    }
}

/// Chooses parents, then groups the edges back to the new nodes and computes the lists that they change.
fn plan_merges<S: PageStore>(
    index: &Hnsw<S>,
    batch: &[Staged],
    ranks: &[u32],
    planned: &mut [Planned],
) -> Result<Vec<Merge>> {
    let rows = &index.rows;
    let width = index.width(0);
    let mut counts = tree::Counts::default();
    let mut edges: Vec<Edge> = Vec::new();
    for (staged, &rank) in batch.iter().zip(ranks) {
        let Planned::Node { lists, parent } = &mut planned[rank as usize] else { continue };
        if let Some(bottom) = lists.first_mut().filter(|list| !list.is_empty()) {
            let id = counts.claim(rows, bottom.iter().map(|c| c.id), width, None)?;
            match bottom.iter_mut().find(|candidate| candidate.id == id) {
                Some(candidate) => candidate.tree = true,
                None => {
                    let distance = distance_between(index, staged.id, id)?;
                    bottom.truncate(width - 1);
                    bottom.push(Candidate { distance, id, tree: true });
                }
            }
            *parent = Some(id);
        }
        for (level, list) in lists.iter().enumerate() {
            for &Candidate { distance, id, tree } in list {
                let (array, record) = place(rows, id, level as u8)?;
                let source = Candidate { distance, id: staged.id, tree };
                edges.push(Edge { array, record, node: id, source, rank });
            }
        }
    }
    edges.par_sort_unstable_by(|a, b| a.place().cmp(&b.place()).then(a.source.order(&b.source)));
    let mut groups: Vec<&[Edge]> = edges.chunk_by(|a, b| a.place() == b.place()).collect();
    // Nodes that rows near one another link to are near one another too.
    groups.par_sort_by_key(|group| group.iter().map(|edge| edge.rank).min());
    groups
        .par_iter()
        .with_min_len(64)
        .map_init(
            || (index.scratch(), Pruner::default()),
            |(scratch, pruner), group| {
                let Edge { array, record, node, .. } = group[0];
                let sources: Vec<Candidate> = group.iter().map(|edge| edge.source).collect();
                let old = &mut scratch.links;
                let mut list = std::mem::take(old);
                links::read(rows, array, record, &mut list)?;
                let merged = merge(index, node, array, &list, &sources, scratch, pruner)?;
                scratch.links = list;
                Ok(Merge { array, record, node, sources, list: merged })
            },
        )
        .collect()
}

/// Takes rows that equal an earlier one out of the order, and returns them with that one.
fn find_repeats<T: Element>(vectors: &ArrayView2<'_, T>, order: &mut Vec<u32>) -> Vec<(u32, u32)> {
    let mut hashed: Vec<(u64, u32)> = order
        .par_iter()
        .enumerate()
        .map(|(position, &row)| {
            let mut bytes = Vec::new();
            T::extend_bytes(&slice(vectors.row(row as usize)), &mut bytes);
            let mut hasher = DefaultHasher::new();
            hasher.write(&bytes);
            (hasher.finish(), position as u32)
        })
        .collect();
    hashed.par_sort_unstable();
    let mut repeats = Vec::new();
    for same in hashed.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
        let first = order[same[0].1 as usize];
        for &(_, position) in &same[1..] {
            let row = order[position as usize];
            // Bits, not values: -0.0 and 0.0 are the same number, but not given back the same.
            let (mut a, mut b) = (Vec::new(), Vec::new());
            T::extend_bytes(&slice(vectors.row(first as usize)), &mut a);
            T::extend_bytes(&slice(vectors.row(row as usize)), &mut b);
            if a == b {
                repeats.push((row, first));
                order[position as usize] = u32::MAX;
            }
        }
    }
    order.retain(|&row| row != u32::MAX);
    repeats
}

/// The routes to the rows of a batch, sorted.
fn plan_routes<S: PageStore>(index: &Hnsw<S>, batch: &[Staged]) -> Result<Vec<Route>> {
    let rows = &index.rows;
    let max_norm = rows.meta.max_norm.get();
    let entry = entry(rows)?;
    let routes: Result<Vec<Route>> = (0..batch.len() as u32)
        .into_par_iter()
        .map_init(
            || index.scratch(),
            |scratch, at| {
                let mut nodes = [NONE; 4];
                let Some((mut id, top)) = entry else { return Ok(Route { nodes, at }) };
                let Scratch { probe, batch: near, row, .. } = &mut **scratch;
                rows.link_probe(batch[at as usize].id, max_norm, row, probe)?;
                for level in (1..=top).rev() {
                    id = descend(rows, probe, near, (id, level), level, &mut Cost::default())?;
                    if let Some(node) = nodes.get_mut(4usize.wrapping_sub(level as usize)) {
                        *node = id;
                    }
                }
                Ok(Route { nodes, at })
            },
        )
        .collect();
    let mut routes = routes?;
    routes.par_sort_unstable();
    Ok(routes)
}

/// Finds the neighbours of a staged row at each of its levels.
fn plan_node<S: PageStore>(
    index: &Hnsw<S>,
    staged: &Staged,
    route: &Route,
    scratch: &mut Scratch,
    pruner: &mut Pruner,
) -> Result<Planned> {
    let rows = &index.rows;
    let max_norm = rows.meta.max_norm.get();
    rows.link_probe(staged.id, max_norm, &mut scratch.row, &mut scratch.probe)?;
    let Some((mut start, top)) = entry(rows)? else {
        return Ok(Planned::Node {
            lists: vec![Vec::new(); 1 + staged.level as usize],
            parent: None,
        });
    };
    let mut lists = vec![Vec::new(); 1 + staged.level as usize];
    if top > staged.level {
        let Scratch { probe, batch, .. } = scratch;
        let to = staged.level + 1;
        start = match to {
            1 => route.nodes[3],
            to => descend(rows, probe, batch, (start, top), to, &mut Cost::default())?,
        };
    }
    let ef = rows.meta.ef_construction.get() as usize;
    for level in (0..=top.min(staged.level)).rev() {
        scratch.pool.reset(ef, f32::NEG_INFINITY, false);
        if rows.meta.tombstones.get() == 0 {
            search_level(rows, scratch, start, level, &mut |_| Ok(true))?;
        } else {
            let live = &mut |id| rows.admits(id, &Matcher::All);
            search_level(rows, scratch, start, level, live)?;
        }
        let found = scratch.pool.admitted();
        let mut list: Vec<Candidate> =
            found.map(|(distance, id)| Candidate { distance, id, tree: false }).collect();
        if level == 0
            && let Some(owner) = equal_to(rows, &list, &mut scratch.row, staged.id)?
        {
            return Ok(Planned::Twin(owner));
        }
        list.sort_unstable_by(Candidate::order);
        start = scratch.pool.all().next().map_or(start, |(_, id)| id);
        pruner.select(rows, max_norm, &mut list, index.width(level))?;
        lists[level as usize] = list;
    }
    // Only removed vectors were found: hang on to one of those, rather than on nothing.
    if lists[0].is_empty() {
        let any = scratch.pool.all().next();
        lists[0].extend(any.map(|(distance, id)| Candidate { distance, id, tree: false }));
    }
    Ok(Planned::Node { lists, parent: None })
}

/// The one of the nearest candidates that equals the row of `id`, which is in `row`.
fn equal_to<S: PageStore>(
    rows: &Rows<S>,
    candidates: &[Candidate],
    row: &mut Vec<u8>,
    id: u32,
) -> Result<Option<u32>> {
    let nearest = candidates.first().map_or(0.0, |candidate| candidate.distance);
    let mut own = std::mem::take(row);
    rows.row(id, &mut own)?;
    let mut found = None;
    for candidate in candidates.iter().take_while(|candidate| candidate.distance <= nearest).take(8)
    {
        rows.row(candidate.id, row)?;
        let bytes = rows.space.vector_bytes();
        if own.get(..bytes) == row.get(..bytes) {
            found = Some(candidate.id);
            break;
        }
    }
    Ok(found)
}

/// The distance between two stored rows, as graphs measure it.
fn distance_between<S: PageStore>(index: &Hnsw<S>, a: u32, b: u32) -> Result<f32> {
    let rows = &index.rows;
    let mut scratch = Scratch::default();
    rows.link_probe(a, rows.meta.max_norm.get(), &mut scratch.row, &mut scratch.probe)?;
    rows.space.score_one(&rows.store, rows.array(VECTORS)?, &scratch.probe, b)
}

/// A node's list with edges to `sources` (sorted) added, pruned if they are too many.
fn merge<S: PageStore>(
    index: &Hnsw<S>,
    node: u32,
    array: usize,
    old: &[u32],
    sources: &[Candidate],
    scratch: &mut Scratch,
    pruner: &mut Pruner,
) -> Result<Vec<u32>> {
    let width = index.width(usize::from(array != LINKS) as u8);
    let link = |c: &Candidate| if c.tree { c.id | TREE } else { c.id };
    let known = |id: u32| sources.iter().any(|source| source.id == id);
    let kept = old.iter().copied().filter(|&link| !known(target(link)));
    if kept.clone().count() + sources.len() <= width {
        return Ok(kept.chain(sources.iter().map(link)).collect());
    }
    let rows = &index.rows;
    let max_norm = rows.meta.max_norm.get();
    rows.link_probe(node, max_norm, &mut scratch.row, &mut scratch.probe)?;
    scratch.batch.ids.clear();
    scratch.batch.ids.extend(kept.clone().map(target));
    scratch.batch.score(rows, &scratch.probe)?;
    let mut candidates: Vec<Candidate> = kept
        .zip(&scratch.batch.distances)
        .map(|(link, &distance)| Candidate { distance, id: target(link), tree: link & TREE != 0 })
        .chain(sources.iter().copied())
        .collect();
    candidates.sort_unstable_by(Candidate::order);
    match candidates.len() <= width + width / 4 {
        true => pruner.thin(rows, max_norm, &mut candidates, width)?,
        false => pruner.select(rows, max_norm, &mut candidates, width)?,
    }
    Ok(candidates.iter().map(link).collect())
}

/// Gives a node the list that was planned for it. If its marked links are not what the plan has seen, the list is
/// computed anew from what is there.
fn apply_merge<S: PageStore>(index: &mut Hnsw<S>, plan: &Merge) -> Result<()> {
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
        change.expect_record(array, plan.record, &links::encode(&now, width))?;
        change.put_record(array, plan.record, &links::encode(&list, width))?;
        if index.rows.commit(&mut change)? {
            return Ok(());
        }
    }
}

impl<S: PageStore> Hnsw<S> {
    /// If a key's vector is already the one in a row: the graph node on whose chain it is.
    fn unchanged<T: Element>(
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
    fn write_links(&mut self, staged: &Staged, lists: &[Vec<Candidate>]) -> Result<()> {
        for (level, list) in lists.iter().enumerate() {
            let (array, record) = match level {
                0 => (LINKS, staged.id),
                level => (UPPER, staged.upper + level as u32 - 1),
            };
            let list: Vec<u32> =
                list.iter().map(|c| if c.tree { c.id | TREE } else { c.id }).collect();
            let bytes = links::encode(&list, self.width(level as u8));
            let mut change = Change::default();
            change.put_record(self.rows.array(array)?, record, &bytes)?;
            self.rows.commit(&mut change)?;
        }
        Ok(())
    }

    /// A node's birth: it becomes visible, and its parent links to it, in one write.
    fn bear_node(
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
                change.expect_record(links_array, parent, &links::encode(&list, width))?;
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

    /// A twin's birth, on the chain of its equal. Returns the owner of the chain.
    fn bear_twin(
        &mut self,
        owner: u32,
        id: u32,
        key: u64,
        level: u8,
        upper: u32,
        replaces: Option<u32>,
    ) -> Result<u32> {
        let mut head = self.rows.node(owner)?;
        let mut node = Node::new(key, State::Twin, level, upper);
        node.owner = owner.into();
        node.twin = head.twin;
        head.twin = id.into();
        let mut change = Change::default();
        change.put_record(self.rows.array(NODES)?, owner, zerocopy::IntoBytes::as_bytes(&head))?;
        self.rows.birth(change, id, node, replaces, |_| ())?;
        Ok(owner)
    }
}

/// A 64-bit finaliser (splitmix64): every bit of the input stirs every bit of the output.
pub(super) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
