//! DiskANN: one graph without levels (Vamana), whose link lists carry their neighbours' codes.
//!
//! A node's record holds its vector, its links, and beside each link a code of the neighbour (RaBitQ, relative to
//! the node itself). One read of a record scores all neighbours, 32 at a time, and gives the node's exact distance:
//! neighbours are not read before their turn comes (SymphonyQG, arXiv 2411.12229; DiskANN, NeurIPS 2019).
//!
//! Or codes are by node, in an array of their own (see `graph/compact.rs`): the index is smaller, and need not keep the
//! vectors.

mod builder;

use crate::error::{Error, Result};
use crate::graph::{Fused, Graph, Shape, Shaped, Topology};
use crate::page::{MemStore, PageStore};
use crate::rows::{
    ArrayMeta, CODES, Kind, LINKS, Meta, UPPER, UPPER_CODES, UPPER_WHOLE, VECTORS, WHOLE,
};

pub use builder::{DiskAnnBuilder, Placement};

/// A graph whose records carry the codes of their neighbours.
///
/// ```
/// use ann_core::{AddOptions, DiskAnn, Index, Metric, Search};
/// use ndarray::Array2;
///
/// let vectors = Array2::from_shape_fn((1000, 8), |(i, j)| ((i * 7 + j * 13) % 101) as f32);
/// let mut index = DiskAnn::builder(8).metric(Metric::L2sq).build()?;
/// index.add(vectors.view(), None, AddOptions::new())?;
/// let query: Vec<f32> = vectors.row(42).to_vec();
/// let hits = index.search(&query, &Search::new(10).ef(64))?;
/// assert_eq!(hits[0].distance, 0.0);
/// # Ok::<(), ann_core::Error>(())
/// ```
pub type DiskAnn<S = MemStore> = Graph<S, Vamana>;

/// DiskANN's kind of graph.
pub enum Vamana {}

impl Topology for Vamana {}

impl Shaped for Vamana {
    const KIND: Kind = Kind::DiskAnn;

    #[expect(private_interfaces, reason = "sealed: nobody outside can name the trait")]
    fn shape(meta: &Meta) -> Result<Shape> {
        let degree = meta.m.get() as usize;
        if !degree.is_multiple_of(32) || !(32..=MAX_DEGREE).contains(&degree) {
            return Err(Error::corrupt(0, format!("degree = {degree}")));
        }
        let pool = meta.ef_construction.get() as usize;
        if pool == 0 {
            return Err(Error::corrupt(0, "build_list_size = 0"));
        }
        if meta.by_node == 1 {
            let lists = [LINKS, UPPER].iter().all(|&array| {
                let list = &meta.arrays[array];
                list.record() == 4 * degree && list.host(array) == array
            });
            return match lists {
                true => Ok(Shape { widths: [degree, 0], pool, fused: None }),
                false => Err(Error::corrupt(0, "link lists are not of their degree")),
            };
        }
        let fused = match meta.code_bits {
            0 => None,
            bits @ (1 | 2 | 4 | 8) => Some(Fused::new(meta, degree, bits)),
            bits => return Err(Error::corrupt(0, format!("codes of {bits} bits"))),
        };
        let codes = fused.as_ref().map_or(0, Fused::bytes);
        let vector = &meta.arrays[VECTORS];
        let joined = (vector.host(VECTORS) == WHOLE)
            .then(|| (vector.record(), meta.arrays[WHOLE].stride.get() as usize));
        for (array, part) in parts(4 * degree, codes, joined) {
            if meta.arrays[array] != part {
                let what = format!("array {array} is not where its records belong");
                return Err(Error::corrupt(0, what));
            }
        }
        Ok(Shape { widths: [degree, 0], pool, fused })
    }
}

/// The arrays of lists: of `links` bytes with `codes` bytes behind them. If vectors are `joined` to their lists, one of
/// so many bytes follows, and records begin so many bytes apart.
fn parts(
    links: usize,
    codes: usize,
    joined: Option<(usize, usize)>,
) -> impl Iterator<Item = (usize, ArrayMeta)> {
    let list = links + codes;
    let stride = joined.map_or(list, |(_, stride)| stride);
    let beside = |stride, host| match codes {
        0 => ArrayMeta::default(),
        _ => ArrayMeta::part(stride, links, codes, Some(host)),
    };
    let vector =
        joined.map(|(size, _)| (VECTORS, ArrayMeta::part(stride, list, size, Some(WHOLE))));
    let lists = [
        (WHOLE, ArrayMeta::part(stride, 0, stride, None)),
        (LINKS, ArrayMeta::part(stride, 0, links, Some(WHOLE))),
        (CODES, beside(stride, WHOLE)),
        (UPPER_WHOLE, ArrayMeta::part(list, 0, list, None)),
        (UPPER, ArrayMeta::part(list, 0, links, Some(UPPER_WHOLE))),
        (UPPER_CODES, beside(list, UPPER_WHOLE)),
    ];
    lists.into_iter().chain(vector)
}

/// Links that a node can have, at most.
const MAX_DEGREE: usize = 256;

impl DiskAnn {
    /// A builder for vectors of `dim` elements, from 1 to 65,536.
    pub fn builder(dim: usize) -> DiskAnnBuilder {
        DiskAnnBuilder::new(dim)
    }
}

impl<S: PageStore> DiskAnn<S> {
    /// Links that a node can have.
    pub fn degree(&self) -> usize {
        self.rows.meta.m.get() as usize
    }

    /// Size of the candidate pool while building.
    pub fn build_list_size(&self) -> usize {
        self.rows.meta.ef_construction.get() as usize
    }

    /// How much nearer than a node the neighbour has to be that stands in for it.
    pub fn alpha(&self) -> f32 {
        self.rows.meta.alpha()
    }

    /// Bits a coordinate of the codes; 0 if there are none.
    pub fn code_bits(&self) -> u8 {
        self.rows.meta.code_bits
    }

    /// Where codes are; without codes, where vectors are.
    pub fn placement(&self) -> Placement {
        match self.rows.meta.by_node {
            1 => Placement::Compact,
            _ => Placement::Fused,
        }
    }
}
