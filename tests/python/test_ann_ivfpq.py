"""IVF-PQ in Python: training, tuning, upkeep, and what its searches are told."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from test_ann import make, recall

import ann
from datasets.load import load


@pytest.mark.parametrize("metric", ["l2sq", "ip", "cosine"])
@pytest.mark.parametrize("bits", [4, 8])
def test_recall_on_real_vectors(metric: ann.Metric, bits: int) -> None:
    data = load("glove-small-100-angular")
    exact = ann.Flat(100, metric=metric)
    exact.add(data.train)
    true, _ = exact.search(data.test, 10)
    index = ann.IVFPQ(100, metric=metric, bits=bits, subvectors=50 if bits == 4 else 20)
    index.add(data.train)
    index.verify()
    few = recall(index.search(data.test, 10, probes=4, rerank=20)[0], true)
    many = recall(index.search(data.test, 10, probes=60, rerank=300)[0], true)
    every = recall(index.search(data.test, 10, probes=1000, rerank=300)[0], true)
    assert few < many < every
    assert many > 0.95
    assert every > 0.995


@pytest.mark.parametrize("metric", ["l2sq", "ip", "cosine"])
def test_codes_of_rabitq(metric: ann.Metric, tmp_path: Path) -> None:
    data = load("glove-small-100-angular")
    exact = ann.Flat(100, metric=metric)
    exact.add(data.train)
    true, _ = exact.search(data.test, 10)
    index = ann.IVFPQ(100, metric=metric, code="rabitq1")
    index.add(data.train)
    index.verify()
    assert (index.code, index.bits, index.subvectors) == ("rabitq1", 1, 0)
    assert recall(index.search(data.test, 10, probes=60, rerank=300)[0], true) > 0.95
    index.save(tmp_path / "i")
    with ann.open(tmp_path / "i") as opened:
        assert isinstance(opened, ann.IVFPQ)
        assert (opened.code, opened.opq) == ("rabitq1", False)
        np.testing.assert_array_equal(opened.search(data.test)[0], index.search(data.test)[0])
    for given in ({"bits": 4}, {"subvectors": 10}):
        with pytest.raises(ann.InputError, match="product quantizer"):
            ann.IVFPQ(100, code="rabitq2", **given)


def test_rotated_vectors(tmp_path: Path) -> None:
    data = load("glove-small-100-angular")
    index = ann.IVFPQ(100, metric="cosine", opq=True)
    index.add(data.train, threads=1)
    index.verify()
    assert index.opq
    index.save(tmp_path / "i")
    with ann.open(tmp_path / "i") as opened:
        np.testing.assert_array_equal(opened.search(data.test)[0], index.search(data.test)[0])
    with pytest.raises(ann.InputError, match="opq = true is not allowed: false beyond 1024"):
        ann.IVFPQ(1025, opq=True)


def test_it_trains_itself_as_it_grows() -> None:
    index = ann.IVFPQ(24)
    x = make(6000)
    index.add(x[:500])
    assert index.lists == 0
    assert "lists=0" in repr(index)
    np.testing.assert_array_equal(index.search(x[:20], 1)[0][:, 0], np.arange(20))
    lists = []
    for start in range(500, 6000, 500):
        index.add(x[start : start + 500])
        lists.append(index.lists)
    assert 0 < lists[1] < lists[-1]
    assert index.remove(np.arange(0, 6000, 2)) == 3000
    index.compact()
    index.rebalance(threads=1)
    index.verify()
    found, near = index.search(x[1::2], 1, probes=30, rerank=50)
    assert (found[:, 0] == np.arange(1, 6000, 2)).mean() > 0.97
    assert near.shape == (3000, 1)


def test_training_on_a_sample() -> None:
    index = ann.IVFPQ(24, lists=30, rerank="f16")
    x = make(3000)
    index.train(x[:1000], threads=1)
    assert (len(index), index.lists, index.rerank, index.subvectors) == (0, 30, "f16", 12)
    index.add(x)
    index.verify()
    found, _ = index.search(x, 1, probes=30, rerank=50)
    assert (found[:, 0] == np.arange(3000)).mean() > 0.97
    with pytest.raises(ann.InputError, match="vectors = 0 rows"):
        index.train(make(0))
    with pytest.raises(ann.DimensionError):
        index.train(np.zeros((5, 3)))


def test_tuning_is_kept(tmp_path: Path) -> None:
    data = load("glove-small-100-angular")
    index = ann.IVFPQ(100, metric="cosine")
    index.add(data.train)
    tuned = index.tune(data.test, recall=0.95)
    assert tuned.recall >= 0.95
    assert index.defaults == (tuned.probes, tuned.rerank)
    assert index.stats()["tuned"] == {"probes": tuned.probes, "rerank": tuned.rerank}
    with pytest.raises(ann.InputError, match="len = 0"):
        ann.IVFPQ(100).tune(data.test)
    found, _ = index.search(data.test)
    again, _ = index.search(data.test, probes=tuned.probes, rerank=tuned.rerank)
    np.testing.assert_array_equal(found, again)
    same, _ = index.search(data.test, probes=tuned.probes, ef=tuned.rerank)
    np.testing.assert_array_equal(found, same)
    index.save(tmp_path / "index")
    opened = ann.open(tmp_path / "index")
    assert isinstance(opened, ann.IVFPQ)
    assert opened.defaults == copy.deepcopy(index).defaults == index.defaults
    np.testing.assert_array_equal(opened.search(data.test)[0], found)
    with pytest.raises(ann.ReadOnlyError):
        opened.tune(data.test)
    for wrong in (0.0, 1.1, float("nan")):
        with pytest.raises(ann.InputError, match="recall"):
            index.tune(data.test, recall=wrong)


def test_searches_refuse_what_makes_no_sense() -> None:
    index = ann.IVFPQ(24)
    index.add(make(100))
    q = make(1)
    with pytest.raises(ann.InputError, match="probes = 0"):
        index.search(q, probes=0)
    with pytest.raises(ann.InputError, match="rerank = -1"):
        index.search(q, rerank=-1)
    with pytest.raises(ann.InputError, match="two names for one number"):
        index.search(q, rerank=5, ef=6)


def test_a_load_can_be_stopped_and_is_told_of() -> None:
    x = make(20_000)
    seen: list[tuple[int, int]] = []
    index = ann.IVFPQ(24)
    index.add(x, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (20_000, 20_000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    def stop(done: int, total: int) -> None:
        if done > 15_000:
            raise KeyError("enough")

    stopped = ann.IVFPQ(24)
    with pytest.raises(KeyError, match="enough"):
        stopped.add(x, progress=stop)
    stopped.verify()
    assert len(stopped) <= 20_000
    stopped.add(x[:5000], ids=np.arange(50_000, 55_000))
    stopped.verify()
    assert stopped.lists > 0


def test_second_entries() -> None:
    data = load("glove-small-100-angular")
    exact = ann.Flat(100, metric="cosine")
    exact.add(data.train)
    true, _ = exact.search(data.test, 10)
    found = []
    for spill in (False, True):
        index = ann.IVFPQ(100, metric="cosine", spill=spill)
        index.add(data.train)
        index.verify()
        ids, _ = index.search(data.test, 10, probes=8, rerank=200)
        assert all(len(set(row)) == 10 for row in ids.tolist())
        found.append(recall(ids, true))
    assert found[1] > found[0] + 0.05


@pytest.mark.parametrize("rerank", ["rabitq8", "rabitq4", None])
def test_without_vectors(rerank: ann.Rerank | None, tmp_path: Path) -> None:
    data = load("glove-small-100-angular")
    exact = ann.Flat(100, metric="cosine")
    exact.add(data.train)
    true, distances = exact.search(data.test[:100], 10)
    index = ann.IVFPQ(100, metric="cosine", rerank=rerank)
    index.add(data.train)
    index.verify()
    assert index.rerank == rerank
    stats = index.stats()
    assert (stats["vectors"], stats["code_bits"]) == (None, 4)
    assert stats["row_code_bits"] == {"rabitq8": 8, "rabitq4": 4, None: 0}[rerank]
    found, _ = index.search(data.test[:100], 10, probes=1000, rerank=200)
    assert recall(found, true) > {"rabitq8": 0.97, "rabitq4": 0.85, None: 0.6}[rerank]
    unit = data.train / np.linalg.norm(data.train, axis=1, keepdims=True)
    asked = []

    def measure(query: np.ndarray, id: int) -> float | None:
        asked.append(id)
        return None if id == gone else 1 - float(unit[id] @ query) / float(np.linalg.norm(query))

    gone = -1
    search = {"probes": 1000, "rerank": 200, "exact": measure}
    found, near = index.search(data.test[:100], 10, **search)
    assert recall(found, true) > 0.98
    np.testing.assert_allclose(near[:, 0], distances[:, 0], atol=1e-5)
    assert 10 <= len(asked) / 100 <= 200
    gone = int(found[0, 0])
    assert index.search(data.test[0], 10, **search)[0].tolist()[0] == found[0, 1]
    index.save(tmp_path / "index")
    opened = ann.open(tmp_path / "index")
    assert isinstance(opened, ann.IVFPQ)
    assert opened.rerank == rerank
    with pytest.raises(ann.InputError, match="codes of its vectors"):
        index.get(3)
    with pytest.raises(ZeroDivisionError):
        index.search(data.test[:5], exact=lambda query, id: 1 / 0)
    with pytest.raises(TypeError):
        index.search(data.test[0], exact=lambda query, id: "far")
    with pytest.raises(ann.InputError, match="a function of a query and an id"):
        index.search(data.test[0], exact=3)
    graph = ann.DiskANN(100, metric="cosine", vectors=None)
    graph.add(data.train[:2000])
    assert graph.search(unit[7], 1, exact=measure)[0][0] == 7
    with pytest.raises(ann.InputError, match="exact = given"):
        exact.search(data.test[0], exact=measure)


def test_lists_alone_are_trained_first() -> None:
    index = ann.IVFPQ(24, rerank=None)
    x = make(3000)
    with pytest.raises(ann.InputError, match=r"rows = 1000 is not allowed: at least 1024"):
        index.add(x[:1000])
    index.train(x[:1000])
    index.add(x[:10])
    index.add(x[10:])
    assert index.remove([5, 6]) == 2
    index.rebalance()
    index.compact()
    index.verify()
    with pytest.raises(ann.InputError, match="codes of its vectors"):
        index.train(x)
    with pytest.raises(ann.InputError, match="codes of its vectors"):
        index.tune(x[:10])
    with pytest.raises(ann.InputError, match="codes of its vectors"):
        index.get(7)
