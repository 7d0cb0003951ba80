"""Many clients at once: all that they did is there then, and sound."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from clients import DIM, make, reader, running, vacuumer, writer
from conftest import METHODS, clustered, recall

from embedded import Server


@pytest.mark.parametrize(
    ("method", "vectors"),
    [(method, vectors) for vectors in ("f32", "heap") for method in METHODS],
)
def test_ten_clients(server: Server, method: str, vectors: str) -> None:
    with server.connect() as db:
        make(db, method, vectors=vectors)
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
        # One of the twenty clusters may be out of reach for a while.
        assert recall(db, f"{method}_t", "<->", clustered(40, DIM, 5)) >= 0.9
        db.execute(f"VACUUM {method}_t")
        db.execute(f"SELECT ann.verify_index('{method}_i', true)")
        db.execute(f"DROP TABLE {method}_t")
