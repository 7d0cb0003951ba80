//! The map from the caller's keys to ids, built on its first use.

use hashbrown::HashMap;

use crate::error::{Error, Result};
use crate::page::PageStore;

use super::Rows;

/// Keys of all visible vectors.
pub(crate) struct Keys {
    map: HashMap<u64, u32>,
}

impl Keys {
    /// Reads all node records: O(n), about 17 bytes a key.
    pub(crate) fn build<S: PageStore>(rows: &Rows<S>) -> Result<Keys> {
        let mut keys = Keys { map: HashMap::new() };
        keys.reserve(rows.meta.live.get() as usize)?;
        for id in 0..rows.meta.slots.get() {
            let node = rows.node(id)?;
            if node.is_visible() && keys.map.insert(node.key.get(), id).is_some() {
                let what = format!("key {} is held by two vectors", node.key.get());
                return Err(rows.corrupt_node(id, what));
            }
        }
        Ok(keys)
    }

    pub(crate) fn reserve(&mut self, more: usize) -> Result<()> {
        self.map.try_reserve(more).map_err(|_| Error::OutOfMemory {
            what: "the key map",
            bytes: (self.map.len() + more) as u64 * 17,
        })
    }

    pub(crate) fn get(&self, key: u64) -> Option<u32> {
        self.map.get(&key).copied()
    }

    pub(crate) fn insert(&mut self, key: u64, id: u32) {
        self.map.insert(key, id);
    }

    pub(crate) fn remove(&mut self, key: u64) {
        self.map.remove(&key);
    }

    /// Bytes of memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.map.allocation_size()
    }
}
