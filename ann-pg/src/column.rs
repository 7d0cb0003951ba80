//! The column that an index is on: dimension, element type and metric, and the vectors that pgvector's types hold.

use std::ffi::CStr;

use ann_core::{DType, Element, Metric};
use half::f16;
use pgrx::PgSqlErrorCode as Code;
use pgrx::{PgRelation, pg_sys};

use crate::failure::refuse;

/// The most dimensions that pgvector's types have.
pub const MAX_DIM: i32 = 16_000;

/// What an index is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Dimensions, as the column's type says.
    pub dim: usize,
    /// The type of elements.
    pub dtype: DType,
    /// What the operator class orders by.
    pub metric: Metric,
}

/// The bytes in front of the elements of pgvector's `vector` and `halfvec`.
#[repr(C)]
struct Header {
    length: i32,
    dim: i16,
    unused: i16,
}

/// What an operator class orders by, and the elements of the type that it is for.
pub fn of_opclass(family: pg_sys::Oid, input: pg_sys::Oid) -> Option<(DType, Metric)> {
    // SAFETY: look-ups in the catalogues; the names come back as C strings in the current context, or null.
    let (operator, name) = unsafe {
        let operator = pg_sys::get_opfamily_member(family, input, input, 1);
        let name = pg_sys::get_opname(operator);
        let known = if name.is_null() { c"" } else { CStr::from_ptr(name) };
        (known.to_bytes().to_vec(), pg_sys::format_type_extended(input, -1, 0))
    };
    // SAFETY: `format_type_extended` without FORMAT_TYPE_INVALID_AS_NULL always gives a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    // The schema is part of the name where it is not on the search path.
    let dtype = match name.rsplit(|&byte| byte == b'.').next()? {
        b"vector" => DType::F32,
        b"halfvec" => DType::F16,
        _ => return None,
    };
    let metric = match operator.as_slice() {
        b"<->" => Metric::L2sq,
        b"<#>" => Metric::InnerProduct,
        b"<=>" => Metric::Cosine,
        _ => return None,
    };
    Some((dtype, metric))
}

impl Column {
    /// What an index is on; an ERROR if the column has no dimension.
    ///
    /// # Safety
    /// `index` is an open index relation.
    pub unsafe fn of(index: pg_sys::Relation) -> Column {
        // SAFETY: an open index has an operator family and an input type for each key column, of which there is at
        // least one.
        let (typmod, family, input) = unsafe {
            let relation = PgRelation::from_pg(index);
            let typmod = relation.tuple_desc().get(0).map_or(-1, |attribute| attribute.atttypmod);
            (typmod, *(*index).rd_opfamily, *(*index).rd_opcintype)
        };
        let Some((dtype, metric)) = of_opclass(family, input) else {
            refuse(Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "unknown operator class");
        };
        match usize::try_from(typmod) {
            Ok(dim) if dim > 0 => Column { dim, dtype, metric },
            _ => {
                let message = "column does not have dimensions: declare them, as in vector(384)";
                refuse(Code::ERRCODE_INVALID_PARAMETER_VALUE, message)
            }
        }
    }
}

/// A vector of the column's type, detoasted; it lives as long as the memory context that is current.
///
/// # Safety
/// `value` is a `vector` or `halfvec` whose elements are of type `T`.
pub unsafe fn elements<'a, T: Element>(value: pg_sys::Datum) -> &'a [T] {
    // SAFETY: the caller's: a varlena of pgvector's layout, which is aligned to four bytes once it is detoasted.
    unsafe {
        let bytes = pg_sys::pg_detoast_datum(value.cast_mut_ptr());
        let header = bytes.cast::<Header>();
        let dim = usize::try_from((*header).dim).unwrap_or(0);
        std::slice::from_raw_parts(header.add(1).cast::<T>(), dim)
    }
}

/// Whether a vector has a direction, so that there are cosine distances to it.
pub fn has_direction<T: Element>(vector: &[T]) -> bool {
    let norm: f64 = vector.iter().map(|value| f64::from(value.to_f32()).powi(2)).sum();
    (norm.sqrt().recip() as f32).is_finite()
}

/// Calls `$body` with `$T` as the type of a column's elements.
macro_rules! with_elements {
    ($dtype:expr, $T:ident, $body:expr) => {
        match $dtype {
            ann_core::DType::F16 => {
                type $T = half::f16;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}
pub(crate) use with_elements;

const _: () = assert!(size_of::<Header>() == 8 && size_of::<f16>() == 2);
