"""Approximate nearest neighbours: HNSW, DiskANN and IVF-PQ on pages, in memory or in mmap files.

>>> import ann, numpy as np
>>> x = np.random.default_rng(0).normal(size=(1000, 16)).astype("f4")
>>> index = ann.HNSW(16, metric="cosine")
>>> ids = index.add(x)
>>> found, distances = index.search(x[:5], k=3)
>>> found.shape, distances.dtype.name
((5, 3), 'float32')
>>> [int(id) for id in found[:, 0]]
[0, 1, 2, 3, 4]
"""

from ann._ann import __version__
from ann._index import (
    HNSW,
    IVFPQ,
    Code,
    DiskANN,
    DType,
    Flat,
    Index,
    Metric,
    Needs,
    Placement,
    Rerank,
    Stats,
    Tuned,
    TunedEf,
    Vectors,
    open,
)
from ann.errors import (
    ChangedError,
    DimensionError,
    Error,
    FormatError,
    InputError,
    LockedError,
    ReadOnlyError,
    UnknownIdError,
)

__all__ = [
    "HNSW",
    "IVFPQ",
    "ChangedError",
    "Code",
    "DType",
    "DimensionError",
    "DiskANN",
    "Error",
    "Flat",
    "FormatError",
    "Index",
    "InputError",
    "LockedError",
    "Metric",
    "Needs",
    "Placement",
    "ReadOnlyError",
    "Rerank",
    "Stats",
    "Tuned",
    "TunedEf",
    "UnknownIdError",
    "Vectors",
    "__version__",
    "open",
]
