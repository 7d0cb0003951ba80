//! What graph indexes share: link lists, candidate pool, search loop, pruning, insertion in batches, repair.

pub(crate) mod bulk;
pub(crate) mod leaves;
pub(crate) mod links;
pub(crate) mod pool;
pub(crate) mod prune;
pub(crate) mod search;
pub(crate) mod tree;
pub(crate) mod visited;
