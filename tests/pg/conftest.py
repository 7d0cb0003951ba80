"""A server for all tests of the extension, and a fresh schema for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

from embedded import Installation, Server

Db = psycopg.Connection[Any]

GRAPHS = ("ann_hnsw", "ann_diskann")
METHODS = (*GRAPHS, "ann_ivfpq")
DIM = 24
OPERATORS = {"l2": "<->", "ip": "<#>", "cosine": "<=>"}


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    installation = Installation()
    yield installation
    installation.remove()


@pytest.fixture(scope="session")
def server(installation: Installation) -> Iterator[Server]:
    with Server(installation, shared_preload_libraries="", fsync="off") as server:
        with server.connect() as connection:
            connection.execute("CREATE EXTENSION ann CASCADE")
        yield server


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def db(server: Server) -> Iterator[Db]:
    with server.connect() as connection:
        connection.execute("DROP SCHEMA IF EXISTS test CASCADE")
        connection.execute("CREATE SCHEMA test")
        connection.execute("SET search_path = test, public")
        yield connection


def clustered(count: int, dim: int, seed: int) -> np.ndarray:
    """Vectors in clusters, as real ones are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((20, dim)) * 2
    rows = centres[rng.integers(0, 20, count)] + rng.standard_normal((count, dim))
    return rows.astype(np.float32)


def text(vector: np.ndarray) -> str:
    return "[" + ",".join(f"{value:.7g}" for value in vector) + "]"


def fill(db: Db, table: str, rows: np.ndarray, first: int = 0) -> None:
    """Copies rows in, numbered from `first` on."""
    with db.cursor() as cursor, cursor.copy(f"COPY {table} (id, v) FROM STDIN") as copy:
        for number, row in enumerate(rows, first):
            copy.write_row((number, text(row)))


def table(db: Db, rows: np.ndarray, kind: str = "vector", name: str = "t") -> None:
    """A table of rows that are numbered from 0 on."""
    db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v {kind}({rows.shape[1]}))")
    fill(db, name, rows)
    db.execute(f"ANALYZE {name}")


def index(db: Db, method: str, kind: str = "vector", metric: str = "l2", more: str = "") -> None:
    """The index `i` on the table `t`; lists come with the first hundred rows."""
    if method == "ann_ivfpq" and "WITH" not in more:
        more = f"WITH (train_at = 100) {more}"
    db.execute(f"CREATE INDEX i ON t USING {method} (v {kind}_{metric}_ops) {more}")


def verify(db: Db, *names: str) -> None:
    """All that must hold of indexes, and all rows of their tables are in them."""
    for name in names or ("i",):
        db.execute("SELECT ann.verify_index(%s, true)", (name,))


def value(db: Db, sql: str, *parameters: object) -> Any:
    """What a query of one row and one column says."""
    row = db.execute(sql, parameters or None).fetchone()
    assert row is not None
    return row[0]


def nearest(
    db: Db, table: str, operator: str, query: np.ndarray, k: int, exact: bool
) -> list[tuple[int, float]]:
    """The k nearest by the index, or by a scan of the table."""
    with db.transaction():
        db.execute(f"SET LOCAL enable_indexscan = {'off' if exact else 'on'}")
        db.execute(f"SET LOCAL enable_seqscan = {'on' if exact else 'off'}")
        order = f"v {operator} %s::text::{column_type(db, table)}"
        query_text = text(query)
        found = db.execute(
            f"SELECT id, {order} FROM {table} ORDER BY {order} LIMIT {k}", (query_text, query_text)
        )
        return found.fetchall()


def column_type(db: Db, table: str) -> str:
    row = db.execute(
        "SELECT format_type(atttypid, NULL) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attname = 'v'",
        (table,),
    ).fetchone()
    assert row is not None
    return row[0]


def recall(db: Db, table: str, operator: str, queries: np.ndarray) -> float:
    """Recall at 10 against exact search."""
    hits = 0
    for query in queries:
        exact = nearest(db, table, operator, query, 10, True)
        found = nearest(db, table, operator, query, 10, False)
        bound = exact[-1][1]
        hits += sum(distance <= bound + 1e-5 * max(abs(bound), 1) for _, distance in found)
    return hits / (10 * len(queries))
