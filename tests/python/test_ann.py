"""The Python package: adding, searching, filtering, changing; every element type and metric."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ann
from datasets.load import load

METRICS = ("l2sq", "ip", "cosine")
DTYPES = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "u8": np.uint8}
KINDS = (ann.HNSW, ann.DiskANN, ann.IVFPQ, ann.Flat)
DIM = 24

kinds = pytest.mark.parametrize("kind", KINDS)
metrics = pytest.mark.parametrize("metric", METRICS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def make(n: int, dtype: str = "f32", seed: int = 0) -> np.ndarray:
    """Clustered vectors of an element type; none is zero."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, DIM))
    x = centres[random.integers(20, size=n)] + 0.5 * random.normal(size=(n, DIM))
    if dtype in ("f32", "f16"):
        return x.astype(DTYPES[dtype])
    low = 0 if dtype == "u8" else -128
    return np.clip(30 * x + low + 128, low, low + 255).astype(DTYPES[dtype])


def distances(x: np.ndarray, q: np.ndarray, metric: str) -> np.ndarray:
    """What the package should say, in float64."""
    x, q = x.astype(np.float64), q.astype(np.float64)
    if metric == "l2sq":
        return ((x - q) ** 2).sum(axis=1)
    if metric == "ip":
        return -(x @ q)
    return 1 - x @ q / np.linalg.norm(x, axis=1) / np.linalg.norm(q)


def recall(found: np.ndarray, true: np.ndarray) -> float:
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), true.tolist())]
    return sum(hits) / true.size


@metrics
@dtypes
def test_flat_is_exact(dtype: str, metric: str) -> None:
    x, queries = make(500, dtype), make(20, dtype, seed=1)
    index = ann.Flat(DIM, metric=metric, dtype=dtype)
    index.add(x)
    ids, found = index.search(queries, 7)
    for q, row, near in zip(queries, ids, found):
        true = distances(x, q, metric)
        scale = np.abs(true).max()
        np.testing.assert_allclose(near, true[row], rtol=1e-3, atol=2e-5 * scale)
        np.testing.assert_allclose(near, np.sort(true)[:7], rtol=1e-3, atol=2e-5 * scale)


@metrics
@dtypes
@pytest.mark.parametrize("kind", [ann.HNSW, ann.DiskANN])
def test_graphs_find_what_flat_finds(kind: type[ann.Index], dtype: str, metric: str) -> None:
    x, queries = make(3000, dtype), make(100, dtype, seed=1)
    graph = kind(DIM, metric=metric, dtype=dtype)
    flat = ann.Flat(DIM, metric=metric, dtype=dtype)
    graph.add(x)
    flat.add(x)
    graph.verify()
    flat.verify()
    found, near = graph.search(queries, 10, ef=200)
    true, _ = flat.search(queries, 10)
    assert recall(found, true) > 0.97
    assert (np.diff(near, axis=1) >= 0).all()
    np.testing.assert_array_equal(graph.get(17), x[17])


def test_recall_on_real_vectors() -> None:
    data = load("glove-small-100-angular")
    index = ann.HNSW(100, metric="cosine", ef_construction=100)
    index.add(data.train)
    exact = ann.Flat(100, metric="cosine")
    exact.add(data.train)
    true, _ = exact.search(data.test, 10)
    assert recall(true, data.neighbors[:, :10]) > 0.999
    low, high = (recall(index.search(data.test, 10, ef=ef)[0], true) for ef in (20, 200))
    assert low < high
    assert high > 0.98


@kinds
def test_shapes_and_types(kind: type[ann.Index]) -> None:
    index = kind(DIM)
    assert len(index) == 0
    ids = index.add(make(50))
    assert ids.dtype == np.int64
    assert ids.tolist() == list(range(50))
    assert index.add(make(1)[0], ids=70).tolist() == [70]
    assert index.add(make(2)).tolist() == [71, 72]
    assert len(index) == 53
    for queries, shape in ((make(5), (5, 10)), (make(1)[0], (10,)), (make(0), (0, 10))):
        ids, near = index.search(queries)
        assert ids.shape == near.shape == shape
        assert (ids.dtype, near.dtype) == (np.int64, np.float32)
    one = index.search(make(5)[3], 4)
    many = index.search(make(5), 4, threads=2)
    np.testing.assert_array_equal(one[0], many[0][3])
    np.testing.assert_array_equal(one[1], many[1][3])


@kinds
def test_fewer_than_k_are_padded(kind: type[ann.Index]) -> None:
    index = kind(DIM)
    ids, near = index.search(make(1)[0], 3)
    assert ids.tolist() == [-1, -1, -1]
    assert near.tolist() == [np.inf] * 3
    index.add(make(2))
    ids, near = index.search(make(4), 5)
    assert (ids[:, :2] >= 0).all()
    assert np.isfinite(near[:, :2]).all()
    assert (ids[:, 2:] == -1).all()
    assert (near[:, 2:] == np.inf).all()


@kinds
def test_attributes_and_repr(kind: type[ann.Index]) -> None:
    index = kind(5, metric="ip", dtype="i8")
    assert (index.dim, index.metric, index.dtype) == (5, "ip", "i8")
    index.add([[1, 2, 3, 4, 5]])
    text = repr(index)
    assert text.startswith(f"<ann.{kind.__name__} of 1 vectors, dim=5, metric='ip', dtype='i8'")
    if isinstance(index, ann.HNSW):
        assert (index.m, index.ef_construction) == (16, 200)
        assert "m=16" in text
    if isinstance(index, ann.DiskANN):
        assert (index.degree, index.build_list_size, index.code) == (32, 128, "rabitq4")
        assert "degree=32" in text
    with pytest.raises(AttributeError):
        index.dim = 6  # type: ignore[misc]


@pytest.mark.parametrize("code", [None, "rabitq1", "rabitq2", "rabitq4", "rabitq8", "auto"])
def test_codes_of_a_diskann_index(code: Any) -> None:
    x, queries = make(2000), make(50, seed=1)
    index = ann.DiskANN(DIM, code=code, degree=64, build_list_size=60)
    index.add(x)
    index.verify()
    assert index.code == ("rabitq4" if code == "auto" else code)
    found, near = index.search(queries, 10, list_size=400)
    exact = ann.Flat(DIM)
    exact.add(x)
    assert recall(found, exact.search(queries, 10)[0]) > 0.9
    for query, ids, distances in zip(queries, found, near):
        np.testing.assert_allclose(distances, ((x[ids] - query) ** 2).sum(1), rtol=1e-4)


@pytest.mark.parametrize("code", ["rabitq1", "rabitq2", "rabitq4", "rabitq8"])
@pytest.mark.parametrize("kind", ["hnsw", "diskann"])
def test_codes_by_node(kind: str, code: Any, tmp_path: Path) -> None:
    x, queries = make(3000), make(50, seed=1)
    if kind == "hnsw":
        index: Any = ann.HNSW(DIM, code=code)
    else:
        index = ann.DiskANN(DIM, code=code, placement="compact")
        assert index.placement == "compact"
    index.add(x[:100])
    assert not index.stats()["codes_in_use"]
    index.add(x[100:])
    index.verify()
    index.save(tmp_path / "index")
    index = ann.open(tmp_path / "index")
    stats = index.stats()
    assert (stats["codes_in_use"], stats["layout"], stats["vectors"]) == (True, "compact", "f32")
    assert (index.code, index.vectors) == (code, "f32")
    exact = ann.Flat(DIM)
    exact.add(x)
    found, near = index.search(queries, 10, ef=400)
    assert recall(found, exact.search(queries, 10)[0]) > 0.9
    for query, ids, distances in zip(queries, found, near):
        np.testing.assert_allclose(distances, ((x[ids] - query) ** 2).sum(1), rtol=1e-4)
    np.testing.assert_array_equal(index.get(7), x[7])


@pytest.mark.parametrize("metric", ["l2sq", "ip", "cosine"])
def test_no_vectors(metric: Any, tmp_path: Path) -> None:
    x, queries = make(3000), make(50, seed=1)
    index: Any = ann.DiskANN(DIM, metric=metric, vectors=None, code="rabitq8")
    assert (index.vectors, index.placement) == (None, "compact")
    index.add(x)
    index.remove(range(100))
    index.update(x[:50], range(100, 150))
    index.verify()
    index.save(tmp_path / "index")
    index = ann.open(tmp_path / "index")
    assert index.stats()["vectors"] is None
    exact = ann.Flat(DIM, metric=metric)
    exact.add(np.concatenate([x[:50], x[150:]]), ids=range(100, 3000))
    right, distances = exact.search(queries, 10)
    found, near = index.search(queries, 10, ef=200)
    assert recall(found, right) > 0.9
    scale = np.abs(distances).max()
    np.testing.assert_allclose(near, distances, rtol=0.05, atol=0.03 * scale)
    assert 200 in index
    assert 5 not in index
    with pytest.raises(ann.InputError, match="keeps codes of its vectors"):
        index.get(200)


@pytest.mark.parametrize("metric", ["l2sq", "ip", "cosine"])
def test_vectors_as_halves(metric: Any, tmp_path: Path) -> None:
    x, queries = make(2000), make(50, seed=1)
    index = ann.DiskANN(DIM, metric=metric, vectors="f16", build_list_size=100)
    index.add(x)
    index.save(tmp_path / "index")
    index = ann.open(tmp_path / "index")
    index.verify()
    assert (index.dtype, index.vectors, index.stats()["vectors"]) == ("f32", "f16", "f16")
    back = index.get(7)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, x[7], rtol=1e-3)
    exact = ann.Flat(DIM, metric=metric)
    exact.add(x)
    found, near = index.search(queries, 10, list_size=300)
    right, distances = exact.search(queries, 10)
    assert recall(found, right) > 0.95
    np.testing.assert_allclose(near, distances, rtol=0.05, atol=1e-2)
    with pytest.raises(ann.InputError, match="row 0, column 0 is 100000, which does not fit f16"):
        index.search([1e5] + [0.0] * (DIM - 1))


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("kind", ["diskann", "hnsw", "ivfpq"])
def test_directions_as_bytes(kind: str, dtype: Any, tmp_path: Path) -> None:
    x, queries = make(2000), make(50, seed=1)
    if kind == "ivfpq":
        index: Any = ann.IVFPQ(DIM, metric="cosine", dtype=dtype, rerank="i8")
    else:
        index = {"diskann": ann.DiskANN, "hnsw": ann.HNSW}[kind](
            DIM, metric="cosine", dtype=dtype, vectors="i8"
        )
    index.add(x)
    index.save(tmp_path / "index")
    index = ann.open(tmp_path / "index", writable=True)
    index.verify()
    assert (index.dtype, index.stats()["vectors"]) == (dtype, "i8")
    back = index.get(7)
    np.testing.assert_allclose(back, x[7] / np.linalg.norm(x[7]), atol=6e-3)
    exact = ann.Flat(DIM, metric="cosine")
    exact.add(x)
    effort = {"probes": 60, "rerank": 300} if kind == "ivfpq" else {"ef": 300}
    found, near = index.search(queries, 10, **effort)
    right, distances = exact.search(queries, 10)
    assert recall(found, right) > 0.93
    np.testing.assert_allclose(near, distances, atol=5e-3)
    # Only directions count.
    if dtype == "f32":
        again, _ = index.search(queries * 1e5, 10, **effort)
        assert (again == found).mean() > 0.999
    with pytest.raises(ann.InputError, match="row 0 is a zero vector"):
        index.add(np.zeros((1, DIM)))


def test_a_batch_finds_what_single_searches_find() -> None:
    x, queries = make(3000), make(200, seed=1)
    index = ann.DiskANN(DIM, alpha=1.1)
    index.add(x)
    index.remove(range(0, 200, 2))
    for filter in (None, lambda id: id % 3 == 0, np.arange(3000) % 2 == 1):
        found, near = index.search(queries, 7, list_size=20, filter=filter, threads=1)
        for query, ids, distances in zip(queries, found, near):
            one, far = index.search(query, 7, list_size=20, filter=filter)
            assert (one.tolist(), far.tolist()) == (ids.tolist(), distances.tolist())


def test_of_several_bad_queries_the_first_is_named() -> None:
    index = ann.DiskANN(DIM)
    index.add(make(500))
    queries = make(300, seed=1)
    queries[[130, 131, 290], 2] = np.nan
    for threads in (1, 2):
        with pytest.raises(ann.InputError, match="row 130, column 2 is NaN"):
            index.search(queries, threads=threads)
    with pytest.raises(ann.InputError, match="row 130, column 2 is NaN"):
        index.range_search(queries, 1.0)


def test_beam() -> None:
    x, queries = make(3000), make(100, seed=1)
    index = ann.DiskANN(DIM, code="rabitq1")
    index.add(x)
    exact = ann.Flat(DIM)
    exact.add(x)
    right = exact.search(queries, 10)[0]
    narrow, wide = (
        recall(index.search(queries, 10, list_size=10, beam=beam)[0], right) for beam in (1, 64)
    )
    assert wide >= narrow > 0.3
    for beam in (0, 65):
        with pytest.raises(ann.InputError, match=f"beam = {beam} is not allowed"):
            index.search(queries, beam=beam)


@pytest.mark.parametrize("make_index", [ann.HNSW, ann.DiskANN])
def test_epsilon(make_index: type[ann.HNSW] | type[ann.DiskANN]) -> None:
    x, queries = make(3000), make(100, seed=1)
    index = make_index(DIM)
    index.add(x)
    exact = ann.Flat(DIM)
    exact.add(x)
    right = exact.search(queries, 1)[0]
    recalls = [
        recall(index.search(queries, 1, ef=400, epsilon=epsilon)[0], right)
        for epsilon in (0, 0.1, 0.5)
    ]
    assert recalls == sorted(recalls)
    assert 0.5 < recalls[0] < recalls[2]
    for epsilon in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ann.InputError, match=r"epsilon = .* is not allowed: 0 or more"):
            index.search(queries, epsilon=epsilon)


def test_list_size_is_ef() -> None:
    index = ann.DiskANN(DIM)
    index.add(make(500))
    query = make(1, seed=2)[0]
    np.testing.assert_array_equal(
        index.search(query, 5, list_size=40)[0], index.search(query, 5, ef=40)[0]
    )
    with pytest.raises(ann.InputError, match="list_size = 40 and ef = 41"):
        index.search(query, 5, list_size=40, ef=41)


def test_the_number_of_threads_does_not_matter() -> None:
    x = make(3000)
    one, two = ann.HNSW(DIM, seed=5), ann.HNSW(DIM, seed=5)
    one.add(x, threads=1)
    two.add(x, threads=2)
    assert one.__reduce__()[1] == two.__reduce__()[1]
    other = ann.HNSW(DIM, seed=6)
    other.add(x)
    assert one.__reduce__()[1] != other.__reduce__()[1]


@kinds
@pytest.mark.parametrize("share", [0.003, 0.1, 0.6])
def test_filters_agree(kind: type[ann.Index], share: float) -> None:
    x, queries = make(2000), make(20, seed=1)
    index = kind(DIM)
    index.add(x, ids=np.arange(2000) * 3)
    random = np.random.default_rng(2)
    mask = random.random(6000) < share
    allowed = np.flatnonzero(mask)
    filters = [
        mask,
        mask.tolist(),
        np.asfortranarray(np.stack([mask, mask]))[0],
        allowed,
        allowed.astype(np.uint64),
        allowed.tolist(),
        set(allowed.tolist()),
        lambda id: mask[id],
    ]
    exact = ann.Flat(DIM)
    kept = allowed[allowed % 3 == 0]
    exact.add(x[kept // 3], ids=kept)
    true, near = exact.search(queries, 10)
    for chosen in filters:
        ids, found = index.search(queries, 10, ef=500, filter=chosen)
        assert mask[ids[ids >= 0]].all()
        assert recall(ids, true) > 0.99
        np.testing.assert_array_equal(ids == -1, true == -1)
        one, _ = index.search(queries[4], 10, ef=500, filter=chosen)
        np.testing.assert_array_equal(one, ids[4])
    if kind is ann.Flat:
        np.testing.assert_array_equal(ids, true)
        np.testing.assert_array_equal(found, near)


@kinds
def test_filters_at_their_ends(kind: type[ann.Index]) -> None:
    index = kind(DIM)
    index.add(make(100))
    q = make(1)[0]
    for nothing in (np.zeros(100, bool), np.zeros(0, bool), [], [500], set(), lambda _: False):
        assert (index.search(q, 3, filter=nothing)[0] == -1).all()
    # Ids beyond a mask may not be found.
    ids, _ = index.search(q, 100, filter=np.ones(40, bool))
    assert sorted(ids[:40].tolist()) == list(range(40))
    assert (ids[40:] == -1).all()
    assert sorted(index.search(q, 2, filter=[7, 9, 9, 10**12])[0].tolist()) == [7, 9]
    assert (index.search(q, 100, filter=lambda _: 1)[0] >= 0).all()


@kinds
def test_a_filter_may_search(kind: type[ann.Index]) -> None:
    index, other = kind(DIM), ann.Flat(DIM)
    x = make(300)
    index.add(x)
    other.add(x[:50])
    queries = make(3)
    ids, _ = index.search(queries, 5, filter=lambda id: id in other and index.get(id) is not None)
    assert ((ids >= 0) & (ids < 50)).all()
    nested, _ = index.search(queries, 5, filter=lambda id: id in index.search(x[:20], 1)[0])
    assert (nested >= 0).all()
    assert (nested < 20).all()


@kinds
def test_what_a_filter_raises_comes_out(kind: type[ann.Index]) -> None:
    index = kind(DIM)
    index.add(make(300))
    q = make(3)

    class Truthless:
        def __bool__(self) -> bool:
            raise LookupError("neither")

    for search in (index.search, index.range_search):
        with pytest.raises(ZeroDivisionError):
            search(q, 5, filter=lambda id: 1 // 0)
    with pytest.raises(LookupError, match="neither"):
        index.search(q, filter=lambda id: Truthless())
    with pytest.raises(TypeError):
        index.search(q, filter=lambda: True)
    with pytest.raises(ZeroDivisionError):
        list(index.iter_search(q[0], filter=lambda id: 1 // 0))
    assert index.search(q)[0].shape == (3, 10)


@kinds
@metrics
def test_range_search(kind: type[ann.Index], metric: str) -> None:
    x, queries = make(1000), make(10, seed=1)
    index = kind(DIM, metric=metric)
    index.add(x)
    for q in queries:
        true = distances(x, q, metric)
        radius = float(np.sort(true)[30])
        ids, near = index.range_search(q, radius, ef=200)
        assert (ids.dtype, near.dtype) == (np.int64, np.float32)
        assert (near <= np.float32(radius)).all()
        assert (np.diff(near) >= 0).all()
        assert len(np.intersect1d(ids, np.argsort(true)[:30])) >= 29
    many = index.range_search(queries, radius, ef=200, filter=np.arange(1000) % 2 == 0)
    assert isinstance(many, list)
    assert len(many) == 10
    assert (many[-1][0] % 2 == 0).all()
    assert 10 <= len(many[-1][0]) <= len(ids)
    assert len(index.range_search(q, -1e9)[0]) == 0
    if kind is ann.Flat:
        assert len(index.range_search(q, np.inf)[0]) == 1000


@kinds
def test_iter_search(kind: type[ann.Index]) -> None:
    x, q = make(1500), make(1, seed=1)[0]
    index = kind(DIM)
    index.add(x)
    pairs = list(index.iter_search(q))
    ids = [id for id, _ in pairs]
    assert len(set(ids)) == len(ids) == 1500
    assert all(type(id) is int and type(near) is float for id, near in pairs)
    true = distances(x, q, "l2sq")
    np.testing.assert_allclose([near for _, near in pairs], true[ids], rtol=1e-4)
    assert recall(np.array([ids[:50]]), np.argsort(true)[None, :50]) > 0.95
    odd = [id for id, _ in index.iter_search(q, ef=10, filter=np.arange(1500) % 2 == 1)]
    assert sorted(odd) == list(range(1, 1500, 2))
    few = [id for id, _ in index.iter_search(q, filter=lambda id: id < 5)]
    assert sorted(few) == [0, 1, 2, 3, 4]
    assert list(kind(DIM).iter_search(q)) == []


@kinds
@pytest.mark.parametrize("taken", [0, 3, 100])
def test_an_iterator_that_outlives_a_change_says_so(kind: type[ann.Index], taken: int) -> None:
    index = kind(DIM)
    index.add(make(300))
    q = make(1)[0]
    changes = (
        lambda: index.add(make(1, seed=5)),
        lambda: index.remove([5]),
        lambda: index.update(make(1, seed=6), [7]),
    )
    for change in changes:
        hits = index.iter_search(q)
        assert len(list(itertools.islice(hits, taken))) == taken
        change()
        with pytest.raises(ann.ChangedError, match="changed") as caught:
            next(hits)
        assert isinstance(caught.value, RuntimeError)
    hits = index.iter_search(q)
    next(hits)
    index.remove([10**6])  # nothing changes
    next(hits)


@kinds
def test_get_and_contains(kind: type[ann.Index]) -> None:
    x = make(10)
    index = kind(DIM, metric="cosine")
    index.add(x, ids=range(5, 15))
    assert 5 in index
    assert np.int64(14) in index
    for id in (4, 15, -1, 2**63, 2**80):
        assert id not in index
        with pytest.raises(KeyError, match=f"id {id} is not in the index") as caught:
            index.get(id)
        assert isinstance(caught.value, ann.UnknownIdError)
    np.testing.assert_array_equal(index.get(8), x[3])
    with pytest.raises(TypeError):
        index.get("8")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        iter(index)  # type: ignore[call-overload]


@kinds
def test_remove(kind: type[ann.Index]) -> None:
    x = make(2000)
    index = kind(DIM)
    index.add(x)
    assert index.remove(3) == 1
    assert index.remove([3, 4, 4, 99999]) == 1
    assert index.remove(np.arange(1000)) == 998
    assert index.remove([]) == 0
    index.verify()
    assert len(index) == 1000
    assert 999 not in index
    ids, _ = index.search(x[:50], 10, ef=200)
    assert (ids >= 1000).all()
    exact = ann.Flat(DIM)
    exact.add(x[1000:], ids=range(1000, 2000))
    assert recall(ids, exact.search(x[:50], 10)[0]) > 0.97
    assert index.add(x[:1000], ids=range(1000)).tolist() == list(range(1000))
    assert index.stats()["slots"] <= 2000
    assert index.search(x[7], 1)[0].tolist() == [7]
    assert index.remove(range(2000)) == 2000
    assert len(index) == 0
    index.verify()


@kinds
def test_update(kind: type[ann.Index]) -> None:
    x, new = make(1000), make(300, seed=3)
    index = kind(DIM)
    index.add(x)
    assert index.update(new, np.arange(300), threads=2) is None
    index.verify()
    assert len(index) == 1000
    np.testing.assert_array_equal(index.get(7), new[7])
    ids, _ = index.search(new, 1, ef=100)
    assert (ids[:, 0] == np.arange(300)).mean() > 0.99
    index.update(x[5], 5)
    assert index.search(x[5], 1)[0].tolist() == [5]
    index.update(x[:0], [])


@kinds
def test_many_identical_vectors(kind: type[ann.Index]) -> None:
    x = np.concatenate([make(1000), np.repeat(make(1, seed=9), 3000, axis=0)])
    index = kind(DIM)
    index.add(x)
    index.verify()
    ids, near = index.search(x[2000], 100)
    assert len(set(ids.tolist())) == 100
    assert (ids >= 1000).all()
    assert (near == 0).all()
    found, _ = index.search(x[:100], 1, ef=50)
    assert (found[:, 0] == np.arange(100)).mean() > 0.97


@kinds
def test_stats(kind: type[ann.Index]) -> None:
    index = kind(DIM)
    index.add(make(400))
    index.remove([1, 2])
    stats = index.stats()
    assert stats["len"] == 398
    assert stats["bytes"] >= sum(stats["bytes_by_part"].values()) >= 400 * DIM * 4
    assert stats["key_map_bytes"] > 0
    assert set(stats) == set(ann.Stats.__annotations__)
    if kind is ann.IVFPQ:
        assert (stats["kind"], stats["layout"], stats["slots"]) == ("ivfpq", "lists", 400)
        assert (stats["code_bits"], stats["tombstones"], stats["links"]) == (4, 0, 0)
    elif kind is not ann.Flat:
        name = kind.__name__.lower()
        assert (stats["kind"], stats["tombstones"], stats["slots"]) == (name, 2, 400)
        assert (stats["bytes_by_part"]["codes"] > 0) == (kind is ann.DiskANN)
        assert stats["links"] > 398 * 4
        assert stats["bytes_by_part"]["links"] > 0
    else:
        assert (stats["kind"], stats["links"], stats["levels"]) == ("flat", 0, 0)


@pytest.mark.parametrize("kind", [ann.HNSW, ann.DiskANN])
def test_tuning_is_kept(kind: type[ann.HNSW | ann.DiskANN], tmp_path: Path) -> None:
    data = load("glove-small-100-angular")
    index = kind(100, metric="cosine")
    with pytest.raises(ann.InputError, match="len = 0"):
        index.tune(data.test)
    index.add(data.train)
    assert index.stats()["tuned"] == {}
    tuned = index.tune(data.test, recall=0.98)
    assert 0.98 <= tuned.recall <= 1
    assert tuned.ef >= 10
    name = "ef" if kind is ann.HNSW else "list_size"
    assert tuned.epsilon is not None
    assert tuned.epsilon > 0
    wanted = {"k": 10, name: tuned.ef, "epsilon": tuned.epsilon}
    assert index.stats()["tuned"] == wanted
    found, _ = index.search(data.test)
    told, _ = index.search(data.test, ef=tuned.ef, epsilon=tuned.epsilon)
    np.testing.assert_array_equal(found, told)
    assert (found == index.search(data.test, ef=tuned.ef)[0]).mean() < 1
    assert (found == index.search(data.test, ef=10)[0]).mean() < 1
    index.save(tmp_path / "index")
    opened = ann.open(tmp_path / "index")
    assert isinstance(opened, kind)
    np.testing.assert_array_equal(opened.search(data.test)[0], found)
    with pytest.raises(ann.ReadOnlyError):
        opened.tune(data.test)
    with pytest.raises(ann.DimensionError):
        index.tune(np.ones((5, 3)))
    with pytest.raises(ann.InputError, match="queries = 0 rows"):
        index.tune(np.ones((0, 100)))
    for wrong in (0.0, 1.1, float("nan")):
        with pytest.raises(ann.InputError, match="recall"):
            index.tune(data.test, recall=wrong)
    codes = ann.DiskANN(100, vectors=None)
    codes.add(data.train)
    with pytest.raises(ann.InputError, match="codes of its vectors"):
        codes.tune(data.test)


def test_memory_limit() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4000, 24)).astype("f4")
    free = ann.DiskANN(24)
    pages, memory = needs = free.needs(len(x), threads=1)
    assert needs.pages > x.nbytes
    assert needs.memory > 0
    ids = free.add(x)
    limited = ann.DiskANN(24, memory_limit=pages // 2 + memory)
    assert (limited.add(x) == ids).all()
    limited.verify()
    assert abs(limited.stats()["bytes"] / free.stats()["bytes"] - 1) < 0.1
    found, _ = limited.search(x[:50], k=1)
    assert (found[:, 0] == ids[:50]).all()
    with pytest.raises(ann.InputError, match="memory_limit = 1000 is not allowed: at least"):
        ann.DiskANN(24, memory_limit=1000)
