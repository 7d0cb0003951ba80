//! What every page store must do. A store passes when none of these panics.

use super::testing::Rng;
use super::{HEADER, MAX_WRITE, PageId, PageStore};
use crate::error::{Error, Result};

/// Runs everything that can be asked of a store without closing it. `make` makes a new store each time, which may have
/// pages already.
pub fn suite<S: PageStore>(make: impl Fn() -> S) {
    new_pages_are_zero(&mut make());
    a_write_is_read_back(&mut make());
    a_write_sees_the_present(&mut make());
    changes_are_made_in_order(&mut make());
    an_error_changes_nothing(&mut make());
    a_bad_page_list_is_refused(&mut make());
    pages_out_of_range_are_refused(&mut make());
    behaves_as_plain_memory(&mut make(), 1);
}

/// Runs what concerns a store that lasts: `reopen` closes a store and opens it again.
pub fn durable<S: PageStore>(make: impl Fn() -> S, reopen: impl Fn(S) -> S) {
    let mut store = make();
    let from = store.page_count();
    for round in 1..=3 {
        grow(&mut store, 5);
        for page in from..store.page_count() {
            put(&mut store, PageId(page), page as usize, &[round; 100]);
        }
        ok(store.flush());
        ok(store.flush());
        let before = contents(&store);
        store = reopen(store);
        assert!(contents(&store) == before, "pages differ after flush and reopen, round {round}");
    }
    for seed in 2..5 {
        behaves_as_plain_memory(&mut store, seed);
        ok(store.flush());
        let before = contents(&store);
        store = reopen(store);
        assert!(contents(&store) == before, "pages differ after flush and reopen, seed {seed}");
    }
}

fn new_pages_are_zero<S: PageStore>(store: &mut S) {
    for pages in [1, 1, 7, 0, 100] {
        let before = store.page_count();
        grow(store, pages);
        assert!(store.page_count() >= before + pages, "grow made too few pages");
        for page in before..store.page_count() {
            let body = body(store, PageId(page));
            assert_eq!(body.len(), store.page_size() - HEADER, "a body's length");
            assert!(body.iter().all(|&byte| byte == 0), "new page {page} is not zero");
            put(store, PageId(page), 0, &[0xff; 64]);
        }
    }
    let count = store.page_count();
    ok(store.grow(1));
    assert_eq!(store.page_count(), count, "grow made the store smaller");
}

fn a_write_is_read_back<S: PageStore>(store: &mut S) {
    let page = grow(store, 3);
    let end = store.page_size() - HEADER;
    let all: Vec<u8> = (0..end).map(|i| (i % 251) as u8).collect();
    put(store, page, 0, &all);
    assert!(body(store, page) == all, "a whole page differs when read back");
    put(store, page, end - 3, &[1, 2, 3]);
    put(store, page, end, &[]);
    assert_eq!(body(store, page)[end - 4..], [all[end - 4], 1, 2, 3], "a page's last bytes");
    let next = body(store, PageId(page.0 + 1));
    assert!(next.iter().all(|&byte| byte == 0), "the page after the one written changed");
    let answer = ok(store.write(&[], |_| Ok(42)));
    assert_eq!(answer, 42, "what a write answers");
}

fn a_write_sees_the_present<S: PageStore>(store: &mut S) {
    let first = grow(store, 4);
    let pages = [3, 0, 2, 1].map(|i| PageId(first.0 + i));
    for (byte, &page) in (1..).zip(&pages) {
        put(store, page, 0, &[byte]);
    }
    ok(store.write(&pages, |pages| {
        for (index, byte) in (0..MAX_WRITE).zip(1..) {
            assert_eq!(pages.body(index)[0], byte, "bodies are in the list's order");
            pages.put(index, 0, &[byte * 10])?;
            assert_eq!(pages.body(index)[0], byte, "a put is seen before its time");
        }
        Ok(())
    }));
    for (byte, &page) in (1..).zip(&pages) {
        assert_eq!(body(store, page)[0], byte * 10, "{page:?} after the write");
    }
}

fn changes_are_made_in_order<S: PageStore>(store: &mut S) {
    let page = grow(store, 1);
    ok(store.write(&[page], |pages| {
        pages.put(0, 0, &[1; 8])?;
        pages.put(0, 4, &[2; 8])?;
        pages.put(0, 6, &[3; 1])
    }));
    assert_eq!(body(store, page)[..12], [1, 1, 1, 1, 2, 2, 3, 2, 2, 2, 2, 2], "overlapping puts");
}

fn an_error_changes_nothing<S: PageStore>(store: &mut S) {
    let page = grow(store, 2);
    let other = PageId(page.0 + 1);
    put(store, page, 0, &[7; 20]);
    let before = contents(store);
    let end = store.page_size() - HEADER;
    for (offset, len) in [(end, 1), (end - 1, 2), (end + 1, 0), (usize::MAX, 1), (0, end + 1)] {
        let bytes = vec![9; len];
        let done = store.write(&[page, other], |pages| {
            pages.put(1, 0, &[9; 20])?;
            pages.put(0, offset, &bytes)
        });
        assert!(matches!(done, Err(Error::Corrupt { .. })), "put at {offset}..+{len}: {done:?}");
        assert!(contents(store) == before, "a write that failed changed a page");
    }
    let done = store.write(&[page, other], |pages| {
        pages.put(0, 0, &[9; 20])?;
        pages.put(1, 0, &[9; 20])?;
        Err::<(), _>(Error::Changed)
    });
    assert!(matches!(done, Err(Error::Changed)), "the caller's own error came back as {done:?}");
    assert!(contents(store) == before, "a write that its caller gave up changed a page");
    ok(store.write(&[other], |_| Ok(())));
    assert!(contents(store) == before, "what an earlier write gave up was done later");
}

fn a_bad_page_list_is_refused<S: PageStore>(store: &mut S) {
    let first = grow(store, MAX_WRITE as u32 + 1).0;
    let all: Vec<_> = (first..=first + MAX_WRITE as u32).map(PageId).collect();
    for list in [&all[..], &[all[0], all[0]], &[all[0], all[1], all[2], all[0]]] {
        let done = store.write(list, |_| -> Result<()> { panic!("{list:?} was not refused") });
        assert!(matches!(done, Err(Error::Parameter { .. })), "{list:?} gave {done:?}");
    }
    ok(store.write(&all[1..], |_| Ok(())));
}

fn pages_out_of_range_are_refused<S: PageStore>(store: &mut S) {
    let page = grow(store, 1);
    let count = store.page_count();
    for none in [count, count + 1, u32::MAX].map(PageId) {
        let read = store.read(none).map(|_| ());
        assert!(matches!(read, Err(Error::Corrupt { page, .. }) if page == none.0), "{read:?}");
        let done = store.write(&[page, none], |pages| pages.put(0, 0, &[9]));
        assert!(matches!(done, Err(Error::Corrupt { page, .. }) if page == none.0), "{done:?}");
    }
    assert_eq!(body(store, page)[0], 0, "a write with a page out of range changed another");
    for any in [0, count - 1, count, u32::MAX] {
        for bytes in [0..1, 0..usize::MAX, 5..store.page_size(), usize::MAX - 1..usize::MAX] {
            store.prefetch(PageId(any), bytes);
        }
    }
}

/// Random growing, writing and giving up, beside the same on plain vectors.
fn behaves_as_plain_memory<S: PageStore>(store: &mut S, seed: u64) {
    let mut rng = Rng(seed);
    grow(store, 1);
    let mut model = contents(store);
    let room = store.page_size() - HEADER;
    for _ in 0..300 {
        if rng.below(10) == 0 {
            grow(store, rng.below(4) as u32);
            model.resize(store.page_count() as usize, vec![0; room]);
        }
        let mut list: Vec<_> = (0..model.len() as u32).map(PageId).collect();
        for i in 0..list.len().min(MAX_WRITE) {
            let other = i + rng.below(list.len() - i);
            list.swap(i, other);
        }
        list.truncate(rng.below(MAX_WRITE + 1));
        let gives_up = rng.below(5) == 0;
        let puts = if list.is_empty() { 0 } else { rng.below(8) };
        let puts: Vec<_> = (0..puts)
            .map(|_| {
                let offset = rng.below(room);
                let bytes = vec![rng.below(256) as u8; rng.below((room - offset).min(300) + 1)];
                (rng.below(list.len()), offset, bytes)
            })
            .collect();
        let done = store.write(&list, |pages| {
            for (index, page) in list.iter().enumerate() {
                let same = pages.body(index) == model[page.0 as usize];
                assert!(same, "{page:?} differs in a write, seed {seed}");
            }
            for (index, offset, bytes) in &puts {
                pages.put(*index, *offset, bytes)?;
            }
            if gives_up { Err(Error::Changed) } else { Ok(()) }
        });
        assert_eq!(done.is_err(), gives_up, "{done:?}, seed {seed}");
        if !gives_up {
            for (index, offset, bytes) in puts {
                let page = &mut model[list[index].0 as usize];
                page[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
        }
        for page in list {
            let same = body(store, page) == model[page.0 as usize];
            assert!(same, "{page:?} differs after a write, seed {seed}");
        }
        if rng.below(50) == 0 {
            ok(store.flush());
        }
    }
    assert!(contents(store) == model, "the store differs from plain memory, seed {seed}");
}

/// The bodies of all pages, which must also be those of the contiguous slice where there is one.
fn contents<S: PageStore>(store: &S) -> Vec<Vec<u8>> {
    let bodies: Vec<_> = (0..store.page_count()).map(|page| body(store, PageId(page))).collect();
    if let Some(all) = store.contiguous() {
        let pages = all.chunks(store.page_size()).map(|page| &page[HEADER..]);
        assert!(pages.eq(bodies.iter().map(Vec::as_slice)), "contiguous() and read() differ");
        assert_eq!(all.as_ptr().align_offset(64), 0, "bodies must lie on 64-byte boundaries");
    }
    bodies
}

fn body<S: PageStore>(store: &S, page: PageId) -> Vec<u8> {
    ok(store.read(page).map(|body| body.to_vec()))
}

fn put<S: PageStore>(store: &mut S, page: PageId, offset: usize, bytes: &[u8]) {
    ok(store.write(&[page], |pages| pages.put(0, offset, bytes)));
}

/// Adds pages; the first of them.
fn grow<S: PageStore>(store: &mut S, pages: u32) -> PageId {
    let first = store.page_count();
    ok(store.grow(first + pages));
    PageId(first)
}

fn ok<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("a store refused what it must do: {error}"))
}
