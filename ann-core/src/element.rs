//! Element types: what one coordinate of a stored vector is.

use std::fmt;
use std::str::FromStr;

use half::f16;

use crate::error::{Error, Result};

/// The largest dimension an index takes.
pub const MAX_DIM: usize = 65_536;

/// The type of one coordinate, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit IEEE float.
    F32 = 1,
    /// 16-bit IEEE float.
    F16 = 2,
    /// Signed byte.
    I8 = 3,
    /// Unsigned byte.
    U8 = 4,
}

impl DType {
    /// Bytes a coordinate.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 => 2,
            DType::I8 | DType::U8 => 1,
        }
    }

    /// The type that a meta page names by `code`, if there is one.
    pub(crate) const fn from_code(code: u8) -> Option<DType> {
        match code {
            1 => Some(DType::F32),
            2 => Some(DType::F16),
            3 => Some(DType::I8),
            4 => Some(DType::U8),
            _ => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::I8 => "i8",
            DType::U8 => "u8",
        })
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(name: &str) -> Result<DType> {
        match name {
            "f32" => Ok(DType::F32),
            "f16" => Ok(DType::F16),
            "i8" => Ok(DType::I8),
            "u8" => Ok(DType::U8),
            _ => Err(Error::parameter("dtype", name, "one of f32, f16, i8, u8")),
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for i8 {}
    impl Sealed for u8 {}
}

/// A Rust type that vectors can be made of: `f32`, [`half::f16`], `i8` or `u8`.
pub trait Element: sealed::Sealed + Copy + Send + Sync + PartialEq + fmt::Debug + 'static {
    /// The name of this type in an index.
    const DTYPE: DType;

    /// The value as a float.
    fn to_f32(self) -> f32;

    /// The nearest value of this type; integers round and saturate.
    fn from_f32(value: f32) -> Self;

    /// Appends the little-endian bytes of `values` to `out`.
    fn extend_bytes(values: &[Self], out: &mut Vec<u8>);

    /// Reads little-endian `bytes` back; its length must be a multiple of the element's size.
    fn from_bytes(bytes: &[u8]) -> Vec<Self>;
}

macro_rules! element {
    ($type:ty, $dtype:expr, |$value:ident| $to_f32:expr, |$float:ident| $from_f32:expr) => {
        impl Element for $type {
            const DTYPE: DType = $dtype;

            fn to_f32(self) -> f32 {
                let $value = self;
                $to_f32
            }

            fn from_f32($float: f32) -> $type {
                $from_f32
            }

            fn extend_bytes(values: &[$type], out: &mut Vec<u8>) {
                out.reserve(size_of_val(values));
                for value in values {
                    out.extend_from_slice(&value.to_le_bytes());
                }
            }

            fn from_bytes(bytes: &[u8]) -> Vec<$type> {
                let (chunks, _) = bytes.as_chunks::<{ size_of::<$type>() }>();
                chunks.iter().map(|&chunk| <$type>::from_le_bytes(chunk)).collect()
            }
        }
    };
}

element!(f32, DType::F32, |v| v, |x| x);
element!(f16, DType::F16, |v| f16::to_f32(v), |x| f16::from_f32(x));
element!(i8, DType::I8, |v| f32::from(v), |x| x.round() as i8);
element!(u8, DType::U8, |v| f32::from(v), |x| x.round() as u8);
