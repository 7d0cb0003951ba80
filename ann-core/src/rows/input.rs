//! Checks at the door, on whole matrices and key lists, before anything is changed.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hasher};

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

/// Checks every row of a matrix; the first bad one, by row, is reported. Runs on the current thread pool.
pub(crate) fn check_rows<T: Element>(space: &Space, vectors: &ArrayView2<'_, T>) -> Result<()> {
    space.check_shape::<T>(vectors.ncols())?;
    let bad = (0..vectors.nrows())
        .into_par_iter()
        .with_min_len(256)
        .find_map_first(|row| space.check(&slice(vectors.row(row)), row).err());
    bad.map_or(Ok(()), Err)
}

impl<S: PageStore> Rows<S> {
    /// Checks rows that are to be added, or with `replace` to take the place of those that their keys have now, and
    /// returns their keys. Runs on the current thread pool.
    pub(crate) fn checked_keys<T: Element>(
        &self,
        vectors: &ArrayView2<'_, T>,
        keys: Option<&[u64]>,
        replace: bool,
    ) -> Result<Vec<u64>> {
        check_rows(&self.space, vectors)?;
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

/// Takes rows that equal an earlier one out of the order, and returns them with that one.
pub(crate) fn find_repeats<T: Element>(
    vectors: &ArrayView2<'_, T>,
    order: &mut Vec<u32>,
) -> Vec<(u32, u32)> {
    let mut hashed: Vec<(u64, u32)> = order
        .par_iter()
        .enumerate()
        .map(|(position, &row)| {
            let mut bytes = Vec::new();
            T::extend_bytes(&slice(vectors.row(row as usize)), &mut bytes);
            let mut hasher = DefaultHasher::new();
            hasher.write(&bytes);
            (hasher.finish(), position as u32)
        })
        .collect();
    hashed.par_sort_unstable();
    let mut repeats = Vec::new();
    for same in hashed.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
        let first = order[same[0].1 as usize];
        for &(_, position) in &same[1..] {
            let row = order[position as usize];
            // Bits, not values: -0.0 and 0.0 are the same number, but not given back the same.
            let (mut a, mut b) = (Vec::new(), Vec::new());
            T::extend_bytes(&slice(vectors.row(first as usize)), &mut a);
            T::extend_bytes(&slice(vectors.row(row as usize)), &mut b);
            if a == b {
                repeats.push((row, first));
                order[position as usize] = u32::MAX;
            }
        }
    }
    order.retain(|&row| row != u32::MAX);
    repeats
}
