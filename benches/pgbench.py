"""Many clients of a server at once, by pgbench: inserts, searches, searches beside a writer."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from embedded import Server

INSERT = "INSERT INTO items SELECT id, v FROM pool WHERE id = (SELECT nextval('pool_next'));\n"
SEARCH = (
    "\\set n random(0, {last})\n"
    "SELECT id FROM items ORDER BY v {operator} (SELECT v FROM queries WHERE id = :n) LIMIT 10;\n"
)
ONE, EIGHT, SECONDS, RATE = 1000, 250, 6, 50


class Clients:
    """Runs of pgbench on one server, with the table `items`, and rows to insert in `pool`."""

    def __init__(self, server: Server, operator: str, queries: int) -> None:
        self.server = server
        self.folder = server.sockets
        self.scripts = {
            "insert": INSERT,
            "search": SEARCH.format(last=queries - 1, operator=operator),
        }
        for name, text in self.scripts.items():
            path = self.folder / name
            path.write_text(text)
            path.chmod(0o644)

    def run(self, script: str, *options: object, settings: str = "", log: str = "") -> float:
        """Transactions a second, and with a log the latency of each in a file of that name."""
        more = ("-l", "--log-prefix", self.folder / log) if log else ()
        said = self.server.installation.run(
            *("pgbench", "-h", self.folder, "-U", "postgres", "-n", "-M", "prepared", "-j", 2),
            *("-f", self.folder / script, *more, *options, "postgres"),
            env={**os.environ, "PGOPTIONS": settings},
            timeout=120,
        )
        speed = re.search(r"tps = ([0-9.]+)", said)
        failed = re.search(r"number of failed transactions: (\d+)", said)
        if not speed or not failed or int(failed[1]):
            raise RuntimeError(f"pgbench: {said}")
        return float(speed[1])

    def p99(self, settings: str, log: str) -> float:
        """The milliseconds that 99 % of one client's searches take at most."""
        self.run("search", "-c", 1, "-T", SECONDS, settings=settings, log=log)
        times: list[int] = []
        for path in Path(self.folder).glob(f"{log}.*"):
            times += [int(line.split()[2]) for line in path.read_text().splitlines()]
        return float(np.percentile(times, 99)) / 1e3

    def measure(self, db: psycopg.Connection[Any], settings: str, log: str) -> dict[str, float]:
        """Searches first: what is inserted after that does not slow them."""
        result = {"searches_8": self.run("search", "-c", 8, "-T", SECONDS, settings=settings)}
        result["p99"] = self.p99(settings, f"{log}-alone")
        for clients, each in ((1, ONE), (8, EIGHT)):
            db.execute("CHECKPOINT")
            before = wal(db)
            result[f"inserts_{clients}"] = self.run("insert", "-c", clients, "-t", each)
            after = wal(db)
            result[f"wal_{clients}"] = (after - before) / (clients * each)
        errors: list[Exception] = []

        def write() -> None:
            try:
                self.run("insert", "-c", 1, "-T", SECONDS + 1, "-R", RATE)
            except (RuntimeError, subprocess.SubprocessError) as error:
                errors.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        result["p99_writer"] = self.p99(settings, f"{log}-beside")
        writer.join()
        if errors:
            raise errors[0]
        return result


def wal(db: psycopg.Connection[Any]) -> int:
    """Where the log is, in bytes."""
    row = db.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])
