//! What a search may ask of its caller, as the core takes it: filters, and distances where an index keeps no vectors.

use std::collections::HashSet;

use ann_core::{DEFAULT_EF, Error, Filter};
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
    function: Py<PyAny>,
    raised: Mutex<Option<PyErr>>,
}

/// A function in Python that is called with a query and an id, and the queries.
pub struct Measure {
    function: Function,
    queries: Py<PyAny>,
    is_one: bool,
}

/// What a search may ask of its caller.
pub struct Asked<'a> {
    pub filter: Chosen<'a>,
    pub exact: Option<Measure>,
}

impl Asked<'_> {
    /// Whether a function is among it: then the search is long, and not to be spread over threads.
    pub fn is_function(&self) -> bool {
        self.filter.is_function() || self.exact.is_some()
    }

    /// Runs a search; with a function, with the GIL held throughout, and what it raised is the answer.
    pub fn run<R: Send>(&self, search: impl FnOnce() -> Answer<R> + Send) -> Answer<R> {
        match &self.exact {
            Some(exact) => exact.function.run(|| self.filter.run(search)),
            None => self.filter.run(search),
        }
    }
}

impl<'a> Chosen<'a> {
    pub fn new(given: Option<&'a Given<'_>>) -> Answer<Chosen<'a>> {
        let slice = |error: numpy::AsSliceError| PyErr::from(error);
        Ok(match given {
            None => Chosen::All,
            Some(Given::Mask(mask)) => Chosen::Mask(mask.as_slice().map_err(slice)?),
            Some(Given::Ids(ids)) => Chosen::Ids(ids.as_slice().map_err(slice)?),
            Some(Given::Function(function)) => Chosen::Function(Function::new(function)),
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
        match self {
            Chosen::Function(function) => function.run(search),
            _ => search(),
        }
    }
}

impl Measure {
    /// Of these queries, as `function` tells.
    pub fn new(function: &Bound<'_, PyAny>, queries: &Bound<'_, PyAny>, is_one: bool) -> Measure {
        let function = Function::new(function);
        Measure { function, queries: queries.clone().unbind(), is_one }
    }

    /// The distance of an id's vector to a query; `None` if the id is not to be returned.
    pub fn distance(&self, query: usize, key: u64) -> ann_core::Result<Option<f32>> {
        let distance = Python::attach(|py| {
            let queries = self.queries.bind(py);
            let query = if self.is_one { queries.clone() } else { queries.get_item(query)? };
            self.function.function.bind(py).call1((query, key))?.extract::<Option<f32>>()
        });
        distance.map_err(|raised| {
            *self.function.raised.lock() = Some(raised);
            // What was raised takes its place.
            Error::Cancelled { added: 0 }
        })
    }
}

impl Function {
    fn new(function: &Bound<'_, PyAny>) -> Function {
        Function { function: function.clone().unbind(), raised: Mutex::new(None) }
    }

    fn run<R: Send>(&self, search: impl FnOnce() -> Answer<R> + Send) -> Answer<R> {
        let answer = Python::attach(|_| filtering(search));
        match self.raised.lock().take() {
            Some(raised) => Err(raised.into()),
            None => answer,
        }
    }

    fn accepts(&self, key: u64) -> bool {
        if self.raised.lock().is_some() {
            return false;
        }
        debug_assert!(is_filtering());
        let accepted = Python::attach(|py| self.function.bind(py).call1((key,))?.is_truthy());
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
