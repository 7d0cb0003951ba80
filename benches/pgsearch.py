"""Indexes in Postgres as the demos make and search them, ours and pgvector's alike."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import psycopg

from curves import recall, true_distances
from datasets.store import Dataset

EF = (20, 40, 80, 160, 320, 640)
# Lists instead of candidates.
PROBES = (16, 32, 64, 128, 256, 512)
# The access method, its options, and the setting that a search's effort is set by.
INDEXES = {
    "ann-diskann": ("ann_diskann", "", "ann.diskann_list_size"),
    "ann-hnsw": ("ann_hnsw", "", "ann.hnsw_ef_search"),
    "ann-ivfpq": ("ann_ivfpq", "", "ann.ivfpq_probes"),
    "pgvector-64": ("hnsw", "m = 16, ef_construction = 64", "hnsw.ef_search"),
    "pgvector-200": ("hnsw", "m = 16, ef_construction = 200", "hnsw.ef_search"),
}
OPERATORS = {"angular": ("<=>", "vector_cosine_ops"), "euclidean": ("<->", "vector_l2_ops")}
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


def build(db: Db, name: str, metric: str, memory: str) -> float:
    """Makes the index `i`; gives the seconds."""
    method, options, _ = INDEXES[name]
    opclass = OPERATORS[metric][1]
    more = f"WITH ({options})" if options else ""
    db.execute("DROP INDEX IF EXISTS i")
    db.execute("CHECKPOINT")
    db.execute(f"SET maintenance_work_mem = '{memory}'")
    start = time.perf_counter()
    db.execute(f"CREATE INDEX i ON items USING {method} (v {opclass}) {more}")
    return time.perf_counter() - start


def sweep(
    db: Db, dataset: Dataset, queries: np.ndarray, name: str, timed: bool = True
) -> list[dict[str, Any]]:
    """Recall, speed, buffers of the index `i` at each effort; untimed, up to a recall of .95."""
    operator, setting = OPERATORS[dataset.metric][0], INDEXES[name][2]
    parameters = [Binary(query) for query in queries]
    sql = f"SELECT id FROM items ORDER BY v {operator} %s LIMIT 10"
    truth = dataset.neighbors[: len(queries), :10]
    exact = true_distances(dataset.metric, dataset.train, queries, truth)
    empty = empty_seconds(db, parameters) if timed else 0
    db.execute("SET enable_seqscan = off")
    searches: list[dict[str, Any]] = []
    for ef in efforts(name):
        db.execute(f"SET {setting} = {ef}")
        passes = []
        if timed:
            # The first pass warms up; the better of two counts.
            search(db, sql, parameters[: len(parameters) // 3])
            passes = [search(db, sql, parameters)]
        passes.append(search(db, sql, parameters))
        found, seconds = passes[0][0], min(seconds for _, seconds in passes) / len(queries)
        distances = true_distances(dataset.metric, dataset.train, queries, found)
        searches.append(
            {
                "setting": {setting.rpartition(".")[2]: ef},
                "recall": recall(distances, exact),
                "qps": 1 / max(seconds - empty, 1e-9),
                "client_qps": 1 / seconds,
                "buffers": buffers(db, sql, parameters[:20]),
                "empty_s": empty,
            }
        )
        if not timed and searches[-1]["recall"] >= 0.95:
            break
    return searches


def efforts(name: str) -> tuple[int, ...]:
    """What an index's setting is swept over."""
    return PROBES if name == "ann-ivfpq" else EF


def size(db: Db) -> int:
    """Bytes of the index `i`."""
    row = db.execute("SELECT pg_relation_size('i')").fetchone()
    assert row is not None
    return row[0]
