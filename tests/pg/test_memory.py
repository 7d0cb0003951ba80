"""Builds with less memory than they would like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import METHODS, clustered, fill, recall

from embedded import Server

ROWS = 6000
DIM = 64


def temporary_files(server: Server) -> list[Path]:
    return [file for file in server.data.glob("base/pgsql_tmp/*") if file.is_file()]


def notices(db: psycopg.Connection[Any]) -> list[str]:
    seen: list[str] = []
    db.add_notice_handler(lambda notice: seen.append(notice.message_primary or ""))
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_a_build_in_temporary_files(
    server: Server, db: psycopg.Connection[Any], method: str
) -> None:
    rows = clustered(ROWS, DIM, 1)
    db.execute(f"CREATE TABLE t (id bigint, v vector({DIM}))")
    fill(db, "t", rows)
    seen = notices(db)
    queries = clustered(30, DIM, 2)
    recalls = []
    setting = "SELECT min_val || unit FROM pg_settings WHERE name = 'maintenance_work_mem'"
    ((least,),) = db.execute(setting).fetchall()
    for memory in ("64MB", "4MB", least):
        db.execute(f"SET maintenance_work_mem = '{memory}'")
        db.execute(f"CREATE INDEX i ON t USING {method} (v vector_l2_ops)")
        assert ("it is built in temporary files" in " ".join(seen)) == (memory != "64MB")
        seen.clear()
        db.execute("SELECT ann.verify_index('i', true)")
        recalls.append(recall(db, "t", "<->", queries))
        db.execute("DROP INDEX i")
        assert not temporary_files(server)
    assert recalls[0] > 0.95
    assert min(recalls) > recalls[0] - 0.02, recalls


def test_temporary_files_are_limited(server: Server, db: psycopg.Connection[Any]) -> None:
    db.execute(f"CREATE TABLE t (id bigint, v vector({DIM}))")
    fill(db, "t", clustered(ROWS, DIM, 1))
    db.execute("SET maintenance_work_mem = '1MB'")
    for limit in ("1kB", "2MB"):
        db.execute(f"SET temp_file_limit = '{limit}'")
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="temp_file_limit"):
            db.execute("CREATE INDEX ON t USING ann_diskann (v vector_l2_ops)")
        assert not temporary_files(server)
    db.execute("RESET temp_file_limit")
    db.execute("CREATE INDEX ON t USING ann_diskann (v vector_l2_ops)")
