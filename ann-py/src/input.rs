//! What comes in from Python: matrices of each element type, and whole numbers.

use std::ops::RangeInclusive;

use ann_core::{DType, Error, MAX_EF};
use half::f16;
use numpy::PyReadonlyArrayDyn;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;

use crate::failure::Answer;

/// A matrix, or one vector, of one of the element types: what `_input.vectors` in Python makes.
pub enum Vectors<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    F16(PyReadonlyArrayDyn<'py, f16>),
    I8(PyReadonlyArrayDyn<'py, i8>),
    U8(PyReadonlyArrayDyn<'py, u8>),
}

/// Evaluates `$body` with `$rows` as a view of the matrix, whatever its element type; one vector is one row.
#[macro_export]
macro_rules! typed {
    ($vectors:expr, $rows:ident => $body:expr) => {
        match &$vectors {
            $crate::input::Vectors::F32(array) => {
                let $rows = $crate::input::rows(array)?;
                $body
            }
            $crate::input::Vectors::F16(array) => {
                let $rows = $crate::input::rows(array)?;
                $body
            }
            $crate::input::Vectors::I8(array) => {
                let $rows = $crate::input::rows(array)?;
                $body
            }
            $crate::input::Vectors::U8(array) => {
                let $rows = $crate::input::rows(array)?;
                $body
            }
        }
    };
}

/// The rows of an array of one or two dimensions.
pub fn rows<'a, T: numpy::Element>(
    array: &'a PyReadonlyArrayDyn<'_, T>,
) -> Answer<ndarray::ArrayView2<'a, T>> {
    let view = array.as_array();
    let view = if view.ndim() == 1 { view.insert_axis(ndarray::Axis(0)) } else { view };
    let dimensions = view.ndim();
    view.into_dimensionality().map_err(|_| {
        let value = format!("{dimensions}-dimensional");
        Error::Parameter { name: "x", value, allowed: "a vector or a matrix".into() }.into()
    })
}

impl<'py> Vectors<'py> {
    /// An array that has the element type already.
    pub fn of(dtype: DType, array: &Bound<'py, PyAny>) -> PyResult<Vectors<'py>> {
        Ok(match dtype {
            DType::F16 => Vectors::F16(array.extract()?),
            DType::I8 => Vectors::I8(array.extract()?),
            DType::U8 => Vectors::U8(array.extract()?),
            _ => Vectors::F32(array.extract()?),
        })
    }

    /// Whether this is one vector rather than a matrix.
    pub fn is_one(&self) -> bool {
        match self {
            Vectors::F32(array) => array.as_array().ndim() == 1,
            Vectors::F16(array) => array.as_array().ndim() == 1,
            Vectors::I8(array) => array.as_array().ndim() == 1,
            Vectors::U8(array) => array.as_array().ndim() == 1,
        }
    }
}

/// A parameter that is a whole number in a range.
pub fn whole(
    name: &'static str,
    value: &Bound<'_, PyAny>,
    range: RangeInclusive<u64>,
) -> Answer<usize> {
    match value.extract::<u64>() {
        Ok(number) if range.contains(&number) => return Ok(number as usize),
        Err(raised) if !raised.is_instance_of::<PyOverflowError>(value.py()) => {
            return Err(raised.into());
        }
        _ => {}
    }
    let allowed = match range.into_inner() {
        (least, u64::MAX) => format!("at least {least}"),
        (least, most) => format!("from {least} to {most}"),
    };
    Err(Error::Parameter { name, value: value.to_string(), allowed }.into())
}

/// The threads that a call may take.
pub fn threads(value: &Bound<'_, PyAny>) -> Answer<usize> {
    whole("threads", value, 0..=1024)
}

/// The size of a candidate pool.
pub fn ef(value: &Bound<'_, PyAny>) -> Answer<usize> {
    whole("ef", value, 1..=MAX_EF as u64)
}
