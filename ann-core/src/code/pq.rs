//! Product quantization: a vector cut into pieces, each replaced by the nearest of 16 or 256 codewords (Jégou et al.,
//! TPAMI 2011).
//!
//! What a query's distances need of codewords are dot products of its own pieces with them: a table for each piece,
//! filled once. Codes can be chosen for inner products (ScaNN, arXiv 1908.10396): what a code misses of a vector
//! counts the more the more it lies in the vector's own direction, since queries that are near the vector do too.

use rayon::prelude::*;

use super::kmeans::{self, Training};
use crate::kernel::wide::wide;
use crate::seed::mix;

/// Iterations of a codebook's training.
const ITERATIONS: usize = 40;
/// Points whose distances to codewords are found side by side.
const LANES: usize = 32;
/// Rounds in which pieces choose anew, each knowing what the others miss.
const ROUNDS: usize = 3;

/// Codewords for each piece of a vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Pq {
    dim: usize,
    subs: usize,
    bits: u8,
    /// For each coordinate, what the codewords of its piece have there.
    book: Vec<f32>,
}

/// A training in steps, some pieces of the vectors at a time.
pub struct Trainer {
    pq: Pq,
    seed: u64,
    /// Pieces whose codewords are known.
    done: usize,
}

impl Trainer {
    /// # Panics
    /// If `subs` is not from 1 to `dim`, or `bits` is not 4 or 8.
    pub fn new(dim: usize, subs: usize, bits: u8, seed: u64) -> Trainer {
        assert!((1..=dim).contains(&subs) && matches!(bits, 4 | 8), "{subs} codes of {bits} bits");
        Trainer { pq: Pq { dim, subs, bits, book: Vec::new() }, seed, done: 0 }
    }

    /// Learns codewords for as many pieces as there are threads in the current pool; the same points every time. False
    /// once there is nothing left to do.
    ///
    /// # Panics
    /// If `points` are not whole rows.
    pub fn step(&mut self, points: &[f32]) -> bool {
        let Pq { dim, subs, .. } = self.pq;
        assert!(points.len().is_multiple_of(dim), "points are rows of {dim} floats");
        let last = subs.min(self.done + rayon::current_num_threads());
        let pieces = (self.done..last).into_par_iter().map(|sub| self.piece(points, sub));
        let books: Vec<Vec<f32>> = pieces.collect();
        self.pq.book.extend(books.into_iter().flatten());
        self.done = last;
        self.done < subs
    }

    /// The codewords of one piece.
    fn piece(&self, points: &[f32], sub: usize) -> Vec<f32> {
        let (piece, width) = self.pq.piece(points, sub);
        let words = self.pq.words();
        let training = Training {
            clusters: words,
            iterations: 0,
            spherical: false,
            seed: mix(self.seed ^ sub as u64),
        };
        let first = kmeans::train(&piece, width, &training);
        let mut book = vec![0f32; width * words];
        for (word, centroid) in first.chunks_exact(width).enumerate() {
            (0..width).for_each(|i| book[i * words + word] = centroid[i]);
        }
        lloyd(&piece, width, words, &mut book, ITERATIONS);
        book
    }

    /// The share of the pieces that is done.
    pub fn share(&self) -> f64 {
        self.done as f64 / self.pq.subs as f64
    }

    /// The quantizer, once all steps are done.
    pub fn finish(self) -> Pq {
        self.pq
    }
}

/// What encoding needs for a while.
#[derive(Default)]
pub struct Scratch {
    squares: Vec<f32>,
    along: Vec<f32>,
}

impl Pq {
    /// A quantizer with a given book: for each coordinate, `2^bits` floats. `None` unless `subs` is from 1 to `dim`,
    /// `bits` is 4 or 8 and the book has that size.
    pub fn new(dim: usize, subs: usize, bits: u8, book: Vec<f32>) -> Option<Pq> {
        let fits = (1..=dim).contains(&subs) && matches!(bits, 4 | 8) && book.len() == dim << bits;
        fits.then_some(Pq { dim, subs, bits, book })
    }

    /// Learns codewords of `points`, rows of `dim` floats; there may be fewer points than codewords. Runs on the
    /// current thread pool and does not depend on its threads.
    ///
    /// # Panics
    /// If `subs` is not from 1 to `dim`, `bits` is not 4 or 8, or `points` are not whole rows.
    pub fn train(points: &[f32], dim: usize, subs: usize, bits: u8, seed: u64) -> Pq {
        let mut trainer = Trainer::new(dim, subs, bits, seed);
        while trainer.step(points) {}
        trainer.finish()
    }

    /// Coordinates of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Pieces, each of which has a code.
    pub fn subs(&self) -> usize {
        self.subs
    }

    /// Bits a code.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// For each coordinate, what the codewords of its piece have there.
    pub fn book(&self) -> &[f32] {
        &self.book
    }

    fn words(&self) -> usize {
        1 << self.bits
    }

    fn cut(&self, sub: usize) -> usize {
        cut(self.dim, self.subs, sub)
    }

    /// Moves the codewords to the means of what is nearest to them, some times. Runs on the current thread pool and does
    /// not depend on its threads.
    ///
    /// # Panics
    /// If `points` are not whole rows.
    pub fn fit(&mut self, points: &[f32], iterations: usize) {
        assert!(points.len().is_multiple_of(self.dim), "points are rows of {} floats", self.dim);
        let words = self.words();
        let books = (0..self.subs).into_par_iter().map(|sub| {
            let (piece, width) = self.piece(points, sub);
            let mut book = self.book[self.cut(sub) * words..self.cut(sub + 1) * words].to_vec();
            lloyd(&piece, width, words, &mut book, iterations);
            book
        });
        self.book = books.collect::<Vec<_>>().concat();
    }

    /// A piece of each point, one after the other, and how wide it is.
    fn piece(&self, points: &[f32], sub: usize) -> (Vec<f32>, usize) {
        let (from, to) = (self.cut(sub), self.cut(sub + 1));
        let rows = points.chunks_exact(self.dim);
        (rows.flat_map(|row| &row[from..to]).copied().collect(), to - from)
    }

    /// Makes `codes` the nearest codewords of a vector's pieces.
    ///
    /// # Panics
    /// If `vector` or `codes` have another length.
    pub fn encode(&self, vector: &[f32], codes: &mut [u8], scratch: &mut Scratch) {
        assert_eq!((vector.len(), codes.len()), (self.dim, self.subs), "a code for each piece");
        self.squares(vector, scratch);
        for (code, squares) in codes.iter_mut().zip(scratch.squares.chunks_exact(self.words())) {
            *code = least(squares);
        }
    }

    /// [`encode`](Pq::encode) for inner products: what codes miss along `direction`, of length one, counts `weight`
    /// times.
    ///
    /// # Panics
    /// If a length is another.
    pub fn encode_along(
        &self,
        vector: &[f32],
        direction: &[f32],
        weight: f32,
        codes: &mut [u8],
        scratch: &mut Scratch,
    ) {
        assert_eq!(direction.len(), self.dim, "a direction of the vectors");
        self.encode(vector, codes, scratch);
        let words = self.words();
        let Scratch { squares, along } = scratch;
        // What each codeword misses along the direction.
        along.clear();
        along.resize(self.subs * words, 0.0);
        wide(
            #[inline(always)]
            || {
                for (sub, along) in along.chunks_exact_mut(words).enumerate() {
                    for at in self.cut(sub)..self.cut(sub + 1) {
                        let book = &self.book[at * words..][..words];
                        for (along, word) in along.iter_mut().zip(book) {
                            *along += direction[at] * (vector[at] - word);
                        }
                    }
                }
            },
        );
        let of = |along: &[f32], sub: usize, code: u8| along[sub * words + usize::from(code)];
        let mut missed: f32 =
            codes.iter().enumerate().map(|(sub, &code)| of(along, sub, code)).sum();
        let mut losses = vec![0f32; words];
        for _ in 0..ROUNDS {
            let mut changed = false;
            for (sub, code) in codes.iter_mut().enumerate() {
                let others = missed - of(along, sub, *code);
                let (squares, along) = (&squares[sub * words..], &along[sub * words..]);
                for ((loss, square), along) in losses.iter_mut().zip(squares).zip(along) {
                    let all = others + along;
                    *loss = square + (weight - 1.0) * all * all;
                }
                let best = least(&losses);
                changed |= best != *code;
                *code = best;
                missed = others + along[usize::from(best)];
            }
            if !changed {
                break;
            }
        }
    }

    /// The squared distances of a vector's pieces to their codewords.
    fn squares(&self, vector: &[f32], scratch: &mut Scratch) {
        let words = self.words();
        scratch.squares.clear();
        scratch.squares.resize(self.subs * words, 0.0);
        wide(
            #[inline(always)]
            || {
                for (sub, squares) in scratch.squares.chunks_exact_mut(words).enumerate() {
                    let (from, to) = (self.cut(sub), self.cut(sub + 1));
                    for (at, &value) in (from..).zip(&vector[from..to]) {
                        add_squares(value, &self.book[at * words..][..words], squares);
                    }
                }
            },
        );
    }

    /// Makes `out` the vector that codes stand for.
    ///
    /// # Panics
    /// If `codes` or `out` have another length, or a code is none.
    pub fn decode(&self, codes: &[u8], out: &mut [f32]) {
        assert_eq!((codes.len(), out.len()), (self.subs, self.dim), "a code for each piece");
        for (sub, &code) in codes.iter().enumerate() {
            let (from, to) = (self.cut(sub), self.cut(sub + 1));
            for (at, value) in (from..).zip(&mut out[from..to]) {
                *value = self.book[at * self.words() + usize::from(code)];
            }
        }
    }

    /// Replaces `tables` with `factor` times the dot products of a query's pieces with their codewords. `W` is the
    /// number of these.
    ///
    /// # Panics
    /// If `query` does not have the quantizer's dimension, or `W` is not its number of codewords.
    pub fn tables<const W: usize>(&self, query: &[f32], factor: f32, tables: &mut Vec<[f32; W]>) {
        assert_eq!((query.len(), W), (self.dim, self.words()), "a query of this quantizer");
        tables.clear();
        tables.resize(self.subs, [0.0; W]);
        wide(
            #[inline(always)]
            || {
                let mut coordinates = self.book.as_chunks::<W>().0.iter().zip(query);
                let mut rest = 0;
                for table in tables.iter_mut() {
                    // As `cut` has it, without a division for each piece.
                    rest += self.dim % self.subs;
                    let more = usize::from(rest >= self.subs);
                    rest -= more * self.subs;
                    // Summed up in registers.
                    let mut sums = [0.0; W];
                    for (words, &value) in coordinates.by_ref().take(self.dim / self.subs + more) {
                        let scaled = factor * value;
                        for (sum, word) in sums.iter_mut().zip(words) {
                            *sum += scaled * word;
                        }
                    }
                    *table = sums;
                }
            },
        );
    }
}

/// Where a piece begins: they are as equally wide as they can be.
fn cut(dim: usize, subs: usize, sub: usize) -> usize {
    sub * dim / subs
}

#[inline(always)]
fn add_squares(value: f32, words: &[f32], squares: &mut [f32]) {
    for (square, word) in squares.iter_mut().zip(words) {
        *square += (value - word) * (value - word);
    }
}

/// The place of the smallest; of equal ones the first. The least is found by lanes, then where it is.
fn least(values: &[f32]) -> u8 {
    let smallest = wide(
        #[inline(always)]
        || {
            let mut lanes = [f32::INFINITY; 16];
            for values in values.as_chunks::<16>().0 {
                for (lane, &value) in lanes.iter_mut().zip(values) {
                    *lane = if value < *lane { value } else { *lane };
                }
            }
            lanes.iter().fold(f32::INFINITY, |a, &b| if b < a { b } else { a })
        },
    );
    values.iter().position(|&value| value == smallest).unwrap_or(0) as u8
}

/// Moves the codewords of one piece to the means of what is nearest to them, some times.
fn lloyd(piece: &[f32], width: usize, words: usize, book: &mut [f32], iterations: usize) {
    // Points by the block, one coordinate of all of them after the other.
    let mut blocks = vec![0f32; piece.len().next_multiple_of(width * LANES)];
    for (at, point) in piece.chunks_exact(width).enumerate() {
        let block = &mut blocks[at / LANES * width * LANES..];
        point.iter().enumerate().for_each(|(i, &value)| block[i * LANES + at % LANES] = value);
    }
    for _ in 0..iterations {
        let (mut sums, mut counts) = (vec![0f64; width * words], vec![0u32; words]);
        let points = piece.chunks(width * LANES);
        for (block, points) in blocks.chunks_exact(width * LANES).zip(points) {
            let nearest = nearest(block, width, words, book);
            for (point, word) in points.chunks_exact(width).zip(nearest) {
                let word = word as usize;
                counts[word] += 1;
                for (i, &value) in point.iter().enumerate() {
                    sums[i * words + word] += f64::from(value);
                }
            }
        }
        for i in 0..width {
            for (word, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                book[i * words + word] = (sums[i * words + word] / f64::from(count)) as f32;
            }
        }
    }
}

/// The codeword nearest to each point of a block, the first of those that are as near.
fn nearest(block: &[f32], width: usize, words: usize, book: &[f32]) -> [u32; LANES] {
    wide(
        #[inline(always)]
        || {
            let (mut least, mut nearest) = ([f32::INFINITY; LANES], [0; LANES]);
            for word in 0..words {
                let mut squares = [0f32; LANES];
                for (i, values) in block.as_chunks::<LANES>().0[..width].iter().enumerate() {
                    let of_word = book[i * words + word];
                    for (square, value) in squares.iter_mut().zip(values) {
                        *square += (value - of_word).powi(2);
                    }
                }
                for lane in 0..LANES {
                    let is_nearer = squares[lane] < least[lane];
                    least[lane] = if is_nearer { squares[lane] } else { least[lane] };
                    nearest[lane] = if is_nearer { word as u32 } else { nearest[lane] };
                }
            }
            nearest
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::testing::Rng;

    fn points(count: usize, dim: usize) -> Vec<f32> {
        let mut rng = Rng(7);
        let mut unit = || (rng.next() >> 40) as f32 / (1u64 << 24) as f32;
        (0..count * dim).map(|_| (0..6).map(|_| unit()).sum::<f32>() - 3.0).collect()
    }

    fn square(a: &[f32]) -> f64 {
        a.iter().map(|x| f64::from(*x).powi(2)).sum()
    }

    fn minus(a: &[f32], b: &[f32]) -> Vec<f32> {
        a.iter().zip(b).map(|(a, b)| a - b).collect()
    }

    /// The share of the points that codes miss.
    fn missed(pq: &Pq, values: &[f32]) -> f64 {
        let (mut codes, mut out) = (vec![0; pq.subs()], vec![0.0; pq.dim()]);
        let mut scratch = Scratch::default();
        let mut sum = 0.0;
        for row in values.chunks_exact(pq.dim()) {
            pq.encode(row, &mut codes, &mut scratch);
            pq.decode(&codes, &mut out);
            sum += square(&minus(row, &out));
        }
        sum / square(values)
    }

    /// A normal distribution takes about 0.01 of its square with 4 bits for each coordinate, 0.12 with 2, and 0.28 with
    /// 1.3.
    #[test]
    fn codes_are_near() {
        let values = points(4000, 24);
        for (subs, bits, bar) in [
            (24, 4, 0.015),
            (12, 4, 0.14),
            (8, 4, 0.32),
            (7, 4, 0.36),
            (12, 8, 0.015),
            (1, 4, 0.95),
        ] {
            let pq = Pq::train(&values, 24, subs, bits, 1);
            let got = missed(&pq, &values);
            assert!(got < bar, "{subs} x {bits}: {got}");
            assert_eq!(Pq::new(24, subs, bits, pq.book().to_vec()).as_ref(), Some(&pq));
        }
    }

    #[test]
    fn tables_are_dot_products() {
        let values = points(500, 10);
        let query = &points(501, 10)[5000..];
        for (subs, bits) in [(4, 4), (10, 4), (3, 8)] {
            let pq = Pq::train(&values, 10, subs, bits, 1);
            let (mut codes, mut out) = (vec![0; subs], vec![0.0; 10]);
            pq.encode(&values[..10], &mut codes, &mut Scratch::default());
            pq.decode(&codes, &mut out);
            let right: f64 =
                out.iter().zip(query).map(|(a, b)| f64::from(a * b)).sum::<f64>() * -2.0;
            let lookups: f64 = if bits == 4 {
                let mut tables = Vec::new();
                pq.tables::<16>(query, -2.0, &mut tables);
                codes
                    .iter()
                    .zip(&tables)
                    .map(|(&code, table)| f64::from(table[code as usize]))
                    .sum()
            } else {
                let mut tables = Vec::new();
                pq.tables::<256>(query, -2.0, &mut tables);
                codes
                    .iter()
                    .zip(&tables)
                    .map(|(&code, table)| f64::from(table[code as usize]))
                    .sum()
            };
            assert!((lookups - right).abs() < 1e-4);
        }
    }

    /// What is missed along the direction falls by much, the whole grows by little.
    #[test]
    fn codes_for_inner_products() {
        let values = points(2000, 32);
        let pq = Pq::train(&values, 32, 16, 4, 1);
        let (mut codes, mut out) = (vec![0; 16], vec![0.0; 32]);
        let mut scratch = Scratch::default();
        let mut sums = [[0.0; 2]; 2];
        for row in values.chunks_exact(32) {
            let mut direction = row.to_vec();
            kmeans::normalise(&mut direction, 32);
            for (weighted, sums) in sums.iter_mut().enumerate() {
                match weighted {
                    0 => pq.encode(row, &mut codes, &mut scratch),
                    _ => pq.encode_along(row, &direction, 5.0, &mut codes, &mut scratch),
                }
                pq.decode(&codes, &mut out);
                let missing = minus(row, &out);
                let along: f64 =
                    missing.iter().zip(&direction).map(|(a, b)| f64::from(a * b)).sum();
                sums[0] += along * along;
                sums[1] += square(&missing);
            }
        }
        assert!(sums[1][0] < 0.5 * sums[0][0] && sums[1][1] < 1.15 * sums[0][1], "{sums:?}");
    }

    #[test]
    fn threads_make_no_difference_and_few_points_do() {
        let values = points(1000, 12);
        let by = |threads| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| Pq::train(&values, 12, 6, 4, 9))
        };
        assert!(by(1) == by(3));
        assert!(missed(&Pq::train(&values[..60], 12, 6, 4, 1), &values[..60]) < 1e-9);
        assert!(missed(&Pq::train(&[3.0; 120], 12, 5, 8, 1), &[3.0; 120]) < 1e-9);
        assert_eq!(Pq::train(&[], 12, 5, 4, 1).book(), vec![0.0; 12 * 16]);
        for (dim, subs, bits, len) in [(4, 0, 4, 64), (4, 5, 4, 64), (4, 2, 5, 128), (4, 2, 4, 63)]
        {
            assert_eq!(Pq::new(dim, subs, bits, vec![0.0; len]), None);
        }
    }
}
