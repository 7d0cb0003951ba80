"""A standby whose pages are compared with the primary's as it replays: it answers the same."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from clients import DIM, make
from conftest import METHODS, clustered, fill, nearest, text

from embedded import Installation, Server

Pair = tuple[Server, Server]
# A standby ends itself at the first page that replay made different; replay waits for no query.
SETTINGS = {
    "wal_consistency_checking": "all",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "max_standby_streaming_delay": "0",
    "fsync": "off",
    "min_wal_size": "32MB",
    "max_wal_size": "64MB",
    "wal_keep_size": "1GB",
}


@pytest.fixture(scope="module")
def pair(installation: Installation) -> Iterator[Pair]:
    """A primary with a small index of each method, and its standby."""
    primary = Server(installation, "primary", **SETTINGS).init().start()
    standby = Server(installation, "standby", **SETTINGS)
    try:
        with primary.connect() as db:
            db.execute("CREATE EXTENSION ann CASCADE")
            for method in METHODS:
                make(db, method, 300)
        installation.run(
            *("pg_basebackup", "-h", primary.sockets, "-U", "postgres", "-D", standby.data, "-R"),
            *("--checkpoint=fast", "--no-sync"),
        )
        standby.start()
        yield primary, standby
        assert "inconsistent page" not in standby.log()
    finally:
        standby.stop(signal.SIGQUIT)
        primary.stop(signal.SIGQUIT)


def catch_up(db: psycopg.Connection[Any], copy: psycopg.Connection[Any], standby: Server) -> None:
    """Until the standby has replayed all that the primary has logged."""
    row = db.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
    assert row is not None
    db.execute("SELECT txid_current()")
    end = time.monotonic() + 60
    while copy.execute("SELECT pg_last_wal_replay_lsn() < %s::pg_lsn", row).fetchone() != (False,):
        assert time.monotonic() < end, standby.log()[-2000:]
        time.sleep(0.05)


def test_answers_the_same(pair: Pair) -> None:
    primary, standby = pair
    with primary.connect() as db, standby.connect() as copy:
        for method in METHODS:
            fill(db, f"{method}_t", clustered(500, DIM, 2), 300)
            db.execute(f"DELETE FROM {method}_t WHERE id % 3 = 0")
            db.execute(f"VACUUM {method}_t")
            fill(db, f"{method}_t", clustered(200, DIM, 3), 5000)
            db.execute(f"REINDEX INDEX {method}_i")
            fill(db, f"{method}_t", clustered(100, DIM, 4), 6000)
            db.execute(f"CREATE UNLOGGED TABLE u_{method} AS TABLE {method}_t")
            db.execute(f"CREATE INDEX ON u_{method} USING {method} (v vector_l2_ops)")
        catch_up(db, copy, standby)
        for method in METHODS:
            for query in clustered(20, DIM, 5):
                here = nearest(db, f"{method}_t", "<->", query, 20, False)
                there = nearest(copy, f"{method}_t", "<->", query, 20, False)
                assert len(here) == 20
                assert here == there
            # The functions work there too; what is to be written does not.
            ask = f"SELECT * FROM ann.index_stats('{method}_i')"
            assert copy.execute(ask).fetchall() == db.execute(ask).fetchall()
            copy.execute(f"SELECT ann.verify_index('{method}_i', true)")
            copy.execute(f"SELECT ann.prewarm('{method}_i')")
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                copy.execute(f"REINDEX INDEX {method}_i")


def fetch(copy: psycopg.Connection[Any], count: int) -> list[tuple[int, float]]:
    """Rows of a cursor: as many, and on until it rests on a page of the table without dead rows.

    It pins that page, and the replay of a vacuum of it would end the query.
    """
    found = copy.execute(f"FETCH {count} FROM c").fetchall()
    while not 80 <= found[-1][0] % 400 < 120:
        found += copy.execute("FETCH 1 FROM c").fetchall()
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_cursor_outlives_vacuum_and_reuse(pair: Pair, method: str) -> None:
    primary, standby = pair
    table = f"{method}_t"
    query = text(clustered(1, DIM, 8)[0])
    ordered = f"SELECT id, v <-> '{query}' FROM {table} ORDER BY v <-> '{query}'"
    with primary.connect() as db, standby.connect() as copy:
        make(db, method, 1000)
        # Gone before the cursor's snapshot: replay of their vacuum does not end the cursor.
        db.execute(f"DELETE FROM {table} WHERE id % 400 >= 200")
        catch_up(db, copy, standby)
        with copy.transaction():
            copy.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            copy.execute("SET LOCAL enable_seqscan = off")
            copy.execute(f"DECLARE c CURSOR FOR {ordered}")
            found = fetch(copy, 20)
            for change in range(3):
                # Cutting the table short takes a lock that would end the query, too.
                db.execute(f"VACUUM (TRUNCATE false) {table}")
                with contextlib.suppress(psycopg.Rollback), db.transaction():
                    # No snapshot may have seen these rows: no query has to end for their vacuum.
                    fill(db, table, clustered(400, DIM, 40 + change), 10_000 * (change + 1))
                    raise psycopg.Rollback
                catch_up(db, copy, standby)
                found += fetch(copy, 50)
            copy.execute("SET LOCAL enable_seqscan = on")
            copy.execute("SET LOCAL enable_indexscan = off")
            exact = copy.execute(f"{ordered} LIMIT {len(found)}").fetchall()
        stats = db.execute(f"SELECT slots FROM ann.index_stats('{method}_i')").fetchone()
    # Were slots not used again, there would be 2,200 of them.
    assert stats is not None
    assert stats[0] < 1300
    assert len(found) >= 170
    assert found == sorted(found, key=lambda row: row[1])
    ids = [row[0] for row in found]
    assert len(set(ids)) == len(ids)
    assert all(id < 1000 and id % 400 < 200 for id in ids)
    assert len(set(ids) & {row[0] for row in exact}) >= 0.95 * len(exact)
