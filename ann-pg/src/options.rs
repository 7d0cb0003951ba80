//! Storage parameters of the access methods, and settings.

use pgrx::pg_sys;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::cell::Cell;
use std::ffi::CStr;
use std::mem::offset_of;

use ann_core::{DType, Error, IvfCode};

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
    /// Bits a coordinate of the codes that searches find their way by; -1 for none, or what suits the dimension where
    /// vectors are left to the heap.
    pub code_bits: i32,
    /// Where vectors are kept, and as what: a number of [`vectors`].
    pub vectors: i32,
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
    /// Where vectors are kept, and as what: a number of [`vectors`].
    pub vectors: i32,
}

/// What `vectors` can be: elements in the index of this type, or nothing there. -1 is the column's own type.
const VECTORS: [(&CStr, Option<DType>); 3] =
    [(c"f32", Some(DType::F32)), (c"f16", Some(DType::F16)), (c"heap", None)];

/// What an index on a column of type `own` keeps of vectors.
pub fn vectors(option: i32, own: DType) -> Option<DType> {
    let known = usize::try_from(option).ok().and_then(|at| VECTORS.get(at));
    known.map_or(Some(own), |(_, dtype)| *dtype)
}

/// Storage parameters of an `ann_ivfpq` index, as Postgres keeps them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IvfPqOptions {
    length: i32,
    /// Lists; 0 for what suits the rows.
    pub lists: i32,
    /// Pieces into which a vector is cut for its code; 0 for what suits the dimension.
    pub subvectors: i32,
    /// Bits of a piece's code.
    pub bits: i32,
    /// Rows that training looks at, at most; 0 for what suits the lists.
    pub sample: i32,
    /// Rows at which an index without lists trains itself.
    pub train_at: i32,
    /// Where vectors are kept, and as what: a number of [`vectors`].
    pub vectors: i32,
    /// Bits a coordinate of the codes that stand in for vectors which are left to the heap; -1 for what suits the
    /// dimension.
    pub code_bits: i32,
    /// What codes are: a number of [`CODES`].
    pub code: i32,
    /// Whether vectors are rotated before they are cut into pieces.
    pub opq: bool,
}

impl IvfPqOptions {
    /// What codes are.
    pub fn code(&self) -> IvfCode {
        let known = usize::try_from(self.code).ok().and_then(|at| CODES.get(at));
        known.map_or(IvfCode::Pq, |(_, code)| *code)
    }
}

/// What `code` can be.
const CODES: [(&CStr, IvfCode); 4] = [
    (c"pq", IvfCode::Pq),
    (c"rabitq1", IvfCode::RaBitQ1),
    (c"rabitq2", IvfCode::RaBitQ2),
    (c"rabitq4", IvfCode::RaBitQ4),
];

impl Default for HnswOptions {
    fn default() -> HnswOptions {
        HnswOptions { length: 0, m: 16, ef_construction: 64, code_bits: -1, vectors: -1 }
    }
}

impl Default for DiskAnnOptions {
    fn default() -> DiskAnnOptions {
        let (degree, build_list_size) = (32, 128);
        DiskAnnOptions { length: 0, degree, build_list_size, code_bits: -1, vectors: -1 }
    }
}

impl Default for IvfPqOptions {
    fn default() -> IvfPqOptions {
        let (lists, subvectors, sample) = (0, 0, 0);
        let (bits, train_at, vectors, code_bits) = (4, 1024, -1, -1);
        let (code, opq) = (0, false);
        IvfPqOptions {
            length: 0,
            lists,
            subvectors,
            bits,
            sample,
            train_at,
            vectors,
            code_bits,
            code,
            opq,
        }
    }
}

/// Storage parameters of an access method.
trait Options {
    /// Refuses values between those that are allowed: Postgres knows only the least and the greatest.
    fn check(&self);
}

impl Options for HnswOptions {
    fn check(&self) {
        check_codes(self.code_bits, self.vectors);
    }
}

impl Options for DiskAnnOptions {
    fn check(&self) {
        if self.degree % 32 != 0 {
            refuse("degree", self.degree, "a multiple of 32 from 32 to 256");
        }
        check_codes(self.code_bits, self.vectors);
    }
}

impl Options for IvfPqOptions {
    fn check(&self) {
        if !matches!(self.bits, 4 | 8) {
            refuse("bits", self.bits, "4 or 8");
        }
        check_codes(self.code_bits, self.vectors);
        if self.code_bits != -1 && vectors(self.vectors, DType::F32).is_some() {
            refuse("code_bits", self.code_bits, "-1 of an ann_ivfpq index without vectors = heap");
        }
        if self.code() != IvfCode::Pq {
            let allowed = "left out, unless code = pq";
            if self.bits != 4 {
                refuse("bits", self.bits, allowed);
            }
            if self.subvectors != 0 {
                refuse("subvectors", self.subvectors, allowed);
            }
            if self.opq {
                refuse("opq", self.opq, allowed);
            }
        }
    }
}

fn check_codes(bits: i32, kept: i32) {
    if !matches!(bits, -1 | 0 | 1 | 2 | 4 | 8) {
        refuse("code_bits", bits, "-1, 0, 1, 2, 4 or 8");
    }
    if bits == 0 && vectors(kept, DType::F32).is_none() {
        refuse(
            "code_bits",
            bits,
            "1, 2, 4 or 8 with vectors = heap, or -1 for what suits the dimension",
        );
    }
}

fn refuse(name: &'static str, value: impl ToString, allowed: &str) -> ! {
    let (value, allowed) = (value.to_string(), allowed.to_owned());
    report(&Error::Parameter { name, value, allowed })
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
/// `ann.ivfpq_probes`.
pub static IVFPQ_PROBES: GucSetting<i32> = GucSetting::<i32>::new(0);
/// `ann.rerank`.
pub static RERANK: GucSetting<i32> = GucSetting::<i32>::new(0);
/// `ann.max_scan_tuples`.
pub static MAX_SCAN_TUPLES: GucSetting<i32> = GucSetting::<i32>::new(20_000);
/// `ann.iterative_scan`.
pub static ITERATIVE_SCAN: GucSetting<IterativeScan> =
    GucSetting::<IterativeScan>::new(IterativeScan::Strict);

thread_local! {
    /// The kinds of relation options that Postgres has given to the access methods.
    static KINDS: Cell<[pg_sys::relopt_kind::Type; 3]> = const { Cell::new([0; 3]) };
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
        c"ann.ivfpq_probes",
        c"Lists that a search of an ann_ivfpq index reads at most before it returns rows.",
        c"More is slower and finds more; 0 is a sixteenth of the lists, and 8 at least.",
        &IVFPQ_PROBES,
        0,
        100_000,
    );
    int(
        c"ann.rerank",
        c"Rows found by codes that are measured at a time where an index leaves vectors to the heap, or is of ann_ivfpq.",
        c"The nearest by their codes, to be put in order by their distances; 0 for what suits the index.",
        &RERANK,
        0,
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
        let kinds = [(); 3].map(|()| pg_sys::add_reloption_kind());
        KINDS.set(kinds);
        let [hnsw, diskann, ivfpq] = kinds;
        add(hnsw, c"m", c"Links that a node can have on each level", (16, 2, 100));
        add(hnsw, c"ef_construction", c"Candidates for a vector's links", (64, 4, 10_000));
        let text = c"Bits a coordinate of codes to search by: 0, 1, 2, 4 or 8; -1 for 0, or what suits without vectors";
        add(hnsw, c"code_bits", text, (-1, -1, 8));
        add(diskann, c"degree", c"Links that a node can have: a multiple of 32", (32, 32, 256));
        let text = c"Candidates for a vector's links";
        add(diskann, c"build_list_size", text, (128, 4, 10_000));
        let text =
            c"Bits a coordinate of the codes beside links: 0, 1, 2, 4 or 8; -1 for what suits";
        add(diskann, c"code_bits", text, (-1, -1, 8));
        add(ivfpq, c"lists", c"Lists; 0 for what suits the rows", (0, 0, 1 << 24));
        let text =
            c"Pieces into which a vector is cut for its code; 0 for what suits the dimension";
        add(ivfpq, c"subvectors", text, (0, 0, 16_000));
        add(ivfpq, c"bits", c"Bits of a piece's code: 4 or 8", (4, 4, 8));
        let text = c"Rows that training looks at, at most; 0 for what suits the lists";
        add(ivfpq, c"sample", text, (0, 0, 1 << 30));
        let text = c"Rows at which an index that was made on fewer trains itself";
        add(ivfpq, c"train_at", text, (1024, 1, 1 << 30));
        let text = c"Bits a coordinate of codes by which rows are chosen where vectors = heap: 1, 2, 4 or 8; -1 for what suits";
        add(ivfpq, c"code_bits", text, (-1, -1, 8));
        let text = c"What codes are: pq, or RaBitQ of so many bits a coordinate";
        let allowed = c"Valid values are \"pq\", \"rabitq1\", \"rabitq2\" and \"rabitq4\".";
        add_enum(ivfpq, c"code", (text, allowed), 0, CODES.map(|(name, _)| name));
        let text =
            c"Whether vectors are rotated before they are cut into pieces, as is learnt for that";
        let lock = pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE;
        pg_sys::add_bool_reloption(ivfpq, c"opq".as_ptr(), text.as_ptr(), false, lock);
        let text = c"What the index keeps of vectors: f32, f16, or heap for codes alone";
        let allowed = c"Valid values are \"f32\", \"f16\" and \"heap\".";
        for kind in kinds {
            add_enum(kind, c"vectors", (text, allowed), -1, VECTORS.map(|(name, _)| name));
        }
    }
}

/// # Safety
/// The library is being loaded.
unsafe fn add(
    kind: pg_sys::relopt_kind::Type,
    name: &'static CStr,
    text: &'static CStr,
    (default, min, max): (i32, i32, i32),
) {
    let lock = pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: the caller's; the strings live for ever.
    unsafe {
        let (name, text) = (name.as_ptr(), text.as_ptr());
        pg_sys::add_int_reloption(kind, name, text, default, min, max, lock);
    }
}

/// # Safety
/// The library is being loaded.
unsafe fn add_enum<const N: usize>(
    kind: pg_sys::relopt_kind::Type,
    name: &'static CStr,
    (text, allowed): (&'static CStr, &'static CStr),
    default: i32,
    names: [&'static CStr; N],
) {
    let lock = pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE;
    let named = names.iter().map(|name| name.as_ptr());
    let members = named.chain([std::ptr::null()]).zip(0..).map(|(name, number)| {
        pg_sys::relopt_enum_elt_def { string_val: name.cast_mut(), symbol_val: number }
    });
    let members: Vec<_> = members.collect();
    // SAFETY: the caller's; names and members live for ever.
    unsafe {
        pg_sys::add_enum_reloption(
            kind,
            name.as_ptr(),
            text.as_ptr(),
            members.leak().as_mut_ptr(),
            default,
            allowed.as_ptr(),
            lock,
        );
    }
}

fn element(name: &'static CStr, offset: usize) -> pg_sys::relopt_parse_elt {
    let opttype = pg_sys::relopt_type::RELOPT_TYPE_INT;
    let offset = offset as i32;
    pg_sys::relopt_parse_elt { optname: name.as_ptr(), opttype, offset, ..Default::default() }
}

/// [`element`] of one name out of several.
fn named_element(name: &'static CStr, offset: usize) -> pg_sys::relopt_parse_elt {
    let opttype = pg_sys::relopt_type::RELOPT_TYPE_ENUM;
    pg_sys::relopt_parse_elt { opttype, ..element(name, offset) }
}

/// [`element`] of yes or no.
fn flag_element(name: &'static CStr, offset: usize) -> pg_sys::relopt_parse_elt {
    let opttype = pg_sys::relopt_type::RELOPT_TYPE_BOOL;
    pg_sys::relopt_parse_elt { opttype, ..element(name, offset) }
}

/// `amoptions` of ann_hnsw.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn hnsw(options: pg_sys::Datum, validate: bool) -> *mut pg_sys::bytea {
    let table = [
        element(c"m", offset_of!(HnswOptions, m)),
        element(c"ef_construction", offset_of!(HnswOptions, ef_construction)),
        element(c"code_bits", offset_of!(HnswOptions, code_bits)),
        named_element(c"vectors", offset_of!(HnswOptions, vectors)),
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
        named_element(c"vectors", offset_of!(DiskAnnOptions, vectors)),
    ];
    // SAFETY: the table describes DiskAnnOptions.
    unsafe { parse::<DiskAnnOptions>(options, validate, KINDS.get()[1], &table) }
}

/// `amoptions` of ann_ivfpq.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ivfpq(
    options: pg_sys::Datum,
    validate: bool,
) -> *mut pg_sys::bytea {
    let table = [
        element(c"lists", offset_of!(IvfPqOptions, lists)),
        element(c"subvectors", offset_of!(IvfPqOptions, subvectors)),
        element(c"bits", offset_of!(IvfPqOptions, bits)),
        element(c"sample", offset_of!(IvfPqOptions, sample)),
        element(c"train_at", offset_of!(IvfPqOptions, train_at)),
        named_element(c"vectors", offset_of!(IvfPqOptions, vectors)),
        element(c"code_bits", offset_of!(IvfPqOptions, code_bits)),
        named_element(c"code", offset_of!(IvfPqOptions, code)),
        flag_element(c"opq", offset_of!(IvfPqOptions, opq)),
    ];
    // SAFETY: the table describes IvfPqOptions.
    unsafe { parse::<IvfPqOptions>(options, validate, KINDS.get()[2], &table) }
}

/// # Safety
/// `table` describes `T`, which begins with a varlena's length.
unsafe fn parse<T: Options>(
    options: pg_sys::Datum,
    validate: bool,
    kind: pg_sys::relopt_kind::Type,
    table: &[pg_sys::relopt_parse_elt],
) -> *mut pg_sys::bytea {
    // SAFETY: the caller's, and Postgres': `options` is what it has from the catalogue or from a command.
    unsafe {
        let (bytes, count) = (size_of::<T>(), table.len() as i32);
        let parsed =
            pg_sys::build_reloptions(options, validate, kind, bytes, table.as_ptr(), count);
        if validate && let Some(options) = parsed.cast::<T>().as_ref() {
            options.check();
        }
        parsed.cast()
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
