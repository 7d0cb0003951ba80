//! A search that can be continued.

use std::sync::Arc;

use ann_core::{Filter, Index};
use numpy::{PyArray1, ToPyArray};
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::any;
use crate::engine::key_to_id;
use crate::failure::Answer;
use crate::filter::{Chosen, Given};
use crate::shared::Shared;

/// What an iterator in Python fetches its hits from.
#[pyclass(frozen, module = "ann._ann")]
pub struct Cursor {
    shared: Arc<Shared>,
    cursor: Mutex<ann_core::Cursor>,
}

impl Cursor {
    pub fn new(shared: Arc<Shared>, cursor: ann_core::Cursor) -> Cursor {
        Cursor { shared, cursor: Mutex::new(cursor) }
    }
}

/// Ids and distances.
pub type Found<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f32>>);

#[pymethods]
impl Cursor {
    /// The next `n` hits, fewer only at the end.
    #[pyo3(signature = (n, filter=None))]
    fn fetch<'py>(
        &self,
        py: Python<'py>,
        n: usize,
        filter: Option<Given<'py>>,
    ) -> Answer<Found<'py>> {
        let filter = Chosen::new(filter.as_ref())?;
        let hits = py.detach(|| {
            let reading = match filter.is_function() {
                true => self.shared.read_long(),
                false => self.shared.read(),
            };
            let index = reading.index()?;
            let prepared = filter.prepare(Some(n), any!(index, index => index.len()));
            let cursor = &mut *self.cursor.lock();
            filter.run(|| Ok(any!(index, index => index.resume(cursor, n, prepared.filter()))?))
        })?;
        let ids: Vec<i64> = hits.iter().map(|hit| key_to_id(hit.key)).collect::<Answer<_>>()?;
        let distances: Vec<f32> = hits.iter().map(|hit| hit.distance).collect();
        Ok((ids.to_pyarray(py), distances.to_pyarray(py)))
    }

    /// Raises if the index has changed since the search began.
    fn check(&self, py: Python<'_>) -> Answer<()> {
        py.detach(|| {
            let reading = self.shared.read();
            let index = reading.index()?;
            let cursor = &mut self.cursor.lock();
            any!(index, index => index.resume(cursor, 0, Filter::None))?;
            Ok(())
        })
    }
}
