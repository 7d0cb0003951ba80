"""What a run says: its tables in Markdown, its machine in a line, its plot."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from curves import pareto, qps_at

TARGETS = (0.90, 0.95, 0.99)
Run = dict[str, Any]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, aligned so that it also reads well in a terminal."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    left = [i == 0 for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [c.ljust(w) if lt else c.rjust(w) for c, w, lt in zip(cells, widths, left)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if lt else "-" * (w - 1) + ":" for w, lt in zip(widths, left)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def _number(value: float | None, form: str = ",.1f") -> str:
    return "-" if value is None else format(value, form)


def _megabytes(size: int | None) -> str:
    return "-" if size is None else format(size / 1e6, ",.1f")


def _points(index: Run) -> list[tuple[float, float]]:
    return [(s["recall"], s["qps"]) for s in index["searches"]]


def settings_table(run: Run) -> str:
    """Every setting of every index; of a sweep over two parameters, the best settings only."""
    header = ["index", "build s", "index MB", "resident MB", "peak MB"]
    header += ["setting", f"recall@{run['k']}", "queries/s"]
    rows = []
    for index in run["indexes"]:
        cells = [index["name"], _number(index["build_s"]), _megabytes(index["index_bytes"])]
        cells += [_megabytes(index["resident_bytes"]), _megabytes(index["peak_bytes"])]
        searches = index["searches"]
        if searches and len(searches[0]["setting"]) > 1:
            searches = [searches[i] for i in pareto(_points(index))]
        for search in searches:
            setting = " ".join(f"{key}={value}" for key, value in search["setting"].items())
            row = [setting or "exact", f"{search['recall']:.4f}", f"{search['qps']:,.0f}"]
            rows.append(cells + row)
            cells = [""] * len(cells)
        if not searches:
            rows.append([*cells, "-", "-", "-"])
    return table(header, rows)


def summary_table(run: Run) -> str:
    """Queries a second at fixed recalls, and how many times as fast our index is."""
    ours = next((i for i in run["indexes"] if i["name"].startswith("ann-") and i["searches"]), None)
    header = ["index", "build s", *(f"q/s at {t:.2f}" for t in TARGETS)]
    if ours:
        header += [f"{ours['name']}/this at {t:.2f}" for t in TARGETS] + ["in build s"]
        best = [qps_at(_points(ours), t) for t in TARGETS]
    rows = []
    for index in run["indexes"]:
        if not index["searches"]:
            continue
        speeds = [qps_at(_points(index), t) for t in TARGETS]
        row = [index["name"], _number(index["build_s"]), *(_number(s, ",.0f") for s in speeds)]
        if ours:
            ratios = [b / s if b and s else None for b, s in zip(best, speeds)]
            row += [_number(r, ".2f") + ("x" if r else "") for r in ratios]
            both = ours["build_s"] and index["build_s"]
            row += [f"{ours['build_s'] / index['build_s']:.2f}x" if both else "-"]
        rows.append(row)
    return table(header, rows)


def notes(run: Run) -> list[str]:
    """What must be known beside the tables: skipped libraries, doubtful measurements."""
    lines = [f"skipped {name}: {reason}" for name, reason in run["skipped"].items()]
    lines += [f"FAILED {name}: {reason}" for name, reason in run["failed"].items()]
    build_s = {index["name"]: index["build_s"] for index in run["indexes"]}
    one, two = build_s.get("ann-hnsw-1thread"), build_s.get("ann-hnsw")
    if one and two:
        threads = run["task"]["threads"]
        lines.append(f"ann-hnsw builds {one / two:.2f}x as fast on {threads} threads as on one")
    for index in run["indexes"]:
        name = index["name"]
        if index["open_s"]:
            times = sorted(index["open_s"])
            least, median = times[0] * 1e3, times[len(times) // 2] * 1e3
            lines.append(
                f"{name} opened in {least:.2f} ms, median {median:.2f} ms of {len(times)} times"
            )
        cores = max((s["cores"] for s in index["searches"]), default=0)
        if cores > 1.2:
            lines.append(f"warning: {name} searched on {cores:.1f} cores, not on one")
    if run["machine"]["load"] > 0.5:
        load = run["machine"]["load"]
        lines.append(f"warning: a load of {load:.1f} was on the machine as the run began")
    return lines


def title(run: Run) -> str:
    task = run["task"]
    return (
        f"{run['data']}: {run['n']:,} x {run['dim']}, {run['metric']}, {run['queries']:,} queries, "
        f"m={task['m']} ef_construction={task['ef_construction']}, "
        f"built on {task['threads']} threads, searched on one"
    )


def text(run: Run) -> str:
    machine, versions = run["machine"], {}
    for index in run["indexes"]:
        versions[index["package"]] = index["version"]
    line = (
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory']}, "
        f"{machine['system']}, Python {machine['python']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )
    parts = ["### " + title(run), settings_table(run), summary_table(run), line]
    return "\n\n".join([*parts, "\n".join(notes(run))]).rstrip()


def machine() -> dict[str, Any]:
    """The machine a run was made on, and the load that it was under as the run began."""
    cpu, memory = platform.processor() or platform.machine(), "memory unknown"
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpuinfo.exists():
        models = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        cpu = models[0].split(":")[1].strip() if models else cpu
    if meminfo.exists():
        memory = f"{int(meminfo.read_text().split()[1]) / 1e6:.0f} GB"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def plot(run: Run, path: Path) -> None:
    """Recall against queries a second, a line for each index through its best settings."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, axes = pyplot.subplots(figsize=(9, 6), constrained_layout=True)
    colors = pyplot.get_cmap("tab20").colors
    axes.set_prop_cycle(color=[*colors[::2], *colors[1::2]])
    # The axis is the share of misses, in logarithms, which spreads the end where indexes differ;
    # "no miss at all" is drawn as half a miss.
    best = 1 - 0.5 / (run["queries"] * run["k"])
    for index in run["indexes"]:
        front = pareto(_points(index))
        points = [(min(r, best), qps) for r, qps in (_points(index)[i] for i in front)]
        if not points:
            continue
        ours = index["name"].startswith("ann-")
        axes.plot(
            *zip(*points),
            label=index["name"],
            marker="o" if ours else "s",
            markersize=4,
            linewidth=2.2 if ours else 1.2,
            linestyle="--" if index["open_s"] else "-",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.set_xscale(
        "function", functions=(lambda r: -np.log(np.maximum(1 - r, 1e-9)), lambda x: 1 - np.exp(-x))
    )
    axes.set_xlim(0.5, 1 - (1 - best) / 2)
    ticks = [r for r in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999) if r < best]
    axes.set_xticks([*ticks, best], [*(f"{r:g}" for r in ticks), "1"])
    axes.set_xlabel(f"recall@{run['k']}")
    axes.set_ylabel("queries per second on one thread")
    axes.set_title(title(run).replace(" queries, ", " queries\n"), fontsize=10)
    axes.grid(True, which="both", alpha=0.25)
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
