"""What SQL users see, for each access method, type and metric."""

from __future__ import annotations

import math

import numpy as np
import psycopg
import pytest
from conftest import DIM, OPERATORS, Db, clustered, fill, index, nearest, recall, table, text


@pytest.mark.parametrize("metric", OPERATORS)
@pytest.mark.parametrize("kind", ["vector", "halfvec"])
def test_build_search_change(db: Db, method: str, kind: str, metric: str) -> None:
    rows, queries = clustered(2000, DIM, 1), clustered(20, DIM, 2)
    operator = OPERATORS[metric]
    table(db, rows, kind)
    index(db, method, kind, metric)
    db.execute("SET enable_seqscan = off")
    plan = db.execute(
        f"EXPLAIN (ANALYZE, COSTS OFF)"
        f" SELECT id FROM t ORDER BY v {operator} %s::text::{kind} LIMIT 5",
        (text(queries[0]),),
    ).fetchall()
    db.execute("RESET enable_seqscan")
    assert any("Index Scan using i on t" in line for (line,) in plan), plan
    assert any(f"Order By: (v {operator}" in line for (line,) in plan), plan
    assert recall(db, "t", operator, queries) >= 0.95
    fill(db, "t", clustered(500, DIM, 3), 2000)
    db.execute("DELETE FROM t WHERE id % 3 = 0")
    db.execute("UPDATE t SET v = v WHERE id % 7 = 1")
    assert recall(db, "t", operator, queries) >= 0.95
    db.execute("VACUUM t")
    assert recall(db, "t", operator, queries) >= 0.95
    db.execute("SELECT ann.verify_index('i', true)")
    stats = db.execute("SELECT vectors, tombstones FROM ann.index_stats('i')").fetchone()
    count = db.execute("SELECT count(*) FROM t").fetchone()
    assert stats is not None
    assert count is not None
    assert stats == (count[0], 0)
    db.execute("REINDEX INDEX i")
    db.execute("SELECT ann.verify_index('i', true)")
    assert recall(db, "t", operator, queries) >= 0.95
    measured = db.execute("SELECT ann.index_recall('i', 10, 10)").fetchone()
    assert measured is not None
    assert 0.9 <= measured[0] <= 1


@pytest.mark.parametrize("metric", OPERATORS)
def test_order_and_distances_are_the_operators_own(db: Db, method: str, metric: str) -> None:
    table(db, clustered(1000, DIM, 4))
    index(db, method, "vector", metric)
    for query in clustered(5, DIM, 5):
        found = nearest(db, "t", OPERATORS[metric], query, 50, False)
        distances = [distance for _, distance in found]
        assert len(found) == 50
        slack = 1e-5 * max(map(abs, distances))
        assert all(a <= b + slack for a, b in zip(distances, distances[1:]))


def test_grows_from_nothing(db: Db, method: str) -> None:
    db.execute(f"CREATE TABLE t (id int, v vector({DIM}))")
    index(db, method)
    assert nearest(db, "t", "<->", np.zeros(DIM), 5, False) == []
    fill(db, "t", clustered(3000, DIM, 6))
    db.execute("SELECT ann.verify_index('i', true)")
    assert recall(db, "t", "<->", clustered(20, DIM, 7)) >= 0.95


def test_goes_on_beyond_the_pool(db: Db, method: str) -> None:
    table(db, clustered(1500, DIM, 8))
    index(db, method)
    db.execute("SET ann.hnsw_ef_search = 20")
    db.execute("SET ann.diskann_list_size = 20")
    db.execute("SET ann.rerank = 20")
    query = clustered(1, DIM, 9)[0]
    assert len(nearest(db, "t", "<->", query, 500, False)) == 500
    db.execute("SET enable_seqscan = off")
    filtered = f"SELECT id FROM t WHERE id % 50 = 0 ORDER BY v <-> '{text(query)}' LIMIT 20"
    db.execute("SET ann.iterative_scan = relaxed")
    assert len(db.execute(filtered).fetchall()) == 20
    everything = f"SELECT id FROM t ORDER BY v <-> '{text(query)}' LIMIT 1500"
    ids = [id for (id,) in db.execute(everything)]
    assert len(ids) == len(set(ids)) == 1500
    db.execute("SET ann.max_scan_tuples = 100")
    assert len(db.execute(everything).fetchall()) < 300
    db.execute("RESET ann.max_scan_tuples")
    db.execute("SET ann.iterative_scan = off")
    assert 5 <= len(db.execute(everything).fetchall()) < 300


def test_cursors_outlive_changes(db: Db, method: str) -> None:
    table(db, clustered(800, DIM, 10))
    index(db, method)
    with db.transaction():
        db.execute("SET LOCAL enable_seqscan = off")
        query = text(clustered(1, DIM, 11)[0])
        db.execute(f"DECLARE c CURSOR FOR SELECT id FROM t ORDER BY v <-> '{query}'")
        ids = [id for (id,) in db.execute("FETCH 30 FROM c")]
        fill(db, "t", clustered(200, DIM, 12), 800)
        ids += [id for (id,) in db.execute("FETCH 300 FROM c")]
        assert len(ids) == len(set(ids)) == 330
        assert max(ids) < 800
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState), db.transaction():
            db.execute("FETCH BACKWARD 5 FROM c")


def test_null_and_zero(db: Db, method: str) -> None:
    db.execute("CREATE TABLE t (id int, v vector(3))")
    db.execute("INSERT INTO t VALUES (1, '[1,2,3]'), (2, NULL), (3, '[0,0,0]'), (4, '[1,0,0]')")
    index(db, method, metric="cosine")
    db.execute("INSERT INTO t VALUES (5, NULL), (6, '[0,0,0]'), (7, '[0,1,0]')")
    db.execute("SET enable_seqscan = off")
    order = "SELECT id FROM t ORDER BY v <=> %s::vector"
    assert [id for (id,) in db.execute(order, ("[1,0.1,0]",))] == [4, 1, 7]
    # As the planner sees no NULL here, the index does.
    unknown = "SELECT id FROM t ORDER BY v <=> (SELECT NULL::vector)"
    assert len(db.execute(unknown).fetchall()) == 3
    assert len(db.execute(order, ("[0,0,0]",)).fetchall()) == 3
    db.execute("SELECT ann.verify_index('i', true)")


def test_equal_vectors(db: Db, method: str) -> None:
    db.execute("CREATE TABLE t (id int, v vector(3))")
    db.execute("INSERT INTO t SELECT i, '[1,2,3]' FROM generate_series(1, 500) i")
    index(db, method)
    db.execute("INSERT INTO t SELECT i, '[1,2,3]' FROM generate_series(501, 600) i")
    db.execute("SET enable_seqscan = off")
    order = "SELECT id FROM t ORDER BY v <-> '[1,2,3]' LIMIT 1000"
    assert len(db.execute(order).fetchall()) == 600
    db.execute("DELETE FROM t WHERE id % 2 = 0")
    db.execute("VACUUM t")
    assert len(db.execute(order).fetchall()) == 300
    db.execute("SELECT ann.verify_index('i', true)")


@pytest.mark.parametrize("dim", [1, 2000, 16_000])
def test_dimensions(db: Db, method: str, dim: int) -> None:
    rows = clustered(60, dim, 13)
    table(db, rows)
    index(db, method)
    fill(db, "t", clustered(20, dim, 14), 60)
    db.execute("SELECT ann.verify_index('i', true)")
    found = nearest(db, "t", "<->", rows[7], 1, False)
    assert found[0][1] == pytest.approx(0, abs=1e-3)
    assert math.isfinite(found[0][1])


def test_partial_and_expression_indexes(db: Db, method: str) -> None:
    table(db, clustered(500, DIM, 15))
    db.execute(f"CREATE INDEX p ON t USING {method} (v vector_l2_ops) WHERE id % 5 = 0")
    db.execute(f"CREATE INDEX e ON t USING {method} ((v::halfvec({DIM})) halfvec_cosine_ops)")
    db.execute("SET enable_seqscan = off")
    query = text(clustered(1, DIM, 16)[0])
    partial = f"SELECT id FROM t WHERE id % 5 = 0 ORDER BY v <-> '{query}' LIMIT 10"
    assert "using p on" in str(db.execute("EXPLAIN " + partial).fetchall())
    assert all(id % 5 == 0 for (id,) in db.execute(partial))
    expression = f"SELECT id FROM t ORDER BY v::halfvec({DIM}) <=> '{query}' LIMIT 10"
    assert "using e on" in str(db.execute("EXPLAIN " + expression).fetchall())
    assert len(db.execute(expression).fetchall()) == 10
    for name in "pe":
        db.execute(f"SELECT ann.verify_index('{name}', true)")


def test_kinds_of_tables(db: Db, method: str) -> None:
    rows = clustered(300, DIM, 17)
    for kind in ("UNLOGGED", "TEMP"):
        db.execute(f"CREATE {kind} TABLE u (id int, v vector({DIM}))")
        db.execute(f"CREATE INDEX ui ON u USING {method} (v vector_l2_ops)")
        fill(db, "u", rows)
        db.execute("SELECT ann.verify_index('ui', true)")
        assert len(nearest(db, "u", "<->", rows[0], 10, False)) == 10
        db.execute("TRUNCATE u")
        fill(db, "u", rows[:50])
        db.execute("SELECT ann.verify_index('ui', true)")
        db.execute("DROP TABLE u")
    with db.transaction():
        db.execute(f"CREATE TABLE n (id int, v vector({DIM}))")
        db.execute(f"CREATE INDEX ni ON n USING {method} (v vector_l2_ops)")
        fill(db, "n", rows)
        db.execute("TRUNCATE n")
        fill(db, "n", rows[:70])
        db.execute("SELECT ann.verify_index('ni', true)")
    db.execute(f"CREATE TABLE part (id int, v vector({DIM})) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (100)")
    db.execute(f"CREATE INDEX ON part USING {method} (v vector_l2_ops)")
    db.execute("CREATE TABLE part2 PARTITION OF part FOR VALUES FROM (100) TO (1000)")
    fill(db, "part", rows)
    found = nearest(db, "part", "<->", rows[200], 10, False)
    assert found[0][0] == 200


def test_rewrites_and_concurrent_builds(db: Db, method: str) -> None:
    table(db, clustered(500, DIM, 18))
    db.execute(f"CREATE INDEX CONCURRENTLY i ON t USING {method} (v vector_l2_ops)")
    db.execute("DELETE FROM t WHERE id % 2 = 0")
    db.execute("VACUUM FULL t")
    db.execute("SELECT ann.verify_index('i', true)")
    db.execute("CLUSTER t USING t_pkey")
    db.execute("SELECT ann.verify_index('i', true)")
    db.execute("REINDEX INDEX CONCURRENTLY i")
    db.execute("SELECT ann.verify_index('i', true)")
    assert recall(db, "t", "<->", clustered(10, DIM, 19)) >= 0.95


def test_little_memory_inserts_the_rest(db: Db, method: str) -> None:
    table(db, clustered(4000, 64, 20))
    notices: list[str] = []
    db.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    db.execute("SET maintenance_work_mem = '1MB'")
    index(db, method)
    assert any("maintenance_work_mem" in notice for notice in notices)
    db.execute("SELECT ann.verify_index('i', true)")
    assert recall(db, "t", "<->", clustered(10, 64, 21)) >= 0.95


def test_size_stays_when_rows_are_replaced(db: Db, method: str) -> None:
    table(db, clustered(2000, DIM, 22))
    index(db, method)

    def size() -> int:
        row = db.execute("SELECT pg_relation_size('i')").fetchone()
        assert row is not None
        return row[0]

    before = size()
    for cycle in range(10):
        db.execute("DELETE FROM t WHERE id %% 2 = %s", (cycle % 2,))
        db.execute("VACUUM t")
        fill(db, "t", clustered(1000, DIM, 30 + cycle), 10_000 * (cycle + 1))
        db.execute("DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY id OFFSET 2000)")
    db.execute("VACUUM t")
    db.execute("SELECT ann.verify_index('i', true)")
    assert size() <= 1.1 * before


def test_the_planner_knows_when_not_to(db: Db, method: str) -> None:
    table(db, clustered(5000, DIM, 25))
    index(db, method)
    query = text(clustered(1, DIM, 26)[0])

    def plan(limit: int, name: str = "t") -> str:
        order = f"EXPLAIN SELECT id FROM {name} ORDER BY v <-> '{query}' LIMIT {limit}"
        return str(db.execute(order).fetchall())

    assert "Index Scan using i" in plan(10)
    assert "Seq Scan" in plan(100_000)
    assert "Seq Scan" in str(db.execute("EXPLAIN SELECT * FROM t").fetchall())
    db.execute(f"CREATE TABLE tiny (id int, v vector({DIM}))")
    fill(db, "tiny", clustered(10, DIM, 27))
    db.execute(f"CREATE INDEX ON tiny USING {method} (v vector_l2_ops)")
    db.execute("ANALYZE tiny")
    assert "Seq Scan" in plan(3, "tiny")


def test_the_store_conforms(db: Db, method: str) -> None:
    db.execute(
        "CREATE FUNCTION test.conforms(oid) RETURNS void"
        " AS '$libdir/ann', 'store_conformance_wrapper' LANGUAGE c"
    )
    for kind in ("", "UNLOGGED", "TEMP"):
        db.execute(f"CREATE {kind} TABLE s (v vector({DIM}))")
        db.execute(f"CREATE INDEX si ON s USING {method} (v vector_l2_ops)")
        db.execute("SELECT test.conforms('si'::regclass)")
        db.execute("DROP TABLE s")
