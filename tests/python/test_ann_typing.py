"""The Python package's types and documents: this file under mypy, examples as they are written."""

from __future__ import annotations

import doctest
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import ann
import ann._index

PACKAGE = Path(__file__).resolve().parents[2] / "ann-py"


def test_usage_as_types_have_it(tmp_path: Path) -> None:
    metric: ann.Metric = "cosine"
    dtype: ann.DType = "f16"
    index: ann.Index = ann.HNSW(3, metric=metric, dtype=dtype, m=np.int64(4), seed=1)
    added: npt.NDArray[np.int64] = index.add([[1, 0, 0], [0, 1, 0]], ids=[4, 5], progress=False)
    found: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
    found = index.search(np.eye(3), k=2, ef=10, threads=1, filter=lambda id: id > 3)
    found = index.search([1.0, 0.0, 0.0], filter={4, 5})
    found = index.search([1, 0, 0], filter=np.array([True]))
    ids, distances = index.range_search([1, 0, 0], 0.5, filter=[4])
    hits: Iterator[tuple[int, float]] = index.iter_search([1, 0, 0], ef=8)
    removed: int = index.remove(4)
    index.update([0, 0, 1], 5, progress=lambda done, total: None)
    stats: ann.Stats = index.stats()
    links: int = stats["bytes_by_part"]["links"]
    vector: npt.NDArray[Any] = index.get(5)
    index.save(tmp_path / "i")
    opened: ann.HNSW | ann.DiskANN | ann.IVFPQ | ann.Flat = ann.open(tmp_path / "i")
    with ann.open(str(tmp_path / "i")) as same:
        assert 5 in same
    assert isinstance(opened, ann.HNSW)
    assert (opened.m, opened.metric) == (4, "cosine")
    assert (len(index), removed, added.tolist(), vector.tolist()) == (1, 1, [4, 5], [0, 0, 1])
    assert found[0].tolist() == [-1] * 10
    assert (ids.tolist(), distances.tolist()) == ([4], [0.0])
    assert links > 0
    with pytest.raises(ann.ChangedError):
        next(hits)


def test_mypy_is_content() -> None:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", str(PACKAGE / "python"), __file__]
    run = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert run.returncode == 0, run.stdout + run.stderr


def test_wrong_usage_is_found_by_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    wrong = {
        'ann.HNSW(3, metric="l3")': "arg-type",
        "ann.HNSW(3).search([1, 2, 3], nearest=3)": "call-arg",
        "ann.HNSW(3).add([1, 2, 3]).append(4)": "attr-defined",
        "ann.Flat(3).m": "attr-defined",
        "ann.open(3)": "arg-type",
    }
    file = tmp_path / "wrong.py"
    file.write_text("import ann\n\n" + "\n".join(wrong) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", str(file)]
    environment = {**os.environ, "MYPYPATH": str(PACKAGE / "python")}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    codes = re.findall(r"error: .*\[([a-z-]+)\]$", run.stdout, re.MULTILINE)
    assert codes == list(wrong.values()), run.stdout + run.stderr


@pytest.mark.parametrize("module", [ann, ann._index])
def test_examples_in_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["ids"].shape == (5, 10)
    assert len(ann.open("vectors.ann")) == 10_000


def test_the_version_is_that_of_the_package() -> None:
    assert ann.__version__ == importlib.metadata.version("ann-py")


def test_everything_public_is_documented() -> None:
    for name in ann.__all__:
        thing = getattr(ann, name)
        if not inspect.isclass(thing) and not inspect.isfunction(thing):
            continue  # an alias of types
        assert inspect.getdoc(thing), name
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{member}"
