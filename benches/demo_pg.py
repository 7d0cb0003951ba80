"""The Postgres demo: our access methods beside pgvector's hnsw, in one server on the same rows."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import report
from curves import qps_at, recall, true_distances
from datasets import DatasetError
from datasets.load import demo_dataset, load, subset
from datasets.store import Dataset
from embedded import Installation, Server
from pgbench import Clients

RESULTS = Path(__file__).parent / "results"
EF = (20, 40, 80, 160, 320, 640)
# The access method, its options, and the setting that a search's effort is set by.
INDEXES = {
    "ann-diskann": ("ann_diskann", "", "ann.diskann_list_size"),
    "ann-hnsw": ("ann_hnsw", "m = 16, ef_construction = 200", "ann.hnsw_ef_search"),
    "pgvector-64": ("hnsw", "m = 16, ef_construction = 64", "hnsw.ef_search"),
    "pgvector-200": ("hnsw", "m = 16, ef_construction = 200", "hnsw.ef_search"),
}
OPERATORS = {"angular": ("<=>", "vector_cosine_ops"), "euclidean": ("<->", "vector_l2_ops")}
POOL = 5000
# Commits do not wait for the disk: that would hide what indexes cost.
SETTINGS = {
    "shared_buffers": "2GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "synchronous_commit": "off",
}
Db = psycopg.Connection[Any]


class Binary:
    """A vector in pgvector's binary form."""

    def __init__(self, values: np.ndarray) -> None:
        head = np.array([len(values), 0], ">i2").tobytes()
        self.bytes = head + values.astype(">f4").tobytes()


class BinaryDumper(psycopg.adapt.Dumper):
    format = psycopg.pq.Format.BINARY

    def dump(self, obj: Binary) -> bytes:
        return obj.bytes


def register(db: Db) -> None:
    """Teaches a connection the type `vector`, in binary."""
    info = psycopg.types.TypeInfo.fetch(db, "vector")
    assert info is not None
    info.register(db)
    dumper = type("VectorDumper", (BinaryDumper,), {"oid": info.oid})
    db.adapters.register_dumper(Binary, dumper)


def fill(db: Db, table: str, rows: np.ndarray, first: int = 0) -> None:
    db.execute(f"CREATE TABLE {table} (id int, v vector({rows.shape[1]}))")
    with db.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "vector"])
        for number, row in enumerate(rows, first):
            copy.write_row((number, Binary(row)))
    db.execute(f"VACUUM ANALYZE {table}")


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


def search(db: Db, sql: str, queries: list[Binary]) -> tuple[np.ndarray, float]:
    """What each query finds, and the client's seconds for all of them."""
    found = np.full((len(queries), 10), -1)
    start = time.perf_counter()
    for row, query in zip(found, queries):
        ids = [id for (id,) in db.execute(sql, (query,), prepare=True, binary=True)]
        row[: len(ids)] = ids
    return found, time.perf_counter() - start


def empty_seconds(db: Db, queries: list[Binary]) -> float:
    """Seconds of a round trip that searches nothing: the same parameter, and ten rows come back."""
    sql = "SELECT generate_series(1, 10) WHERE %s IS NOT NULL"
    return min(search(db, sql, queries)[1] for _ in range(4)) / len(queries)


def buffers(db: Db, sql: str, queries: list[Binary]) -> float:
    """Pages that a query looks at, of index and table."""
    count = 0
    for query in queries:
        row = db.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", (query,)).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        assert "Index Scan" in str(plan), plan
        count += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return count / len(queries)


def build(db: Db, name: str, opclass: str, memory: str) -> float:
    """Makes the index `i`; gives the seconds."""
    method, options, _ = INDEXES[name]
    more = f"WITH ({options})" if options else ""
    db.execute("DROP INDEX IF EXISTS i")
    db.execute("CHECKPOINT")
    db.execute(f"SET maintenance_work_mem = '{memory}'")
    start = time.perf_counter()
    db.execute(f"CREATE INDEX i ON items USING {method} (v {opclass}) {more}")
    return time.perf_counter() - start


def measure(
    server: Server, db: Db, dataset: Dataset, queries: np.ndarray, name: str, options: Any
) -> dict[str, Any]:
    """Everything about one index."""
    operator, opclass = OPERATORS[dataset.metric]
    setting = INDEXES[name][2]
    index: dict[str, Any] = {"name": name, "open_s": None, "searches": [], "builds": {}}
    for memory in options.memory.split(","):
        index["builds"][memory] = build(db, name, opclass, memory)
    row = db.execute("SELECT pg_relation_size('i')").fetchone()
    assert row is not None
    index["bytes"] = row[0]
    parameters = [Binary(query) for query in queries]
    sql = f"SELECT id FROM items ORDER BY v {operator} %s LIMIT 10"
    truth = dataset.neighbors[: len(queries), :10]
    exact = true_distances(dataset.metric, dataset.train, queries, truth)
    empty = empty_seconds(db, parameters)
    db.execute("SET enable_seqscan = off")
    for ef in EF:
        db.execute(f"SET {setting} = {ef}")
        # The first pass warms up; the better of two counts.
        search(db, sql, parameters[: len(parameters) // 3])
        passes = [search(db, sql, parameters) for _ in range(2)]
        found, seconds = passes[0][0], min(seconds for _, seconds in passes) / len(queries)
        distances = true_distances(dataset.metric, dataset.train, queries, found)
        index["searches"].append(
            {
                "setting": {setting.rpartition(".")[2]: ef},
                "recall": recall(distances, exact),
                "qps": 1 / max(seconds - empty, 1e-9),
                "client_qps": 1 / seconds,
                "buffers": buffers(db, sql, parameters[:20]),
            }
        )
    index["empty_s"] = empty
    if not options.searches_only:
        enough = [ef for ef, s in zip(EF, index["searches"]) if s["recall"] >= 0.95] or [EF[-1]]
        db.execute("DROP SEQUENCE IF EXISTS pool_next")
        db.execute("CREATE SEQUENCE pool_next MINVALUE 10000000")
        settings = f"-c {setting}={enough[0]} -c enable_seqscan=off"
        clients = Clients(server, operator, len(queries))
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


def widened(dataset: Dataset, dim: int) -> Dataset:
    """The same vectors turned into a space of more dimensions: distances stay as they are."""
    rng = np.random.default_rng(2)
    turn = np.linalg.qr(rng.standard_normal((dim, dataset.train.shape[1])))[0].T
    train, test = ((part @ turn).astype(np.float32) for part in (dataset.train, dataset.test))
    return dataclasses.replace(dataset, train=train, test=test)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a data set of datasets/get.py instead of the demo's")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--dim", type=int, help="turn the vectors into so many dimensions")
    parser.add_argument("--memory", default="64MB,1GB", help="of maintenance_work_mem; last counts")
    parser.add_argument("--only", default=",".join(INDEXES))
    parser.add_argument("--searches-only", action="store_true", help="no inserts, one client")
    options = parser.parse_args()
    dataset = subset(load(options.data) if options.data else demo_dataset(), options.rows)
    if options.dim and options.dim > dataset.train.shape[1]:
        dataset = widened(dataset, options.dim)
    queries = dataset.test[: options.queries]
    os.environ.setdefault("ANN_PG_PROFILE", "release")
    n, dim = dataset.train.shape
    run: dict[str, Any] = {"data": dataset.name, "n": n, "dim": dim, "metric": dataset.metric}
    run |= {"queries": len(queries), "k": 10, "memory": options.memory.split(","), "indexes": []}
    run |= {"task": {"m": 16, "ef_construction": 200, "threads": 2}, "machine": report.machine()}
    installation = Installation()
    try:
        with Server(installation, **SETTINGS) as server, server.connect() as db:
            db.execute("CREATE EXTENSION ann CASCADE")
            register(db)
            load_tables(db, dataset, queries)
            for name in options.only.split(","):
                run["indexes"].append(measure(server, db, dataset, queries, name, options))
                print(f"{name}: done", file=sys.stderr, flush=True)
    finally:
        installation.remove()
    empty = np.median([index["empty_s"] for index in run["indexes"]]) * 1e6
    print(
        f"### {run['data']} in Postgres: {n:,} x {dim}, {run['metric']}, {len(queries):,} queries"
    )
    print(f"\nqueries/s of the server: less an empty query's {empty:.0f} microseconds\n")
    print(table(run), summary(run), sep="\n\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo-pg.json").write_text(json.dumps(run, indent=1))
    report.plot(run, RESULTS / "demo-pg.png")
    print(f"\nall that was measured: {RESULTS / 'demo-pg.json'}\nplot: {RESULTS / 'demo-pg.png'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DatasetError as error:
        sys.exit(str(error))
