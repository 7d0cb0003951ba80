//! Where an index of a test lives: kinds of index and kinds of store, each behind one name, so that one suite runs
//! over all of them.

use std::ops::{Deref, Range};
use std::path::Path;

use ann_core::testing::{Latched, LatchedPage};
use ann_core::{
    DType, DiskAnn, Flat, Hnsw, Index, IvfCode, IvfPq, MemStore, Metric, MmapStore, PageId,
    PageStore, Pages, Placement, Result,
};

/// A kind of index.
pub trait Kind {
    type Index: Index;

    /// Whether searches are exact.
    const EXACT: bool;

    /// Links that a node can have.
    const DEGREE: usize;

    /// Whether all that is kept of such vectors is their direction, in bytes.
    fn rounds(_: DType, _: Metric) -> bool {
        false
    }

    fn build(dim: usize, dtype: DType, metric: Metric, store: AnyStore) -> Result<Self::Index>;
    fn open(store: AnyStore) -> Result<Self::Index>;

    /// Takes removed vectors out at once, where the kind keeps them for a while.
    fn sweep(index: &mut Self::Index, threads: usize) -> Result<()>;
}

/// [`Flat`].
pub struct AFlat;

impl Kind for AFlat {
    type Index = Flat<AnyStore>;
    const EXACT: bool = true;
    const DEGREE: usize = 0;

    fn build(dim: usize, dtype: DType, metric: Metric, store: AnyStore) -> Result<Self::Index> {
        Flat::builder(dim).dtype(dtype).metric(metric).build_in(store)
    }

    fn open(store: AnyStore) -> Result<Self::Index> {
        Flat::open_in(store)
    }

    fn sweep(_: &mut Self::Index, _: usize) -> Result<()> {
        Ok(())
    }
}

/// [`Hnsw`], with little effort spent on building.
pub struct AnHnsw;

impl Kind for AnHnsw {
    type Index = Hnsw<AnyStore>;
    const EXACT: bool = false;
    const DEGREE: usize = 16;

    fn build(dim: usize, dtype: DType, metric: Metric, store: AnyStore) -> Result<Self::Index> {
        let builder = Hnsw::builder(dim).dtype(dtype).metric(metric);
        builder.m(8).ef_construction(60).seed(7).build_in(store)
    }

    fn open(store: AnyStore) -> Result<Self::Index> {
        Hnsw::open_in(store)
    }

    fn sweep(index: &mut Self::Index, threads: usize) -> Result<()> {
        index.sweep(threads)
    }
}

/// [`DiskAnn`], with little effort spent on building.
pub struct ADiskAnn;

impl Kind for ADiskAnn {
    type Index = DiskAnn<AnyStore>;
    const EXACT: bool = false;
    const DEGREE: usize = 32;

    fn build(dim: usize, dtype: DType, metric: Metric, store: AnyStore) -> Result<Self::Index> {
        let builder = DiskAnn::builder(dim).dtype(dtype).metric(metric);
        builder.build_list_size(60).seed(7).build_in(store)
    }

    fn open(store: AnyStore) -> Result<Self::Index> {
        DiskAnn::open_in(store)
    }

    fn sweep(index: &mut Self::Index, threads: usize) -> Result<()> {
        index.sweep(threads)
    }
}

/// [`DiskAnn`] with codes by node, which come into use once there are enough vectors.
pub struct ACompact;

impl Kind for ACompact {
    type Index = DiskAnn<AnyStore>;
    const EXACT: bool = false;
    const DEGREE: usize = 32;

    fn build(dim: usize, dtype: DType, metric: Metric, store: AnyStore) -> Result<Self::Index> {
        let mut builder = DiskAnn::builder(dim).dtype(dtype).metric(metric);
        // The longest have no code that fits the pages of these tests.
        if dim <= 20_000 {
            builder = builder.placement(Placement::Compact);
        }
        builder.build_list_size(60).seed(7).build_in(store)
    }

    fn open(store: AnyStore) -> Result<Self::Index> {
        DiskAnn::open_in(store)
    }

    fn sweep(index: &mut Self::Index, threads: usize) -> Result<()> {
        index.sweep(threads)
    }
}

/// [`DiskAnn`] of directions in bytes, where that can be.
pub struct ARoundedDiskAnn;

impl Kind for ARoundedDiskAnn {
    type Index = DiskAnn<AnyStore>;
    const EXACT: bool = false;
    const DEGREE: usize = 32;

    fn rounds(dtype: DType, metric: Metric) -> bool {
        matches!(dtype, DType::F32 | DType::F16) && metric == Metric::Cosine
    }

    fn build(dim: usize, dtype: DType, metric: Metric, store: AnyStore) -> Result<Self::Index> {
        let vectors = if Self::rounds(dtype, metric) { DType::I8 } else { dtype };
        let builder = DiskAnn::builder(dim).dtype(dtype).metric(metric).vectors(vectors);
        builder.build_list_size(60).seed(7).build_in(store)
    }

    fn open(store: AnyStore) -> Result<Self::Index> {
        ADiskAnn::open(store)
    }

    fn sweep(index: &mut Self::Index, threads: usize) -> Result<()> {
        ADiskAnn::sweep(index, threads)
    }
}

/// [`Hnsw`] with codes by node.
pub struct ACodedHnsw;

impl Kind for ACodedHnsw {
    type Index = Hnsw<AnyStore>;
    const EXACT: bool = false;
    const DEGREE: usize = 16;

    fn build(dim: usize, dtype: DType, metric: Metric, store: AnyStore) -> Result<Self::Index> {
        // As many as fit the pages of these tests.
        let bits = match dim {
            ..=2000 => 4,
            2001..=20_000 => 1,
            _ => 0,
        };
        let builder = Hnsw::builder(dim).dtype(dtype).metric(metric).code_bits(bits);
        builder.m(8).ef_construction(60).seed(7).build_in(store)
    }

    fn open(store: AnyStore) -> Result<Self::Index> {
        Hnsw::open_in(store)
    }

    fn sweep(index: &mut Self::Index, threads: usize) -> Result<()> {
        index.sweep(threads)
    }
}

/// [`IvfPq`], which trains itself soon and reads half of its lists.
pub struct AnIvfPq;

impl Kind for AnIvfPq {
    type Index = IvfPq<AnyStore>;
    const EXACT: bool = false;
    const DEGREE: usize = 0;

    fn build(dim: usize, dtype: DType, metric: Metric, store: AnyStore) -> Result<Self::Index> {
        let builder = IvfPq::builder(dim).dtype(dtype).metric(metric);
        builder.lists(12).train_at(150).seed(7).build_in(store)
    }

    fn open(store: AnyStore) -> Result<Self::Index> {
        IvfPq::open_in(store)
    }

    fn sweep(index: &mut Self::Index, threads: usize) -> Result<()> {
        index.rebalance(threads)?;
        index.compact()
    }
}

/// [`IvfPq`] with codes of bytes, two for each vector, which is rotated where dimensions are few, and as many lists as suit the rows: it trains itself again as it
/// grows.
pub struct ByteIvfPq;

impl Kind for ByteIvfPq {
    type Index = IvfPq<AnyStore>;
    const EXACT: bool = false;
    const DEGREE: usize = 0;

    fn build(dim: usize, dtype: DType, metric: Metric, store: AnyStore) -> Result<Self::Index> {
        let builder = IvfPq::builder(dim).dtype(dtype).metric(metric).bits(8).spill(true);
        builder.subvectors(dim.clamp(1, 5)).opq(dim <= 64).train_at(60).seed(7).build_in(store)
    }

    fn open(store: AnyStore) -> Result<Self::Index> {
        IvfPq::open_in(store)
    }

    fn sweep(index: &mut Self::Index, threads: usize) -> Result<()> {
        index.compact()?;
        index.rebalance(threads)
    }
}

/// [`IvfPq`] with RaBitQ's codes, of two bits for even dimensions and else of one.
pub struct TurnedIvfPq;

impl Kind for TurnedIvfPq {
    type Index = IvfPq<AnyStore>;
    const EXACT: bool = false;
    const DEGREE: usize = 0;

    fn build(dim: usize, dtype: DType, metric: Metric, store: AnyStore) -> Result<Self::Index> {
        // The longest have no code that fits the pages of these tests.
        let code = match dim {
            401.. => IvfCode::Pq,
            _ if dim.is_multiple_of(2) => IvfCode::RaBitQ2,
            _ => IvfCode::RaBitQ1,
        };
        let builder = IvfPq::builder(dim).dtype(dtype).metric(metric).code(code);
        builder.lists(12).train_at(150).seed(7).build_in(store)
    }

    fn open(store: AnyStore) -> Result<Self::Index> {
        IvfPq::open_in(store)
    }

    fn sweep(index: &mut Self::Index, threads: usize) -> Result<()> {
        index.compact()?;
        index.rebalance(threads)
    }
}

/// [`IvfPq`] of directions in bytes, where that can be.
pub struct RoundedIvfPq;

impl Kind for RoundedIvfPq {
    type Index = IvfPq<AnyStore>;
    const EXACT: bool = false;
    const DEGREE: usize = 0;

    fn rounds(dtype: DType, metric: Metric) -> bool {
        ARoundedDiskAnn::rounds(dtype, metric)
    }

    fn build(dim: usize, dtype: DType, metric: Metric, store: AnyStore) -> Result<Self::Index> {
        let vectors = if Self::rounds(dtype, metric) { DType::I8 } else { dtype };
        let builder = IvfPq::builder(dim).dtype(dtype).metric(metric).vectors(vectors);
        builder.lists(12).train_at(150).seed(7).build_in(store)
    }

    fn open(store: AnyStore) -> Result<Self::Index> {
        AnIvfPq::open(store)
    }

    fn sweep(index: &mut Self::Index, threads: usize) -> Result<()> {
        AnIvfPq::sweep(index, threads)
    }
}

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Home {
    Memory,
    File,
    /// The latched store, which panics when a thread holds two read guards or writes under one.
    Latches,
}

impl Home {
    /// A store without pages; `path` is where it may make a file.
    pub fn create(self, path: &Path, page_size: usize) -> Result<AnyStore> {
        Ok(match self {
            Home::Memory => AnyStore::Memory(MemStore::new(page_size)?),
            Home::File => AnyStore::File(MmapStore::create(path, page_size)?),
            Home::Latches => AnyStore::Latches(Latched::new(MemStore::new(page_size)?)),
        })
    }

    /// The store that was saved to `path`, open for changes.
    pub fn open(self, path: &Path) -> Result<AnyStore> {
        Ok(match self {
            Home::Memory => AnyStore::Memory(MemStore::load(path)?),
            Home::File => AnyStore::File(MmapStore::open_writable(path)?),
            Home::Latches => AnyStore::Latches(Latched::new(MemStore::load(path)?)),
        })
    }
}

/// A store of any kind: the suite is compiled once for all of them.
pub enum AnyStore {
    Memory(MemStore),
    File(MmapStore),
    Latches(Latched<MemStore>),
}

/// A page of one.
pub enum AnyPage<'a> {
    Plain(&'a [u8]),
    Latched(LatchedPage<&'a [u8]>),
}

impl Deref for AnyPage<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            AnyPage::Plain(page) => page,
            AnyPage::Latched(page) => page,
        }
    }
}

macro_rules! each {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            AnyStore::Memory($store) => $call,
            AnyStore::File($store) => $call,
            AnyStore::Latches($store) => $call,
        }
    };
}

impl PageStore for AnyStore {
    type Page<'a> = AnyPage<'a>;

    fn page_size(&self) -> usize {
        each!(self, store => store.page_size())
    }

    fn page_count(&self) -> u32 {
        each!(self, store => store.page_count())
    }

    fn read(&self, page: PageId) -> Result<AnyPage<'_>> {
        match self {
            AnyStore::Memory(store) => store.read(page).map(AnyPage::Plain),
            AnyStore::File(store) => store.read(page).map(AnyPage::Plain),
            AnyStore::Latches(store) => store.read(page).map(AnyPage::Latched),
        }
    }

    fn prefetch(&self, page: PageId, bytes: Range<usize>) {
        each!(self, store => store.prefetch(page, bytes));
    }

    fn contiguous(&self) -> Option<&[u8]> {
        each!(self, store => store.contiguous())
    }

    fn grow(&mut self, pages: u32) -> Result<()> {
        each!(self, store => store.grow(pages))
    }

    fn write<R>(
        &mut self,
        pages: &[PageId],
        change: impl FnOnce(&mut Pages<'_>) -> Result<R>,
    ) -> Result<R> {
        each!(self, store => store.write(pages, change))
    }

    fn flush(&mut self) -> Result<()> {
        each!(self, store => store.flush())
    }
}
