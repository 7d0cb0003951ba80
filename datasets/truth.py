"""Exact nearest neighbours: float32 matrix products propose, float64 decides.

A float32 product is off by a known bound at most. A query is done when its k-th neighbour, measured
in float64, beats everything that was not proposed by more than that bound; otherwise it is asked
again with more proposals. So the answer is exact on any data, not merely likely to be.
"""

import numpy as np
from tqdm import tqdm

METRICS = ("angular", "euclidean")
ROUNDOFF = 2.0**-24  # relative error of one float32 rounding
QUERY_BLOCK, BASE_BLOCK = 256, 16_384


def measure(vectors, query, metric):
    """Float64 distances from one query to each row: 1 - cos, or the root of the summed squares."""
    # Sums go along each row by itself (no matrix product), so that equal rows get equal distances.
    v, q = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "euclidean":
        return np.sqrt(np.square(v - q).sum(axis=1))
    norms = np.sqrt(np.square(v).sum(axis=1) * np.square(q).sum())
    norms[norms == 0] = 1.0  # a zero vector has no direction: its distance to anything is 1
    return np.maximum(1.0 - (v * q).sum(axis=1) / norms, 0.0)


def exact_neighbors(train, test, metric, k=100):
    """The min(k, n) nearest rows of each query (int32) and their distances (float32).

    Nearest first; ties go by row number.
    """
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}: one of {', '.join(METRICS)}")
    k = min(k, len(train))
    neighbors = np.empty((len(test), k), np.int32)
    distances = np.empty((len(test), k), np.float32)
    scorer = _Scorer(train, test, metric)
    open_queries, width = np.arange(len(test)), min(2 * k, len(train))
    with tqdm(total=len(test), desc="ground truth", unit="query", disable=None) as bar:
        while len(open_queries):
            undone, step = [], max(1, QUERY_BLOCK * 2 * k // width)
            for start in range(0, len(open_queries), step):
                block = open_queries[start : start + step]
                ids, beyond = scorer.propose(block, width)
                for query, row, limit in zip(block, ids, beyond):
                    exact = measure(train[row], test[query], metric)
                    order = np.lexsort((row, exact))[:k]
                    if width < len(train) and not scorer.settles(query, exact[order[-1]], limit):
                        undone.append(query)
                        continue
                    neighbors[query], distances[query] = row[order], exact[order]
                    bar.update()
            open_queries, width = np.array(undone, int), min(8 * width, len(train))
    return neighbors, distances


class _Scorer:
    """Float32 scores that order rows as the metric does, with a bound on their error."""

    def __init__(self, train, test, metric):
        base_norms, query_norms = _norms(train), _norms(test)
        dim, self.metric = train.shape[1], metric
        if metric == "angular":  # score: -cos
            self.base, self.queries = _unit(train, base_norms), -_unit(test, query_norms)
            self.bias, self.offset = None, np.ones(len(test))
            self.error = np.full(len(test), (dim + 4) * ROUNDOFF)
        else:  # score: |x|^2 - 2 q.x, the squared distance without |q|^2
            largest = base_norms.max()
            self.base, self.queries = train, -2 * test
            self.bias = np.square(base_norms).astype(np.float32)
            self.offset = np.square(query_norms)
            self.error = ROUNDOFF * (2 * (dim + 2) * query_norms * largest + 3 * largest**2)

    def propose(self, queries, width):
        """Ids of the `width` best scores of each query, and the worst of these scores."""
        best, ids = None, None
        for start in range(0, len(self.base), BASE_BLOCK):
            scores = self.queries[queries] @ self.base[start : start + BASE_BLOCK].T
            if self.bias is not None:
                scores += self.bias[start : start + BASE_BLOCK]
            here = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
            scores, here = _smallest(scores, here, width)
            if best is not None:
                scores = np.concatenate([best, scores], axis=1)
                here = np.concatenate([ids, here], axis=1)
            best, ids = _smallest(scores, here, width)
        return ids, best.max(axis=1)

    def settles(self, query, kth, limit):
        """Whether nothing that scored `limit` or worse can be as near as distance `kth`."""
        score = (kth if self.metric == "angular" else kth**2) - self.offset[query]
        return score < limit - self.error[query]


def _smallest(scores, ids, width):
    if scores.shape[1] <= width:
        return scores, ids
    keep = np.argpartition(scores, width - 1, axis=1)[:, :width]
    return np.take_along_axis(scores, keep, axis=1), np.take_along_axis(ids, keep, axis=1)


def _norms(x):
    return np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))


def _unit(x, norms):
    return (x / np.where(norms == 0, 1.0, norms)[:, None]).astype(np.float32)
