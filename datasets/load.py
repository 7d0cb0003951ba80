"""What benches, tests and the demo ask for: a data set by name, made first where it is missing."""

from pathlib import Path

from datasets import DatasetError, FetchError, small, store
from datasets.recipes import RECIPES
from datasets.store import Dataset

DEMO = "glove-100-angular-wink"


def names() -> "list[str]":
    return [small.NAME, *RECIPES]


def load(name: str) -> Dataset:
    """The data set: the small one from the repository, others from the cache, made if missing."""
    return small.read() if name == small.NAME else store.read(make(name), name)


def make(name: str) -> Path:
    """Makes the cached HDF5 file of a data set unless it is there; gives its path."""
    if name not in names():
        raise DatasetError(f"no data set is named {name!r}: one of {', '.join(names())}")
    path = store.cache_path(name)
    if path.exists():
        return path
    with store.whole_file(path) as temporary:
        if name == small.NAME:
            store.write(temporary, small.read())
        else:
            RECIPES[name].write(RECIPES[name], temporary)
    return path


def subset(dataset: Dataset, n: int) -> Dataset:
    """The first `n` base vectors with all queries and their own ground truth, cached as NAME-n."""
    if n < 1:
        raise ValueError(f"n is {n}: at least 1")
    if n >= len(dataset.train):
        return dataset
    name = f"{dataset.name}-{n}"
    path = store.cache_path(name)
    if not path.exists():
        about = (dataset.metric, dataset.license, dataset.source)
        part = store.with_truth(name, dataset.train[:n], dataset.test, *about)
        with store.whole_file(path) as temporary:
            store.write(temporary, part)
    return store.read(path, name)


def demo_dataset() -> Dataset:
    """The demo's data set, or the small one, said so, where its source cannot be reached."""
    try:
        return load(DEMO)
    except FetchError as error:
        print(f"using {small.NAME} (ships with the project) instead of {DEMO}: {error}", flush=True)
        return load(small.NAME)
