"""What a run asks of every library that it measures."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Setting = dict[str, Any]

EF = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 800)


@dataclass(frozen=True)
class Task:
    """What every library is asked for: `metric` is "angular" or "euclidean"."""

    metric: str
    threads: int = 2
    m: int = 16
    ef_construction: int = 200
    ef: tuple[int, ...] = EF


class Unavailable(Exception):
    """The library cannot be imported here, or is not for such data."""


class Library:
    """One index of one library. The constructor imports the library and may raise ImportError."""

    name: str
    package: str  # the distribution that `version` asks about
    unit_vectors = False  # under "angular" it is given vectors of length one
    reopens: type[Library] | None = None  # does not build: opens the file which that one saved
    environment: Mapping[str, str] = {}  # set for its process before anything is imported
    index: Any = None  # what the library builds

    def __init__(self, task: Task) -> None:
        self.task = task
        self.angular = task.metric == "angular"
        self.load()

    def load(self) -> None:
        """Imports the library."""

    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def prepare(self, train: np.ndarray) -> None:
        """Does before the clock starts what is no part of a build. May raise Unavailable."""

    def build(self, train: np.ndarray) -> None:
        raise NotImplementedError

    def open(self, path: Path) -> None:
        raise NotImplementedError

    def settings(self, n: int) -> list[Setting]:
        """The search settings to sweep on `n` vectors, from fast to exact."""
        return [{"ef": ef} for ef in self.task.ef]

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        """The ids of the `k` nearest of each query, found on one thread in one batch call."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        raise NotImplementedError

    def done(self) -> int | None:
        """How many vectors a running build has taken in; None where the library does not tell."""
        return None
