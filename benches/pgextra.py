"""More that the Postgres demo measures: sizes at more dimensions, and indexes that grew."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

import numpy as np

import report
from curves import qps_at
from datasets.store import Dataset
from pgsearch import INDEXES, OPERATORS, Db, build, fill, size, sweep


def widened(dataset: Dataset, dim: int) -> Dataset:
    """The same vectors turned into a space of more dimensions: distances stay as they are."""
    rng = np.random.default_rng(2)
    turn = np.linalg.qr(rng.standard_normal((dim, dataset.train.shape[1])))[0].T
    train, test = ((part @ turn).astype(np.float32) for part in (dataset.train, dataset.test))
    return dataclasses.replace(dataset, train=train, test=test)


def fresh(db: Db, dataset: Dataset) -> None:
    """The table `items` with the rows of a data set, without an index."""
    db.execute("DROP TABLE IF EXISTS items")
    fill(db, "items", dataset.train)


def sizes(db: Db, dataset: Dataset, name: str, memory: str) -> dict[str, Any]:
    """How large an index is, and what a query reads at a recall of 0.95. Not its speed."""
    fresh(db, dataset)
    seconds = build(db, name, dataset.metric, memory)
    layout = "-"
    if INDEXES[name][0].startswith("ann_"):
        row = db.execute("SELECT layout, code_bits FROM ann.index_stats('i')").fetchone()
        assert row is not None
        layout = f"{row[0]}, {row[1]} bits" if row[1] else row[0]
    last = sweep(db, dataset, dataset.test[:100], name, timed=False)[-1]
    print(f"{name} at {dataset.train.shape[1]} dimensions: done", file=sys.stderr, flush=True)
    return {
        "name": name,
        "dim": dataset.train.shape[1],
        "n": len(dataset.train),
        "bytes": size(db),
        "build_s": seconds,
        "layout": layout,
        **last,
    }


def sizes_table(run: dict[str, Any]) -> str:
    header = ["index", "dimensions", "layout", "index MB", "bytes a row"]
    header += ["effort", "recall@10", "buffers a query"]
    rows = []
    for one in sorted(run["sizes"], key=lambda one: list(INDEXES).index(one["name"])):
        row = [one["name"], str(one["dim"]), one["layout"], f"{one['bytes'] / 1e6:,.1f}"]
        row += [f"{one['bytes'] / one['n']:,.0f}", str(*one["setting"].values())]
        rows.append([*row, f"{one['recall']:.4f}", f"{one['buffers']:,.0f}"])
    return report.table(header, rows)


def grown(db: Db, dataset: Dataset, queries: np.ndarray, name: str, memory: str) -> dict[str, Any]:
    """An index that is made on an empty table and then filled, and what REINDEX makes of it."""
    method, options, _ = INDEXES[name]
    opclass = OPERATORS[dataset.metric][1]
    fresh(db, dataset)
    db.execute("ALTER TABLE items RENAME TO source")
    db.execute("CREATE TABLE items (LIKE source)")
    more = f"WITH ({options})" if options else ""
    db.execute(f"CREATE INDEX i ON items USING {method} (v {opclass}) {more}")
    start = time.perf_counter()
    db.execute("INSERT INTO items SELECT * FROM source")
    seconds = time.perf_counter() - start
    db.execute("VACUUM ANALYZE items")
    result: dict[str, Any] = {"name": name, "n": len(dataset.train), "inserts": seconds}
    for how in ("grown", "built"):
        result[how] = {"bytes": size(db), "searches": sweep(db, dataset, queries, name)}
        if how == "grown":
            db.execute(f"SET maintenance_work_mem = '{memory}'")
            db.execute("REINDEX INDEX i")
    db.execute("DROP TABLE source")
    print(f"{name} that grew: done", file=sys.stderr, flush=True)
    return result


def grown_table(run: dict[str, Any]) -> str:
    header = ["index", "rows", "inserts/s", "MB", "of REINDEX"]
    for target in report.TARGETS:
        header += [f"q/s at {target:.2f}", "of REINDEX", "share"]
    rows = []
    for one in run["grown"]:
        row = [one["name"], f"{one['n']:,}", f"{one['n'] / one['inserts']:,.0f}"]
        row += [f"{one[how]['bytes'] / 1e6:,.0f}" for how in ("grown", "built")]
        for target in report.TARGETS:
            pair = [
                qps_at([(s["recall"], s["qps"]) for s in one[how]["searches"]], target)
                for how in ("grown", "built")
            ]
            row += ["-" if speed is None else f"{speed:,.0f}" for speed in pair]
            row.append(f"{pair[0] / pair[1]:.2f}" if pair[0] and pair[1] else "-")
        rows.append(row)
    return report.table(header, rows)
