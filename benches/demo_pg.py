"""The Postgres demo: our access methods beside pgvector's hnsw, in one server on the same rows."""

from __future__ import annotations

import argparse
import os
import sys
import time

import numpy as np
import psycopg

from datasets.load import DatasetError, demo_dataset, load, subset
from datasets.store import Dataset
from embedded import Installation, Server

EF = (10, 20, 40, 80, 160, 320, 640)
INDEXES = {
    "ann_diskann": ("ann_diskann", "", "ann.diskann_list_size"),
    "ann_hnsw": ("ann_hnsw", "m = 16, ef_construction = 200", "ann.hnsw_ef_search"),
    "pgvector hnsw": ("hnsw", "m = 16, ef_construction = 64", "hnsw.ef_search"),
}
OPERATORS = {"angular": ("<=>", "vector_cosine_ops"), "euclidean": ("<->", "vector_l2_ops")}


def vector(values: np.ndarray) -> bytes:
    """A vector in pgvector's binary form."""
    return np.array([len(values), 0], ">i2").tobytes() + values.astype(">f4").tobytes()


class Binary:
    """A parameter in pgvector's binary form."""

    def __init__(self, values: np.ndarray) -> None:
        self.bytes = vector(values)


def dumper(oid: int) -> type:
    class BinaryDumper(psycopg.adapt.Dumper):
        format = psycopg.pq.Format.BINARY

        def dump(self, obj: Binary) -> bytes:
            return obj.bytes

    BinaryDumper.oid = oid
    return BinaryDumper


def fill(db: psycopg.Connection, dataset: Dataset, table: str) -> None:
    with db.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "vector"])
        for number, row in enumerate(dataset.train):
            copy.write_row((number, Binary(row)))


def search(
    db: psycopg.Connection, sql: str, queries: list[Binary], empty: float
) -> tuple[list[list[int]], float]:
    """What each query finds, and the server's seconds for all of them."""
    found, start = [], time.perf_counter()
    for query in queries:
        found.append([id for (id,) in db.execute(sql, (query,), prepare=True, binary=True)])
    return found, max(time.perf_counter() - start - empty * len(queries), 1e-9)


def round_trip(db: psycopg.Connection, query: Binary) -> float:
    """Seconds that a query takes that does nothing."""
    times = []
    for _ in range(500):
        start = time.perf_counter()
        db.execute("SELECT 1 WHERE %s IS NOT NULL", (query,), prepare=True, binary=True).fetchall()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure(db: psycopg.Connection, dataset: Dataset, count: int, names: list[str]) -> None:
    operator, opclass = OPERATORS[dataset.metric]
    queries = [Binary(query) for query in dataset.test[:count]]
    empty = round_trip(db, queries[0])
    print(f"an empty query takes {empty * 1e6:.0f} microseconds, which are taken off below")
    print("| index | build s | index MB | candidates | recall@10 | q/s | buffers a query |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    sql = f"SELECT id FROM items ORDER BY v {operator} %s LIMIT 10"
    for name in names:
        method, options, setting = INDEXES[name]
        start = time.perf_counter()
        more = f"WITH ({options})" if options else ""
        db.execute(f"CREATE INDEX i ON items USING {method} (v {opclass}) {more}")
        built = time.perf_counter() - start
        (size,) = db.execute("SELECT pg_relation_size('i')").fetchone()
        db.execute("SET enable_seqscan = off")
        for ef in EF:
            db.execute(f"SET {setting} = {ef}")
            search(db, sql, queries[:100], empty)
            found, seconds = search(db, sql, queries, empty)
            hits = sum(
                len(set(ids) & set(truth[:10]))
                for ids, truth in zip(found, dataset.neighbors.tolist())
            )
            buffers = []
            for query in queries[:20]:
                plan = db.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", (query,))
                (tree,) = plan.fetchone()
                buffers.append(
                    tree[0]["Plan"]["Shared Hit Blocks"] + tree[0]["Plan"]["Shared Read Blocks"]
                )
            print(
                f"| {name} | {built:.1f} | {size / 1e6:.0f} | {ef} |"
                f" {hits / (10 * len(queries)):.4f} | {len(queries) / seconds:,.0f} |"
                f" {np.mean(buffers):.0f} |",
                flush=True,
            )
        db.execute("DROP INDEX i")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a data set of datasets/get.py instead of the demo's")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--memory", default="1GB", help="maintenance_work_mem")
    parser.add_argument("--only", default=",".join(INDEXES))
    options = parser.parse_args()
    dataset = subset(load(options.data) if options.data else demo_dataset(), options.rows)
    os.environ.setdefault("ANN_PG_PROFILE", "release")
    installation = Installation()
    try:
        with Server(installation, shared_buffers="1GB") as server, server.connect() as db:
            db.execute("CREATE EXTENSION ann CASCADE")
            oid = psycopg.types.TypeInfo.fetch(db, "vector")
            oid.register(db)
            db.adapters.register_dumper(Binary, dumper(oid.oid))
            db.execute(f"SET maintenance_work_mem = '{options.memory}'")
            dim = dataset.train.shape[1]
            db.execute(f"CREATE TABLE items (id int, v vector({dim}))")
            db.execute("ALTER TABLE items ALTER COLUMN v SET STORAGE PLAIN")
            fill(db, dataset, "items")
            db.execute("VACUUM ANALYZE items")
            rows = len(dataset.train)
            print(f"{dataset.name}: {rows:,} x {dim}, maintenance_work_mem {options.memory}")
            measure(db, dataset, options.queries, options.only.split(","))
    finally:
        installation.remove()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DatasetError as error:
        sys.exit(str(error))
