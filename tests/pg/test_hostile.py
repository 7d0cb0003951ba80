"""Input that is wrong: refused with the value and what is allowed, and nothing is the worse."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import psycopg
import pytest
from conftest import (
    DIM,
    METHODS,
    OPERATORS,
    Db,
    clustered,
    fill,
    index,
    nearest,
    recall,
    table,
    text,
    value,
    verify,
)

errors = psycopg.errors
# What pgvector's types say to values that are none of theirs.
REFUSED = (errors.DataException, errors.InvalidTextRepresentation, errors.NumericValueOutOfRange)
BIG = "3e38" + ",1" * (DIM - 1)


@pytest.mark.parametrize(
    "expression",
    [
        *(f"'[{word}{',0' * (DIM - 1)}]'" for word in ("NaN", "inf", "-Infinity", "1e39", "")),
        f"array_fill('NaN'::float4, ARRAY[{DIM}])::vector",
        f"array_fill('-inf'::float8, ARRAY[{DIM}])::vector",
        f"'[{BIG}]'::vector * '[{BIG}]'::vector",
        f"'[{BIG}]'::vector + '[{BIG}]'::vector",
        "'[1,2]'",
        f"'[{'1,' * DIM}1]'",
        "'[]'",
    ],
)
def test_what_is_no_vector_of_the_column_cannot_get_in(db: Db, expression: str) -> None:
    db.execute(f"CREATE TABLE t (id int, v vector({DIM}), h halfvec({DIM}))")
    for method in METHODS:
        db.execute(f"CREATE INDEX {method}_v ON t USING {method} (v vector_l2_ops)")
        db.execute(f"CREATE INDEX {method}_h ON t USING {method} (h halfvec_l2_ops)")
    for column in "vh":
        with pytest.raises(REFUSED):
            db.execute(f"INSERT INTO t (id, {column}) VALUES (1, {expression})")
    assert value(db, "SELECT count(*) FROM t") == 0


def test_binary_copies_are_checked(db: Db, method: str) -> None:
    db.execute("CREATE TABLE t (id int, v vector(2))")
    index(db, method)
    for one in (float("nan"), float("inf")):
        raw = struct.pack(">hh2f", 2, 0, 1, one)
        line = struct.pack(">hiii", 2, 4, 1, len(raw)) + raw
        with (
            pytest.raises(errors.DataException),
            db.cursor() as cursor,
            cursor.copy("COPY t FROM STDIN (FORMAT BINARY)") as copy,
        ):
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + line + b"\xff\xff")
    assert value(db, "SELECT count(*) FROM t") == 0


@pytest.mark.parametrize("metric", OPERATORS)
def test_huge_and_tiny_values(db: Db, method: str, metric: str) -> None:
    """They make no index unsound and hide no other row, or are refused where squares overflow."""
    rows, queries = clustered(500, DIM, 1), clustered(10, DIM, 2)
    rng = np.random.default_rng(3)
    odd = np.concatenate(
        [scale * rng.standard_normal((20, DIM)) for scale in (1e18, 1e9, 1e-20, 1e-38)]
    ).astype(np.float32)
    table(db, np.concatenate([odd[::2], rows]))
    index(db, method, metric=metric)
    fill(db, "t", odd[1::2], 1000)
    with pytest.raises(errors.DataException, match=r"norm .*e20: norms up to 9.2e18"):
        fill(db, "t", 100 * odd[:1], 2000)
    verify(db)
    operator = OPERATORS[metric]
    for query in odd[::7]:
        assert len(nearest(db, "t", operator, query, 10, False)) == 10
    with pytest.raises(errors.DataException, match=r"norm .*e37: norms up to 9.2e18"):
        nearest(db, "t", operator, 1e19 * odd[0], 10, False)
    db.execute("DELETE FROM t WHERE id % 3 = 0")
    db.execute("VACUUM t")
    verify(db)
    # Under the others the operators themselves are off, or the huge ones are the nearest.
    if metric == "l2":
        # Codes have one scale for all: beside huge rows they tell nothing of others.
        db.execute("SET ann.rerank = 1000")
        assert recall(db, "t", operator, queries) >= 0.9
    db.execute("REINDEX INDEX i")
    verify(db)


def test_queries_of_another_dimension(db: Db, method: str) -> None:
    db.execute(f"CREATE TABLE t (id int, v vector({DIM}))")
    index(db, method)
    db.execute("SET enable_seqscan = off")
    for rows in (0, 300):
        fill(db, "t", clustered(rows, DIM, 4))
        for query in ("[1,2]", f"[{'1,' * DIM}1]"):
            length = query.count(",") + 1
            for order in (f"'{query}'::vector", f"(SELECT '{query}'::vector)"):
                with pytest.raises(errors.DataException, match=rf"\b{length}\b.*\b{DIM}\b"):
                    db.execute(f"SELECT id FROM t ORDER BY v <-> {order} LIMIT 1")


def test_types_that_do_not_fit(db: Db, method: str) -> None:
    table(db, clustered(300, DIM, 5))
    for kind in ("halfvec_l2_ops", "halfvec_cosine_ops"):
        with pytest.raises(errors.DatatypeMismatch, match="vector"):
            db.execute(f"CREATE INDEX ON t USING {method} (v {kind})")
    with pytest.raises(errors.UndefinedObject, match="default operator class"):
        db.execute(f"CREATE INDEX ON t USING {method} (v)")
    for wrong in (
        "UNIQUE INDEX ON t USING {} (v vector_l2_ops)",
        "INDEX ON t USING {} (v vector_l2_ops, v vector_ip_ops)",
        "INDEX ON t USING {} (v vector_l2_ops DESC)",
        "INDEX ON t USING {} (v vector_l2_ops) INCLUDE (id)",
    ):
        with pytest.raises(errors.FeatureNotSupported, match=method):
            db.execute("CREATE " + wrong.format(method))
    db.execute("CREATE TABLE anything (v vector, h halfvec)")
    for column in ("v vector_l2_ops", "h halfvec_l2_ops"):
        with pytest.raises(errors.InvalidParameterValue, match="does not have dimensions"):
            db.execute(f"CREATE INDEX ON anything USING {method} ({column})")
    for kind in ("vector", "halfvec"):
        with pytest.raises(errors.InvalidParameterValue, match="16000"):
            db.execute(f"CREATE TABLE large (v {kind}(16001))")
    index(db, method)
    with pytest.raises(errors.FeatureNotSupported, match="does not support clustering"):
        db.execute("CLUSTER t USING i")
    # One column of many dimensions, and an index for each of these: pgvector's way.
    db.execute("INSERT INTO anything SELECT '[1,2,3]' FROM generate_series(1, 50)")
    db.execute("INSERT INTO anything VALUES ('[1,2]')")
    part = "(v::vector(3)) vector_l2_ops) WHERE vector_dims(v) = 3"
    db.execute(f"CREATE INDEX three ON anything USING {method} ({part}")
    db.execute("INSERT INTO anything VALUES ('[1,2,4]'), ('[1]')")
    verify(db, "three")
    with pytest.raises(errors.DataException, match="3"):
        db.execute(f"CREATE INDEX ON anything USING {method} ((v::vector(3)) vector_l2_ops)")


def test_operator_classes_of_others_are_refused(db: Db, method: str) -> None:
    table(db, clustered(10, DIM, 6))
    db.execute(
        f"CREATE OPERATOR CLASS test.l1_ops FOR TYPE vector USING {method} AS"
        " OPERATOR 1 <+> (vector, vector) FOR ORDER BY float_ops"
    )
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="operator class"):
        db.execute(f"CREATE INDEX ON t USING {method} (v test.l1_ops)")
    assert value(
        db,
        "SELECT bool_and(amvalidate(oid) = (opcname <> 'l1_ops')) FROM pg_opclass"
        " WHERE opcmethod = (SELECT oid FROM pg_am WHERE amname = %s)",
        method,
    )


OPTIONS = [
    ("ann_hnsw", "m", 2, 100),
    ("ann_hnsw", "ef_construction", 4, 10000),
    ("ann_hnsw", "code_bits", -1, 8),
    ("ann_diskann", "degree", 32, 256),
    ("ann_diskann", "build_list_size", 4, 10000),
    ("ann_diskann", "code_bits", -1, 8),
    ("ann_ivfpq", "lists", 0, 2**24),
    ("ann_ivfpq", "bits", 4, 8),
    ("ann_ivfpq", "sample", 0, 2**30),
    ("ann_ivfpq", "train_at", 1, 2**30),
]


@pytest.mark.parametrize(("method", "option", "low", "high"), OPTIONS)
def test_storage_parameters_are_checked(
    db: Db, method: str, option: str, low: int, high: int
) -> None:
    table(db, clustered(300, DIM, 7))
    db.execute(f"CREATE INDEX i ON t USING {method} (v vector_l2_ops)")
    for wrong in (low - 1, high + 1, -(2**31), 2**31 - 1):
        for command in (
            f"CREATE INDEX ON t USING {method} (v vector_l2_ops) WITH ({option} = {wrong})",
            f"ALTER INDEX i SET ({option} = {wrong})",
        ):
            with pytest.raises(errors.InvalidParameterValue, match=f"{wrong}.*{option}") as caught:
                db.execute(command)
            assert f'"{low}" and "{high}"' in (caught.value.diag.message_detail or "")
    for wrong in ("many", "'1.5.1'", "''"):
        with pytest.raises(errors.InvalidParameterValue, match=option):
            db.execute(f"ALTER INDEX i SET ({option} = {wrong})")
    for right in (low, high):
        db.execute(f"ALTER INDEX i SET ({option} = {right})")
        db.execute("REINDEX INDEX i")
        verify(db)
        assert value(db, "SELECT reloptions FROM pg_class WHERE relname = 'i'") == [
            f"{option}={right}"
        ]
    known = {name for own, name, _, _ in OPTIONS if own == method}
    # An index of lists has it only where vectors are left to the heap.
    known |= {"code_bits"} if method == "ann_ivfpq" else set()
    others = {name for _, name, _, _ in OPTIONS} | {"fillfactor", "probes"}
    for other in sorted(others - known):
        with pytest.raises(errors.InvalidParameterValue, match=f'unrecognized.*"{other}"'):
            db.execute(f"ALTER INDEX i SET ({other} = 32)")
    db.execute(f"ALTER INDEX i RESET ({option})")
    verify(db)


@pytest.mark.parametrize(
    ("method", "option", "wrong", "allowed"),
    [
        ("ann_diskann", "degree", 33, "multiple of 32"),
        ("ann_diskann", "degree", 48, "multiple of 32"),
        ("ann_diskann", "code_bits", 3, "4 or 8"),
        ("ann_ivfpq", "bits", 5, "4 or 8"),
    ],
)
def test_values_between_those_that_are_allowed(
    db: Db, method: str, option: str, wrong: int, allowed: str
) -> None:
    """Refused at once: not only by the next REINDEX."""
    table(db, clustered(300, DIM, 8))
    more = f"WITH ({option} = {wrong})"
    with pytest.raises(errors.InvalidParameterValue, match=f"{option}.*{wrong}.*{allowed}"):
        index(db, method, more=more)
    db.execute("CREATE TABLE empty (LIKE t)")
    with pytest.raises(errors.InvalidParameterValue, match=f"{option}.*{wrong}.*{allowed}"):
        db.execute(f"CREATE INDEX ON empty USING {method} (v vector_l2_ops) {more}")
    index(db, method)
    with pytest.raises(errors.InvalidParameterValue, match=f"{option}.*{wrong}.*{allowed}"):
        db.execute(f"ALTER INDEX i SET ({option} = {wrong})")
    db.execute("REINDEX INDEX i")
    verify(db)


SETTINGS = {
    "ann.hnsw_ef_search": ("1 .. 100000", ("0", "-1", "100001", "99999999999", "'x'")),
    "ann.diskann_list_size": ("1 .. 100000", ("0", "-1", "100001", "''")),
    "ann.ivfpq_probes": ("0 .. 100000", ("-1", "100001", "'all'")),
    "ann.rerank": ("0 .. 100000", ("-1", "100001", "''")),
    "ann.max_scan_tuples": ("1 .. 2147483647", ("0", "-1", "2147483648")),
    "ann.iterative_scan": ("off, relaxed, strict", ("maybe", "''", "1")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_checked(db: Db, server: Any, name: str) -> None:
    allowed, wrong = SETTINGS[name]
    db.execute("LOAD 'ann'")
    before = value(db, f"SHOW {name}")
    for one in wrong:
        with pytest.raises(errors.InvalidParameterValue) as caught:
            db.execute(f"SET {name} = {one}")
        diag = caught.value.diag
        said = f"{diag.message_primary} {diag.message_hint}"
        assert name in said
        assert allowed in said or "invalid value" in said
    assert value(db, f"SHOW {name}") == before
    assert value(db, "SELECT short_desc <> '' FROM pg_settings WHERE name = %s", name)
    # What is set before the library is loaded is checked when it is.
    with server.connect(options=f"-c {name}={wrong[0]}") as early:
        notices: list[str] = []
        early.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        early.execute("LOAD 'ann'")
        assert any(name in notice for notice in notices)
        assert value(early, f"SHOW {name}") == before


def test_settings_that_do_not_exist(db: Db, server: Any) -> None:
    db.execute("LOAD 'ann'")
    with pytest.raises(errors.InvalidName, match="reserved prefix"):
        db.execute("SET ann.nothing = 1")
    with db.transaction():
        db.execute("SET LOCAL ann.hnsw_ef_search = 7")
    assert value(db, "SHOW ann.hnsw_ef_search") == "64"


def test_functions_take_indexes_of_ours_only(db: Db, server: Any, method: str) -> None:
    table(db, clustered(300, DIM, 9))
    index(db, method)
    db.execute("CREATE INDEX theirs ON t USING hnsw (v vector_l2_ops)")
    db.execute("CREATE VIEW seen AS TABLE t")
    db.execute("CREATE SEQUENCE counter")
    db.execute(f"CREATE TABLE part (id int, v vector({DIM})) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (1000)")
    db.execute(f"CREATE INDEX whole ON part USING {method} (v vector_l2_ops)")
    fill(db, "part", clustered(100, DIM, 10))
    with server.connect() as other:
        other.execute("SET search_path = public")
        other.execute(f"CREATE TEMP TABLE theirs (id int, v vector({DIM}))")
        fill(other, "theirs", clustered(300, DIM, 12))
        other.execute(f"CREATE INDEX temporary ON theirs USING {method} (v vector_l2_ops)")
        temporary = value(other, "SELECT 'temporary'::regclass::oid")
        for function in ("index_stats", "verify_index", "prewarm", "index_recall"):
            call = f"SELECT ann.{function}(%s)"
            for name in ("t", "theirs", "t_pkey", "seen", "counter", "pg_class_oid_index"):
                with pytest.raises(errors.WrongObjectType, match="index"):
                    db.execute(call, (name,))
            for oid, said in ((0, "0|-"), (4_000_000_000, "4000000000")):
                with pytest.raises((errors.UndefinedTable, errors.WrongObjectType), match=said):
                    db.execute(call, (oid,))
            with pytest.raises(errors.UndefinedTable, match="nothing"):
                db.execute(call, ("nothing",))
            assert db.execute(call, (None,)).fetchall() in ([], [(None,)])
            with pytest.raises(errors.FeatureNotSupported, match="temporary tables of other"):
                db.execute(call, (temporary,))
            if function != "index_recall":
                with pytest.raises(errors.WrongObjectType, match=r"whole.*partition"):
                    db.execute(call, ("whole",))
    assert value(db, "SELECT ann.index_recall('whole', 5, 5)") >= 0.9
    verify(db, "part1_v_idx", "i")


def test_recall_is_measured_of_sound_arguments_only(db: Db, method: str) -> None:
    strange = """ "a""b; $1 %s 'c'" """
    db.execute(f"CREATE SCHEMA IF NOT EXISTS {strange}")
    name = f"{strange}.{strange}"
    db.execute(f"DROP TABLE IF EXISTS {name}")
    db.execute(f"CREATE TABLE {name} (id int, {strange} vector({DIM}))")
    rows = clustered(200, DIM, 11)
    for number, row in enumerate(rows):
        db.execute(f"INSERT INTO {name} VALUES ({number}, '{text(row)}')")
    db.execute(f"CREATE INDEX strange ON {name} USING {method} ({strange} vector_l2_ops)")
    found = value(db, "SELECT oid FROM pg_class WHERE relname = 'strange'")
    assert value(db, f"SELECT ann.index_recall({found}, 5, 5)") >= 0.9
    assert value(db, f"SELECT ann.index_recall({found}, 1000, 1000)") >= 0.9
    for sample, k in ((0, 1), (-1, 1), (1, 0), (1, -(2**31))):
        with pytest.raises(errors.InvalidParameterValue, match=f"{sample}.*{k}.*at least 1"):
            db.execute(f"SELECT ann.index_recall({found}, {sample}, {k})")
    for more in ("NULL, 1", "1, NULL"):
        assert value(db, f"SELECT ann.index_recall({found}, {more})") is None
    db.execute(f"TRUNCATE {name}")
    assert value(db, f"SELECT ann.index_recall({found}, 5, 5)") is None
    db.execute(f"DROP SCHEMA {strange} CASCADE")
