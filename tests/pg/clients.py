"""Clients that change, search and vacuum a table of their own at the same time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from conftest import clustered, fill, nearest, text

from embedded import Server

DIM = 16


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


def make(db: psycopg.Connection[Any], method: str, rows: int = 1000, vectors: str = "f32") -> None:
    """The table that the clients of a method work on."""
    db.execute(f"DROP TABLE IF EXISTS {method}_t")
    db.execute(f"CREATE TABLE {method}_t (id bigint, v vector({DIM}))")
    fill(db, f"{method}_t", clustered(rows, DIM, 1))
    options = {
        "ann_hnsw": "ef_construction = 60",
        "ann_diskann": "build_list_size = 60",
        # So few rows to train at that lists come while clients are at work.
        "ann_ivfpq": "train_at = 400",
    }
    db.execute(
        f"CREATE INDEX {method}_i ON {method}_t USING {method} (v vector_l2_ops)"
        f" WITH ({options[method]}, vectors = {vectors})"
    )
    db.execute(f"ALTER TABLE {method}_t SET (autovacuum_enabled = off)")


def writer(server: Server, method: str, seed: int, over: Callable[[], bool]) -> None:
    """Inserts, deletes and changes rows of its own until it is over."""
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
    """Searches, and expects ten rows in order."""
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
