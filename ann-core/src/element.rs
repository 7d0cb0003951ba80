//! Element types: what one coordinate of a stored vector is.

use std::fmt;
use std::str::FromStr;

use half::f16;
use half::slice::HalfFloatSliceExt;

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

/// Elements that are turned into floats at a time.
pub(crate) const STEP: usize = 64;

/// Calls `each` with the floats of little-endian `bytes`, [`STEP`] at a time.
pub(crate) fn floats_of<T: Element>(bytes: &[u8], mut each: impl FnMut(&[f32])) {
    let (mut values, mut floats) = ([T::from_f32(0.0); STEP], [0f32; STEP]);
    for bytes in bytes.chunks(STEP * size_of::<T>()) {
        let count = bytes.len() / size_of::<T>();
        T::read_bytes(bytes, &mut values);
        T::to_f32s(&values, &mut floats);
        each(&floats[..count]);
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

    /// Makes the first of `out` the floats of `values`, faster than one by one.
    fn to_f32s(values: &[Self], out: &mut [f32]) {
        out.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_f32());
    }

    /// The nearest value of this type; integers round and saturate.
    fn from_f32(value: f32) -> Self;

    /// Appends the little-endian bytes of `values` to `out`.
    fn extend_bytes(values: &[Self], out: &mut Vec<u8>);

    /// Reads little-endian `bytes` back; its length must be a multiple of the element's size.
    fn from_bytes(bytes: &[u8]) -> Vec<Self>;

    /// Makes the first of `out` what little-endian `bytes` hold.
    fn read_bytes(bytes: &[u8], out: &mut [Self]);
}

macro_rules! element {
    ($type:ty, $dtype:expr, |$value:ident| $to_f32:expr, |$float:ident| $from_f32:expr $(, $to_f32s:item)?) => {
        impl Element for $type {
            const DTYPE: DType = $dtype;

            $($to_f32s)?

            fn to_f32(self) -> f32 {
                let $value = self;
                $to_f32
            }

            fn from_f32($float: f32) -> $type {
                $from_f32
            }

            fn extend_bytes(values: &[$type], out: &mut Vec<u8>) {
                let start = out.len();
                out.resize(start + size_of_val(values), 0);
                for (bytes, value) in out[start..].as_chunks_mut().0.iter_mut().zip(values) {
                    *bytes = value.to_le_bytes();
                }
            }

            fn from_bytes(bytes: &[u8]) -> Vec<$type> {
                let (chunks, _) = bytes.as_chunks::<{ size_of::<$type>() }>();
                chunks.iter().map(|&chunk| <$type>::from_le_bytes(chunk)).collect()
            }

            fn read_bytes(bytes: &[u8], out: &mut [$type]) {
                let (chunks, _) = bytes.as_chunks::<{ size_of::<$type>() }>();
                for (out, &chunk) in out.iter_mut().zip(chunks) {
                    *out = <$type>::from_le_bytes(chunk);
                }
            }
        }
    };
}

element!(f32, DType::F32, |v| v, |x| x);
element!(
    f16,
    DType::F16,
    |v| f16::to_f32(v),
    |x| f16::from_f32(x),
    // half converts slices with the machine's vector instructions, single values without.
    fn to_f32s(values: &[f16], out: &mut [f32]) {
        let len = values.len().min(out.len());
        values[..len].convert_to_f32_slice(&mut out[..len]);
    }
);
element!(i8, DType::I8, |v| f32::from(v), |x| x.round() as i8);
element!(u8, DType::U8, |v| f32::from(v), |x| x.round() as u8);
