"""Out of time, patience, disk or memory: an ERROR at once, and nothing left behind or broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import METHODS, Db, clustered, fill, nearest, recall, text, value, verify

from embedded import Server, unprivileged

WIDE = 64
# Both come the same way once they are there: builds and inserts try both, the long tests one.
BOTH = ["timeout", "cancel"]
ONE = BOTH if os.environ.get("ANN_SOAK") else ["cancel"]
SLOW = {
    "ann_hnsw": "ef_construction = 1000",
    "ann_diskann": "build_list_size = 1000",
    "ann_ivfpq": "lists = 10000, bits = 8",
}


@pytest.fixture(scope="module")
def big(server: Server) -> Iterator[Db]:
    """A table of 20,000 rows with an index of each method."""
    with server.connect() as db:
        db.execute("CREATE SCHEMA big")
        db.execute("SET search_path = big, public")
        db.execute(f"CREATE TABLE source (id int, v vector({WIDE}))")
        fill(db, "source", clustered(20_000, WIDE, 1))
        for method in METHODS:
            db.execute(f"CREATE TABLE {method}_t AS TABLE source")
            db.execute(f"CREATE INDEX {method}_i ON {method}_t USING {method} (v vector_l2_ops)")
        yield db
        db.execute("DROP SCHEMA big CASCADE")


def spent(pid: int) -> float:
    """Seconds of the processors that a backend has used, with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def ended(server: Server, db: Db, how: str, after: float) -> Iterator[None]:
    """Ends what the block does after so many seconds: a second of two threads' work may follow.

    What else the machine has to do does not count, within limits.
    """
    pid = db.info.backend_pid
    then: list[tuple[float, float]] = []
    other = server.connect()

    def end() -> None:
        then.append((time.monotonic(), spent(pid)))
        if how == "cancel":
            other.execute("SELECT pg_cancel_backend(%s)", (pid,))

    if how == "timeout":
        db.execute(f"SET statement_timeout = {max(1, int(after * 1000))}")
    timer = threading.Timer(after, end)
    timer.start()
    try:
        with pytest.raises(psycopg.errors.QueryCanceled):
            yield
        now, work = time.monotonic(), spent(pid)
    finally:
        timer.join()
        other.close()
        db.execute("RESET statement_timeout")
    if then[0][0] < now:
        assert work - then[0][1] < 2
        assert now - then[0][0] < 10


def status(db: Db) -> dict[str, str]:
    """What the system says of a backend."""
    lines = Path(f"/proc/{db.info.backend_pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


def left_behind(server: Server, db: Db) -> dict[str, Any]:
    """What a statement may leave: threads, memory, temporary files, locks of pages."""
    fields = status(db)
    # Threads of a build that has ended are on their way out.
    end = time.monotonic() + 5
    while int(fields["Threads"]) > 1 and time.monotonic() < end:
        time.sleep(0.02)
        fields = status(db)
    temporary = server.data / "base" / "pgsql_tmp"
    return {
        "threads": int(fields["Threads"]),
        "megabytes": (int(fields["RssAnon"].split()[0])) // 1024,
        "files": sorted(os.listdir(temporary)) if temporary.exists() else [],
        "locks": value(db, "SELECT count(*) FROM pg_locks WHERE locktype = 'page'"),
    }


@pytest.mark.parametrize("how", BOTH)
def test_builds_end_at_once(big: Db, server: Server, method: str, how: str) -> None:
    build = f"CREATE INDEX b ON big.source USING {method} (v vector_l2_ops) WITH ({SLOW[method]})"
    before: dict[str, Any] = {}
    for after in (0.3, 0.1, 0.4, 0.9):
        with ended(server, big, how, after):
            big.execute(build)
        # What the first one allocates, the next ones use again.
        before = before or left_behind(server, big)
    after_all = left_behind(server, big)
    assert after_all["megabytes"] <= before["megabytes"] + 30
    assert after_all | {"megabytes": 0} == before | {"megabytes": 0}
    assert value(big, "SELECT count(*) FROM pg_class WHERE relname = 'b'") == 0


@pytest.mark.parametrize("how", ONE)
def test_concurrent_builds_leave_an_index_that_is_not_valid(
    big: Db, server: Server, method: str, how: str
) -> None:
    big.execute("DROP TABLE IF EXISTS c")
    big.execute(f"CREATE TABLE c AS TABLE {method}_t")
    with ended(server, big, how, 0.4):
        big.execute(
            f"CREATE INDEX CONCURRENTLY ci ON c USING {method} (v vector_l2_ops)"
            f" WITH ({SLOW[method]})"
        )
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ci'::regclass"
    assert value(big, valid) is False
    # The table works as before, and the next attempt makes a whole index of it.
    big.execute("INSERT INTO c SELECT id + 100000, v FROM source WHERE id < 10")
    big.execute("DELETE FROM c WHERE id BETWEEN 2000 AND 99999")
    big.execute("VACUUM c")
    big.execute("REINDEX INDEX CONCURRENTLY ci")
    assert value(big, valid) is True
    verify(big, "ci")
    assert value(big, "SELECT vectors FROM ann.index_stats('ci')") == 2010
    big.execute("DROP TABLE c")


def test_scans_end_at_once(big: Db, server: Server, method: str) -> None:
    query = text(clustered(1, WIDE, 2)[0])
    # All rows of the index come first, before the executor can look for interrupts by itself.
    scan = f"SELECT id FROM {method}_t ORDER BY v <-> '{query}' LIMIT 1"
    settings = {
        "ann.hnsw_ef_search": "100000",
        "ann.diskann_list_size": "100000",
        "ann.ivfpq_probes": "100000",
        "ann.rerank": "100000",
    }
    for name, setting in (settings | {"enable_seqscan": "off"}).items():
        big.execute(f"SET {name} = {setting}")
    try:
        start = time.monotonic()
        found = value(big, scan)
        whole = time.monotonic() - start
        times: list[float] = []
        while not times or min(times) > 0.7 * whole:
            assert len(times) < 5, (whole, times)
            with ended(server, big, "timeout", whole / 8):
                start = time.monotonic()
                big.execute(scan)
            times.append(time.monotonic() - start)
        assert value(big, scan) == found
        with ended(server, big, "cancel", 0.2):
            big.execute(
                "SELECT count(*) FROM source s CROSS JOIN LATERAL"
                f" (SELECT id FROM {method}_t ORDER BY v <-> s.v LIMIT 1) n"
            )
    finally:
        for name in (*settings, "enable_seqscan"):
            big.execute(f"RESET {name}")


@pytest.mark.parametrize("how", BOTH)
def test_inserts_end_at_once(big: Db, server: Server, method: str, how: str) -> None:
    rows = value(big, f"SELECT count(*) FROM {method}_t")
    before = left_behind(server, big)
    for after in (0.05, 0.3):
        with ended(server, big, how, after):
            big.execute(f"INSERT INTO {method}_t SELECT id + 1000000, v FROM source")
    assert left_behind(server, big) | {"megabytes": 0} == before | {"megabytes": 0}
    assert value(big, f"SELECT count(*) FROM {method}_t") == rows
    verify(big, f"{method}_i")


@pytest.mark.parametrize("how", ONE)
def test_vacuums_end_at_once(big: Db, server: Server, method: str, how: str) -> None:
    big.execute("DROP TABLE IF EXISTS d")
    # Lists are swept so fast that it takes more to be in the middle of it.
    rows = 20_000 if method == "ann_ivfpq" else 8000
    big.execute(f"CREATE TABLE d AS SELECT * FROM source WHERE id < {rows}")
    big.execute(f"CREATE INDEX di ON d USING {method} (v vector_l2_ops)")
    big.execute("DELETE FROM d WHERE id % 2 = 0")
    before = left_behind(server, big)
    with ended(server, big, how, 0.1):
        big.execute("VACUUM d")
    # What is left undone keeps nobody out, and the next vacuum goes on with it.
    assert left_behind(server, big) | {"megabytes": 0} == before | {"megabytes": 0}
    big.execute("INSERT INTO d SELECT id, v FROM source WHERE id = 8002")
    verify(big, "di")
    big.execute("VACUUM d")
    verify(big, "di")
    assert value(big, "SELECT tombstones FROM ann.index_stats('di')") == 0
    assert recall(big, "d", "<->", clustered(10, WIDE, 3)) >= 0.95
    big.execute("DROP TABLE d")


@pytest.fixture
def disk(server: Server, db: Db) -> Iterator[Path]:
    """A tablespace `small` on a file system of 2 MB."""
    folder = server.installation.folder / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        if user := unprivileged():
            shutil.chown(folder, user)
        db.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        yield folder
        db.execute("DROP SCHEMA test CASCADE")
        # Files of dropped tables go with a checkpoint.
        db.execute("CHECKPOINT")
        db.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def test_a_disk_that_is_full(big: Db, db: Db, method: str, disk: Path) -> None:
    build = f"ON big.source USING {method} (v vector_l2_ops) TABLESPACE small WHERE id < 7000"
    for how in ("", "CONCURRENTLY"):
        with pytest.raises(psycopg.errors.DiskFull):
            db.execute(f"CREATE INDEX {how} full_i {build}")
        db.execute("DROP INDEX IF EXISTS big.full_i")
        db.execute("CHECKPOINT")
        assert shutil.disk_usage(disk).used < 100_000
    db.execute(f"CREATE TABLE t (id int, v vector({WIDE}))")
    db.execute(f"CREATE INDEX i ON t USING {method} (v vector_l2_ops) TABLESPACE small")
    count = 0
    with pytest.raises(psycopg.errors.DiskFull):  # noqa: PT012
        while True:
            db.execute(
                "INSERT INTO t SELECT id, v FROM big.source WHERE id >= %s AND id < %s",
                (count, count + 500),
            )
            count += 500
    assert 500 <= count < 20_000
    rows = clustered(20_000, WIDE, 1)
    near = nearest(db, "t", "<->", rows[7], 1, False)
    assert near[0][0] == 7
    assert value(db, "SELECT count(*) FROM t") == count
    verify(db)
    # A vacuum needs no room, and makes some.
    db.execute("DELETE FROM t WHERE id % 2 = 0")
    db.execute("VACUUM t")
    verify(db)
    db.execute("INSERT INTO t SELECT id + 100000, v FROM big.source WHERE id < %s", (count // 4,))
    verify(db)
    # With more of it, all goes on.
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    db.execute("INSERT INTO t SELECT id + 200000, v FROM big.source WHERE id < 500")
    verify(db)
    assert recall(db, "t", "<->", clustered(10, WIDE, 4)) >= 0.95
    assert "PANIC" not in value(db, "SELECT pg_read_file(%s)", str(disk.parent / "main.log"))


def limit(pid: int, size: str) -> None:
    """Bounds the memory of one backend; the system lets nobody do so but its own user."""
    command = ["prlimit", f"--pid={pid}", f"--as={size}:"]
    subprocess.run(command, user=unprivileged(), cwd="/", check=True)


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="there is no program prlimit")
@pytest.mark.parametrize("megabytes", [1, 4, 16, 40])
def test_memory_that_is_not_there(big: Db, server: Server, method: str, megabytes: int) -> None:
    """A build that the system gives no memory ends itself, and not the server."""
    with server.connect(options="-c search_path=big,public") as db:
        db.execute("LOAD 'ann'")
        db.execute("SET maintenance_work_mem = '1GB'")
        pid = db.info.backend_pid
        has = int(status(db)["VmSize"].split()[0])
        limit(pid, str((has + megabytes * 1024) * 1024))
        if method == "ann_ivfpq" and megabytes > 16:
            # Lists need so little that it is enough.
            db.execute(f"CREATE INDEX m ON source USING {method} (v vector_l2_ops)")
            db.execute("DROP INDEX m")
            return
        with pytest.raises(psycopg.errors.OutOfMemory):
            db.execute(f"CREATE INDEX m ON source USING {method} (v vector_l2_ops)")
        limit(pid, "unlimited")
        assert value(db, "SELECT count(*) FROM source") == 20_000
    assert "terminated by signal" not in server.log()
