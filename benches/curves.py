"""Recall by distance, and what a recall/speed curve says at a given recall."""

from __future__ import annotations

import math

import numpy as np

# Ties and the last bits of a float must not decide whether an answer counts.
TOLERANCE = 1e-6


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def true_distances(
    metric: str, train: np.ndarray, queries: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """Distances in float64 from each query to the vectors whose ids its row of `ids` holds.

    Euclidean, or half the squared distance of unit vectors (1 - cosine, free of cancellation).
    An id of -1 (nothing found) is at an infinite distance, and so is an id that its row repeats.
    """
    if metric not in ("angular", "euclidean"):
        raise ValueError(f"metric {metric!r}: allowed are 'angular' and 'euclidean'")
    if ids.size and not -1 <= ids.min() <= ids.max() < len(train):
        raise ValueError(f"ids from {ids.min()} to {ids.max()}: allowed is -1 to {len(train) - 1}")
    distances = np.empty(ids.shape)
    for i in range(0, len(ids), 256):
        rows = train[ids[i : i + 256]].astype(np.float64)
        query = queries[i : i + 256, None].astype(np.float64)
        if metric == "angular":
            rows, query = _unit(rows), _unit(query)
        squared = np.square(rows - query).sum(axis=2)
        distances[i : i + 256] = squared / 2 if metric == "angular" else np.sqrt(squared)
    distances[ids < 0] = math.inf
    for row, of in zip(distances, ids):
        repeated = np.ones(len(of), dtype=bool)
        repeated[np.unique(of, return_index=True)[1]] = False
        row[repeated] = math.inf
    return distances


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the k true neighbours found: an answer counts when it is as near as the k-th.

    Both are distances, one row a query and k columns.
    """
    limit = truth.max(axis=1, keepdims=True)
    return float((found <= limit * (1 + TOLERANCE) + 1e-12).sum() / truth.size)


def pareto(points: list[tuple[float, float]]) -> list[int]:
    """Positions of the (recall, qps) points that no other beats in both, by rising recall."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i], reverse=True):
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front[::-1]


def qps_at(points: list[tuple[float, float]], target: float) -> float | None:
    """Queries a second at a recall: linear in log(qps) between neighbours on the Pareto front.

    None when no setting reaches the recall; when all of the front are above it, the fastest.
    """
    front = [points[i] for i in pareto(points)]
    above = [i for i, (r, _) in enumerate(front) if r >= target]
    if not above:
        return None
    high = front[above[0]]
    if above[0] == 0:
        return high[1]
    low = front[above[0] - 1]
    share = (target - low[0]) / (high[0] - low[0])
    return math.exp(math.log(low[1]) * (1 - share) + math.log(high[1]) * share)
