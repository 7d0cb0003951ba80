//! Rounds of sign flips and fast Hadamard transforms: what a random rotation is made of.
//!
//! A Hadamard transform of a power of two of elements is a cascade of butterflies, `(a, b)` to `(a + b, a - b)`, at
//! distances that halve from stage to stage. Other lengths have a window of the largest power of two that fits, in
//! turn at the start and at the end, and after each pair butterflies between the two halves of the whole: windows
//! that hardly overlap would hardly mix.
//!
//! The stages and their order are the same on every machine and a butterfly rounds each of its sums once, so results
//! are bit-identical on all instruction sets.

use super::Isa;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

/// Lengths are multiples of this: no window is shorter, and windows begin at multiples of it.
pub const STEP: usize = 8;

type Function = unsafe fn(&mut [f32], &[f32]);

/// The rounds, by one instruction set.
#[derive(Clone, Copy)]
pub struct Hadamard {
    function: Function,
    isa: Isa,
}

impl Hadamard {
    /// By the widest vectors that this machine has.
    pub fn new() -> Hadamard {
        let found = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Scalar].into_iter();
        found.filter_map(Hadamard::with_isa).next().expect("the scalar rounds run everywhere")
    }

    /// By a given instruction set; `None` if this machine does not have it or it has no rounds of its own.
    pub fn with_isa(isa: Isa) -> Option<Hadamard> {
        let function: Function = match isa {
            Isa::Scalar => scalar,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if super::avx2::available() => avx2::rounds,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if super::avx512::available() => avx512::rounds,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::rounds,
            _ => return None,
        };
        Some(Hadamard { function, isa })
    }

    /// As many rounds as `factors` has rows of the length of `values`. A round multiplies by its factors and transforms
    /// a window; every second round then joins the halves, if the window is not all. Nothing else is scaled.
    ///
    /// # Panics
    /// If the length is zero or no multiple of [`STEP`], or `factors` is not whole rows.
    pub fn rounds(&self, values: &mut [f32], factors: &[f32]) {
        let len = values.len();
        assert!(len > 0 && len.is_multiple_of(STEP), "no windows fit {len} elements");
        assert!(factors.len().is_multiple_of(len), "a round has a factor for each element");
        // SAFETY: `with_isa` checked the instruction set; the lengths were checked above.
        unsafe { (self.function)(values, factors) }
    }
}

impl Default for Hadamard {
    fn default() -> Hadamard {
        Hadamard::new()
    }
}

impl std::fmt::Debug for Hadamard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hadamard({:?})", self.isa)
    }
}

/// The size of the window of `len` elements, which is all of them for a power of two.
pub fn window(len: usize) -> usize {
    1 << len.ilog2()
}

/// Where the window of a round begins.
pub fn start(len: usize, round: usize) -> usize {
    if round.is_multiple_of(2) { 0 } else { len - window(len) }
}

/// Whether a round ends with butterflies between the halves.
pub fn joins(len: usize, round: usize) -> bool {
    window(len) < len && !round.is_multiple_of(2)
}

/// A vector of consecutive elements.
///
/// # Safety of calls
/// The machine must have the instruction set of the implementing module, and pointers must be good for a vector.
trait Lanes: Copy {
    /// Elements a vector, a power of two.
    const WIDTH: usize;

    /// Reads `WIDTH` elements.
    unsafe fn load(at: *const f32) -> Self;
    /// Writes `WIDTH` elements.
    unsafe fn store(self, at: *mut f32);
    /// Lane by lane `(self + other, self - other)`.
    unsafe fn butterfly(self, other: Self) -> (Self, Self);
    /// The stages at distances below `WIDTH`.
    unsafe fn within(self) -> Self;
}

/// # Safety
/// The machine has the instruction set of `V`.
#[inline(always)]
unsafe fn rounds<V: Lanes>(values: &mut [f32], factors: &[f32]) {
    let len = values.len();
    let window = window(len);
    if window < V::WIDTH {
        return scalar(values, factors);
    }
    for (round, factors) in factors.chunks_exact(len).enumerate() {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value *= factor;
        }
        let start = start(len, round);
        // SAFETY: the caller's; the window is a power of two, of a vector at least.
        unsafe { transform::<V>(&mut values[start..][..window]) };
        if joins(len, round) {
            let (front, back) = values.split_at_mut(len / 2);
            // SAFETY: the caller's.
            unsafe { join::<V>(front, back) };
        }
    }
}

/// Two stages a pass over memory, then what fits the registers in one pass to the end.
///
/// # Safety
/// The machine has the instruction set of `V`, and there are a power of two of elements, `WIDTH` or more.
#[inline(always)]
unsafe fn transform<V: Lanes>(window: &mut [f32]) {
    let all = window.len();
    let at = window.as_mut_ptr();
    let mut piece = all;
    // SAFETY: the caller's; pieces are powers of two, so that all places below are vectors of the window.
    unsafe {
        while piece > 8 * V::WIDTH {
            let quarter = piece / 4;
            for start in (0..all).step_by(piece) {
                for first in (start..start + quarter).step_by(V::WIDTH) {
                    let places = [0, 1, 2, 3].map(|i| at.add(first + i * quarter));
                    let [a, b, c, d] = places.map(|place| V::load(place));
                    let ((a, c), (b, d)) = (a.butterfly(c), b.butterfly(d));
                    let ((a, b), (c, d)) = (a.butterfly(b), c.butterfly(d));
                    a.store(places[0]);
                    b.store(places[1]);
                    c.store(places[2]);
                    d.store(places[3]);
                }
            }
            piece = quarter;
        }
        for start in (0..all).step_by(piece) {
            let at = at.add(start);
            match piece / V::WIDTH {
                8 => inside::<V, 8>(at),
                4 => inside::<V, 4>(at),
                2 => inside::<V, 2>(at),
                _ => inside::<V, 1>(at),
            }
        }
    }
}

/// All stages of `K` vectors, a power of two, in registers.
///
/// # Safety
/// The machine has the instruction set of `V`, and `at` is good for `K` vectors.
#[inline(always)]
unsafe fn inside<V: Lanes, const K: usize>(at: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        let mut vectors: [V; K] = std::array::from_fn(|i| V::load(at.add(i * V::WIDTH)));
        let mut distance = K / 2;
        while distance > 0 {
            for i in (0..K).filter(|i| i & distance == 0) {
                (vectors[i], vectors[i + distance]) = vectors[i].butterfly(vectors[i + distance]);
            }
            distance /= 2;
        }
        for (i, vector) in vectors.into_iter().enumerate() {
            vector.within().store(at.add(i * V::WIDTH));
        }
    }
}

/// Butterflies between the elements of two halves.
///
/// # Safety
/// The machine has the instruction set of `V`, and the halves have one length.
#[inline(always)]
unsafe fn join<V: Lanes>(front: &mut [f32], back: &mut [f32]) {
    let whole = front.len() - front.len() % V::WIDTH;
    for i in (0..whole).step_by(V::WIDTH) {
        // SAFETY: the caller's; `whole` is within both halves.
        unsafe {
            let (a, b) = (front.as_mut_ptr().add(i), back.as_mut_ptr().add(i));
            let (sum, difference) = V::load(a).butterfly(V::load(b));
            sum.store(a);
            difference.store(b);
        }
    }
    butterflies(&mut front[whole..], &mut back[whole..]);
}

fn butterflies(front: &mut [f32], back: &mut [f32]) {
    for (a, b) in front.iter_mut().zip(back) {
        (*a, *b) = (*a + *b, *a - *b);
    }
}

/// The rounds in plain Rust: the reference of all others.
fn scalar(values: &mut [f32], factors: &[f32]) {
    let len = values.len();
    let window = window(len);
    for (round, factors) in factors.chunks_exact(len).enumerate() {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value *= factor;
        }
        let start = start(len, round);
        let mut distance = window / 2;
        while distance > 0 {
            for pair in values[start..][..window].chunks_exact_mut(2 * distance) {
                let (front, back) = pair.split_at_mut(distance);
                butterflies(front, back);
            }
            distance /= 2;
        }
        if joins(len, round) {
            let (front, back) = values.split_at_mut(len / 2);
            butterflies(front, back);
        }
    }
}
