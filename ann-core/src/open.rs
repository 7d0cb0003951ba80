//! Opening an index of whatever kind, by what its meta page says.

use std::path::Path;

use crate::diskann::DiskAnn;
use crate::error::Result;
use crate::flat::Flat;
use crate::hnsw::Hnsw;
use crate::ivfpq::IvfPq;
use crate::page::{MmapStore, PageStore};
use crate::rows::{Kind, Rows};

/// An index of a kind that was not known before it was opened.
#[non_exhaustive]
pub enum AnyIndex<S: PageStore = MmapStore> {
    /// Exact search.
    Flat(Flat<S>),
    /// Hierarchical navigable small world graph.
    Hnsw(Hnsw<S>),
    /// Graph with the codes of neighbours beside its links.
    DiskAnn(DiskAnn<S>),
    /// Inverted lists of product-quantized codes.
    IvfPq(IvfPq<S>),
}

impl<S: PageStore> AnyIndex<S> {
    /// Opens the index in a store: one page is read.
    ///
    /// # Errors
    /// [`crate::Error::NotAnIndex`], [`crate::Error::Version`], [`crate::Error::Corrupt`].
    pub fn open_in(store: S) -> Result<AnyIndex<S>> {
        let rows = Rows::open(store, None)?;
        match rows.meta.kind() {
            Kind::Flat => Flat::from_rows(rows).map(AnyIndex::Flat),
            Kind::Hnsw => Hnsw::from_rows(rows).map(AnyIndex::Hnsw),
            Kind::DiskAnn => DiskAnn::from_rows(rows).map(AnyIndex::DiskAnn),
            Kind::IvfPq => IvfPq::from_rows(rows).map(AnyIndex::IvfPq),
        }
    }
}

/// Opens a saved index for searching. The file is mapped into memory, one page of it is read.
///
/// # Errors
/// [`crate::Error::Io`], [`crate::Error::NotAnIndex`], [`crate::Error::Version`], [`crate::Error::Corrupt`],
/// [`crate::Error::Locked`] while another process has it open for writing.
pub fn open(path: &Path) -> Result<AnyIndex> {
    AnyIndex::open_in(MmapStore::open(path)?)
}

/// Opens a saved index for searching and changing. Changes are durable once [`crate::Index::flush`] has returned.
///
/// # Errors
/// As [`open`]; [`crate::Error::Locked`] while anybody else has it open.
pub fn open_writable(path: &Path) -> Result<AnyIndex> {
    AnyIndex::open_in(MmapStore::open_writable(path)?)
}
