//! What the planner is told of a scan: it costs its search at the start, and little for each row after that.

use pgrx::pg_sys;

use crate::method::Method;

/// `amcostestimate`.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn amcostestimate<M: Method>(
    root: *mut pg_sys::PlannerInfo,
    path: *mut pg_sys::IndexPath,
    loop_count: f64,
    startup: *mut pg_sys::Cost,
    total: *mut pg_sys::Cost,
    selectivity: *mut pg_sys::Selectivity,
    correlation: *mut f64,
    pages: *mut f64,
) {
    // SAFETY: Postgres calls this with a path of an index of ours, and places for the answers.
    unsafe {
        let info = &*(*path).indexinfo;
        let mut costs = pg_sys::GenericCosts::default();
        if (*path).indexorderbys.is_null() {
            // Rows come in the order of a distance or not at all.
            (*startup, *total) = (f64::INFINITY, f64::INFINITY);
            (*selectivity, *correlation, *pages) = (0.0, 0.0, 0.0);
            #[cfg(feature = "pg18")]
            {
                (*path).path.disabled_nodes = 2;
            }
            return;
        }
        pg_sys::genericcostestimate(root, path, loop_count, &raw mut costs);
        let rows = info.tuples.max(1.0);
        let records = M::records(rows).min(rows);
        let share = (records / rows).min(1.0);
        // Searches read the same pages again and again, so that these are mostly in memory.
        let mut page = 0.0;
        let null = std::ptr::null_mut();
        pg_sys::get_tablespace_page_costs(info.reltablespace, null, &raw mut page);
        let search = records.min(info.pages.into()) * page + records * pg_sys::cpu_operator_cost;
        *startup = search.min(costs.indexTotalCost.max(search * share));
        *total = costs.indexTotalCost.max(*startup) + rows * pg_sys::cpu_index_tuple_cost;
        *selectivity = costs.indexSelectivity;
        *correlation = costs.indexCorrelation;
        *pages = costs.numIndexPages;
    }
}
