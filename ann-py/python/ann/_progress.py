"""Telling how far a long call is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Union

Report = Callable[[int, int], Any]
Progress = Union[bool, Report]


@contextmanager
def reporting(progress: Progress) -> Iterator[Report | None]:
    """The function that is to be called with (rows done, rows in all), if one is."""
    if callable(progress):
        yield progress
        return
    if not progress:
        yield None
        return
    try:
        bar = importlib.import_module("tqdm").tqdm(unit="row", unit_scale=True)
    except ImportError:
        yield _line
        print(file=sys.stderr)
        return

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        yield show


def _line(done: int, total: int) -> None:
    print(f"\r{done:,} of {total:,} rows", end="", file=sys.stderr, flush=True)
