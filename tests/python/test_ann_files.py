"""The Python package's files: saving, opening, changing in place, pickling, files not ours."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ann

kinds = pytest.mark.parametrize("kind", [ann.HNSW, ann.DiskANN, ann.IVFPQ, ann.Flat])
X = np.random.default_rng(0).normal(size=(800, 12)).astype(np.float32)


def build(kind: type[ann.Index], n: int = 500, **parameters: str) -> ann.Index:
    index = kind(12, metric="cosine", **parameters)
    index.add(X[:n], ids=np.arange(n) + 10)
    index.remove([10, 20])
    return index


def assert_equal(a: ann.Index, b: ann.Index) -> None:
    assert type(a) is type(b)
    assert len(a) == len(b)
    for left, right in zip(a.search(X[:40], 8), b.search(X[:40], 8)):
        np.testing.assert_array_equal(left, right)
    b.verify()
    assert (a.dim, a.metric, a.dtype) == (b.dim, b.metric, b.dtype)
    if isinstance(a, ann.HNSW) and isinstance(b, ann.HNSW):
        assert (a.m, a.ef_construction) == (b.m, b.ef_construction)
    if isinstance(a, ann.DiskANN) and isinstance(b, ann.DiskANN):
        assert (a.degree, a.build_list_size) == (b.degree, b.build_list_size)
        assert a.code == b.code


@kinds
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_save_and_open(kind: type[ann.Index], dtype: str, tmp_path: Path) -> None:
    index = build(kind, dtype=dtype)
    path = tmp_path / "an index"
    index.save(path)
    opened = ann.open(str(path))
    assert_equal(index, opened)
    assert ann.open(path).get(33).dtype == index.get(33).dtype
    index.add(X[600:700])
    index.save(str(path))  # replaced under its reader, who keeps what was
    assert len(opened) == 498
    assert_equal(index, ann.open(path))
    assert os.listdir(tmp_path) == ["an index"]


@kinds
def test_an_opened_index_is_read_only(kind: type[ann.Index], tmp_path: Path) -> None:
    build(kind).save(tmp_path / "i")
    index = ann.open(tmp_path / "i")
    for change in (
        lambda: index.add(X[:1]),
        lambda: index.add(X[:0]),
        lambda: index.update(X[:1], [33]),
        lambda: index.remove([33]),
        lambda: index.remove([]),
    ):
        with pytest.raises(ann.ReadOnlyError, match="opened read-only"):
            change()
    index.flush()
    assert len(index) == 498


@kinds
def test_changing_in_place(kind: type[ann.Index], tmp_path: Path) -> None:
    path = tmp_path / "i"
    twin = build(kind)
    twin.save(path)
    with ann.open(path, writable=True) as index:
        for changed in (index, twin):
            changed.add(X[500:])
            changed.remove(range(30, 60))
            changed.update(X[:5], range(100, 105))
        assert_equal(twin, index)
        index.flush()
        with pytest.raises(ann.LockedError, match="in use"):
            ann.open(path)
        with pytest.raises(ann.LockedError):
            index.save(path)
        index.save(tmp_path / "copy")
    assert_equal(twin, ann.open(path))
    assert_equal(twin, ann.open(tmp_path / "copy"))
    with ann.open(path), pytest.raises(OSError, match="in use"):
        ann.open(path, writable=True)
    ann.open(path, writable=True).close()


@kinds
def test_what_was_flushed_outlives_the_process(kind: type[ann.Index], tmp_path: Path) -> None:
    path = tmp_path / "i"
    build(kind).save(path)
    script = """if True:
        import os, sys, ann, numpy as np
        index = ann.open(sys.argv[1], writable=True)
        index.add(np.eye(12), ids=range(1000, 1012))
        index.flush()
        index.remove(range(1000, 1012))
        os._exit(0)"""
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    index = ann.open(path)
    index.verify()
    assert len(index) == 510
    np.testing.assert_array_equal(index.get(1003), np.eye(12)[3])


@kinds
@pytest.mark.parametrize("in_file", [False, True])
def test_close(kind: type[ann.Index], in_file: bool, tmp_path: Path) -> None:
    path = tmp_path / "i"
    index = build(kind)
    index.save(path)
    if in_file:
        index = ann.open(path, writable=True)
    hits = index.iter_search(X[0])
    next(hits)
    index.close()
    index.close()
    for use in (
        lambda: index.search(X[0]),
        lambda: index.add(X[:1]),
        lambda: index.remove([33]),
        lambda: len(index),
        lambda: index.get(33),
        lambda: index.stats(),
        lambda: index.save(tmp_path / "j"),
        lambda: index.flush(),
        lambda: next(hits),
        lambda: 33 in index,
    ):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert index.dim == 12
    assert os.listdir(tmp_path) == ["i"]
    ann.open(path, writable=True)


@kinds
def test_pickle_and_copy(kind: type[ann.Index], tmp_path: Path) -> None:
    index = build(kind)
    index.save(tmp_path / "i")
    with ann.open(tmp_path / "i", writable=True) as opened:
        opened.add(X[600:650], ids=range(2000, 2050))
        index.add(X[600:650], ids=range(2000, 2050))
        for original in (index, opened):
            for protocol in (2, pickle.HIGHEST_PROTOCOL):
                assert_equal(index, pickle.loads(pickle.dumps(original, protocol)))
            for other in (copy.copy(original), copy.deepcopy(original)):
                assert_equal(index, other)
                other.remove([33])
                other.add(X[700:702])
                assert 33 in original


@kinds
def test_an_empty_index_is_saved_too(kind: type[ann.Index], tmp_path: Path) -> None:
    kind(12).save(tmp_path / "i")
    with ann.open(tmp_path / "i", writable=True) as index:
        assert len(index) == 0
        assert (index.search(X[0], 2)[0] == -1).all()
        index.add(X[:10])
    assert len(pickle.loads(pickle.dumps(ann.open(tmp_path / "i")))) == 10


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    index = build(ann.HNSW)
    missing, folder = tmp_path / "missing" / "i", tmp_path / "folder"
    folder.mkdir()
    for writable in (False, True):
        with pytest.raises(FileNotFoundError) as caught:
            ann.open(missing, writable)
        assert caught.value.errno == errno.ENOENT
        assert Path(caught.value.filename) == missing
        with pytest.raises(IsADirectoryError, match="folder"):
            ann.open(folder, writable)
    with pytest.raises(FileNotFoundError):
        index.save(missing)
    with pytest.raises(IsADirectoryError, match="folder"):
        index.save(folder)
    with pytest.raises(TypeError):
        index.save(3)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["folder"]


def spoil(content: bytes, how: str) -> bytes:
    if how == "empty":
        return b""
    if how == "text":
        return b"id,vector\n1,0.5\n" * 100
    if how == "truncated":
        return content[: len(content) * 2 // 3]
    if how == "cut in page 0":
        return content[:100]
    if how == "one byte":
        return content[:200] + bytes([content[200] ^ 1]) + content[201:]
    # The version is after checksum, page number, sequence number and magic.
    return content[:24] + struct.pack("<I", 999) + content[28:]


@kinds
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "it is empty"),
        ("text", "is not an index"),
        ("truncated", "the file ends at byte"),
        ("cut in page 0", "the file ends at byte 100"),
        ("one byte", "page 0 is corrupt"),
        ("newer", "format version 999 is newer than 1"),
    ],
)
def test_files_that_are_not_ours(
    kind: type[ann.Index], how: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "i"
    build(kind).save(path)
    path.write_bytes(spoil(path.read_bytes(), how))
    content = path.read_bytes()
    for writable in (False, True):
        with pytest.raises(ann.FormatError, match=message) as caught:
            ann.open(path, writable)
        assert isinstance(caught.value, ValueError)
    assert path.read_bytes() == content
    function, (saved,) = pickle.loads(pickle.dumps(build(kind))).__reduce__()
    with pytest.raises(ann.FormatError):
        function(spoil(saved, how))


@kinds
def test_verify_finds_damage(kind: type[ann.Index], tmp_path: Path) -> None:
    path = tmp_path / "i"
    build(kind).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    index = ann.open(path)
    with pytest.raises(ann.FormatError, match=r"page \d+ is corrupt"):
        index.verify()
