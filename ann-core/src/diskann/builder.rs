//! The parameters of a DiskANN index, checked at the door.

use crate::element::DType;
use crate::error::{Error, Result};
use crate::graph::Fused;
use crate::kernel::Isa;
use crate::metric::Metric;
use crate::page::{HEADER, MAX_PAGE_SIZE, MemStore, PageStore};
use crate::rows::{Array, Kind, MAX_ALPHA, Rows, Space, VECTORS};

use super::{DiskAnn, MAX_DEGREE, parts};

/// Makes a [`DiskAnn`] index.
#[derive(Clone, Debug)]
pub struct DiskAnnBuilder {
    dim: usize,
    metric: Metric,
    dtype: DType,
    vectors: Option<DType>,
    degree: usize,
    build_list_size: usize,
    alpha: f32,
    code_bits: Option<u8>,
    seed: u64,
    isa: Option<Isa>,
}

impl DiskAnnBuilder {
    pub(super) fn new(dim: usize) -> DiskAnnBuilder {
        DiskAnnBuilder {
            dim,
            metric: Metric::L2sq,
            dtype: DType::F32,
            vectors: None,
            degree: 32,
            build_list_size: 128,
            alpha: 1.0,
            code_bits: None,
            seed: 0,
            isa: None,
        }
    }

    /// The metric; squared L2 unless it is set.
    pub fn metric(mut self, metric: Metric) -> DiskAnnBuilder {
        self.metric = metric;
        self
    }

    /// The element type; `f32` unless it is set.
    pub fn dtype(mut self, dtype: DType) -> DiskAnnBuilder {
        self.dtype = dtype;
        self
    }

    /// What vectors are stored as: `dtype`, which it is unless it is set, or `f16` where that is `f32`. Halves take half
    /// the space, and distances, results' included, are those of the halves; a value beyond 65,504 is refused.
    pub fn vectors(mut self, vectors: DType) -> DiskAnnBuilder {
        self.vectors = Some(vectors);
        self
    }

    /// Links that a node can have: a multiple of 32, from 32 to 256. 32 unless it is set.
    pub fn degree(mut self, degree: usize) -> DiskAnnBuilder {
        self.degree = degree;
        self
    }

    /// Candidates among which a vector's links are chosen, from 1 to 100,000; at least `degree` is used. 128 unless
    /// it is set.
    pub fn build_list_size(mut self, build_list_size: usize) -> DiskAnnBuilder {
        self.build_list_size = build_list_size;
        self
    }

    /// How much nearer than a node one of its neighbours has to be to a vector to stand in for it, from 1 to 10: more
    /// leaves more far links and fewer near ones. 1 unless it is set, which was best on all data that were tried; lists
    /// are full in any case. Inner products know no "nearer by a factor": there it has to be 1.
    pub fn alpha(mut self, alpha: f32) -> DiskAnnBuilder {
        self.alpha = alpha;
        self
    }

    /// Bits a coordinate of the codes that stand beside links: 1, 2, 4 or 8; 0 for none, at the price of reading each
    /// neighbour. More bits tell more of a neighbour and take more memory. Unless it is set, what suits the dimension
    /// and fits a page: 4 up to 64 dimensions, 2 up to 160, else 1.
    pub fn code_bits(mut self, code_bits: u8) -> DiskAnnBuilder {
        self.code_bits = Some(code_bits);
        self
    }

    /// Seeds the order of insertion and the codes' rotation.
    pub fn seed(mut self, seed: u64) -> DiskAnnBuilder {
        self.seed = seed;
        self
    }

    /// Forces an instruction set, for results that are equal on all machines.
    pub fn instruction_set(mut self, isa: Isa) -> DiskAnnBuilder {
        self.isa = Some(isa);
        self
    }

    /// An empty index in memory, with a page size that suits its records.
    ///
    /// # Errors
    /// [`Error::Parameter`], naming the parameter that is out of range.
    pub fn build(self) -> Result<DiskAnn> {
        let space = self.space()?;
        let list = self.list(self.bits(MAX_PAGE_SIZE));
        let whole = (list + space.stride()).next_multiple_of(32);
        let page_size = Array::page_size(whole.min(MAX_PAGE_SIZE - HEADER));
        self.build_in(MemStore::new(page_size)?)
    }

    /// An empty index in a store that has no pages yet. A node's links, their codes and its vector lie on one page if
    /// that is large enough; else the vector lies on pages of its own.
    ///
    /// # Errors
    /// As [`DiskAnnBuilder::build`], [`Error::Parameter`] if the store's pages are too small for a node's links and
    /// their codes, and those of the store.
    pub fn build_in<S: PageStore>(self, store: S) -> Result<DiskAnn<S>> {
        let space = self.space()?;
        let bits = self.bits(store.page_size());
        let (list, room) = (self.list(bits), store.page_size() - HEADER);
        if list > room {
            let enough = (list + HEADER).next_power_of_two();
            let allowed = match enough <= MAX_PAGE_SIZE {
                true => format!("at least {enough}, for links and codes of {list} bytes"),
                false => format!("none: links and codes take {list} bytes; fewer bits take less"),
            };
            return Err(Error::parameter("page size", store.page_size(), allowed));
        }
        let whole = (list + space.stride()).next_multiple_of(32);
        let (links, codes) = (4 * self.degree, self.codes(bits));
        let rows = Rows::create(store, Kind::DiskAnn, space, |meta| {
            let joined = (whole <= room).then(|| (meta.arrays[VECTORS].record(), whole));
            for (array, part) in parts(links, codes, joined) {
                meta.arrays[array] = part;
            }
            meta.m = (self.degree as u32).into();
            meta.ef_construction = (self.build_list_size.max(self.degree) as u32).into();
            meta.seed = self.seed.into();
            meta.alpha = self.alpha.to_bits().into();
            meta.code_bits = bits;
        })?;
        DiskAnn::from_rows(rows)
    }

    /// Bits a coordinate, on pages of this size.
    fn bits(&self, page_size: usize) -> u8 {
        let fits = |&bits: &u8| self.list(bits) <= page_size - HEADER;
        let suits = match self.dim {
            ..=64 => [4, 2, 1],
            65..=160 => [2, 1, 1],
            _ => [1; 3],
        };
        self.code_bits.unwrap_or_else(|| suits.into_iter().find(fits).unwrap_or(0))
    }

    /// Bytes of a node's links and their codes.
    fn list(&self, bits: u8) -> usize {
        4 * self.degree + self.codes(bits)
    }

    /// Bytes of the codes beside a node's links.
    fn codes(&self, bits: u8) -> usize {
        match bits {
            0 => 0,
            bits => Fused::bytes_of(self.dim, self.degree, bits),
        }
    }

    fn space(&self) -> Result<Space> {
        if !self.degree.is_multiple_of(32) || !(32..=MAX_DEGREE).contains(&self.degree) {
            let allowed = format!("a multiple of 32 up to {MAX_DEGREE}");
            return Err(Error::parameter("degree", self.degree, allowed));
        }
        if !(1..=100_000).contains(&self.build_list_size) {
            let allowed = "from 1 to 100000";
            return Err(Error::parameter("build_list_size", self.build_list_size, allowed));
        }
        let most = if self.metric == Metric::InnerProduct { 1.0 } else { MAX_ALPHA };
        if !(1.0..=most).contains(&self.alpha) {
            let allowed = match self.metric {
                Metric::InnerProduct => "1 for inner products".into(),
                _ => format!("from 1 to {most}"),
            };
            return Err(Error::parameter("alpha", self.alpha, allowed));
        }
        if let Some(bits) = self.code_bits
            && !matches!(bits, 0 | 1 | 2 | 4 | 8)
        {
            return Err(Error::parameter("code_bits", bits, "0, 1, 2, 4 or 8"));
        }
        let stored = self.vectors.unwrap_or(self.dtype);
        if stored != self.dtype && (self.dtype, stored) != (DType::F32, DType::F16) {
            let allowed = match self.dtype {
                DType::F32 => "f32 or f16, for elements of type f32".into(),
                dtype => format!("{dtype}, for elements of that type"),
            };
            return Err(Error::parameter("vectors", stored, allowed));
        }
        Space::storing(self.dim, self.dtype, stored, self.metric, self.isa)
    }
}
