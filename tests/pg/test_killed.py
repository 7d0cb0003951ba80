"""Servers that die at any moment: all that was committed is there after recovery, and sound."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable

import psycopg
from clients import DIM, make, reader, running, vacuumer, writer
from conftest import METHODS, clustered, fill, recall

from embedded import Installation, Server

ROUNDS = 200 if os.environ.get("ANN_SOAK") else 20
# So few pages in memory that what a crash leaves on disk is of different times.
LITTLE = {"shared_buffers": "2MB", "fsync": "off", "wal_compression": "on"}


def checkpointer(server: Server, rng: random.Random, over: Callable[[], bool]) -> None:
    with server.connect() as db:
        while not over():
            time.sleep(rng.uniform(0, 0.3))
            db.execute("CHECKPOINT")


def kill_under_load(server: Server, number: int, seconds: float) -> None:
    """Kills the server while clients insert, delete, search and vacuum, and starts it again."""
    dead = threading.Event()

    def until_killed(what: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                what()
            except psycopg.OperationalError:
                # Nothing but the kill may end a connection.
                assert dead.wait(5)

        return run

    over = dead.is_set
    work: list[Callable[[], None]] = [lambda: checkpointer(server, random.Random(number), over)]
    for method in METHODS:
        for client in range(2):
            seed = 10 * number + client
            work.append(lambda m=method, s=seed: writer(server, m, s, over))
        work.append(lambda m=method: reader(server, m, number, over))
        work.append(lambda m=method: vacuumer(server, m, over))
    with running([until_killed(what) for what in work]):
        time.sleep(seconds)
        server.stop(signal.SIGKILL)
        dead.set()
    server.start()


def test_killed_at_any_moment(installation: Installation) -> None:
    rng = random.Random(7)
    server = Server(installation, "killed", **LITTLE).init().start()
    try:
        with server.connect() as db:
            db.execute("CREATE EXTENSION ann CASCADE")
            for method in METHODS:
                make(db, method)
            db.execute(f"CREATE UNLOGGED TABLE u (id int, v vector({DIM}))")
            for method in METHODS:
                db.execute(f"CREATE INDEX {method}_u ON u USING {method} (v vector_l2_ops)")
            fill(db, "u", clustered(100, DIM, 6))
        for number in range(ROUNDS):
            kill_under_load(server, number, rng.uniform(0.2, 0.9))
            with server.connect() as db:
                for method in METHODS:
                    db.execute(f"SELECT ann.verify_index('{method}_i', true)")
                    queries = clustered(20, DIM, number)
                    assert recall(db, f"{method}_t", "<->", queries) >= 0.9
                # Unlogged tables are empty after a crash.
                for method in METHODS:
                    db.execute(f"SELECT ann.verify_index('{method}_u', true)")
                assert db.execute("SELECT count(*) FROM u").fetchone() == (0,)
                fill(db, "u", clustered(100, DIM, number))
        assert "PANIC" not in server.log()
    finally:
        server.stop(signal.SIGQUIT)
