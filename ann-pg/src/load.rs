//! What a build asks of an index in memory: how much it takes, and to take in rows step by step.

use std::fs::File;

use ann_core::{
    Element, Graph, Insertion, IvfPq, IvfPqSteps, MemStore, Needs, Result, SharedIndex, Topology,
};
use ndarray::ArrayView2;

/// An index in memory that is filled at one go.
pub trait Loaded: SharedIndex<Store = MemStore> {
    /// Rows on their way in.
    type Steps<'a, T: Element>;

    /// What it takes to take in so many rows on so many threads.
    fn needs(&self, rows: usize, threads: usize) -> Needs;

    /// Moves its pages to a file, and keeps the memory beside it within so many bytes, if so many rows can be taken in
    /// with them.
    fn spill(&mut self, file: File, memory: u64, rows: usize) -> Result<()>;

    /// Begins to take in rows under their keys, on so many threads.
    fn begin<'a, T: Element>(
        &self,
        rows: ArrayView2<'a, T>,
        keys: &[u64],
        threads: usize,
    ) -> Result<Self::Steps<'a, T>>;

    /// One step. How many rows' work is done; `None` once all are in.
    fn load<T: Element>(&mut self, steps: &mut Self::Steps<'_, T>) -> Result<Option<usize>>;
}

impl<K: Topology> Loaded for Graph<MemStore, K> {
    type Steps<'a, T: Element> = Insertion<'a, T>;

    fn needs(&self, rows: usize, threads: usize) -> Needs {
        Graph::needs(self, rows, threads)
    }

    fn spill(&mut self, file: File, memory: u64, rows: usize) -> Result<()> {
        self.move_to_file(file)?;
        self.set_memory_limit(Some(memory.max(self.least_memory(rows))))
    }

    fn begin<'a, T: Element>(
        &self,
        rows: ArrayView2<'a, T>,
        keys: &[u64],
        threads: usize,
    ) -> Result<Insertion<'a, T>> {
        Insertion::new(self, rows, Some(keys), false, threads)
    }

    fn load<T: Element>(&mut self, steps: &mut Insertion<'_, T>) -> Result<Option<usize>> {
        Ok(steps.step(self)?.then(|| steps.progress()))
    }
}

impl Loaded for IvfPq {
    type Steps<'a, T: Element> = IvfPqSteps<'a, T>;

    fn needs(&self, rows: usize, threads: usize) -> Needs {
        IvfPq::needs(self, rows, threads)
    }

    fn spill(&mut self, file: File, memory: u64, _rows: usize) -> Result<()> {
        self.move_to_file(file)?;
        self.set_memory_limit(Some(memory));
        Ok(())
    }

    fn begin<'a, T: Element>(
        &self,
        rows: ArrayView2<'a, T>,
        keys: &[u64],
        threads: usize,
    ) -> Result<IvfPqSteps<'a, T>> {
        IvfPqSteps::insert(self, rows, Some(keys), false, threads)
    }

    fn load<T: Element>(&mut self, steps: &mut IvfPqSteps<'_, T>) -> Result<Option<usize>> {
        Ok(steps.step(self)?.then(|| steps.progress()))
    }
}
