//! Record arrays: fixed-size records addressed by a dense id, spread over extents of pages.
//!
//! A page holds `per_page` records behind the store's header; a record larger than a page's body takes `span`
//! pages of its own. The array's pages lie in a few runs of neighbouring pages. With `p = id / per_page`, the byte
//! offset of a record within a run is `p * page_size + HEADER + (id - p * per_page) * stride`, which is computed as
//! `p * gap + id * stride` plus a constant; the division is a multiplication by a fixed-point reciprocal. The array
//! of an index that was built at one go has a single run, and its addresses cost three instructions more than
//! those of a plain array.
//!
//! A record may be a part of a larger one: arrays that share their extents lie inside one another's records, so that
//! what is read together stands together.

use crate::page::{HEADER, PageId};

/// Bits of an id; the reciprocal is exact for ids below two to this power.
const ID_BITS: u32 = 30;

struct Run {
    /// The run's first page, counted within the array.
    first: u64,
    /// Pages.
    pages: u64,
    /// The run's first page, counted within the store.
    start: u64,
}

/// Where the records of one array are.
pub(crate) struct Array {
    stride: usize,
    /// Where in the stride the record begins, and its bytes.
    skip: usize,
    size: usize,
    per_page: u64,
    span: u64,
    page_size: u64,
    // Products of 32 bits have vector instructions on every machine, those of 64 have not.
    reciprocal: u32,
    shift: u32,
    gap: u32,
    runs: Vec<Run>,
    pages: u64,
}

impl Array {
    /// An array without pages for records of `stride` bytes, at least one.
    pub(crate) fn new(stride: usize, page_size: usize) -> Array {
        let body = page_size - HEADER;
        let per_page = (body / stride).max(1) as u64;
        let log = per_page.next_power_of_two().trailing_zeros();
        let shift = ID_BITS + log;
        Array {
            stride,
            skip: 0,
            size: stride,
            per_page,
            span: stride.div_ceil(body) as u64,
            page_size: page_size as u64,
            reciprocal: (1u64 << shift).div_ceil(per_page) as u32,
            shift,
            gap: page_size.saturating_sub(per_page as usize * stride) as u32,
            runs: Vec::new(),
            pages: 0,
        }
    }

    /// The same array with `size` bytes from `skip` on as its records.
    pub(crate) fn part_of(self, skip: usize, size: usize) -> Array {
        Array { skip, size, ..self }
    }

    /// Appends an extent.
    pub(crate) fn push(&mut self, start: u32, pages: u32) {
        let (start, pages) = (u64::from(start), u64::from(pages));
        match self.runs.last_mut() {
            Some(last) if last.start + last.pages == start => last.pages += pages,
            _ => self.runs.push(Run { first: self.pages, pages, start }),
        }
        self.pages += pages;
    }

    /// Bytes a record.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Pages a record: 1 unless a record is larger than a page.
    pub(crate) fn span(&self) -> usize {
        self.span as usize
    }

    /// Pages of the array.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Records that fit the array's pages.
    pub(crate) fn capacity(&self) -> u64 {
        self.pages / self.span * self.per_page
    }

    /// Pages that `records` records take.
    pub(crate) fn pages_for(&self, records: u64) -> u64 {
        records.div_ceil(self.per_page) * self.span
    }

    /// The smallest page size, from 8 KiB up, that wastes little on records of this many bytes.
    pub(crate) fn page_size(stride: usize) -> usize {
        let sizes = (13..=20).map(|log| 1 << log);
        let waste = |&size: &usize| Array::waste(stride, size);
        let good = sizes.clone().find(|size| waste(size) <= 0.04);
        good.or_else(|| sizes.min_by(|a, b| waste(a).total_cmp(&waste(b)))).unwrap_or(8192)
    }

    /// The share of page bytes that records of `stride` bytes leave unused.
    fn waste(stride: usize, page_size: usize) -> f64 {
        let array = Array::new(stride, page_size);
        let bytes = array.span * array.page_size;
        1.0 - (array.per_page * stride as u64) as f64 / bytes as f64
    }

    fn division(&self, id: u32) -> u64 {
        (u64::from(id) * u64::from(self.reciprocal)) >> self.shift
    }

    /// The store's page for the array's page `page`.
    fn page(&self, page: u64) -> Option<u64> {
        let after = self.runs.partition_point(|run| run.first <= page);
        let run = &self.runs[after.checked_sub(1)?];
        (page - run.first < run.pages).then(|| run.start + page - run.first)
    }

    /// The page of a record and its offset in the page's body. For records that span pages: the first page.
    pub(crate) fn locate(&self, id: u32) -> Option<(PageId, usize)> {
        let p = (id >> ID_BITS == 0).then(|| self.division(id))?;
        let within = (u64::from(id) - p * self.per_page) as usize * self.stride + self.skip;
        let page = self.page(p * self.span)?;
        Some((PageId(page as u32), within))
    }

    /// The `part`-th page of a record that spans pages.
    pub(crate) fn part(&self, id: u32, part: usize) -> Option<PageId> {
        let page = (id >> ID_BITS == 0).then(|| self.division(id))? * self.span + part as u64;
        self.page(page).map(|page| PageId(page as u32))
    }

    /// Replaces `out` with the byte offsets of records in a store whose pages are contiguous; `u64::MAX` for one that
    /// does not exist. Not for records that span pages.
    #[inline]
    pub(crate) fn offsets(&self, ids: &[u32], out: &mut Vec<u64>) {
        out.clear();
        let (stride, gap) = (u64::from(self.stride as u32), u64::from(self.gap));
        if let [run] = &self.runs[..] {
            let base = run.start * self.page_size + (HEADER + self.skip) as u64;
            out.extend(ids.iter().map(|&id| {
                let p = u64::from(self.division(id) as u32);
                base + p * gap + u64::from(id) * stride
            }));
            return;
        }
        out.extend(ids.iter().map(|&id| self.offset(id)));
    }

    /// The byte offset of one record in a store whose pages are contiguous; `u64::MAX` if it does not exist.
    #[inline]
    pub(crate) fn offset(&self, id: u32) -> u64 {
        if id >> ID_BITS != 0 {
            return u64::MAX;
        }
        let p = self.division(id);
        let within = p * u64::from(self.gap)
            + u64::from(id) * self.stride as u64
            + (HEADER + self.skip) as u64;
        match &self.runs[..] {
            [run, ..] if p < run.pages => run.start * self.page_size + within,
            _ => match self.page(p) {
                Some(page) => page * self.page_size + within - p * self.page_size,
                None => u64::MAX,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_agree_with_plain_arithmetic() {
        for (stride, page_size) in
            [(24, 4096), (128, 8192), (448, 8192), (3136, 16384), (4032, 4096)]
        {
            let mut array = Array::new(stride, page_size);
            array.push(1, 2);
            array.push(3, 4);
            array.push(20, 8);
            array.push(9, 5);
            assert_eq!(array.runs.len(), 3);
            let pages: Vec<u64> = (1..7).chain(20..28).chain(9..14).collect();
            let per_page = (page_size - HEADER) / stride;
            assert_eq!(array.capacity(), (pages.len() * per_page) as u64);
            let ids: Vec<u32> = (0..array.capacity() as u32).collect();
            let mut offsets = Vec::new();
            array.offsets(&ids, &mut offsets);
            for (&id, &offset) in ids.iter().zip(&offsets) {
                let (page, slot) = (pages[id as usize / per_page], id as usize % per_page);
                assert_eq!(offset, page * page_size as u64 + (HEADER + slot * stride) as u64);
                assert_eq!(array.locate(id), Some((PageId(page as u32), slot * stride)));
            }
            let part = array.part_of(12, 4);
            let mut parts = Vec::new();
            part.offsets(&ids, &mut parts);
            assert!(parts.iter().zip(&offsets).all(|(part, whole)| *part == whole + 12));
            let (page, within) = part.locate(ids[ids.len() - 1]).unwrap();
            assert_eq!(
                *parts.last().unwrap(),
                u64::from(page.0) * page_size as u64 + (HEADER + within) as u64
            );
            assert_eq!(part.offset(3), parts[3]);
            let array = part.part_of(0, stride);
            assert_eq!(array.locate(array.capacity() as u32), None);
            assert_eq!(array.offset(array.capacity() as u32), u64::MAX);
        }
    }

    #[test]
    fn the_reciprocal_is_exact() {
        for stride in [1, 2, 3, 7, 24, 60, 448, 4000] {
            let array = Array::new(stride, 1 << 20);
            let last = (1u32 << ID_BITS) - 1;
            for id in (0..last).step_by(1_000_003).chain([last, last - 1, 1, 2, 3]) {
                assert_eq!(array.division(id), u64::from(id) / array.per_page);
            }
        }
    }

    #[test]
    fn large_records_span_pages() {
        let mut array = Array::new(10_000, 4096);
        array.push(5, 9);
        assert_eq!((array.span(), array.capacity(), array.pages_for(2)), (3, 3, 6));
        assert_eq!(array.locate(1), Some((PageId(8), 0)));
        assert_eq!(array.part(2, 2), Some(PageId(13)));
        assert_eq!(array.part(3, 0), None);
    }
}
