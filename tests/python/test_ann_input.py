"""What the Python package takes as vectors, ids and parameters, and how it refuses the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ann

kinds = pytest.mark.parametrize("kind", [ann.HNSW, ann.DiskANN, ann.IVFPQ, ann.Flat])
X = np.random.default_rng(0).integers(-100, 100, size=(60, 4)).astype(np.float32)
LARGEST = 2**63 - 1


def unaligned(x: np.ndarray) -> np.ndarray:
    """The same values, a byte off."""
    bytes_ = np.empty(x.nbytes + 1, np.uint8)
    view = bytes_[1:].view(x.dtype).reshape(x.shape)
    view[:] = x
    return view


TAKEN = {
    "float32": lambda x: x,
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "longdouble": lambda x: x.astype(np.longdouble),
    "int64": lambda x: x.astype(np.int64),
    "int8": lambda x: x.astype(np.int8),
    "big-endian": lambda x: x.astype(">f4"),
    "fortran": np.asfortranarray,
    "strided columns": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "strided rows": lambda x: np.repeat(x, 3, axis=0)[::3],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "unaligned": unaligned,
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
    "list": lambda x: x.tolist(),
    "list of arrays": list,
}


@kinds
@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
@pytest.mark.parametrize("form", TAKEN)
def test_all_forms_of_vectors_are_taken(kind: type[ann.Index], form: str, dtype: str) -> None:
    plain, other = kind(4, dtype=dtype), kind(4, dtype=dtype)
    plain.add(X)
    other.add(TAKEN[form](X))
    for id in (0, 30, 59):
        np.testing.assert_array_equal(other.get(id), X[id])
    queries = TAKEN[form](X[:9])
    for search in (lambda index, q: index.search(q, 3, ef=100), lambda i, q: (i.get(3),)):
        for a, b in zip(search(plain, X[:9]), search(other, queries)):
            np.testing.assert_array_equal(a, b)
    other.update(TAKEN[form](X[::-1]), range(60))
    np.testing.assert_array_equal(other.get(0), X[59])
    other.verify()


def test_one_vector_is_a_row() -> None:
    index = ann.Flat(4)
    assert index.add([1, 2, 3, 4]).tolist() == [0]
    assert index.add((1, 2, 3, 4), ids=9).tolist() == [9]
    assert index.add(X[:0]).tolist() == []
    assert len(index) == 2
    assert index.add(np.array([[True, False, True, True]])).tolist() == [10]
    np.testing.assert_array_equal(index.get(10), [1, 0, 1, 1])


@kinds
def test_forms_of_ids(kind: type[ann.Index]) -> None:
    index = kind(4)
    forms: list[Any] = [
        [5, 1],
        (7, 2),
        np.array([8, 3], np.uint8),
        range(10, 12),
        np.arange(20, 24)[::2],
        np.array([LARGEST - 1, 30], np.uint64),
    ]
    for ids in forms:
        assert index.add(X[:2], ids=ids).tolist() == [int(id) for id in ids]
    assert index.search(X[0], 12)[0].max() == LARGEST - 1
    assert index.add(X[0]).tolist() == [LARGEST]
    with pytest.raises(ValueError, match=f"the largest id, {LARGEST}, is in use"):
        index.add(X[0])
    assert len(index) == 13
    index.verify()


REFUSED: dict[str, tuple[str, type[Exception], str]] = {
    "dimension": ("index.add(X[:, :3])", ann.DimensionError, "3 dimensions, the index has 4"),
    "dimension of one": ("index.add(X[0, :3])", ann.DimensionError, "3 .* the index has 4"),
    "no vectors": ("index.add([])", ann.DimensionError, "0 dimensions, the index has 4"),
    "number": ("index.add(3.0)", ann.DimensionError, r"not 0 of shape \(\)"),
    "3 axes": ("index.add(X[None])", ann.DimensionError, r"not 3 of shape \(1, 60, 4\)"),
    "ragged": ("index.add([[1, 2], [3]])", ValueError, "inhomogeneous"),
    "text": ("index.add([['a'] * 4])", ann.InputError, "<U1 cannot be converted to f32"),
    "complex": ("index.add(X * 1j)", ann.InputError, "complex64 cannot be converted"),
    "objects": ("index.add([[object()] * 4])", ann.InputError, "object cannot be converted"),
    "none": ("index.add(None)", ann.InputError, "object cannot be converted"),
    "nan": ("index.add(put(X, 7, 2, np.nan))", ann.InputError, "row 7, column 2 is NaN"),
    "infinity": ("index.add(put(X, 7, 2, -np.inf))", ann.InputError, "row 7, column 2 is -inf"),
    "first of two": ("index.add(put(put(X, 9, 0, np.nan), 8, 3, np.inf))", ValueError, "row 8"),
    "too large": ("index.add(put(X, 7, 2, 1e300, 'f8'))", ann.InputError, "row 7, column 2 is"),
    "too long": ("index.add(put(X, 7, 2, 3e38))", ann.InputError, "row 7 has norm"),
    "zero vector": ("cosine.add(put(X, 7, slice(None), 0))", ann.InputError, "row 7 is a zero"),
    "negative id": ("index.add(X[:2], ids=[8, -3])", ann.InputError, r"id -3 \(row 1\)"),
    "large id": (
        "index.add(X[:2], ids=[8, 2**63])",
        ann.InputError,
        r"id 9223372036854775808 \(row 1\)",
    ),
    "larger id": (
        "index.add(X[:2], ids=[8, 2**64])",
        ann.InputError,
        r"id 18446744073709551616 \(row 1\)",
    ),
    "fractional id": ("index.add(X[0], ids=[1.5])", ann.InputError, r"id 1.5 \(row 0\) is not an"),
    "ids that are text": ("index.add(X[0], ids=['a'])", ann.InputError, "'a'.* is not an integer"),
    "ids that are bools": ("index.add(X[0], ids=[True])", ann.InputError, "True.* not an integer"),
    "matrix of ids": ("index.add(X[:2], ids=[[8, 9]])", ann.InputError, r"shape \(1, 2\)"),
    "taken id": ("index.add(X[:2], ids=[99, 5])", ann.InputError, r"5 \(row 1\) is already taken"),
    "id twice": ("index.add(X[:3], ids=[98, 99, 98])", ann.InputError, r"98 \(row 2\) is already"),
    "few ids": ("index.add(X[:3], ids=[98, 99])", ann.InputError, "2 keys given for 3 rows"),
    "many ids": ("index.add(X[0], ids=[98, 99])", ann.InputError, "2 keys given for 1 rows"),
    "threads": ("index.add(X[:3], threads=-1)", ann.InputError, "threads = -1 is not allowed"),
    "many threads": ("index.add(X[:3], threads=9999)", ann.InputError, "from 0 to 1024"),
    "part of a thread": ("index.add(X[:3], threads=1.5)", TypeError, "float"),
    "update: unknown": ("index.update(X[:2], [5, 77])", KeyError, r"77 \(row 1\) is not in"),
    "update: twice": ("index.update(X[:2], [5, 5])", ann.InputError, r"5 \(row 1\)"),
    "update: nan": ("index.update(put(X, 7, 2, np.nan), range(60))", ValueError, "row 7, column 2"),
    "update: few ids": ("index.update(X[:2], [5])", ann.InputError, "1 keys given for 2 rows"),
    "remove: negative": ("index.remove([3, -1])", ann.InputError, r"id -1 \(row 1\)"),
    "remove: fractions": ("index.remove([0.5])", ann.InputError, "not an integer"),
    "query: dimension": ("index.search(X[:, :3])", ann.DimensionError, "3 dimensions"),
    "query: none": ("index.search(X[:0, :3])", ann.DimensionError, "3 dimensions"),
    "query: axes": ("index.search(X[None])", ann.DimensionError, r"shape \(1, 60, 4\)"),
    "query: nan": ("index.search(put(X, 57, 2, np.nan))", ValueError, "row 57, column 2 is NaN"),
    "query: nan on threads": (
        "index.search(put(put(X, 57, 2, np.nan), 31, 1, np.inf), threads=2)",
        ValueError,
        "row 31, column 1 is inf",
    ),
    "query: zero": ("cosine.search(put(X, 57, slice(None), 0))", ValueError, "row 57 is a zero"),
    "k = 0": ("index.search(X, 0)", ann.InputError, "k = 0 is not allowed: at least 1"),
    "k < 0": ("index.search(X, -2)", ann.InputError, "k = -2 is not allowed: at least 1"),
    "k = 1.5": ("index.search(X, 1.5)", TypeError, "float"),
    "k is vast": ("index.search(X, 2**62)", MemoryError, "the results needs"),
    "k is vaster": ("index.search(X, 2**70)", ann.InputError, "k = 1180591620717411303424"),
    "ef = 0": ("index.search(X, ef=0)", ann.InputError, "ef = 0 .* from 1 to 1000000"),
    "ef is large": ("index.search(X, ef=10**7)", ann.InputError, "ef = 10000000 is not"),
    "search: threads": ("index.search(X, threads=1025)", ann.InputError, "from 0 to 1024"),
    "filter: matrix": ("index.search(X, filter=np.ones((2, 2), bool))", ValueError, r"\(2, 2\)"),
    "filter: negative": ("index.search(X, filter=[1, -4])", ann.InputError, r"id -4 \(row 1\)"),
    "filter: floats": ("index.search(X, filter=[0.5])", ann.InputError, "not an integer"),
    "filter: text": ("index.search(X, filter='abc')", ann.InputError, "not an integer"),
    "radius": ("index.range_search(X[0], np.nan)", ann.InputError, "radius = NaN"),
    "radius is text": ("index.range_search(X[0], 'a')", TypeError, "real number"),
    "range: dimension": ("index.range_search(X[:, :3], 1)", ann.DimensionError, "3 dimensions"),
    "iter: many": ("index.iter_search(X)", ann.DimensionError, r"not \(60, 4\)"),
    "iter: dimension": ("index.iter_search(X[0, :3])", ann.DimensionError, "3 dimensions"),
    "iter: nan": ("index.iter_search([1, 2, np.nan, 4])", ValueError, "column 2 is NaN"),
    "iter: ef": ("index.iter_search(X[0], ef=0)", ann.InputError, "ef = 0"),
    "i8: large": ("i8.add(put(X, 7, 2, 128))", ann.InputError, "row 7, column 2 is 128.*-128 to"),
    "i8: fraction": ("i8.add(put(X, 7, 2, 0.5))", ann.InputError, "row 7, column 2 is 0.5: i8"),
    "i8: nan": ("i8.add(put(X, 7, 2, np.nan))", ann.InputError, "row 7, column 2 is nan"),
    "i8: one": ("i8.add([1, 2, 3, -129])", ann.InputError, "row 0, column 3 is -129"),
    "i8: query": ("i8.search(put(X, 7, 2, 0.5))", ann.InputError, "row 7, column 2 is 0.5"),
    "u8: negative": ("u8.add([[1, 2, 3, 4], [1, 2, -1, 4]])", ValueError, "row 1, column 2 is -1"),
    "u8: large": ("u8.add(np.full((1, 4), 2**63, 'u8'))", ValueError, "column 0 is 9223372036854"),
    "f16: large": ("f16.add(put(X, 7, 2, 70000))", ann.InputError, "row 7, column 2 is inf"),
}


def put(x: np.ndarray, row: int, column: Any, value: float, dtype: str = "f4") -> np.ndarray:
    x = x.astype(dtype)
    x[row, column] = value
    return x


@kinds
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("error")
def test_bad_input_is_refused_and_changes_nothing(kind: type[ann.Index], case: str) -> None:
    call, error, message = REFUSED[case]
    indexes = {name: kind(4, dtype=name) for name in ("f16", "i8")}
    indexes["u8"] = kind(4, dtype="u8")
    indexes["index"], indexes["cosine"] = kind(4), kind(4, metric="cosine")
    for name, index in indexes.items():
        index.add(np.abs(X) if name == "u8" else X)
    before = {name: index.__reduce__()[1] for name, index in indexes.items()}
    with pytest.raises(error, match=message):
        eval(call, {**globals(), **indexes})
    for name, index in indexes.items():
        index.verify()
        assert index.__reduce__()[1] == before[name]
        assert len(index) == 60


PARAMETERS: dict[str, tuple[str, str]] = {
    "dim = 0": ("HNSW(0)", "dim = 0 is not allowed: from 1 to 65536"),
    "dim < 0": ("HNSW(-3)", "dim = -3 is not allowed: from 1 to 65536"),
    "large dim": ("HNSW(65537)", "dim = 65537"),
    "flat: dim": ("Flat(2**70)", "dim = 1180591620717411303424"),
    "metric": ("HNSW(4, metric='l2')", "metric = l2 is not allowed: one of l2sq, ip, cosine"),
    "flat: metric": ("Flat(4, metric='')", "metric = "),
    "dtype": ("HNSW(4, dtype='f64')", "dtype = f64 is not allowed: one of f32, f16, i8, u8"),
    "m": ("HNSW(4, m=1)", "m = 1 is not allowed: from 2 to 256"),
    "large m": ("HNSW(4, m=257)", "m = 257"),
    "ef_construction": ("HNSW(4, ef_construction=0)", "ef_construction = 0"),
    "large ef_construction": ("HNSW(4, ef_construction=10**6)", "from 1 to 100000"),
    "degree": ("DiskANN(4, degree=48)", "degree = 48 is not allowed: a multiple of 32"),
    "no degree": ("DiskANN(4, degree=0)", "degree = 0 is not allowed"),
    "large degree": ("DiskANN(4, degree=288)", "degree = 288"),
    "build_list_size": ("DiskANN(4, build_list_size=0)", "build_list_size = 0"),
    "code": ("DiskANN(4, code='rabitq3')", "code = 'rabitq3' is not allowed: one of 'auto', None"),
    "alpha": ("DiskANN(4, alpha=0.9)", "alpha = 0.9 is not allowed: from 1 to 10"),
    "alpha of products": ("DiskANN(4, metric='ip', alpha=1.2)", "1 for inner products"),
    "placement": ("DiskANN(4, placement='here')", "placement = here is not allowed: one of"),
    "fused without vectors": ("DiskANN(4, vectors=None, placement='fused')", "placement = fused"),
    "compact without codes": ("DiskANN(4, code=None, placement='compact')", "code_bits = 0"),
    "no vectors nor codes": ("HNSW(4, vectors=None)", "code_bits = 0 is not allowed: 1, 2, 4 or 8"),
    "code of a hierarchy": ("HNSW(4, code='auto')", "code = 'auto' is not allowed"),
    "vectors": ("DiskANN(4, vectors='u8')", "vectors = u8 is not allowed: f32 or f16"),
    "directions under l2sq": (
        "DiskANN(4, vectors='i8')",
        "vectors = i8 is not allowed: f32 or f16",
    ),
    "directions under ip": ("IVFPQ(4, metric='ip', rerank='i8')", "i8 keeps directions only"),
    "directions of bytes": (
        "DiskANN(4, metric='cosine', dtype='u8', vectors='i8')",
        "vectors = i8 is not",
    ),
    "vectors of bytes": ("DiskANN(4, dtype='i8', vectors='f16')", "vectors = f16 is not allowed"),
    "lists": ("IVFPQ(4, lists=0)", "lists = 0 is not allowed: at least 1"),
    "subvectors": ("IVFPQ(4, subvectors=5)", "subvectors = 5 is not allowed: from 1 to 4"),
    "bits": ("IVFPQ(4, bits=5)", "bits = 5 is not allowed: 4 or 8"),
    "code of lists": ("IVFPQ(4, code='rabitq')", "code = rabitq is not allowed: one of pq"),
    "rerank": ("IVFPQ(4, rerank='u8')", "vectors = u8 is not allowed: f32 or f16"),
    "rerank by codes": ("IVFPQ(4, rerank='rabitq3')", "dtype = rabitq3 is not allowed"),
    "seed": ("HNSW(4, seed=-1)", "seed = -1 is not allowed: at least 0"),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters_out_of_range_are_refused(case: str) -> None:
    call, message = PARAMETERS[case]
    with pytest.raises(ann.InputError, match=message) as caught:
        eval(call, vars(ann))
    assert isinstance(caught.value, ValueError)


def test_parameters_at_their_ends() -> None:
    for kind, parameters in (
        (ann.HNSW, {"m": 2, "ef_construction": 1, "seed": 2**64 - 1}),
        (ann.HNSW, {"m": 256, "ef_construction": 256}),
        (ann.Flat, {}),
    ):
        for dim in (1, np.int16(3), 65_536):
            index = kind(dim, **parameters)
            x = np.random.default_rng(0).normal(size=(20, index.dim))
            index.add(x)
            assert index.search(x, 1, ef=50)[0][:, 0].tolist() == list(range(20))
            index.verify()
    with pytest.raises(TypeError):
        ann.HNSW(4, "cosine")  # type: ignore[misc]
    with pytest.raises(TypeError):
        ann.HNSW(2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"ann\.HNSW"):
        ann.Index()


def test_errors_are_what_they_should_be() -> None:
    assert issubclass(ann.InputError, ValueError)
    assert issubclass(ann.DimensionError, ann.InputError)
    assert issubclass(ann.UnknownIdError, KeyError)
    assert issubclass(ann.FormatError, ValueError)
    assert issubclass(ann.LockedError, OSError)
    assert issubclass(ann.ReadOnlyError, PermissionError)
    assert issubclass(ann.ChangedError, RuntimeError)
    names = [name for name in ann.__all__ if name.endswith("Error")]
    assert all(issubclass(getattr(ann, name), ann.Error) for name in names)
    assert str(ann.UnknownIdError("id 5")) == "id 5"
