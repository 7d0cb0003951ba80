//! Where pages were found last. A page is mostly there still, and is then pinned without being looked up in the table
//! that all backends share; what is remembered may be wrong, and is checked by whoever pins it.

use std::cell::{Cell, RefCell};

use pgrx::pg_sys;

/// Pages remembered at most: a page and another that is a multiple of it apart have one place.
const MOST: usize = 1 << 18;

/// Every so many times a page is looked up all the same: only then does Postgres hear that it is in use, and keeps it.
const LOOKED_UP: u32 = 16;

/// So many pages are looked up by those who ask ahead, once one was not where it had been: memory is short then, and
/// what is not in it is to be fetched.
const DOUBTED: u32 = 1024;

/// No buffer.
pub const NOWHERE: pg_sys::Buffer = pg_sys::InvalidBuffer as pg_sys::Buffer;

/// Buffers by page, in a power of two of places.
#[derive(Default)]
pub struct Recent {
    places: RefCell<Vec<(u32, pg_sys::Buffer)>>,
    turn: Cell<u32>,
    doubts: Cell<u32>,
}

impl Recent {
    /// Where a page may be, for one who pins it.
    pub fn to_pin(&self, page: u32) -> Option<pg_sys::Buffer> {
        self.turn.set(self.turn.get().wrapping_add(1));
        if self.turn.get().is_multiple_of(LOOKED_UP) { None } else { self.get(page) }
    }

    /// Where a page may be, for one who asks ahead.
    pub fn to_ask(&self, page: u32) -> Option<pg_sys::Buffer> {
        match self.doubts.get() {
            0 => self.get(page),
            doubts => {
                self.doubts.set(doubts - 1);
                None
            }
        }
    }

    fn get(&self, page: u32) -> Option<pg_sys::Buffer> {
        let places = self.places.borrow();
        let &(of, buffer) = places.get(page as usize & places.len().wrapping_sub(1))?;
        (of == page && buffer != NOWHERE).then_some(buffer)
    }

    /// A page was not where it had been.
    pub fn was_wrong(&self) {
        self.doubts.set(DOUBTED);
    }

    /// Remembers where a page is.
    pub fn put(&self, page: u32, buffer: pg_sys::Buffer) {
        let mut places = self.places.borrow_mut();
        let wanted = (page as usize + 1).next_power_of_two().min(MOST);
        if places.len() < wanted {
            grow(&mut places, wanted);
        }
        if places.is_empty() {
            return;
        }
        let last = places.len() - 1;
        places[page as usize & last] = (page, buffer);
    }
}

/// Makes room for what was remembered and more, if there is memory for it.
fn grow(places: &mut Vec<(u32, pg_sys::Buffer)>, count: usize) {
    let mut more = Vec::new();
    if more.try_reserve_exact(count).is_err() {
        return;
    }
    more.resize(count, (0, NOWHERE));
    // Until there are as many places as there may be, all pages remembered have a place of their own.
    more[..places.len()].copy_from_slice(places);
    *places = more;
}
