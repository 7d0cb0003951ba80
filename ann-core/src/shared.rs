//! Indexes that many handles change at the same time: a database's processes, each with one of its own on the same
//! pages.

use crate::element::{DType, Element};
use crate::error::Result;
use crate::index::{Cursor, Hit, Index};
use crate::page::PageStore;

/// What an index can do beside other handles on its pages, whose store says that there are such
/// ([`PageStore::SHARED`]). What [`Index`] does to an index needs it for itself; searches by cursors do not.
///
/// Insertions may run at the same time, and beside removals; so may searches beside everything. A sweep runs beside
/// searches, one at a time; where [`SharedIndex::is_alone`] says so, its next step needs that no insertion is under
/// way. All that is the caller's affair.
pub trait SharedIndex: Index {
    /// Where its pages are.
    type Store: PageStore;
    /// A sweep under way.
    type Sweep;

    /// The store that the index lives in.
    fn store(&self) -> &Self::Store;

    /// What vectors are stored as; `None` if only their codes are.
    fn vectors(&self) -> Option<DType>;

    /// Looks at what others have done since the index was opened, or since this was called last.
    ///
    /// # Errors
    /// Those of the store; [`Error::Corrupt`](crate::Error::Corrupt).
    fn refresh(&mut self) -> Result<()>;

    /// Adds one vector while others add theirs. `key` must not be in the index, which is not checked.
    ///
    /// # Errors
    /// As [`Index::add`]. The vector is then not in the index, or not all of its links are.
    fn insert_one<T: Element>(&mut self, vector: &[T], key: u64) -> Result<()>;

    /// Removes the vectors whose keys `is_dead` says are to go; returns how many there were. What is asked for beside
    /// insertions is whatever was there when this began. Their slots wait for a sweep.
    ///
    /// # Errors
    /// Those of the store; [`Error::Corrupt`](crate::Error::Corrupt).
    fn remove_where(&mut self, is_dead: impl FnMut(u64) -> bool) -> Result<usize>;

    /// Vectors that searches return, and removed ones that wait for a sweep, as the handle knows it.
    fn counts(&self) -> (usize, usize);

    /// The next hits of a cursor, some at a time, beside changes that others make; none if there are no more. Where
    /// only codes are stored, all come at a time that are known by then.
    ///
    /// # Errors
    /// As [`Index::resume`]; [`Error::Changed`](crate::Error::Changed) only if slots may have got other vectors,
    /// entries may have moved, or the index has grown by more than the handle knew of: the search is to begin anew.
    fn next_hits(&mut self, cursor: &mut Cursor) -> Result<Vec<Hit>>;

    /// As [`SharedIndex::next_hits`], for a search that is not to go on: as many in all as it keeps candidates, all
    /// measured.
    ///
    /// # Errors
    /// As [`SharedIndex::next_hits`].
    fn only_hits(&mut self, cursor: &mut Cursor) -> Result<Vec<Hit>>;

    /// Begins a sweep, which frees the slots of removed vectors and brings the index into shape, by steps that change
    /// about `size` vectors each.
    ///
    /// # Errors
    /// Those of the store; [`Error::Corrupt`](crate::Error::Corrupt).
    fn begin_sweep(&mut self, size: usize) -> Result<Self::Sweep>;

    /// Whether no insertion may be under way during the next step.
    fn is_alone(&self, sweep: &Self::Sweep) -> bool;

    /// One step, on the current thread pool. False once there is nothing more to do. A sweep that is dropped leaves a
    /// valid index, and the next one does what was left undone.
    ///
    /// # Errors
    /// Those of the store; the index then holds the same vectors as before.
    fn step(&mut self, sweep: &mut Self::Sweep) -> Result<bool>;
}
