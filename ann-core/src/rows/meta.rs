//! The meta page: what an index is, its counters, and where its arrays lie. One page, read once at open.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::element::{DType, MAX_DIM};
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::page::HEADER;

use super::codes::CENTRE_FLOATS;
use super::narrow::narrows;

/// The first bytes of a meta page's body.
pub(crate) const MAGIC: [u8; 8] = *b"ANNINDEX";

/// The newest index format that this library reads, and the one it writes.
pub(crate) const VERSION: u32 = 1;

/// "No id": the end of a link list, of a chain, of the free list; an absent entry point.
pub(crate) const NONE: u32 = u32::MAX;

/// The element type of rows that are codes.
pub(crate) const NO_VECTORS: u8 = 255;

/// The largest alpha.
pub(crate) const MAX_ALPHA: f32 = 10.0;

/// Slots an index can have: two bits of an id are flags in link lists and candidate pools.
pub(crate) const MAX_SLOTS: u64 = 1 << 30;

/// Arrays that a meta page has room to describe.
pub(crate) const ARRAYS: usize = 8;

/// Where the extent list starts in the meta page's body.
pub(crate) const EXTENTS_AT: usize = size_of::<Meta>();

/// The kind of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// Exact search.
    Flat = 1,
    /// Hierarchical navigable small world graph.
    Hnsw = 2,
    /// Graph with the codes of neighbours beside its links.
    DiskAnn = 3,
    /// Inverted lists of product-quantized codes.
    IvfPq = 4,
}

impl Kind {
    const fn from_code(code: u8) -> Option<Kind> {
        match code {
            1 => Some(Kind::Flat),
            2 => Some(Kind::Hnsw),
            3 => Some(Kind::DiskAnn),
            4 => Some(Kind::IvfPq),
            _ => None,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Flat => "Flat",
            Kind::Hnsw => "HNSW",
            Kind::DiskAnn => "DiskANN",
            Kind::IvfPq => "IVF-PQ",
        })
    }
}

/// The shape of one record array; its extents are in the list behind the meta page's fixed part.
#[derive(
    Clone, Copy, Default, PartialEq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub(crate) struct ArrayMeta {
    /// Bytes from one record to the next; 0 where the index has no such array.
    pub stride: U32,
    /// Where in these bytes the record begins.
    pub skip: U32,
    /// Bytes a record; 0 for all of the stride.
    pub size: U32,
    /// One more than the number of the array whose extents these records lie in; 0 if that is this one.
    pub host: U32,
}

/// A contiguous run of pages that belongs to one array.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Extent {
    /// First page.
    pub start: U32,
    /// Number of pages in the low 28 bits, the array's number in the high 4.
    pub pages_and_array: U32,
}

impl ArrayMeta {
    /// An array whose records are `size` bytes from `skip` on, in extents of its own or of `host`.
    pub(crate) fn part(stride: usize, skip: usize, size: usize, host: Option<usize>) -> ArrayMeta {
        ArrayMeta {
            stride: (stride as u32).into(),
            skip: (skip as u32).into(),
            size: (size as u32).into(),
            host: host.map_or(0, |host| host as u32 + 1).into(),
        }
    }

    /// Bytes a record.
    pub(crate) fn record(&self) -> usize {
        match self.size.get() {
            0 => self.stride.get() as usize,
            size => size as usize,
        }
    }

    /// Which array's extents hold the records of array `number`, which this is.
    pub(crate) fn host(&self, number: usize) -> usize {
        (self.host.get() as usize).checked_sub(1).unwrap_or(number)
    }
}

impl Extent {
    pub(crate) fn new(array: usize, start: u32, pages: u32) -> Extent {
        Extent { start: start.into(), pages_and_array: (pages | (array as u32) << 28).into() }
    }

    pub(crate) fn pages(self) -> u32 {
        self.pages_and_array.get() & 0x0fff_ffff
    }

    pub(crate) fn array(self) -> usize {
        (self.pages_and_array.get() >> 28) as usize
    }
}

/// The fixed part of the meta page's body, byte for byte. `FORMAT.md` draws it.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Meta {
    pub magic: [u8; 8],
    pub version: U32,
    pub kind: u8,
    pub dtype: u8,
    pub metric: u8,
    /// IVF-PQ: which of the two places of the codebook is in use, 0 or 1.
    pub book: u8,
    pub dim: U32,
    pub page_size: U32,
    pub seed: U64,
    /// Slots handed out so far, free ones included: ids are below it.
    pub slots: U32,
    /// Vectors that searches return.
    pub live: U32,
    /// Removed vectors whose slots still wait for a sweep.
    pub tombstones: U32,
    /// Head of the free list.
    pub free: U32,
    /// One more than the largest key ever given.
    pub next_key: U64,
    /// Counts changes, so that a cursor can tell that it is out of date.
    pub changes: U64,
    /// Pages in use: what lies behind them was allocated by a change that never took effect.
    pub pages: U32,
    /// Extents in the list.
    pub extents: U32,
    pub entry: U32,
    pub entry_level: U32,
    pub m: U32,
    pub ef_construction: U32,
    /// Bits a coordinate of the codes beside links; 0 if there are none.
    pub code_bits: u8,
    /// The element type that rows hold; 0 if that is `dtype`, [`NO_VECTORS`] if codes stand in for them.
    pub stored: u8,
    /// 1 if codes are by node, 0 if they stand beside links. IVF-PQ: bits a coordinate of the codes that are its rows; 0
    /// if these are vectors, or nothing.
    pub by_node: u8,
    /// IVF-PQ: [`ALONG`], [`SPILL`], [`RABITQ`], [`TURNED`], [`CENTRED`] and [`FITTED`], as far as they hold.
    pub entries: u8,
    /// Records of array 3 handed out so far: upper-level links, or IVF-PQ's blocks.
    pub upper: U32,
    /// DiskANN's alpha, the bits of a float; 0 stands for 1. IVF-PQ: rows that training looks at, at most; 0 for what
    /// suits the lists.
    pub alpha: U32,
    /// Pieces of the centre of the codes by node; 0 if none are in use, or without vectors if the centre is zero.
    /// IVF-PQ: the first of the lists in use; `entry_level` is where they end.
    pub coded: U32,
    /// Counts what searches beside it have to know of: changes of what slots hold, and of IVF-PQ's lists.
    pub sweeps: U32,
    /// The bits of a float. IVF-PQ: the most that a code misses of its vector, or with RaBitQ is off. Graphs: the
    /// epsilon of searches, as tuned, 0 without.
    pub error: U32,
    /// As tuned, 0 without: IVF-PQ: lists that a search reads, and candidates that it measures. Graphs: the `k` that
    /// the size of a search's pool is for, and that size.
    pub probes: U32,
    pub rerank: U32,
    /// IVF-PQ: rows that there were at the last training.
    pub trained: U32,
    /// IVF-PQ: rows at which an index trains itself.
    pub train_at: U32,
    pub arrays: [ArrayMeta; ARRAYS],
}

/// Codes are chosen for inner products.
pub(crate) const ALONG: u8 = 1;
/// Vectors have a second entry, in another list.
pub(crate) const SPILL: u8 = 2;
/// Codes are RaBitQ's, of `code_bits` bits a coordinate.
pub(crate) const RABITQ: u8 = 4;
/// Vectors are rotated before they are encoded, by a matrix that stands behind the codebook.
pub(crate) const TURNED: u8 = 8;
/// The codes that are rows are relative to a centre; else to zero.
pub(crate) const CENTRED: u8 = 16;
/// How product quantizers' codes are fitted to lists and queries: what says it stands behind the codebook.
pub(crate) const FITTED: u8 = 32;

impl Meta {
    /// Bits a coordinate of codes by node; 0 if there are none.
    pub(crate) fn by_node_bits(&self) -> u8 {
        match (self.try_kind(), self.by_node) {
            (Some(Kind::IvfPq), bits) => bits,
            (_, 1) => self.code_bits,
            _ => 0,
        }
    }

    /// Of a graph, what was tuned to be the epsilon of searches.
    pub(crate) fn epsilon(&self) -> Option<f32> {
        let epsilon = f32::from_bits(self.error.get());
        let is_one = self.try_kind() != Some(Kind::IvfPq) && epsilon > 0.0 && epsilon.is_finite();
        is_one.then_some(epsilon)
    }

    /// Pieces of the centre of codes by node; 0 if none are in use, or without vectors if the centre is zero.
    pub(crate) fn centre_pieces(&self) -> u32 {
        match self.try_kind() {
            Some(Kind::IvfPq) if self.entries & CENTRED == 0 => 0,
            Some(Kind::IvfPq) => self.dim.get().div_ceil(CENTRE_FLOATS as u32),
            _ => self.coded.get(),
        }
    }

    /// Says that codes by node are in use, with a centre of so many pieces, or that they are not.
    pub(crate) fn set_centre(&mut self, pieces: u32) {
        match self.try_kind() {
            Some(Kind::IvfPq) if pieces == 0 => self.entries &= !CENTRED,
            Some(Kind::IvfPq) => self.entries |= CENTRED,
            _ => self.coded = pieces.into(),
        }
    }

    /// Whether there is a record for each slot: its vector, or a code that stands in for it.
    pub(crate) fn has_rows(&self) -> bool {
        self.has_vectors() || self.by_node_bits() > 0
    }

    /// Whether vectors have a second entry.
    pub(crate) fn spills(&self) -> bool {
        self.entries & SPILL != 0
    }

    /// The meta page of an empty index.
    pub(crate) fn new(kind: Kind, dtype: DType, metric: Metric, dim: usize, page: usize) -> Meta {
        let mut meta = Meta::new_zeroed();
        meta.magic = MAGIC;
        meta.version = VERSION.into();
        meta.kind = kind as u8;
        meta.dtype = dtype as u8;
        meta.metric = metric as u8;
        meta.dim = (dim as u32).into();
        meta.page_size = (page as u32).into();
        meta.free = NONE.into();
        meta.entry = NONE.into();
        meta.pages = 1.into();
        meta
    }

    /// Reads and checks the body of page 0.
    pub(crate) fn parse(body: &[u8], page_size: usize) -> Result<(Meta, Vec<Extent>)> {
        let Ok((meta, rest)) = Meta::read_from_prefix(body) else {
            return Err(Error::corrupt(0, "the page is too small for a meta page"));
        };
        if meta.magic != MAGIC {
            return Err(Error::NotAnIndex { what: "page 0 does not hold an index".into() });
        }
        if meta.version.get() > VERSION {
            return Err(Error::Version { got: meta.version.get(), newest: VERSION });
        }
        let bad = |what: String| Err(Error::corrupt(0, what));
        if meta.version.get() == 0 {
            return bad("format version 0".into());
        }
        if meta.try_kind().is_none() {
            return bad(format!("unknown index kind {}", meta.kind));
        }
        if DType::from_code(meta.dtype).is_none() {
            return bad(format!("unknown element type {}", meta.dtype));
        }
        let is_narrowed = match (DType::from_code(meta.stored), Metric::from_code(meta.metric)) {
            (Some(stored), Some(metric)) => narrows(meta.dtype(), stored, metric),
            _ => false,
        };
        let has_lists = meta.try_kind() == Some(Kind::IvfPq);
        let is_coded = matches!(meta.by_node_bits(), 1 | 2 | 4 | 8);
        // Lists have codes of their own: those of rows come in their place, and may be left out.
        let is_replaced = (is_coded || has_lists) && !meta.has_vectors();
        if meta.stored != 0 && !is_narrowed && !is_replaced {
            return bad(format!("element type {} stored as {}", meta.dtype, meta.stored));
        }
        if meta.by_node != 0 && (!is_coded || has_lists && !is_replaced) {
            return bad(format!("codes of {} bits by node", meta.by_node_bits()));
        }
        let pieces = if is_coded { meta.dim.get().div_ceil(CENTRE_FLOATS as u32) } else { 0 };
        if meta.coded.get() != 0 && meta.coded.get() != pieces && !has_lists {
            return bad(format!("a centre of {} pieces", meta.coded.get()));
        }
        if Metric::from_code(meta.metric).is_none() {
            return bad(format!("unknown metric {}", meta.metric));
        }
        if !has_lists && !(1.0..=MAX_ALPHA).contains(&meta.alpha()) {
            return bad(format!("alpha = {}", meta.alpha()));
        }
        let dim = meta.dim.get() as usize;
        if dim == 0 || dim > MAX_DIM {
            return bad(format!("dimension {dim}"));
        }
        if meta.page_size.get() as usize != page_size {
            return bad(format!("page size {} in a store of {page_size}", meta.page_size.get()));
        }
        if u64::from(meta.slots.get()) > MAX_SLOTS {
            return bad(format!("{} slots", meta.slots.get()));
        }
        let used = u64::from(meta.live.get()) + u64::from(meta.tombstones.get());
        if used > u64::from(meta.slots.get()) {
            return bad(format!("{used} vectors in {} slots", meta.slots.get()));
        }
        let count = meta.extents.get() as usize;
        if count > rest.len() / size_of::<Extent>() {
            return bad(format!("{count} extents do not fit the page"));
        }
        let extents = <[Extent]>::ref_from_bytes(&rest[..count * size_of::<Extent>()])
            .map_err(|_| Error::corrupt(0, "unreadable extent list"))?;
        Ok((meta, extents.to_vec()))
    }

    /// The fixed part as the body of page 0 has it now; what it says of the index's kind was checked at open.
    pub(crate) fn of_body(body: &[u8]) -> Result<Meta> {
        match Meta::read_from_prefix(body) {
            Ok((meta, _)) if meta.magic == MAGIC => Ok(meta),
            _ => Err(Error::corrupt(0, "the meta page is gone")),
        }
    }

    fn try_kind(&self) -> Option<Kind> {
        Kind::from_code(self.kind)
    }

    /// The index's kind. A parsed meta page has a known one.
    pub(crate) fn kind(&self) -> Kind {
        self.try_kind().unwrap_or(Kind::Flat)
    }

    /// The element type. A parsed meta page has a known one.
    pub(crate) fn dtype(&self) -> DType {
        DType::from_code(self.dtype).unwrap_or(DType::F32)
    }

    /// The element type that vectors are stored as, where they are.
    pub(crate) fn stored(&self) -> DType {
        DType::from_code(self.stored).unwrap_or(self.dtype())
    }

    /// Whether vectors are stored; else codes stand in for them.
    pub(crate) fn has_vectors(&self) -> bool {
        self.stored != NO_VECTORS
    }

    /// How much nearer than a node the neighbour has to be that stands in for it.
    pub(crate) fn alpha(&self) -> f32 {
        if self.alpha.get() == 0 { 1.0 } else { f32::from_bits(self.alpha.get()) }
    }

    /// Alpha, as a factor of squared distances, which distances between rows are, or half of them.
    pub(crate) fn spread(&self) -> f32 {
        self.alpha() * self.alpha()
    }

    /// The metric. A parsed meta page has a known one.
    pub(crate) fn metric(&self) -> Metric {
        Metric::from_code(self.metric).unwrap_or(Metric::L2sq)
    }

    /// How many extents a meta page of this size can list.
    pub(crate) fn max_extents(page_size: usize) -> usize {
        (page_size - HEADER - EXTENTS_AT) / size_of::<Extent>()
    }
}

/// What a slot is being used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// On the free list, or never used.
    Free = 0,
    /// In the graph, returned by searches.
    Live = 1,
    /// Identical to the live vector `owner`; hangs on its chain instead of in the graph.
    Twin = 2,
    /// Removed, still in the graph so that paths through it stay.
    Tombstone = 3,
    /// A removed twin, still on its chain.
    DeadTwin = 4,
    /// Of an insertion under way, or of one that a crash has cut off. Nothing names it.
    Claimed = 5,
}

/// What is known of a slot besides its vector and links.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Node {
    pub key: U64,
    /// Next on the chain of identical vectors; on a free slot, next on the free list. IVF-PQ: the block of its second
    /// entry.
    pub twin: U32,
    /// Of a twin: the vector in the graph whose chain it is on. IVF-PQ: the block of its entry.
    pub owner: U32,
    /// First record in the upper-level link array; the slot keeps it, and its level, for all its occupants.
    pub upper: U32,
    /// Raised whenever the slot is freed.
    pub generation: zerocopy::little_endian::U16,
    state: u8,
    pub level: u8,
}

impl Node {
    pub(crate) fn new(key: u64, state: State, level: u8, upper: u32) -> Node {
        Node {
            key: key.into(),
            twin: NONE.into(),
            owner: NONE.into(),
            upper: upper.into(),
            generation: 0.into(),
            state: state as u8,
            level,
        }
    }

    /// The slot's state; `None` if the byte is none that we write.
    pub(crate) fn state(&self) -> Option<State> {
        match self.state {
            0 => Some(State::Free),
            1 => Some(State::Live),
            2 => Some(State::Twin),
            3 => Some(State::Tombstone),
            4 => Some(State::DeadTwin),
            5 => Some(State::Claimed),
            _ => None,
        }
    }

    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state as u8;
    }

    /// Makes what was visible a way-point that searches do not return.
    pub(crate) fn die(&mut self) {
        self.set_state(if self.is(State::Twin) { State::DeadTwin } else { State::Tombstone });
    }

    /// Makes it a free slot, before `next` on the free list.
    pub(crate) fn free(&mut self, next: u32) {
        self.set_state(State::Free);
        self.generation = self.generation.get().wrapping_add(1).into();
        self.owner = NONE.into();
        self.twin = next.into();
    }

    pub(crate) fn is(&self, state: State) -> bool {
        self.state == state as u8
    }

    /// Whether a search may return it.
    pub(crate) fn is_visible(&self) -> bool {
        self.is(State::Live) || self.is(State::Twin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_format() {
        assert_eq!(size_of::<Meta>(), 256);
        assert_eq!(size_of::<ArrayMeta>(), 16);
        assert_eq!(size_of::<Extent>(), 8);
        assert_eq!(size_of::<Node>(), 24);
    }

    #[test]
    fn parse_refuses_what_it_does_not_know() {
        let page = 4096;
        let good = Meta::new(Kind::Hnsw, DType::F16, Metric::Cosine, 7, page);
        let parse = |meta: &Meta| {
            let mut body = meta.as_bytes().to_vec();
            body.resize(page - HEADER, 0);
            Meta::parse(&body, page).map(|(meta, _)| meta)
        };
        assert_eq!(parse(&good).map(|m| m.dim.get()).ok(), Some(7));
        let change = |f: &dyn Fn(&mut Meta)| {
            let mut meta = good;
            f(&mut meta);
            parse(&meta).map(|_| ()).unwrap_err()
        };
        assert!(matches!(change(&|m| m.magic[0] = 0), Error::NotAnIndex { .. }));
        assert!(matches!(change(&|m| m.version = 2.into()), Error::Version { got: 2, .. }));
        assert!(matches!(change(&|m| m.kind = 200), Error::Corrupt { page: 0, .. }));
        assert!(matches!(change(&|m| m.dtype = 0), Error::Corrupt { .. }));
        assert!(matches!(change(&|m| m.metric = 9), Error::Corrupt { .. }));
        assert!(matches!(change(&|m| m.dim = 0.into()), Error::Corrupt { .. }));
        assert!(matches!(change(&|m| m.page_size = 8192.into()), Error::Corrupt { .. }));
        assert!(matches!(change(&|m| m.slots = u32::MAX.into()), Error::Corrupt { .. }));
        assert!(matches!(change(&|m| m.live = 1.into()), Error::Corrupt { .. }));
        assert!(matches!(change(&|m| m.extents = 1_000_000.into()), Error::Corrupt { .. }));
    }
}
