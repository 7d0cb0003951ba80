//! Insertion in batches, parallel and yet the same for any number of threads.
//!
//! All rows are looked through first, see `survey`. Many for an empty index are a batch of their own, see `load`; else
//! a batch is at most 2 % of the graph. Its vectors are stored first (*stage*), where nothing refers to them yet.
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

use hashbrown::HashMap;
use ndarray::ArrayView2;
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::element::Element;
use crate::error::Result;
use crate::graph::prune::{Candidate, Pruner};
use crate::page::PageStore;
use crate::rows::{LINKS, Mark, NODES, NONE, Node, State, UPPER, VECTORS, Workshop, slice};
use crate::threads;

use super::apply::apply_merge;
use super::compact::Coding;
use super::fused::Encoder;
use super::load::{Lists, Load};
use super::needs::Portions;
use super::plan::{Merge, Merges, Planned, Route, plan_node, plan_routes};
use super::search::Scratch;
use super::survey::Survey;
use super::{Graph, Topology};

/// A batch is at most this part of the graph.
const BATCH_SHARE: usize = 50;
/// And at most this many rows.
pub(super) const MAX_BATCH: usize = 16_384;
/// Rows that one planning step searches for, at most, and their coordinates.
const PLAN_ROWS: usize = 512;
const PLAN_FLOATS: usize = 1 << 18;
/// Bytes of vectors that one writing step stores.
const STAGE_BYTES: usize = 1 << 20;
/// Records that one writing step changes.
const APPLY_RECORDS: usize = 1024;

/// Rows on their way into a graph index, for callers that share the index under a lock: until
/// [`Insertion::is_done`], take the step that [`Insertion::needs_write`] names. The index must not be changed by
/// others in between; it can be searched. [`crate::Index::add`] does the same with an index of one's own.
pub struct Insertion<'a, T> {
    pool: ThreadPool,
    vectors: ArrayView2<'a, T>,
    keys: Vec<u64>,
    replace: bool,
    portions: Portions,
    /// What has yet to be found out of the rows.
    survey: Option<Survey<'a, T>>,
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
    merges: Option<Merges>,
    born: usize,
    merged: usize,
    done: usize,
    load: Option<Load<'a, T>>,
    /// What came of it, until it is written.
    lists: Option<Lists>,
    /// Rows that are not part of the load.
    later: Vec<u32>,
    /// Rows of the load that have been planned; they count nine tenths of the work.
    loaded: usize,
    /// Codes on their way into use, which come after a batch.
    coding: Option<Coding>,
    mark: Mark,
}

/// A row whose vector is stored, but to which nothing refers.
pub(super) struct Staged {
    pub row: u32,
    pub id: u32,
    pub level: u8,
    pub upper: u32,
}

impl Staged {
    /// The array and record of its links at a level.
    pub fn place(&self, level: u8) -> (usize, u32) {
        match level {
            0 => (LINKS, self.id),
            level => (UPPER, self.upper + u32::from(level) - 1),
        }
    }
}

impl<'a, T: Element> Insertion<'a, T> {
    /// Rows that are to be added, or with `replace` to take the place of those that their keys have now. Shape and keys
    /// are checked, the vectors by the first steps; until these have passed, nothing is changed. `threads` 0 means one
    /// for each core.
    ///
    /// # Errors
    /// As [`crate::Index::add`] and [`crate::Index::update`]; [`crate::Error::OutOfMemory`].
    pub fn new<S: PageStore, K: Topology>(
        index: &Graph<S, K>,
        vectors: ArrayView2<'a, T>,
        keys: Option<&[u64]>,
        replace: bool,
        threads: usize,
    ) -> Result<Insertion<'a, T>> {
        let pool = threads::pool(threads)?;
        let portions = index.portions(vectors.nrows(), pool.current_num_threads())?;
        let keys = index.rows.checked_keys(&vectors, keys, replace)?;
        let seed = index.rows.meta.seed.get();
        Ok(Insertion {
            pool,
            vectors,
            survey: Some(Survey::new(keys.len(), seed, portions.load)),
            keys,
            replace,
            portions,
            order: Vec::new(),
            next: 0,
            repeats: Vec::new(),
            owners: HashMap::new(),
            batch: Vec::new(),
            staged: 0,
            routes: Vec::new(),
            ranks: Vec::new(),
            planned: Vec::new(),
            merges: None,
            born: 0,
            merged: 0,
            done: 0,
            load: None,
            lists: None,
            later: Vec::new(),
            loaded: 0,
            coding: None,
            mark: index.rows.mark(),
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

    /// The share of the work that is done, as a number of rows.
    pub fn progress(&self) -> usize {
        let ahead = match &self.load {
            Some(load) => (load.share() * self.order.len() as f64) as usize,
            None => self.loaded,
        };
        self.done + ahead.saturating_sub(self.done) / 10 * 9
    }

    /// Whether a batch, or the codes of all, are written in part.
    pub(super) fn is_applying(&self) -> bool {
        self.born > 0 || self.coding.is_some()
    }

    /// Whether all rows are.
    pub fn is_done(&self) -> bool {
        self.done == self.keys.len() && self.batch.is_empty() && self.coding.is_none()
    }

    /// Whether the next step is [`Insertion::write_step`]; else it is [`Insertion::plan_step`].
    pub fn needs_write(&self) -> bool {
        if self.survey.is_some() || self.load.as_ref().is_some_and(|load| !load.is_arranged()) {
            return false;
        }
        let is_planned =
            self.merges.as_ref().is_some_and(Merges::are_planned) || self.lists.is_some();
        self.batch.is_empty() || self.staged < self.batch.len() || is_planned
    }

    /// The next step, of either kind, on an index of one's own. False if all had been done.
    ///
    /// # Errors
    /// Those of the steps.
    pub fn step<S: PageStore, K: Topology>(&mut self, index: &mut Graph<S, K>) -> Result<bool> {
        match (self.is_done(), self.needs_write()) {
            (true, _) => return Ok(false),
            (false, true) => self.write_step(index)?,
            (false, false) => self.plan_step(index)?,
        }
        Ok(true)
    }

    /// One step of planning, a fraction of a second long.
    ///
    /// # Errors
    /// Those of the vectors, as [`crate::Index::add`], of the store, and [`crate::Error::Changed`] if somebody else
    /// changed the index: it is valid, and holds the rows done so far.
    pub fn plan_step<S: PageStore, K: Topology>(&mut self, index: &Graph<S, K>) -> Result<()> {
        index.rows.check_mark(&self.mark)?;
        if let Some(survey) = &mut self.survey {
            let replaced = self.replace.then_some(&self.keys[..]);
            survey.step(index, &self.vectors, replaced, &self.pool)?;
            if let Some(survey) = self.survey.take_if(|survey| survey.is_done()) {
                (self.order, self.repeats, self.owners) =
                    (survey.order, survey.repeats, survey.owners);
                (self.load, self.later, self.done) = (survey.load, survey.later, survey.unchanged);
            }
            return Ok(());
        }
        let Insertion { pool, vectors, batch, routes, planned, ranks, load, .. } = self;
        let ask = &|staged: &Staged, scratch: &mut Scratch| index.ask_row(vectors, staged, scratch);
        if let Some(load) = load {
            if batch.is_empty() {
                if let Some(order) = load.arrange(pool) {
                    self.order = order;
                }
            } else if let Some(lists) = load.plan(index, batch, pool)? {
                self.lists = Some(lists);
                self.loaded = batch.len();
                self.load = None;
                self.order.append(&mut self.later);
            }
            return Ok(());
        }
        if planned.is_empty() {
            *routes = pool.install(|| plan_routes(index, batch, ask))?;
            ranks.clear();
            ranks.resize(batch.len(), 0);
            (0..).zip(routes.iter()).for_each(|(rank, route)| ranks[route.at as usize] = rank);
        }
        if planned.len() == batch.len() {
            let merges = match &mut self.merges {
                Some(merges) => merges,
                none => none.insert(pool.install(|| Merges::new(index, batch, ranks, planned))?),
            };
            return pool.install(|| merges.plan(index));
        }
        let next = &routes[planned.len()..];
        let next =
            &next[..next.len().min((PLAN_FLOATS / index.rows.space.dim).clamp(16, PLAN_ROWS))];
        let found: Result<Vec<Planned>> = pool.install(|| {
            next.par_iter()
                .map_init(
                    || (index.scratch(), Pruner::default()),
                    |(scratch, pruner), route| {
                        let at = (&batch[route.at as usize], route);
                        plan_node(index, at, index.shape.pool, scratch, pruner, ask)
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
    /// Those of the store, and [`crate::Error::Changed`] if somebody else changed the index: it is valid, and holds the
    /// rows done so far.
    pub fn write_step<S: PageStore, K: Topology>(&mut self, index: &mut Graph<S, K>) -> Result<()> {
        index.rows.check_mark(&self.mark)?;
        let result = self.write(index);
        self.mark = index.rows.mark();
        result
    }

    fn write<S: PageStore, K: Topology>(&mut self, index: &mut Graph<S, K>) -> Result<()> {
        if let Some(coding) = &mut self.coding {
            if self.pool.install(|| index.code_some(coding))? {
                self.coding = None;
                index.choose_entries()?;
            }
            return Ok(());
        }
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
            let codes = self.codes(index, self.born..end, true)?;
            let mut codes = codes.iter().map(Vec::as_slice);
            while self.born < end {
                self.bear(index, self.born, codes.next())?;
                self.born += 1;
            }
            return Ok(());
        }
        let merges = self.merges.as_ref().map_or(&[][..], |merges| &merges.planned);
        let total = if self.lists.is_some() { self.batch.len() } else { merges.len() };
        let end = total.min(self.merged + APPLY_RECORDS);
        let codes = self.codes(index, self.merged..end, false)?;
        let mut codes = codes.iter().map(Vec::as_slice);
        match &self.lists {
            Some(lists) => {
                for (at, staged) in self.batch.iter().enumerate().take(end).skip(self.merged) {
                    complete(index, lists, staged, at, codes.next())?;
                }
            }
            None => {
                for merge in &merges[self.merged..end] {
                    apply_merge(index, merge, codes.next())?;
                }
            }
        }
        self.merged = end;
        if end == total {
            self.batch.clear();
            self.planned.clear();
            (self.merges, self.lists) = (None, None);
            (self.staged, self.born, self.merged) = (0, 0, 0);
            if index.codes_are_due() {
                self.coding = Some(index.begin_coding()?);
            } else if index.entries_are_due() {
                index.choose_entries()?;
            }
        }
        Ok(())
    }

    /// The codes of the lists that these members of the batch are born with, or of those that are to be merged.
    /// Nothing where lists have no codes.
    fn codes<S: PageStore, K: Topology>(
        &self,
        index: &Graph<S, K>,
        range: std::ops::Range<usize>,
        fresh: bool,
    ) -> Result<Vec<Vec<u8>>> {
        if index.shape.fused.is_none() {
            return Ok(Vec::new());
        }
        let merges = self.merges.as_ref().map_or(&[][..], |merges| &merges.planned);
        let of = |encoder: &mut Encoder, at: usize| match (&self.lists, fresh) {
            (Some(lists), true) => {
                let list = lists.list_at_birth(at, 0);
                index.codes((LINKS, self.batch[at].id), &list, true, encoder)
            }
            (Some(lists), false) => {
                index.codes((LINKS, self.batch[at].id), lists.list(at, 0), false, encoder)
            }
            (None, true) => match &self.planned[self.ranks[at] as usize] {
                Planned::Node { lists, .. } => {
                    let list: Vec<u32> = lists[0].iter().map(Candidate::link).collect();
                    index.codes((LINKS, self.batch[at].id), &list, true, encoder)
                }
                Planned::Twin(_) => Ok(Vec::new()),
            },
            (None, false) => {
                let Merge { array, record, list, .. } = &merges[at];
                index.codes((*array, *record), list, false, encoder)
            }
        };
        self.pool.install(|| range.into_par_iter().map_init(Encoder::default, of).collect())
    }

    /// Takes slots for the next batch.
    fn begin_batch<S: PageStore, K: Topology>(&mut self, index: &mut Graph<S, K>) -> Result<()> {
        let rows = &mut index.rows;
        if self.portions.leaves_memory {
            rows.store.leave_memory()?;
        }
        let present = rows.len() + rows.meta.tombstones.get() as usize;
        let usual = (present / BATCH_SHARE).clamp(1, self.portions.batch);
        let left = self.order.len() - self.next;
        if self.next == 0 && !index.rows.has_vectors() {
            let (vectors, order) = (&self.vectors, &self.order);
            let mut row = Vec::new();
            index.rows.choose_centre(order.len(), |space, at, floats| {
                space.floats_of(&slice(vectors.row(order[at] as usize)), &mut row, floats);
            })?;
        }
        let rows = &mut index.rows;
        let size = if self.load.is_some() { left } else { left.min(usual) };
        if self.next == 0 {
            // All at once, so that each array is one run of pages.
            let taken = present + self.order.len() + self.later.len();
            let end = u64::from(rows.slots()).max(taken as u64);
            rows.reserve_slots(end)?;
            // Pages may have taken what was there when this began.
            self.portions.ask_for_memory()?;
        }
        let ids = rows.free_ids(size)?;
        let rows = &index.rows;
        // Without levels no node has lists of its own in that array.
        let has_levels = index.shape.widths[1] > 0;
        let mut upper = if has_levels { rows.meta.upper.get() } else { 0 };
        for (&row, &id) in self.order[self.next..self.next + size].iter().zip(&ids) {
            let (level, first) = if id < rows.slots() {
                index.kept_levels(id)?
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

    fn stage<S: PageStore, K: Topology>(&mut self, index: &mut Graph<S, K>) -> Result<()> {
        let (mut row, mut shop) = (Vec::new(), Workshop::default());
        let mut bytes = 0;
        while self.staged < self.batch.len() && bytes < STAGE_BYTES {
            let staged = &self.batch[self.staged];
            index.rows.encode(&slice(self.vectors.row(staged.row as usize)), &mut row)?;
            index.rows.put_row(staged.id, &row)?;
            index.put_code(staged.id, &row, &mut shop)?;
            bytes += row.len();
            self.staged += 1;
        }
        Ok(())
    }

    /// Makes one row of the batch visible.
    fn bear<S: PageStore, K: Topology>(
        &mut self,
        index: &mut Graph<S, K>,
        at: usize,
        codes: Option<&[u8]>,
    ) -> Result<()> {
        let staged = &self.batch[at];
        let key = self.keys[staged.row as usize];
        let old = if self.replace { index.rows.id_of(key)? } else { None };
        let node = Node::new(key, State::Live, staged.level, staged.upper);
        let mut owner = staged.id;
        if let Some(lists) = &self.lists {
            let born = (0..=staged.level).map(|level| lists.list_at_birth(at, level));
            index.write_links(staged, born, codes)?;
            index.bear_node(staged.id, node, lists.parent(at), old)?;
        } else {
            match &self.planned[self.ranks[at] as usize] {
                Planned::Node { lists, parent } => {
                    let links = |list: &Vec<Candidate>| list.iter().map(Candidate::link).collect();
                    index.write_links(staged, lists.iter().map(links), codes)?;
                    index.bear_node(staged.id, node, *parent, old)?;
                }
                &Planned::Twin(twin_of) => {
                    index.bear_twin(twin_of, staged.id, node, old)?;
                    owner = twin_of;
                }
            }
        }
        if let Some(place) = self.owners.get_mut(&staged.row) {
            *place = owner;
        }
        self.done += 1;
        Ok(())
    }

    /// Adds rows that are equal to earlier ones.
    fn add_repeats<S: PageStore, K: Topology>(&mut self, index: &mut Graph<S, K>) -> Result<()> {
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
            let id = index.rows.free_ids(1)?[0];
            let (level, upper) = match id < index.rows.slots() {
                true => index.kept_levels(id)?,
                false => (0, 0),
            };
            let rows = &mut index.rows;
            rows.reserve_slots(u64::from(id) + 1)?;
            rows.encode(&slice(self.vectors.row(repeat as usize)), &mut row)?;
            rows.put_row(id, &row)?;
            index.bear_twin(owner, id, Node::new(key, State::Twin, level, upper), old)?;
            self.done += 1;
        }
        Ok(())
    }
}

/// Gives a loaded node the links to those that were born after it.
fn complete<S: PageStore, K: Topology>(
    index: &mut Graph<S, K>,
    lists: &Lists,
    staged: &Staged,
    at: usize,
    codes: Option<&[u8]>,
) -> Result<()> {
    for level in 0..=staged.level {
        let (array, record) = staged.place(level);
        let list = lists.list(at, level).to_vec();
        let node = staged.id;
        apply_merge(index, &Merge { array, record, node, sources: Vec::new(), list }, codes)?;
    }
    Ok(())
}
