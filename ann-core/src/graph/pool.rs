//! The candidate pool: the nearest candidates met so far, as two sorted arrays.
//!
//! New candidates go into a short array, which is merged into the long one when it is full: so an insertion costs
//! little however large the pool is. The nearest and the farthest of all are at the ends of the two.
//!
//! Candidates that the caller will not return (filtered out, or removed) stay in the pool as way-points and do not
//! count towards its size: the pool ends at the `ef`-th candidate that is *admitted*. So one rule serves plain and
//! filtered search. A range search keeps in addition everything within its radius. A resumable search keeps what
//! falls off the end in an overflow, from which [`Pool::refill`] makes the next pool.
//!
//! A candidate is one integer, its distance in the upper half in an encoding that sorts as floats do, its id and flags
//! in the lower: one comparison tells the order.

use crate::kernel::sorted::Sorted;

/// Set in a candidate's id once it has been expanded.
const EXPANDED: u64 = 1 << 31;
/// Set in a candidate's id if it is a way-point only.
const OUTSIDE: u64 = 1 << 30;
/// Repeats that take a place of the pool.
const REPEATS: usize = 4;
/// The bits of an id that are the id.
pub(crate) const ID: u32 = (1 << 30) - 1;

/// A distance's bits, so that they sort as distances do.
#[inline(always)]
pub(crate) fn sorting(distance: f32) -> u32 {
    let bits = distance.to_bits();
    bits ^ ((bits as i32 >> 31) as u32 | 1 << 31)
}

#[inline(always)]
fn candidate(distance: f32, id: u32) -> u64 {
    u64::from(sorting(distance)) << 32 | u64::from(id)
}

fn distance(candidate: u64) -> f32 {
    let sorting = (candidate >> 32) as u32;
    f32::from_bits(if sorting >> 31 == 1 { sorting ^ 1 << 31 } else { !sorting })
}

fn id(candidate: u64) -> u32 {
    candidate as u32 & ID
}

/// Candidates that are merged into the others at once, at most.
const FRESH: usize = 32;

/// Candidates in ascending order of distance.
#[derive(Default)]
struct Run {
    candidates: Vec<u64>,
    /// Everything before it has been expanded.
    next: usize,
}

impl Run {
    fn clear(&mut self) {
        self.candidates.clear();
        self.next = 0;
    }

    /// The nearest candidate that has not been expanded; what is farther than all if there is none.
    #[inline(always)]
    fn peek(&self) -> u64 {
        self.candidates.get(self.next).copied().unwrap_or(u64::MAX)
    }

    #[inline]
    fn skip(&mut self) {
        while self.candidates.get(self.next).is_some_and(|candidate| candidate & EXPANDED != 0) {
            self.next += 1;
        }
    }

    fn pop_last(&mut self) -> Option<u64> {
        let last = self.candidates.pop();
        self.next = self.next.min(self.candidates.len());
        last
    }

    /// Makes what stands at `from` the nearer `candidate`.
    fn move_up(&mut self, sorted: Sorted, from: usize, candidate: u64) {
        let at = sorted.insert(&mut self.candidates[..=from], candidate);
        self.next = self.next.min(at);
    }

    /// Where a candidate with this id is, whose distance's sorting form begins with `prefix`.
    fn find(&self, prefix: u16, id: u32) -> Option<usize> {
        let prefix_of = |candidate: u64| (candidate >> 48) as u16;
        let from = self.candidates.partition_point(|&known| prefix_of(known) < prefix);
        let alike = self.candidates[from..].iter().take_while(|&&known| prefix_of(known) == prefix);
        alike.enumerate().find(|&(_, &known)| self::id(known) == id).map(|(at, _)| from + at)
    }

    /// Takes in all of another run, behind what is as near, and empties it: from the end on, moves what is farther than
    /// each to where it belongs.
    fn merge(&mut self, other: &mut Run) {
        let head = self.peek().min(other.peek()) >> 32;
        let mut end = self.candidates.len();
        self.candidates.resize(end + other.candidates.len(), 0);
        for (before, &candidate) in other.candidates.iter().enumerate().rev() {
            let known = &self.candidates[..end];
            let at = known.partition_point(|known| known >> 32 <= candidate >> 32);
            self.candidates.copy_within(at..end, at + before + 1);
            self.candidates[at + before] = candidate;
            end = at;
        }
        other.clear();
        self.next = self.candidates.partition_point(|&candidate| candidate >> 32 < head);
        self.skip();
    }
}

/// The nearest candidates.
#[derive(Default)]
pub(crate) struct Pool {
    run: Run,
    /// Those that came last, at most [`FRESH`].
    fresh: Run,
    /// Admitted candidates in the pool.
    admitted: usize,
    ef: usize,
    /// What repeats may take of `ef`: down to so many, and how many there were that have taken nothing yet.
    least: usize,
    repeats: usize,
    radius: f32,
    /// What comes within the radius is below it.
    least_bound: f32,
    bound: f32,
    resumable: bool,
    overflow: Vec<u64>,
    sorted: Sorted,
}

impl Pool {
    /// Empties the pool. `radius` is negative infinity but in range searches.
    pub(crate) fn reset(&mut self, ef: usize, radius: f32, resumable: bool) {
        self.clear();
        self.overflow.clear();
        self.ef = ef;
        self.least = ef;
        self.radius = radius;
        self.least_bound = radius.next_up();
        self.resumable = resumable;
    }

    /// Lets candidates that come again take places, until so many are left.
    pub(crate) fn shrink_to(&mut self, least: usize) {
        self.least = least.min(self.ef);
        self.repeats = 0;
    }

    /// Takes note that candidates have come again: what a search meets it knows already, so there is less left to
    /// find. Every few of them take a place.
    #[inline]
    pub(crate) fn met_again(&mut self, repeats: usize) {
        self.repeats += repeats;
        if self.repeats >= REPEATS && self.ef > self.least {
            self.ef = self.ef.saturating_sub(self.repeats / REPEATS).max(self.least);
            self.repeats %= REPEATS;
            self.trim();
        }
    }

    /// The number of admitted candidates that the pool keeps.
    pub(crate) fn size(&self) -> usize {
        self.ef
    }

    /// Candidates in the pool.
    pub(crate) fn len(&self) -> usize {
        self.run.candidates.len() + self.fresh.candidates.len()
    }

    fn clear(&mut self) {
        self.run.clear();
        self.fresh.clear();
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
            self.overflow.push(candidate(distance, id));
        }
    }

    /// Adds a candidate below the bound, and drops what the pool no longer has room for.
    #[inline]
    pub(crate) fn insert(&mut self, distance: f32, id: u32, admitted: bool) {
        let candidate = candidate(distance, id) | if admitted { 0 } else { OUTSIDE };
        self.fresh.candidates.push(u64::MAX);
        let at = self.sorted.insert(&mut self.fresh.candidates, candidate);
        self.fresh.next = self.fresh.next.min(at);
        self.admitted += usize::from(admitted);
        if self.admitted >= self.ef {
            self.trim();
        }
        if self.fresh.candidates.len() >= FRESH {
            self.settle();
        }
    }

    /// [`Pool::insert`] for a candidate that may be in the pool already, unexpanded, with a larger distance whose
    /// sorting form began with `old`.
    #[inline]
    pub(crate) fn improve(&mut self, old: u16, distance: f32, id: u32, admitted: bool) {
        let (run, from) = match (self.run.find(old, id), self.fresh.find(old, id)) {
            (Some(from), _) => (&mut self.run, from),
            (None, Some(from)) => (&mut self.fresh, from),
            (None, None) => return self.insert(distance, id, admitted),
        };
        let candidate = candidate(distance, id) | run.candidates[from] & OUTSIDE;
        run.move_up(self.sorted, from, candidate);
        if from + 1 == run.candidates.len() {
            self.trim();
        }
    }

    /// Brings the pool into one sorted array, as which it can be looked at.
    pub(crate) fn settle(&mut self) {
        if !self.fresh.candidates.is_empty() {
            self.run.merge(&mut self.fresh);
        }
    }

    /// The farthest candidate, and whether it is a fresh one.
    #[inline(always)]
    fn last(&self) -> Option<(u64, bool)> {
        match (self.run.candidates.last(), self.fresh.candidates.last()) {
            (Some(&run), Some(&fresh)) if run >> 32 > fresh >> 32 => Some((run, false)),
            (_, Some(&fresh)) => Some((fresh, true)),
            (Some(&run), None) => Some((run, false)),
            (None, None) => None,
        }
    }

    #[inline]
    fn trim(&mut self) {
        while self.admitted >= self.ef
            && let Some((last, is_fresh)) = self.last()
        {
            let distance = distance(last);
            let surplus = last & OUTSIDE != 0 || self.admitted > self.ef;
            if !surplus || distance <= self.radius {
                self.bound = distance.max(self.least_bound);
                return;
            }
            let run = if is_fresh { &mut self.fresh } else { &mut self.run };
            run.pop_last();
            self.admitted -= usize::from(last & OUTSIDE == 0);
            if self.resumable {
                self.overflow.push(last);
            }
        }
    }

    /// The nearest candidate that has not been expanded, which from now on has, and whether it is admitted. If there
    /// is none, the pool is settled.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<(u32, bool)> {
        let (old, fresh) = (self.run.peek(), self.fresh.peek());
        let run = if old >> 32 <= fresh >> 32 { &mut self.run } else { &mut self.fresh };
        let Some(candidate) = run.candidates.get_mut(run.next) else {
            self.settle();
            return None;
        };
        let popped = *candidate;
        *candidate |= EXPANDED;
        run.next += 1;
        run.skip();
        Some((id(popped), popped & OUTSIDE == 0))
    }

    /// The candidate that the next [`Pool::pop`] would return, as things stand.
    #[inline]
    pub(crate) fn peek(&self) -> Option<u32> {
        let (old, fresh) = (self.run.peek(), self.fresh.peek());
        let next = if old >> 32 <= fresh >> 32 { old } else { fresh };
        (next != u64::MAX).then(|| id(next))
    }

    /// The candidates of a pool that is settled.
    fn settled(&self) -> &[u64] {
        debug_assert!(self.fresh.candidates.is_empty());
        &self.run.candidates
    }

    /// The admitted candidates, nearest first.
    pub(crate) fn admitted(&self) -> impl Iterator<Item = (f32, u32)> + Clone {
        let admitted = self.settled().iter().filter(|&candidate| candidate & OUTSIDE == 0);
        admitted.map(|&candidate| (distance(candidate), id(candidate)))
    }

    /// Removes the nearest `count` admitted candidates, nearest first, and way-points before them.
    pub(crate) fn take_nearest(&mut self, count: usize) -> Vec<(f32, u32)> {
        self.settle();
        let Run { candidates, next } = &mut self.run;
        let mut admitted = 0;
        let is_last = |&candidate: &u64| {
            admitted += usize::from(candidate & OUTSIDE == 0);
            admitted > count
        };
        let end = candidates.iter().position(is_last).unwrap_or(candidates.len());
        let taken = candidates.drain(..end).filter(|candidate| candidate & OUTSIDE == 0);
        let taken: Vec<(f32, u32)> = taken.map(|taken| (distance(taken), id(taken))).collect();
        self.admitted -= taken.len();
        *next = next.saturating_sub(end);
        taken
    }

    /// Whether a resumable search has left out anything.
    pub(crate) fn has_left_out(&self) -> bool {
        !self.overflow.is_empty()
    }

    /// All candidates, way-points included, nearest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = (f32, u32)> {
        self.settled().iter().map(|&candidate| (distance(candidate), id(candidate)))
    }

    /// Starts the next pool of a resumable search from what this one left out. False if there is nothing left.
    /// What was in the pool has been returned, or was never to be.
    pub(crate) fn refill(&mut self) -> bool {
        self.clear();
        let mut rest = std::mem::take(&mut self.overflow);
        rest.sort_unstable_by_key(|&candidate| {
            (candidate >> 32, candidate & u64::from(ID), candidate)
        });
        let mut taken = 0;
        while taken < rest.len() && self.admitted < self.ef {
            self.admitted += usize::from(rest[taken] & OUTSIDE == 0);
            taken += 1;
        }
        self.overflow = rest.split_off(taken);
        self.run.candidates = rest;
        self.run.skip();
        self.trim();
        !self.run.candidates.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(pool: &mut Pool) -> Vec<u32> {
        pool.settle();
        pool.admitted().map(|(_, id)| id).collect()
    }

    #[test]
    fn keeps_the_nearest_and_pops_in_order() {
        let mut pool = Pool::default();
        pool.reset(3, f32::NEG_INFINITY, false);
        for (distance, id) in [(5.0, 5), (1.0, 1), (4.0, 4), (2.0, 2)] {
            pool.insert(distance, id, true);
        }
        assert_eq!(admitted(&mut pool), [1, 2, 4]);
        assert_eq!(pool.bound(), 4.0);
        assert_eq!(pool.pop(), Some((1, true)));
        pool.insert(0.5, 9, true);
        assert_eq!((pool.pop(), pool.pop(), pool.pop()), (Some((9, true)), Some((2, true)), None));
    }

    #[test]
    fn the_nearest_are_taken() {
        let mut pool = Pool::default();
        pool.reset(9, f32::NEG_INFINITY, false);
        for (distance, id) in [(5.0, 5), (1.0, 1), (4.0, 4), (2.0, 2)] {
            pool.insert(distance, id, id != 2);
        }
        assert_eq!(pool.take_nearest(2), [(1.0, 1), (4.0, 4)]);
        assert_eq!((admitted(&mut pool), pool.take_nearest(9)), (vec![5], vec![(5.0, 5)]));
        pool.insert(3.0, 3, true);
        assert_eq!(pool.take_nearest(1), [(3.0, 3)]);
    }

    #[test]
    fn candidates_sort_as_their_distances() {
        let distances = [f32::NEG_INFINITY, -2.5, -1e-40, 0.0, 1e-40, 1.0, 3.0, f32::INFINITY];
        let made: Vec<u64> = distances.iter().map(|&distance| candidate(distance, ID)).collect();
        assert!(made.is_sorted());
        assert!(made.iter().zip(distances).all(|(&made, given)| distance(made) == given));
        assert!(made.iter().all(|&made| id(made) == ID));
    }

    #[test]
    fn improving_moves_a_candidate_up() {
        let mut pool = Pool::default();
        pool.reset(3, f32::NEG_INFINITY, false);
        for (distance, id) in [(1.0, 1), (4.0, 4), (5.0, 5)] {
            pool.insert(distance, id, true);
        }
        let old = |distance: f32| (sorting(distance) >> 16) as u16;
        pool.improve(old(5.0), 2.0, 5, true);
        assert_eq!((admitted(&mut pool), pool.bound()), (vec![1, 5, 4], 4.0));
        pool.improve(old(9.0), 3.0, 9, true);
        assert_eq!((admitted(&mut pool), pool.bound()), (vec![1, 5, 9], 3.0));
        assert_eq!(pool.pop(), Some((1, true)));
        pool.improve(old(3.0), 0.5, 9, true);
        assert_eq!((pool.pop(), pool.pop(), pool.pop()), (Some((9, true)), Some((5, true)), None));
    }

    #[test]
    fn repeats_take_places() {
        let mut pool = Pool::default();
        pool.reset(6, f32::NEG_INFINITY, false);
        pool.shrink_to(3);
        (1..=6).for_each(|id| pool.insert(id as f32, id, true));
        pool.met_again(REPEATS - 1);
        assert_eq!(pool.bound(), 6.0);
        pool.met_again(1);
        assert_eq!((admitted(&mut pool).len(), pool.bound()), (5, 5.0));
        pool.met_again(10 * REPEATS);
        assert_eq!((admitted(&mut pool), pool.bound()), (vec![1, 2, 3], 3.0));
        pool.reset(6, f32::NEG_INFINITY, false);
        pool.met_again(10 * REPEATS);
        assert_eq!(pool.size(), 6);
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
        assert_eq!(admitted(&mut pool), [9, 3]);
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
        assert_eq!(admitted(&mut pool), [1, 2, 3, 4]);
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
        let mut seen = admitted(&mut pool);
        while pool.refill() {
            seen.extend(admitted(&mut pool));
        }
        assert_eq!(seen, [1, 3, 5, 6, 7]);
    }
}
