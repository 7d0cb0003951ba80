//! The best estimate of each node that a search has met: two bytes a slot.
//!
//! Nodes are met again and again, each time with an estimate from another neighbour. Only one that is better by more
//! than rounding makes a difference.

use crate::error::{Error, Result};

/// No estimate yet; all others come below it.
pub(crate) const UNMET: u16 = u16::MAX;
/// Nothing comes below it.
const EXPANDED: u16 = 0;

/// The best estimate of each slot, rounded down to its upper bits.
#[derive(Default)]
pub(crate) struct Best {
    estimates: Vec<u16>,
    met: Vec<u32>,
    again: usize,
}

impl Best {
    /// Forgets everything and makes room for ids below `slots`. Takes as long as what there is to forget.
    pub(crate) fn reset(&mut self, slots: u32) {
        for id in self.met.drain(..) {
            self.estimates[id as usize] = UNMET;
        }
        self.estimates.resize(slots as usize, UNMET);
        self.again = 0;
    }

    /// Takes note of an estimate, in its sorting form; the one it takes the place of, if it is better than that. An id
    /// that no slot can have is a corrupt link.
    #[inline(always)]
    pub(crate) fn improve(&mut self, id: u32, sorting: u32) -> Result<Option<u16>> {
        let rounded = ((sorting >> 16) as u16).clamp(EXPANDED + 1, UNMET - 1);
        let Some(best) = self.estimates.get_mut(id as usize) else {
            return Err(Error::corrupt(0, format!("a link names slot {id}, which does not exist")));
        };
        if rounded >= *best {
            self.again += usize::from(*best != EXPANDED);
            return Ok(None);
        }
        let old = std::mem::replace(best, rounded);
        match old {
            UNMET => self.met.push(id),
            _ => self.again += 1,
        }
        Ok(Some(old))
    }

    /// How often nodes that were met before, but not expanded, have been met again since this was asked last.
    #[inline(always)]
    pub(crate) fn met_again(&mut self) -> usize {
        std::mem::take(&mut self.again)
    }

    /// From now on no estimate of this node, which has been met, is any better. False if that is so already.
    #[inline(always)]
    pub(crate) fn expand(&mut self, id: u32) -> bool {
        match self.estimates.get_mut(id as usize) {
            Some(best) => std::mem::replace(best, EXPANDED) != EXPANDED,
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_better_counts() {
        let mut best = Best::default();
        best.reset(10);
        assert_eq!(best.improve(3, 7 << 16).unwrap(), Some(UNMET));
        assert_eq!(best.improve(3, 7 << 16).unwrap(), None);
        assert_eq!(best.improve(3, 8 << 16).unwrap(), None);
        assert_eq!(best.improve(3, 6 << 16).unwrap(), Some(7));
        assert_eq!((best.met_again(), best.met_again()), (3, 0));
        assert!(best.expand(3) && !best.expand(3));
        assert_eq!(best.improve(3, 0).unwrap(), None);
        assert_eq!(best.met_again(), 0);
        assert_eq!(best.improve(4, u32::MAX).unwrap(), Some(UNMET));
        assert!(best.improve(10, 0).is_err());
        best.reset(4);
        assert_eq!(best.improve(3, 9 << 16).unwrap(), Some(UNMET));
    }
}
