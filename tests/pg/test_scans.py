"""Odd scans: limits of all sizes, cursors that turn back, scans within scans, errors amid them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from conftest import DIM, Db, clustered, fill, index, nearest, recall, table, text, value, verify

errors = psycopg.errors


@pytest.fixture
def order(db: Db, method: str) -> str:
    """A table of 400 rows, and a query of it."""
    table(db, clustered(400, DIM, 1))
    index(db, method)
    db.execute("SET enable_seqscan = off")
    return f"SELECT id FROM t ORDER BY v <-> '{text(clustered(1, DIM, 2)[0])}'"


def test_limits_of_all_sizes(db: Db, order: str) -> None:
    def count(more: str) -> int:
        return len(db.execute(f"{order} {more}").fetchall())

    db.execute("SET ann.iterative_scan = relaxed")
    for effort in (1, 64, 100_000):
        db.execute(f"SET ann.hnsw_ef_search = {effort}")
        db.execute(f"SET ann.diskann_list_size = {effort}")
        db.execute(f"SET ann.ivfpq_probes = {effort}")
        db.execute(f"SET ann.rerank = {effort}")
        assert count("LIMIT 0") == 0
        assert count("LIMIT 1") == 1
        assert count("LIMIT 400") == count("LIMIT NULL") == count(f"LIMIT {2**62}") == 400
        assert count("LIMIT 5 OFFSET 398") == 2
        assert count("LIMIT 5 OFFSET 1000") == 0
    with pytest.raises(errors.InvalidRowCountInLimitClause):
        count("LIMIT -1")
    assert count("LIMIT 1 OFFSET 399") == 1
    for tuples in (1, 10):
        db.execute(f"SET ann.max_scan_tuples = {tuples}")
        db.execute("SET ann.hnsw_ef_search = 1")
        db.execute("SET ann.diskann_list_size = 1")
        db.execute("SET ann.ivfpq_probes = 1")
        db.execute("SET ann.rerank = 1")
        assert tuples <= count("LIMIT 400") < 60


def test_cursors_turn_back_only_where_they_can(db: Db, order: str) -> None:
    plain = [id for (id,) in db.execute(order)]
    with db.transaction():
        db.execute(f"DECLARE c NO SCROLL CURSOR FOR {order}")
        assert [id for (id,) in db.execute("FETCH 3 FROM c")] == plain[:3]
        with pytest.raises(errors.ObjectNotInPrerequisiteState), db.transaction():
            db.execute("FETCH PRIOR FROM c")
        # Postgres keeps the rows of these.
        for how in ("SCROLL CURSOR", "SCROLL CURSOR WITH HOLD"):
            db.execute(f"DECLARE s {how} FOR {order}")
            assert [id for (id,) in db.execute("FETCH 5 FROM s")] == plain[:5]
            assert [id for (id,) in db.execute("FETCH BACKWARD 5 FROM s")] == plain[3::-1]
            assert [id for (id,) in db.execute("FETCH LAST FROM s")] == plain[-1:]
            db.execute("CLOSE s")
    backwards = db.execute(f"{order} DESC LIMIT 3").fetchall()
    assert [id for (id,) in backwards] == plain[:-4:-1]


def test_scans_of_one_index_beside_one_another(db: Db, order: str) -> None:
    plain = [id for (id,) in db.execute(order)]
    got: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    with db.transaction():
        for name in got:
            db.execute(f"DECLARE {name} CURSOR FOR {order}")
        for turn in range(40):
            for step, (name, ids) in enumerate(got.items(), 1):
                ids += [id for (id,) in db.execute(f"FETCH {step} FROM {name}")]
            if turn == 5:
                fill(db, "t", clustered(50, DIM, 3), 1000)
                db.execute("CLOSE c")
                db.execute(f"DECLARE c CURSOR FOR {order}")
                got["c"].clear()
    for name in "ab":
        assert got[name] == plain[: len(got[name])]
    verify(db)


def test_scans_begin_anew_for_each_outer_row(db: Db, order: str) -> None:
    join = (
        "SELECT o.id, i.id FROM (SELECT * FROM t ORDER BY id LIMIT 50) o CROSS JOIN LATERAL"
        " (SELECT id FROM t ORDER BY v <-> o.v LIMIT 3) i"
    )
    assert "Index Scan using i on t" in str(db.execute(f"EXPLAIN {join}").fetchall())
    pairs = db.execute(join).fetchall()
    assert len(pairs) == 150
    assert [inner for _, inner in pairs[::3]] == list(range(50))
    # One plan for all parameters.
    db.execute("SET plan_cache_mode = force_generic_plan")
    db.execute("PREPARE near (vector) AS SELECT id FROM t ORDER BY v <-> $1 LIMIT 1")
    for id in (3, 399, 70):
        query = value(db, "SELECT v FROM t WHERE id = %s", id)
        assert value(db, f"EXECUTE near('{query}')") == id
    assert len(db.execute("EXECUTE near(NULL)").fetchall()) == 1


def test_conditions_on_the_distance(db: Db, order: str) -> None:
    query = order.partition("'")[2].rstrip("'")
    near = f"v <-> '{query}'"
    bound = value(db, f"SELECT {near} FROM t ORDER BY {near} OFFSET 20 LIMIT 1")
    within = f"SELECT id FROM t WHERE {near} < %s ORDER BY {near}, id LIMIT 100"
    assert len(db.execute(within, (bound + 1e-4,)).fetchall()) >= 20
    assert db.execute(f"SELECT id FROM t WHERE {near} < -1 ORDER BY {near}").fetchall() == []
    # Without an order there is nothing to scan by.
    assert "Seq Scan" in str(db.execute(f"EXPLAIN SELECT id FROM t WHERE {near} < 1").fetchall())


def test_errors_amid_a_transaction_leave_nothing(db: Db, method: str, order: str) -> None:
    """Hundreds of errors in subtransactions: no pin, lock or half of a row stays."""
    db.execute(
        "CREATE FUNCTION test.provoke() RETURNS int LANGUAGE plpgsql AS $$\n"
        "DECLARE caught int := 0; q vector; begin\n"
        "  FOR n IN 1..200 LOOP\n"
        "    BEGIN\n"
        "      INSERT INTO t SELECT 10000 + n, v FROM t WHERE id = n;\n"
        "      PERFORM id FROM t ORDER BY v <-> '[1,2]' LIMIT 1;\n"
        "    EXCEPTION WHEN data_exception THEN caught := caught + 1;\n"
        "    END;\n"
        "  END LOOP;\n"
        "  RETURN caught;\n"
        "END $$"
    )
    with db.transaction():
        assert value(db, "SELECT test.provoke()") == 200
        assert len(db.execute(f"{order} LIMIT 10").fetchall()) == 10
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'page' AND pid = pg_backend_pid()"
        assert value(db, held) == 0
    assert value(db, "SELECT count(*) FROM t") == 400
    verify(db)
    db.execute("VACUUM t")
    verify(db)
    assert value(db, "SELECT vectors FROM ann.index_stats('i')") == 400


def test_rolled_back_rows_are_not_found(db: Db, server: Any, method: str, order: str) -> None:
    rows = clustered(100, DIM, 4)
    with db.transaction(force_rollback=True):
        fill(db, "t", rows, 1000)
        assert nearest(db, "t", "<->", rows[5], 1, False)[0][0] == 1005
        with server.connect(options="-c search_path=test,public") as other:
            assert nearest(other, "t", "<->", rows[5], 1, False)[0][0] < 400
    assert max(id for (id,) in db.execute(order)) < 400
    db.execute("VACUUM t")
    verify(db)
    assert recall(db, "t", "<->", rows[:10]) >= 0.95
