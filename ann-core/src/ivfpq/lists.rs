//! Lists on pages: chains of blocks, each of 32 codes as the kernel reads them and the slots that they are of.
//!
//! A list is a record that names its first block; each block names the next. Blocks with room are also on the list's
//! stack of open blocks, from which additions take places; a block leaves it when an addition finds it full, and comes
//! back when an entry is taken out of it. Blocks that no list needs any more are chained from the meta page.

use half::bf16;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::code::opq;
use crate::error::{Error, Result};
use crate::kernel::fastscan::{Addends, BLOCK, get_nibbles, nibble_bytes, put_nibbles};
use crate::page::{PageId, PageStore};
use crate::rows::{ALONG, CENTRED, Change, FITTED, NONE, RABITQ, Rows, SPILL, TURNED};

use super::code::{IvfCode, rabitq_block};
use super::model::{book_at, book_pages};
use super::{BLOCKS, IvfPq, LISTS};

/// Bytes of the numbers of 32 slots, or of 32 addends.
const NUMBERS: usize = 4 * BLOCK;
/// Blocks begin at multiples of it, so that no vector load straddles cache lines.
const ALIGN: usize = 32;

/// Where what is in a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Block {
    pub subs: usize,
    pub bits: u8,
    /// Numbers that each code has beside it: none, an addend, or that and a scale.
    pub factors: usize,
}

/// What an entry has beside its code, as far as its block has room for that.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Factors {
    /// What is added to its distances.
    pub addend: f32,
    /// What the dot product of a query and the code is multiplied by.
    pub scale: f32,
}

impl Factors {
    /// Whether they are the same to the last bit, as far as there are so many.
    pub(crate) fn same(self, other: Factors, count: usize) -> bool {
        let bits = |factors: Factors| factors.numbers().map(f32::to_bits);
        bits(self)[..count] == bits(other)[..count]
    }

    fn numbers(self) -> [f32; 2] {
        [self.addend, self.scale]
    }
}

impl Block {
    pub(crate) fn new(subs: usize, bits: u8, factors: usize) -> Block {
        Block { subs, bits, factors }
    }

    /// The most sub-quantizers whose blocks fit so many bytes.
    pub(crate) fn most(room: usize, bits: u8, factors: usize) -> usize {
        let rest = Block::new(0, bits, factors).bytes();
        let room = room / ALIGN * ALIGN;
        match bits {
            // Two rows of 16 bytes, one for each of a pair.
            4 => room.saturating_sub(rest) / BLOCK * 2,
            _ => room.saturating_sub(rest) / BLOCK,
        }
    }

    /// Bytes of 32 codes.
    #[inline]
    pub(crate) fn codes(self) -> usize {
        match self.bits {
            4 => nibble_bytes(self.subs),
            _ => self.subs * BLOCK,
        }
    }

    /// Where the slots begin.
    #[inline]
    pub(crate) fn slots(self) -> usize {
        self.codes() + self.factors * NUMBERS
    }

    /// Where what chains blocks begins.
    #[inline]
    pub(crate) fn links(self) -> usize {
        self.slots() + NUMBERS
    }

    fn bytes(self) -> usize {
        self.links() + size_of::<Links>()
    }

    /// Bytes from one block to the next.
    pub(crate) fn stride(self) -> usize {
        self.bytes().next_multiple_of(ALIGN)
    }

    /// Puts a code into a block's bytes.
    pub(crate) fn put(
        self,
        block: &mut [u8],
        lane: usize,
        codes: &[u8],
        factors: Factors,
        slot: u32,
    ) {
        let area = &mut block[..self.codes()];
        match self.bits {
            4 => put_nibbles(area, lane, codes),
            _ => area.as_chunks_mut::<BLOCK>().0.iter_mut().zip(codes).for_each(|(row, &code)| {
                row[lane] = code;
            }),
        }
        for (number, factor) in factors.numbers().iter().enumerate().take(self.factors) {
            block[self.factor(number, lane)..][..4].copy_from_slice(&factor.to_le_bytes());
        }
        block[self.slots() + 4 * lane..][..4].copy_from_slice(&slot.to_le_bytes());
    }

    /// Reads a code out of a block's bytes, and returns what it has beside it.
    pub(crate) fn get(self, block: &[u8], lane: usize, codes: &mut [u8]) -> Factors {
        let area = &block[..self.codes()];
        match self.bits {
            4 => get_nibbles(area, lane, codes),
            _ => area.as_chunks::<BLOCK>().0.iter().zip(codes).for_each(|(row, code)| {
                *code = row[lane];
            }),
        }
        let factor = |number: usize| {
            let at = self.factor(number, lane);
            match (number < self.factors, block.get(at..at + 4)) {
                (true, Some(&[a, b, c, d])) => f32::from_le_bytes([a, b, c, d]),
                _ => 0.0,
            }
        };
        Factors { addend: factor(0), scale: factor(1) }
    }

    /// Where a number beside a code is.
    fn factor(self, number: usize, lane: usize) -> usize {
        self.codes() + number * NUMBERS + 4 * lane
    }

    /// The addends of a block's bytes, if there are any, and their scales.
    #[inline]
    pub(crate) fn factors_of(self, block: &[u8]) -> [Option<&Addends>; 2] {
        let of = |number: usize| block[self.factor(number, 0)..].first_chunk();
        [0, 1].map(|number| if number < self.factors { of(number) } else { None })
    }

    /// A block without entries.
    pub(crate) fn empty(self, links: Links) -> Vec<u8> {
        let mut block = vec![0; self.stride()];
        self.clear(&mut block, links);
        block
    }

    /// Makes the bytes of a block, all zero, those of one without entries.
    pub(crate) fn clear(self, block: &mut [u8], links: Links) {
        block[self.slots()..self.links()].fill(0xff);
        block[self.links()..self.bytes()].copy_from_slice(links.as_bytes());
    }

    /// The slots of a block's bytes.
    #[inline]
    pub(crate) fn slots_of(self, block: &[u8]) -> [u32; BLOCK] {
        let bytes = &block[self.slots()..self.links()];
        let mut slots = [NONE; BLOCK];
        for (slot, &bytes) in slots.iter_mut().zip(bytes.as_chunks().0) {
            *slot = u32::from_le_bytes(bytes);
        }
        slots
    }

    /// What chains a block's bytes to others.
    #[inline]
    pub(crate) fn links_of(self, block: &[u8]) -> Links {
        let bytes = &block[self.links()..];
        Links::read_from_prefix(bytes).map_or(Links::new(NONE, NONE), |(links, _)| links)
    }
}

/// The end of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Links {
    /// The list's next block, or the next unused one.
    pub next: U32,
    /// The list that it is of; [`NONE`] if it is unused.
    pub list: U32,
    /// 1 while it is on the list's stack of open blocks.
    pub is_open: U32,
    /// The next on that stack.
    pub open: U32,
}

impl Links {
    pub(crate) fn new(next: u32, list: u32) -> Links {
        Links { next: next.into(), list: list.into(), is_open: 0.into(), open: NONE.into() }
    }
}

/// A list's record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct List {
    /// Its first block.
    pub head: U32,
    /// The first of its blocks that may have room.
    pub open: U32,
    /// 0 while it is in use, 1 once its entries have gone to others.
    pub retired: U32,
    /// Its extent: bits of bf16.
    radius: U16,
    spread: U16,
}

/// How far entries lie around their centroid, root mean square.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Extent {
    /// In all directions together; 0 if it is not known.
    pub radius: f32,
    /// In the direction of a near query.
    pub spread: f32,
}

/// Bytes of a list's record.
pub(crate) const LIST_BYTES: usize = size_of::<List>();

impl List {
    /// A list without blocks.
    pub(crate) fn empty(extent: Extent) -> List {
        let (head, open) = (NONE.into(), NONE.into());
        let mut list = List { head, open, retired: 0.into(), radius: 0.into(), spread: 0.into() };
        list.set_extent(extent);
        list
    }

    /// How far its entries lie around its centroid; all zero if that is not known.
    pub(crate) fn extent(&self) -> Extent {
        let of = |bits: U16| bf16::from_bits(bits.get()).to_f32();
        let (radius, spread) = (of(self.radius), of(self.spread));
        let known = radius > 0.0 && spread > 0.0 && (radius * radius).is_finite();
        if known && spread.is_finite() { Extent { radius, spread } } else { Extent::default() }
    }

    pub(crate) fn set_extent(&mut self, extent: Extent) {
        let of = |value: f32| U16::new(bf16::from_f32(value).to_bits());
        (self.radius, self.spread) = (of(extent.radius), of(extent.spread));
    }
}

/// A place in a list for one entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub block: u32,
    pub lane: usize,
}

/// What an entry has in its block.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub slot: u32,
    pub codes: &'a [u8],
    pub factors: Factors,
}

impl<S: PageStore> IvfPq<S> {
    /// The record of a list in use.
    pub(super) fn list(&self, list: u32) -> Result<List> {
        match self.numbers().contains(&list) {
            true => self.any_list(list),
            false => Err(Error::corrupt(0, format!("list {list} does not exist"))),
        }
    }

    /// A list's record, which need not be in use yet.
    pub(super) fn any_list(&self, list: u32) -> Result<List> {
        let read = self.rows.record(LISTS, list, |bytes| List::read_from_bytes(bytes).ok())?;
        read.ok_or_else(|| Error::corrupt(0, format!("list {list} does not exist")))
    }

    /// A complaint about a block, naming its page.
    pub(super) fn bad_block(&self, block: u32, what: impl std::fmt::Display) -> Error {
        let place = self.rows.array(BLOCKS).ok().and_then(|blocks| blocks.locate(block));
        Error::corrupt(place.map_or(0, |(page, _)| page.0), format!("block {block}: {what}"))
    }

    /// The slots of a block and what chains it, once it is known to be of `list`.
    pub(super) fn block(&self, block: u32, list: u32) -> Result<([u32; BLOCK], Links)> {
        let (slots, links) = self.any_block(block)?;
        match links.list.get() == list {
            true => Ok((slots, links)),
            false => {
                Err(self.bad_block(block, format!("it is of list {}, not {list}", links.list)))
            }
        }
    }

    /// The slots of a block and what chains it, whichever list it is of.
    pub(super) fn any_block(&self, block: u32) -> Result<([u32; BLOCK], Links)> {
        if block >= self.rows.upper() {
            return Err(self.bad_block(block, "it does not exist"));
        }
        let shape = self.block;
        self.rows.record(BLOCKS, block, |bytes| (shape.slots_of(bytes), shape.links_of(bytes)))
    }

    /// The blocks of a list in the order of its chain, with their slots.
    pub(super) fn blocks_of(&self, list: u32) -> Result<Vec<(u32, [u32; BLOCK])>> {
        let mut blocks = Vec::new();
        let mut next = self.list(list)?.head.get();
        while next != NONE {
            let (slots, links) = self.block(next, list)?;
            if blocks.len() >= self.rows.upper() as usize {
                return Err(self.bad_block(next, format!("the chain of list {list} has no end")));
            }
            blocks.push((next, slots));
            next = links.next.get();
        }
        Ok(blocks)
    }

    /// A free place in a list; a block is added to it if there is none.
    pub(super) fn place(&mut self, list: u32) -> Result<Place> {
        let mut closed = 0;
        while closed <= self.rows.upper() {
            let record = self.any_list(list)?;
            let open = record.open.get();
            if open == NONE {
                match self.add_block(list, record)? {
                    Some(block) => return Ok(Place { block, lane: 0 }),
                    None => continue,
                }
            }
            let (slots, links) = self.block(open, list)?;
            if let Some(lane) = slots.iter().position(|&slot| slot == NONE) {
                return Ok(Place { block: open, lane });
            }
            let mut change = Change::default();
            self.close_first(&mut change, list, record, open, links)?;
            closed += u32::from(self.rows.commit(&mut change)?);
        }
        Err(Error::corrupt(0, format!("the open blocks of list {list} have no end")))
    }

    /// Takes the first block off a list's stack of open ones.
    pub(super) fn close_first(
        &self,
        change: &mut Change,
        list: u32,
        mut record: List,
        block: u32,
        mut links: Links,
    ) -> Result<()> {
        change.expect_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
        self.expect_links(change, block, links)?;
        record.open = links.open;
        (links.is_open, links.open) = (0.into(), NONE.into());
        change.put_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
        self.put_links(change, block, links)
    }

    /// Puts what chains a block.
    pub(super) fn put_links(&self, change: &mut Change, block: u32, links: Links) -> Result<()> {
        self.put(change, block, self.block.links(), links.as_bytes())
    }

    /// Makes a change conditional: a block is still chained so.
    pub(super) fn expect_links(&self, change: &mut Change, block: u32, links: Links) -> Result<()> {
        let (page, offset) = self.locate(block)?;
        change.expect(page, offset + self.block.links(), links.as_bytes());
        Ok(())
    }

    /// Puts bytes at an offset of a block.
    fn put(&self, change: &mut Change, block: u32, at: usize, bytes: &[u8]) -> Result<()> {
        let (page, offset) = self.locate(block)?;
        change.put(page, offset + at, bytes);
        Ok(())
    }

    fn locate(&self, block: u32) -> Result<(PageId, usize)> {
        let missing = || self.bad_block(block, "it lies outside its array");
        self.rows.array(BLOCKS)?.locate(block).ok_or_else(missing)
    }

    /// Puts an empty block before a list's others: an unused one, or a new one. Nothing is done if somebody else has
    /// been faster.
    fn add_block(&mut self, list: u32, mut record: List) -> Result<Option<u32>> {
        let (unused, upper) = (self.rows.meta.entry, self.rows.meta.upper);
        let block = if unused.get() == NONE { upper.get() } else { unused.get() };
        self.rows.reserve(BLOCKS, u64::from(block) + 1)?;
        let mut change = Change::default();
        let mut next = None;
        if unused.get() != NONE {
            let (_, links) = self.any_block(block)?;
            if links.list.get() != NONE && !S::SHARED {
                return Err(self.bad_block(block, format!("it is of list {}", links.list)));
            }
            self.expect_links(&mut change, block, links)?;
            next = (links.list.get() == NONE).then_some(links.next);
        }
        let mut links = Links::new(record.head.get(), list);
        (links.is_open, links.open) = (1.into(), record.open);
        change.expect_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
        (record.head, record.open) = (block.into(), block.into());
        self.put(&mut change, block, 0, &self.block.empty(links))?;
        change.put_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
        let added = self.rows.commit_meta(change, |meta| {
            if (meta.entry, meta.upper) != (unused, upper) {
                return false;
            }
            match next {
                None if unused.get() == NONE => meta.upper = (block + 1).into(),
                None => return false,
                Some(next) => meta.entry = next,
            }
            true
        })?;
        if !added && unused == self.rows.meta.entry && unused.get() != NONE && next.is_none() {
            return Err(self.bad_block(block, "it is among the unused ones and of a list"));
        }
        Ok(added.then_some(block))
    }

    /// Adds to a change that an entry comes to a free place.
    pub(super) fn put_entry(
        &self,
        change: &mut Change,
        place: Place,
        codes: &[u8],
        factors: Factors,
        slot: u32,
    ) -> Result<()> {
        let shape = self.block;
        let mut bytes = Vec::new();
        self.rows.record(BLOCKS, place.block, |block| bytes.extend_from_slice(block))?;
        let (page, offset) = self.locate(place.block)?;
        let at = shape.slots() + 4 * place.lane;
        // Nibbles share their bytes with a neighbour's: what was read has to stand.
        change.expect(page, offset, &bytes[..shape.links()]);
        let list = shape.links() + std::mem::offset_of!(Links, list);
        change.expect(page, offset + list, &bytes[list..list + 4]);
        // And the place must be free still: what was read is younger than the choice of it.
        change.expect(page, offset + at, &NONE.to_le_bytes());
        shape.put(&mut bytes, place.lane, codes, factors, slot);
        change.put(page, offset, &bytes[..shape.codes()]);
        for number in 0..shape.factors {
            let factor = shape.factor(number, place.lane);
            change.put(page, offset + factor, &bytes[factor..factor + 4]);
        }
        change.put(page, offset + at, &bytes[at..at + 4]);
        Ok(())
    }

    /// Puts as many entries into a list as one of its blocks has room for, of some that are not empty. How many these
    /// are.
    pub(super) fn append(&mut self, list: u32, entries: &[Entry<'_>]) -> Result<usize> {
        let (shape, mut bytes) = (self.block, Vec::new());
        loop {
            let Place { block, .. } = self.place(list)?;
            self.rows.copy(BLOCKS, block, &mut bytes)?;
            if shape.links_of(&bytes).list.get() != list {
                continue;
            }
            let (page, offset) = self.locate(block)?;
            let mut change = Change::default();
            change.expect(page, offset, &bytes);
            let slots = shape.slots_of(&bytes);
            let free = (0..BLOCK).filter(|&lane| slots[lane] == NONE);
            let mut count = 0;
            for (lane, entry) in free.zip(entries) {
                shape.put(&mut bytes, lane, entry.codes, entry.factors, entry.slot);
                count += 1;
            }
            change.put(page, offset, &bytes[..shape.links()]);
            if count > 0 && self.rows.commit(&mut change)? {
                return Ok(count);
            }
        }
    }

    /// Takes what is in some lanes of a block out of it, which is open from then on.
    pub(super) fn clear_lanes(&mut self, block: u32, lanes: u32) -> Result<()> {
        let (shape, mut bytes) = (self.block, Vec::new());
        loop {
            self.rows.copy(BLOCKS, block, &mut bytes)?;
            let (page, offset) = self.locate(block)?;
            let mut change = Change::default();
            change.expect(page, offset, &bytes);
            for lane in (0..BLOCK).filter(|lane| lanes >> lane & 1 == 1) {
                let at = shape.slots() + 4 * lane;
                change.put(page, offset + at, &NONE.to_le_bytes());
            }
            let mut links = shape.links_of(&bytes);
            if links.is_open.get() == 0 {
                let list = links.list.get();
                let mut record = self.list(list)?;
                change.expect_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
                (links.is_open, links.open) = (1.into(), record.open);
                record.open = block.into();
                self.put_links(&mut change, block, links)?;
                change.put_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
            }
            if self.rows.commit(&mut change)? {
                return Ok(());
            }
        }
    }

    /// Adds to a change that a slot's entry leaves its block. With `reopen`, the block is open from then on.
    pub(super) fn clear_entry(
        &self,
        change: &mut Change,
        block: u32,
        slot: u32,
        reopen: bool,
    ) -> Result<()> {
        let shape = self.block;
        let (slots, mut links) = self.any_block(block)?;
        let lane = slots.iter().position(|&held| held == slot);
        let lane = lane.ok_or_else(|| self.bad_block(block, format!("it lacks slot {slot}")))?;
        self.put(change, block, shape.slots() + 4 * lane, &NONE.to_le_bytes())?;
        if reopen && links.is_open.get() == 0 {
            let list = links.list.get();
            let mut record = self.list(list)?;
            (links.is_open, links.open) = (1.into(), record.open);
            record.open = block.into();
            self.put_links(change, block, links)?;
            change.put_record(self.rows.array(LISTS)?, list, record.as_bytes())?;
        }
        Ok(())
    }
}

/// How many of a block's places are taken.
pub(crate) fn entries(slots: &[u32; BLOCK]) -> usize {
    slots.iter().filter(|&&slot| slot != NONE).count()
}

/// The slots in a block.
pub(crate) fn taken(slots: &[u32; BLOCK]) -> impl Iterator<Item = u32> + '_ {
    slots.iter().copied().filter(|&slot| slot != NONE)
}

/// The shape of blocks that a meta page tells of.
pub(super) fn shape_of<S: PageStore>(rows: &Rows<S>) -> Result<Block> {
    let meta = &rows.meta;
    let (subs, dim) = (meta.m.get() as usize, rows.space.dim);
    let turned = meta.entries & TURNED != 0;
    let rabitq = meta.entries & RABITQ != 0;
    let unknown = meta.entries & !(ALONG | SPILL | RABITQ | TURNED | CENTRED | FITTED) != 0;
    let fitted = meta.entries & FITTED != 0;
    if unknown || rabitq && (fitted || turned) || turned && dim > opq::MAX_DIM {
        return Err(Error::corrupt(0, format!("entries of kind {}", meta.entries)));
    }
    let addends = usize::from(rows.space.metric == crate::Metric::L2sq);
    let block = match IvfCode::of(meta).map(IvfCode::planes) {
        Some(None) if (1..=dim).contains(&subs) => Block::new(subs, meta.code_bits, addends),
        Some(Some(planes)) if rabitq_block(dim, planes).subs == subs => rabitq_block(dim, planes),
        _ => {
            let what = format!("{subs} sub-quantizers of {} bits", meta.code_bits);
            return Err(Error::corrupt(0, what));
        }
    };
    if S::SHARED && meta.spills() {
        let allowed = "false where others change the index at the same time";
        return Err(Error::parameter("spill", true, allowed));
    }
    if S::SHARED && !rows.has_rows() {
        let allowed = "1, 2, 4 or 8 where others change the index at the same time";
        return Err(Error::parameter("code_bits", 0, allowed));
    }
    if meta.entries & CENTRED != 0 && rows.row_code_bits() == 0 {
        return Err(Error::corrupt(0, "a centre of no codes"));
    }
    if meta.train_at.get() == 0 {
        return Err(Error::corrupt(0, "train_at = 0"));
    }
    let sizes = [
        (BLOCKS, block.stride()),
        (LISTS, LIST_BYTES),
        (super::CENTROIDS, 4 * rows.space.dim),
        (super::BOOK, rows.store.page_size() - crate::page::HEADER),
    ];
    for (number, size) in sizes {
        let array = &meta.arrays[number];
        if array.record() != size || array.stride.get() as usize != size || array.host.get() != 0 {
            let what = format!("records of array {number} have {} bytes", array.record());
            return Err(Error::corrupt(0, format!("{what}, not {size}")));
        }
    }
    let (first, lists) = (meta.coded.get(), u64::from(meta.entry_level.get()));
    if u64::from(first) > lists || meta.book > 1 {
        let what = format!("lists from {first} to {lists}, codebook {}", meta.book);
        return Err(Error::corrupt(0, what));
    }
    let pages = if lists > 0 { book_at(rows) + book_pages(rows) } else { 0 };
    for (number, records) in
        [(LISTS, lists), (super::CENTROIDS, lists), (super::BOOK, pages.into())]
    {
        if rows.array(number)?.capacity() < records {
            return Err(Error::corrupt(0, format!("array {number} has no {records} records")));
        }
    }
    Ok(block)
}
