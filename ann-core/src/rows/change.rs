//! One atomic change, gathered record by record and made only if what it was computed from still stands.

use crate::error::{Error, Result};
use crate::page::{PageId, PageStore};

use super::array::Array;

/// Bytes to expect and bytes to put, on at most four pages.
#[derive(Default)]
pub(crate) struct Change {
    pages: Vec<PageId>,
    edits: Vec<Edit>,
    bytes: Vec<u8>,
}

struct Edit {
    page: usize,
    offset: usize,
    start: usize,
    len: usize,
    expected: bool,
}

impl Change {
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
        self.edits.clear();
        self.bytes.clear();
    }

    /// Puts `bytes` at `offset` of the page's body.
    pub(crate) fn put(&mut self, page: PageId, offset: usize, bytes: &[u8]) {
        self.edit(page, offset, bytes, false);
    }

    /// Puts the first bytes of a record.
    pub(crate) fn put_record(&mut self, array: &Array, id: u32, bytes: &[u8]) -> Result<()> {
        let (page, offset) = array.locate(id).ok_or_else(|| missing(id))?;
        self.put(page, offset, bytes);
        Ok(())
    }

    /// Makes the change conditional: the page's body must still have `bytes` at `offset`.
    pub(crate) fn expect(&mut self, page: PageId, offset: usize, bytes: &[u8]) {
        self.edit(page, offset, bytes, true);
    }

    /// How many pages the change touches.
    pub(crate) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Whether the change touches a page already.
    pub(crate) fn touches(&self, page: PageId) -> bool {
        self.pages.contains(&page)
    }

    /// Makes the change conditional: the record must still begin with these bytes.
    pub(crate) fn expect_record(&mut self, array: &Array, id: u32, bytes: &[u8]) -> Result<()> {
        let (page, offset) = array.locate(id).ok_or_else(|| missing(id))?;
        self.edit(page, offset, bytes, true);
        Ok(())
    }

    fn edit(&mut self, page: PageId, offset: usize, bytes: &[u8], expected: bool) {
        let index = self.pages.iter().position(|&known| known == page).unwrap_or_else(|| {
            self.pages.push(page);
            self.pages.len() - 1
        });
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.edits.push(Edit { page: index, offset, start, len: bytes.len(), expected });
    }

    /// Makes the change and empties it. False, and nothing done, if something expected is not there any more.
    pub(crate) fn commit<S: PageStore>(&mut self, store: &mut S) -> Result<bool> {
        let result = store.write(&self.pages, |pages| {
            for edit in self.edits.iter().filter(|edit| edit.expected) {
                let bytes = &self.bytes[edit.start..edit.start + edit.len];
                if pages.body(edit.page).get(edit.offset..edit.offset + edit.len) != Some(bytes) {
                    return Ok(false);
                }
            }
            for edit in self.edits.iter().filter(|edit| !edit.expected) {
                let bytes = &self.bytes[edit.start..edit.start + edit.len];
                pages.put(edit.page, edit.offset, bytes)?;
            }
            Ok(true)
        });
        self.clear();
        result
    }
}

fn missing(id: u32) -> Error {
    Error::corrupt(0, format!("record {id} lies outside its array"))
}
