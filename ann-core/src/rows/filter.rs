//! Filters, resolved once per call: which slots match, and whether there are so few that scoring them all is best.

use crate::error::Result;
use crate::page::PageStore;

use super::{Rows, State};

/// Which vectors a search may return. The search chooses its plan by how many there are.
#[derive(Clone, Copy, Default)]
#[non_exhaustive]
pub enum Filter<'a> {
    /// All of them.
    #[default]
    None,
    /// Those with one of these keys. Unknown and repeated keys are ignored.
    Keys(&'a [u64]),
    /// Those whose key the function accepts. It may be called any number of times for a key.
    Predicate(&'a (dyn Fn(u64) -> bool + Sync)),
}

/// A filter in terms of slots.
pub(crate) enum Matcher<'a> {
    All,
    /// One bit a slot.
    Slots(Vec<u64>),
    Keys(&'a (dyn Fn(u64) -> bool + Sync)),
}

impl Matcher<'_> {
    #[inline]
    pub(crate) fn accepts(&self, id: u32, key: u64) -> bool {
        match self {
            Matcher::All => true,
            Matcher::Slots(bits) => {
                bits.get(id as usize / 64).is_some_and(|w| w >> (id % 64) & 1 == 1)
            }
            Matcher::Keys(accept) => accept(key),
        }
    }

    pub(crate) fn is_all(&self) -> bool {
        matches!(self, Matcher::All)
    }
}

/// How to search under a filter.
pub(crate) struct Plan<'a> {
    pub matcher: Matcher<'a>,
    /// The matching slots, if scoring each of them is cheaper than searching the graph.
    pub exact: Option<Vec<u32>>,
}

/// Slots whose keys are tried to estimate how many a predicate accepts.
const SAMPLE: u32 = 512;

impl<S: PageStore> Rows<S> {
    /// Resolves a filter for searches with a pool of `ef`; `usize::MAX` always asks for the matching slots.
    pub(crate) fn plan<'a>(&self, filter: Filter<'a>, ef: usize) -> Result<Plan<'a>> {
        match filter {
            Filter::None => Ok(Plan { matcher: Matcher::All, exact: None }),
            Filter::Keys(keys) => {
                let mut bits = vec![0u64; self.slots().div_ceil(64) as usize];
                let mut ids = Vec::new();
                for &key in keys {
                    let Some(id) = self.id_of(key)? else { continue };
                    let (word, bit) = (id as usize / 64, 1 << (id % 64));
                    if bits[word] & bit == 0 {
                        bits[word] |= bit;
                        ids.push(id);
                    }
                }
                let exact = self.scan_pays(ids.len() as f64, ef);
                ids.sort_unstable();
                Ok(Plan { matcher: Matcher::Slots(bits), exact: exact.then_some(ids) })
            }
            Filter::Predicate(accept) => {
                let exact = self.scan_pays(self.estimate(accept)?, ef);
                let ids = match exact {
                    true => Some(self.visible(accept)?),
                    false => None,
                };
                Ok(Plan { matcher: Matcher::Keys(accept), exact: ids })
            }
        }
    }

    /// A graph search under a filter that accepts a share `s` visits about `16 ef / s` vectors, a scan of the
    /// matches `s n`; below the crossing, the scan is cheaper, and exact.
    fn scan_pays(&self, matches: f64, ef: usize) -> bool {
        let live = self.len().max(1) as f64;
        matches <= ef as f64 || matches * matches / live <= 16.0 * ef as f64
    }

    /// About how many vectors a predicate accepts.
    fn estimate(&self, accept: &(dyn Fn(u64) -> bool + Sync)) -> Result<f64> {
        let step = (self.slots() / SAMPLE).max(1);
        let (mut tried, mut accepted) = (0, 0);
        for id in (0..self.slots()).step_by(step as usize) {
            let node = self.node(id)?;
            if node.is_visible() {
                tried += 1;
                accepted += u32::from(accept(node.key.get()));
            }
        }
        Ok(self.len() as f64 * f64::from(accepted) / f64::from(tried.max(1)))
    }

    /// All slots whose vector may be returned and whose key passes.
    pub(crate) fn visible(&self, accept: impl Fn(u64) -> bool) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for id in 0..self.slots() {
            let node = self.node(id)?;
            if node.is_visible() && accept(node.key.get()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Whether a search may return something for a graph node: the node itself or a twin of it. A removed node
    /// may have twins that are not.
    pub(crate) fn admits(&self, id: u32, matcher: &Matcher<'_>) -> Result<bool> {
        let mut found = false;
        self.each_visible(id, |id, key| {
            found = matcher.accepts(id, key);
            !found
        })?;
        Ok(found)
    }

    /// Calls `visit` with the slots and keys of a graph node and its twins, as long as it returns true.
    pub(crate) fn each_visible(
        &self,
        id: u32,
        mut visit: impl FnMut(u32, u64) -> bool,
    ) -> Result<()> {
        let node = self.node(id)?;
        if node.is(State::Live) && !visit(id, node.key.get()) {
            return Ok(());
        }
        let mut next = node.twin.get();
        let mut steps = 0;
        while next != super::NONE {
            let twin = self.node(next)?;
            steps += 1;
            if twin.owner.get() != id || steps > self.slots() {
                return Err(self.corrupt_node(next, format!("it is on the chain of slot {id}")));
            }
            if twin.is(State::Twin) && !visit(next, twin.key.get()) {
                return Ok(());
            }
            next = twin.twin.get();
        }
        Ok(())
    }
}
