"""The demo: our indexes on 100,000 real vectors; HNSW also saved and reopened by mmap."""

from __future__ import annotations

import time

from compare import command, measure, publish
from datasets.load import demo_dataset, subset
from libraries import AnnDiskAnn, AnnHnsw, AnnHnswMmap, AnnIvfPq, FaissHnsw, Hnswlib
from library import Task

VECTORS = 100_000
EF = (10, 20, 40, 80, 160, 320, 640)


def main() -> int:
    start = time.perf_counter()
    dataset = subset(demo_dataset(), VECTORS)
    task = Task(dataset.metric, threads=2, m=16, ef_construction=200, ef=EF)
    libraries = [AnnHnsw, AnnHnswMmap, AnnDiskAnn, AnnIvfPq, Hnswlib, FaissHnsw]
    run = measure(dataset, libraries, task, queries=2000, k=10)
    publish(run, "demo")
    print(f"the demo took {time.perf_counter() - start:.0f} s")
    ours = {AnnHnsw.name, AnnHnswMmap.name, AnnDiskAnn.name, AnnIvfPq.name}
    return 0 if ours <= {index["name"] for index in run["indexes"]} else 1


if __name__ == "__main__":
    command(main)
