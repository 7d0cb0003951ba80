"""The Postgres demo: our access methods beside pgvector's hnsw, in one server on the same rows."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import report
from curves import qps_at
from datasets import DatasetError
from datasets.load import demo_dataset, load, subset
from datasets.store import Dataset
from embedded import Installation, Server
from pgbench import Clients
from pgextra import grown, grown_table, sizes, sizes_table, widened
from pgsearch import INDEXES, OPERATORS, Db, build, efforts, fill, register, size, sweep

RESULTS = Path(__file__).parent / "results"
POOL = 5000
# Commits do not wait for the disk: that would hide what indexes cost.
SETTINGS = {
    "shared_buffers": "2GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "synchronous_commit": "off",
}


def load_tables(db: Db, dataset: Dataset, queries: np.ndarray) -> None:
    """The rows, the queries, and new rows for the inserts: rows that are there, moved a little."""
    fill(db, "items", dataset.train)
    fill(db, "queries", queries)
    rng = np.random.default_rng(1)
    moved = dataset.train[rng.choice(len(dataset.train), POOL)]
    moved = moved + 0.3 * moved.std() * rng.standard_normal(moved.shape)
    fill(db, "pool", moved.astype(np.float32), 10_000_000)
    for table in ("queries", "pool"):
        db.execute(f"ALTER TABLE {table} ADD PRIMARY KEY (id)")


def measure(
    server: Server, db: Db, dataset: Dataset, queries: np.ndarray, name: str, options: Any
) -> dict[str, Any]:
    """Everything about one index."""
    index: dict[str, Any] = {"name": name, "open_s": None, "builds": {}}
    for memory in options.memory.split(","):
        index["builds"][memory] = build(db, name, dataset.metric, memory)
    index["bytes"] = size(db)
    index["searches"] = sweep(db, dataset, queries, name)
    index["empty_s"] = index["searches"][0]["empty_s"]
    if not options.searches_only:
        tried = list(zip(efforts(name), index["searches"]))
        enough = [effort for effort, s in tried if s["recall"] >= 0.95] or [tried[-1][0]]
        db.execute("DROP SEQUENCE IF EXISTS pool_next")
        db.execute("CREATE SEQUENCE pool_next MINVALUE 10000000")
        settings = f"-c {INDEXES[name][2]}={enough[0]} -c enable_seqscan=off"
        clients = Clients(server, OPERATORS[dataset.metric][0], len(queries))
        index["clients"] = clients.measure(db, settings, name)
        db.execute("DELETE FROM items WHERE id >= 10000000")
    db.execute("DROP INDEX i")
    db.execute("VACUUM items")
    return index


def table(run: dict[str, Any]) -> str:
    header = ["index", *(f"build s at {memory}" for memory in run["memory"]), "index MB"]
    header += ["setting", "recall@10", "queries/s", "with the client", "buffers a query"]
    rows = []
    for index in run["indexes"]:
        cells = [index["name"], *(f"{s:.1f}" for s in index["builds"].values())]
        cells.append(f"{index['bytes'] / 1e6:,.0f}")
        for s in index["searches"]:
            setting = " ".join(f"{key}={value}" for key, value in s["setting"].items())
            speeds = [f"{s['qps']:,.0f}", f"{s['client_qps']:,.0f}", f"{s['buffers']:,.0f}"]
            rows.append([*cells, setting, f"{s['recall']:.4f}", *speeds])
            cells = [""] * len(cells)
    return report.table(header, rows)


def summary(run: dict[str, Any]) -> str:
    header = ["index", *(f"q/s at {target:.2f}" for target in report.TARGETS)]
    header += ["inserts/s, 1 client", "8 clients", "WAL bytes an insert", "8 clients"]
    header += ["q/s of 8 clients at .95", "p99 ms of 1", "beside a writer"]
    rows = []
    for index in run["indexes"]:
        points = [(s["recall"], s["qps"]) for s in index["searches"]]
        speeds = [qps_at(points, target) for target in report.TARGETS]
        row = [index["name"], *("-" if s is None else f"{s:,.0f}" for s in speeds)]
        c = index.get("clients", {})
        for name in ("inserts_1", "inserts_8", "wal_1", "wal_8", "searches_8"):
            row.append(f"{c[name]:,.0f}" if c else "-")
        row += [f"{c[name]:.2f}" if c else "-" for name in ("p99", "p99_writer")]
        rows.append(row)
    return report.table(header, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a data set of datasets/get.py instead of the demo's")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--dim", type=int, help="turn the vectors into so many dimensions")
    parser.add_argument("--memory", default="64MB,1GB", help="of maintenance_work_mem; last counts")
    parser.add_argument("--only", default=",".join(INDEXES))
    parser.add_argument("--searches-only", action="store_true", help="no inserts, one client")
    parser.add_argument("--dims", default="384,960,1536", help="to give sizes at; empty for none")
    parser.add_argument("--size-rows", type=int, default=20_000, help="rows for the sizes")
    parser.add_argument("--grown", type=int, default=0, help="rows of an index that is to grow")
    parser.add_argument("--extras-only", action="store_true", help="only --dims and --grown")
    options = parser.parse_args()
    dataset = subset(load(options.data) if options.data else demo_dataset(), options.rows)
    if options.dim and options.dim > dataset.train.shape[1]:
        dataset = widened(dataset, options.dim)
    queries = dataset.test[: options.queries]
    os.environ.setdefault("ANN_PG_PROFILE", "release")
    n, dim = dataset.train.shape
    run: dict[str, Any] = {"data": dataset.name, "n": n, "dim": dim, "metric": dataset.metric}
    run |= {"queries": len(queries), "k": 10, "memory": options.memory.split(",")}
    run |= {"indexes": [], "grown": [], "sizes": []}
    run |= {"task": {"m": 16, "ef_construction": 200, "threads": 2}, "machine": report.machine()}
    installation = Installation()
    try:
        with Server(installation, **SETTINGS) as server, server.connect() as db:
            db.execute("CREATE EXTENSION ann CASCADE")
            register(db)
            load_tables(db, dataset, queries)
            names = options.only.split(",")
            for name in [] if options.extras_only else names:
                run["indexes"].append(measure(server, db, dataset, queries, name, options))
                print(f"{name}: done", file=sys.stderr, flush=True)
            memory = run["memory"][-1]
            if options.grown:
                part = subset(dataset, options.grown)
                run["grown"] = [grown(db, part, queries, name, memory) for name in names]
            few = subset(dataset, options.size_rows)
            for wider in map(int, filter(None, options.dims.split(","))):
                if wider >= few.train.shape[1]:
                    wide = widened(few, wider)
                    run["sizes"] += [sizes(db, wide, name, memory) for name in names]
    finally:
        installation.remove()
    if run["indexes"]:
        empty = np.median([index["empty_s"] for index in run["indexes"]]) * 1e6
        what = f"{n:,} x {dim}, {run['metric']}, {len(queries):,} queries"
        print(f"### {run['data']} in Postgres: {what}")
        print(f"\nqueries/s of the server: less an empty query's {empty:.0f} microseconds\n")
        print(table(run), summary(run), sep="\n\n")
    if run["grown"]:
        print(f"\nmade on an empty table and filled, beside its own REINDEX:\n\n{grown_table(run)}")
    if run["sizes"]:
        print(
            f"\nsizes of {len(few.train):,} rows, {few.train.shape[1]} dimensions turned into more:"
        )
        print(f"\n{sizes_table(run)}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo-pg.json").write_text(json.dumps(run, indent=1))
    print(f"\nall that was measured: {RESULTS / 'demo-pg.json'}")
    if run["indexes"]:
        report.plot(run, RESULTS / "demo-pg.png")
        print(f"plot: {RESULTS / 'demo-pg.png'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DatasetError as error:
        sys.exit(str(error))
