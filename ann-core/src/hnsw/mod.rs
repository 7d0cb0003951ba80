//! HNSW: a hierarchy of proximity graphs (Malkov and Yashunin, arXiv 1603.09320).
//!
//! Level 0 links every vector to at most `2 m` neighbours; each level above holds one in `m` of the nodes below it,
//! with at most `m` links each, and serves to find a starting point near the query in a few steps.

mod builder;

use crate::error::{Error, Result};
use crate::graph::{Graph, Shape, Shaped, Topology};
use crate::page::{MemStore, PageStore};
use crate::rows::{Kind, LINKS, Meta, UPPER};

pub use builder::HnswBuilder;

/// A hierarchical navigable small world graph.
///
/// ```
/// use ann_core::{AddOptions, Hnsw, Index, Metric, Search};
/// use ndarray::Array2;
///
/// let vectors = Array2::from_shape_fn((1000, 8), |(i, j)| ((i * 7 + j * 13) % 101) as f32);
/// let mut index = Hnsw::builder(8).metric(Metric::L2sq).m(16).build()?;
/// index.add(vectors.view(), None, AddOptions::new())?;
/// let query: Vec<f32> = vectors.row(42).to_vec();
/// let hits = index.search(&query, &Search::new(10).ef(64))?;
/// assert_eq!(hits[0].distance, 0.0);
/// # Ok::<(), ann_core::Error>(())
/// ```
pub type Hnsw<S = MemStore> = Graph<S, Hierarchy>;

/// HNSW's kind of graph.
pub enum Hierarchy {}

impl Topology for Hierarchy {}

impl Shaped for Hierarchy {
    const KIND: Kind = Kind::Hnsw;

    #[expect(private_interfaces, reason = "sealed: nobody outside can name the trait")]
    fn shape(meta: &Meta) -> Result<Shape> {
        let m = meta.m.get() as usize;
        let sizes = [(LINKS, 8 * m), (UPPER, 4 * m)];
        let right = |&(array, size): &(usize, usize)| meta.arrays[array].record() == size;
        if !(2..=256).contains(&m) || !sizes.iter().all(right) {
            return Err(Error::corrupt(0, format!("m = {m}")));
        }
        let pool = meta.ef_construction.get() as usize;
        if pool == 0 {
            return Err(Error::corrupt(0, "ef_construction = 0"));
        }
        if meta.code_bits != 0 && meta.by_node == 0 {
            return Err(Error::corrupt(0, "codes beside the links of an HNSW index"));
        }
        Ok(Shape { widths: [2 * m, m], pool, fused: None })
    }
}

impl Hnsw {
    /// A builder for vectors of `dim` elements, from 1 to 65,536.
    pub fn builder(dim: usize) -> HnswBuilder {
        HnswBuilder::new(dim)
    }
}

impl<S: PageStore> Hnsw<S> {
    /// Links that a node can have on each level but 0, which holds twice as many.
    pub fn m(&self) -> usize {
        self.rows.meta.m.get() as usize
    }

    /// Bits a coordinate of the codes by node; 0 if there are none.
    pub fn code_bits(&self) -> u8 {
        self.rows.meta.code_bits
    }

    /// Size of the candidate pool while building.
    pub fn ef_construction(&self) -> usize {
        self.rows.meta.ef_construction.get() as usize
    }
}
