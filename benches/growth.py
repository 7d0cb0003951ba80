"""How the cost of a search grows with the number of vectors: speed at a recall, and a plot."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import report
from compare import RESULTS, command, measure
from curves import qps_at
from datasets.load import load, subset
from libraries import LIBRARIES
from library import EF, Task

SIZES = (31_250, 62_500, 125_000, 250_000, 500_000, 1_000_000)
RECALL = 0.95


def table(names: list[str], runs: list[dict[str, Any]]) -> str:
    """Vectors across, libraries down."""
    rows = []
    for name in names:
        indexes = [next((i for i in run["indexes"] if i["name"] == name), None) for run in runs]
        speeds = [index and speed(index) for index in indexes]
        builds = [index and index["build_s"] for index in indexes]
        rows.append([f"{name}, q/s at {RECALL}", *(f"{s:,.0f}" if s else "-" for s in speeds)])
        rows.append([f"{name}, build s", *(f"{s:,.1f}" if s else "-" for s in builds)])
    return report.table(["n", *(f"{run['n']:,}" for run in runs)], rows)


def speed(index: dict[str, Any]) -> float | None:
    return qps_at([(s["recall"], s["qps"]) for s in index["searches"]], RECALL)


def plot(names: list[str], runs: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, axes = pyplot.subplots(figsize=(8, 5), constrained_layout=True)
    for name in names:
        found = [(run["n"], speed(i)) for run in runs for i in run["indexes"] if i["name"] == name]
        points = [(n, qps) for n, qps in found if qps]
        if points:
            axes.plot(*zip(*points), label=name, marker="o")
    # The scale brings a formatter of its own.
    axes.set_xscale("log", base=2)
    axes.set_xticks([run["n"] for run in runs])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("vectors")
    axes.set_ylabel("queries per second on one thread")
    axes.set_title(f"{runs[-1]['data']}, recall@10 {RECALL}")
    axes.grid(True, alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="sift-photos-128-euclidean")
    parser.add_argument("--only", default="ann-diskann", help="libraries, with commas between")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="with commas between")
    parser.add_argument("--queries", type=int, default=2000)
    args = parser.parse_args()
    dataset, names = load(args.data), args.only.split(",")
    task = Task(dataset.metric, threads=2, m=16, ef_construction=200, ef=EF)
    runs = []
    for n in map(int, args.sizes.split(",")):
        kinds = [LIBRARIES[name] for name in names]
        runs.append(measure(subset(dataset, n), kinds, task, args.queries, k=10))
        print(table(names, runs), flush=True)
    results, picture = RESULTS / "growth.json", RESULTS / "growth.png"
    results.write_text(json.dumps(runs, indent=1))
    plot(names, runs, picture)
    print(f"all that was measured: {results}\nplot: {picture}")
    return 1 if any(run["failed"] for run in runs) else 0


if __name__ == "__main__":
    command(main)
