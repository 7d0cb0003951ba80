//! Link lists: the ids of a node's neighbours, `width` of them at most, ended by [`NONE`] if there are fewer.
//!
//! The high bit of a link marks an edge of the spanning tree (see `tree`), which pruning leaves alone.

use crate::error::{Error, Result};
use crate::page::PageStore;
use crate::rows::{Batch, NONE, Probe, Rows};

use super::visited::Visited;

/// Set in a link that is an edge of the spanning tree.
pub(crate) const TREE: u32 = 1 << 31;

/// The neighbour that a link names.
#[inline(always)]
pub(crate) const fn target(link: u32) -> u32 {
    link & !TREE
}

/// Marks an id as met; an id that no slot can have is a corrupt link.
#[inline(always)]
pub(crate) fn fresh(visited: &mut Visited, id: u32) -> Result<bool> {
    match visited.insert(id) {
        Some(fresh) => Ok(fresh),
        None => Err(Error::corrupt(0, format!("a link names slot {id}, which does not exist"))),
    }
}

pub(super) fn each(record: &[u8]) -> impl Iterator<Item = u32> {
    let (links, _) = record.as_chunks::<4>();
    links.iter().map(|&link| u32::from_le_bytes(link)).take_while(|&link| link != NONE)
}

/// Replaces `out` with a node's links, tree marks included.
pub(crate) fn read<S: PageStore>(
    rows: &Rows<S>,
    array: usize,
    record: u32,
    out: &mut Vec<u32>,
) -> Result<()> {
    out.clear();
    rows.record(array, record, |bytes| out.extend(each(bytes)))?;
    match out.iter().find(|&&link| target(link) >= rows.ids()) {
        Some(&link) => {
            Err(Error::corrupt(0, format!("link list {record} names slot {}", target(link))))
        }
        None => Ok(()),
    }
}

/// The bytes of a list's record that are the list, its end included.
pub(crate) fn seen(links: &[u32], width: usize) -> Vec<u8> {
    encode(links, width.min(links.len() + 1))
}

/// The bytes of a link list of `width` entries.
pub(crate) fn encode(links: &[u32], width: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 * width);
    for &link in links.iter().take(width) {
        bytes.extend_from_slice(&link.to_le_bytes());
    }
    bytes.resize(4 * width, 0xff);
    bytes
}

/// Replaces the batch with the neighbours of a node that the search has not met, and their distances, which need
/// be right only below `bound`.
#[inline]
pub(crate) fn expand<S: PageStore>(
    rows: &Rows<S>,
    list: (usize, u32),
    visited: &mut Visited,
    batch: &mut Batch,
    probe: &Probe,
    bound: f32,
) -> Result<()> {
    meet(rows, list, visited, batch)?;
    batch.score_below(rows, probe, bound)
}

/// Replaces the batch's ids with the neighbours of a node that the search has not met, which from now on it has.
#[inline]
pub(crate) fn meet<S: PageStore>(
    rows: &Rows<S>,
    (array, record): (usize, u32),
    visited: &mut Visited,
    batch: &mut Batch,
) -> Result<()> {
    let width = rows.array(array)?.size() / 4;
    batch.ids.resize(width, 0);
    let count = rows.record(array, record, |bytes| {
        let mut count = 0;
        for link in each(bytes) {
            let id = target(link);
            batch.ids[count] = id;
            count += usize::from(fresh(visited, id)?);
        }
        Ok::<usize, Error>(count)
    })??;
    batch.ids.truncate(count);
    Ok(())
}
