//! Codes: vectors in a few bits a coordinate, and estimates from them. Nothing here knows about pages or graphs.

pub mod kmeans;
pub mod opq;
pub mod pq;
pub mod rabitq;
pub mod rotation;

pub use rotation::Rotation;
