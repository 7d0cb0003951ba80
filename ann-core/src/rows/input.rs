//! Checks at the door, on whole matrices and key lists, before anything is changed.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;

use ndarray::{ArrayView1, ArrayView2};
use rayon::prelude::*;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::page::PageStore;

use super::Rows;
use super::space::Space;

/// The largest key; the next one up means "none".
pub(crate) const MAX_KEY: u64 = u64::MAX - 1;

/// A matrix row as a slice, copied only if it is not contiguous.
pub(crate) fn slice<'a, T: Element>(row: ArrayView1<'a, T>) -> Cow<'a, [T]> {
    match row.to_slice() {
        Some(slice) => Cow::Borrowed(slice),
        None => Cow::Owned(row.to_vec()),
    }
}

/// Coordinates that one step of a pass over the rows of a matrix reads, about.
const STEP: usize = 1 << 24;

/// The rows that a pass over a matrix of so many looks at in one step, after those before `from`.
pub(crate) fn next_rows(from: usize, rows: usize, dim: usize) -> Range<usize> {
    from..rows.min(from + (STEP / dim.max(1)).max(1))
}

/// Checks every row of a matrix; the first bad one, by row, is reported. Runs on the current thread pool.
pub(crate) fn check_rows<T: Element>(space: &Space, vectors: &ArrayView2<'_, T>) -> Result<()> {
    space.check_shape::<T>(vectors.ncols())?;
    check_some(space, vectors, 0..vectors.nrows())
}

/// The same for some rows of a matrix of the right shape.
pub(crate) fn check_some<T: Element>(
    space: &Space,
    vectors: &ArrayView2<'_, T>,
    rows: Range<usize>,
) -> Result<()> {
    let bad = rows
        .into_par_iter()
        .with_min_len(256)
        .find_map_first(|row| space.check(&slice(vectors.row(row)), row).err());
    bad.map_or(Ok(()), Err)
}

impl<S: PageStore> Rows<S> {
    /// Checks the shape and the keys of rows that are to be added, or with `replace` to take the place of those that
    /// their keys have now, and returns their keys.
    pub(crate) fn checked_keys<T: Element>(
        &self,
        vectors: &ArrayView2<'_, T>,
        keys: Option<&[u64]>,
        replace: bool,
    ) -> Result<Vec<u64>> {
        self.space.check_shape::<T>(vectors.ncols())?;
        match keys {
            Some(keys) if replace => self.known_keys(vectors.nrows(), keys),
            keys => self.new_keys(vectors.nrows(), keys),
        }
    }

    /// The keys for `count` new rows: those given, once they are known to be unique and not taken, or the next.
    pub(crate) fn new_keys(&self, count: usize, keys: Option<&[u64]>) -> Result<Vec<u64>> {
        let next = self.meta.next_key.get();
        let Some(keys) = keys else {
            return match next.checked_add(count as u64) {
                Some(end) => Ok((next..end).collect()),
                None => {
                    Err(Error::parameter("keys", "none", "keys given: the largest key is in use"))
                }
            };
        };
        check_unique(count, keys)?;
        for (row, &key) in keys.iter().enumerate() {
            if key > MAX_KEY {
                return Err(Error::parameter("key", key, format!("from 0 to {MAX_KEY}")));
            }
            // Keys above all that were ever given are free; only others need the map.
            if key < next && self.id_of(key)?.is_some() {
                return Err(Error::DuplicateKey { key, row });
            }
        }
        Ok(keys.to_vec())
    }

    /// The keys of rows that are to be replaced: unique and in the index.
    pub(crate) fn known_keys(&self, count: usize, keys: &[u64]) -> Result<Vec<u64>> {
        check_unique(count, keys)?;
        for (row, &key) in keys.iter().enumerate() {
            if self.id_of(key)?.is_none() {
                return Err(Error::UnknownKey { key, row });
            }
        }
        Ok(keys.to_vec())
    }
}

fn check_unique(count: usize, keys: &[u64]) -> Result<()> {
    if keys.len() != count {
        return Err(Error::KeyCount { keys: keys.len(), rows: count });
    }
    if keys.is_sorted_by(|a, b| a < b) {
        return Ok(());
    }
    let mut sorted: Vec<(u64, usize)> = keys.iter().copied().zip(0..).collect();
    sorted.sort_unstable();
    let repeated = sorted.windows(2).filter(|pair| pair[0].0 == pair[1].0).map(|pair| pair[1]);
    match repeated.min_by_key(|&(_, row)| row) {
        Some((key, row)) => Err(Error::DuplicateKey { key, row }),
        None => Ok(()),
    }
}

/// Hashes of rows of a matrix, those at some places of an order, each with its place. Runs on the current thread pool.
pub(crate) fn hashes<T: Element>(
    space: &Space,
    vectors: &ArrayView2<'_, T>,
    order: &[u32],
    places: Range<usize>,
) -> Vec<(u64, u32)> {
    let hash = |bytes: &mut Vec<u8>, place: usize| {
        tell(space, vectors, order[place], bytes);
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        (hasher.finish(), place as u32)
    };
    places.into_par_iter().map_init(Vec::new, hash).collect()
}

/// Whether two rows of a matrix are the same to an index. Bits, not values: -0.0 and 0.0 are the same number, but not
/// given back the same.
pub(crate) fn are_equal<T: Element>(
    space: &Space,
    vectors: &ArrayView2<'_, T>,
    a: u32,
    b: u32,
) -> bool {
    let [a, b] = [a, b].map(|row| {
        let mut bytes = Vec::new();
        tell(space, vectors, row, &mut bytes);
        bytes
    });
    a == b
}

/// Makes `bytes` what tells a row of a matrix from others: it, or the direction that is left of it.
fn tell<T: Element>(space: &Space, vectors: &ArrayView2<'_, T>, row: u32, bytes: &mut Vec<u8>) {
    bytes.clear();
    let vector = slice(vectors.row(row as usize));
    match space.is_scaled() {
        true => space.encode(&vector, bytes),
        false => T::extend_bytes(&vector, bytes),
    }
}
