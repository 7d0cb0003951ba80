"""The libraries that are compared: a small class for each."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import tempfile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from library import Library, Setting, Task, Unavailable


class NumpyFlat(Library):
    """Exact search by matrix product: the floor that every index has to beat."""

    name = "numpy-flat"
    package = "numpy"
    unit_vectors = True
    environment = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

    def build(self, train: np.ndarray) -> None:
        self.rows = train.copy()
        self.squares = np.einsum("ij,ij->i", train, train)

    def settings(self, n: int) -> list[Setting]:
        return [{}]

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        found = np.empty((len(queries), k), dtype=np.int64)
        for i in range(0, len(queries), 64):
            distances = self.squares - 2 * (queries[i : i + 64] @ self.rows.T)
            found[i : i + 64] = np.argpartition(distances, k - 1, axis=1)[:, :k]
        return found

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, self.rows)


# What our graphs are searched with besides pools that are all expanded: how far beyond the last
# result the search goes on, in pools of some sizes.
EPSILONS = {
    48: (0.02, 0.03, 0.04),
    96: (0.03, 0.04, 0.05),
    512: (0.05, 0.07, 0.1, 0.13),
    2048: (0.14, 0.18, 0.22, 0.3),
}


class AnnHnsw(Library):
    """Our HNSW, searched in memory as it was built."""

    name = "ann-hnsw"
    package = "ann-py"

    def load(self) -> None:
        self.ann = importlib.import_module("ann")

    def build(self, train: np.ndarray) -> None:
        task = self.task
        metric = "cosine" if self.angular else "l2sq"
        self.index = self.ann.HNSW(
            train.shape[1], metric=metric, m=task.m, ef_construction=task.ef_construction
        )
        self.index.add(train, threads=task.threads)

    def settings(self, n: int) -> list[Setting]:
        by_epsilon = [{"ef": ef, "epsilon": e} for ef, few in EPSILONS.items() for e in few]
        return super().settings(n) + by_epsilon

    def search(self, queries: np.ndarray, k: int, **setting: Any) -> np.ndarray:
        return self.index.search(queries, k, threads=1, **setting)[0]

    def save(self, path: Path) -> None:
        self.index.save(path)

    def done(self) -> int | None:
        return len(self.index) if self.index is not None else 0


class AnnDiskAnn(AnnHnsw):
    """Our DiskANN, searched in memory as built: data of whole numbers as u8, others kept as f16."""

    name = "ann-diskann"
    stored = "f16"
    placement: str | None = None
    # Below the k of 10: so many are expanded, and the others measured only.
    few: tuple[int, ...] = (2, 4, 6, 8)
    asked: tuple[np.ndarray | None, np.ndarray | None] = (None, None)

    def prepare(self, train: np.ndarray) -> None:
        self.of_bytes = bool(
            train.min() >= 0 and train.max() <= 255 and (train == np.rint(train)).all()
        )
        self.bytes = train.astype(np.uint8) if self.of_bytes else None

    def build(self, train: np.ndarray) -> None:
        dtype, vectors = ("u8", "u8") if self.of_bytes else ("f32", self.stored)
        self.index = self.ann.DiskANN(
            train.shape[1],
            metric="cosine" if self.angular else "l2sq",
            dtype=dtype,
            vectors=vectors,
            placement=self.placement,
            build_list_size=self.task.ef_construction,
        )
        self.index.add(train if self.bytes is None else self.bytes, threads=self.task.threads)

    def settings(self, n: int) -> list[Setting]:
        return [{"ef": ef} for ef in self.few] + super().settings(n)

    def search(self, queries: np.ndarray, k: int, **setting: Any) -> np.ndarray:
        if self.of_bytes:
            # Such queries are bytes to begin with.
            if self.asked[0] is not queries:
                self.asked = (queries, queries.astype(np.uint8))
            queries = self.asked[1]
        return super().search(queries, k, **setting)


class AnnDiskAnn8(AnnDiskAnn):
    """The same with directions kept in a byte a coordinate, where vectors are not bytes anyway."""

    name = "ann-diskann-8bit"
    stored = "i8"

    def prepare(self, train: np.ndarray) -> None:
        super().prepare(train)
        if self.of_bytes or not self.angular:
            raise Unavailable("it is for angular data that are not whole bytes")


class AnnDiskAnnCompact(AnnDiskAnn):
    """Our DiskANN with codes by node."""

    name = "ann-diskann-compact"
    placement = "compact"
    few = ()


class AnnIvfPq(AnnDiskAnn):
    """Our IVF-PQ, searched in memory as built: vectors as u8 where they are, else as f16.

    Under cosine vectors have two entries, and a code for each three dimensions beyond 128.
    """

    name = "ann-ivfpq"

    def build(self, train: np.ndarray) -> None:
        self.index = self.ann.IVFPQ(
            train.shape[1],
            metric="cosine" if self.angular else "l2sq",
            dtype="u8" if self.of_bytes else "f32",
            rerank="auto" if self.of_bytes else "f16",
            spill=self.angular,
            subvectors=train.shape[1] // 3 if self.angular and train.shape[1] > 128 else None,
        )
        self.index.add(train if self.bytes is None else self.bytes, threads=self.task.threads)

    def settings(self, n: int) -> list[Setting]:
        probes = (4, 8, 16, 24, 32, 48, 64, 128, 256)
        return [{"probes": p, "rerank": r} for r in (20, 40, 80, 120, 240, 480) for p in probes]


class AnnHnswMmap(AnnHnsw):
    """The same index, saved and then opened by mmap in a process of its own."""

    name = "ann-hnsw-mmap"
    reopens = AnnHnsw

    def open(self, path: Path) -> None:
        self.index = self.ann.open(path)


class AnnHnswOneThread(AnnHnsw):
    """The same index built on one thread, for the build time alone."""

    name = "ann-hnsw-1thread"

    def __init__(self, task: Task) -> None:
        super().__init__(dataclasses.replace(task, threads=1))

    def settings(self, n: int) -> list[Setting]:
        return []


class AnnFlat(AnnHnsw):
    """Our exact search."""

    name = "ann-flat"

    def build(self, train: np.ndarray) -> None:
        metric = "cosine" if self.angular else "l2sq"
        self.index = self.ann.Flat(train.shape[1], metric=metric)
        self.index.add(train, threads=self.task.threads)

    def settings(self, n: int) -> list[Setting]:
        return [{}]


class Hnswlib(Library):
    name = "hnswlib"
    package = "hnswlib"

    def load(self) -> None:
        self.hnswlib = importlib.import_module("hnswlib")

    def build(self, train: np.ndarray) -> None:
        task = self.task
        self.index = self.hnswlib.Index("cosine" if self.angular else "l2", train.shape[1])
        self.index.init_index(len(train), M=task.m, ef_construction=task.ef_construction)
        self.index.add_items(train, num_threads=task.threads)

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        self.index.set_ef(setting["ef"])
        return self.index.knn_query(queries, k, num_threads=1)[0]

    def save(self, path: Path) -> None:
        self.index.save_index(str(path))

    def done(self) -> int | None:
        return self.index.get_current_count() if self.index is not None else 0


class Faiss(Library):
    """What the faiss indexes share."""

    package = "faiss-cpu"
    unit_vectors = True

    def load(self) -> None:
        self.faiss = importlib.import_module("faiss")
        angular = self.angular
        self.metric = self.faiss.METRIC_INNER_PRODUCT if angular else self.faiss.METRIC_L2

    def save(self, path: Path) -> None:
        self.faiss.write_index(self.index, str(path))


class FaissHnsw(Faiss):
    name = "faiss-hnsw"

    def build(self, train: np.ndarray) -> None:
        self.faiss.omp_set_num_threads(self.task.threads)
        self.index = self.faiss.IndexHNSWFlat(train.shape[1], self.task.m, self.metric)
        self.index.hnsw.efConstruction = self.task.ef_construction
        self.index.add(train)

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        self.faiss.omp_set_num_threads(1)
        self.index.hnsw.efSearch = setting["ef"]
        return self.index.search(queries, k)[1]


class FaissIvfPqFs(Faiss):
    """IVF lists of 4-bit PQ codes scanned by SIMD shuffles, best candidates reranked."""

    name = "faiss-ivfpqfs"

    def codes(self, dim: int) -> str:
        target = dim // 2 if dim <= 128 else dim // 4
        return f"PQ{next(m for m in range(target, 0, -1) if dim % m == 0)}x4fs"

    def build(self, train: np.ndarray) -> None:
        n, dim = train.shape
        self.faiss.omp_set_num_threads(self.task.threads)
        lists = round(4 * n**0.5)
        factory = f"IVF{lists},{self.codes(dim)},RFlat"
        self.index = self.faiss.index_factory(dim, factory, self.metric)
        self.index.train(train)
        self.index.add(train)

    def settings(self, n: int) -> list[Setting]:
        probes = [2**i for i in range(10) if 2**i <= 4 * n**0.5]
        return [{"nprobe": p, "k_factor": f} for f in (4, 10, 20, 50) for p in probes]

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        self.faiss.omp_set_num_threads(1)
        self.index.k_factor = setting["k_factor"]
        self.faiss.extract_index_ivf(self.index).nprobe = setting["nprobe"]
        return self.index.search(queries, k)[1]


class FaissIvfRabitqFs(FaissIvfPqFs):
    """The same lists with 1-bit RaBitQ codes."""

    name = "faiss-ivfrabitqfs"

    def codes(self, dim: int) -> str:
        return "RaBitQfs"


class Scann(Library):
    name = "scann"
    package = "scann"
    unit_vectors = True

    def load(self) -> None:
        self.scann = importlib.import_module("scann")

    def build(self, train: np.ndarray) -> None:
        n = len(train)
        measure = "dot_product" if self.angular else "squared_l2"
        builder = self.scann.scann_ops_pybind.builder(train, 10, measure)
        builder = builder.set_n_training_threads(self.task.threads)
        builder = builder.tree(
            num_leaves=round(2 * n**0.5),
            num_leaves_to_search=100,
            training_sample_size=min(n, 250_000),
        )
        # The anisotropic loss is for dot products only.
        loss = {"anisotropic_quantization_threshold": 0.2} if self.angular else {}
        self.index = builder.score_ah(2, **loss).reorder(100).build()

    def settings(self, n: int) -> list[Setting]:
        leaves = [x for x in (5, 10, 20, 40, 70, 100, 150, 250, 500) if x <= 2 * n**0.5]
        reorders = (30, 60, 100, 200, 400, 800)
        return [{"leaves": x, "pre_reorder": r} for r in reorders for x in leaves]

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        return self.index.search_batched(
            queries,
            final_num_neighbors=k,
            pre_reorder_num_neighbors=setting["pre_reorder"],
            leaves_to_search=setting["leaves"],
        )[0]

    def save(self, path: Path) -> None:
        path.mkdir()
        self.index.serialize(str(path))


class SvsLvq(Library):
    """SVS: a Vamana graph over vectors of 4 bits and a residual of 8."""

    name = "svs-lvq"
    package = "scalable-vs"
    unit_vectors = True

    def load(self) -> None:
        self.svs = importlib.import_module("svs")

    def prepare(self, train: np.ndarray) -> None:
        # Compression reads from a file; the folder lives as long as this object.
        self.folder = tempfile.TemporaryDirectory()
        self.path = str(Path(self.folder.name) / "train.fvecs")
        self.svs.write_vecs(train, self.path)

    def build(self, train: np.ndarray) -> None:
        svs = self.svs
        vectors = svs.VectorDataLoader(self.path, svs.float32, dims=train.shape[1])
        loader = svs.LVQLoader(vectors, primary=4, residual=8, strategy=svs.LVQStrategy.Turbo)
        parameters = svs.VamanaBuildParameters(
            graph_max_degree=64, window_size=128, alpha=0.95 if self.angular else 1.2
        )
        distance = svs.DistanceType.MIP if self.angular else svs.DistanceType.L2
        threads = self.task.threads
        self.index = svs.Vamana.build(parameters, loader, distance, num_threads=threads)
        self.index.num_threads = 1

    def settings(self, n: int) -> list[Setting]:
        return [{"search_window_size": ef} for ef in self.task.ef]

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        self.index.search_window_size = setting["search_window_size"]
        return self.index.search(queries, k)[0]

    def save(self, path: Path) -> None:
        path.mkdir()
        self.index.save(*(str(path / part) for part in ("config", "graph", "data")))


class DiskAnn(Library):
    """DiskANN in Rust: its Vamana graph, in memory."""

    name = "diskannpy-rust"
    package = "diskannpy-rust"
    unit_vectors = True
    environment = MappingProxyType({"RUST_LOG": "error"})

    def load(self) -> None:
        self.diskannpy = importlib.import_module("diskannpy")

    def prepare(self, train: np.ndarray) -> None:
        # It builds from file to file; the folder lives as long as this object.
        self.folder = tempfile.TemporaryDirectory()
        self.path = str(Path(self.folder.name) / "train.bin")
        self.diskannpy.vectors_to_file(self.path, train)

    def build(self, train: np.ndarray) -> None:
        folder, threads = self.folder.name, self.task.threads
        metric = "cosinenormalized" if self.angular else "l2"
        graph = {"graph_degree": 64, "complexity": 128, "alpha": 1.2, "graph_slack_factor": 1.3}
        # What remains has no default: one start, all vectors in full, one by one.
        rest = {"num_start_pts": 1, "max_fp_vecs_per_prune": 0, "pq_seed": 0}
        work = {"num_threads": threads, "num_tasks": threads, "insert_minibatch_size": 1}
        self.diskannpy.build_async_index(
            self.path, metric, folder, vector_dtype=np.float32, **graph, **rest, **work
        )
        self.index = self.diskannpy.AsyncDiskIndex(folder, num_threads=1)

    def settings(self, n: int) -> list[Setting]:
        return [{"complexity": ef} for ef in self.task.ef]

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        return self.index.batch_search(queries, k, setting["complexity"], 1).identifiers

    def save(self, path: Path) -> None:
        path.mkdir()
        for part in ("ann", "ann.data"):
            shutil.copy(Path(self.folder.name) / part, path)


class Symqg(Library):
    """SymphonyQG: a graph with the neighbours' 1-bit codes in each node's record."""

    name = "symqg"
    package = "rabitqlib"
    unit_vectors = True
    vector_bits = 0  # 0 keeps the vectors as floats

    def load(self) -> None:
        self.rabitqlib = importlib.import_module("rabitqlib")

    def build(self, train: np.ndarray) -> None:
        # On unit vectors l2 ranks as cosine does, and builds a better graph than ip.
        self.index = self.rabitqlib.SymqgIndex(
            train.shape[1], 32, metric="l2", quantization_bits=self.vector_bits
        )
        self.index.build(train, self.task.ef_construction, self.task.threads)

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        return self.index.search_batch(queries, k, setting["ef"], 1)[0]

    def save(self, path: Path) -> None:
        self.index.save(str(path))


class Symqg8(Symqg):
    """The same with its vectors kept as 8-bit codes."""

    name = "symqg-8bit"
    vector_bits = 8


class Usearch(Library):
    name = "usearch"
    package = "usearch"

    def load(self) -> None:
        self.usearch = importlib.import_module("usearch.index")

    def build(self, train: np.ndarray) -> None:
        self.index = self.usearch.Index(
            ndim=train.shape[1],
            metric="cos" if self.angular else "l2sq",
            dtype="f32",
            connectivity=self.task.m,
            expansion_add=self.task.ef_construction,
        )
        self.index.add(np.arange(len(train)), train, threads=self.task.threads)

    def search(self, queries: np.ndarray, k: int, **setting: int) -> np.ndarray:
        self.index.expansion_search = setting["ef"]
        return self.index.search(queries, k, threads=1).keys

    def save(self, path: Path) -> None:
        self.index.save(str(path))

    def done(self) -> int | None:
        return len(self.index) if self.index is not None else 0


LIBRARIES: dict[str, type[Library]] = {
    library.name: library
    for library in (
        AnnHnsw,
        AnnHnswMmap,
        AnnHnswOneThread,
        AnnDiskAnn,
        AnnDiskAnn8,
        AnnDiskAnnCompact,
        AnnIvfPq,
        AnnFlat,
        NumpyFlat,
        Hnswlib,
        FaissHnsw,
        FaissIvfPqFs,
        FaissIvfRabitqFs,
        Scann,
        SvsLvq,
        DiskAnn,
        Symqg,
        Symqg8,
        Usearch,
    )
}
