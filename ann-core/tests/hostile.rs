//! Damaged and forged indexes: whatever the bytes, opening, searching, checking and changing end, with an answer or
//! with a typed error.
//!
//! Damage is done to the bodies of pages, below the checksums, which are not looked at when a page is read. Each
//! image is used twice, first in a store that refuses after so many reads that only a loop without end gets there.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ann_core::testing::Rng;
use ann_core::{
    AddOptions, AnyIndex, DType, DiskAnn, Error, Filter, Flat, Graph, Hnsw, Index, IvfCode, IvfPq,
    IvfPqBuilder, MemStore, Metric, PageId, PageStore, Placement, Result, Search, Topology,
};
use common::metered::{Metered, ran_out};
use ndarray::{Array2, s};

const PAGE: usize = 4096;
const DIM: usize = 6;
/// Reads that no honest use of so small an index comes near.
const LIMIT: u64 = 3_000_000;

/// The bodies of an index's pages.
#[derive(Clone)]
struct Image(Vec<Vec<u8>>);

impl Image {
    fn of(store: &impl PageStore) -> Image {
        Image(
            (0..store.page_count())
                .map(|page| store.read(PageId(page)).unwrap().to_vec())
                .collect(),
        )
    }

    fn store(&self) -> MemStore {
        let mut store = MemStore::new(PAGE).unwrap();
        store.grow(self.0.len() as u32).unwrap();
        for (page, body) in (0..).zip(&self.0) {
            store.write(&[PageId(page)], |pages| pages.put(0, 0, body)).unwrap();
        }
        store
    }

    fn word(&self, page: usize, at: usize) -> u32 {
        u32::from_le_bytes(self.0[page][at..at + 4].try_into().unwrap())
    }

    fn set_word(&mut self, page: usize, at: usize, value: u32) {
        self.0[page][at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// The page and offset of a record, by what the meta page says of its array.
    fn record(&self, array: usize, id: u32) -> (usize, usize) {
        let stride = self.word(0, STRIDES + 16 * array) as usize;
        let per_page = (PAGE - 64) / stride;
        let mut page = id as usize / per_page;
        for extent in 0..self.word(0, 68) as usize {
            let (start, what) = (self.word(0, 256 + 8 * extent), self.word(0, 260 + 8 * extent));
            if what >> 28 == array as u32 {
                let pages = (what & 0xfff_ffff) as usize;
                if page < pages {
                    return (start as usize + page, id as usize % per_page * stride);
                }
                page -= pages;
            }
        }
        panic!("record {id} of array {array} does not exist");
    }
}

/// Where the meta page's body has what; see `FORMAT.md`.
const VERSION: usize = 8;
const SLOTS: usize = 32;
const FREE: usize = 44;
const NEXT_KEY: usize = 48;
const CHANGES: usize = 56;
const PAGES: usize = 64;
const ENTRY: usize = 72;
const EF_CONSTRUCTION: usize = 84;
const UPPER_RECORDS: usize = 92;
const STRIDES: usize = 128;
/// Array numbers.
const VECTORS: usize = 0;
const NODES: usize = 1;
const LINKS: usize = 2;
const UPPER: usize = 3;
const CODES: usize = 4;
const LISTS: usize = 4;
const CENTRE: usize = 7;
const WHOLE: usize = 6;
const UPPER_WHOLE: usize = 7;
/// Where a node record has what.
const KEY: usize = 0;
const TWIN: usize = 8;
const OWNER: usize = 12;
const UPPER_AT: usize = 16;
const STATE: usize = 22;
const LEVEL: usize = 23;

fn rows(n: usize, seed: u64) -> Array2<f32> {
    common::clustered(n, DIM, seed)
}

/// A small graph with all there can be in one: levels, twins, tombstones, dead twins and free slots.
fn graph(metric: Metric) -> Hnsw {
    let builder = Hnsw::builder(DIM).metric(metric).m(4).ef_construction(30);
    let mut index = builder.build_in(MemStore::new(PAGE).unwrap()).unwrap();
    fill(&mut index);
    index
}

fn fill<S: PageStore, K: Topology>(index: &mut Graph<S, K>) {
    let base = rows(400, 1);
    let options = || AddOptions::new().threads(1);
    index.add(base.view(), None, options()).unwrap();
    index.add(base.slice(s![..60, ..]), None, options()).unwrap();
    index.add(base.slice(s![..30, ..]), None, options()).unwrap();
    index.remove(&(300..350).collect::<Vec<u64>>()).unwrap();
    index.sweep(1).unwrap();
    index.remove(&(0..10).chain(405..415).chain(200..220).collect::<Vec<u64>>()).unwrap();
    let stats = index.stats().unwrap();
    assert!(stats.twins > 50 && stats.tombstones > 20 && stats.slots > stats.len + 50);
    index.verify().unwrap();
}

/// What [`graph`] is, with codes beside its links.
fn coded(bits: u8) -> DiskAnn {
    let builder = DiskAnn::builder(DIM).code_bits(bits).build_list_size(30);
    let mut index = builder.build_in(MemStore::new(PAGE).unwrap()).unwrap();
    fill(&mut index);
    index
}

/// What [`graph`] is, with codes by node, beside vectors or instead of them.
fn compact(vectors: Option<DType>) -> DiskAnn {
    let builder = DiskAnn::builder(DIM).vectors(vectors).placement(Placement::Compact);
    let mut index = builder.build_list_size(30).build_in(MemStore::new(PAGE).unwrap()).unwrap();
    fill(&mut index);
    assert!(index.stats().unwrap().codes_in_use);
    index
}

/// What [`coded`] is, with directions in bytes.
fn directions() -> DiskAnn {
    let builder = DiskAnn::builder(DIM).metric(Metric::Cosine).vectors(DType::I8);
    let builder = builder.build_list_size(30);
    let mut index = builder.build_in(MemStore::new(PAGE).unwrap()).unwrap();
    fill(&mut index);
    index
}

fn flat() -> Flat {
    let builder = Flat::builder(DIM).metric(Metric::Cosine);
    let mut index = builder.build_in(MemStore::new(PAGE).unwrap()).unwrap();
    index.add(rows(200, 1).view(), None, AddOptions::new().threads(1)).unwrap();
    index.remove(&(20..60).collect::<Vec<u64>>()).unwrap();
    index
}

/// Lists with all there can be in them: full and open blocks, unused ones, retired lists, free slots.
fn lists(metric: Metric, bits: u8) -> IvfPq {
    let builder = IvfPq::builder(DIM).metric(metric).bits(bits);
    filled_lists(builder.spill(bits == 8).opq(metric == Metric::InnerProduct))
}

fn lists_of_rabitq() -> IvfPq {
    filled_lists(IvfPq::builder(DIM).metric(Metric::Cosine).code(IvfCode::RaBitQ1))
}

/// [`lists`] without vectors, with codes of so many bits in their place, or without any.
fn lists_of_codes(metric: Metric, code_bits: u8) -> IvfPq {
    let builder = IvfPq::builder(DIM).metric(metric).vectors(None).code_bits(code_bits);
    filled_lists(builder.spill(code_bits == 0))
}

fn filled_lists(builder: IvfPqBuilder) -> IvfPq {
    let builder = builder.lists(9).train_at(100);
    let mut index = builder.build_in(MemStore::new(PAGE).unwrap()).unwrap();
    index.add(rows(400, 1).view(), None, AddOptions::new().threads(1)).unwrap();
    let near = Array2::from_shape_fn((150, DIM), |(i, j)| (i * j % 7 + 1) as f32);
    index.add(near.view(), None, AddOptions::new().threads(1)).unwrap();
    index.rebalance(1).unwrap();
    index.remove(&(100..220).collect::<Vec<u64>>()).unwrap();
    index.compact().unwrap();
    index.remove(&(300..340).collect::<Vec<u64>>()).unwrap();
    index.verify().unwrap();
    index
}

/// Fields of lists and blocks that get a value that could mean something there.
fn forge_lists(image: &mut Image, rng: &mut Rng) {
    let (blocks, count) = (image.word(0, UPPER_RECORDS), image.word(0, ENTRY + 4));
    let stride = image.word(0, STRIDES + 16 * UPPER) as usize;
    for _ in 0..1 + rng.below(6) {
        let value = match rng.below(5) {
            0 => u32::MAX,
            1 => rng.next() as u32,
            2 => rng.below(blocks as usize + 2) as u32,
            3 => rng.below(count as usize + 2) as u32,
            _ => rng.below(600) as u32,
        };
        match rng.below(4) {
            0 => {
                let (page, at) = image.record(LISTS, rng.below(count as usize) as u32);
                image.set_word(page, at + 4 * rng.below(4), value);
            }
            1 => {
                let (page, at) = image.record(NODES, rng.below(500) as u32);
                image.set_word(page, at + OWNER, value);
            }
            // The slots of a block, and what chains it.
            _ => {
                let (page, at) = image.record(UPPER, rng.below(blocks as usize) as u32);
                image.set_word(page, at + stride - 4 * (1 + rng.below(40)), value);
            }
        }
    }
}

/// Passes on the meter's error, and drops others, which are answers too.
fn survive<R>(result: Result<R>) -> Result<Option<R>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if ran_out(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Everything that only reads.
fn read(index: &impl Index, queries: &Array2<f32>) -> Result<()> {
    let odd = |key: u64| key % 2 == 1;
    let keys: Vec<u64> = (0..500).step_by(3).collect();
    for (at, query) in queries.rows().into_iter().enumerate() {
        let query = query.to_vec();
        let options = Search::new(10).ef([1, 20, 500][at % 3]);
        let hits = survive(index.search(&query, &options))?;
        assert!(hits.is_none_or(|hits| hits.len() <= 10));
        survive(index.search(&query, &options.filter(Filter::Predicate(&odd))))?;
        survive(index.search(&query, &options.filter(Filter::Keys(&keys))))?;
        survive(index.range_search(&query, [0.0, 300.0, f32::INFINITY][at % 3], &options))?;
        let Some(mut cursor) = survive(index.cursor(&query, 5))? else { continue };
        for _ in 0..2000 {
            match survive(index.resume(&mut cursor, 3, Filter::None))? {
                Some(hits) if hits.len() == 3 => {}
                _ => break,
            }
        }
    }
    survive(index.search_batch(queries.view(), &Search::new(3), 1))?;
    for key in [0, 7, 200, 401, 10_000] {
        survive(index.get::<f32>(key))?;
        survive(index.contains(key))?;
    }
    survive(index.verify())?;
    survive(index.stats())?;
    Ok(())
}

/// Everything that changes.
fn change(index: &mut impl Index, step: usize) -> Result<()> {
    let options = || AddOptions::new().threads(1);
    let new = rows(40, 7);
    for step in [step, step + 1, step + 2] {
        match step % 3 {
            0 => _ = survive(index.add(new.view(), None, options()))?,
            1 => {
                let keys: Vec<u64> = (100..140).collect();
                survive(index.update(new.view(), &keys, options()))?;
            }
            _ => _ = survive(index.remove(&(60..140).collect::<Vec<u64>>()))?,
        }
    }
    Ok(())
}

/// Uses an image; the error is the meter's.
fn try_image(image: &Image, writes: Option<usize>) -> Result<()> {
    let queries = rows(3, 5);
    let Some(index) = survive(AnyIndex::open_in(Metered::new(image.store(), LIMIT)))? else {
        return Ok(());
    };
    match index {
        AnyIndex::Flat(mut index) => {
            read(&index, &queries)?;
            writes.map_or(Ok(()), |step| change(&mut index, step))?;
        }
        AnyIndex::Hnsw(index) => try_graph(index, &queries, writes)?,
        AnyIndex::DiskAnn(index) => try_graph(index, &queries, writes)?,
        AnyIndex::IvfPq(mut index) => {
            read(&index, &queries)?;
            if let Some(step) = writes {
                change(&mut index, step)?;
                survive(index.rebalance(1))?;
                survive(index.compact())?;
                survive(index.tune(queries.view(), 3, 0.9, 1))?;
                survive(index.train(queries.view(), AddOptions::new().threads(1)))?;
                read(&index, &queries)?;
            }
        }
        _ => {}
    }
    // The same on memory in one piece, which is addressed in another way.
    match AnyIndex::open_in(image.store()) {
        Ok(AnyIndex::Flat(index)) => read(&index, &queries),
        Ok(AnyIndex::Hnsw(index)) => read(&index, &queries),
        Ok(AnyIndex::DiskAnn(index)) => read(&index, &queries),
        Ok(AnyIndex::IvfPq(index)) => read(&index, &queries),
        _ => Ok(()),
    }
}

fn try_graph<S: PageStore, K: Topology>(
    mut index: Graph<S, K>,
    queries: &Array2<f32>,
    writes: Option<usize>,
) -> Result<()> {
    read(&index, queries)?;
    if let Some(step) = writes {
        change(&mut index, step)?;
        survive(index.sweep(1))?;
        survive(index.tune(queries.view(), 3, 0.9, 1))?;
        read(&index, queries)?;
    }
    Ok(())
}

/// Runs damaged images, each made by its seed, and names those that panicked or did not end.
fn hunt(
    name: &str,
    cases: u64,
    writes: bool,
    image: &Image,
    damage: impl Fn(&mut Image, &mut Rng),
) {
    let cases = if std::env::var_os("ANN_SOAK").is_some() { 50 * cases } else { cases };
    let mut failures = Vec::new();
    for seed in 0..cases {
        let mut image = image.clone();
        damage(&mut image, &mut Rng(seed));
        let steps = writes.then_some(seed as usize);
        match catch_unwind(AssertUnwindSafe(|| try_image(&image, steps))) {
            Ok(Ok(())) => {}
            Ok(Err(_)) => failures.push(format!("seed {seed} does not end")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
                failures.push(format!("seed {seed} panics: {}", text.unwrap_or_default()));
            }
        }
    }
    let shown = failures.iter().take(12).map(|line| format!("\n  {line}")).collect::<String>();
    assert!(failures.is_empty(), "{name}: {} of {cases}{shown}", failures.len());
}

/// Random bytes anywhere.
fn scatter(image: &mut Image, rng: &mut Rng) {
    for _ in 0..1 + rng.below(20) {
        let page = rng.below(image.0.len());
        let at = rng.below(PAGE - 64);
        image.0[page][at] = rng.next() as u8;
    }
}

/// Fields of records that get a value that could mean something there.
fn forge(image: &mut Image, rng: &mut Rng) {
    let slots = image.word(0, SLOTS);
    for _ in 0..1 + rng.below(6) {
        let id = rng.below(slots as usize) as u32;
        let (array, field) = match rng.below(8) {
            0 => (VECTORS, 4 * rng.below(DIM)),
            1 | 2 => (LINKS, 4 * rng.below(8)),
            3 => (UPPER, 4 * rng.below(4)),
            _ => (NODES, [KEY, KEY + 4, TWIN, OWNER, UPPER_AT, STATE - 2][rng.below(6)]),
        };
        let id = if array == UPPER { id % image.word(0, UPPER_RECORDS).max(1) } else { id };
        let (page, at) = image.record(array, id);
        let other = rng.below(slots as usize) as u32;
        let values = [
            0,
            1,
            id,
            other,
            other | 1 << 31,
            slots - 1,
            slots,
            u32::MAX,
            u32::MAX - 1,
            1 << 30,
            0x7fff_ffff,
            f32::NAN.to_bits(),
            f32::INFINITY.to_bits(),
        ];
        image.set_word(page, at + field, values[rng.below(values.len())]);
        if array == NODES && rng.below(3) == 0 {
            image.0[page][at + STATE] = rng.below(6) as u8;
        }
        if array == NODES && rng.below(6) == 0 {
            image.0[page][at + LEVEL] = [0, 1, 2, 30, 200, 255][rng.below(6)];
        }
    }
}

/// Fields of the meta page, likewise.
fn forge_meta(image: &mut Image, rng: &mut Rng) {
    for _ in 0..1 + rng.below(2) {
        let at = match rng.below(3) {
            0 => 4 * rng.below(32),
            1 => STRIDES + 4 * rng.below(16),
            _ => 256 + 4 * rng.below(16),
        };
        let was = image.word(0, at);
        let values = [
            0,
            1,
            was.wrapping_add(1),
            was.wrapping_sub(1),
            was ^ (1 << rng.below(32)),
            u32::MAX,
            u32::MAX - 1,
            1 << 30,
            rng.next() as u32,
            rng.below(1000) as u32,
        ];
        image.set_word(0, at, values[rng.below(values.len())]);
    }
}

#[test]
fn searching_random_bytes() {
    hunt("graph", 600, false, &Image::of(graph(Metric::L2sq).store()), scatter);
    hunt("codes", 400, false, &Image::of(coded(2).store()), scatter);
    hunt("compact", 300, false, &Image::of(compact(Some(DType::F32)).store()), scatter);
    hunt("directions", 200, false, &Image::of(directions().store()), scatter);
    hunt("no vectors", 300, false, &Image::of(compact(None).store()), scatter);
    hunt("flat", 300, false, &Image::of(flat().store()), scatter);
}

#[test]
fn searching_forged_records() {
    hunt("graph", 800, false, &Image::of(graph(Metric::Cosine).store()), forge);
}

#[test]
fn searching_under_a_forged_meta_page() {
    hunt("graph", 600, false, &Image::of(graph(Metric::InnerProduct).store()), forge_meta);
    hunt("codes", 400, false, &Image::of(coded(1).store()), forge_meta);
    hunt("compact", 400, false, &Image::of(compact(Some(DType::F32)).store()), forge_meta);
    hunt("no vectors", 400, false, &Image::of(compact(None).store()), forge_meta);
    hunt("flat", 300, false, &Image::of(flat().store()), forge_meta);
}

#[test]
fn changing_random_bytes() {
    hunt("graph", 400, true, &Image::of(graph(Metric::L2sq).store()), scatter);
    hunt("codes", 300, true, &Image::of(coded(4).store()), scatter);
    hunt("compact", 200, true, &Image::of(compact(Some(DType::F16)).store()), scatter);
    hunt("no vectors", 200, true, &Image::of(compact(None).store()), scatter);
    hunt("flat", 200, true, &Image::of(flat().store()), scatter);
}

#[test]
fn changing_forged_records() {
    hunt("graph", 600, true, &Image::of(graph(Metric::InnerProduct).store()), forge);
}

#[test]
fn changing_under_a_forged_meta_page() {
    hunt("graph", 400, true, &Image::of(graph(Metric::Cosine).store()), forge_meta);
    hunt("codes", 300, true, &Image::of(coded(1).store()), forge_meta);
    hunt("directions", 200, true, &Image::of(directions().store()), forge_meta);
    hunt("compact", 200, true, &Image::of(compact(Some(DType::F32)).store()), forge_meta);
    hunt("no vectors", 200, true, &Image::of(compact(None).store()), forge_meta);
    hunt("flat", 200, true, &Image::of(flat().store()), forge_meta);
}

#[test]
fn searching_damaged_lists() {
    let image = Image::of(lists(Metric::L2sq, 4).store());
    hunt("bytes", 300, false, &image, scatter);
    hunt("forged", 500, false, &image, forge_lists);
    hunt("meta", 300, false, &image, forge_meta);
    let image = Image::of(lists(Metric::Cosine, 8).store());
    hunt("forged codes of bytes", 200, false, &image, forge_lists);
    for (metric, code_bits) in [(Metric::Cosine, 4), (Metric::L2sq, 0)] {
        let image = Image::of(lists_of_codes(metric, code_bits).store());
        let what = format!("{code_bits} bits instead of vectors");
        hunt(&what, 150, false, &image, scatter);
        hunt(&what, 150, false, &image, forge_lists);
        hunt(&what, 200, false, &image, forge_meta);
    }
    let image = Image::of(lists_of_rabitq().store());
    hunt("bytes of RaBitQ", 200, false, &image, scatter);
    hunt("forged lists of RaBitQ", 200, false, &image, forge_lists);
    hunt("meta of RaBitQ", 200, false, &image, forge_meta);
}

#[test]
fn changing_damaged_lists() {
    let image = Image::of(lists(Metric::InnerProduct, 4).store());
    hunt("bytes", 200, true, &image, scatter);
    hunt("forged", 400, true, &image, forge_lists);
    hunt("meta", 200, true, &image, forge_meta);
    for (metric, code_bits) in [(Metric::L2sq, 8), (Metric::Cosine, 0)] {
        let image = Image::of(lists_of_codes(metric, code_bits).store());
        let what = format!("{code_bits} bits instead of vectors");
        hunt(&what, 100, true, &image, scatter);
        hunt(&what, 150, true, &image, forge_lists);
        hunt(&what, 150, true, &image, forge_meta);
    }
    let image = Image::of(lists_of_rabitq().store());
    hunt("forged lists of RaBitQ", 200, true, &image, forge_lists);
}

#[test]
fn damages_of_lists_that_verify_has_to_see() {
    let whole = Image::of(lists(Metric::L2sq, 4).store());
    IvfPq::open_in(whole.store()).unwrap().verify().unwrap();
    let stride = whole.word(0, STRIDES + 16 * UPPER) as usize;
    let full = |image: &Image| {
        let used = (0..image.word(0, UPPER_RECORDS)).find(|&block| {
            let (page, at) = image.record(UPPER, block);
            (0..32).all(|lane| image.word(page, at + 64 + 128 + 4 * lane) != u32::MAX)
        });
        used.expect("a full block")
    };
    let block = full(&whole);
    // Codes of three sub-quantizers, addends, slots; the rest chains.
    for (what, from) in [("a code", 3), ("an addend", 64 + 2), ("a slot", 64 + 128)] {
        let mut image = whole.clone();
        let (page, at) = image.record(UPPER, block);
        image.0[page][at + from] ^= 1 << 4;
        let verified = IvfPq::open_in(image.store()).and_then(|index| index.verify());
        assert!(verified.is_err(), "not seen: {what}");
    }
    for (what, from) in [("the next", 32), ("the list", 28)] {
        let mut image = whole.clone();
        let (page, at) = image.record(UPPER, block);
        image.set_word(page, at + stride - from, 1_000_000);
        let verified = IvfPq::open_in(image.store()).and_then(|index| index.verify());
        assert!(verified.is_err(), "not seen: {what}");
    }
    // Without vectors, addends tell of codes, and codes of their own have factors that can be.
    let image = Image::of(lists_of_codes(Metric::L2sq, 0).store());
    IvfPq::open_in(image.store()).unwrap().verify().unwrap();
    for from in [3, 64 + 2] {
        let (mut image, block) = (image.clone(), full(&image));
        let (page, at) = image.record(UPPER, block);
        image.0[page][at + from] ^= 1 << 4;
        assert!(IvfPq::open_in(image.store()).and_then(|index| index.verify()).is_err());
    }
    let mut image = Image::of(lists_of_codes(Metric::L2sq, 8).store());
    IvfPq::open_in(image.store()).unwrap().verify().unwrap();
    let (page, at) = image.record(VECTORS, 3);
    image.set_word(page, at + 4, f32::NAN.to_bits());
    assert!(IvfPq::open_in(image.store()).unwrap().verify().is_err(), "no factor of a code");
    let mut image = whole.clone();
    image.set_word(0, ENTRY, u32::MAX);
    assert!(IvfPq::open_in(image.store()).unwrap().verify().is_err(), "unused blocks are lost");
}

/// Where the `n`-th node in this state is, and its slot.
fn find(image: &Image, state: u8, n: usize) -> (u32, usize, usize) {
    let fits = |id: &u32| {
        let (page, at) = image.record(NODES, *id);
        image.0[page][at + STATE] == state
    };
    let id = (0..image.word(0, SLOTS)).filter(fits).nth(n).unwrap();
    let (page, at) = image.record(NODES, id);
    (id, page, at)
}

/// Single damages that contradict an invariant: the index does not open, or `verify` says what is wrong.
#[test]
fn damages_that_verify_has_to_see() {
    type Damage = fn(&mut Image);
    const FREE_SLOT: u8 = 0;
    const LIVE: u8 = 1;
    const A_TWIN: u8 = 2;
    let damages: &[(&str, Damage)] = &[
        ("more slots", |image| {
            let slots = image.word(0, SLOTS);
            image.set_word(0, SLOTS, slots + 1);
        }),
        ("one live vector less", |image| {
            let live = image.word(0, SLOTS + 4);
            image.set_word(0, SLOTS + 4, live - 1);
        }),
        ("no entry point", |image| image.set_word(0, ENTRY, u32::MAX)),
        ("an entry point that is free", |image| {
            let (id, ..) = find(image, FREE_SLOT, 0);
            image.set_word(0, ENTRY, id);
            image.set_word(0, ENTRY + 4, 0);
        }),
        ("an entry point above its levels", |image| {
            let level = image.word(0, ENTRY + 4);
            image.set_word(0, ENTRY + 4, level + 1);
        }),
        ("an unknown state", |image| {
            let (_, page, at) = find(image, LIVE, 3);
            image.0[page][at + STATE] = 9;
        }),
        ("a live vector made free", |image| {
            let (_, page, at) = find(image, LIVE, 3);
            image.0[page][at + STATE] = FREE_SLOT;
        }),
        ("a key held twice", |image| {
            let (_, page, at) = find(image, LIVE, 3);
            let key = image.word(page, at + KEY);
            let (_, page, at) = find(image, LIVE, 4);
            image.set_word(page, at + KEY, key);
        }),
        ("a key that was never given", |image| {
            let (_, page, at) = find(image, LIVE, 3);
            image.set_word(page, at + KEY + 4, 1);
        }),
        ("a free list that ends early", |image| image.set_word(0, FREE, u32::MAX)),
        ("a free list that names a live vector", |image| {
            let (id, ..) = find(image, LIVE, 3);
            image.set_word(0, FREE, id);
        }),
        ("a free list that goes round", |image| {
            let head = image.word(0, FREE);
            let (page, at) = image.record(NODES, head);
            let second = image.word(page, at + TWIN);
            let (page, at) = image.record(NODES, second);
            image.set_word(page, at + TWIN, head);
        }),
        ("a twin off its chain", |image| {
            let (_, page, at) = find(image, A_TWIN, 0);
            let owner = image.word(page, at + OWNER);
            let (page, at) = image.record(NODES, owner);
            image.set_word(page, at + TWIN, u32::MAX);
        }),
        ("a chain that goes round", |image| {
            let (id, page, at) = find(image, A_TWIN, 0);
            image.set_word(page, at + TWIN, id);
        }),
        ("a twin with another's owner", |image| {
            let (_, page, at) = find(image, A_TWIN, 0);
            let (id, ..) = find(image, LIVE, 40);
            image.set_word(page, at + OWNER, id);
        }),
        ("a level without links", |image| {
            let (_, page, at) = find(image, LIVE, 3);
            image.0[page][at + LEVEL] = 30;
            image.set_word(page, at + UPPER_AT, 1 << 20);
        }),
        ("a link to nowhere", |image| {
            let (id, ..) = find(image, LIVE, 3);
            let (page, at) = image.record(LINKS, id);
            image.set_word(page, at, 1 << 20);
        }),
        ("a link to itself", |image| {
            let (id, ..) = find(image, LIVE, 3);
            let (page, at) = image.record(LINKS, id);
            image.set_word(page, at, id);
        }),
        ("a link twice", |image| {
            let (id, ..) = find(image, LIVE, 3);
            let (page, at) = image.record(LINKS, id);
            let link = image.word(page, at);
            image.set_word(page, at + 4, link);
        }),
        ("a link to a free slot", |image| {
            let (id, ..) = find(image, LIVE, 3);
            let (free, ..) = find(image, FREE_SLOT, 0);
            let (page, at) = image.record(LINKS, id);
            image.set_word(page, at, free);
        }),
        ("a link marked at one end", |image| {
            let (id, ..) = find(image, LIVE, 3);
            let (page, at) = image.record(LINKS, id);
            let unmarked = (0..8).find(|i| image.word(page, at + 4 * i) >> 31 == 0).unwrap();
            let link = image.word(page, at + 4 * unmarked);
            image.set_word(page, at + 4 * unmarked, link | 1 << 31);
        }),
        ("a node without links", |image| {
            let (id, ..) = find(image, LIVE, 3);
            let (page, at) = image.record(LINKS, id);
            image.set_word(page, at, u32::MAX);
        }),
        ("more pages than there are", |image| {
            let pages = image.word(0, PAGES);
            image.set_word(0, PAGES, pages + 1000);
        }),
        ("a candidate pool of no size", |image| image.set_word(0, EF_CONSTRUCTION, 0)),
        ("a vector that is not a number", |image| {
            let (id, ..) = find(image, LIVE, 3);
            let (page, at) = image.record(VECTORS, id);
            image.set_word(page, at, f32::NAN.to_bits());
        }),
        ("a wrong norm behind a vector", |image| {
            let (id, ..) = find(image, LIVE, 3);
            let (page, at) = image.record(VECTORS, id);
            image.set_word(page, at + 4 * DIM, 1e9f32.to_bits());
        }),
    ];
    let whole = Image::of(graph(Metric::Cosine).store());
    Hnsw::open_in(whole.store()).unwrap().verify().unwrap();
    let missed: Vec<&str> = damages
        .iter()
        .filter(|(_, damage)| {
            let mut image = whole.clone();
            damage(&mut image);
            Hnsw::open_in(image.store()).and_then(|index| index.verify()).is_ok()
        })
        .map(|&(name, _)| name)
        .collect();
    assert!(missed.is_empty(), "not seen: {missed:?}");
}

/// A code belongs to its link and its node.
#[test]
fn codes_that_verify_has_to_see() {
    let whole = Image::of(coded(2).store());
    DiskAnn::open_in(whole.store()).unwrap().verify().unwrap();
    let seen = |what: &str, from: usize, array: usize, id: u32| {
        let mut image = whole.clone();
        let (page, at) = image.record(array, id);
        image.0[page][at + from] ^= 1 << 4;
        let verified = DiskAnn::open_in(image.store()).and_then(|index| index.verify());
        assert!(verified.is_err(), "not seen: {what}");
    };
    let links = 4 * 32;
    for (what, from) in
        [("a summand", links), ("a factor", links + 2 * 32), ("a plane", links + 4 * 32 + 3)]
    {
        seen(what, from, WHOLE, find(&whole, 1, 9).0);
        seen(what, from, UPPER_WHOLE, 0);
    }
    seen("an entry point", 2, UPPER_WHOLE, 0);
}

/// A direction in bytes has a largest coordinate of 127, and is there under cosine alone.
#[test]
fn directions_that_verify_has_to_see() {
    let whole = Image::of(directions().store());
    let (page, at) = whole.record(WHOLE, find(&whole, 1, 9).0);
    let at = at + whole.word(0, STRIDES + 16 * VECTORS + 4) as usize;
    let with = |vector: [u8; DIM], inverse: f32| {
        let mut image = whole.clone();
        image.0[page][at..at + DIM].copy_from_slice(&vector);
        image.0[page][at + 8..at + 12].copy_from_slice(&inverse.to_le_bytes());
        let verified = DiskAnn::open_in(image.store()).unwrap().verify();
        verified.unwrap_err().to_string()
    };
    assert!(with([1, 0, 0, 0, 0, 0], 1.0).contains("largest coordinate is 1, not 127"));
    assert!(with([128, 0, 0, 0, 0, 0], 1.0 / 128.0).contains("is 128, not 127"));
    assert!(with([0; DIM], f32::INFINITY).contains("is 0, not 127"));
    assert!(with([127, 0, 0, 0, 0, 0], 1.0).contains("is not the inverse of its norm"));
    for (at, value) in [(13, 3), (13, 4), (14, 1), (14, 2), (89, 1), (89, 4), (89, 5)] {
        let mut image = whole.clone();
        image.0[0][at] = value;
        let opened = DiskAnn::open_in(image.store()).map(|_| ());
        assert!(matches!(opened, Err(Error::Corrupt { page: 0, .. })), "{value} at {at}");
    }
}

/// A code by node belongs to its vector; a centre is a vector.
#[test]
fn codes_by_node_that_verify_has_to_see() {
    let whole = Image::of(compact(Some(DType::F32)).store());
    DiskAnn::open_in(whole.store()).unwrap().verify().unwrap();
    let seen = |what: &str, array: usize, id: u32, edit: &dyn Fn(&mut [u8])| {
        let mut image = whole.clone();
        let (page, at) = image.record(array, id);
        edit(&mut image.0[page][at..]);
        let verified = DiskAnn::open_in(image.store()).and_then(|index| index.verify());
        assert!(verified.is_err(), "not seen: {what}");
    };
    let live = find(&whole, 1, 9).0;
    for (what, from) in [("a summand", 1), ("a factor", 5), ("an error", 9), ("a length", 13)] {
        seen(what, CODES, live, &|record| record[from] ^= 1 << 4);
    }
    seen("a code", CODES, live, &|record| record[18] ^= 1);
    seen("a centre", CENTRE, 0, &|record| record[3] ^= 1);
    seen("a centre that is no number", CENTRE, 0, &|record| record[..4].fill(0xff));
    seen("an entry point", UPPER, 0, &|list| list[..4].fill(0xfe));
}

/// Single damages on which changes could run on without end, or count past the end of a type.
#[test]
fn damages_that_changes_have_to_survive() {
    let each_node = |image: &mut Image, state: u8, edit: fn(&mut Image, usize, usize)| {
        for id in 0..image.word(0, SLOTS) {
            let (page, at) = image.record(NODES, id);
            if image.0[page][at + STATE] == state {
                edit(image, page, at);
            }
        }
    };
    let dead_twins_and_a_ring = |image: &mut Image| {
        let (id, page, at) = find(image, 2, 0);
        let owner = image.word(page, at + OWNER);
        image.set_word(page, at + TWIN, id);
        let (_, page, at) = find(image, 4, 0);
        image.set_word(page, at + OWNER, owner);
    };
    let whole = Image::of(graph(Metric::L2sq).store());
    let survives = |name: &str, damage: &dyn Fn(&mut Image)| {
        let mut image = whole.clone();
        damage(&mut image);
        for first in 0..3 {
            let end = try_image(&image, Some(first));
            assert!(end.is_ok(), "{name}: changing it does not end");
        }
    };
    survives("something behind the end of each link list", &|image| {
        for id in 0..image.word(0, SLOTS) {
            let (page, at) = image.record(LINKS, id);
            image.set_word(page, at + 4 * 6, u32::MAX);
            image.set_word(page, at + 4 * 7, 5);
        }
    });
    survives("a chain that goes round, and a dead twin of it", &dead_twins_and_a_ring);
    survives("free slots with levels that do not exist", &|image| {
        each_node(image, 0, |image, page, at| {
            image.0[page][at + LEVEL] = 3;
            image.set_word(page, at + UPPER_AT, u32::MAX - 1);
        });
    });
    survives("no candidates while building", &|image| image.set_word(0, EF_CONSTRUCTION, 0));
    for (name, at) in [("keys", NEXT_KEY), ("changes", CHANGES)] {
        survives(&format!("as many {name} as can be counted"), &|image| {
            image.set_word(0, at, u32::MAX);
            image.set_word(0, at + 4, u32::MAX);
        });
    }
}

/// A load has as many levels as the highest of its slots, which may have been used before.
#[test]
fn loading_into_slots_of_levels_that_cannot_be() {
    let mut index = graph(Metric::L2sq);
    index.remove(&(0..600).collect::<Vec<u64>>()).unwrap();
    index.sweep(1).unwrap();
    assert_eq!((index.len(), index.stats().unwrap().tombstones), (0, 0));
    let mut image = Image::of(index.store());
    for id in 0..image.word(0, SLOTS) {
        let (page, at) = image.record(NODES, id);
        image.0[page][at + LEVEL] = u8::MAX;
        image.set_word(page, at + UPPER_AT, 0);
    }
    let mut index = Hnsw::open_in(image.store()).unwrap();
    let error = index.add(rows(300, 2).view(), None, AddOptions::new().threads(1)).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn versions_and_kinds() {
    let whole = Image::of(graph(Metric::L2sq).store());
    let open = |at: usize, value: u32| {
        let mut image = whole.clone();
        image.set_word(0, at, value);
        AnyIndex::open_in(image.store()).map(|_| ()).unwrap_err()
    };
    assert!(matches!(open(VERSION, 2), Error::Version { got: 2, newest: 1 }));
    assert!(matches!(open(VERSION, u32::MAX), Error::Version { .. }));
    assert!(matches!(open(VERSION, 0), Error::Corrupt { page: 0, .. }));
    assert!(matches!(open(0, 0), Error::NotAnIndex { .. }));
    assert!(matches!(open(12, 0x0001_0109), Error::Corrupt { page: 0, .. }));
    assert!(matches!(Flat::open_in(whole.store()), Err(Error::Kind { .. })));
}

#[test]
fn files_that_are_no_index() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    let index = graph(Metric::L2sq);
    index.save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let reading = ann_core::open(&path).map(|_| ());
        assert_eq!(reading.is_ok(), ann_core::open_writable(&path).is_ok());
        reading
    };
    open(&good).unwrap();
    assert!(matches!(open(&[]), Err(Error::NotAnIndex { .. })));
    assert!(matches!(open(b"not an index at all"), Err(Error::NotAnIndex { .. })));
    assert!(matches!(open(&[0; 20_000]), Err(Error::NotAnIndex { .. })));
    assert!(matches!(open(&[0xff; 20_000]), Err(Error::NotAnIndex { .. })));
    for len in (1..good.len()).step_by(937).chain([63, 64, PAGE - 1, PAGE, good.len() - 1]) {
        let error = open(&good[..len]).unwrap_err();
        assert!(
            matches!(error, Error::NotAnIndex { .. } | Error::Corrupt { .. }),
            "cut at {len}: {error:?}"
        );
    }
    // Page 0 is checked against its checksum; its first bytes say what the file is.
    for at in 0..PAGE {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        let error = open(&bytes).unwrap_err();
        assert!(
            matches!(
                error,
                Error::NotAnIndex { .. } | Error::Corrupt { .. } | Error::Version { .. }
            ),
            "byte {at}: {error:?}"
        );
    }
    assert!(matches!(
        ann_core::open(folder.path()),
        Err(Error::Io { .. } | Error::NotAnIndex { .. })
    ));
    assert!(matches!(
        ann_core::open_writable(folder.path()),
        Err(Error::Io { .. } | Error::NotAnIndex { .. })
    ));
    assert!(matches!(ann_core::open(&folder.path().join("none")), Err(Error::Io { .. })));
    assert!(matches!(index.save(folder.path()), Err(Error::Io { .. })));
    assert!(matches!(index.save(&folder.path().join("none/index")), Err(Error::Io { .. })));
}

/// Random bytes in a mapped file, page headers included.
#[test]
fn searching_damaged_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    graph(Metric::Cosine).save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let queries = rows(3, 5);
    for seed in 0..200 {
        let rng = &mut Rng(seed);
        let mut bytes = good.clone();
        for _ in 0..1 + rng.below(30) {
            let at = PAGE + rng.below(bytes.len() - PAGE);
            bytes[at] = rng.next() as u8;
        }
        std::fs::write(&path, &bytes).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| match ann_core::open(&path) {
            Ok(AnyIndex::Hnsw(index)) => read(&index, &queries),
            _ => Ok(()),
        }));
        assert!(result.is_ok(), "seed {seed} panics");
    }
}
