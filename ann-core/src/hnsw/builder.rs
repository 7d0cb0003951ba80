//! The parameters of an HNSW index, checked at the door.

use crate::element::DType;
use crate::error::{Error, Result};
use crate::kernel::Isa;
use crate::metric::Metric;
use crate::page::{HEADER, MAX_PAGE_SIZE, MemStore, PageStore};
use crate::rows::{
    Array, Coder, Kind, LINKS, Rows, Space, UPPER, by_node, check_compact, compact_bits,
};

use super::Hnsw;

/// Makes an [`Hnsw`] index.
#[derive(Clone, Debug)]
pub struct HnswBuilder {
    dim: usize,
    metric: Metric,
    dtype: DType,
    m: usize,
    ef_construction: usize,
    code_bits: Option<u8>,
    vectors: Option<DType>,
    keeps_vectors: bool,
    seed: u64,
    isa: Option<Isa>,
}

impl HnswBuilder {
    pub(super) fn new(dim: usize) -> HnswBuilder {
        HnswBuilder {
            dim,
            metric: Metric::L2sq,
            dtype: DType::F32,
            m: 16,
            ef_construction: 200,
            code_bits: None,
            vectors: None,
            keeps_vectors: true,
            seed: 0,
            isa: None,
        }
    }

    /// The metric; squared L2 unless it is set.
    pub fn metric(mut self, metric: Metric) -> HnswBuilder {
        self.metric = metric;
        self
    }

    /// The element type; `f32` unless it is set.
    pub fn dtype(mut self, dtype: DType) -> HnswBuilder {
        self.dtype = dtype;
        self
    }

    /// Links that a node can have on each level, from 2 to 256; twice as many at level 0. 16 unless it is set.
    /// More links find more, take more memory and more time.
    pub fn m(mut self, m: usize) -> HnswBuilder {
        self.m = m;
        self
    }

    /// Candidates among which a vector's links are chosen, from 1 to 100,000; at least `m` is used. 200 unless it is
    /// set. Loading an empty index finds a quarter of them by search, the others among near vectors.
    pub fn ef_construction(mut self, ef_construction: usize) -> HnswBuilder {
        self.ef_construction = ef_construction;
        self
    }

    /// Bits a coordinate of codes by node: 1, 2, 4 or 8, which searches find their way by before they read the vectors
    /// of what could be a result; 0 for none. Unless it is set, 0 where vectors are kept, else 4, or 8 up to 64
    /// dimensions.
    pub fn code_bits(mut self, code_bits: u8) -> HnswBuilder {
        self.code_bits = Some(code_bits);
        self
    }

    /// What vectors are stored as: `dtype`, which it is unless it is set, `f16` where that is `f32`, `i8` of floats
    /// under cosine, or `None` for codes alone. As [`crate::DiskAnnBuilder::vectors`].
    pub fn vectors(mut self, vectors: impl Into<Option<DType>>) -> HnswBuilder {
        self.vectors = vectors.into();
        self.keeps_vectors = self.vectors.is_some();
        self
    }

    /// Seeds the order of insertion and the levels.
    pub fn seed(mut self, seed: u64) -> HnswBuilder {
        self.seed = seed;
        self
    }

    /// Forces an instruction set, for results that are equal on all machines.
    pub fn instruction_set(mut self, isa: Isa) -> HnswBuilder {
        self.isa = Some(isa);
        self
    }

    /// An empty index in memory, with a page size that suits the dimension.
    ///
    /// # Errors
    /// [`Error::Parameter`], naming the parameter that is out of range.
    pub fn build(self) -> Result<Hnsw> {
        let space = self.space()?;
        let record = match self.keeps_vectors {
            true => space.stride(),
            false => Coder::stride_of(self.dim, self.bits(MAX_PAGE_SIZE)),
        };
        let page_size = Array::page_size(record.min(MAX_PAGE_SIZE - HEADER));
        self.build_in(MemStore::new(page_size)?)
    }

    /// An empty index in a store that has no pages yet.
    ///
    /// # Errors
    /// As [`HnswBuilder::build`], [`Error::Parameter`] if the store's pages are too small for a code, and those of the
    /// store.
    pub fn build_in<S: PageStore>(self, store: S) -> Result<Hnsw<S>> {
        let space = self.space()?;
        let bits = self.bits(store.page_size());
        if bits > 0 {
            let (bytes, page_size) = (Coder::stride_of(self.dim, bits), store.page_size());
            if bytes > page_size - HEADER {
                let enough = (bytes + HEADER).next_power_of_two();
                let allowed = format!("at least {enough}, for a code of {bytes} bytes");
                return Err(Error::parameter("page size", page_size, allowed));
            }
        }
        let rows = Rows::create(store, Kind::Hnsw, space, |meta| {
            if bits > 0 {
                by_node(meta, bits, self.keeps_vectors);
            }
            meta.arrays[LINKS].stride = (8 * self.m as u32).into();
            meta.arrays[UPPER].stride = (4 * self.m as u32).into();
            meta.m = (self.m as u32).into();
            meta.ef_construction = (self.ef_construction.max(self.m) as u32).into();
            meta.seed = self.seed.into();
        })?;
        Hnsw::from_rows(rows)
    }

    /// Bits a coordinate of the codes, on pages of this size.
    fn bits(&self, page_size: usize) -> u8 {
        self.code_bits.unwrap_or_else(|| match self.keeps_vectors {
            true => 0,
            false => compact_bits(self.dim, page_size - HEADER),
        })
    }

    fn space(&self) -> Result<Space> {
        if !(2..=256).contains(&self.m) {
            return Err(Error::parameter("m", self.m, "from 2 to 256"));
        }
        if !(1..=100_000).contains(&self.ef_construction) {
            let allowed = "from 1 to 100000";
            return Err(Error::parameter("ef_construction", self.ef_construction, allowed));
        }
        let bits = self.bits(MAX_PAGE_SIZE);
        if bits > 0 || !self.keeps_vectors {
            check_compact(bits)?;
        }
        let stored = self.vectors.unwrap_or(self.dtype);
        Space::narrowed(self.dim, self.dtype, stored, self.metric, self.isa)
    }
}
