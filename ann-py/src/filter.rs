//! Filters from Python, as the core takes them.

use std::collections::HashSet;

use ann_core::{DEFAULT_EF, Filter};
use numpy::PyReadonlyArray1;
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::failure::Answer;
use crate::shared::{filtering, is_filtering};

/// A filter as `_input.chosen` in Python makes it.
#[derive(FromPyObject)]
pub enum Given<'py> {
    Mask(PyReadonlyArray1<'py, u8>),
    Ids(PyReadonlyArray1<'py, i64>),
    Function(Bound<'py, PyAny>),
}

/// A filter that can be used without the GIL.
pub enum Chosen<'a> {
    All,
    /// A byte an id, not 0 if the id is allowed.
    Mask(&'a [u8]),
    Ids(&'a [i64]),
    Function(Function),
}

/// A function in Python, and what it raised.
pub struct Function {
    accepts: Py<PyAny>,
    raised: Mutex<Option<PyErr>>,
}

impl<'a> Chosen<'a> {
    pub fn new(given: Option<&'a Given<'_>>) -> Answer<Chosen<'a>> {
        let slice = |error: numpy::AsSliceError| PyErr::from(error);
        Ok(match given {
            None => Chosen::All,
            Some(Given::Mask(mask)) => Chosen::Mask(mask.as_slice().map_err(slice)?),
            Some(Given::Ids(ids)) => Chosen::Ids(ids.as_slice().map_err(slice)?),
            Some(Given::Function(function)) => {
                let accepts = function.clone().unbind();
                Chosen::Function(Function { accepts, raised: Mutex::new(None) })
            }
        })
    }

    /// Whether it is a function: then the search is long, and not to be spread over threads.
    pub fn is_function(&self) -> bool {
        matches!(self, Chosen::Function(_))
    }

    /// Prepares it for searches with a pool of `ef` among `len` vectors.
    pub fn prepare(&self, ef: Option<usize>, len: usize) -> Prepared<'_> {
        // As many as the core would rather score one by one than look for: a list leads to them directly.
        let few = |count: usize| {
            let count = count as f64;
            count * count <= 16.0 * ef.unwrap_or(DEFAULT_EF) as f64 * len as f64
        };
        match self {
            Chosen::All => Prepared::All,
            Chosen::Mask(mask) if few(mask.iter().filter(|&&byte| byte != 0).count()) => {
                let allowed = (0..).zip(*mask).filter(|&(_, &byte)| byte != 0);
                Prepared::Keys(allowed.map(|(key, _)| key).collect())
            }
            Chosen::Mask(mask) => Prepared::Accepts(Box::new(|key| {
                usize::try_from(key).ok().and_then(|at| mask.get(at)).is_some_and(|&byte| byte != 0)
            })),
            Chosen::Ids(ids) if few(ids.len()) => {
                Prepared::Keys(ids.iter().map(|&id| id as u64).collect())
            }
            Chosen::Ids(ids) => {
                let keys: HashSet<u64> = ids.iter().map(|&id| id as u64).collect();
                Prepared::Accepts(Box::new(move |key| keys.contains(&key)))
            }
            Chosen::Function(function) => Prepared::Accepts(Box::new(|key| function.accepts(key))),
        }
    }

    /// Runs a search; with a function as the filter, with the GIL held throughout, and what it raised is the answer.
    pub fn run<R: Send>(&self, search: impl FnOnce() -> Answer<R> + Send) -> Answer<R> {
        let Chosen::Function(function) = self else {
            return search();
        };
        let answer = Python::attach(|_| filtering(search));
        match function.raised.lock().take() {
            Some(raised) => Err(raised.into()),
            None => answer,
        }
    }
}

impl Function {
    fn accepts(&self, key: u64) -> bool {
        if self.raised.lock().is_some() {
            return false;
        }
        debug_assert!(is_filtering());
        let accepted = Python::attach(|py| self.accepts.bind(py).call1((key,))?.is_truthy());
        accepted.unwrap_or_else(|raised| {
            *self.raised.lock() = Some(raised);
            false
        })
    }
}

/// A filter in the form that is cheapest for a search.
pub enum Prepared<'a> {
    All,
    Keys(Vec<u64>),
    Accepts(Box<dyn Fn(u64) -> bool + Send + Sync + 'a>),
}

impl Prepared<'_> {
    pub fn filter(&self) -> Filter<'_> {
        match self {
            Prepared::All => Filter::None,
            Prepared::Keys(keys) => Filter::Keys(keys),
            Prepared::Accepts(accepts) => Filter::Predicate(accepts.as_ref()),
        }
    }
}
