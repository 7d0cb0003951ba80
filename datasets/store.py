"""The cache of HDF5 files in the layout of ann-benchmarks."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from datasets import DatasetError
from datasets.truth import METRICS, exact_neighbors

ARRAYS = {"train": "f4", "test": "f4", "neighbors": "i4", "distances": "f4"}
TEXTS = ("distance", "license", "source")


@dataclass(frozen=True)
class Dataset:
    """Base vectors, queries and the exact neighbours of each query, nearest first."""

    name: str
    train: np.ndarray  # f32, (n, dim)
    test: np.ndarray  # f32, (queries, dim)
    neighbors: np.ndarray  # i32, (queries, 100), rows of train
    distances: np.ndarray  # f32, (queries, 100)
    metric: str  # "angular" (1 - cos) or "euclidean"
    license: str
    source: str


def with_truth(name, train, test, metric, license, source) -> Dataset:
    """A data set of these vectors, its ground truth computed here."""
    neighbors, distances = exact_neighbors(train, test, metric)
    return Dataset(name, train, test, neighbors, distances, metric, license, source)


def cache_path(name: str) -> Path:
    """Where the data set is kept; `ANN_DATASETS_CACHE` moves the folder."""
    folder = os.environ.get("ANN_DATASETS_CACHE") or Path(__file__).parent / "cache"
    return Path(folder) / f"{name}.hdf5"


@contextmanager
def whole_file(path: Path):
    """Gives a temporary path beside `path` that takes its place only when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, dataset: Dataset) -> None:
    with h5py.File(path, "w") as file:
        for key, dtype in ARRAYS.items():
            file.create_dataset(key, data=getattr(dataset, key), dtype=dtype)
    stamp(path, distance=dataset.metric, license=dataset.license, source=dataset.source)


def stamp(path: Path, **texts: str) -> None:
    """Sets attributes of the file."""
    with h5py.File(path, "r+") as file:
        file.attrs.update(texts)


def read(path: Path, name: str) -> Dataset:
    shapes(path)
    with h5py.File(path, "r") as file:
        arrays = {key: file[key][:].astype(dtype, copy=False) for key, dtype in ARRAYS.items()}
        metric, license, source = (_text(file, key) for key in TEXTS)
    return Dataset(name, **arrays, metric=metric, license=license, source=source)


def shapes(path: Path) -> "tuple[int, int, int, str]":
    """Checks the file's layout without reading its vectors: (n, queries, dim, metric)."""
    try:
        with h5py.File(path, "r") as file:
            sizes = {key: file[key].shape for key in ARRAYS if key in file}
            metric = _text(file, "distance")
    except OSError as error:
        raise DatasetError(f"{path} is not a complete HDF5 file ({error})") from error
    missing = [key for key in ARRAYS if len(sizes.get(key, ())) != 2]
    if missing:
        raise DatasetError(f"{path} has no two-dimensional {', '.join(missing)}")
    (n, dim), (queries, query_dim) = sizes["train"], sizes["test"]
    truth = sizes["neighbors"]
    if query_dim != dim or truth[0] != queries or truth != sizes["distances"]:
        raise DatasetError(f"{path} has arrays that do not fit each other: {sizes}")
    if metric not in METRICS:
        raise DatasetError(f"{path} has distance {metric!r}: one of {', '.join(METRICS)}")
    return n, queries, dim, metric


def _text(file, key) -> str:
    value = file.attrs.get(key, "")
    return value.decode() if isinstance(value, bytes) else str(value)
