//! Pages that lie one after the other in a slice: what the memory store and the mmap store have in common.

use std::ops::Range;

use super::{HEADER, MAX_WRITE, PageId, Pages, Patches};
use crate::error::{Error, Result};
use crate::kernel;

/// How many pages there are, and of which size.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub page_size: usize,
    pub pages: u32,
}

impl Layout {
    /// Bytes that all pages take.
    pub fn len(self) -> usize {
        self.pages as usize * self.page_size
    }

    /// Bytes of a file: page 0 is there even when nothing has been put into it.
    pub fn file_len(self) -> u64 {
        u64::from(self.pages.max(1)) * self.page_size as u64
    }

    /// Where pages lie, headers included.
    pub fn run(self, pages: Range<u32>) -> Range<usize> {
        pages.start as usize * self.page_size..pages.end as usize * self.page_size
    }

    /// Where the body of a page lies.
    #[inline]
    pub fn body(self, page: PageId) -> Result<Range<usize>> {
        if page.0 >= self.pages {
            return Err(self.no_page(page));
        }
        let at = page.0 as usize * self.page_size;
        Ok(at + HEADER..at + self.page_size)
    }

    #[cold]
    fn no_page(self, page: PageId) -> Error {
        Error::corrupt(page.0, format!("there is no such page, the store has {}", self.pages))
    }

    /// Asks for the cache lines of a part of a page's body; `pages` are all pages.
    #[inline]
    pub fn prefetch(self, pages: &[u8], page: PageId, bytes: Range<usize>) {
        let body = u64::from(page.0) * self.page_size as u64 + HEADER as u64;
        kernel::prefetch(pages, body.saturating_add(bytes.start as u64), bytes.len());
    }

    /// A write on `bytes`: nothing is changed before `change` has returned `Ok`. `changed` hears of each page that is.
    pub fn change<R>(
        self,
        bytes: &mut [u8],
        pages: &[PageId],
        patches: &mut Patches,
        change: impl FnOnce(&mut Pages<'_>) -> Result<R>,
        mut changed: impl FnMut(PageId),
    ) -> Result<R> {
        check_list(pages)?;
        let mut bodies: [&[u8]; MAX_WRITE] = [&[]; MAX_WRITE];
        for (body, &page) in bodies.iter_mut().zip(pages) {
            *body = &bytes[self.body(page)?];
        }
        let answer = change(&mut Pages::new(bodies, patches))?;
        for (index, offset, new) in patches.iter().filter(|(_, _, new)| !new.is_empty()) {
            let at = pages[index].0 as usize * self.page_size + HEADER + offset;
            bytes[at..at + new.len()].copy_from_slice(new);
            changed(pages[index]);
        }
        Ok(answer)
    }
}

/// Checks the page list of a write.
fn check_list(pages: &[PageId]) -> Result<()> {
    let repeated = (1..pages.len().min(MAX_WRITE + 1)).any(|i| pages[..i].contains(&pages[i]));
    if pages.len() > MAX_WRITE || repeated {
        let allowed = format!("at most {MAX_WRITE} pages, all different");
        return Err(Error::parameter("pages", format!("{pages:?}"), allowed));
    }
    Ok(())
}
