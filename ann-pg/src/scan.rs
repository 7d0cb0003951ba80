//! Index scans: ORDER BY a distance, for as many rows as are asked for.

use std::collections::{HashSet, VecDeque};

use ann_core::{Cursor, DType, Error, Hit, Metric, Result, SharedIndex};
use half::f16;
use pgrx::PgSqlErrorCode as Code;
use pgrx::{IntoDatum, PgMemoryContexts, PgRelation, pg_sys};

use crate::build::tid_of;
use crate::column::{Column, elements, has_direction};
use crate::failure::{OrReport, refuse};
use crate::handle::{self, Handle};
use crate::heap::Heap;
use crate::method::Method;
use crate::options::{ITERATIVE_SCAN, IterativeScan, MAX_SCAN_TUPLES, RERANK};

/// What is searched for.
enum Query {
    Floats(Vec<f32>),
    Halves(Vec<f16>),
}

/// A row that has been found.
struct Found {
    key: u64,
    /// As the operator has it.
    distance: f64,
}

/// A scan under way.
struct Scan<M: Method> {
    graph: Option<Box<Handle<M>>>,
    /// Where the index leaves vectors to the heap.
    heap: Option<Heap>,
    column: Column,
    query: Option<Query>,
    /// The query is NULL, or has no direction: all distances are NULL or NaN, and all orders are right.
    unordered: bool,
    cursor: Option<Cursor>,
    /// Hits, nearest by their codes, whose rows have not been fetched yet.
    waiting: VecDeque<Hit>,
    ready: VecDeque<Found>,
    /// Keys that have been returned, for when the search has to begin anew.
    returned: HashSet<u64>,
    last: f64,
}

/// Whether changes of a relation are logged.
pub fn needs_wal(relation: &PgRelation) -> bool {
    // SAFETY: an open relation has a tuple in pg_class; the setting is this server's.
    unsafe {
        let permanent = (*relation.rd_rel).relpersistence == pg_sys::RELPERSISTENCE_PERMANENT as i8;
        let minimal = pg_sys::wal_level < pg_sys::WalLevel::WAL_LEVEL_REPLICA as i32;
        let new = relation.rd_createSubid != 0;
        #[cfg(feature = "pg15")]
        let fresh = relation.rd_firstRelfilenodeSubid != 0;
        #[cfg(not(feature = "pg15"))]
        let fresh = relation.rd_firstRelfilelocatorSubid != 0;
        permanent && !(minimal && (new || fresh))
    }
}

/// `ambeginscan`.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ambeginscan<M: Method>(
    index: pg_sys::Relation,
    keys: i32,
    orders: i32,
) -> pg_sys::IndexScanDesc {
    // SAFETY: Postgres calls this with an open index; the descriptor and the arrays live as long as the scan.
    unsafe {
        let scan = pg_sys::RelationGetIndexScan(index, keys, orders);
        let state = Scan::<M> {
            graph: None,
            heap: None,
            column: Column::of(index),
            query: None,
            unordered: false,
            cursor: None,
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            returned: HashSet::new(),
            last: f64::NEG_INFINITY,
        };
        (*scan).opaque =
            PgMemoryContexts::CurrentMemoryContext.leak_and_drop_on_delete(state).cast();
        if orders > 0 {
            let count = orders as usize;
            (*scan).xs_orderbyvals = pg_sys::palloc0(count * size_of::<pg_sys::Datum>()).cast();
            (*scan).xs_orderbynulls = pg_sys::palloc0(count).cast();
        }
        scan
    }
}

/// # Safety
/// `scan` comes from [`ambeginscan`].
unsafe fn state<'a, M: Method>(scan: pg_sys::IndexScanDesc) -> &'a mut Scan<M> {
    // SAFETY: the caller's.
    unsafe { &mut *(*scan).opaque.cast::<Scan<M>>() }
}

/// `amrescan`.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn amrescan<M: Method>(
    scan: pg_sys::IndexScanDesc,
    _keys: pg_sys::ScanKey,
    _key_count: i32,
    orders: pg_sys::ScanKey,
    count: i32,
) {
    // SAFETY: Postgres calls this with a scan of ours, and as many order keys as it was begun with, or none.
    unsafe {
        let state = state::<M>(scan);
        if !orders.is_null() && count > 0 {
            std::ptr::copy(orders, (*scan).orderByData, count as usize);
        }
        (state.query, state.cursor) = (None, None);
        state.waiting.clear();
        state.ready.clear();
        state.returned.clear();
        state.last = f64::NEG_INFINITY;
    }
}

/// `amendscan`.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn amendscan<M: Method>(scan: pg_sys::IndexScanDesc) {
    // SAFETY: Postgres calls this with a scan of ours, whose index is still open.
    unsafe {
        let state = state::<M>(scan);
        state.cursor = None;
        state.waiting = VecDeque::new();
        state.ready = VecDeque::new();
        state.returned = HashSet::new();
        if let Some(heap) = state.heap.take() {
            heap.close(scan);
        }
        if let Some(graph) = state.graph.take() {
            handle::put::<M>((*scan).indexRelation, graph);
        }
    }
}

/// Counts a scan in the statistics of the index.
///
/// # Safety
/// `scan` is under way.
unsafe fn count_scan(scan: pg_sys::IndexScanDesc) {
    // SAFETY: the caller's; the counters are this backend's.
    unsafe {
        let index = (*scan).indexRelation;
        if (*index).pgstat_enabled && (*index).pgstat_info.is_null() {
            pg_sys::pgstat_assoc_relation(index);
        }
        if let Some(info) = (*index).pgstat_info.as_mut() {
            #[cfg(feature = "pg15")]
            {
                info.t_counts.t_numscans += 1;
            }
            #[cfg(not(feature = "pg15"))]
            {
                info.counts.numscans += 1;
            }
        }
        #[cfg(feature = "pg18")]
        if let Some(counts) = (*scan).instrument.as_mut() {
            counts.nsearches += 1;
        }
    }
}

/// `amgettuple`.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn amgettuple<M: Method>(
    scan: pg_sys::IndexScanDesc,
    direction: pg_sys::ScanDirection::Type,
) -> bool {
    // SAFETY: Postgres calls this with a scan of ours that has been given its order keys.
    unsafe {
        if direction != pg_sys::ScanDirection::ForwardScanDirection {
            refuse(Code::ERRCODE_FEATURE_NOT_SUPPORTED, "an ann index is scanned forward only");
        }
        let state = state::<M>(scan);
        if state.query.is_none() {
            if (*scan).numberOfOrderBys < 1 {
                let message = "an ann index is scanned in the order of a distance only";
                refuse(Code::ERRCODE_FEATURE_NOT_SUPPORTED, message);
            }
            count_scan(scan);
            state.set_out(&*(*scan).orderByData);
            if state.graph.is_none() {
                let graph = handle::take::<M>((*scan).indexRelation);
                if graph.vectors().is_none() {
                    state.heap = Some(Heap::open(scan));
                }
                state.graph = Some(graph);
            }
        }
        let Some(found) = state.next(scan) else {
            return false;
        };
        (*scan).xs_heaptid = tid_of(found.key);
        (*scan).xs_recheck = false;
        (*scan).xs_recheckorderby = false;
        if let Some(datum) = found.distance.into_datum() {
            *(*scan).xs_orderbyvals = datum;
        }
        *(*scan).xs_orderbynulls = state.unordered;
        true
    }
}

impl Column {
    /// A hit with its distance as the operator has it.
    fn found(&self, hit: Hit) -> Found {
        let distance = f64::from(hit.distance);
        let distance =
            if self.metric == Metric::L2sq { distance.max(0.0).sqrt() } else { distance };
        Found { key: hit.key, distance }
    }
}

impl<M: Method> Scan<M> {
    /// Takes the query from an order key.
    ///
    /// # Safety
    /// The key's argument is of the type of the index's operator class, or NULL.
    unsafe fn set_out(&mut self, order: &pg_sys::ScanKeyData) {
        let is_null = order.sk_flags & pg_sys::SK_ISNULL as i32 != 0;
        self.unordered = is_null;
        let any = vec![1.0; self.column.dim];
        let mut query = match (is_null, self.column.dtype) {
            (true, DType::F16) => Query::Halves(any.iter().map(|&x| f16::from_f32(x)).collect()),
            (true, _) => Query::Floats(any.clone()),
            // SAFETY: the caller's.
            (_, DType::F16) => Query::Halves(unsafe { elements(order.sk_argument) }.to_vec()),
            // SAFETY: the caller's.
            _ => Query::Floats(unsafe { elements(order.sk_argument) }.to_vec()),
        };
        if self.column.metric == Metric::Cosine {
            self.unordered |= match &mut query {
                Query::Floats(query) if !has_direction(query) && query.len() == any.len() => {
                    query.fill(1.0);
                    true
                }
                Query::Halves(query) if !has_direction(query) && query.len() == any.len() => {
                    query.fill(f16::ONE);
                    true
                }
                _ => false,
            };
        }
        self.query = Some(query);
    }

    /// The next row.
    ///
    /// # Safety
    /// `scan` is the scan whose state this is, with its order key.
    unsafe fn next(&mut self, scan: pg_sys::IndexScanDesc) -> Option<Found> {
        let mode = ITERATIVE_SCAN.get();
        loop {
            while let Some(found) = self.ready.pop_front() {
                if mode == IterativeScan::Strict && found.distance < self.last {
                    continue;
                }
                if self.returned.insert(found.key) {
                    self.last = found.distance;
                    return Some(found);
                }
            }
            if !self.waiting.is_empty() {
                // SAFETY: the caller's.
                unsafe { self.measure(scan) };
                continue;
            }
            if self.returned.len() >= MAX_SCAN_TUPLES.get() as usize {
                return None;
            }
            let hits = loop {
                match self.search() {
                    Ok(hits) => break hits,
                    Err(Error::Changed) => self.cursor = None,
                    Err(error) => crate::failure::report(&error),
                }
            };
            if hits.is_empty() {
                return None;
            }
            match self.heap.is_some() {
                true => self.waiting.extend(hits),
                false => self.ready.extend(hits.into_iter().map(|hit| self.column.found(hit))),
            }
        }
    }

    /// Puts rows that wait in the order of their distances.
    ///
    /// # Safety
    /// As [`Scan::next`].
    unsafe fn measure(&mut self, scan: pg_sys::IndexScanDesc) {
        let count = match RERANK.get() as usize {
            0 => self.waiting.len(),
            rerank => rerank.min(self.waiting.len()),
        };
        let hits = self.waiting.drain(..count);
        let Some(heap) = self.heap.as_mut().filter(|_| !self.unordered) else {
            self.ready.extend(hits.map(|hit| self.column.found(hit)));
            return;
        };
        let mut measured = Vec::with_capacity(count);
        for Hit { key, .. } in hits {
            pgrx::check_for_interrupts!();
            // SAFETY: the caller's.
            if let Some(distance) = unsafe { heap.distance(scan, key) } {
                measured.push(Found { key, distance });
            }
        }
        // SAFETY: the caller's.
        unsafe { heap.rest(scan) };
        measured.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        self.ready.extend(measured);
    }

    fn search(&mut self) -> Result<Vec<Hit>> {
        let (Some(graph), Some(query)) = (&mut self.graph, &self.query) else {
            return Ok(Vec::new());
        };
        let cursor = match &mut self.cursor {
            Some(cursor) => cursor,
            None => {
                let cursor = match query {
                    Query::Floats(query) => M::cursor(graph, query),
                    Query::Halves(query) => M::cursor(graph, query),
                };
                self.cursor.insert(cursor?)
            }
        };
        match ITERATIVE_SCAN.get() {
            IterativeScan::Off => graph.only_hits(cursor),
            _ => graph.next_hits(cursor),
        }
    }
}

/// All keys that an index holds.
pub fn keys<M: Method>(graph: &mut Handle<M>) -> HashSet<u64> {
    let mut keys = HashSet::new();
    graph
        .remove_where(|key| {
            keys.insert(key);
            false
        })
        .or_report();
    keys
}
