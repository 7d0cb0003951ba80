"""The measuring of benches/: recall, curves, tables, and runs of tiny libraries in processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import compare
import report
from curves import pareto, qps_at, recall, true_distances
from datasets.store import Dataset, with_truth
from libraries import NumpyFlat
from library import Library, Task

COMPARE = Path(__file__).resolve().parents[2] / "benches" / "compare.py"


class Missing(Library):
    name = "missing"
    package = "missing"

    def load(self) -> None:
        import no_such_library  # noqa: F401


class Raising(NumpyFlat):
    name = "raising"

    def build(self, train: np.ndarray) -> None:
        raise MemoryError("3 bytes too few")


class Dying(NumpyFlat):
    """Survives the warm-up, so that it dies while the libraries take turns."""

    name = "dying"
    calls = 0

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        self.calls += 1
        if self.calls > 2:
            os._exit(9)
        return super().search(queries, k)


class Lying(NumpyFlat):
    """Returns one right id k times."""

    name = "lying"

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        return np.repeat(super().search(queries, k)[:, :1], k, axis=1)


class Outside(NumpyFlat):
    name = "outside"

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        return super().search(queries, k) + len(self.rows)


class Reopened(NumpyFlat):
    name = "reopened"
    reopens = NumpyFlat

    def open(self, path: Path) -> None:
        self.rows = np.load(path, mmap_mode="r")
        self.squares = np.einsum("ij,ij->i", self.rows, self.rows)


@pytest.fixture(params=["angular", "euclidean"])
def tiny(request: pytest.FixtureRequest) -> Dataset:
    rng = np.random.default_rng(7)
    train, test = rng.normal(size=(600, 12)), rng.normal(size=(50, 12))
    # Of other lengths than one, so that a search that forgets to normalise is found out.
    train, test = (x.astype(np.float32) * rng.uniform(1, 9, (len(x), 1)) for x in (train, test))
    about = ("tiny", train.astype(np.float32), test.astype(np.float32), request.param)
    return with_truth(*about, "none", "random")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(compare, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def run(dataset: Dataset, *kinds: type[Library]) -> report.Run:
    return compare.measure(dataset, list(kinds), Task(dataset.metric), queries=40, k=10)


def test_distances_are_those_of_the_data_set(tiny: Dataset) -> None:
    found = true_distances(tiny.metric, tiny.train, tiny.test, tiny.neighbors)
    assert np.allclose(found, tiny.distances, rtol=1e-5)


def test_nothing_found_and_repeated_ids_are_infinitely_far() -> None:
    train = np.array([[0.0], [1.0], [2.0]], dtype=np.float32)
    found = true_distances("euclidean", train, train[:1], np.array([[1, -1, 1, 2]]))
    assert found.tolist() == [[1.0, math.inf, math.inf, 2.0]]


@pytest.mark.parametrize("wrong", [3, -2])
def test_ids_that_do_not_exist_are_an_error(wrong: int) -> None:
    train = np.zeros((3, 1), dtype=np.float32)
    with pytest.raises(ValueError, match="allowed is -1 to 2"):
        true_distances("euclidean", train, train[:1], np.array([[0, wrong]]))


def test_unknown_metric_is_an_error() -> None:
    with pytest.raises(ValueError, match="'dot'"):
        true_distances("dot", np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1), dtype=int))


def test_recall_counts_ties_with_the_last_true_neighbour() -> None:
    truth = np.array([[1.0, 2.0], [1.0, 3.0]])
    assert recall(truth, truth) == 1
    # Another vector at the same distance is as good an answer; a hair further is not.
    assert recall(np.array([[2.0, 2.0], [1.0, 3.0 + 1e-8]]), truth) == 1
    assert recall(np.array([[1.0, 2.001], [3.01, math.inf]]), truth) == 0.25


def test_pareto_leaves_out_what_is_beaten_in_both() -> None:
    points = [(0.5, 100.0), (0.9, 50.0), (0.8, 40.0), (0.99, 10.0), (0.9, 30.0)]
    assert pareto(points) == [0, 1, 3]


def test_qps_is_interpolated_in_its_logarithm() -> None:
    points = [(0.8, 1000.0), (0.9, 100.0), (0.85, 1.0)]
    assert qps_at(points, 0.9) == pytest.approx(100)
    assert qps_at(points, 0.85) == pytest.approx(math.sqrt(1000 * 100))
    assert qps_at(points, 0.5) == 1000
    assert qps_at(points, 0.91) is None
    assert qps_at([], 0.5) is None


def test_table_is_aligned_markdown() -> None:
    assert report.table(["index", "q/s"], [["a", "1,000"], ["longer", "-"]]).splitlines() == [
        "| index  |   q/s |",
        "| ------ | ----: |",
        "| a      | 1,000 |",
        "| longer |     - |",
    ]


def test_exact_search_has_recall_one(tiny: Dataset, results: Path) -> None:
    (index,) = run(tiny, NumpyFlat)["indexes"]
    (search,) = index["searches"]
    assert search["recall"] == 1
    assert len(search["passes"]) == compare.PASSES
    assert search["qps"] == max(search["passes"]) > 0
    assert index["build_s"] > 0
    assert index["index_bytes"] >= tiny.train.nbytes
    assert index["peak_bytes"] > tiny.train.nbytes
    assert list(results.iterdir()) == []  # the work files are gone


def test_repeated_answers_count_once(tiny: Dataset, results: Path) -> None:
    (index,) = run(tiny, Lying)["indexes"]
    assert index["searches"][0]["recall"] == pytest.approx(0.1)


def test_reopened_index_is_opened_not_built(tiny: Dataset, results: Path) -> None:
    built, reopened = run(tiny, Reopened)["indexes"]  # what it reopens is measured too
    assert (built["name"], reopened["name"]) == ("numpy-flat", "reopened")
    assert reopened["build_s"] is None
    assert len(reopened["open_s"]) == 20
    assert reopened["searches"][0]["recall"] == 1


def test_a_library_that_cannot_be_measured_stops_no_other(tiny: Dataset, results: Path) -> None:
    made = run(tiny, Missing, Raising, Dying, Outside, NumpyFlat)
    assert [index["name"] for index in made["indexes"]] == ["numpy-flat"]
    assert made["skipped"] == {"missing": "No module named 'no_such_library'"}
    assert made["failed"]["raising"] == "MemoryError: 3 bytes too few"
    assert made["failed"]["dying"] == "at {}: its process ended with code 9"
    assert "allowed is -1 to 599" in made["failed"]["outside"]
    text = report.text(made)
    assert "skipped missing: No module named 'no_such_library'" in text
    assert "FAILED raising: MemoryError" in text


def test_publish_prints_tables_and_writes_plot_and_json(
    tiny: Dataset, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.publish(run(tiny, NumpyFlat, Missing), "tiny")
    printed = capsys.readouterr().out
    assert f"### tiny: 600 x 12, {tiny.metric}, 40 queries" in printed
    assert "|   exact |    1.0000 |" in printed
    assert str(results / "tiny.png") in printed
    assert (results / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert (results / "tiny.json").stat().st_size > 0


def test_summary_sets_our_index_beside_the_others() -> None:
    def index(name: str, build_s: float, qps: float) -> report.Run:
        searches = [{"recall": 0.99, "qps": qps}]
        return {"name": name, "build_s": build_s, "searches": searches}

    made = {"indexes": [index("other", 10, 500), index("ann-hnsw", 4, 1000)]}
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report.summary_table(made).splitlines()
    ]
    assert rows[2] == ["other", "10.0", *["500"] * 3, *["2.00x"] * 3, "0.40x"]
    assert rows[3] == ["ann-hnsw", "4.0", *["1,000"] * 3, *["1.00x"] * 3, "1.00x"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--only", "hnswlib,nosuch"], "'nosuch' is none of: all, ann-hnsw"),
        (["--threads", "0"], "0 is less than 1"),
        (["--ef", "10,x"], "invalid _sweep value: '10,x'"),
        (["--data", "glove-small-100-angular", "--k", "101"], "--k is 101"),
        (["--data", "nosuch"], "no data set is named 'nosuch'"),
    ],
)
def test_wrong_arguments_are_named(args: list[str], words: str) -> None:
    command = [sys.executable, str(COMPARE), *args]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert words in done.stderr
