"""Lists of ann_ivfpq: they come with rows, change with them, and nothing is missed meanwhile."""

from __future__ import annotations

import time

import psycopg
import pytest
from clients import running
from conftest import DIM, Db, clustered, fill, index, nearest, recall, table, text, value, verify

from embedded import Server

LISTS = "SELECT ann.index_lists('i')"


def test_lists_come_with_rows(db: Db) -> None:
    db.execute(f"CREATE TABLE t (id int, v vector({DIM}))")
    db.execute("CREATE INDEX i ON t USING ann_ivfpq (v vector_l2_ops) WITH (train_at = 500)")
    rows = clustered(6000, DIM, 1)
    seen = []
    for first in (0, 400, 800, 2500, 6000):
        fill(db, "t", rows[first:][: [400, 400, 1700, 3500, 0][len(seen)]], first)
        seen.append(value(db, LISTS))
        if first < 6000:
            verify(db)
            assert nearest(db, "t", "<->", rows[first + 7], 1, False)[0][0] == first + 7
    assert seen[0] == 0
    assert 10 <= seen[1] < seen[2] <= seen[3]
    assert recall(db, "t", "<->", clustered(20, DIM, 2)) >= 0.95
    db.execute("DELETE FROM t")
    db.execute("VACUUM t")
    assert value(db, LISTS) == 0
    verify(db)
    fill(db, "t", rows)
    assert value(db, LISTS) > 10
    assert value(db, "SELECT lists FROM ann.index_stats('i')") == value(db, LISTS)
    verify(db)


def test_a_vacuum_learns_what_inserts_leave_to_it(db: Db) -> None:
    rows = clustered(21_500, 8, 3)
    db.execute("CREATE TABLE t (id int, v vector(8))")
    db.execute("CREATE INDEX i ON t USING ann_ivfpq (v vector_cosine_ops) WITH (train_at = 21000)")
    fill(db, "t", rows)
    assert value(db, LISTS) == 0
    assert recall(db, "t", "<=>", clustered(5, 8, 4)) == 1
    db.execute("VACUUM ANALYZE t")
    grown = value(db, LISTS)
    assert grown > 200
    verify(db)
    assert recall(db, "t", "<=>", clustered(20, 8, 5)) >= 0.9
    db.execute("REINDEX INDEX i")
    assert 0.9 * value(db, LISTS) <= grown <= 1.1 * value(db, LISTS)


def test_only_its_own_indexes_have_lists(db: Db) -> None:
    table(db, clustered(300, DIM, 6))
    index(db, "ann_hnsw")
    assert value(db, "SELECT lists FROM ann.index_stats('i')") == 0
    for name in ("i", "t_pkey", "t"):
        with pytest.raises(psycopg.errors.WrongObjectType, match="index"):
            value(db, "SELECT ann.index_lists(%s)", name)


def test_vectors_of_lists_are_kept(db: Db) -> None:
    table(db, clustered(1500, DIM, 7))
    index(db, "ann_ivfpq", more="WITH (vectors = f16, bits = 8)")
    assert value(db, "SELECT element FROM ann.index_stats('i')") == "f16"
    assert recall(db, "t", "<->", clustered(20, DIM, 8)) >= 0.95
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"code_bits = 4.*heap"):
        db.execute("CREATE INDEX ON t USING ann_ivfpq (v vector_l2_ops) WITH (code_bits = 4)")


def test_lists_of_rows_whose_vectors_are_in_the_heap(db: Db) -> None:
    """Codes in the place of vectors are what lists are learnt from, and what moves between them."""
    db.execute(f"CREATE TABLE t (id int, v vector({DIM}))")
    more = "WITH (vectors = heap, code_bits = 4, train_at = 500)"
    db.execute(f"CREATE INDEX i ON t USING ann_ivfpq (v vector_l2_ops) {more}")
    rows = clustered(6000, DIM, 1)
    seen = []
    for first, last in ((0, 400), (400, 800), (800, 2500), (2500, 6000)):
        fill(db, "t", rows[first:last], first)
        seen.append(value(db, LISTS))
        verify(db)
    assert seen[0] == 0
    assert 10 <= seen[1] < seen[2] <= seen[3]
    queries = clustered(20, DIM, 2)
    assert recall(db, "t", "<->", queries) >= 0.95
    # All in one place: a list that a vacuum cuts.
    fill(db, "t", rows[:1] + 0.2 * clustered(900, DIM, 3), 10_000)
    db.execute("VACUUM ANALYZE t")
    assert value(db, LISTS) != seen[3]
    assert recall(db, "t", "<->", queries) >= 0.95
    verify(db)
    db.execute("DELETE FROM t WHERE id % 3 > 0")
    db.execute("VACUUM t")
    assert recall(db, "t", "<->", queries) >= 0.95
    verify(db)
    whole = value(db, "SELECT bytes FROM ann.index_stats('i')")
    db.execute("REINDEX INDEX i")
    assert recall(db, "t", "<->", queries) >= 0.95
    verify(db)
    assert value(db, "SELECT bytes FROM ann.index_stats('i')") < whole


@pytest.mark.parametrize("codes", ["code = rabitq1", "code = rabitq4", "opq = true"])
def test_codes_of_lists(db: Db, codes: str) -> None:
    rows = clustered(2500, DIM, 9)
    table(db, rows[:1500])
    index(db, "ann_ivfpq", more=f"WITH ({codes})")
    assert value(db, LISTS) > 10
    verify(db)
    fill(db, "t", rows[1500:], 1500)
    db.execute("DELETE FROM t WHERE id % 3 = 0")
    db.execute("VACUUM t")
    verify(db)
    assert recall(db, "t", "<->", clustered(20, DIM, 10)) >= 0.95


@pytest.mark.parametrize(
    "options",
    ["subvectors = 4, code = rabitq1", "bits = 8, code = rabitq2", "opq = on, code = rabitq1"],
)
def test_options_of_other_codes(db: Db, options: str) -> None:
    table(db, clustered(10, DIM, 11))
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="unless code = pq"):
        index(db, "ann_ivfpq", more=f"WITH ({options})")


def test_nothing_is_missed_while_lists_change(server: Server) -> None:
    """Every scan finds each row once, whatever a vacuum and inserts do to lists meanwhile."""
    with server.connect() as db:
        db.execute("DROP TABLE IF EXISTS lists_t")
        db.execute("CREATE TABLE lists_t (id bigserial, v vector(8))")
        db.execute("ALTER TABLE lists_t SET (autovacuum_enabled = off)")
        db.execute(
            "CREATE INDEX lists_i ON lists_t USING ann_ivfpq (v vector_l2_ops)"
            " WITH (train_at = 200)"
        )
    end = time.monotonic() + 8
    over = lambda: time.monotonic() > end  # noqa: E731
    scans = [0]

    def writer() -> None:
        with server.connect() as db:
            for place in range(1000):
                # Always somewhere else, so that lists are cut, given away and learnt anew.
                rows = clustered(1, 8, place) + 0.3 * clustered(60, 8, place)
                for row in rows:
                    db.execute("INSERT INTO lists_t (v) VALUES (%s)", (text(row),))
                old = f"id % 7 = {place % 7} AND id < {place * 40}"
                db.execute(f"DELETE FROM lists_t WHERE {old}")
                if over():
                    return

    def vacuumer() -> None:
        with server.connect() as db:
            while not over():
                db.execute("VACUUM lists_t")

    def reader(seed: int) -> None:
        with server.connect() as db:
            db.execute("SET ann.iterative_scan = relaxed")
            db.execute("SET ann.max_scan_tuples = 1000000")
            while not over():
                seed += 10
                order = f"SELECT id FROM lists_t ORDER BY v <-> '{text(clustered(1, 8, seed)[0])}'"
                with db.transaction():
                    db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    rows = value(db, "SELECT count(*) FROM lists_t")
                    db.execute("SET LOCAL enable_seqscan = off")
                    db.execute("SET LOCAL enable_sort = off")
                    found = [id for (id,) in db.execute(f"{order} LIMIT 1000000")]
                assert len(found) == len(set(found)) == rows
                scans[0] += 1

    with running([writer, vacuumer, lambda: reader(1), lambda: reader(2)]):
        pass
    assert scans[0] > 20
    with server.connect() as db:
        verify(db, "lists_i")
        assert value(db, "SELECT ann.index_lists('lists_i')") > 10
        db.execute("DROP TABLE lists_t")
