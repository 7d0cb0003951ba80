"""One library in a process of its own: built, measured and searched at its parent's word."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from library import Library, Setting, Task, Unavailable

OPENINGS = 20


@dataclass(frozen=True)
class Job:
    """What a worker is asked to build, and the files that it reads and writes."""

    task: Task
    train: Path  # .npy, float32, a vector a row
    queries: Path
    k: int
    saved: Path  # where the index goes, or where the library that this one reopens put it


class Failed(Exception):
    """The library is there and raised, or its process died."""


class Worker:
    """The parent's handle on one library's process. While it is not called, it is idle."""

    def __init__(self, kind: type[Library], job: Job) -> None:
        # spawn, not fork: no library inherits memory or threads from the parent.
        context = multiprocessing.get_context("spawn")
        self.name = kind.name
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, kind, job), daemon=True)
        before = dict(os.environ)
        os.environ.update(kind.environment)
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        far.close()

    def prepare(self, bar: tqdm) -> dict[str, Any]:
        """Builds (or reopens), warms up, measures memory and saves; see `_Child.prepare`."""
        return self._call("prepare", (), bar)

    def search(self, setting: Setting) -> dict[str, Any]:
        """One pass over the queries: `seconds`, `cpu_seconds` and the `ids` found."""
        return self._call("search", (setting,))

    def close(self) -> None:
        self._pipe.close()
        self._process.join(1)
        if self._process.is_alive():
            self._process.kill()

    def _call(self, method: str, args: tuple[Any, ...], bar: tqdm | None = None) -> dict[str, Any]:
        try:
            self._pipe.send((method, args))
            while True:
                while bar is not None and not self._pipe.poll(0.5):
                    bar.refresh()  # so that the elapsed time moves under a library that is silent
                kind, value = self._pipe.recv()
                if kind != "progress":
                    break
                if bar is not None:
                    bar.bar_format = None  # it can be drawn in full: this library tells
                    bar.update(value - bar.n)
        except (EOFError, OSError):
            self._process.join(5)
            raise Failed(f"its process ended with code {self._process.exitcode}") from None
        if kind == "answer":
            return value
        raise (Unavailable if kind == "unavailable" else Failed)(value)


def _serve(pipe: Connection, kind: type[Library], job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked, and ends its workers
    child = None
    try:
        while True:
            method, args = pipe.recv()
            try:
                child = child or _Child(pipe, kind, job)
                reply = ("answer", getattr(child, method)(*args))
            except (ImportError, Unavailable) as error:
                reply = ("unavailable", str(error).splitlines()[0])
            except Exception as error:
                reply = ("failed", f"{type(error).__name__}: {error}")
            pipe.send(reply)
    except (EOFError, BrokenPipeError):
        return


class _Child:
    """The side of the pipe that holds the library."""

    def __init__(self, pipe: Connection, kind: type[Library], job: Job) -> None:
        self.pipe = pipe
        self.job = job
        self.library = kind(job.task)
        self.unit = kind.unit_vectors and job.task.metric == "angular"
        self.queries = _read(job.queries, self.unit)

    def prepare(self) -> dict[str, Any]:
        library, job = self.library, self.job
        reopens = library.reopens is not None
        n = len(np.load(job.train, mmap_mode="r"))
        settings = library.settings(n)
        train = None if reopens else _read(job.train, self.unit)
        if train is not None:
            library.prepare(train)
        gc.collect()
        before = _resident()
        build_s = open_s = None
        if train is None:
            open_s = [_seconds(lambda: library.open(job.saved)) for _ in range(OPENINGS)]
        else:
            build_s = self._build(train)
        if settings:
            library.search(self.queries, job.k, **settings[len(settings) // 2])
        gc.collect()
        after, peak = _resident(), _peak()
        if not reopens:
            library.save(job.saved)
        return {
            "version": library.version(),
            "build_s": build_s,
            "open_s": open_s,
            "resident_bytes": after - before if after and before else None,
            "peak_bytes": peak,
            "index_bytes": _size_on_disk(job.saved),
            "settings": settings,
        }

    def search(self, setting: Setting) -> dict[str, Any]:
        cpu, wall = time.process_time(), time.perf_counter()
        ids = self.library.search(self.queries, self.job.k, **setting)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        # Unsigned "nothing found" marks become -1 here, whatever their width.
        return {"seconds": wall, "cpu_seconds": cpu, "ids": np.asarray(ids).astype(np.int64)}

    def _build(self, train: np.ndarray) -> float:
        finished = threading.Event()
        reporter = threading.Thread(target=self._report, args=(finished,), daemon=True)
        reporter.start()
        try:
            return _seconds(lambda: self.library.build(train))
        finally:
            finished.set()
            reporter.join()

    def _report(self, finished: threading.Event) -> None:
        while not finished.wait(0.5):
            done = self.library.done()
            if done is not None:
                with suppress(BrokenPipeError):
                    self.pipe.send(("progress", done))


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _read(path: Path, unit: bool) -> np.ndarray:
    vectors = np.load(path)
    if unit:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    return vectors


def _status(field: str) -> int | None:
    """Bytes that /proc tells of this process; None on systems without it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _resident() -> int | None:
    return _status("VmRSS")


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _size_on_disk(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
