//! The parameters of a DiskANN index, checked at the door.

use crate::element::DType;
use crate::error::{Error, Result};
use crate::graph::Fused;
use crate::kernel::Isa;
use crate::metric::Metric;
use crate::page::{HEADER, MAX_PAGE_SIZE, MemStore, PageStore};
use crate::rows::{
    Array, Coder, Kind, LINKS, MAX_ALPHA, Meta, Rows, Space, UPPER, VECTORS, by_node,
    check_compact, compact_bits,
};

use super::{DiskAnn, MAX_DEGREE, parts};

/// Where codes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Placement {
    /// By edge: a node's record holds a code of each of its neighbours, and mostly its vector. One read a hop; each
    /// vector has as many codes as there are links to it.
    Fused,
    /// By node: one code for each vector, in an array, and link lists beside it. One read for each neighbour that a
    /// search has not met, of a few bytes; the codes take a tenth of the memory or less at equal bits.
    Compact,
}

impl std::fmt::Display for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Placement::Fused => "fused",
            Placement::Compact => "compact",
        })
    }
}

impl std::str::FromStr for Placement {
    type Err = Error;

    fn from_str(name: &str) -> Result<Placement> {
        match name {
            "fused" => Ok(Placement::Fused),
            "compact" => Ok(Placement::Compact),
            _ => Err(Error::parameter("placement", name, "one of fused, compact")),
        }
    }
}

/// Makes a [`DiskAnn`] index.
#[derive(Clone, Debug)]
pub struct DiskAnnBuilder {
    dim: usize,
    metric: Metric,
    dtype: DType,
    vectors: Option<DType>,
    keeps_vectors: bool,
    placement: Option<Placement>,
    degree: usize,
    build_list_size: usize,
    alpha: f32,
    code_bits: Option<u8>,
    memory_limit: Option<u64>,
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
            keeps_vectors: true,
            placement: None,
            degree: 32,
            build_list_size: 128,
            alpha: 1.0,
            code_bits: None,
            memory_limit: None,
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

    /// What vectors are stored as: `dtype`, which it is unless it is set, or `f16` where that is `f32`. Halves take
    /// half the space, and distances, results' included, are those of the halves; a value beyond 65,504 is refused.
    ///
    /// Under cosine, where only directions count, `i8` is allowed for both kinds of floats: a byte a coordinate, each
    /// vector, queries too, scaled so that its largest coordinate by absolute value becomes 127, and rounded. Distances
    /// are those of the rounded vectors, off by some 4e-4 at 384 dimensions, and [`crate::Index::get`] gives a vector of
    /// length one. It is for embeddings of a hundred dimensions or more whose nearest need not be told apart finer than
    /// that: of the ten nearest, five to ten in a thousand are lost for good, whatever the list size. Vectors that round
    /// to the same bytes count as equal.
    ///
    /// `None` keeps only codes of them, by node. Links of later vectors are then chosen by these, and results carry
    /// estimates, squared distances near zero even below it, unless a search is given the caller's own distances
    /// ([`crate::Search::exact`]). Codes are relative to the mean of the vectors that are added first, if these are 32
    /// or more in one call.
    pub fn vectors(mut self, vectors: impl Into<Option<DType>>) -> DiskAnnBuilder {
        self.vectors = vectors.into();
        self.keeps_vectors = self.vectors.is_some();
        self
    }

    /// Where codes are. Unless it is set: fused where a node's links and their codes fit a page, else compact, as where
    /// vectors are not kept.
    pub fn placement(mut self, placement: Placement) -> DiskAnnBuilder {
        self.placement = Some(placement);
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

    /// Bits a coordinate of the codes: 1, 2, 4 or 8; 0 for none, at the price of reading each neighbour. More bits tell
    /// more of a neighbour and take more memory. Unless it is set, what suits the dimension and fits a page: of fused
    /// codes 4 up to 64 dimensions, 2 up to 160, else 1; of compact ones 4, or 8 up to 64 dimensions; none if no page
    /// would hold one. Codes of 8 bits are always compact: fused ones are looked up in tables of bytes, whose error is
    /// larger than theirs.
    pub fn code_bits(mut self, code_bits: u8) -> DiskAnnBuilder {
        self.code_bits = Some(code_bits);
        self
    }

    /// Bytes of memory that adding vectors keeps within, pages included and the caller's vectors not; none unless it is
    /// set. See [`Graph::set_memory_limit`](crate::Graph::set_memory_limit); [`Graph::needs`](crate::Graph::needs)
    /// tells beforehand what is needed.
    pub fn memory_limit(mut self, bytes: u64) -> DiskAnnBuilder {
        self.memory_limit = Some(bytes);
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
        let record = match self.layout(MAX_PAGE_SIZE)? {
            (Placement::Compact, _) if self.keeps_vectors => space.stride(),
            (Placement::Compact, bits) => Coder::stride_of(self.dim, bits),
            (Placement::Fused, bits) => (self.list(bits) + space.stride()).next_multiple_of(32),
        };
        let page_size = Array::page_size(record.min(MAX_PAGE_SIZE - HEADER));
        self.build_in(MemStore::new(page_size)?)
    }

    /// An empty index in a store that has no pages yet. Where codes are fused, a node's links, their codes and its
    /// vector lie on one page if that is large enough; else the vector lies on pages of its own.
    ///
    /// # Errors
    /// As [`DiskAnnBuilder::build`], [`Error::Parameter`] if the store's pages are too small for a node's links and
    /// their codes, or for a code, and those of the store.
    pub fn build_in<S: PageStore>(self, store: S) -> Result<DiskAnn<S>> {
        let space = self.space()?;
        let (placement, bits) = self.layout(store.page_size())?;
        let (list, room) = (self.list(bits), store.page_size() - HEADER);
        if placement == Placement::Compact {
            let rows = Rows::create(store, Kind::DiskAnn, space, |meta| {
                by_node(meta, bits, self.keeps_vectors);
                for array in [LINKS, UPPER] {
                    meta.arrays[array].stride = (4 * self.degree as u32).into();
                }
                self.measures(meta);
            })?;
            return self.limited(DiskAnn::from_rows(rows)?);
        }
        let whole = (list + space.stride()).next_multiple_of(32);
        let (links, codes) = (4 * self.degree, self.codes(bits));
        let rows = Rows::create(store, Kind::DiskAnn, space, |meta| {
            let joined = (whole <= room).then(|| (meta.arrays[VECTORS].record(), whole));
            for (array, part) in parts(links, codes, joined) {
                meta.arrays[array] = part;
            }
            self.measures(meta);
            meta.code_bits = bits;
        })?;
        self.limited(DiskAnn::from_rows(rows)?)
    }

    /// Gives the index its memory limit, if that is enough to begin with.
    fn limited<S: PageStore>(&self, mut index: DiskAnn<S>) -> Result<DiskAnn<S>> {
        index.set_memory_limit(self.memory_limit)?;
        Ok(index)
    }

    fn measures(&self, meta: &mut Meta) {
        meta.m = (self.degree as u32).into();
        meta.ef_construction = (self.build_list_size.max(self.degree) as u32).into();
        meta.seed = self.seed.into();
        meta.alpha = self.alpha.to_bits().into();
    }

    /// Where codes are and their bits a coordinate, on pages of this size.
    fn layout(&self, page_size: usize) -> Result<(Placement, u8)> {
        let room = page_size - HEADER;
        let fused_fits = |&bits: &u8| self.list(bits) <= room;
        let compact_fits = |&bits: &u8| Coder::stride_of(self.dim, bits) <= room;
        let is_free = self.placement.is_none() && self.code_bits.is_none() && self.keeps_vectors;
        if is_free && !fused_fits(&1) && !compact_fits(&1) {
            return Ok((Placement::Fused, 0));
        }
        let placement = self.placement.unwrap_or_else(|| match self.code_bits {
            _ if !self.keeps_vectors => Placement::Compact,
            Some(0) => Placement::Fused,
            Some(8) => Placement::Compact,
            bits if fused_fits(&bits.unwrap_or(1)) => Placement::Fused,
            _ => Placement::Compact,
        });
        let suits: &[u8] = match self.dim {
            ..=64 => &[4, 2, 1],
            65..=160 => &[2, 1],
            _ => &[1],
        };
        let (bits, bytes) = match placement {
            Placement::Fused => {
                let best = suits.iter().copied().find(fused_fits).unwrap_or(1);
                let bits = self.code_bits.unwrap_or(best);
                (bits, self.list(bits))
            }
            Placement::Compact => {
                let bits = self.code_bits.unwrap_or(compact_bits(self.dim, room));
                check_compact(bits)?;
                (bits, Coder::stride_of(self.dim, bits).max(4 * self.degree))
            }
        };
        if placement == Placement::Fused && !self.keeps_vectors {
            let allowed = "compact where vectors are not kept: estimates of fused codes start from \
                           the exact distance to a node's own vector";
            return Err(Error::parameter("placement", placement, allowed));
        }
        if placement == Placement::Fused && bits == 8 {
            let allowed = "0, 1, 2 or 4 for fused codes: what looks them up is off by more than the fifth bit; compact \
                           ones may have 8";
            return Err(Error::parameter("code_bits", bits, allowed));
        }
        if bytes > room {
            let what = match placement {
                Placement::Fused => "links and codes",
                Placement::Compact => "a code or a list",
            };
            let enough = (bytes + HEADER).next_power_of_two();
            let allowed = match enough <= MAX_PAGE_SIZE {
                true => format!("at least {enough}, for {what} of {bytes} bytes"),
                false => format!("none: {what} take {bytes} bytes; fewer bits take less"),
            };
            return Err(Error::parameter("page size", page_size, allowed));
        }
        Ok((placement, bits))
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
        Space::narrowed(self.dim, self.dtype, stored, self.metric, self.isa)
    }
}
