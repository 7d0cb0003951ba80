"""Who may do what: the functions of schema `ann`, and indexes of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from conftest import DIM, Db, clustered, fill, index, nearest, table, value, verify

InsufficientPrivilege = psycopg.errors.InsufficientPrivilege
READING = ("index_stats", "verify_index", "prewarm")


@contextmanager
def guest(db: Db) -> Iterator[None]:
    """As a role that owns nothing, and may look into the schema."""
    if value(db, "SELECT count(*) FROM pg_roles WHERE rolname = 'guest'"):
        db.execute("DROP OWNED BY guest")
        db.execute("DROP ROLE guest")
    db.execute("CREATE ROLE guest")
    db.execute("GRANT USAGE, CREATE ON SCHEMA test TO guest")
    db.execute("SET ROLE guest")
    try:
        yield
    finally:
        db.execute("RESET ROLE")


def test_functions_that_read_whole_indexes_are_the_superusers(db: Db, method: str) -> None:
    table(db, clustered(300, DIM, 1))
    index(db, method)
    with guest(db):
        for function in READING:
            with pytest.raises(InsufficientPrivilege, match=function):
                db.execute(f"SELECT ann.{function}('i')")
        # It reads the table as whoever calls it.
        with pytest.raises(InsufficientPrivilege, match="table t"):
            db.execute("SELECT ann.index_recall('i')")
        with pytest.raises(InsufficientPrivilege):
            db.execute("SELECT v FROM t ORDER BY v <-> (SELECT v FROM t LIMIT 1) LIMIT 1")
        for change in ("DROP INDEX i", "REINDEX INDEX i", "ALTER INDEX i RESET (m)"):
            with pytest.raises(InsufficientPrivilege):
                db.execute(change)
        for claim in (f"CREATE ACCESS METHOD mine TYPE INDEX HANDLER ann.{method}_handler",):
            with pytest.raises(InsufficientPrivilege):
                db.execute(claim)
        with pytest.raises(psycopg.errors.Error):
            db.execute(f"SELECT ann.{method}_handler(NULL)")
    db.execute("GRANT EXECUTE ON FUNCTION ann.index_stats, ann.verify_index, ann.prewarm TO guest")
    db.execute("GRANT SELECT ON t TO guest")
    db.execute("SET ROLE guest")
    assert value(db, "SELECT vectors FROM ann.index_stats('i')") == 300
    verify(db)
    assert value(db, "SELECT ann.prewarm('i')") > 0
    assert value(db, "SELECT ann.index_recall('i', 5, 5)") > 0.9


def test_anyone_may_use_indexes(db: Db, method: str) -> None:
    rows = clustered(300, DIM, 2)
    with guest(db):
        table(db, rows)
        index(db, method)
        db.execute("SET ann.hnsw_ef_search = 100")
        db.execute("SET ann.diskann_list_size = 100")
        db.execute("SET ann.ivfpq_probes = 100")
        assert nearest(db, "t", "<->", rows[7], 3, False)[0][0] == 7
        assert value(db, "SELECT ann.index_recall('i', 5, 5)") > 0.9
    verify(db)


def test_policies_hold(db: Db, method: str) -> None:
    rows = clustered(400, DIM, 3)
    table(db, rows)
    index(db, method)
    db.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    db.execute("CREATE POLICY odd ON t USING (id % 2 = 1)")
    with guest(db):
        db.execute("RESET ROLE")
        db.execute("GRANT SELECT ON t TO guest")
        db.execute("SET ROLE guest")
        found = nearest(db, "t", "<->", rows[6], 20, False)
        assert len(found) == 20
        assert all(id % 2 for id, _ in found)
        assert value(db, "SELECT ann.index_recall('i', 5, 5)") > 0.9


SPY = """
    CREATE FUNCTION test.spy(v vector) RETURNS vector IMMUTABLE LANGUAGE plpgsql AS $$
    BEGIN
        IF current_user <> 'guest' THEN
            RAISE EXCEPTION 'run as %', current_user;
        END IF;
        RETURN v;
    END $$
"""


def test_a_tables_owner_runs_what_its_index_computes(db: Db, method: str) -> None:
    """A function of an index's expression gets no rights of the superuser who verifies it."""
    with guest(db):
        db.execute(SPY)
        db.execute(f"CREATE TABLE t (id int, v vector({DIM}))")
        fill(db, "t", clustered(50, DIM, 4))
        db.execute(
            f"CREATE INDEX i ON t USING {method} ((test.spy(v)::vector({DIM})) vector_l2_ops)"
        )
    verify(db)
    assert value(db, "SELECT current_user") == "postgres"
    db.execute("VACUUM t")
    db.execute("REINDEX INDEX i")
    verify(db)
