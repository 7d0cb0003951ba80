//! The yardstick for pages: the bottom level's search over plain contiguous arrays, all else being the same.

use crate::element::Element;
use crate::error::{Error, Result};
use crate::graph::links::{fresh, target};
use crate::graph::search::{Met, Scratch};
use crate::page::PageStore;
use crate::rows::{LINKS, NONE, Space};

use super::query::{entry, search_level};
use super::{Graph, Topology};

/// A copy of an index's bottom level in two plain arrays.
pub struct Plain<'a> {
    space: &'a Space,
    vectors: Vec<u8>,
    links: Vec<u32>,
    width: usize,
    start: u32,
}

impl<'a> Plain<'a> {
    /// Copies an index.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn new<S: PageStore, K: Topology>(index: &'a Graph<S, K>) -> Result<Plain<'a>> {
        let (mut vectors, mut links, mut row) = (Vec::new(), Vec::new(), Vec::new());
        for id in 0..index.rows.slots() {
            index.rows.row(id, &mut row)?;
            vectors.extend_from_slice(&row);
            index.rows.record(LINKS, id, |bytes| {
                links.extend(bytes.as_chunks::<4>().0.iter().map(|&link| u32::from_le_bytes(link)));
            })?;
        }
        let start = entry(&index.rows)?.map_or(0, |(id, _)| id);
        Ok(Plain { space: &index.rows.space, vectors, links, width: index.width(0), start })
    }

    /// Searches from the entry point; returns the sum of the distances found.
    ///
    /// # Errors
    /// As [`crate::Index::search`].
    pub fn search<T: Element>(&self, query: &[T], ef: usize, work: &mut Work) -> Result<f32> {
        let scratch = &mut work.0;
        self.space.query(query, 0, &mut scratch.row, &mut scratch.probe)?;
        scratch.pool.reset(ef, f32::NEG_INFINITY, false);
        scratch.visited.reset((self.links.len() / self.width) as u32);
        fresh(&mut scratch.visited, self.start)?;
        let stride = self.space.stride();
        let row = &self.vectors[self.start as usize * stride..][..stride];
        scratch.pool.insert(self.space.distance(&scratch.probe, row), self.start, true);
        scratch.pool.settle();
        scratch.best_first(
            1,
            |_, _| (),
            |step, Met { visited, .. }, batch, (probe, _)| {
                if let Some(next) = step.next {
                    let links = zerocopy::IntoBytes::as_bytes(&self.links[..]);
                    let record = 4 * self.width;
                    crate::kernel::prefetch(links, (next as usize * record) as u64, record);
                }
                batch.ids.resize(self.width, 0);
                let mut count = 0;
                for &link in &self.links[step.node as usize * self.width..][..self.width] {
                    if link == NONE {
                        break;
                    }
                    batch.ids[count] = target(link);
                    count += usize::from(fresh(visited, target(link))?);
                }
                batch.ids.truncate(count);
                match batch.score_plain(self.space, &self.vectors, probe, step.bound) {
                    true => Ok(None),
                    false => Err(Error::corrupt(0, "a link leads out of the array")),
                }
            },
            &mut |_| Ok(true),
        )?;
        Ok(scratch.pool.all().map(|(distance, _)| distance).sum())
    }
}

/// Scratch for searches that are measured.
#[derive(Default)]
pub struct Work(Scratch);

impl<S: PageStore, K: Topology> Graph<S, K> {
    /// What [`Plain::search`] does, on the index's pages.
    #[doc(hidden)]
    pub fn search_bottom<T: Element>(
        &self,
        query: &[T],
        ef: usize,
        work: &mut Work,
    ) -> Result<f32> {
        let scratch = &mut work.0;
        self.rows.space.query(query, 0, &mut scratch.row, &mut scratch.probe)?;
        scratch.pool.reset(ef, f32::NEG_INFINITY, false);
        let start = entry(&self.rows)?.map_or(0, |(id, _)| id);
        scratch.batch.score_only(&self.rows, &scratch.probe, start)?;
        search_level(&self.rows, scratch, 0, &mut |_| Ok(true))?;
        Ok(scratch.pool.all().map(|(distance, _)| distance).sum())
    }
}
