"""Recall by the codes of lists alone, beside faiss: all lists read, nothing reranked."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ann
from datasets.load import load

# A piece for so many dimensions.
WIDTHS = {100: 2, 128: 2, 256: 4, 384: 4, 784: 4}


def ours(x: Any, q: Any, metric: Any, lists: int, pieces: int, k: int, anisotropic: bool) -> Any:
    """What an index without vectors finds, and the seconds that adding took."""
    index = ann.IVFPQ(
        x.shape[1],
        metric=metric,
        lists=lists,
        subvectors=pieces,
        rerank=None,
        anisotropic=anisotropic,
    )
    begun = time.perf_counter()
    index.add(x)
    added = time.perf_counter() - begun
    return index.search(q, k, probes=lists, rerank=k)[0], added


def theirs(x: Any, q: Any, metric: Any, lists: int, pieces: int, k: int) -> Any:
    """What faiss' IVFn,PQmx4fs finds, with its defaults, and the seconds that it took to add."""
    import faiss

    l2sq = metric == "l2sq"
    if metric == "cosine":
        x, q = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, q))
    kind = faiss.METRIC_L2 if l2sq else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(x.shape[1], f"IVF{lists},PQ{pieces}x4fs", kind)
    begun = time.perf_counter()
    index.train(x)
    index.add(x)
    added = time.perf_counter() - begun
    faiss.extract_index_ivf(index).nprobe = lists
    return index.search(q, k)[1], added


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["glove-100-angular-wink"])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--lists", type=int, default=512)
    parser.add_argument("-k", type=int, default=10)
    options = parser.parse_args()
    lists, k = options.lists, options.k
    print("| data | codes | recall@10 | s to add |")
    print("|---|---|---:|---:|")
    for name in options.names:
        data = load(name)
        x, q = data.train[: options.rows], data.test[: options.queries]
        metric = "cosine" if data.metric == "angular" else "l2sq"
        flat = ann.Flat(x.shape[1], metric=metric)
        flat.add(x)
        true, _ = flat.search(q, k)
        pieces = x.shape[1] // WIDTHS.get(x.shape[1], 2)
        found = {f"faiss IVF{lists},PQ{pieces}x4fs": theirs(x, q, metric, lists, pieces, k)}
        for anisotropic in (True, False)[metric == "l2sq" :]:
            what = "anisotropic" if anisotropic else "least distance"
            found[f"ours, {what}"] = ours(x, q, metric, lists, pieces, k, anisotropic)
        for what, (ids, added) in found.items():
            hits = sum(len(set(a) & set(b)) for a, b in zip(ids.tolist(), true.tolist()))
            print(
                f"| {Path(name).stem} | {what} | {hits / true.size:.4f} | {added:.1f} |", flush=True
            )


if __name__ == "__main__":
    main()
