//! Adding and updating, and what keeps lists in shape, step by step: searches go on between the steps, and so does
//! Python.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use ann_core::{
    AddOptions, Element, Error, Flat, Graph, Index, Insertion, IvfPq, IvfPqSteps, PageStore,
    Search, Topology,
};
use ndarray::{ArrayView2, s};
use pyo3::prelude::*;

use crate::failure::{Answer, Failure};
use crate::shared::{Held, Shared};
use crate::{any, lists_of};

/// How long steps are taken before signals and progress are seen to.
const SLICE: Duration = Duration::from_millis(50);

/// How long an interrupted insertion may take to finish the batch that it is writing.
const GRACE: Duration = Duration::from_millis(250);

/// Bytes of vectors that a flat index takes in one write, and rows.
const WRITE_BYTES: usize = 1 << 20;
const WRITE_ROWS: usize = 1024;

/// Rows of an insertion that takes much memory for a while.
const MANY: usize = 10_000;

/// What is inserted, and how.
pub struct Rows<'a, T> {
    pub vectors: ArrayView2<'a, T>,
    /// `None` for the next free keys.
    pub keys: Option<Vec<u64>>,
    /// Whether the keys are in the index and get new vectors.
    pub replace: bool,
    pub threads: usize,
}

/// Inserts rows and returns their keys. `report` is called with (rows done, rows in all); if it or a signal handler
/// raises, the rows done so far stay. The caller has the turn.
pub fn insert<T: Element>(
    py: Python<'_>,
    shared: &Shared,
    rows: Rows<'_, T>,
    report: Option<&Bound<'_, PyAny>>,
) -> Answer<Vec<u64>> {
    let work = py.detach(|| Work::new(shared, rows))?;
    take(py, shared, work, report)
}

/// Takes all steps of a change of an IVF-PQ index; if a signal handler raises, the index stays valid. The caller has
/// the turn.
pub fn take_steps<'a, T: Element>(
    py: Python<'_>,
    shared: &Shared,
    begin: impl FnOnce(&Held) -> Answer<IvfPqSteps<'a, T>> + Send,
) -> Answer<()> {
    let steps = py.detach(|| begin(shared.read().index()?))?;
    take(py, shared, Work::Lists(Box::new(steps)), None).map(drop)
}

fn take<T: Element>(
    py: Python<'_>,
    shared: &Shared,
    mut work: Work<'_, T>,
    report: Option<&Bound<'_, PyAny>>,
) -> Answer<Vec<u64>> {
    loop {
        py.detach(|| work.run(shared, SLICE))?;
        let seen = py.check_signals().and_then(|()| match report {
            Some(report) => report.call1((work.progress(), work.total())).map(drop),
            None => Ok(()),
        });
        if let Err(raised) = seen {
            py.detach(|| work.settle(shared))?;
            return Err(raised.into());
        }
        if work.is_done() {
            let keys = py.detach(|| work.finish(shared))?;
            if keys.len() >= MANY {
                give_back();
            }
            return Ok(keys);
        }
    }
}

/// Gives the memory that the work took for a while back to the system, which the allocator would do in its own time: a
/// tenth of what is in use after a bulk load.
fn give_back() {
    // SAFETY: it may be called at any time, on any thread.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// An insertion that is under way.
enum Work<'a, T> {
    Graph { insertion: Box<Insertion<'a, T>>, replace: bool },
    Lists(Box<IvfPqSteps<'a, T>>),
    Flat(FlatWork<'a, T>),
}

impl<'a, T: Element> Work<'a, T> {
    /// Checks everything; nothing is changed yet.
    fn new(shared: &Shared, rows: Rows<'a, T>) -> Answer<Work<'a, T>> {
        let work = match shared.read().index()? {
            Held::Hnsw(index) => Work::graph(index, rows)?,
            Held::HnswFile(index) => Work::graph(index, rows)?,
            Held::DiskAnn(index) => Work::graph(index, rows)?,
            Held::DiskAnnFile(index) => Work::graph(index, rows)?,
            Held::IvfPq(index) => Work::lists(index, rows)?,
            Held::IvfPqFile(index) => Work::lists(index, rows)?,
            Held::Flat(index) => Work::Flat(FlatWork::new(index, rows)?),
            Held::FlatFile(index) => Work::Flat(FlatWork::new(index, rows)?),
        };
        Ok(work)
    }

    fn graph<S: PageStore, K: Topology>(
        index: &Graph<S, K>,
        rows: Rows<'a, T>,
    ) -> Answer<Work<'a, T>> {
        let Rows { vectors, keys, replace, threads } = rows;
        let insertion = Insertion::new(index, vectors, keys.as_deref(), replace, threads)?;
        check_ids(insertion.keys())?;
        Ok(Work::Graph { insertion: Box::new(insertion), replace })
    }

    fn lists<S: PageStore>(index: &IvfPq<S>, rows: Rows<'a, T>) -> Answer<Work<'a, T>> {
        let Rows { vectors, keys, replace, threads } = rows;
        let steps = IvfPqSteps::insert(index, vectors, keys.as_deref(), replace, threads)?;
        check_ids(steps.keys())?;
        Ok(Work::Lists(Box::new(steps)))
    }

    fn progress(&self) -> usize {
        match self {
            Work::Graph { insertion, .. } => insertion.progress(),
            Work::Lists(steps) => steps.progress(),
            Work::Flat(work) => work.keys.len(),
        }
    }

    fn total(&self) -> usize {
        match self {
            Work::Graph { insertion, .. } => insertion.keys().len(),
            Work::Lists(steps) => steps.keys().len(),
            Work::Flat(work) => work.rows.vectors.nrows(),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Work::Graph { insertion, .. } => insertion.is_done(),
            Work::Lists(steps) => steps.is_done(),
            Work::Flat(work) => work.keys.len() == work.rows.vectors.nrows(),
        }
    }

    /// Takes steps until all are done or the time is up.
    fn run(&mut self, shared: &Shared, time: Duration) -> Answer<()> {
        let begun = Instant::now();
        while !self.is_done() && begun.elapsed() < time {
            self.step(shared)?;
        }
        Ok(())
    }

    fn step(&mut self, shared: &Shared) -> Answer<()> {
        match self {
            Work::Graph { insertion, .. } if insertion.needs_write() => {
                shared.write(|held| match held {
                    Held::Hnsw(index) => Ok(insertion.write_step(index)?),
                    Held::HnswFile(index) => Ok(insertion.write_step(index)?),
                    Held::DiskAnn(index) => Ok(insertion.write_step(index)?),
                    Held::DiskAnnFile(index) => Ok(insertion.write_step(index)?),
                    _ => Err(Failure::Closed),
                })
            }
            Work::Graph { insertion, .. } => match shared.read().index()? {
                Held::Hnsw(index) => Ok(insertion.plan_step(index)?),
                Held::HnswFile(index) => Ok(insertion.plan_step(index)?),
                Held::DiskAnn(index) => Ok(insertion.plan_step(index)?),
                Held::DiskAnnFile(index) => Ok(insertion.plan_step(index)?),
                _ => Err(Failure::Closed),
            },
            Work::Lists(steps) if steps.needs_write() => shared.write(
                |held| lists_of!(held, index => Ok(steps.write_step(index)?), else Failure::Closed),
            ),
            Work::Lists(steps) => {
                let reading = shared.read();
                lists_of!(reading.index()?, index => Ok(steps.plan_step(index)?), else Failure::Closed)
            }
            Work::Flat(work) => shared.write(|held| any!(held, index => work.step(index))),
        }
    }

    /// Finishes what is written of a batch: planned rows whose links are missing would be found less well, and searches
    /// of lists that are written in part would measure every vector.
    fn settle(&mut self, shared: &Shared) -> Answer<()> {
        let begun = Instant::now();
        while !self.is_done() && self.is_partly_written() && begun.elapsed() < GRACE {
            self.step(shared)?;
        }
        Ok(())
    }

    fn is_partly_written(&self) -> bool {
        match self {
            Work::Graph { insertion, .. } => insertion.needs_write(),
            Work::Lists(steps) => steps.is_applying(),
            Work::Flat(_) => false,
        }
    }

    fn finish(self, shared: &Shared) -> Answer<Vec<u64>> {
        match self {
            Work::Graph { insertion, replace } => {
                if replace {
                    // Removing sweeps if that is due: replaced vectors are removed ones.
                    shared.write(|held| Ok(any!(held, index => index.remove(&[]))?))?;
                }
                Ok(insertion.keys().to_vec())
            }
            Work::Lists(steps) => Ok(steps.keys().to_vec()),
            Work::Flat(work) => Ok(work.keys),
        }
    }
}

/// Rows on their way into a flat index, some at a time.
struct FlatWork<'a, T> {
    rows: Rows<'a, T>,
    /// The keys of the rows that are in.
    keys: Vec<u64>,
}

impl<'a, T: Element> FlatWork<'a, T> {
    fn new(index: &impl Index, rows: Rows<'a, T>) -> Answer<FlatWork<'a, T>> {
        // As queries to an index without vectors, all rows are checked and nothing is searched.
        let empty =
            Flat::builder(index.dim()).metric(index.metric()).dtype(index.dtype()).build()?;
        empty.search_batch(rows.vectors, &Search::new(1), rows.threads)?;
        let count = rows.vectors.nrows();
        let given = rows.keys.as_deref().unwrap_or_default();
        if rows.keys.is_some() && given.len() != count {
            return Err(Error::KeyCount { keys: given.len(), rows: count }.into());
        }
        let mut seen = HashSet::new();
        for (row, &key) in given.iter().enumerate() {
            if !seen.insert(key) {
                return Err(Error::DuplicateKey { key, row }.into());
            }
            match (index.contains(key)?, rows.replace) {
                (true, false) => return Err(Error::DuplicateKey { key, row }.into()),
                (false, true) => return Err(Error::UnknownKey { key, row }.into()),
                _ => {}
            }
        }
        Ok(FlatWork { rows, keys: Vec::new() })
    }

    fn step(&mut self, index: &mut impl Index) -> Answer<()> {
        let Rows { vectors, keys, replace, .. } = &self.rows;
        let (start, count) = (self.keys.len(), vectors.nrows());
        let row_bytes = (vectors.ncols() * size_of::<T>()).max(1);
        let end = count.min(start + (WRITE_BYTES / row_bytes).clamp(1, WRITE_ROWS));
        let part = vectors.slice(s![start..end, ..]);
        let options = AddOptions::new().threads(1);
        match keys.as_ref().map(|keys| &keys[start..end]) {
            Some(keys) if *replace => {
                index.update(part, keys, options)?;
                self.keys.extend_from_slice(keys);
            }
            keys => {
                let added = index.add(part, keys, options)?;
                let last = added.last().map(|&last| last.saturating_add((count - end) as u64));
                if let Err(failure) = check_ids(last.as_slice()) {
                    index.remove(&added)?;
                    return Err(failure);
                }
                self.keys.extend(added);
            }
        }
        Ok(())
    }
}

/// Refuses keys that no id in Python can be: they come after the largest one.
fn check_ids(keys: &[u64]) -> Answer<()> {
    match keys.iter().all(|&key| i64::try_from(key).is_ok()) {
        true => Ok(()),
        false => {
            let allowed = format!("ids given: the largest id, {}, is in use", i64::MAX);
            Err(Error::Parameter { name: "ids", value: "None".into(), allowed }.into())
        }
    }
}
