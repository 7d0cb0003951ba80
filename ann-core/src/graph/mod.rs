//! Graph indexes: link lists, candidate pool, search loop, pruning, insertion in batches, repair; and the index that
//! is made of them.

mod apply;
pub(crate) mod best;
pub(crate) mod bulk;
mod bytes;
mod compact;
mod entries;
pub(crate) mod fused;
mod index;
mod insert;
pub(crate) mod leaves;
pub(crate) mod links;
mod load;
mod needs;
#[doc(hidden)]
pub mod plain;
mod plan;
pub(crate) mod pool;
pub(crate) mod prune;
mod query;
mod repair;
pub(crate) mod search;
mod shared;
mod survey;
mod together;
pub(crate) mod tree;
mod tune;
mod verify;
pub(crate) mod visited;
pub(crate) mod walk;

pub(crate) use fused::Fused;
pub use index::{Graph, Topology};
pub(crate) use index::{Shape, Shaped};
pub use insert::Insertion;
pub use repair::Sweep;
pub use tune::TunedEf;
