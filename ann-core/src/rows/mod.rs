//! Rows: the vectors, keys and slots of an index on a page store; what every kind of index has below its search.
//!
//! A slot's id is dense and addresses one record in each array: its vector, its [`Node`] record and, in graphs, its
//! links. All changes are sequences of atomic page writes; each leaves a valid index.

mod array;
mod change;
mod codes;
mod exact;
mod filter;
mod input;
mod keys;
mod meta;
mod narrow;
mod report;
mod shared;
mod space;

use std::sync::{Arc, OnceLock};

use zerocopy::{FromBytes, IntoBytes};

pub(crate) use array::Array;
pub(crate) use change::Change;
use codes::CENTRE_FLOATS;
pub(crate) use codes::{Coder, Workshop, by_node, check_compact, compact_bits};
pub(crate) use exact::{Batch, Copies, nearest};
pub use filter::Filter;
pub(crate) use filter::{Matcher, Plan};
pub(crate) use input::{are_equal, check_rows, check_some, hashes, next_rows, slice};
use keys::Keys;
pub use meta::Kind;
pub(crate) use meta::{
    ALONG, ArrayMeta, CENTRED, Extent, FITTED, MAX_ALPHA, MAX_SLOTS, Meta, NO_VECTORS, NONE, Node,
    RABITQ, SPILL, State, TURNED,
};
pub use report::{Layout, Stats};
pub(crate) use space::{Probe, Space};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::kernel::Isa;
use crate::page::{PageId, PageStore};

/// The array of vectors.
pub(crate) const VECTORS: usize = 0;
/// The array of node records.
pub(crate) const NODES: usize = 1;
/// The array of link lists at the bottom level.
pub(crate) const LINKS: usize = 2;
/// The array of link lists above it; without levels, of lists that lead from the entry point into the graph.
pub(crate) const UPPER: usize = 3;
/// The arrays of codes beside the links of these two; the first may be of codes by node instead.
pub(crate) const CODES: usize = 4;
pub(crate) const UPPER_CODES: usize = 5;
/// The arrays of the records that these two, their codes and the vectors are parts of.
pub(crate) const WHOLE: usize = 6;
pub(crate) const UPPER_WHOLE: usize = 7;
/// The array of the pieces of what codes by node are relative to; such an index has no array of whole records.
pub(crate) const CENTRE: usize = 7;

/// Parts in which a record can be asked for.
pub(crate) const PARTS: usize = 3;

/// Page 0 holds the meta page.
const META: PageId = PageId(0);

/// An extent of a growing array is at least this many bytes once the array is.
const EXTENT_BYTES: u64 = 4 << 20;

/// A table of vectors with keys.
pub(crate) struct Rows<S> {
    pub store: S,
    pub meta: Meta,
    pub space: Space,
    arrays: Vec<Option<Array>>,
    /// Where codes are by node, what makes them.
    coder: Option<Coder>,
    keys: OnceLock<Keys>,
    identity: Arc<()>,
}

/// What an index was when something began that must not outlive a change: which index, and after which change.
pub(crate) struct Mark(Arc<()>, u64);

impl<S: PageStore> Rows<S> {
    /// Makes an empty index in a store without pages. `setup` fills in what is the kind's own.
    pub(crate) fn create(
        mut store: S,
        kind: Kind,
        space: Space,
        setup: impl FnOnce(&mut Meta),
    ) -> Result<Rows<S>> {
        if store.page_count() != 0 {
            let allowed = "a store without pages: open the index that it holds instead";
            return Err(Error::parameter(
                "store",
                format!("{} pages", store.page_count()),
                allowed,
            ));
        }
        let page_size = store.page_size();
        let mut meta = Meta::new(kind, space.dtype, space.metric, space.dim, page_size);
        if space.stored != space.dtype {
            meta.stored = space.stored as u8;
        }
        meta.arrays[VECTORS].stride = (space.stride() as u32).into();
        meta.arrays[NODES].stride = (size_of::<Node>() as u32).into();
        setup(&mut meta);
        if !meta.has_rows() {
            meta.arrays[VECTORS].stride = 0.into();
        }
        let coder = coder_of(&meta);
        if let Some(coder) = &coder {
            let codes = if meta.has_vectors() { CODES } else { VECTORS };
            meta.arrays[codes].stride = (coder.stride() as u32).into();
            meta.arrays[CENTRE].stride = (4 * CENTRE_FLOATS as u32).into();
        }
        store.grow(1)?;
        store.write(&[META], |pages| pages.put(0, 0, meta.as_bytes()))?;
        let arrays = arrays_of(&meta, page_size);
        let (keys, identity) = (OnceLock::new(), Arc::default());
        Ok(Rows { store, meta, space, arrays, coder, keys, identity })
    }

    /// Opens the index in a store: reads and checks the meta page, and nothing else.
    pub(crate) fn open(store: S, isa: Option<Isa>) -> Result<Rows<S>> {
        if store.page_count() == 0 {
            return Err(Error::NotAnIndex { what: "the store has no pages".into() });
        }
        let page_size = store.page_size();
        let (meta, extents) = Meta::parse(&store.read(META)?, page_size)?;
        let dim = meta.dim.get() as usize;
        let space = Space::storing(dim, meta.dtype(), meta.stored(), meta.metric(), isa)?;
        let coder = coder_of(&meta);
        let code = coder.as_ref().map_or(0, Coder::stride);
        let (vector, beside) = match (&coder, meta.has_vectors()) {
            (Some(_), true) => (space.stride(), Some(CODES)),
            (_, false) => (code, None),
            (None, true) => (space.stride(), None),
        };
        let centre = coder.is_some().then_some((CENTRE, 4 * CENTRE_FLOATS));
        let sizes = [(VECTORS, vector), (NODES, size_of::<Node>())];
        for (array, size) in
            sizes.into_iter().chain(beside.map(|array| (array, code))).chain(centre)
        {
            let got = meta.arrays[array].record();
            if got != size {
                let what = format!("records of array {array} have {got} bytes, not {size}");
                return Err(Error::corrupt(0, what));
            }
        }
        check_arrays(&meta, page_size)?;
        let mut arrays = arrays_of(&meta, page_size);
        let end = meta.pages.get();
        if end > store.page_count() {
            let what = format!("{end} pages, the store has {}", store.page_count());
            return Err(Error::corrupt(0, what));
        }
        let mut taken: Vec<(u64, u64)> = vec![(0, 1)];
        for extent in &extents {
            take_in(&mut arrays, &meta, extent)?;
            let start = u64::from(extent.start.get());
            taken.push((start, start + u64::from(extent.pages())));
        }
        taken.sort_unstable();
        if let Some(pair) = taken.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return Err(Error::corrupt(0, format!("page {} belongs to two extents", pair[1].0)));
        }
        let slots = u64::from(meta.slots.get());
        let coded = beside.filter(|_| meta.coded.get() > 0);
        for number in [VECTORS, NODES, LINKS].into_iter().chain(coded) {
            if let Some(array) = &arrays[number]
                && array.capacity() < slots
            {
                let what = format!("array {number} has room for {}", array.capacity());
                return Err(Error::corrupt(0, format!("{what} of {slots} records")));
            }
        }
        if meta.upper.get() > 0
            && arrays[UPPER].as_ref().map_or(0, Array::capacity) < u64::from(meta.upper.get())
        {
            return Err(Error::corrupt(0, "the upper links lie outside their array"));
        }
        let (keys, identity) = (OnceLock::new(), Arc::default());
        Ok(Rows { store, meta, space, arrays, coder, keys, identity })
    }

    /// What the index is now.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.identity.clone(), self.age())
    }

    /// [`Error::Changed`] unless the index still is what it was.
    pub(crate) fn check_mark(&self, mark: &Mark) -> Result<()> {
        match Arc::ptr_eq(&mark.0, &self.identity) && mark.1 == self.age() {
            true => Ok(()),
            false => Err(Error::Changed),
        }
    }

    /// Counts changes after which a search that has begun before must not go on. Beside those of others it goes on
    /// unless slots have been given new vectors.
    fn age(&self) -> u64 {
        if S::SHARED { u64::from(self.meta.sweeps.get()) } else { self.meta.changes.get() }
    }

    /// Slots handed out: ids are below it.
    pub(crate) fn slots(&self) -> u32 {
        self.meta.slots.get()
    }

    /// Vectors that searches can return.
    pub(crate) fn len(&self) -> usize {
        self.meta.live.get() as usize
    }

    /// An array that the kind is known to have.
    #[inline]
    pub(crate) fn array(&self, number: usize) -> Result<&Array> {
        match &self.arrays[number] {
            Some(array) => Ok(array),
            None => Err(Error::corrupt(0, format!("array {number} is missing"))),
        }
    }

    /// A record's bytes, handed to `read` under the page's latch.
    #[inline]
    pub(crate) fn record<R>(
        &self,
        number: usize,
        id: u32,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        let array = self.array(number)?;
        if let Some(bytes) = self.store.contiguous() {
            let offset = array.offset(id) as usize;
            if let Some(record) =
                offset.checked_add(array.size()).and_then(|end| bytes.get(offset..end))
            {
                return Ok(read(record));
            }
        }
        let missing = || no_record(number, id);
        let (page, offset) = array.locate(id).ok_or_else(missing)?;
        let body = self.store.read(page)?;
        Ok(read(body.get(offset..offset + array.size()).ok_or_else(missing)?))
    }

    /// The bytes of a record, of several that may lie on the same page one after the other: it stays latched in `page`,
    /// and until that is dropped no other may be read.
    #[inline]
    pub(crate) fn record_of_page<'p, 'a: 'p>(
        &'a self,
        number: usize,
        id: u32,
        page: &'p mut Option<(PageId, S::Page<'a>)>,
    ) -> Result<&'p [u8]> {
        let array = self.array(number)?;
        let (body, offset) = match self.store.contiguous() {
            Some(bytes) => (bytes, array.offset(id) as usize),
            None => {
                let (at, offset) = array.locate(id).ok_or_else(|| no_record(number, id))?;
                if page.as_ref().is_none_or(|(known, _)| *known != at) {
                    // One latch at a time.
                    *page = None;
                    *page = Some((at, self.store.read(at)?));
                }
                (page.as_ref().map_or(&[][..], |(_, body)| &body[..]), offset)
            }
        };
        let end = offset.checked_add(array.size());
        end.and_then(|end| body.get(offset..end)).ok_or_else(|| no_record(number, id))
    }

    /// A hint that a record will be read soon.
    #[inline]
    pub(crate) fn prefetch(&self, number: usize, id: u32) {
        let Ok(array) = self.array(number) else {
            return;
        };
        if let Some(bytes) = self.store.contiguous() {
            crate::kernel::prefetch(bytes, array.offset(id), array.size());
        } else if let Some((page, offset)) = array.locate(id) {
            self.store.prefetch(page, offset..offset + array.size());
        }
    }

    /// Asks for one of the [`PARTS`] of a record, from 0 on, for callers that have other work to do in between: a core
    /// waits for so many cache lines at a time and no more.
    #[inline]
    pub(crate) fn prefetch_part(&self, number: usize, id: u32, part: usize) {
        const LINE: usize = 64;
        let Ok(array) = self.array(number) else {
            return;
        };
        let size = array.size().div_ceil(PARTS * LINE) * LINE;
        let (from, to) = (part * size, array.size().min((part + 1) * size));
        if let Some(bytes) = self.store.contiguous() {
            let at = array.offset(id).saturating_add(from as u64);
            crate::kernel::prefetch(bytes, at, to.saturating_sub(from));
        } else if let Some((page, offset)) = array.locate(id) {
            self.store.prefetch(page, offset + from..offset + to.max(from));
        }
    }

    /// The node record of a slot.
    pub(crate) fn node(&self, id: u32) -> Result<Node> {
        let read = self.record(NODES, id, |bytes| Node::read_from_bytes(bytes).ok())?;
        match read {
            Some(node) if node.state().is_some() => Ok(node),
            _ => Err(self.corrupt_node(id, "its state is unknown".into())),
        }
    }

    /// A complaint about a node record, naming its page.
    pub(crate) fn corrupt_node(&self, id: u32, what: String) -> Error {
        let place = self.array(NODES).ok().and_then(|nodes| nodes.locate(id));
        Error::corrupt(place.map_or(0, |(page, _)| page.0), format!("slot {id}: {what}"))
    }

    /// Whether there is a record for each slot: its vector, or a code that stands in for it.
    pub(crate) fn has_rows(&self) -> bool {
        self.arrays[VECTORS].is_some()
    }

    /// Bits a coordinate of the codes that stand in for vectors; 0 if there are none.
    pub(crate) fn row_code_bits(&self) -> u8 {
        if self.has_vectors() { 0 } else { self.meta.by_node_bits() }
    }

    /// Copies a row, replacing `out`.
    pub(crate) fn row(&self, id: u32, out: &mut Vec<u8>) -> Result<()> {
        self.copy(VECTORS, id, out)
    }

    /// Replaces `out` with the floats of a row, or of what its code stands for; see [`Space::floats`]. `copy` is
    /// scratch, used where the row is not in one piece.
    pub(crate) fn floats(&self, id: u32, copy: &mut Vec<u8>, out: &mut Vec<f32>) -> Result<()> {
        if !self.has_vectors() {
            return self.decode(id, out);
        }
        if self.array(VECTORS)?.span() == 1 {
            return self.record(VECTORS, id, |row| self.space.floats(row, out));
        }
        self.row(id, copy)?;
        self.space.floats(copy, out);
        Ok(())
    }

    /// Copies a record, on however many pages it lies, replacing `out`.
    pub(crate) fn copy(&self, number: usize, id: u32, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        let array = self.array(number)?;
        if array.span() == 1 {
            return self.record(number, id, |row| out.extend_from_slice(row));
        }
        for part in 0..array.span() {
            let missing = || no_record(number, id);
            let body = self.store.read(array.part(id, part).ok_or_else(missing)?)?;
            out.extend_from_slice(&body[..body.len().min(array.size() - out.len())]);
        }
        Ok(())
    }

    /// Prepares a stored row for distances among rows. `copy` is scratch, used where the row is not in one piece.
    pub(crate) fn row_probe(&self, id: u32, copy: &mut Vec<u8>, probe: &mut Probe) -> Result<()> {
        if !self.has_vectors() {
            return self.record(VECTORS, id, |code| self.ask_code(code, &mut probe.asked))?;
        }
        if self.array(VECTORS)?.span() == 1 {
            return self.record(VECTORS, id, |row| self.space.probe(row, probe));
        }
        self.row(id, copy)?;
        self.space.probe(copy, probe);
        Ok(())
    }

    /// Checks and prepares a query given by the caller; `row` is for messages, `bytes` gets the row that it would be.
    pub(crate) fn query<T: Element>(
        &self,
        query: &[T],
        row: usize,
        bytes: &mut Vec<u8>,
        probe: &mut Probe,
    ) -> Result<()> {
        self.space.query(query, row, bytes, probe)?;
        match self.coder.is_some() && (self.goes_by_codes() || !self.has_vectors()) {
            true => self.ask(bytes, &mut probe.asked),
            false => Ok(()),
        }
    }

    /// Replaces `out` with the row of a vector that passed the checks at the door: it, the code that stands in for it,
    /// or nothing.
    pub(crate) fn encode<T: Element>(&self, vector: &[T], out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        if self.has_rows() {
            self.space.encode(vector, out);
        }
        self.keep(out)
    }

    /// Makes of a whole row what the index keeps of it, as [`Rows::encode`] does.
    pub(crate) fn keep(&self, row: &mut Vec<u8>) -> Result<()> {
        if !self.has_rows() {
            row.clear();
        } else if !self.has_vectors() {
            let whole = std::mem::take(row);
            self.code(&whole, &mut Workshop::default(), row)?;
        }
        Ok(())
    }

    /// Bytes of a row that are equal if vectors are, as far as the index can tell.
    pub(crate) fn telling_bytes(&self) -> usize {
        match &self.coder {
            Some(coder) if !self.has_vectors() => coder.stride(),
            _ => self.space.vector_bytes(),
        }
    }

    /// Distances from the probe to rows, or estimates of them where codes stand in for these; `bound` as for
    /// [`Space::distances`]. `offsets` is scratch; `out` is replaced.
    #[inline]
    pub(crate) fn score(
        &self,
        probe: &Probe,
        ids: &[u32],
        bound: f32,
        offsets: &mut Vec<u64>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        if !self.has_vectors() {
            return self.estimates(VECTORS, &probe.asked, ids, offsets, out);
        }
        self.space.score(&self.store, self.array(VECTORS)?, probe, ids, bound, offsets, out)
    }

    /// [`Rows::score`] of one row.
    pub(crate) fn score_one(&self, probe: &Probe, id: u32) -> Result<f32> {
        if !self.has_vectors() {
            let (mut offsets, mut out) = (Vec::new(), Vec::new());
            self.estimates(VECTORS, &probe.asked, &[id], &mut offsets, &mut out)?;
            return Ok(out[0]);
        }
        self.space.score_one(&self.store, self.array(VECTORS)?, probe, id)
    }

    /// Makes room for `records` records in an array, pages appended at the store's end. The pages and the extent
    /// that names them come into use together, by the write of the meta page.
    pub(crate) fn reserve(&mut self, number: usize, records: u64) -> Result<()> {
        if records > MAX_SLOTS {
            return Err(Error::Full { limit: MAX_SLOTS, wanted: records });
        }
        if number == VECTORS && !self.has_rows() {
            return Ok(());
        }
        let number = self.meta.arrays[number].host(number);
        while self.array(number)?.capacity() < records {
            self.append_extent(number, records)?;
        }
        Ok(())
    }

    /// Makes room for so many slots in the arrays that have a record for each.
    pub(crate) fn reserve_slots(&mut self, slots: u64) -> Result<()> {
        let links = self.arrays[LINKS].is_some().then_some(LINKS);
        let codes = self.goes_by_codes().then_some(CODES);
        let arrays = [VECTORS, NODES].into_iter().chain(links).chain(codes);
        arrays.into_iter().try_for_each(|at| self.reserve(at, slots))
    }

    /// Appends an extent to an array that is too small, unless somebody else has done something of that kind.
    fn append_extent(&mut self, number: usize, records: u64) -> Result<()> {
        let page_size = self.store.page_size();
        let array = self.array(number)?;
        let needed = array.pages_for(records) - array.pages();
        let bound = (EXTENT_BYTES / page_size as u64).max(array.pages() / 8).max(1);
        // Beside others there is no building anew: what is not needed would stay unused.
        let usual = if S::SHARED { array.pages() / 4 } else { array.pages() };
        let usual = usual.clamp(1, bound).next_multiple_of(array.span() as u64);
        let pages = needed.max(usual);
        let start = self.meta.pages.get();
        let full = || Error::Full { limit: MAX_SLOTS, wanted: records };
        let pages = u32::try_from(pages).ok().filter(|&p| p < 1 << 28).ok_or_else(full)?;
        let end = start.checked_add(pages).ok_or_else(full)?;
        let at = self.meta.extents.get() as usize;
        if at >= Meta::max_extents(page_size) {
            return Err(full());
        }
        self.store.grow(end)?;
        let extent = Extent::new(number, start, pages);
        let extent_at = meta::EXTENTS_AT + at * size_of::<Extent>();
        let meta = self.store.write(&[META], |pages| {
            let mut meta = Meta::of_body(pages.body(0))?;
            if (meta.pages.get(), meta.extents.get()) != (start, at as u32) {
                return Ok(None);
            }
            meta.pages = end.into();
            meta.extents = (at as u32 + 1).into();
            pages.put(0, 0, meta.as_bytes())?;
            pages.put(0, extent_at, extent.as_bytes())?;
            Ok(Some(meta))
        })?;
        match meta {
            Some(meta) => {
                self.meta = meta;
                take_in(&mut self.arrays, &meta, &extent)
            }
            None => self.refresh(),
        }
    }

    /// Makes a change together with an edit of the meta page, which sees that as it is in that moment. False, and
    /// nothing done, if something that `change` expects is not there any more, or if `edit` says so.
    pub(crate) fn commit_meta(
        &mut self,
        mut change: Change,
        edit: impl FnOnce(&mut Meta) -> bool,
    ) -> Result<bool> {
        match change.commit_meta(&mut self.store, edit)? {
            Some(meta) if meta.extents == self.meta.extents => {
                self.meta = meta;
                Ok(true)
            }
            done => self.refresh().map(|()| done.is_some()),
        }
    }

    /// Makes a change that leaves the meta page alone.
    pub(crate) fn commit(&mut self, change: &mut Change) -> Result<bool> {
        change.commit(&mut self.store)
    }

    /// Ids for new vectors, in the order in which they must be born: freed slots first, then new ones.
    pub(crate) fn free_ids(&self, count: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(count);
        let mut free = self.meta.free.get();
        while free != NONE && ids.len() < count {
            let node = self.node(free)?;
            if !node.is(State::Free) || ids.len() as u64 > u64::from(self.slots()) {
                return Err(self.corrupt_node(free, "it is on the free list but in use".into()));
            }
            ids.push(free);
            free = node.twin.get();
        }
        let more = (count - ids.len()) as u64;
        let end = u64::from(self.slots()) + more;
        if end > MAX_SLOTS {
            return Err(Error::Full { limit: MAX_SLOTS, wanted: end });
        }
        ids.extend(self.slots()..end as u32);
        Ok(ids)
    }

    /// Writes the vector of a slot that nothing refers to yet. Invisible until the slot is born.
    pub(crate) fn put_row(&mut self, id: u32, row: &[u8]) -> Result<()> {
        self.put_whole(VECTORS, id, row)
    }

    /// Writes a record that nothing refers to yet, on however many pages it lies, one after the other.
    pub(crate) fn put_whole(&mut self, number: usize, id: u32, row: &[u8]) -> Result<()> {
        self.reserve(number, u64::from(id) + 1)?;
        let Rows { store, arrays, .. } = self;
        let Some(array) = &arrays[number] else {
            return Ok(());
        };
        let missing = || no_record(number, id);
        if array.span() == 1 {
            let (page, offset) = array.locate(id).ok_or_else(missing)?;
            return store.write(&[page], |pages| pages.put(0, offset, row));
        }
        let body = store.page_size() - crate::page::HEADER;
        for (part, piece) in row.chunks(body).enumerate() {
            let page = array.part(id, part).ok_or_else(missing)?;
            store.write(&[page], |pages| pages.put(0, 0, piece))?;
        }
        Ok(())
    }

    /// Makes a vector visible, together with whatever `change` holds already. `replaces` is a visible vector of
    /// the same key, which dies in the same moment. The caller has reserved the arrays.
    pub(crate) fn birth(
        &mut self,
        mut change: Change,
        id: u32,
        mut node: Node,
        replaces: Option<u32>,
        edit: impl FnOnce(&mut Meta) -> bool,
    ) -> Result<bool> {
        let key = node.key.get();
        let nodes = self.array(NODES)?;
        let old = if id < self.slots() { Some(self.node(id)?) } else { None };
        if let Some(old) = &old {
            let is_next = self.meta.free.get() == id && old.is(State::Free);
            if !is_next && !old.is(State::Claimed) {
                return Err(self.corrupt_node(id, "it is not the free list's head".into()));
            }
            node.generation = old.generation;
            change.expect_record(nodes, id, old.as_bytes())?;
        }
        change.put_record(nodes, id, node.as_bytes())?;
        let claimed = old.is_some_and(|old| old.is(State::Claimed));
        // Nothing names the rows of a flat index: the slot of one that is replaced is free in the same moment.
        let frees = self.meta.kind() == Kind::Flat;
        let next_free =
            old.filter(|old| old.is(State::Free)).map_or(self.meta.free, |old| old.twin);
        if let Some(replaced) = replaces {
            let mut dead = self.node(replaced)?;
            change.expect_record(nodes, replaced, dead.as_bytes())?;
            match frees {
                true => dead.free(next_free.get()),
                false => dead.die(),
            }
            change.put_record(nodes, replaced, dead.as_bytes())?;
        }
        let (slots, free) = (self.slots(), self.meta.free);
        let done = self.commit_meta(change, |meta| {
            if (meta.slots.get(), meta.free) != (slots, free) && !claimed {
                return false;
            }
            match &old {
                None => {
                    meta.slots = (id + 1).into();
                    meta.upper = (meta.upper.get() + u32::from(node.level)).into();
                }
                Some(old) if old.is(State::Free) => meta.free = old.twin,
                Some(_) => {}
            }
            if replaces.is_none() {
                meta.live = (meta.live.get() + 1).into();
            } else if frees {
                meta.free = replaces.unwrap_or(NONE).into();
            } else {
                meta.tombstones = (meta.tombstones.get() + 1).into();
            }
            meta.next_key = meta.next_key.get().max(key + 1).into();
            edit(meta)
        })?;
        if !done {
            return Ok(false);
        }
        if let Some(keys) = self.keys.get_mut() {
            keys.insert(key, id);
        }
        Ok(true)
    }

    /// Makes new vectors visible, all in one write: `nodes` in the order of [`Rows::free_ids`], which lie on three
    /// pages at most. The caller has reserved the arrays.
    pub(crate) fn births(&mut self, nodes: &[(u32, Node)]) -> Result<()> {
        let before = (self.meta.slots, self.meta.free);
        let (mut slots, mut free) = before;
        let mut change = Change::default();
        for &(id, mut node) in nodes {
            if id == slots.get() {
                slots = (id + 1).into();
            } else {
                let old = self.node(id)?;
                if free.get() != id || !old.is(State::Free) {
                    return Err(self.corrupt_node(id, "it is not the free list's head".into()));
                }
                free = old.twin;
                node.generation = old.generation;
            }
            change.put_record(self.array(NODES)?, id, node.as_bytes())?;
        }
        let next_key = nodes.iter().map(|(_, node)| node.key.get() + 1).max().unwrap_or(0);
        let done = self.commit_meta(change, |meta| {
            if (meta.slots, meta.free) != before {
                return false;
            }
            (meta.slots, meta.free) = (slots, free);
            meta.live = (meta.live.get() + nodes.len() as u32).into();
            meta.next_key = meta.next_key.get().max(next_key).into();
            true
        })?;
        if !done {
            return Err(Error::Changed);
        }
        if let Some(keys) = self.keys.get_mut() {
            nodes.iter().for_each(|(id, node)| keys.insert(node.key.get(), *id));
        }
        Ok(())
    }

    /// Makes a visible vector a tombstone: searches do not return it any more, its slot waits for a sweep.
    pub(crate) fn bury(&mut self, id: u32) -> Result<()> {
        let key = loop {
            let node = self.node(id)?;
            if !node.is_visible() {
                return Ok(());
            }
            let mut dead = node;
            dead.die();
            let mut change = Change::default();
            change.expect_record(self.array(NODES)?, id, node.as_bytes())?;
            change.put_record(self.array(NODES)?, id, dead.as_bytes())?;
            let done = self.commit_meta(change, |meta| {
                meta.live = meta.live.get().saturating_sub(1).into();
                meta.tombstones = (meta.tombstones.get() + 1).into();
                true
            })?;
            if done {
                break node.key.get();
            }
        };
        self.forget_key(key);
        Ok(())
    }

    /// Puts a slot that nothing refers to any more on the free list. `live` and `tombstones` count what it was.
    pub(crate) fn free(&mut self, id: u32) -> Result<()> {
        self.free_with(Change::default(), id)
    }

    /// [`Rows::free`], together with whatever `change` holds already.
    ///
    /// # Errors
    /// [`Error::Changed`] if somebody else has given or taken slots.
    pub(crate) fn free_with(&mut self, mut change: Change, id: u32) -> Result<()> {
        let node = self.node(id)?;
        let key = node.is_visible().then(|| node.key.get());
        let (mut freed, next) = (node, self.meta.free);
        freed.free(next.get());
        change.expect_record(self.array(NODES)?, id, node.as_bytes())?;
        change.put_record(self.array(NODES)?, id, freed.as_bytes())?;
        let done = self.commit_meta(change, |meta| {
            let count = match node.state() {
                Some(State::Live | State::Twin) => Some(&mut meta.live),
                Some(State::Tombstone | State::DeadTwin) => Some(&mut meta.tombstones),
                _ => None,
            };
            if let Some(count) = count {
                *count = count.get().saturating_sub(1).into();
            }
            let stands = meta.free == next;
            meta.free = id.into();
            stands
        })?;
        if !done {
            return Err(Error::Changed);
        }
        if let Some(key) = key {
            self.forget_key(key);
        }
        Ok(())
    }

    fn forget_key(&mut self, key: u64) {
        if let Some(keys) = self.keys.get_mut() {
            keys.remove(key);
        }
    }

    /// Tells the key map that a key has moved to another slot.
    pub(crate) fn move_key(&mut self, key: u64, id: u32) {
        if let Some(keys) = self.keys.get_mut() {
            keys.insert(key, id);
        }
    }

    /// The key map, built now if this is its first use.
    fn keys(&self) -> Result<&Keys> {
        if let Some(keys) = self.keys.get() {
            return Ok(keys);
        }
        let built = Keys::build(self)?;
        Ok(self.keys.get_or_init(|| built))
    }

    /// The slot that holds a key.
    pub(crate) fn id_of(&self, key: u64) -> Result<Option<u32>> {
        Ok(self.keys()?.get(key))
    }

    /// Bytes of the key map, 0 before its first use.
    pub(crate) fn key_bytes(&self) -> usize {
        self.keys.get().map_or(0, Keys::bytes)
    }
}

/// A complaint about a record that there is not.
fn no_record(number: usize, id: u32) -> Error {
    Error::corrupt(0, format!("record {id} of array {number} does not exist"))
}

/// Records lie on their pages, parts of records within those, and no part is made of parts.
fn check_arrays(meta: &Meta, page_size: usize) -> Result<()> {
    let body = page_size - crate::page::HEADER;
    for (number, array) in meta.arrays.iter().enumerate() {
        let (stride, skip) = (array.stride.get() as usize, array.skip.get() as usize);
        let whole = skip == 0 && array.record() == stride;
        let fits = stride <= body && stride.is_multiple_of(4);
        let within = skip.checked_add(array.record()).is_some_and(|end| end <= stride);
        let host = meta.arrays.get(array.host(number));
        let hosted = host.is_some_and(|host| host.host.get() == 0 && host.stride == array.stride);
        let own = array.host.get() == 0;
        // Only whole vectors may span pages, and centroids, which are as long.
        let vectors = number == VECTORS && meta.has_vectors();
        let centroids = number == UPPER_CODES && meta.kind() == Kind::IvfPq;
        let spans = (vectors || centroids) && whole && own;
        if !(fits || spans) || !within || !(own || hosted) {
            let what = format!("array {number} has records of {} bytes at {skip}", array.record());
            return Err(Error::corrupt(0, format!("{what} in a stride of {stride}")));
        }
    }
    Ok(())
}

/// What makes the codes of an index that has them by node.
fn coder_of(meta: &Meta) -> Option<Coder> {
    let (dim, seed, bits) = (meta.dim.get() as usize, meta.seed.get(), meta.by_node_bits());
    (bits > 0).then(|| Coder::new(dim, meta.metric(), bits, seed))
}

fn arrays_of(meta: &Meta, page_size: usize) -> Vec<Option<Array>> {
    let array = |array: &meta::ArrayMeta| match array.stride.get() as usize {
        0 => None,
        stride => {
            Some(Array::new(stride, page_size).part_of(array.skip.get() as usize, array.record()))
        }
    };
    meta.arrays.iter().map(array).collect()
}

/// Adds an extent to the array it belongs to, and to those whose records lie in it.
fn take_in(arrays: &mut [Option<Array>], meta: &Meta, extent: &Extent) -> Result<()> {
    let (number, start, pages) = (extent.array(), extent.start.get(), extent.pages());
    let array = arrays.get(number).and_then(Option::as_ref);
    let last = u64::from(start) + u64::from(pages);
    if array.is_none() || pages == 0 || last > u64::from(meta.pages.get()) {
        return Err(Error::corrupt(0, format!("extent {start}+{pages} of array {number}")));
    }
    if meta.arrays[number].host(number) != number {
        let what = format!("array {number} has no extents of its own");
        return Err(Error::corrupt(0, what));
    }
    for (at, array) in arrays.iter_mut().enumerate() {
        if meta.arrays[at].host(at) == number
            && let Some(array) = array
        {
            array.push(start, pages);
        }
    }
    Ok(())
}
