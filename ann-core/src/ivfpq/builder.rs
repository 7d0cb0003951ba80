//! The parameters of an IVF-PQ index, checked at the door.

use crate::code::opq;
use crate::element::DType;
use crate::error::{Error, Result};
use crate::kernel::Isa;
use crate::metric::Metric;
use crate::page::{HEADER, MAX_PAGE_SIZE, MemStore, PageStore};
use crate::rows::{
    ALONG, ArrayMeta, Coder, FITTED, Kind, MAX_SLOTS, NO_VECTORS, RABITQ, Rows, SPILL, Space,
    TURNED, compact_bits,
};

use super::code::rabitq_block;
use super::lists::{Block, LIST_BYTES};
use super::{BLOCKS, BOOK, CENTROIDS, IvfCode, IvfPq, LISTS};

/// Makes an [`IvfPq`] index.
#[derive(Clone, Debug)]
pub struct IvfPqBuilder {
    dim: usize,
    metric: Metric,
    dtype: DType,
    vectors: Option<DType>,
    keeps_vectors: bool,
    code_bits: Option<u8>,
    lists: Option<usize>,
    subvectors: Option<usize>,
    bits: Option<u8>,
    code: IvfCode,
    anisotropic: bool,
    opq: bool,
    spill: bool,
    sample: Option<usize>,
    train_at: usize,
    seed: u64,
    isa: Option<Isa>,
}

impl IvfPqBuilder {
    pub(super) fn new(dim: usize) -> IvfPqBuilder {
        IvfPqBuilder {
            dim,
            metric: Metric::L2sq,
            dtype: DType::F32,
            vectors: None,
            keeps_vectors: true,
            code_bits: None,
            lists: None,
            subvectors: None,
            bits: None,
            code: IvfCode::Pq,
            anisotropic: true,
            opq: false,
            spill: false,
            sample: None,
            train_at: 1024,
            seed: 0,
            isa: None,
        }
    }

    /// The metric; squared L2 unless it is set.
    pub fn metric(mut self, metric: Metric) -> IvfPqBuilder {
        self.metric = metric;
        self
    }

    /// The element type; `f32` unless it is set.
    pub fn dtype(mut self, dtype: DType) -> IvfPqBuilder {
        self.dtype = dtype;
        self
    }

    /// What vectors are stored as, for exact distances: `dtype`, which it is unless it is set, or `f16` where that is
    /// `f32`. Halves take half the space, and distances are theirs; a value beyond 65,504 is refused. Of floats under
    /// cosine `i8` keeps directions in a byte a coordinate; see [`crate::DiskAnnBuilder::vectors`].
    ///
    /// `None` keeps only codes of them; [`IvfPqBuilder::code_bits`] says which. Results carry estimates then, squared
    /// distances near zero even below it, unless a search is given the caller's own distances
    /// ([`crate::Search::exact`]).
    pub fn vectors(mut self, vectors: impl Into<Option<DType>>) -> IvfPqBuilder {
        self.vectors = vectors.into();
        self.keeps_vectors = self.vectors.is_some();
        self
    }

    /// Bits a coordinate of the codes (RaBitQ, arXiv 2409.09913) by which candidates are reranked where vectors are not
    /// kept: 1, 2, 4 or 8; these also stand in for vectors in all that learns from them or moves them to other lists.
    /// Unless it is set, 4, or 8 up to 64 dimensions. They are relative to the mean of the vectors that come first, if
    /// these are 32 or more in one call.
    ///
    /// With 0 there are none, and what the lists have is all that is known of a vector: hits are the nearest by these
    /// codes. Such an index has to have lists before it is given vectors, by [`IvfPq::train`] or by
    /// [`IvfPqBuilder::train_at`] rows in the first call; it does not train itself anew, and
    /// [`IvfPq::rebalance`] leaves it as it is.
    pub fn code_bits(mut self, code_bits: u8) -> IvfPqBuilder {
        self.code_bits = Some(code_bits);
        self
    }

    /// Lists, from 1 to 2^24; there are never more than rows at training. Unless it is set, twice the root of the
    /// number of rows, as long as that leaves 32 to a list, and anew once there are four times as many rows.
    pub fn lists(mut self, lists: usize) -> IvfPqBuilder {
        self.lists = Some(lists);
        self
    }

    /// Sub-quantizers: pieces into which a vector is cut for its code, from 1 to the dimension, which they need not
    /// divide. Unless it is set, one for each two dimensions up to 128 dimensions and for each four beyond, as far as a
    /// block of 32 codes fits a page.
    pub fn subvectors(mut self, subvectors: usize) -> IvfPqBuilder {
        self.subvectors = Some(subvectors);
        self
    }

    /// Bits of a sub-quantizer's code: 4, which are scored in registers, or 8, which tell more for their bytes and are
    /// slower. 4 unless it is set.
    pub fn bits(mut self, bits: u8) -> IvfPqBuilder {
        self.bits = Some(bits);
        self
    }

    /// What codes are; [`IvfCode::Pq`] unless it is set.
    ///
    /// RaBitQ's tell more for as many bytes beyond some 128 dimensions, and train in less time, since nothing but lists is
    /// learnt; they have 4 to 8 bytes more an entry, for which searches that measure the nearest by their vectors are about
    /// as fast at best. They are for vectors that are dear to measure, and for vectors that change in kind.
    pub fn code(mut self, code: IvfCode) -> IvfPqBuilder {
        self.code = code;
        self
    }

    /// Whether codes under inner product and cosine are chosen for what they say of near queries (anisotropic loss,
    /// arXiv
    /// 1908.10396), and not for the least distance to the vector. True unless it is set; no matter under squared L2.
    pub fn anisotropic(mut self, anisotropic: bool) -> IvfPqBuilder {
        self.anisotropic = anisotropic;
        self
    }

    /// Whether vectors are rotated before they are cut into pieces, as is learnt at training for codes that miss less
    /// (OPQ, Ge et al., TPAMI 2014). False unless it is set; up to 1,024 dimensions. Training takes O(dim^3) more, an
    /// addition and a search O(dim^2). It pays where coordinates depend on one another, as pixels do, and vectors are
    /// dear to measure; of most embeddings codes tell as much without.
    pub fn opq(mut self, opq: bool) -> IvfPqBuilder {
        self.opq = opq;
        self
    }

    /// Whether vectors have a second entry, in a list that tells of them what the nearest does not (SOAR, arXiv
    /// 2404.00774): codes take twice the space, and searches find as much in fewer lists, the more so the more
    /// dimensions there are. False unless it is set.
    pub fn spill(mut self, spill: bool) -> IvfPqBuilder {
        self.spill = spill;
        self
    }

    /// Rows that training looks at, at most. Unless it is set, 64 for each list, and 16,384 at least.
    pub fn sample(mut self, sample: usize) -> IvfPqBuilder {
        self.sample = Some(sample);
        self
    }

    /// Rows at which an index that was not trained trains itself, at least 1; until then searches are exact. 1024
    /// unless it is set.
    pub fn train_at(mut self, rows: usize) -> IvfPqBuilder {
        self.train_at = rows;
        self
    }

    /// Seeds the training.
    pub fn seed(mut self, seed: u64) -> IvfPqBuilder {
        self.seed = seed;
        self
    }

    /// Forces an instruction set for exact distances.
    pub fn instruction_set(mut self, isa: Isa) -> IvfPqBuilder {
        self.isa = Some(isa);
        self
    }

    /// An empty index in memory, with a page size that suits its records.
    ///
    /// # Errors
    /// [`Error::Parameter`], naming the parameter that is out of range.
    pub fn build(self) -> Result<IvfPq> {
        let space = self.space()?;
        let block = self.block(MAX_PAGE_SIZE)?.stride();
        let code = self.row_code_bits(MAX_PAGE_SIZE)?;
        let row = match (self.keeps_vectors, code) {
            (true, _) => space.stride(),
            (false, 0) => 0,
            (false, bits) => Coder::stride_of(self.dim, bits),
        };
        // Bytes that a page size takes for 32 vectors and their block.
        let bytes = |size: usize| {
            let of = |stride: usize| match (size - HEADER) / stride.max(1) {
                _ if stride == 0 => 0.0,
                0 => (stride.div_ceil(size - HEADER) * size) as f64,
                whole => size as f64 / whole as f64,
            };
            32.0 * of(row) + of(block)
        };
        // Only vectors may lie on several pages.
        let whole = if self.keeps_vectors { block } else { block.max(row) };
        let sizes = (13..=20).map(|log| 1usize << log).filter(|size| whole <= size - HEADER);
        let least = sizes.clone().map(bytes).fold(f64::INFINITY, f64::min);
        let page_size = sizes.clone().find(|&size| bytes(size) <= 1.02 * least);
        self.build_in(MemStore::new(page_size.unwrap_or(MAX_PAGE_SIZE))?)
    }

    /// An empty index in a store that has no pages yet.
    ///
    /// # Errors
    /// As [`IvfPqBuilder::build`], [`Error::Parameter`] if the store's pages are too small for a block of 32 codes or for
    /// a code that stands in for a vector, and those of the store.
    pub fn build_in<S: PageStore>(self, store: S) -> Result<IvfPq<S>> {
        let space = self.space()?;
        let block = self.block(store.page_size())?;
        let page_size = store.page_size();
        let code_bits = self.row_code_bits(page_size)?;
        let number = |value: Option<usize>| (value.unwrap_or(0) as u32).into();
        let rows = Rows::create(store, Kind::IvfPq, space, |meta| {
            let array = |stride| ArrayMeta::part(stride, 0, stride, None);
            meta.arrays[BLOCKS] = array(block.stride());
            meta.arrays[LISTS] = array(LIST_BYTES);
            meta.arrays[CENTROIDS] = array(4 * self.dim);
            meta.arrays[BOOK] = array(page_size - HEADER);
            meta.m = (block.subs as u32).into();
            let planes = self.code.planes();
            meta.code_bits = planes.unwrap_or(block.bits);
            if !self.keeps_vectors {
                (meta.stored, meta.by_node) = (NO_VECTORS, code_bits);
            }
            let along = self.anisotropic && self.metric != Metric::L2sq && planes.is_none();
            meta.entries = u8::from(along) * ALONG + u8::from(self.spill) * SPILL;
            meta.entries += if planes.is_some() { RABITQ } else { FITTED };
            meta.entries += u8::from(self.opq) * TURNED;
            meta.ef_construction = number(self.lists);
            // Where a DiskANN index has its alpha.
            meta.alpha = number(self.sample);
            meta.train_at = (self.train_at as u32).into();
            meta.seed = self.seed.into();
        })?;
        IvfPq::from_rows(rows)
    }

    /// The block of codes, on pages of this size.
    fn block(&self, page_size: usize) -> Result<Block> {
        let (room, bits) = (page_size - HEADER, self.bits.unwrap_or(4));
        let addends = usize::from(self.metric == Metric::L2sq);
        if let Some(planes) = self.code.planes() {
            let block = rabitq_block(self.dim, planes);
            if block.stride() > room {
                let allowed =
                    format!("one whose block of 32 codes fits pages of {page_size} bytes");
                return Err(Error::parameter("code", self.code, allowed));
            }
            return Ok(block);
        }
        let Some(subs) = self.subvectors else {
            let wanted = if self.dim <= 128 { self.dim.div_ceil(2) } else { self.dim.div_ceil(4) };
            return Ok(Block::new(wanted.min(Block::most(room, bits, addends)), bits, addends));
        };
        let block = Block::new(subs, bits, addends);
        if block.stride() > room {
            let allowed = format!(
                "at most {} on pages of {page_size} bytes",
                Block::most(room, bits, addends)
            );
            return Err(Error::parameter("subvectors", subs, allowed));
        }
        Ok(block)
    }

    /// Bits a coordinate of the codes that are rows, on pages of this size; 0 if there are none.
    fn row_code_bits(&self, page_size: usize) -> Result<u8> {
        let room = page_size - HEADER;
        match (self.keeps_vectors, self.code_bits) {
            (true, None) => return Ok(0),
            (true, Some(bits)) => {
                let allowed =
                    "none given where vectors are kept: these are what candidates are reranked by";
                return Err(Error::parameter("code_bits", bits, allowed));
            }
            (false, Some(0)) => return Ok(0),
            (false, _) => {}
        }
        let bits = self.code_bits.unwrap_or_else(|| compact_bits(self.dim, room));
        if !matches!(bits, 1 | 2 | 4 | 8) {
            return Err(Error::parameter("code_bits", bits, "0, 1, 2, 4 or 8"));
        }
        let bytes = Coder::stride_of(self.dim, bits);
        if bytes > room {
            let allowed = format!("at least {}, for a code of {bytes} bytes", bytes + HEADER);
            return Err(Error::parameter("page size", page_size, allowed));
        }
        Ok(bits)
    }

    fn space(&self) -> Result<Space> {
        let stored = self.vectors.unwrap_or(self.dtype);
        let space = Space::narrowed(self.dim, self.dtype, stored, self.metric, self.isa)?;
        if let Some(bits) = self.bits.filter(|bits| !matches!(bits, 4 | 8)) {
            return Err(Error::parameter("bits", bits, "4 or 8"));
        }
        if self.opq && self.dim > opq::MAX_DIM {
            let allowed = format!("false beyond {} dimensions", opq::MAX_DIM);
            return Err(Error::parameter("opq", true, allowed));
        }
        if self.code != IvfCode::Pq {
            if self.opq {
                return Err(Error::parameter(
                    "opq",
                    true,
                    "false, unless codes are those of a product quantizer",
                ));
            }
            let allowed = "left out, unless codes are those of a product quantizer";
            let given = [("bits", self.bits.map(usize::from)), ("subvectors", self.subvectors)];
            for (name, value) in given {
                if let Some(value) = value {
                    return Err(Error::parameter(name, value, allowed));
                }
            }
        }
        if let Some(subs) = self.subvectors
            && !(1..=self.dim).contains(&subs)
        {
            let allowed = format!("from 1 to {}, the dimension", self.dim);
            return Err(Error::parameter("subvectors", subs, allowed));
        }
        if let Some(lists) = self.lists
            && !(1..=super::MAX_LISTS).contains(&lists)
        {
            let allowed = format!("from 1 to {}", super::MAX_LISTS);
            return Err(Error::parameter("lists", lists, allowed));
        }
        let rows = 1..=MAX_SLOTS as usize;
        for (name, value) in [("sample", self.sample), ("train_at", Some(self.train_at))] {
            if let Some(value) = value
                && !rows.contains(&value)
            {
                let allowed = format!("from 1 to {MAX_SLOTS}");
                return Err(Error::parameter(name, value, allowed));
            }
        }
        Ok(space)
    }
}
