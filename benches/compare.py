"""Measures our indexes and other libraries in one run, on one data set after the other."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import report
from curves import recall, true_distances
from datasets import DatasetError
from datasets.load import load, subset
from datasets.store import Dataset
from libraries import LIBRARIES
from library import EF, Library, Task, Unavailable
from report import Run
from worker import Failed, Job, Worker

RESULTS = Path(__file__).resolve().parent / "results"
PASSES = 3


def with_reopened(kinds: list[type[Library]]) -> list[type[Library]]:
    """The same list with every library that another one reopens put in before it."""
    wanted: dict[type[Library], None] = {}
    for kind in kinds:
        if kind.reopens is not None:
            wanted[kind.reopens] = None
        wanted[kind] = None
    return list(wanted)


def measure(dataset: Dataset, kinds: list[type[Library]], task: Task, queries: int, k: int) -> Run:
    """Builds all, one after the other; then lets them search in turn, setting by setting."""
    run: Run = {
        "data": dataset.name,
        "n": len(dataset.train),
        "dim": dataset.train.shape[1],
        "metric": dataset.metric,
        "queries": min(queries, len(dataset.test)),
        "k": k,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "task": dataclasses.asdict(task),
        "machine": report.machine(),
        "indexes": [],
        "skipped": {},
        "failed": {},
    }
    workers: dict[str, Worker] = {}
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS, prefix=".work-") as folder:
        train, test = Path(folder, "train.npy"), Path(folder, "queries.npy")
        np.save(train, np.ascontiguousarray(dataset.train, dtype=np.float32))
        np.save(test, np.ascontiguousarray(dataset.test[: run["queries"]], dtype=np.float32))
        try:
            for kind in with_reopened(kinds):
                saved = Path(folder, (kind.reopens or kind).name)
                job = Job(task, train, test, k, saved)
                worker = workers[kind.name] = Worker(kind, job)
                _prepare(run, kind, worker)
            _search(run, dataset, {i["name"]: workers[i["name"]] for i in run["indexes"]})
        finally:
            for worker in workers.values():
                worker.close()
    return run


def _prepare(run: Run, kind: type[Library], worker: Worker) -> None:
    if kind.reopens is not None and kind.reopens.name not in {i["name"] for i in run["indexes"]}:
        run["skipped"][kind.name] = f"there is no {kind.reopens.name} to reopen"
        return
    desc = f"{'open' if kind.reopens else 'build'} {kind.name}"
    style = {"bar_format": "{desc} {elapsed}", "disable": None, "leave": False}
    try:
        with tqdm(total=run["n"], desc=desc, unit=" vectors", **style) as bar:
            answer = worker.prepare(bar)
    except Unavailable as reason:
        run["skipped"][kind.name] = str(reason)
        print(f"skipped {kind.name}: {reason}", file=sys.stderr)
    except Failed as reason:
        run["failed"][kind.name] = str(reason)
        print(f"FAILED {kind.name}: {reason}", file=sys.stderr)
    else:
        settings = answer.pop("settings")
        answer["searches"] = [{"setting": s, "passes": [], "cores": 0.0} for s in settings]
        run["indexes"].append({"name": kind.name, "package": kind.package, **answer})
        took = "" if answer["build_s"] is None else f" in {answer['build_s']:.1f} s"
        print(f"{'built' if took else 'opened'} {kind.name}{took}", file=sys.stderr)


def _search(run: Run, dataset: Dataset, workers: dict[str, Worker]) -> None:
    """Three passes, in each of which the libraries take turns, so that noise hits all alike."""
    k, queries = run["k"], dataset.test[: run["queries"]]
    about = (dataset.metric, dataset.train, queries)
    truth = true_distances(*about, dataset.neighbors[: run["queries"], :k])
    longest = max((len(i["searches"]) for i in run["indexes"]), default=0)
    turns = [
        (index, index["searches"][step])
        for step in range(longest)
        for index in run["indexes"]
        if step < len(index["searches"])
    ]
    for index, search in tqdm(turns * PASSES, desc="search", disable=None, leave=False):
        if index["name"] in run["failed"]:
            continue
        try:
            answer = workers[index["name"]].search(search["setting"])
            if not search["passes"]:
                search["recall"] = recall(true_distances(*about, answer["ids"]), truth)
        except (Failed, ValueError) as reason:
            run["failed"][index["name"]] = f"at {search['setting']}: {reason}"
            continue
        search["passes"].append(len(queries) / answer["seconds"])
        search["qps"] = max(search["passes"])
        search["cores"] = max(search["cores"], answer["cpu_seconds"] / answer["seconds"])
    run["indexes"] = [i for i in run["indexes"] if i["name"] not in run["failed"]]


def publish(run: Run, stem: str) -> None:
    """Prints the tables; writes the plot and, with all that was measured, the JSON file."""
    results, picture = RESULTS / f"{stem}.json", RESULTS / f"{stem}.png"
    results.write_text(json.dumps(run, indent=1))
    print(report.text(run))
    report.plot(run, picture)
    print(f"\nall that was measured: {results}\nplot: {picture}")


def command(main: Callable[[], int]) -> NoReturn:
    """Runs a script's main, with expected errors as one line."""
    try:
        sys.exit(main())
    except DatasetError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _names(text: str) -> list[type[Library]]:
    names = list(LIBRARIES) if text == "all" else text.split(",")
    for name in names:
        if name not in LIBRARIES:
            known = ", ".join(LIBRARIES)
            raise argparse.ArgumentTypeError(f"{name!r} is none of: all, {known}")
    return [LIBRARIES[name] for name in names]


def _at_least(least: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return integer


def _sweep(text: str) -> tuple[int, ...]:
    return tuple(map(_at_least(1), text.split(",")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    graphs = "ann-hnsw,ann-hnsw-mmap,hnswlib,faiss-hnsw"
    known = ", ".join(LIBRARIES)
    add("--data", default="glove-100-angular-wink", help="names, with commas between")
    add("--n", type=_at_least(0), default=0, help="use the first N vectors; 0 is all (the default)")
    add("--queries", type=_at_least(1), default=2000, help="use the first so many (2000)")
    add("--k", type=_at_least(1), default=10, help="neighbours asked for (10)")
    add("--threads", type=_at_least(1), default=2, help="to build; a search takes one (2)")
    add("--m", type=_at_least(2), default=16, help="links a node (16)")
    add("--ef-construction", type=_at_least(1), default=200, help="(200)")
    add("--ef", type=_sweep, default=EF, help="what searches of graphs sweep over")
    add("--only", type=_names, default=graphs, help=f"all, or, with commas between: {known}")
    args = parser.parse_args()
    failed = False
    for name in args.data.split(","):
        dataset = subset(load(name), args.n) if args.n else load(name)
        if args.k > dataset.neighbors.shape[1]:
            parser.error(f"--k is {args.k}: {name} has {dataset.neighbors.shape[1]} neighbours")
        task = Task(dataset.metric, args.threads, args.m, args.ef_construction, args.ef)
        run = measure(dataset, args.only, task, args.queries, args.k)
        stamp = run["date"][:19].replace(":", "")
        publish(run, f"{dataset.name}-{stamp}")
        failed |= bool(run["failed"])
    return 1 if failed else 0


if __name__ == "__main__":
    command(main)
