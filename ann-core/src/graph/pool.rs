//! The candidate pool: the nearest candidates met so far, sorted.
//!
//! New candidates wait in a short array until [`Pool::settle`] merges it into the long one, once for all that a
//! hop has met: what is farther moves once then, not once for each of them.
//!
//! Candidates that the caller will not return (filtered out, or removed) stay in the pool as way-points and do not
//! count towards its size: the pool ends at the `ef`-th candidate that is *admitted*. So one rule serves plain and
//! filtered search. A range search keeps in addition everything within its radius. A resumable search keeps what
//! falls off the end in an overflow, from which [`Pool::refill`] makes the next pool.
//!
//! A candidate is one integer, its distance in the upper half in an encoding that sorts as floats do, its id and flags
//! in the lower: one comparison tells the order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::kernel::sorted::Sorted;

/// Set in a candidate's id once it has been expanded.
const EXPANDED: u64 = 1 << 31;
/// Set in a candidate's id if it is a way-point only.
const OUTSIDE: u64 = 1 << 30;
/// Repeats that take a place of the pool, beside those that stand in one.
const REPEATS: usize = 4;
/// One in so many of what has been left out, the nearest, and a pool more are put in order at a time.
const AHEAD: usize = 8;
/// Set in the id of a candidate that has been met before, farther away.
pub(crate) const AGAIN: u32 = 1 << 31;
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

/// A candidate with its flags behind its id, so that it sorts by these last; and back.
fn flags_last(candidate: u64) -> u64 {
    candidate >> 32 << 32 | u64::from((candidate as u32).rotate_left(2))
}

fn flags_first(turned: u64) -> u64 {
    turned >> 32 << 32 | u64::from((turned as u32).rotate_right(2))
}

/// The nearest candidates.
#[derive(Default)]
pub(crate) struct Pool {
    /// In ascending order of distance.
    candidates: Vec<u64>,
    /// Everything before it has been expanded.
    next: usize,
    /// Those that came last, in no order.
    coming: Vec<u64>,
    /// Admitted candidates in the pool.
    admitted: usize,
    ef: usize,
    /// Places of `ef` that repeats may still take, and how many of these have taken none yet.
    spare: usize,
    repeats: usize,
    /// Admitted candidates that came nearer than where they stand.
    stale: usize,
    /// Of a full pool, so many of the nearest admitted are expanded and no more.
    expands: usize,
    radius: f32,
    /// What comes within the radius is below it.
    least_bound: f32,
    bound: f32,
    resumable: bool,
    /// What a resumable search has left out since the last refill, as it came.
    overflow: Vec<u64>,
    /// What it had left out before, flags last: up to the horizon with the nearest on top, and beyond it in no order.
    left_out: BinaryHeap<Reverse<u64>>,
    far: Vec<u64>,
    horizon: u64,
    sorted: Sorted,
}

impl Pool {
    /// Empties the pool. `radius` is negative infinity but in range searches.
    pub(crate) fn reset(&mut self, ef: usize, radius: f32, resumable: bool) {
        self.clear();
        self.overflow.clear();
        self.left_out.clear();
        self.far.clear();
        self.horizon = 0;
        self.ef = ef;
        self.spare = 0;
        self.repeats = 0;
        self.stale = 0;
        self.expands = usize::MAX;
        self.radius = radius;
        self.least_bound = radius.next_up();
        self.resumable = resumable;
    }

    /// Lets candidates that come again take places, until so many are left.
    pub(crate) fn shrink_to(&mut self, least: usize) {
        self.spare = self.ef.saturating_sub(least);
    }

    /// Once the pool is full, has only so many of the nearest admitted expanded.
    pub(crate) fn expand_only(&mut self, expands: usize) {
        self.expands = expands;
    }

    /// Takes note that what came from the pool last was not expanded after all: it does not count.
    #[inline]
    pub(crate) fn pass_over(&mut self) {
        self.expands = self.expands.saturating_add(1);
    }

    /// Whether some of the pool are not to be expanded.
    pub(crate) fn is_limited(&self) -> bool {
        self.expands < usize::MAX
    }

    /// The admitted candidates that have not been expanded, nearest first.
    pub(crate) fn not_expanded(&self) -> impl Iterator<Item = (f32, u32)> {
        let left = self.settled().iter().filter(|&candidate| candidate & (EXPANDED | OUTSIDE) == 0);
        left.map(|&candidate| (distance(candidate), id(candidate)))
    }

    /// Takes note that candidates have come again: what a search meets it knows already, so there is less left to find.
    /// Every few of them take a place, and so does each that was admitted and came nearer, where it stood before
    /// (`stale`): a place more than there was while a search that cannot go on is `short` of what it has to find.
    #[inline]
    pub(crate) fn met_again(&mut self, all: usize, stale: usize, short: bool) {
        self.stale += stale;
        let taken = stale.min(self.spare);
        self.spare -= taken;
        if short && !self.resumable {
            self.ef = self.ef.saturating_add(stale - taken);
        }
        self.repeats += all;
        let taken = (self.repeats / REPEATS).min(self.spare);
        self.repeats %= REPEATS;
        self.spare -= taken;
        self.ef -= taken;
    }

    /// The number of admitted candidates that the pool keeps.
    pub(crate) fn size(&self) -> usize {
        self.ef
    }

    /// Candidates in the pool.
    pub(crate) fn len(&self) -> usize {
        self.candidates.len() + self.coming.len()
    }

    fn clear(&mut self) {
        self.candidates.clear();
        self.next = 0;
        self.coming.clear();
        self.admitted = 0;
        self.bound = f32::INFINITY;
    }

    /// Candidates at this distance or farther are of no use any more.
    #[inline(always)]
    pub(crate) fn bound(&self) -> f32 {
        self.bound
    }

    /// A distance that `count` of the candidates that can be returned do not go beyond, each counted once however often
    /// it has come; infinity if that is not known of so many. What a range holds is below it.
    #[inline]
    pub(crate) fn bound_of(&self, count: usize) -> f32 {
        let others = self.stale + self.len() - self.admitted;
        let last = self.candidates.get(count.saturating_add(others));
        last.map_or(f32::INFINITY, |&last| distance(last).max(self.least_bound))
    }

    /// How far away the last of the nearest `count` admitted candidates is; infinity if there are not as many.
    pub(crate) fn farthest_of(&self, count: usize) -> f32 {
        let at = count.saturating_sub(1);
        let last = match self.len() == self.admitted {
            true => self.candidates.get(at),
            false => self.candidates.iter().filter(|&&near| near & OUTSIDE == 0).nth(at),
        };
        last.map_or(f32::INFINITY, |&last| distance(last))
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

    /// Adds a candidate below the bound. It counts from when the pool is settled.
    #[inline]
    pub(crate) fn insert(&mut self, distance: f32, id: u32, admitted: bool) {
        let candidate = candidate(distance, id) | if admitted { 0 } else { OUTSIDE };
        self.coming.push(candidate);
        self.admitted += usize::from(admitted);
    }

    /// Adds admitted candidates, those below the bound, and settles.
    pub(crate) fn take_in(&mut self, ids: &[u32], distances: &[f32]) {
        for (&id, &distance) in ids.iter().zip(distances) {
            if distance < self.bound {
                self.insert(distance, id, true);
            }
        }
        self.settle();
    }

    /// Takes in what has come, behind what is as near, and drops what the pool no longer has room for.
    #[inline]
    pub(crate) fn settle(&mut self) {
        if !self.coming.is_empty() {
            let first = self.sorted.merge(&mut self.candidates, &mut self.coming);
            self.next = self.next.min(first);
            self.coming.clear();
        }
        self.trim();
    }

    fn trim(&mut self) {
        let all_count = self.admitted == self.candidates.len();
        let keeps_no_more = !self.resumable && self.radius == f32::NEG_INFINITY;
        if all_count && keeps_no_more && self.admitted > self.ef {
            self.candidates.truncate(self.ef);
            self.admitted = self.ef;
        }
        while self.admitted >= self.ef
            && let Some(&last) = self.candidates.last()
        {
            let distance = distance(last);
            let surplus = last & OUTSIDE != 0 || self.admitted > self.ef;
            if !surplus || distance <= self.radius {
                self.bound = distance.max(self.least_bound);
                break;
            }
            self.candidates.pop();
            self.admitted -= usize::from(last & OUTSIDE == 0);
            if self.resumable {
                self.overflow.push(last);
            }
        }
        self.next = self.next.min(self.candidates.len());
    }

    /// The nearest candidate that has not been expanded, which from now on has, and whether it is admitted.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<(u32, bool)> {
        debug_assert!(self.coming.is_empty());
        if self.is_limited() && self.admitted >= self.ef {
            let before = self.candidates[..self.next].iter();
            if before.filter(|&candidate| candidate & OUTSIDE == 0).count() >= self.expands {
                return None;
            }
        }
        let candidate = self.candidates.get_mut(self.next)?;
        let popped = *candidate;
        *candidate |= EXPANDED;
        self.next += 1;
        self.skip();
        Some((id(popped), popped & OUTSIDE == 0))
    }

    #[inline]
    fn skip(&mut self) {
        while self.candidates.get(self.next).is_some_and(|candidate| candidate & EXPANDED != 0) {
            self.next += 1;
        }
    }

    /// The candidate that the next [`Pool::pop`] would return, as things stand.
    #[inline]
    pub(crate) fn peek(&self) -> Option<u32> {
        self.candidates.get(self.next).map(|&next| id(next))
    }

    /// How far away that candidate is; infinity if there is none.
    #[inline]
    pub(crate) fn next_distance(&self) -> f32 {
        self.candidates.get(self.next).map_or(f32::INFINITY, |&next| distance(next))
    }

    /// The candidates of a pool that is settled.
    fn settled(&self) -> &[u64] {
        debug_assert!(self.coming.is_empty());
        &self.candidates
    }

    /// The admitted candidates, nearest first.
    pub(crate) fn admitted(&self) -> impl Iterator<Item = (f32, u32)> + Clone {
        let admitted = self.settled().iter().filter(|&candidate| candidate & OUTSIDE == 0);
        admitted.map(|&candidate| (distance(candidate), id(candidate)))
    }

    /// Removes the nearest `count` admitted candidates, nearest first, and way-points before them.
    pub(crate) fn take_nearest(&mut self, count: usize) -> Vec<(f32, u32)> {
        self.settle();
        let Pool { candidates, next, .. } = self;
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

    /// How far away the nearest is that a resumable search has left out and that is of use, going by its id and
    /// distance.
    pub(crate) fn nearest_left_out(
        &mut self,
        mut of_use: impl FnMut(u32, f32) -> bool,
    ) -> Option<f32> {
        let mut nearest = self.nearest_in_order(&mut of_use).map(distance);
        // One look at each takes less than putting all in order, which a search that ends here has no use for.
        for &candidate in &self.overflow {
            let (id, distance) = (id(candidate), distance(candidate));
            if nearest.is_none_or(|nearest| distance < nearest) && of_use(id, distance) {
                nearest = Some(distance);
            }
        }
        nearest
    }

    /// The nearest of use of what was left out up to the last refill.
    fn nearest_in_order(&mut self, of_use: &mut impl FnMut(u32, f32) -> bool) -> Option<u64> {
        while !self.left_out.is_empty() || self.look_farther() {
            while let Some(&Reverse(turned)) = self.left_out.peek() {
                let nearest = flags_first(turned);
                if of_use(id(nearest), distance(nearest)) {
                    return Some(nearest);
                }
                self.left_out.pop();
            }
        }
        None
    }

    /// Moves the horizon behind the nearest of what is beyond it. Most of that never has its turn, and is not put in
    /// order. False if there is nothing.
    fn look_farther(&mut self) -> bool {
        let Some(last) = self.far.len().checked_sub(1) else { return false };
        let at = last.min(self.far.len() / AHEAD + self.ef);
        let (_, &mut farthest, _) = self.far.select_nth_unstable(at);
        self.horizon = farthest.saturating_add(1);
        self.left_out.extend(self.far.drain(..=at).map(Reverse));
        true
    }

    /// All candidates, way-points included, nearest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = (f32, u32)> {
        self.settled().iter().map(|&candidate| (distance(candidate), id(candidate)))
    }

    /// Starts the next pool of a resumable search from what this one left out, but for what is of no use any more,
    /// going by its id and distance. False if there is nothing left. What was in the pool has been returned, or was
    /// never to be.
    pub(crate) fn refill(&mut self, mut of_use: impl FnMut(u32, f32) -> bool) -> bool {
        self.clear();
        for candidate in self.overflow.drain(..) {
            let turned = flags_last(candidate);
            match turned < self.horizon {
                true => self.left_out.push(Reverse(turned)),
                false => self.far.push(turned),
            }
        }
        while self.admitted < self.ef
            && let Some(nearest) = self.nearest_in_order(&mut of_use)
        {
            self.left_out.pop();
            self.admitted += usize::from(nearest & OUTSIDE == 0);
            self.candidates.push(nearest);
        }
        self.skip();
        self.trim();
        !self.candidates.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::testing::Rng;

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
        pool.settle();
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
    fn repeats_take_places() {
        let mut pool = Pool::default();
        pool.reset(6, f32::NEG_INFINITY, false);
        pool.shrink_to(3);
        (1..=9).for_each(|id| pool.insert(id as f32, id, true));
        let mut met_again = |all, stale| {
            pool.met_again(all, stale, true);
            pool.settle();
            pool.bound()
        };
        assert_eq!(met_again(REPEATS - 1, 0), 6.0);
        assert_eq!(met_again(1, 0), 5.0);
        // One that came nearer takes a place without making the pool smaller, as long as there is one to take.
        assert_eq!(met_again(0, 1), 5.0);
        assert_eq!(met_again(10 * REPEATS, 0), 4.0);
        met_again(10 * REPEATS, 2);
        assert_eq!(pool.size(), 6);
        pool.reset(6, f32::NEG_INFINITY, false);
        pool.met_again(10 * REPEATS, 1, false);
        assert_eq!(pool.size(), 6);
        pool.met_again(10 * REPEATS, 1, true);
        assert_eq!(pool.size(), 7);
    }

    #[test]
    fn a_bound_of_a_few_that_can_be_returned() {
        let mut pool = Pool::default();
        pool.reset(9, f32::NEG_INFINITY, false);
        (1..=7).for_each(|id| pool.insert(id as f32, id, id != 2));
        pool.settle();
        // Behind 1, 2, 3, of which 2 is a way-point.
        assert_eq!(pool.bound_of(2), 4.0);
        assert_eq!((pool.bound_of(5), pool.bound_of(6)), (7.0, f32::INFINITY));
        assert_eq!((pool.farthest_of(2), pool.farthest_of(7)), (3.0, f32::INFINITY));
        pool.insert(0.5, 7, true);
        pool.met_again(1, 1, false);
        pool.settle();
        // 7 stands in two places.
        assert_eq!((pool.bound_of(2), pool.bound_of(5)), (4.0, 7.0));
        assert_eq!(pool.bound_of(usize::MAX), f32::INFINITY);
        pool.reset(2, 4.0, false);
        (1..=7).for_each(|id| pool.insert(id as f32, id, true));
        pool.settle();
        assert!(pool.bound_of(1) > 4.0);
    }

    #[test]
    fn of_a_full_pool_the_nearest_few_are_expanded() {
        let mut pool = Pool::default();
        pool.reset(4, f32::NEG_INFINITY, false);
        pool.expand_only(2);
        (1..=3).for_each(|id| pool.insert(id as f32, id, id != 1));
        pool.settle();
        assert_eq!(
            (pool.pop(), pool.pop(), pool.pop()),
            (Some((1, false)), Some((2, true)), Some((3, true)))
        );
        (4..=6).for_each(|id| pool.insert(id as f32, id, true));
        pool.settle();
        assert_eq!(pool.pop(), None);
        assert_eq!(pool.not_expanded().collect::<Vec<_>>(), [(4.0, 4), (5.0, 5)]);
        pool.insert(0.5, 9, true);
        pool.settle();
        assert_eq!((pool.pop(), pool.pop()), (Some((9, true)), None));
        pool.expand_only(usize::MAX);
        assert_eq!((pool.pop(), pool.pop()), (Some((4, true)), None));
    }

    #[test]
    fn way_points_do_not_count() {
        let mut pool = Pool::default();
        pool.reset(2, f32::NEG_INFINITY, false);
        for id in 1..=6 {
            pool.insert(id as f32, id, id % 3 == 0);
        }
        pool.settle();
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
                pool.settle();
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
                pool.settle();
            } else {
                pool.refuse(id as f32, id);
            }
        }
        assert_eq!(pool.nearest_left_out(|_, _| true), Some(5.0));
        let mut seen = admitted(&mut pool);
        while pool.refill(|id, _| id != 6) {
            seen.extend(admitted(&mut pool));
        }
        assert_eq!(seen, [1, 3, 5, 7]);
        assert_eq!(pool.nearest_left_out(|_, _| true), None);
    }

    /// However much is left out, and whether what comes later is nearer or farther.
    #[test]
    fn what_was_left_out_comes_in_order() {
        let (mut pool, mut rng) = (Pool::default(), Rng(3));
        pool.reset(3, f32::NEG_INFINITY, true);
        let mut left: Vec<(f32, u32)> = Vec::new();
        for id in 0..2000 {
            let distance = (rng.next() % 1000) as f32;
            pool.refuse(distance, id);
            left.push((distance, id));
            // A good part stays behind, for the end.
            if id % 10 != 9 && id != 1999 {
                continue;
            }
            loop {
                left.retain(|&(_, id)| id % 4 != 0);
                left.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                let next: Vec<(f32, u32)> = left.drain(..left.len().min(3)).collect();
                assert_eq!(pool.refill(|id, _| id % 4 != 0), !next.is_empty());
                assert_eq!(pool.admitted().collect::<Vec<_>>(), next);
                let nearest = pool.nearest_left_out(|id, _| id % 4 != 0);
                assert_eq!(nearest, left.first().map(|left| left.0));
                if id != 1999 || next.is_empty() {
                    break;
                }
            }
        }
        assert!(left.is_empty());
    }

    /// Whatever its flags, which come before the id in a candidate.
    #[test]
    fn of_what_is_as_near_the_lower_id_comes_first() {
        let mut pool = Pool::default();
        pool.reset(1, f32::NEG_INFINITY, true);
        pool.insert(1.0, 9, true);
        for (id, is_admitted) in [(2, false), (1, true), (3, true)] {
            pool.insert(2.0, id, is_admitted);
        }
        assert_eq!(admitted(&mut pool), [9]);
        assert_eq!(pool.nearest_left_out(|id, _| id > 1), Some(2.0));
        assert!(pool.refill(|id, _| id > 1));
        assert_eq!(pool.all().map(|(_, id)| id).collect::<Vec<_>>(), [2, 3]);
    }
}
