//! The candidate pool: the nearest candidates met so far, as two sorted arrays.
//!
//! Candidates that the caller will not return (filtered out, or removed) stay in the pool as way-points and do not
//! count towards its size: the pool ends at the `ef`-th candidate that is *admitted*. So one rule serves plain and
//! filtered search. A range search keeps in addition everything within its radius. A resumable search keeps what
//! falls off the end in an overflow, from which [`Pool::refill`] makes the next pool.

/// Set in a pool's id once the candidate has been expanded.
const EXPANDED: u32 = 1 << 31;
/// Set in a pool's id if the candidate is a way-point only.
const OUTSIDE: u32 = 1 << 30;
/// The bits of an id that are the id.
pub(crate) const ID: u32 = OUTSIDE - 1;

/// Candidates in ascending order of distance.
#[derive(Default)]
pub(crate) struct Pool {
    distances: Vec<f32>,
    ids: Vec<u32>,
    /// Everything before it has been expanded.
    next: usize,
    /// Admitted candidates in the pool.
    admitted: usize,
    ef: usize,
    radius: f32,
    bound: f32,
    resumable: bool,
    overflow: Vec<(f32, u32)>,
}

impl Pool {
    /// Empties the pool. `radius` is negative infinity but in range searches.
    pub(crate) fn reset(&mut self, ef: usize, radius: f32, resumable: bool) {
        self.clear();
        self.overflow.clear();
        self.ef = ef;
        self.radius = radius;
        self.resumable = resumable;
    }

    /// The number of admitted candidates that the pool keeps.
    pub(crate) fn size(&self) -> usize {
        self.ef
    }

    fn clear(&mut self) {
        self.distances.clear();
        self.ids.clear();
        self.next = 0;
        self.admitted = 0;
        self.bound = f32::INFINITY;
    }

    /// Candidates at this distance or farther are of no use any more.
    #[inline(always)]
    pub(crate) fn bound(&self) -> f32 {
        self.bound
    }

    /// Distances have to be right below it: a search that may be resumed returns to those beyond the bound.
    #[inline(always)]
    pub(crate) fn exact_below(&self) -> f32 {
        if self.resumable { f32::INFINITY } else { self.bound }
    }

    /// Keeps a candidate that did not come below the bound, if the search may be resumed.
    #[inline(always)]
    pub(crate) fn refuse(&mut self, distance: f32, id: u32) {
        if self.resumable {
            self.overflow.push((distance, id));
        }
    }

    /// Adds a candidate below the bound, and drops what the pool no longer has room for.
    #[inline]
    pub(crate) fn insert(&mut self, distance: f32, id: u32, admitted: bool) {
        let id = if admitted { id } else { id | OUTSIDE };
        self.place(distance, id);
        self.trim();
    }

    fn place(&mut self, distance: f32, id: u32) {
        let at = self.distances.partition_point(|&known| known <= distance);
        self.distances.insert(at, distance);
        self.ids.insert(at, id);
        self.admitted += usize::from(id & OUTSIDE == 0);
        if id & EXPANDED == 0 {
            self.next = self.next.min(at);
        }
    }

    fn trim(&mut self) {
        while self.admitted >= self.ef {
            let last = self.ids.len() - 1;
            let (distance, id) = (self.distances[last], self.ids[last]);
            let surplus = id & OUTSIDE != 0 || self.admitted > self.ef;
            if !surplus || distance <= self.radius {
                self.bound = distance.max(self.radius.next_up());
                return;
            }
            self.distances.pop();
            self.ids.pop();
            self.admitted -= usize::from(id & OUTSIDE == 0);
            self.next = self.next.min(self.ids.len());
            self.refuse(distance, id);
        }
    }

    /// The nearest candidate that has not been expanded, which from now on has.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<u32> {
        let at = self.next;
        let id = *self.ids.get(at)?;
        self.ids[at] |= EXPANDED;
        self.next = at + 1;
        self.skip();
        Some(id & ID)
    }

    #[inline]
    fn skip(&mut self) {
        while self.ids.get(self.next).is_some_and(|id| id & EXPANDED != 0) {
            self.next += 1;
        }
    }

    /// The candidate that the next [`Pool::pop`] would return, as things stand.
    #[inline]
    pub(crate) fn peek(&self) -> Option<u32> {
        self.ids.get(self.next).map(|id| id & ID)
    }

    /// The admitted candidates, nearest first.
    pub(crate) fn admitted(&self) -> impl Iterator<Item = (f32, u32)> {
        let pairs = self.distances.iter().zip(&self.ids);
        pairs.filter(|&(_, id)| id & OUTSIDE == 0).map(|(&distance, &id)| (distance, id & ID))
    }

    /// All candidates, way-points included, nearest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = (f32, u32)> {
        self.distances.iter().zip(&self.ids).map(|(&distance, &id)| (distance, id & ID))
    }

    /// Starts the next pool of a resumable search from what this one left out. False if there is nothing left.
    /// What was in the pool has been returned, or was never to be.
    pub(crate) fn refill(&mut self) -> bool {
        self.clear();
        let mut rest = std::mem::take(&mut self.overflow);
        rest.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut taken = 0;
        while taken < rest.len() && self.admitted < self.ef {
            let (distance, id) = rest[taken];
            self.place(distance, id);
            taken += 1;
        }
        self.overflow = rest.split_off(taken);
        self.skip();
        self.trim();
        !self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(pool: &Pool) -> Vec<u32> {
        pool.admitted().map(|(_, id)| id).collect()
    }

    #[test]
    fn keeps_the_nearest_and_pops_in_order() {
        let mut pool = Pool::default();
        pool.reset(3, f32::NEG_INFINITY, false);
        for (distance, id) in [(5.0, 5), (1.0, 1), (4.0, 4), (2.0, 2)] {
            pool.insert(distance, id, true);
        }
        assert_eq!(admitted(&pool), [1, 2, 4]);
        assert_eq!(pool.bound(), 4.0);
        assert_eq!(pool.pop(), Some(1));
        pool.insert(0.5, 9, true);
        assert_eq!((pool.pop(), pool.pop(), pool.pop()), (Some(9), Some(2), None));
    }

    #[test]
    fn way_points_do_not_count() {
        let mut pool = Pool::default();
        pool.reset(2, f32::NEG_INFINITY, false);
        for id in 1..=6 {
            pool.insert(id as f32, id, id % 3 == 0);
        }
        assert_eq!(pool.bound(), 6.0);
        pool.insert(0.5, 9, true);
        assert_eq!(admitted(&pool), [9, 3]);
        assert_eq!(pool.bound(), 3.0);
        assert_eq!(pool.all().count(), 4);
    }

    #[test]
    fn a_range_keeps_all_within_the_radius() {
        let mut pool = Pool::default();
        pool.reset(2, 4.0, false);
        for id in 1..=9 {
            if (id as f32) < pool.bound() {
                pool.insert(id as f32, id, true);
            }
        }
        assert_eq!(admitted(&pool), [1, 2, 3, 4]);
        assert!(pool.bound() > 4.0);
    }

    #[test]
    fn refill_continues_where_the_pool_ended() {
        let mut pool = Pool::default();
        pool.reset(2, f32::NEG_INFINITY, true);
        for id in [7, 3, 5, 1, 6] {
            if (id as f32) < pool.bound() {
                pool.insert(id as f32, id, true);
            } else {
                pool.refuse(id as f32, id);
            }
        }
        let mut seen = admitted(&pool);
        while pool.refill() {
            seen.extend(admitted(&pool));
        }
        assert_eq!(seen, [1, 3, 5, 6, 7]);
    }
}
