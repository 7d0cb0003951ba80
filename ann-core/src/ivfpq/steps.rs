//! Everything that changes an index of lists, in steps: planning ones, parallel, which only read it, and short ones
//! that write.

use ndarray::ArrayView2;
use rayon::ThreadPool;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::index::AddOptions;
use crate::page::PageStore;
use crate::rows::{Mark, check_some, next_rows};
use crate::threads;

use super::IvfPq;
use super::compact::Compacting;
use super::fill::Filling;
use super::insert::Adding;
use super::rebalance::Balancing;
use super::source::Source;
use super::train::Learning;

/// A change of an [`IvfPq`] index, for callers that share the index under a lock: until [`IvfPqSteps::is_done`], take
/// the step that [`IvfPqSteps::needs_write`] names. The index must not be changed by others in between; it can be
/// searched, and finds what it holds after every step. Dropped at any time, it leaves a valid index; but one that
/// [`IvfPqSteps::is_applying`] is without lists until it is trained again, and its searches exact and slow.
///
/// [`crate::Index::add`], [`IvfPq::train`], [`IvfPq::rebalance`] and [`IvfPq::compact`] do the same with an index of
/// one's own, and describe what each of them does.
pub struct IvfPqSteps<'a, T> {
    pool: ThreadPool,
    keys: Vec<u64>,
    /// Rows to add, or to learn from.
    rows: usize,
    /// They, and how many of the first have been checked, until all are.
    unchecked: Option<(ArrayView2<'a, T>, usize)>,
    /// Slots that an interrupted replacement has left.
    unsettled: Vec<u32>,
    work: Work<'a, T>,
    /// Rows that are added once there are lists, which is then the second half of the work.
    later: Option<Source<'a, T>>,
    halved: bool,
    mark: Mark,
}

enum Work<'a, T> {
    Add(Adding<'a, T>),
    /// What to learn from, and what to fill the lists with: vectors with these keys, or those of the index.
    Learn(Box<Learning>, Source<'a, T>, Fill),
    Fill(Box<Filling<'a, T>>),
    Balance(Box<Balancing>),
    Compact(Compacting),
    Done,
}

#[derive(Clone, Copy, PartialEq)]
enum Fill {
    /// What was learnt from comes into the empty index.
    Newborn,
    /// What was learnt from is in the index.
    Same,
    /// What is in the index is something else.
    Others,
}

impl<'a, T: Element> IvfPqSteps<'a, T> {
    /// Rows, an `n x dim` matrix, that are to be added, or with `replace` to take the place of those that their keys
    /// have now. Shape and keys are checked, the vectors by the first steps; until these have passed, nothing is
    /// changed. `threads` 0 means one for each core.
    ///
    /// # Errors
    /// As [`crate::Index::add`] and [`crate::Index::update`].
    pub fn insert<S: PageStore>(
        index: &IvfPq<S>,
        vectors: ArrayView2<'a, T>,
        keys: Option<&[u64]>,
        replace: bool,
        threads: usize,
    ) -> Result<IvfPqSteps<'a, T>> {
        let pool = threads::pool(threads)?;
        let keys = index.rows.checked_keys(&vectors, keys, replace)?;
        let count = vectors.nrows();
        let train_at = index.rows.meta.train_at.get() as usize;
        let source = Source::Batch(vectors);
        let loads = !index.is_trained() && index.rows.len() == 0 && count >= train_at;
        if !index.is_trained() && !loads && !index.rows.has_rows() && count > 0 {
            let allowed = format!(
                "at least {train_at} in the first call, or any number once the index is trained: it keeps of its \
                 vectors only what its lists have"
            );
            return Err(Error::parameter("rows", count, allowed));
        }
        let work = match loads {
            true => Work::Learn(Box::new(Learning::new()), source, Fill::Newborn),
            false => Work::Add(Adding::new(source, replace)),
        };
        let mut steps = IvfPqSteps::new(index, pool, work)?;
        (steps.keys, steps.rows, steps.unchecked) = (keys, count, Some((vectors, 0)));
        steps.turn(index)?;
        Ok(steps)
    }

    /// Rows, an `n x dim` matrix, that lists and codes are to be learnt from. Their shape is checked, the vectors by
    /// the first steps; until these have passed, nothing is changed.
    ///
    /// # Errors
    /// As [`IvfPq::train`].
    pub fn train<S: PageStore>(
        index: &IvfPq<S>,
        vectors: ArrayView2<'a, T>,
        threads: usize,
    ) -> Result<IvfPqSteps<'a, T>> {
        let pool = threads::pool(threads)?;
        index.rows.space.check_shape::<T>(vectors.ncols())?;
        if !index.rows.has_rows() && index.rows.len() > 0 {
            return Err(Error::NoVectors);
        }
        if vectors.nrows() == 0 {
            return Err(Error::parameter("vectors", "0 rows", "at least 1"));
        }
        let learning = Box::new(Learning::new());
        let work = Work::Learn(learning, Source::Batch(vectors), Fill::Others);
        let mut steps = IvfPqSteps::new(index, pool, work)?;
        (steps.rows, steps.unchecked) = (vectors.nrows(), Some((vectors, 0)));
        Ok(steps)
    }

    fn new<S: PageStore>(
        index: &IvfPq<S>,
        pool: ThreadPool,
        work: Work<'a, T>,
    ) -> Result<IvfPqSteps<'a, T>> {
        let (unsettled, mark) = (index.unsettled()?, index.rows.mark());
        let keys = Vec::new();
        let (later, halved) = (None, false);
        Ok(IvfPqSteps {
            pool,
            keys,
            rows: 0,
            unchecked: None,
            unsettled,
            work,
            later,
            halved,
            mark,
        })
    }

    /// The keys of the rows that are added, in the order of the rows.
    pub fn keys(&self) -> &[u64] {
        &self.keys
    }

    /// Rows of those that are in the index.
    pub fn done(&self) -> usize {
        match &self.work {
            Work::Add(adding) => adding.done(),
            _ if self.later.is_some() => 0,
            Work::Learn(_, _, Fill::Newborn) => 0,
            Work::Fill(filling) if filling.is_newborn() => filling.born(),
            _ => self.keys.len(),
        }
    }

    /// The share of the work that is done, as a number of rows; training that comes of added rows has no share.
    pub fn progress(&self) -> usize {
        let share = match &self.work {
            Work::Add(adding) if self.halved => return (self.rows + adding.done()) / 2,
            Work::Add(adding) => return adding.done(),
            Work::Fill(_) if self.later.is_some() => 0.5,
            Work::Learn(learning, _, Fill::Newborn | Fill::Others) => 0.5 * learning.share(),
            Work::Fill(filling) if filling.counts() => 0.5 + 0.5 * filling.share(),
            _ => 1.0,
        };
        (share * self.rows as f64) as usize
    }

    /// Whether all is done.
    pub fn is_done(&self) -> bool {
        self.unsettled.is_empty() && matches!(self.work, Work::Done)
    }

    /// Whether an index that had lists, or is to have them, is without any until the next steps are done.
    pub fn is_applying(&self) -> bool {
        matches!(&self.work, Work::Fill(filling) if filling.is_applying())
    }

    /// Whether the next step is [`IvfPqSteps::write_step`]; else it is [`IvfPqSteps::plan_step`].
    pub fn needs_write(&self) -> bool {
        match &self.work {
            _ if self.unchecked.is_some() => false,
            _ if !self.unsettled.is_empty() => true,
            Work::Add(adding) => adding.needs_write(),
            Work::Learn(..) | Work::Done => false,
            Work::Fill(filling) => filling.needs_write(),
            Work::Balance(balancing) => balancing.needs_write(),
            Work::Compact(_) => true,
        }
    }

    /// The next step, of either kind, on an index of one's own. False if all had been done.
    ///
    /// # Errors
    /// Those of the steps.
    pub fn step<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<bool> {
        match (self.is_done(), self.needs_write()) {
            (true, _) => return Ok(false),
            (false, true) => self.write_step(index)?,
            (false, false) => self.plan_step(index)?,
        }
        Ok(true)
    }

    /// One step of planning, mostly a fraction of a second long.
    ///
    /// # Errors
    /// Those of the vectors, as [`crate::Index::add`], of the store, [`Error::OutOfMemory`], and [`Error::Changed`] if
    /// somebody else changed the index: it is valid, and holds the rows done so far.
    pub fn plan_step<S: PageStore>(&mut self, index: &IvfPq<S>) -> Result<()> {
        index.rows.check_mark(&self.mark)?;
        let pool = &self.pool;
        if let Some((vectors, checked)) = &mut self.unchecked {
            let next = next_rows(*checked, vectors.nrows(), vectors.ncols());
            *checked = next.end;
            pool.install(|| check_some(&index.rows.space, vectors, next))?;
            self.unchecked.take_if(|(vectors, checked)| *checked == vectors.nrows());
            return Ok(());
        }
        match &mut self.work {
            Work::Add(adding) => adding.plan(index, pool)?,
            Work::Learn(learning, source, fill) => {
                if let Some(model) = learning.step(index, source, pool)? {
                    let (trained, fill) = (source.len(), *fill);
                    let mut is_newborn = fill == Fill::Newborn;
                    if is_newborn && !index.rows.has_rows() {
                        // A row that is in the index has an entry at any time.
                        self.later = Some(source.clone());
                        (self.halved, is_newborn) = (true, false);
                    }
                    let source = match fill {
                        Fill::Same => source.clone(),
                        Fill::Newborn if is_newborn => source.clone(),
                        _ => Source::Slots(index.rows.visible(|_| true)?),
                    };
                    let newborn = is_newborn.then(|| self.keys.clone());
                    let counts = fill != Fill::Same;
                    let filling = Filling::new(source, newborn, model, trained, counts);
                    self.work = Work::Fill(Box::new(filling));
                }
            }
            Work::Fill(filling) => filling.plan(index, pool)?,
            Work::Balance(balancing) => balancing.plan(index, pool)?,
            Work::Compact(_) | Work::Done => {}
        }
        self.turn(index)
    }

    /// One step of writing, a few milliseconds long.
    ///
    /// # Errors
    /// Those of the store, and [`Error::Changed`] if somebody else changed the index: it is valid, and holds the rows
    /// done so far.
    pub fn write_step<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        index.rows.check_mark(&self.mark)?;
        let result = self.write(index);
        self.mark = index.rows.mark();
        result?;
        self.turn(index)
    }

    fn write<S: PageStore>(&mut self, index: &mut IvfPq<S>) -> Result<()> {
        if !self.unsettled.is_empty() {
            return index.settle(&std::mem::take(&mut self.unsettled));
        }
        match &mut self.work {
            Work::Add(adding) => adding.write(index, &self.keys),
            Work::Fill(filling) => filling.write(index),
            Work::Balance(balancing) => balancing.write(index),
            Work::Compact(compacting) => compacting.write(index),
            Work::Learn(..) | Work::Done => Ok(()),
        }
    }

    /// Goes on to what comes next, if something is done.
    fn turn<S: PageStore>(&mut self, index: &IvfPq<S>) -> Result<()> {
        let trains = match &self.work {
            Work::Add(adding) => adding.is_done() && index.training_is_due(),
            Work::Balance(balancing) => balancing.is_outdated(),
            _ => false,
        };
        if trains {
            self.work = retraining(index)?;
            return Ok(());
        }
        let done = match &self.work {
            Work::Add(adding) => adding.is_done(),
            Work::Fill(filling) => filling.is_done(),
            Work::Balance(balancing) => balancing.is_done(),
            Work::Compact(compacting) => compacting.is_done(),
            Work::Learn(..) | Work::Done => false,
        };
        if done {
            self.work = match self.later.take() {
                Some(source) => Work::Add(Adding::new(source, false)),
                None => Work::Done,
            };
        }
        Ok(())
    }
}

impl IvfPqSteps<'static, f32> {
    /// What [`IvfPq::rebalance`] does. Nothing is changed yet.
    ///
    /// # Errors
    /// As [`IvfPq::rebalance`].
    pub fn rebalance<S: PageStore>(index: &IvfPq<S>, threads: usize) -> Result<Self> {
        let pool = threads::pool(threads)?;
        let work = match (index.training_is_due(), index.is_trained()) {
            (true, _) => retraining(index)?,
            (false, true) if index.rows.has_rows() => Work::Balance(Box::default()),
            (false, _) => Work::Done,
        };
        IvfPqSteps::new(index, pool, work)
    }

    /// What [`IvfPq::compact`] does. Nothing is changed yet.
    ///
    /// # Errors
    /// As [`IvfPq::compact`].
    pub fn compact<S: PageStore>(index: &IvfPq<S>) -> Result<Self> {
        let work = match index.is_trained() {
            true => Work::Compact(Compacting::new(index.lists()?)),
            false => Work::Done,
        };
        IvfPqSteps::new(index, threads::pool(1)?, work)
    }
}

/// Training on what is in the index.
fn retraining<'a, S: PageStore, T>(index: &IvfPq<S>) -> Result<Work<'a, T>> {
    let slots = index.rows.visible(|_| true)?;
    Ok(match slots.is_empty() {
        true => Work::Done,
        false => Work::Learn(Box::new(Learning::new()), Source::Slots(slots), Fill::Same),
    })
}

impl<S: PageStore> IvfPq<S> {
    /// Takes all steps of a change, and tells of progress where stopping does no harm. Returns the keys.
    pub(super) fn take_steps<T: Element>(
        &mut self,
        mut steps: IvfPqSteps<'_, T>,
        options: &mut AddOptions<'_>,
    ) -> Result<Vec<u64>> {
        let total = steps.rows;
        while !steps.is_done() {
            if let Some(progress) = &mut options.progress
                && !steps.is_applying()
                && !progress(steps.progress(), total)
            {
                return Err(Error::Cancelled { added: steps.done() });
            }
            steps.step(self)?;
        }
        if let Some(progress) = &mut options.progress {
            progress(total, total);
        }
        Ok(steps.keys)
    }

    /// Learns lists and codes from vectors, an `n x dim` matrix, that need not be in the index, and puts those that are
    /// into these lists. Adding trains an index by itself; this is for rows that come a few at a time, or that differ
    /// from all that will come. A progress function is told of shares of all rows. O((n + rows) lists dim).
    ///
    /// # Errors
    /// As [`Index::add`](crate::Index::add); [`Error::Parameter`] without vectors; [`Error::NoVectors`] if the index has
    /// vectors and keeps nothing of them that could be encoded anew; [`Error::Cancelled`]: the index is as it was.
    pub fn train<T: Element>(
        &mut self,
        vectors: ArrayView2<'_, T>,
        mut options: AddOptions<'_>,
    ) -> Result<()> {
        let steps = IvfPqSteps::train(self, vectors, options.threads)?;
        self.take_steps(steps, &mut options).map(|_| ())
    }

    /// Joins the entries of lists that have more blocks than they need; blocks that become empty are used again, by any
    /// list. O(blocks), and O(dim) for each entry that moves.
    ///
    /// # Errors
    /// Those of the store; the index then holds the same vectors as before.
    pub fn compact(&mut self) -> Result<()> {
        let steps = IvfPqSteps::compact(self)?;
        self.take_steps(steps, &mut AddOptions::new()).map(|_| ())
    }
}
