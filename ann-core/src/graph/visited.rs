//! The visited set: one stamp a slot, so that forgetting everything costs nothing but one in 255 times.

/// Which slots the current search has met.
#[derive(Default)]
pub(crate) struct Visited {
    stamps: Vec<u8>,
    epoch: u8,
}

impl Visited {
    /// Forgets everything and makes room for ids below `slots`.
    pub(crate) fn reset(&mut self, slots: u32) {
        if self.stamps.len() != slots as usize {
            self.stamps.resize(slots as usize, 0);
        }
        self.epoch = match self.epoch.checked_add(1) {
            Some(epoch) => epoch,
            None => {
                self.stamps.fill(0);
                1
            }
        };
    }

    /// Makes room for ids below `slots`, and forgets nothing.
    pub(crate) fn grow(&mut self, slots: u32) {
        if self.stamps.len() < slots as usize {
            self.stamps.resize(slots as usize, 0);
        }
    }

    /// Marks an id; `Some(true)` if it is new, `None` if there can be no such slot.
    #[inline(always)]
    pub(crate) fn insert(&mut self, id: u32) -> Option<bool> {
        let stamp = self.stamps.get_mut(id as usize)?;
        let fresh = *stamp != self.epoch;
        *stamp = self.epoch;
        Some(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_over_many_epochs() {
        let mut visited = Visited::default();
        for round in 0..1000 {
            visited.reset(10);
            assert_eq!(visited.insert(round % 10), Some(true));
            assert_eq!(visited.insert(round % 10), Some(false));
            assert_eq!(visited.insert((round + 1) % 10), Some(true));
        }
        assert_eq!(visited.insert(1 << 20), None);
        assert_eq!((visited.insert(3), visited.insert(11)), (Some(true), None));
        visited.grow(12);
        assert_eq!((visited.insert(3), visited.insert(11)), (Some(false), Some(true)));
    }
}
