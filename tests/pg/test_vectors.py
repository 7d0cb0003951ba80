"""What an index keeps of vectors: halves of them, or codes alone."""

from __future__ import annotations

import psycopg
import pytest
from conftest import (
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

DIM = 48
HEAP = "WITH (vectors = heap)"


@pytest.mark.parametrize("metric", OPERATORS)
@pytest.mark.parametrize("kind", ["vector", "halfvec"])
def test_rows_come_by_distances_of_the_heap(db: Db, method: str, kind: str, metric: str) -> None:
    """Distances are the operator's own, to the last bit, whatever codes say."""
    table(db, clustered(3000, DIM, 1), kind)
    index(db, method, kind, metric, HEAP)
    stats = db.execute("SELECT element, layout, code_bits > 0 FROM ann.index_stats('i')").fetchone()
    assert stats == ("none", "lists" if method == "ann_ivfpq" else "compact", True)
    operator = OPERATORS[metric]
    assert recall(db, "t", operator, clustered(30, DIM, 2)) >= 0.95
    for query in clustered(10, DIM, 3):
        found = nearest(db, "t", operator, query, 30, False)
        exact = dict(nearest(db, "t", operator, query, 3000, True))
        assert [distance for _, distance in found] == sorted(exact[id] for id, _ in found)
    verify(db)


@pytest.mark.parametrize("metric", OPERATORS)
def test_halves_take_half_the_space(db: Db, method: str, metric: str) -> None:
    table(db, clustered(2000, 300, 1))
    index(db, method, "vector", metric)
    whole = value(db, "SELECT bytes FROM ann.index_stats('i')")
    db.execute("DROP INDEX i")
    index(db, method, "vector", metric, "WITH (vectors = f16)")
    element, bytes = db.execute("SELECT element, bytes FROM ann.index_stats('i')").fetchone() or ()
    assert element == "f16"
    assert bytes < 0.75 * whole
    assert recall(db, "t", OPERATORS[metric], clustered(20, 300, 2)) >= 0.85
    verify(db)


def test_what_changes_is_found(db: Db, method: str) -> None:
    """An index made before its rows; updates, deletes, a rollback and vacuum."""
    db.execute(f"CREATE TABLE t (id int PRIMARY KEY, v vector({DIM}))")
    index(db, method, more=HEAP)
    fill(db, "t", clustered(2000, DIM, 1))
    db.execute("ANALYZE t")
    queries = clustered(20, DIM, 2)
    assert recall(db, "t", "<->", queries) >= 0.95
    db.execute("DELETE FROM t WHERE id % 3 = 0")
    assert all(id % 3 for id, _ in nearest(db, "t", "<->", queries[0], 100, False))
    assert recall(db, "t", "<->", queries) >= 0.95
    db.execute("VACUUM t")
    fill(db, "t", clustered(500, DIM, 3), 10_000)
    db.execute("UPDATE t SET v = (v::real[])[1:1] || (v::real[])[2:] WHERE id % 7 = 0")
    with db.transaction(force_rollback=True):
        fill(db, "t", clustered(200, DIM, 4), 20_000)
        assert recall(db, "t", "<->", queries) >= 0.95
    assert all(id < 20_000 for id, _ in nearest(db, "t", "<->", queries[0], 200, False))
    db.execute("VACUUM t")
    assert recall(db, "t", "<->", queries) >= 0.95
    assert value(db, "SELECT ann.index_recall('i', 20, 10)") >= 0.95
    verify(db)


def test_rerank_leaves_nothing_out(db: Db, method: str) -> None:
    """It is how many rows are fetched before the first comes back, not how many come."""
    table(db, clustered(400, DIM, 1))
    index(db, method, more=HEAP)
    db.execute("SET enable_seqscan = off")
    db.execute("SET ann.iterative_scan = relaxed")
    order = f"SELECT id, v <-> '{text(clustered(1, DIM, 2)[0])}' FROM t ORDER BY 2"
    whole = db.execute(order).fetchall()
    assert len({id for id, _ in whole}) == 400
    db.execute("SET ann.rerank = 5")
    pieces = db.execute(order).fetchall()
    assert {id for id, _ in pieces} == {id for id, _ in whole}
    for first in range(0, 50, 5):
        distances = [distance for _, distance in pieces[first : first + 5]]
        assert distances == sorted(distances)
    db.execute("SET ann.iterative_scan = strict")
    strict = [distance for _, distance in db.execute(order).fetchall()]
    assert strict == sorted(strict)


def test_expressions_and_conditions_are_those_of_the_index(db: Db, method: str) -> None:
    """What is measured is what the index is on, not a column."""
    db.execute(f"CREATE TABLE t (id int PRIMARY KEY, a real[], v vector({DIM}))")
    rows = clustered(600, DIM, 1)
    with db.cursor() as cursor, cursor.copy("COPY t (id, a) FROM STDIN") as copy:
        for number, row in enumerate(rows):
            copy.write_row((number, row.tolist()))
    on = f"(a::vector({DIM}))"
    db.execute(f"CREATE INDEX i ON t USING {method} ({on} vector_l2_ops) {HEAP} WHERE id >= 100")
    db.execute("SET enable_seqscan = off")
    query = text(clustered(1, DIM, 2)[0])
    found = db.execute(
        f"SELECT id, {on} <-> '{query}' FROM t WHERE id >= 100 ORDER BY 2 LIMIT 20"
    ).fetchall()
    plan = db.execute(
        f"EXPLAIN SELECT id FROM t WHERE id >= 100 ORDER BY {on} <-> '{query}' LIMIT 20"
    ).fetchall()
    assert "Index Scan using i" in str(plan)
    assert len(found) == 20
    assert all(id >= 100 for id, _ in found)
    assert [distance for _, distance in found] == sorted(distance for _, distance in found)
    verify(db)


def test_queries_without_distances(db: Db, method: str) -> None:
    table(db, clustered(100, DIM, 1))
    index(db, method, metric="cosine", more=HEAP)
    db.execute("SET enable_seqscan = off")
    for query in ("NULL::vector", f"'{text(clustered(1, DIM, 1)[0] * 0)}'"):
        assert len(db.execute(f"SELECT id FROM t ORDER BY v <=> {query} LIMIT 7").fetchall()) == 7


def test_what_cannot_be_is_refused(db: Db, method: str) -> None:
    table(db, clustered(10, DIM, 1))
    with pytest.raises(errors.InvalidParameterValue, match="vectors") as caught:
        index(db, method, more="WITH (vectors = f64)")
    assert "heap" in (caught.value.diag.message_detail or "")
    with pytest.raises(errors.InvalidParameterValue, match=r"code_bits = 0.*heap"):
        index(db, method, more="WITH (vectors = heap, code_bits = 0)")
    with pytest.raises(errors.InvalidParameterValue, match="code_bits = 3"):
        index(db, method, more="WITH (code_bits = 3)")
    db.execute("INSERT INTO t VALUES (10, array_fill(70000, ARRAY[48])::real[])")
    with pytest.raises(errors.DataException, match="70000"):
        index(db, method, more="WITH (vectors = f16)")
    index(db, method, more=HEAP)
    verify(db)
