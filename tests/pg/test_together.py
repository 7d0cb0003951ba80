"""Many clients at once, servers that die, and servers that follow: all is there and sound then."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from conftest import METHODS, clustered, fill, nearest, recall, text

from embedded import Installation, Server

DIM = 16
ROUNDS = 20


@contextmanager
def running(work: list[Callable[[], None]]) -> Iterator[None]:
    """Threads that do their work until the block ends."""
    errors: list[BaseException] = []

    def run(what: Callable[[], None]) -> None:
        try:
            what()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(what,)) for what in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def make(db: psycopg.Connection[Any], method: str, rows: int = 1000) -> None:
    db.execute(f"DROP TABLE IF EXISTS {method}_t")
    db.execute(f"CREATE TABLE {method}_t (id bigint, v vector({DIM}))")
    fill(db, f"{method}_t", clustered(rows, DIM, 1))
    options = {"ann_hnsw": "ef_construction = 60", "ann_diskann": "build_list_size = 60"}
    db.execute(
        f"CREATE INDEX {method}_i ON {method}_t USING {method} (v vector_l2_ops)"
        f" WITH ({options[method]})"
    )
    db.execute(f"ALTER TABLE {method}_t SET (autovacuum_enabled = off)")


def writer(server: Server, method: str, seed: int, over: Callable[[], bool]) -> None:
    """Inserts, deletes and changes rows of its own until it is over, or the server is gone."""
    rng = random.Random(seed)
    with server.connect() as db:
        number = 1_000_000 * (seed + 1)
        while not over():
            rows = clustered(5, DIM, rng.randrange(1 << 30))
            for row in rows:
                number += 1
                db.execute(f"INSERT INTO {method}_t VALUES (%s, %s)", (number, text(row)))
            low = number - rng.randrange(1, 60)
            db.execute(f"DELETE FROM {method}_t WHERE id = %s", (low,))
            db.execute(f"UPDATE {method}_t SET v = %s WHERE id = %s", (text(rows[0]), number - 2))


def reader(server: Server, method: str, seed: int, over: Callable[[], bool]) -> None:
    with server.connect() as db:
        while not over():
            query = clustered(1, DIM, seed)[0]
            found = nearest(db, f"{method}_t", "<->", query, 10, False)
            distances = [distance for _, distance in found]
            assert len(found) == 10
            assert distances == sorted(distances)
            seed += 1


def vacuumer(server: Server, method: str, over: Callable[[], bool]) -> None:
    with server.connect() as db:
        while not over():
            db.execute(f"VACUUM {method}_t")
            time.sleep(0.05)


@pytest.mark.parametrize("method", METHODS)
def test_ten_clients(server: Server, method: str) -> None:
    with server.connect() as db:
        make(db, method)
        end = time.monotonic() + 8
        over = lambda: time.monotonic() > end  # noqa: E731
        work: list[Callable[[], None]] = [
            *(lambda n=n: writer(server, method, n, over) for n in range(5)),
            *(lambda n=n: reader(server, method, 100 * n, over) for n in range(4)),
            lambda: vacuumer(server, method, over),
        ]
        with running(work):
            pass
        db.execute(f"SELECT ann.verify_index('{method}_i', true)")
        assert recall(db, f"{method}_t", "<->", clustered(20, DIM, 5)) >= 0.95
        db.execute(f"VACUUM {method}_t")
        db.execute(f"SELECT ann.verify_index('{method}_i', true)")
        db.execute(f"DROP TABLE {method}_t")


def kill_under_load(server: Server, round: int, seconds: float) -> None:
    """Kills the server while clients insert, delete and vacuum, and starts it again."""
    dead = threading.Event()

    def until_killed(what: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                what()
            except psycopg.OperationalError:
                # Only the kill ends connections.
                assert dead.wait(5)

        return run

    work = [
        until_killed(lambda m=m, n=n: writer(server, m, 10 * round + n, dead.is_set))
        for m in METHODS
        for n in range(2)
    ]
    work += [until_killed(lambda m=m: vacuumer(server, m, dead.is_set)) for m in METHODS]
    with running(work):
        time.sleep(seconds)
        server.stop(signal.SIGKILL)
        dead.set()
    server.start()


def test_killed_at_any_moment(installation: Installation) -> None:
    rng = random.Random(7)
    server = Server(installation, "killed", fsync="off").init().start()
    try:
        with server.connect() as db:
            db.execute("CREATE EXTENSION ann CASCADE")
            for method in METHODS:
                make(db, method)
            db.execute(f"CREATE UNLOGGED TABLE u (id int, v vector({DIM}))")
            db.execute("CREATE INDEX ui ON u USING ann_hnsw (v vector_l2_ops)")
            fill(db, "u", clustered(100, DIM, 6))
        for round in range(ROUNDS):
            kill_under_load(server, round, rng.uniform(0.2, 1.0))
            with server.connect() as db:
                for method in METHODS:
                    db.execute(f"SELECT ann.verify_index('{method}_i', true)")
                    queries = clustered(5, DIM, round)
                    assert recall(db, f"{method}_t", "<->", queries) >= 0.9
                # Unlogged tables are empty after a crash.
                db.execute("SELECT ann.verify_index('ui', true)")
                assert db.execute("SELECT count(*) FROM u").fetchone() == (0,)
                fill(db, "u", clustered(100, DIM, round))
        assert "PANIC" not in server.log()
    finally:
        server.stop(signal.SIGQUIT)


def test_a_standby_answers_the_same(installation: Installation) -> None:
    settings = {"wal_consistency_checking": "all", "wal_level": "replica", "max_wal_senders": "4"}
    server = Server(installation, "primary", **settings).init().start()
    standby = Server(installation, "standby", **settings)
    try:
        with server.connect() as db:
            db.execute("CREATE EXTENSION ann CASCADE")
            for method in METHODS:
                make(db, method, 300)
            installation.run(
                *("pg_basebackup", "-h", server.data, "-U", "postgres", "-D", standby.data, "-R"),
                *("--checkpoint=fast", "--no-sync"),
            )
            standby.start()
            for method in METHODS:
                fill(db, f"{method}_t", clustered(1500, DIM, 2), 300)
                db.execute(f"DELETE FROM {method}_t WHERE id % 3 = 0")
                db.execute(f"VACUUM {method}_t")
                fill(db, f"{method}_t", clustered(300, DIM, 3), 5000)
                db.execute(f"REINDEX INDEX {method}_i")
                fill(db, f"{method}_t", clustered(100, DIM, 4), 6000)
                db.execute(f"CREATE UNLOGGED TABLE IF NOT EXISTS u_{method} AS TABLE {method}_t")
                db.execute(f"CREATE INDEX ON u_{method} USING {method} (v vector_l2_ops)")
            row = db.execute("SELECT pg_current_wal_lsn()").fetchone()
            assert row is not None
            with standby.connect() as copy:
                end = time.monotonic() + 60
                behind = "SELECT pg_last_wal_replay_lsn() < %s::pg_lsn"
                while copy.execute(behind, (row[0],)).fetchone() != (False,):
                    assert time.monotonic() < end
                    time.sleep(0.1)
                for method in METHODS:
                    for query in clustered(20, DIM, 5):
                        here = nearest(db, f"{method}_t", "<->", query, 20, False)
                        there = nearest(copy, f"{method}_t", "<->", query, 20, False)
                        assert here == there
        assert "inconsistent page" not in standby.log()
    finally:
        standby.stop(signal.SIGQUIT)
        server.stop(signal.SIGQUIT)
