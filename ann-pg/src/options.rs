//! Storage parameters of the access methods, and settings.

use pgrx::pg_sys;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::cell::Cell;
use std::mem::offset_of;

use ann_core::Error;

use crate::failure::report;

/// Storage parameters of an `ann_hnsw` index, as Postgres keeps them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HnswOptions {
    length: i32,
    /// Links that a node can have on each level; twice as many at the bottom.
    pub m: i32,
    /// Candidates among which a vector's links are chosen.
    pub ef_construction: i32,
}

/// Storage parameters of an `ann_diskann` index, as Postgres keeps them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DiskAnnOptions {
    length: i32,
    /// Links that a node can have.
    pub degree: i32,
    /// Candidates among which a vector's links are chosen.
    pub build_list_size: i32,
    /// Bits a coordinate of the codes beside links; -1 for what suits the dimension.
    pub code_bits: i32,
}

impl Default for HnswOptions {
    fn default() -> HnswOptions {
        HnswOptions { length: 0, m: 16, ef_construction: 64 }
    }
}

impl Default for DiskAnnOptions {
    fn default() -> DiskAnnOptions {
        DiskAnnOptions { length: 0, degree: 32, build_list_size: 128, code_bits: -1 }
    }
}

impl DiskAnnOptions {
    /// Refuses values between those that are allowed: Postgres knows only the least and the greatest.
    fn check(&self) {
        let refuse = |name, value: i32, allowed: &str| {
            let (value, allowed) = (value.to_string(), allowed.to_owned());
            report(&Error::Parameter { name, value, allowed })
        };
        if self.degree % 32 != 0 {
            refuse("degree", self.degree, "a multiple of 32 from 32 to 256");
        }
        if !matches!(self.code_bits, -1 | 0 | 1 | 2 | 4 | 8) {
            refuse("code_bits", self.code_bits, "-1, 0, 1, 2, 4 or 8");
        }
    }
}

/// What a scan does when the rows that one search has found are not enough.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum IterativeScan {
    /// Nothing.
    Off,
    /// It goes on; rows may come a little out of order.
    Relaxed,
    /// It goes on, and leaves out rows that would come out of order.
    Strict,
}

/// `ann.hnsw_ef_search`.
pub static HNSW_EF_SEARCH: GucSetting<i32> = GucSetting::<i32>::new(64);
/// `ann.diskann_list_size`.
pub static DISKANN_LIST_SIZE: GucSetting<i32> = GucSetting::<i32>::new(64);
/// `ann.max_scan_tuples`.
pub static MAX_SCAN_TUPLES: GucSetting<i32> = GucSetting::<i32>::new(20_000);
/// `ann.iterative_scan`.
pub static ITERATIVE_SCAN: GucSetting<IterativeScan> =
    GucSetting::<IterativeScan>::new(IterativeScan::Strict);

thread_local! {
    /// The kinds of relation options that Postgres has given to the two access methods.
    static KINDS: Cell<[pg_sys::relopt_kind::Type; 2]> = const { Cell::new([0; 2]) };
}

/// Makes settings and storage parameters known to Postgres.
pub fn register() {
    let int = |name, what, long, setting, min, max| {
        let flags = GucFlags::default();
        GucRegistry::define_int_guc(
            name,
            what,
            long,
            setting,
            min,
            max,
            GucContext::Userset,
            flags,
        );
    };
    int(
        c"ann.hnsw_ef_search",
        c"Candidates that a search of an ann_hnsw index keeps.",
        c"More is slower and finds more.",
        &HNSW_EF_SEARCH,
        1,
        100_000,
    );
    int(
        c"ann.diskann_list_size",
        c"Candidates that a search of an ann_diskann index keeps.",
        c"More is slower and finds more.",
        &DISKANN_LIST_SIZE,
        1,
        100_000,
    );
    int(
        c"ann.max_scan_tuples",
        c"Rows after which an index scan that goes on and on ends.",
        c"Rows that the index returns count, whether or not they pass the query's conditions.",
        &MAX_SCAN_TUPLES,
        1,
        i32::MAX,
    );
    GucRegistry::define_enum_guc(
        c"ann.iterative_scan",
        c"What a scan does when the rows that one search has found are not enough.",
        c"off ends it; relaxed goes on, with rows a little out of order; strict leaves those out.",
        &ITERATIVE_SCAN,
        GucContext::Userset,
        GucFlags::default(),
    );
    // SAFETY: the library is being loaded, by the main thread, and the names live for ever.
    unsafe {
        pg_sys::MarkGUCPrefixReserved(c"ann".as_ptr());
        let kinds = [pg_sys::add_reloption_kind(), pg_sys::add_reloption_kind()];
        KINDS.set(kinds);
        let [hnsw, diskann] = kinds;
        add(hnsw, c"m", c"Links that a node can have on each level", (16, 2, 100));
        add(hnsw, c"ef_construction", c"Candidates for a vector's links", (64, 4, 10_000));
        add(diskann, c"degree", c"Links that a node can have: a multiple of 32", (32, 32, 256));
        let text = c"Candidates for a vector's links";
        add(diskann, c"build_list_size", text, (128, 4, 10_000));
        let text =
            c"Bits a coordinate of the codes beside links: 0, 1, 2, 4 or 8; -1 for what suits";
        add(diskann, c"code_bits", text, (-1, -1, 8));
    }
}

/// # Safety
/// The library is being loaded.
unsafe fn add(
    kind: pg_sys::relopt_kind::Type,
    name: &'static std::ffi::CStr,
    text: &'static std::ffi::CStr,
    (default, min, max): (i32, i32, i32),
) {
    let lock = pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: the caller's; the strings live for ever.
    unsafe {
        let (name, text) = (name.as_ptr(), text.as_ptr());
        pg_sys::add_int_reloption(kind, name, text, default, min, max, lock);
    }
}

fn element(name: &'static std::ffi::CStr, offset: usize) -> pg_sys::relopt_parse_elt {
    pg_sys::relopt_parse_elt {
        optname: name.as_ptr(),
        opttype: pg_sys::relopt_type::RELOPT_TYPE_INT,
        offset: offset as i32,
        ..Default::default()
    }
}

/// `amoptions` of ann_hnsw.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn hnsw(options: pg_sys::Datum, validate: bool) -> *mut pg_sys::bytea {
    let table = [
        element(c"m", offset_of!(HnswOptions, m)),
        element(c"ef_construction", offset_of!(HnswOptions, ef_construction)),
    ];
    // SAFETY: the table describes HnswOptions.
    unsafe { parse::<HnswOptions>(options, validate, KINDS.get()[0], &table) }
}

/// `amoptions` of ann_diskann.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn diskann(
    options: pg_sys::Datum,
    validate: bool,
) -> *mut pg_sys::bytea {
    let table = [
        element(c"degree", offset_of!(DiskAnnOptions, degree)),
        element(c"build_list_size", offset_of!(DiskAnnOptions, build_list_size)),
        element(c"code_bits", offset_of!(DiskAnnOptions, code_bits)),
    ];
    // SAFETY: the table describes DiskAnnOptions.
    let parsed = unsafe { parse::<DiskAnnOptions>(options, validate, KINDS.get()[1], &table) };
    // SAFETY: null, or what the table describes.
    if validate && let Some(options) = unsafe { parsed.cast::<DiskAnnOptions>().as_ref() } {
        options.check();
    }
    parsed
}

/// # Safety
/// `table` describes `T`, which begins with a varlena's length.
unsafe fn parse<T>(
    options: pg_sys::Datum,
    validate: bool,
    kind: pg_sys::relopt_kind::Type,
    table: &[pg_sys::relopt_parse_elt],
) -> *mut pg_sys::bytea {
    // SAFETY: the caller's, and Postgres': `options` is what it has from the catalogue or from a command.
    unsafe {
        let (bytes, count) = (size_of::<T>(), table.len() as i32);
        pg_sys::build_reloptions(options, validate, kind, bytes, table.as_ptr(), count).cast()
    }
}

/// The storage parameters of an index, or the defaults.
///
/// # Safety
/// `index` is an open index whose options are a `T`.
pub unsafe fn of<T: Copy + Default>(index: pg_sys::Relation) -> T {
    // SAFETY: the caller's.
    unsafe {
        let options = (*index).rd_options.cast::<T>();
        if options.is_null() { T::default() } else { *options }
    }
}
