"""The Python package under threads and signals: who waits, and what an interruption leaves."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ann

kinds = pytest.mark.parametrize("kind", [ann.HNSW, ann.DiskANN, ann.IVFPQ, ann.Flat])
DIM = 32
X = np.random.default_rng(0).normal(size=(16_000, DIM)).astype(np.float32)


def run(*tasks: Callable[[], Any]) -> list[Any]:
    """Calls each in a thread of its own; raises what one of them raises, or if one hangs."""
    results: list[Any] = [None] * len(tasks)
    errors: list[BaseException] = []

    def call(at: int, task: Callable[[], Any]) -> None:
        try:
            results[at] = task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=pair, daemon=True) for pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results


@kinds
def test_searches_go_on_while_another_thread_adds(kind: type[ann.Index]) -> None:
    index, still = kind(DIM), kind(DIM)
    for each in (index, still):
        each.add(X[:2000])
    more = X[2000:] if kind is not ann.Flat else np.tile(X[2000:], (10, 1))
    done = threading.Event()

    def add() -> None:
        try:
            index.add(more, threads=1)
        finally:
            done.set()

    def search() -> tuple[int, float, float]:
        waits: dict[ann.Index, float] = {index: 0.0, still: 0.0}
        count = 0
        while not done.is_set():
            id = count % 2000
            for each in waits:
                start = time.perf_counter()
                ids, near = each.search(X[id], 3, ef=30)
                waits[each] = max(waits[each], time.perf_counter() - start)
                assert near[0] > 1e-6 or ids[0] == id
                assert (ids < 2000 + len(more)).all()
            count += 1
            time.sleep(0.002)
        return count, waits[index], waits[still]

    _, *searches = run(add, search, search, search, search)
    count = sum(search[0] for search in searches)
    longest, still_longest = (max(search[at] for search in searches) for at in (1, 2))
    print(f"{kind.__name__}: {count} searches, longest {1e3 * longest:.1f} ms,", end=" ")
    print(f"{1e3 * still_longest:.1f} ms in an index that stood still")
    assert len(index) == 2000 + len(more)
    index.verify()
    assert count > 20
    # What a busy machine adds shows in the index that nobody changes.
    assert longest < 0.05 + 2 * still_longest


@kinds
def test_a_long_batch_of_queries_lets_a_writer_in(kind: type[ann.Index]) -> None:
    index = kind(DIM)
    index.add(X[:5000])
    searched, added = threading.Event(), []

    def search() -> None:
        index.search(np.tile(X[:5000], (4, 1)), 5, ef=200, threads=1)
        searched.set()

    def add() -> None:
        while not searched.is_set():
            index.add(X[0])
            added.append(1)
            time.sleep(0.001)

    run(search, add)
    assert len(added) > 3
    index.verify()


@kinds
def test_changes_wait_for_one_another(kind: type[ann.Index]) -> None:
    index = kind(DIM)
    parts = [X[start : start + 2000] for start in (0, 2000, 4000)]
    ids = run(*[lambda part=part: index.add(part) for part in parts])
    assert sorted(np.concatenate(ids).tolist()) == list(range(6000))
    for part, those in zip(parts, ids):
        np.testing.assert_array_equal(index.get(those[1234]), part[1234])
    run(
        lambda: index.remove(ids[0]),
        lambda: index.update(parts[0], ids[1]),
        lambda: [index.search(X[:200], 5) for _ in range(5)],
        lambda: [index.stats() for _ in range(3)],
        lambda: index.verify(),
    )
    assert len(index) == 4000
    index.verify()
    np.testing.assert_array_equal(index.get(ids[1][7]), parts[0][7])


@kinds
def test_saving_while_another_thread_adds(kind: type[ann.Index], tmp_path: Path) -> None:
    index = kind(DIM)
    index.add(X[:1000])
    saved = []

    def save() -> None:
        for number in range(5):
            path = tmp_path / str(number)
            index.save(path)
            saved.append(ann.open(path))

    run(lambda: index.add(X[1000:6000]), save)
    lengths = [len(each) for each in saved]
    assert lengths == sorted(lengths)
    for each in saved:
        each.verify()
        assert 1000 <= len(each) <= 6000


@kinds
@pytest.mark.parametrize("what", ["add", "search", "verify"])
def test_python_runs_while_an_index_works(kind: type[ann.Index], what: str) -> None:
    index = kind(DIM)
    index.add(X[:4000])
    works: dict[str, Callable[[], Any]] = {
        "add": lambda: kind(DIM).add(X, threads=1),
        "search": lambda: index.search(X[:4000], 10, ef=200, threads=1),
        "verify": index.verify,
    }
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    def work() -> float:
        start = time.perf_counter()
        longest = 0.0
        while time.perf_counter() - start < 0.5:
            begin = time.perf_counter()
            works[what]()
            longest = max(longest, time.perf_counter() - begin)
        done.set()
        return longest

    _, longest = run(tick, work)
    # A call that kept the lock of Python would leave a gap as long as itself.
    assert longest < 0.1 or np.diff(ticks).max() < 0.5 * longest


@kinds
def test_filters_in_python_do_not_lock_up(kind: type[ann.Index]) -> None:
    index = kind(DIM)
    index.add(X[:2000])
    done = threading.Event()

    def add() -> None:
        for start in range(2000, 6000, 500):
            index.add(X[start : start + 500])
        index.remove(range(2000, 4500))
        done.set()

    def search() -> int:
        for count in itertools.count():
            if done.is_set():
                return count
            ids, _ = index.search(X[:2], 5, filter=lambda id: id % 3 == 0 and id in index)
            assert (ids % 3 == 0).all()
        return 0

    def read() -> None:
        while not done.is_set():
            assert len(index) >= 2000
            with contextlib.suppress(ann.ChangedError):
                next(index.iter_search(X[0], filter=lambda id: id > 5))
            assert 5 in index
            index.stats()

    run(add, search, search, read)
    assert len(index) == 3500
    index.verify()


@kinds
def test_no_change_inside_a_filter_or_another_change(kind: type[ann.Index]) -> None:
    index, other = kind(DIM), kind(DIM)
    index.add(X[:500])
    changes: list[Callable[..., Any]] = [
        lambda *_: index.add(X[:1]),
        lambda *_: index.remove([1]),
        lambda *_: index.update(X[:1], [1]),
        lambda *_: index.flush(),
        lambda *_: index.close(),
    ]
    for change in changes:
        with pytest.raises(RuntimeError, match="must not change"):
            index.search(X[0], filter=change)
        with pytest.raises(RuntimeError, match="must not change"):
            index.add(X[500:501], progress=change)
    with pytest.raises(RuntimeError, match="must not change"):
        index.search(X[0], filter=lambda id: other.add(X[:1]))
    assert len(other) == 0
    # Those rows were in before the progress function was called.
    assert len(index) == 500 + len(changes)
    index.verify()


@kinds
def test_progress_functions(kind: type[ann.Index], tmp_path: Path) -> None:
    index = kind(DIM)
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        assert 0 <= done <= total
        index.search(X[0], 1)
        index.save(tmp_path / "i")

    index.add(X[:6000], threads=1, progress=progress)
    assert calls[-1] == (6000, 6000)
    assert calls == sorted(calls)
    assert len(ann.open(tmp_path / "i")) == 6000
    calls.clear()
    index.update(X[6000:7000], range(1000), progress=progress)
    assert calls[-1] == (1000, 1000)


@kinds
def test_what_a_progress_function_raises_ends_the_work(kind: type[ann.Index]) -> None:
    index = kind(DIM)
    index.add(X[:100])
    x = X if kind in (ann.HNSW, ann.DiskANN) else np.tile(X, (30, 1))
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done > 0:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        index.add(x, threads=1, ids=np.arange(len(x)) + 1000, progress=progress)
    index.verify()
    added = len(index) - 100
    assert 0 < seen[-1] <= added < len(x)
    rest = np.array([id for id in range(len(x)) if id + 1000 not in index])
    assert len(rest) == len(x) - added
    index.add(x[rest[:2000]], ids=rest[:2000] + 1000)
    index.verify()
    assert (index.search(X[:50], 1, ef=100)[0] >= 0).all()


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_progress_bars(
    with_tqdm: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    ann.Flat(DIM).add(X[:3000], progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("100%" if with_tqdm else "3,000 of 3,000 rows\n") in err
    ann.Flat(DIM).add(X[:3000])
    assert capsys.readouterr() == ("", "")


SCRIPT = """if True:
    import json, signal, sys, threading, time
    import numpy as np
    import ann

    # A shell that started the tests in the background has had them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, what = sys.argv[1:]
    x = np.random.default_rng(0).normal(size=(200_000, 64)).astype("f4")
    index = getattr(ann, kind)(64)
    told = False

    def tell(done, total):
        global told
        if done > 3000 and not told:
            told = True
            print("now", flush=True)

    try:
        if what == "load":
            index.add(x, progress=tell)
        elif what == "add":
            index.add(x[:100])
            index.add(x[100:], progress=tell)
        elif what == "search":
            index.add(x[:8000])
            print("now", flush=True)
            index.search(x, 10, ef=1000)
        elif what == "wait":
            threading.Thread(target=index.add, args=(x,), daemon=True).start()
            time.sleep(0.5)
            print("now", flush=True)
            index.add(x[:1])
        print(json.dumps(["not interrupted"]), flush=True)
    except KeyboardInterrupt:
        stopped = time.monotonic()
        if what == "wait":
            print(json.dumps([stopped]), flush=True)
            sys.exit()
        index.verify()
        kept = len(index)
        found = int(index.search(x[0], 1)[0][0])
        if kept:
            found = int(index.search(index.get(found), 1)[0][0])
        index.add(x[-10:], ids=range(10**6, 10**6 + 10))
        index.verify()
        print(json.dumps([stopped, kept, found in index, len(index) - kept]), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way")
@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("HNSW", "load"),
        ("HNSW", "add"),
        ("HNSW", "search"),
        ("HNSW", "wait"),
        ("IVFPQ", "load"),
        ("Flat", "search"),
    ],
)
def test_ctrl_c(kind: str, what: str) -> None:
    command = [sys.executable, "-c", SCRIPT, kind, what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        time.sleep(0.3)
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        stopped, *rest = json.loads(child.stdout.readline())
    print(f"{kind} {what}: stopped after {stopped - sent:.2f} s")
    assert stopped - sent < 2
    if what == "add":
        kept, found, more = rest
        assert 3000 < kept < 200_000
        assert (found, more) == (True, 10)
    if what == "load":
        # All rows of an empty index are planned together; interrupted before that, it stays empty.
        kept, found, more = rest
        assert (kept, found, more) == (0, False, 10)
