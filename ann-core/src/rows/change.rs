//! One atomic change, gathered record by record and made only if what it was computed from still stands.

use zerocopy::IntoBytes;

use crate::error::{Error, Result};
use crate::page::{PageId, PageStore, Pages};

use super::META;
use super::array::Array;
use super::meta::Meta;

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

    /// Where in the list of pages one is.
    fn page(&mut self, page: PageId) -> usize {
        self.pages.iter().position(|&known| known == page).unwrap_or_else(|| {
            self.pages.push(page);
            self.pages.len() - 1
        })
    }

    fn edit(&mut self, page: PageId, offset: usize, bytes: &[u8], expected: bool) {
        let index = self.page(page);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.edits.push(Edit { page: index, offset, start, len: bytes.len(), expected });
    }

    /// Makes the change and empties it. False, and nothing done, if something expected is not there any more.
    pub(crate) fn commit<S: PageStore>(&mut self, store: &mut S) -> Result<bool> {
        let result = store.write(&self.pages, |pages| match self.stands(pages) {
            true => self.make(pages).map(|()| true),
            false => Ok(false),
        });
        self.clear();
        result
    }

    /// The same with a change of the meta page, to which `edit` does what is to be done, as it is in that moment.
    /// Nothing is done either if `edit` returns false; else the meta page comes back as it is then.
    pub(crate) fn commit_meta<S: PageStore>(
        &mut self,
        store: &mut S,
        edit: impl FnOnce(&mut Meta) -> bool,
    ) -> Result<Option<Meta>> {
        let at = self.page(META);
        let result = store.write(&self.pages, |pages| {
            let mut meta = Meta::of_body(pages.body(at))?;
            if !self.stands(pages) || !edit(&mut meta) {
                return Ok(None);
            }
            meta.changes = meta.changes.get().wrapping_add(1).into();
            self.make(pages)?;
            pages.put(at, 0, meta.as_bytes())?;
            Ok(Some(meta))
        });
        self.clear();
        result
    }

    /// Whether all that is expected is there.
    fn stands(&self, pages: &Pages<'_>) -> bool {
        self.edits.iter().filter(|edit| edit.expected).all(|edit| {
            let bytes = &self.bytes[edit.start..edit.start + edit.len];
            pages.body(edit.page).get(edit.offset..edit.offset + edit.len) == Some(bytes)
        })
    }

    fn make(&self, pages: &mut Pages<'_>) -> Result<()> {
        for edit in self.edits.iter().filter(|edit| !edit.expected) {
            pages.put(edit.page, edit.offset, &self.bytes[edit.start..edit.start + edit.len])?;
        }
        Ok(())
    }
}

fn missing(id: u32) -> Error {
    Error::corrupt(0, format!("record {id} lies outside its array"))
}
