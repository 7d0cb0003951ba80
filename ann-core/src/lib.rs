//! Approximate nearest neighbour indexes on pages.
//!
//! ```
//! use ann_core::{AddOptions, Hnsw, Index, Metric, Search};
//! use ndarray::Array2;
//!
//! let vectors = Array2::from_shape_fn((1000, 16), |(i, j)| ((i * 31 + j * 17) % 97) as f32);
//! let mut index = Hnsw::builder(16).metric(Metric::Cosine).build()?;
//! let keys = index.add(vectors.view(), None, AddOptions::new())?;
//!
//! let query = vectors.row(7).to_vec();
//! let hits = index.search(&query, &Search::new(10).ef(100))?;
//! assert!(hits[0].distance < 1e-6);
//!
//! index.remove(&keys[..10])?;
//! assert_eq!(index.len(), 990);
//! # Ok::<(), ann_core::Error>(())
//! ```
//!
//! An index lives in a [`PageStore`]: in memory ([`MemStore`]), in a file ([`MmapStore`]), or in a store of your
//! own. [`Index`] is what all indexes can do; [`Hnsw`], [`DiskAnn`], [`IvfPq`] and [`Flat`] are the
//! indexes.

#[doc(hidden)]
pub mod code;
mod diskann;
mod element;
mod error;
mod flat;
mod graph;
mod hnsw;
mod index;
mod ivfpq;
#[doc(hidden)]
pub mod kernel;
mod metric;
mod open;
mod page;
mod rerank;
mod rows;
mod seed;
mod shared;
mod threads;
mod tune;

pub use diskann::{DiskAnn, DiskAnnBuilder, Placement, Vamana};
pub use element::{DType, Element, MAX_DIM};
pub use error::{Error, Result};
pub use flat::{Flat, FlatBuilder};
#[doc(hidden)]
pub use graph::plain;
pub use graph::{Graph, Insertion, Sweep, Topology, TunedEf};
pub use hnsw::{Hierarchy, Hnsw, HnswBuilder};
pub use index::{
    AddOptions, Cost, Cursor, DEFAULT_EF, Exact, Filter, Hit, Index, Layout, MAX_BEAM, MAX_EF,
    Needs, Search, Stats,
};
pub use ivfpq::{IvfCode, IvfPq, IvfPqBuilder, IvfPqSteps, IvfPqSweep, Tuned};
pub use kernel::{Isa, prefetch_at};
pub use metric::Metric;
pub use open::{AnyIndex, open, open_writable};
pub use page::{
    HEADER, MAX_PAGE_SIZE, MAX_WRITE, MIN_PAGE_SIZE, MemStore, MmapStore, PageId, PageStore, Pages,
    Patches,
};
#[doc(hidden)]
pub use page::{conformance, testing};
pub use rows::Kind;
pub use shared::SharedIndex;

/// The quick start of the project's README, run as written.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
