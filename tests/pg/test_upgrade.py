"""From version to version, and by dump and restore: what arrives is what a new installation has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg
import pytest
from conftest import DIM, METHODS, Db, clustered, fill, nearest, value

from embedded import ROOT, Installation, Server

# The first version that there was. Upgrades from it, and from all since, must stay possible.
FIRST = "0.1.0"
SOURCES = ROOT / "ann-pg"

# Everything that belongs to the extension, with all that a script can say of it.
CATALOGUE = """
    WITH member AS (
        SELECT classid, objid FROM pg_depend
        WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass
          AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'ann')
    )
    SELECT pg_describe_object(classid, objid, 0), obj_description(objid, classid::regclass::name)
      FROM member
    UNION ALL
    SELECT pg_get_functiondef(oid), coalesce(proacl, acldefault('f', proowner))::text
      FROM pg_proc JOIN member ON objid = oid AND classid = 'pg_proc'::regclass
    UNION ALL
    SELECT format('method %s, %s', amname, amtype), amhandler::text
      FROM pg_am JOIN member ON objid = oid AND classid = 'pg_am'::regclass
    UNION ALL
    SELECT format('%s.%s of %s', c.opcnamespace::regnamespace, opcname, amname),
           format('%s %s %s %s', opcdefault, opcintype::regtype, opckeytype::regtype, opfname)
      FROM pg_opclass c JOIN member ON objid = c.oid AND classid = 'pg_opclass'::regclass
      JOIN pg_am m ON m.oid = opcmethod JOIN pg_opfamily f ON f.oid = opcfamily
    UNION ALL
    SELECT format('operator %s of %s: %s', amopstrategy, f.opfname, amopopr::regoperator),
           format('%s, by %s', amoppurpose, s.opfname)
      FROM pg_amop JOIN member ON objid = amopfamily AND classid = 'pg_opfamily'::regclass
      JOIN pg_opfamily f ON f.oid = amopfamily LEFT JOIN pg_opfamily s ON s.oid = amopsortfamily
    UNION ALL
    SELECT nspname, nspacl::text FROM pg_namespace WHERE nspname = 'ann'
"""


def control(name: str) -> str:
    found = re.search(rf"^{name} = '(.*)'$", (SOURCES / "ann.control").read_text(), re.M)
    assert found is not None
    return found[1]


def installable(folder: Path) -> list[str]:
    """The versions that have an installation script."""
    names = [path.stem.split("--")[1:] for path in folder.glob("ann--*.sql")]
    return [name[0] for name in names if len(name) == 1]


@contextmanager
def database(server: Server, name: str) -> Iterator[Db]:
    """A connection to a new database of that name."""
    with server.connect() as db:
        db.execute(f"DROP DATABASE IF EXISTS {name}")
        db.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            with server.connect(dbname=name) as inner:
                yield inner
        finally:
            db.execute(f"DROP DATABASE {name}")


def catalogue(db: Db) -> list[tuple[str, str]]:
    return sorted(db.execute(CATALOGUE).fetchall(), key=str)


def new_catalogue(server: Server, version: str) -> list[tuple[str, str]]:
    with database(server, "fresh") as db:
        db.execute(f"CREATE EXTENSION ann VERSION '{version}' CASCADE")
        return catalogue(db)


def upgraded_catalogue(server: Server, old: str, new: str) -> list[tuple[str, str]]:
    """After an update from an old version, in which indexes of all methods were made."""
    with database(server, "upgraded") as db:
        db.execute(f"CREATE EXTENSION ann VERSION '{old}' CASCADE")
        db.execute(f"CREATE TABLE t (id int, v vector({DIM}))")
        fill(db, "t", clustered(300, DIM, 1))
        ours = "SELECT amname FROM pg_am WHERE amname ~ '^ann_'"
        methods = [name for (name,) in db.execute(ours)]
        for method in methods:
            db.execute(f"CREATE INDEX {method}_i ON t USING {method} (v vector_l2_ops)")
            # The new library goes by the old script until then.
            assert value(db, "SELECT vectors FROM ann.index_stats(%s)", f"{method}_i") == 300
        db.execute(f"ALTER EXTENSION ann UPDATE TO '{new}'")
        fill(db, "t", clustered(100, DIM, 2), 300)
        for method in methods:
            db.execute(f"SELECT ann.verify_index('{method}_i', true)")
        return catalogue(db)


def test_versions_are_one_another_s() -> None:
    """A new version comes with its number everywhere, its script, and a way from the last one."""
    newest = control("default_version")
    cargo = (SOURCES / "Cargo.toml").read_text()
    assert re.search(rf'^version = "{re.escape(newest)}"$', cargo, re.M)
    versions = installable(SOURCES / "sql")
    assert newest in versions
    assert FIRST in versions, "installation scripts of old versions stay, for this test"


def test_each_version_has_a_way_to_the_newest(server: Server) -> None:
    newest = control("default_version")
    with server.connect() as db:
        ways = db.execute(
            "SELECT source, path FROM pg_extension_update_paths('ann') WHERE target = %s", (newest,)
        ).fetchall()
    found = {source for source, path in ways if path is not None}
    old = set(installable(SOURCES / "sql")) - {newest}
    assert found >= old
    want = new_catalogue(server, newest)
    assert len(want) > 40
    for version in sorted(old):
        assert upgraded_catalogue(server, version, newest) == want, version


NEXT = """
    CREATE FUNCTION ann.later() RETURNS int LANGUAGE sql AS 'SELECT 1';
    COMMENT ON FUNCTION ann.later IS 'a function of a later version';
    REVOKE ALL ON FUNCTION ann.later FROM PUBLIC;
"""


@pytest.mark.parametrize("forgotten", ["", "COMMENT", "REVOKE", "CREATE"])
def test_an_upgrade_that_forgets_something_is_seen(
    server: Server, installation: Installation, forgotten: str
) -> None:
    """The test above on a version that there is not, whose upgrade script lacks a part."""
    newest = control("default_version")
    whole = (SOURCES / "sql" / f"ann--{newest}.sql").read_text() + NEXT
    left = "" if forgotten == "CREATE" else NEXT
    if forgotten:
        left = "\n".join(line for line in left.splitlines() if forgotten not in line)
    scripts = {f"ann--{newest}--99.0.sql": left, "ann--99.0.sql": whole}
    try:
        for name, script in scripts.items():
            (installation.extensions / name).write_text(script)
            (installation.extensions / name).chmod(0o644)
        same = upgraded_catalogue(server, newest, "99.0") == new_catalogue(server, "99.0")
        assert same == (not forgotten)
    finally:
        for name in scripts:
            (installation.extensions / name).unlink()


def definitions(db: Db) -> list[tuple[str, str]]:
    return db.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " JOIN pg_class c ON c.oid = indexrelid JOIN pg_am m ON m.oid = relam"
        " WHERE amname LIKE 'ann\\_%' ORDER BY 1"
    ).fetchall()


def populate(db: Db, rows: np.ndarray) -> None:
    db.execute("CREATE EXTENSION ann CASCADE")
    db.execute(f"CREATE TABLE t (id int, v vector({DIM}))")
    db.execute(f"CREATE UNLOGGED TABLE u (id int, v halfvec({DIM}))")
    db.execute(f"CREATE TABLE p (id int, v vector({DIM})) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)")
    db.execute("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (1000)")
    more = {
        "ann_hnsw": "m = 8, ef_construction = 50",
        "ann_diskann": "degree = 64, code_bits = 2",
        "ann_ivfpq": "lists = 9, subvectors = 6, bits = 8, sample = 200, train_at = 100",
    }
    for method in METHODS:
        db.execute(
            f"CREATE INDEX {method}_t ON t USING {method} (v vector_cosine_ops)"
            f" WITH ({more[method]})"
        )
        db.execute(f"CREATE INDEX {method}_u ON u USING {method} (v halfvec_ip_ops)")
        db.execute(f"CREATE INDEX {method}_p ON p USING {method} (v vector_l2_ops)")
        db.execute(f"CREATE INDEX {method}_w ON t USING {method} (v vector_l2_ops) WHERE id > 9")
        db.execute(
            f"CREATE INDEX {method}_e ON t USING {method} ((v::halfvec({DIM})) halfvec_l2_ops)"
        )
    for name in "tup":
        fill(db, name, rows)


@pytest.mark.parametrize("form", ["plain", "custom"])
def test_dump_and_restore(server: Server, form: str) -> None:
    rows = clustered(300, DIM, 3)
    run, to = server.installation.run, ("-h", server.sockets, "-U", "postgres")
    with database(server, "before") as db, database(server, "after") as copy:
        populate(db, rows)
        file = server.sockets / "dump"
        run("pg_dump", *to, "-F", form, "-f", file, "before")
        if form == "plain":
            run("psql", *to, "-v", "ON_ERROR_STOP=1", "-q", "-f", file, "after")
        else:
            run("pg_restore", *to, "-j", 2, "--exit-on-error", "-d", "after", file)
        file.unlink()
        indexes = definitions(copy)
        assert indexes == definitions(db)
        assert len(indexes) == 7 * len(METHODS)
        assert catalogue(copy) == catalogue(db)
        for name, _ in indexes:
            if not re.fullmatch("ann_[a-z]+_p", name):
                copy.execute("SELECT ann.verify_index(%s, true)", (name,))
            assert value(copy, "SELECT ann.index_recall(%s, 10, 5)", name) >= 0.9
        assert nearest(copy, "t", "<->", rows[42], 1, False)[0][0] == 42


def test_the_extension_goes_with_its_indexes(server: Server) -> None:
    with database(server, "gone") as db:
        db.execute("CREATE EXTENSION ann CASCADE")
        db.execute(f"CREATE TABLE t (id int, v vector({DIM}))")
        db.execute("CREATE INDEX ON t USING ann_hnsw (v vector_l2_ops)")
        for extension, needs in (("ann", "t_v_idx"), ("vector", "extension ann")):
            with pytest.raises(psycopg.errors.DependentObjectsStillExist, match=needs):
                db.execute(f"DROP EXTENSION {extension}")
        db.execute("DROP EXTENSION ann CASCADE")
        assert value(db, "SELECT count(*) FROM pg_am WHERE amname LIKE 'ann%'") == 0
        db.execute("CREATE EXTENSION ann")
        db.execute("CREATE INDEX ON t USING ann_hnsw (v vector_l2_ops)")
        # Where pgvector is, there the operator classes are.
        db.execute("DROP EXTENSION vector CASCADE")
        db.execute("CREATE SCHEMA elsewhere")
        db.execute("CREATE EXTENSION vector SCHEMA elsewhere")
        db.execute("CREATE EXTENSION ann")
        db.execute(f"CREATE TABLE e (id int, v elsewhere.vector({DIM}))")
        fill(db, "e", clustered(50, DIM, 4))
        db.execute("CREATE INDEX ei ON e USING ann_diskann (v elsewhere.vector_cosine_ops)")
        db.execute("SELECT ann.verify_index('ei', true)")
        assert value(db, "SELECT ann.index_recall('ei', 5, 5)") >= 0.9
