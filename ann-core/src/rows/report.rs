//! Reading a table back: vectors by key, statistics, and the invariants that every kind of index shares.

use half::f16;

use crate::element::{DType, Element};
use crate::error::{Error, Result};
use crate::page::PageStore;

use super::{
    Array, CENTRE, CODES, Kind, LINKS, NODES, NONE, Rows, State, UPPER, UPPER_CODES, VECTORS, WHOLE,
};

/// What an index is made of and how large it is.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Its kind.
    pub kind: Kind,
    /// Vectors that searches return.
    pub len: usize,
    /// Removed vectors whose slots have not been reclaimed yet.
    pub tombstones: usize,
    /// Slots, free ones included.
    pub slots: usize,
    /// Vectors identical to another one, which hang on its chain instead of in the graph.
    pub twins: usize,
    /// Links at the bottom level of the graph, and above it; 0 in a flat index.
    pub links: [usize; 2],
    /// Levels above the bottom one.
    pub levels: usize,
    /// What vectors are stored as; `None` if they are not.
    pub vectors: Option<DType>,
    /// Bits a coordinate of the codes beside links or by node; 0 if there are none. With lists, bits of a
    /// sub-quantizer's code.
    pub code_bits: u8,
    /// Bits a coordinate of the codes that stand in for vectors; 0 if vectors are kept, or nothing is but lists.
    pub row_code_bits: u8,
    /// What lies together.
    pub layout: Layout,
    /// Whether searches go by the codes, if there are any. Codes by node beside vectors come into use once there are
    /// 256 of these; until then each neighbour is read.
    pub codes_in_use: bool,
    /// Bytes a page.
    pub page_size: usize,
    /// Bytes of all pages in use.
    pub bytes: u64,
    /// Bytes of pages by part: vectors, nodes, links, upper links (or entry points), codes; with lists: vectors, nodes,
    /// lists and what they share (centroids, codebook), nothing, blocks of codes: what lists and their codes take is
    /// the third and the last. Where codes stand in for vectors, they are counted as these.
    pub bytes_by_part: [u64; 5],
    /// Bytes of the map from keys to slots; 0 until something needs it.
    pub key_map_bytes: usize,
    /// What was tuned, by the names of the options that it stands in for; of a graph also the `k` that it was tuned
    /// for. Nothing without tuning.
    pub tuned: Vec<(&'static str, f64)>,
    /// The instruction set that distances are computed with, by name.
    pub instruction_set: String,
}

/// What a search finds in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// A vector; links and their codes, if there are any of these, lie elsewhere.
    Apart,
    /// A node's vector, its links and codes of its neighbours.
    Fused,
    /// Links and codes; with the vector, they would not fit a page.
    FusedLists,
    /// A node's code, far smaller than its vector; links lie elsewhere, and vectors, if they are kept.
    Compact,
    /// Blocks of codes, list by list; vectors lie elsewhere.
    Lists,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Layout::Apart => "apart",
            Layout::Fused => "fused",
            Layout::FusedLists => "fused lists",
            Layout::Compact => "compact",
            Layout::Lists => "lists",
        })
    }
}

impl<S: PageStore> Rows<S> {
    /// The vector of a key, as it was given, or as near to it as what is stored: of length one if that is a direction.
    pub(crate) fn get<T: Element>(&self, key: u64) -> Result<Option<Vec<T>>> {
        if T::DTYPE != self.space.dtype {
            return Err(Error::ElementType { got: T::DTYPE, want: self.space.dtype });
        }
        if !self.has_vectors() {
            return Err(Error::NoVectors);
        }
        let Some(id) = self.id_of(key)? else {
            return Ok(None);
        };
        let mut row = Vec::new();
        self.row(id, &mut row)?;
        if self.space.stored == self.space.dtype {
            return Ok(Some(T::from_bytes(&row[..self.space.vector_bytes()])));
        }
        if self.space.is_scaled() {
            let mut floats = Vec::new();
            self.space.floats(&row, &mut floats);
            return Ok(Some(floats.into_iter().map(T::from_f32).collect()));
        }
        let halves = f16::from_bytes(&row[..self.space.vector_bytes()]);
        Ok(Some(halves.into_iter().map(|half| T::from_f32(half.to_f32())).collect()))
    }

    /// Sizes and counts; links are counted by graph indexes themselves.
    pub(crate) fn stats(&self) -> Result<Stats> {
        let page_size = self.store.page_size();
        let mut twins = 0;
        for id in 0..self.slots() {
            twins += usize::from(self.node(id)?.is(State::Twin));
        }
        // Of pages that parts share, each has what it takes of a record.
        let bytes = |number: usize| {
            let array = &self.meta.arrays[number];
            let pages = self.arrays[number].as_ref().map_or(0, Array::pages);
            let share = match array.host.get() {
                0 => 1.0,
                _ => array.record() as f64 / f64::from(array.stride.get()),
            };
            ((pages * page_size as u64) as f64 * share) as u64
        };
        Ok(Stats {
            kind: self.meta.kind(),
            len: self.len(),
            tombstones: self.meta.tombstones.get() as usize,
            slots: self.slots() as usize,
            twins,
            links: [0, 0],
            levels: 0,
            vectors: self.has_vectors().then_some(self.space.stored),
            code_bits: self.meta.code_bits,
            row_code_bits: self.row_code_bits(),
            layout: match self.meta.arrays[VECTORS].host(VECTORS) {
                _ if self.meta.kind() == Kind::IvfPq => Layout::Lists,
                WHOLE => Layout::Fused,
                _ if self.meta.by_node == 1 => Layout::Compact,
                _ if self.meta.code_bits > 0 => Layout::FusedLists,
                _ => Layout::Apart,
            },
            codes_in_use: match self.meta.by_node {
                1 if self.meta.kind() != Kind::IvfPq => self.goes_by_codes() || !self.has_vectors(),
                _ => self.meta.code_bits > 0,
            },
            page_size,
            bytes: u64::from(self.meta.pages.get()) * page_size as u64,
            bytes_by_part: match self.meta.kind() {
                Kind::IvfPq => {
                    let shared = bytes(CODES) + bytes(UPPER_CODES) + bytes(WHOLE) + bytes(CENTRE);
                    [bytes(VECTORS), bytes(NODES), shared, 0, bytes(UPPER)]
                }
                _ => [
                    bytes(VECTORS),
                    bytes(NODES),
                    bytes(LINKS),
                    bytes(UPPER),
                    bytes(CODES)
                        + bytes(UPPER_CODES)
                        + if self.meta.by_node == 1 { bytes(CENTRE) } else { 0 },
                ],
            },
            key_map_bytes: self.key_bytes(),
            tuned: self.tuned(),
            instruction_set: format!("{:?}", self.space.isa()).to_lowercase(),
        })
    }

    fn tuned(&self) -> Vec<(&'static str, f64)> {
        let names = match self.meta.kind() {
            Kind::IvfPq => ["probes", "rerank"],
            Kind::DiskAnn => ["k", "list_size"],
            _ => ["k", "ef"],
        };
        let values = [self.meta.probes.get(), self.meta.rerank.get()].map(f64::from);
        let sizes = names.into_iter().zip(values).filter(|&(_, value)| value > 0.0);
        sizes.chain(self.meta.epsilon().map(|epsilon| ("epsilon", epsilon.into()))).collect()
    }

    /// Checks states, counters, keys, chains and the free list.
    pub(crate) fn verify(&self) -> Result<()> {
        let (mut live, mut dead, mut free) = (0, 0, 0);
        let mut keys = hashbrown::HashSet::new();
        keys.try_reserve(self.len()).map_err(|_| Error::OutOfMemory {
            what: "verification",
            bytes: self.len() as u64 * 9,
        })?;
        let mut on_chain = 0;
        for id in 0..self.slots() {
            let node = self.node(id)?;
            match node.state() {
                Some(State::Live | State::Twin) => live += 1,
                Some(State::Tombstone | State::DeadTwin) => dead += 1,
                Some(State::Claimed) => {}
                _ => free += 1,
            }
            if node.is_visible() {
                let key = node.key.get();
                if key >= self.meta.next_key.get() {
                    return Err(self.corrupt_node(id, format!("key {key} was never given")));
                }
                if !keys.insert(key) {
                    return Err(self.corrupt_node(id, format!("key {key} is held twice")));
                }
            }
            if u64::from(node.upper.get()) + u64::from(node.level)
                > u64::from(self.meta.upper.get())
            {
                return Err(self.corrupt_node(id, "its upper links do not exist".into()));
            }
            // Lists have second entries there.
            let chains = self.meta.kind() != Kind::IvfPq;
            if chains && (node.is(State::Live) || node.is(State::Tombstone)) {
                on_chain += self.chain_length(id)?;
            }
        }
        let counted = [live, dead];
        let recorded = [self.meta.live.get(), self.meta.tombstones.get()];
        if counted != recorded {
            let what =
                format!("live and removed vectors are {counted:?}, the counters say {recorded:?}");
            return Err(Error::corrupt(0, what));
        }
        let twins = (0..self.slots()).try_fold(0u32, |sum, id| {
            let node = self.node(id)?;
            Ok::<u32, Error>(sum + u32::from(node.is(State::Twin) || node.is(State::DeadTwin)))
        })?;
        if twins != on_chain {
            return Err(Error::corrupt(0, format!("{twins} twins, {on_chain} of them on chains")));
        }
        let listed = self.free_ids(free as usize)?;
        let distinct: hashbrown::HashSet<u32> = listed.iter().copied().collect();
        if distinct.len() < listed.len() || listed.iter().any(|&id| id >= self.slots()) {
            let what = format!("{free} slots are free, fewer are on the free list");
            return Err(Error::corrupt(0, what));
        }
        self.verify_vectors()
    }

    /// Vectors in use are such as were let in, and what is stored behind them belongs to them.
    fn verify_vectors(&self) -> Result<()> {
        let mut row = Vec::new();
        for id in 0..self.slots() {
            let node = self.node(id)?;
            if node.is(State::Free) || node.is(State::Claimed) {
                continue;
            }
            if !self.has_vectors() {
                if self.has_rows() {
                    self.verify_code(VECTORS, id)?;
                }
                continue;
            }
            self.row(id, &mut row)?;
            if let Err(what) = self.space.verify(&row) {
                let place = self.array(VECTORS)?.locate(id);
                let page = place.map_or(0, |(page, _)| page.0);
                return Err(Error::corrupt(page, format!("the vector of slot {id}: {what}")));
            }
        }
        Ok(())
    }

    /// Twins on the chain of a graph node, dead ones included.
    fn chain_length(&self, id: u32) -> Result<u32> {
        let mut next = self.node(id)?.twin.get();
        let mut length = 0;
        while next != NONE {
            let twin = self.node(next)?;
            let is_twin = twin.is(State::Twin) || twin.is(State::DeadTwin);
            if !is_twin || twin.owner.get() != id || length > self.slots() {
                return Err(self.corrupt_node(next, format!("it is on the chain of slot {id}")));
            }
            length += 1;
            next = twin.twin.get();
        }
        Ok(length)
    }
}
