"""The indexes: what all of them can do, and what each kind has of its own."""

from __future__ import annotations

import operator
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, SupportsIndex, TypedDict, TypeVar, Union

import numpy as np
import numpy.typing as npt

from ann import _input
from ann._ann import Cursor, Engine
from ann._input import Exact, Filter
from ann._progress import Progress, reporting
from ann.errors import DimensionError, InputError, UnknownIdError

Metric = Literal["l2sq", "ip", "cosine"]
DType = Literal["f32", "f16", "i8", "u8"]
Code = Literal["auto", "rabitq1", "rabitq2", "rabitq4", "rabitq8"]
Placement = Literal["fused", "compact"]
Vectors = Literal["auto", "f32", "f16", "i8", "u8"]
Rerank = Literal["auto", "f32", "f16", "i8", "u8", "rabitq1", "rabitq2", "rabitq4", "rabitq8"]

_Path = Union[str, "os.PathLike[str]"]
_Ids = npt.NDArray[np.int64]
_Distances = npt.NDArray[np.float32]
_Self = TypeVar("_Self", bound="Index")

# Bits a coordinate.
_CODES: dict[Code | None, int | None] = {
    "auto": None,
    None: 0,
    "rabitq1": 1,
    "rabitq2": 2,
    "rabitq4": 4,
    "rabitq8": 8,
}

# An iterator fetches a few hits at first and more each time, up to this many.
_FIRST_FETCH, _LAST_FETCH = 16, 1024


class Stats(TypedDict):
    """What an index is made of; see `Index.stats`."""

    kind: str
    len: int
    tombstones: int
    slots: int
    twins: int
    links: int
    upper_links: int
    levels: int
    vectors: str | None
    code_bits: int
    row_code_bits: int
    codes_in_use: bool
    layout: str
    page_size: int
    bytes: int
    bytes_by_part: dict[str, int]
    key_map_bytes: int
    tuned: dict[str, float]
    instruction_set: str


class Index:
    """What `HNSW`, `DiskANN`, `IVFPQ` and `Flat` have in common.

    Vectors are rows of `dim` elements. Whatever numpy makes an array of is taken and converted to
    the index's element type; a value that type cannot hold is an error. Arrays are best
    C-contiguous and of that type already: others are copied. Do not change an array while a call
    works on it.

    Distances are smaller the nearer: squared Euclidean distance for `"l2sq"`, the negated inner
    product for `"ip"`, 1 - cosine for `"cosine"`.

    Ids are integers from 0 to 2**63 - 1, each held once.

    All methods may be called from many threads. Searches go on while another thread adds; changes
    wait for one another. `threads=0` means one for each core.

    Bad input raises `ann.InputError`, which is a `ValueError`, and leaves the index as it was.
    """

    __slots__ = ("__weakref__", "_engine")
    _engine: Engine

    def __init__(self) -> None:
        raise TypeError(
            "make an ann.HNSW, ann.DiskANN, ann.IVFPQ or ann.Flat, or open one by ann.open"
        )

    @property
    def dim(self) -> int:
        """Elements of a vector."""
        return self._engine.dim

    @property
    def metric(self) -> Metric:
        """How vectors are compared."""
        metric: Metric = self._engine.metric
        return metric

    @property
    def dtype(self) -> DType:
        """The type of the elements."""
        dtype: DType = self._engine.dtype
        return dtype

    def add(
        self,
        x: npt.ArrayLike,
        ids: npt.ArrayLike | None = None,
        *,
        threads: SupportsIndex = 0,
        progress: Progress = False,
    ) -> _Ids:
        """Adds vectors and returns their ids.

        The index that comes out does not depend on the number of threads. Ctrl-C, or an exception
        from `progress`, ends the call early and leaves the vectors added so far in the index.

        Args:
            x: `(n, dim)` vectors, or one of shape `(dim,)`.
            ids: `n` ids; without them, the next ones after the largest that was ever given.
            threads: how many to use; 0 means one for each core.
            progress: True for a bar (by tqdm, if it is installed) on stderr, or a function that is
                called several times a second with (work done, vectors in all), both in vectors. All
                that an empty HNSW is given are planned before the first of them is added.

        Returns:
            `n` int64 ids.

        Raises:
            InputError: NaN or infinity, a zero vector under cosine, an id that is negative or taken
                or given twice, not one id for each vector. Nothing is added.
            DimensionError: vectors of another dimension.
            ReadOnlyError: the index was opened for reading.
        """
        return self._insert(x, ids, False, threads, progress)

    def update(
        self,
        x: npt.ArrayLike,
        ids: npt.ArrayLike,
        *,
        threads: SupportsIndex = 0,
        progress: Progress = False,
    ) -> None:
        """Replaces the vectors of ids that are in the index; else as `add`.

        Searches find the old vector of an id until they find the new one.

        Raises:
            UnknownIdError: an id that is not in the index. Nothing is changed.
        """
        self._insert(x, ids, True, threads, progress)

    def _insert(
        self,
        x: npt.ArrayLike,
        ids: npt.ArrayLike | None,
        replace: bool,
        threads: SupportsIndex,
        progress: Progress,
    ) -> _Ids:
        rows = _input.vectors(x, self.dtype)
        given = None if ids is None else _input.ids(ids)
        with reporting(progress) as report:
            return self._engine.insert(rows, given, replace, threads, report)

    def remove(self, ids: npt.ArrayLike) -> int:
        """Removes vectors and returns how many there were. Ids not in the index are ignored.

        Once a tenth of a graph is removed vectors, they are swept out of it, and searches wait
        until that is done.

        Raises:
            InputError: an id that is not an integer from 0 to 2**63 - 1.
            ReadOnlyError: the index was opened for reading.
        """
        return self._engine.remove(_input.ids(ids))

    def search(
        self,
        q: npt.ArrayLike,
        k: SupportsIndex = 10,
        *,
        ef: SupportsIndex | None = None,
        filter: Filter | None = None,
        exact: Exact | None = None,
        threads: SupportsIndex = 0,
    ) -> tuple[_Ids, _Distances]:
        """Finds the k nearest vectors of each query, nearest first.

        Args:
            q: `(n, dim)` queries, or one of shape `(dim,)`.
            k: how many to find, at least 1.
            ef: candidates that a graph search keeps, from 1 to 1,000,000: more finds more and takes
                longer. None for what `tune` has found, else the larger of 64 and 2 k. A flat index
                does not use it.
            filter: which vectors may be found: a mask of bools (`mask[id]`; ids beyond it may not),
                a list or set of ids, or a function from id to bool. A function is called on the
                calling thread and may search, but not change, an index; what it raises ends the
                search.
            exact: for an index without vectors, the caller's own distances: a function of a query,
                of shape `(dim,)`, and an id, called for those that can be among the results, the
                most promising first. Results are ranked by and carry what it returns; an id for
                which that is None is left out. It is called as a filter is, and what it raises ends
                the search.
            threads: for many queries; one is searched on the calling thread.

        Returns:
            int64 ids and float32 distances, of shape `(n, k)`, or `(k,)` for one query. Where there
            are fewer than k, id -1 and distance inf follow.

        Raises:
            InputError: a query that could not be added, k or ef out of range, distances for an
                index that keeps its vectors.
        """
        return self._search(q, k, [ef, None, None, None], (filter, exact), threads)

    def _search(
        self,
        q: npt.ArrayLike,
        k: SupportsIndex,
        efforts: list[SupportsIndex | None],
        asked: tuple[Filter | None, Exact | None],
        threads: SupportsIndex,
        epsilon: float | None = None,
    ) -> tuple[_Ids, _Distances]:
        """Efforts are ef, beam, probes and rerank."""
        queries = _input.vectors(q, self.dtype)
        filter, exact = asked
        if exact is not None and not callable(exact):
            raise InputError(f"exact = {exact!r} is not allowed: a function of a query and an id")
        sizes = (k, efforts, epsilon)
        return self._engine.search(queries, sizes, (_input.chosen(filter), exact), threads)

    def range_search(
        self,
        q: npt.ArrayLike,
        radius: float,
        *,
        ef: SupportsIndex | None = None,
        filter: Filter | None = None,
    ) -> Any:
        """Finds all vectors within a distance, nearest first.

        Args:
            q: `(n, dim)` queries, or one of shape `(dim,)`.
            radius: the largest distance: squared for `"l2sq"`, a negated product for `"ip"`.
            ef: as for `search`; a graph search finds what a pool of that size leads to.
            filter: as for `search`.

        Returns:
            int64 ids and float32 distances; for `(n, dim)` queries a list of n such pairs.

        Raises:
            InputError: as `search`; a radius that is NaN.
        """
        queries = _input.vectors(q, self.dtype)
        found = self._engine.range_search(queries, radius, ef, _input.chosen(filter))
        return found[0] if queries.ndim == 1 else found

    def iter_search(
        self,
        q: npt.ArrayLike,
        *,
        ef: SupportsIndex = 64,
        filter: Filter | None = None,
    ) -> Iterator[tuple[int, float]]:
        """Finds vectors one after another for as long as the caller wants more.

        They come nearest first within what one pool of `ef` finds, and nearly so from one pool to
        the next; none comes twice.

        Args:
            q: one query of shape `(dim,)`.
            ef: as for `search`.
            filter: as for `search`.

        Returns:
            An iterator of ids and distances. It raises `ChangedError` once the index has changed.

        Raises:
            InputError: as `search`.
        """
        query = _input.vectors(q, self.dtype)
        if query.ndim != 1:
            raise DimensionError(f"one query of shape ({self.dim},) is expected, not {query.shape}")
        return _hits(self._engine.cursor(query, ef), _input.chosen(filter))

    def get(self, id: SupportsIndex) -> npt.NDArray[Any]:
        """The vector of an id: shape `(dim,)`, of the index's element type.

        It is as it was given, or as near to it as what is stored (`vectors`, `rerank`).

        Raises:
            UnknownIdError: the id is not in the index. This is a `KeyError`.
            InputError: the index keeps codes of its vectors only.
        """
        number = operator.index(id)
        vector = self._engine.get(number) if 0 <= number <= _input.MAX_ID else None
        if vector is None:
            raise UnknownIdError(f"id {number} is not in the index")
        return vector

    def __contains__(self, id: SupportsIndex) -> bool:
        """Whether an id is in the index."""
        number = operator.index(id)
        return 0 <= number <= _input.MAX_ID and self._engine.contains(number)

    def __len__(self) -> int:
        """Vectors in the index."""
        return len(self._engine)

    def stats(self) -> Stats:
        """Counts and sizes; all vectors are visited.

        `len` vectors, of which `twins` are identical to others; `tombstones`, removed but still in
        the graph; `slots` in all, free ones included; `links` at the bottom of the graph and
        `upper_links` in its `levels` above; what `vectors` are stored as, None if they are not, the
        `code_bits` of a coordinate (of an IVF-PQ index, of a piece's code), the `row_code_bits` of
        a coordinate of codes that stand in for vectors, or 0, whether codes are `codes_in_use`
        (compact ones are from 256 vectors on), and the `layout`: `"fused"` (a vector, its links and
        their codes lie together), `"fused lists"` (links and their codes do), `"compact"` (a code
        for each vector, links and vectors elsewhere), `"lists"` (codes do, list by list) or
        `"apart"`; `bytes` in pages of `page_size`, and `bytes_by_part`, where of an IVF-PQ index
        `codes` are the blocks of all lists with what is free in them, and `links` the lists'
        records, their centroids and the codebook, and codes that stand in for vectors are
        `vectors`; `key_map_bytes` beside the pages, once ids were looked up; what was `tuned`, by
        the names of options, of a graph with the k that it was tuned for; the `instruction_set` in
        use.
        """
        return self._engine.stats()

    def verify(self) -> None:
        """Checks every invariant of the index, and in a file the checksums of all pages.

        Raises:
            FormatError: the first one that does not hold.
        """
        self._engine.verify()

    def save(self, path: _Path) -> None:
        """Writes the index to a file, which is replaced as a whole or not at all if it exists.

        Raises:
            LockedError: the file is open for writing, maybe by this index: `flush` saves it then.
            OSError: the system refuses.
        """
        self._engine.save(path)

    def flush(self) -> None:
        """Makes all changes to an opened file durable; in memory, does nothing.

        Raises:
            OSError: the system refuses. The changes are still there and can be flushed again.
        """
        self._engine.flush()

    def close(self) -> None:
        """Flushes, then lets go of the file or the memory. The index cannot be used any more.

        Raises:
            OSError: the system refuses to flush. The index is still open.
        """
        self._engine.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        with tempfile.TemporaryDirectory(prefix="ann-") as folder:
            path = Path(folder, "index")
            self.save(path)
            return _from_bytes, (path.read_bytes(),)

    def __copy__(self: _Self) -> _Self:
        with tempfile.TemporaryDirectory(prefix="ann-") as folder:
            path = Path(folder, "index")
            self.save(path)
            return _wrap(Engine.load(path), type(self))

    def __deepcopy__(self: _Self, memo: dict[int, Any]) -> _Self:
        return self.__copy__()

    def __repr__(self) -> str:
        names = ["dim", "metric", "dtype", *self._parameters]
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"<ann.{type(self).__name__} of {len(self)} vectors, {values}>"

    _parameters: tuple[str, ...] = ()


class TunedEf(NamedTuple):
    """What `HNSW.tune` and `DiskANN.tune` have found."""

    ef: int
    """The size of a search's pool; of a `DiskANN`, its `list_size`."""
    recall: float
    """What the queries have got with it."""
    epsilon: float | None
    """What of it is expanded, as for `search`; all without."""


class _Graph(Index):
    """What `HNSW` and `DiskANN` have in common."""

    __slots__ = ()

    def search(
        self,
        q: npt.ArrayLike,
        k: SupportsIndex = 10,
        *,
        ef: SupportsIndex | None = None,
        epsilon: float | None = None,
        filter: Filter | None = None,
        exact: Exact | None = None,
        threads: SupportsIndex = 0,
    ) -> tuple[_Ids, _Distances]:
        """Finds the k nearest vectors of each query; see `Index.search`.

        Args:
            q, k, ef, filter, exact, threads: as there.
            epsilon: how much farther away than the k-th nearest so far candidates may be, relative
                to its distance, 0 or more: 0.05 to 0.2 for recalls of 0.95 to 0.99, about. Hard
                queries then take longer than easy ones, and the same recall less time, with an `ef`
                that is large enough for the hardest, 512 or more. None for what `tune` has found if
                `ef` is None as well, else for `ef` candidates of each.

        Raises:
            InputError: as there; epsilon out of range.
        """
        return self._search(q, k, [ef, None, None, None], (filter, exact), threads, epsilon)

    def tune(
        self,
        queries: npt.ArrayLike,
        k: SupportsIndex = 10,
        *,
        recall: float = 0.95,
        threads: SupportsIndex = 0,
    ) -> TunedEf:
        """Finds the smallest `ef` that reaches a recall, or a larger one with an `epsilon` that
        takes less work, and keeps it.

        Up to 256 of the queries are searched for exactly and with ever larger pools, to within a
        thirty-second. Searches for up to k that are not told otherwise use what was found; it is
        saved with the index. If nothing reaches the recall before it costs as much as measuring all
        vectors, what comes nearest is kept.

        Raises:
            InputError: no queries, an index without vectors, or one that keeps only their codes; a
                recall that is not above 0 and at most 1.
        """
        sample = _input.vectors(queries, self.dtype)
        return TunedEf(*self._engine.tune_ef(sample, k, float(recall), threads))


class HNSW(_Graph):
    """An approximate index: a hierarchy of proximity graphs (HNSW, arXiv 1603.09320).

    Args:
        dim: elements of a vector, from 1 to 65,536.
        metric: `"l2sq"`, `"ip"` or `"cosine"`.
        dtype: the type of the elements: `"f32"`, `"f16"`, `"i8"` or `"u8"`.
        m: links of a vector, from 2 to 256; twice as many at the bottom of the graph. More find
            more, and take more memory and time.
        ef_construction: candidates that are kept while building, from 1 to 100,000. More make a
            better graph, slower.
        code: None, or `"rabitq1"`, `"rabitq2"`, `"rabitq4"` or `"rabitq8"`, by the bits a
            coordinate: searches find their way by codes of the vectors, and read the vectors only
            of what could be a result.
        vectors: what vectors are stored as; as for `DiskANN`.
        seed: of the order of insertion, the levels and the codes, from 0 to 2**64 - 1.

    Raises:
        InputError: a parameter out of its range.

    >>> import ann, numpy as np
    >>> index = ann.HNSW(2)
    >>> ids = index.add([[0, 0], [3, 4], [6, 8]])
    >>> ids, distances = index.search([3, 3], k=2)
    >>> ids.tolist(), distances.tolist()
    ([1, 0], [1.0, 18.0])
    """

    __slots__ = ()
    _parameters = ("m", "ef_construction")

    def __init__(
        self,
        dim: SupportsIndex,
        *,
        metric: Metric = "l2sq",
        dtype: DType = "f32",
        m: SupportsIndex = 16,
        ef_construction: SupportsIndex = 200,
        code: Code | None = None,
        vectors: Vectors | None = "auto",
        seed: SupportsIndex = 0,
    ) -> None:
        if code == "auto":
            raise InputError("code = 'auto' is not allowed: an HNSW's are named, or None")
        kept = (_bits(code), vectors)
        self._engine = Engine.hnsw(dim, metric, dtype, m, ef_construction, kept, seed)

    @property
    def m(self) -> int:
        """Links of a vector."""
        m: int = self._engine.links
        return m

    @property
    def ef_construction(self) -> int:
        """Candidates that are kept while building."""
        ef_construction: int = self._engine.candidates
        return ef_construction

    @property
    def code(self) -> Code | None:
        """The codes of vectors."""
        return _code(self._engine.code_bits)

    @property
    def vectors(self) -> DType | None:
        """What vectors are stored as; None if only their codes are."""
        vectors: DType | None = self._engine.vectors
        return vectors


class Needs(NamedTuple):
    """Bytes that adding vectors takes: see `DiskANN.needs`."""

    pages: int
    """Of the index's own pages, which stay."""
    memory: int
    """Beside these and the vectors that are given, about, until they are in."""


class DiskANN(_Graph):
    """An approximate index: one graph whose links carry codes of the vectors they lead to.

    A search reads one record for each vector it comes to, and knows from the codes which of the
    neighbours are worth reading (RaBitQ, arXiv 2405.12497; SymphonyQG, arXiv 2411.12229).

    Args:
        dim, metric, dtype: as for `HNSW`.
        degree: links of a vector: a multiple of 32, from 32 to 256.
        build_list_size: candidates among which links are chosen, from 1 to 100,000.
        alpha: how much nearer than a vector one of its neighbours has to be to a third to stand in
            for that, from 1 to 10. 1 was best on all data that were tried.
        code: `"rabitq1"`, `"rabitq2"`, `"rabitq4"` or `"rabitq8"`, by the bits a coordinate;
            `"auto"` for what suits the dimension; None for no codes: each neighbour is read.
        placement: where codes are. `"fused"`: each vector's record holds those of its neighbours.
            `"compact"`: each vector has one, which takes a tenth of the memory or less at equal
            bits. None for fused where a record's links and codes fit a page, else compact, as where
            vectors are None, or the code is `"rabitq8"`.
        vectors: what vectors are stored as: `dtype` (`"auto"`), or `"f16"` where that is `"f32"`.
            Halves take half the space, and distances are theirs. Under `"cosine"` also `"i8"` for
            either: directions in a byte a coordinate, the largest of which becomes 127. Distances
            are those of the rounded vectors, queries too, off by some 4e-4 at 384 dimensions, `get`
            gives vectors of length one, and five to ten in a thousand of the ten nearest are not
            found by any effort; shorter records make searches of long vectors faster.
            None for codes only, always compact: distances are then estimates, even a little below
            zero, and `get` has nothing to give. Codes are relative to the mean of the vectors of
            the first `add`, if those are 32 or more.
        memory_limit: bytes that `add` keeps within, the index included and x not; None for no
            limit. If more would be needed (`needs` tells), the index moves to a temporary file,
            and only as many vectors as fit are loaded at one go, which takes longer. Not saved.
        seed: of the order of insertion and of the codes, from 0 to 2**64 - 1.

    Raises:
        InputError: a parameter out of its range.

    >>> import ann
    >>> index = ann.DiskANN(2)
    >>> ids = index.add([[0, 0], [3, 4], [6, 8]])
    >>> ids, distances = index.search([3, 3], k=2, list_size=20)
    >>> ids.tolist(), distances.tolist()
    ([1, 0], [1.0, 18.0])
    """

    __slots__ = ()
    _parameters = ("degree", "build_list_size", "alpha", "code", "vectors")

    def __init__(
        self,
        dim: SupportsIndex,
        *,
        metric: Metric = "l2sq",
        dtype: DType = "f32",
        degree: SupportsIndex = 32,
        build_list_size: SupportsIndex = 128,
        alpha: float = 1.0,
        code: Code | None = "auto",
        placement: Placement | None = None,
        vectors: Vectors | None = "auto",
        memory_limit: SupportsIndex | None = None,
        seed: SupportsIndex = 0,
    ) -> None:
        measures = (degree, build_list_size, float(alpha))
        kept = (_bits(code), vectors)
        limits = (placement, memory_limit)
        self._engine = Engine.diskann(dim, metric, dtype, measures, kept, limits, seed)

    def needs(self, rows: SupportsIndex, *, threads: SupportsIndex = 0) -> Needs:
        """What adding so many vectors at one go would take; nothing is computed or changed.

        Args:
            rows: how many.
            threads: as for `add`.
        """
        return Needs(*self._engine.needs(rows, threads))

    @property
    def degree(self) -> int:
        """Links of a vector."""
        degree: int = self._engine.links
        return degree

    @property
    def build_list_size(self) -> int:
        """Candidates among which links are chosen."""
        build_list_size: int = self._engine.candidates
        return build_list_size

    @property
    def alpha(self) -> float:
        """How much nearer than a vector a neighbour has to be that stands in for it."""
        alpha: float = self._engine.alpha or 1.0
        return round(alpha, 6)

    @property
    def vectors(self) -> DType | None:
        """What vectors are stored as; None if only their codes are."""
        vectors: DType | None = self._engine.vectors
        return vectors

    @property
    def code(self) -> Code | None:
        """The codes of vectors."""
        return _code(self._engine.code_bits)

    @property
    def placement(self) -> Placement:
        """Where codes are."""
        placement: Placement = self._engine.placement
        return placement

    def search(
        self,
        q: npt.ArrayLike,
        k: SupportsIndex = 10,
        *,
        list_size: SupportsIndex | None = None,
        ef: SupportsIndex | None = None,
        epsilon: float | None = None,
        beam: SupportsIndex | None = None,
        filter: Filter | None = None,
        exact: Exact | None = None,
        threads: SupportsIndex = 0,
    ) -> tuple[_Ids, _Distances]:
        """Finds the k nearest vectors of each query; see `Index.search`.

        Args:
            q, k, filter, exact, threads: as there.
            epsilon: as for `HNSW.search`; `list_size` is the `ef` that should be large.
            list_size: candidates that the search keeps; `ef` is another name for it. Below k, where
                codes are fused, so many are expanded and the rest of the k measured only: the
                fastest searches of easy data. None for what `tune` has found, else the larger of
                64 and 2 k.
            beam: candidates that are fetched before the first of them is read, from 1 to 64; None
                for what suits the size of the index's records.

        Raises:
            InputError: as there; `list_size` and `ef` that differ; beam or epsilon out of range.
        """
        if list_size is not None and ef is not None and list_size != ef:
            raise InputError(f"list_size = {list_size} and ef = {ef} are two names for one number")
        size = ef if list_size is None else list_size
        return self._search(q, k, [size, beam, None, None], (filter, exact), threads, epsilon)


class Tuned(NamedTuple):
    """What `IVFPQ.tune` has found."""

    probes: int
    rerank: int
    recall: float


class IVFPQ(Index):
    """An approximate index: lists of near vectors, each entry a code of a few bits.

    A search scores the codes of the lists nearest to the query, 32 at a time in registers, and
    measures the best by their vectors (product quantization with FastScan). It is built fast, its
    codes are small, and it is trained by the first vectors: `add` trains it once there are 1024,
    and again whenever there are four times as many, unless `lists` says how many lists it has.
    Until then searches are exact.

    Args:
        dim, metric, dtype: as for `HNSW`.
        lists: how many; never more than vectors at training. None for twice the root of their
            number.
        subvectors: pieces into which a vector is cut for its code, from 1 to dim, which they need
            not divide. None for one for each two dimensions, from 129 dimensions on for each four.
        bits: of a piece's code: 4, which None stands for, or 8, which say more for their bytes and
            are slower.
        code: `"pq"`, or RaBitQ (arXiv 2405.12497) of so many bits a coordinate: `"rabitq1"`,
            `"rabitq2"` or `"rabitq4"`, which has neither `subvectors` nor `bits`. Nothing is learnt
            for it but lists, and it does not mind vectors unlike those that lists were learnt from.
        rerank: what the best are measured by: vectors, stored as `dtype` (`"auto"`), or as `"f16"`
            where that is `"f32"`, or under `"cosine"` as `"i8"` (see `vectors` of `DiskANN`); or
            codes of them of so many bits a coordinate (`"rabitq8"`, `"rabitq4"`, ...), by which
            results are ranked and whose estimates they carry; or None: all that is kept of vectors
            is in the lists, and results are the nearest by that. Without vectors, `exact` of a
            search has the caller measure. Without codes either, the index has to be trained before
            it is given vectors, by `train` or by 1024 in the first `add`; it does not train itself
            anew, and `rebalance` leaves it as it is.
        anisotropic: whether codes under `"ip"` and `"cosine"` are chosen for what they say of near
            queries (arXiv 1908.10396).
        opq: whether vectors are rotated before they are cut into pieces, as is learnt at training
            for codes that miss less (OPQ, Ge et al., TPAMI 2014); up to 1,024 dimensions.
        spill: whether vectors have a second entry, in a list that tells of them what the nearest
            does not (SOAR, arXiv 2404.00774): codes take twice the space, and searches find as much
            in fewer lists, the more so the more dimensions there are.
        seed: of the training, from 0 to 2**64 - 1.

    Raises:
        InputError: a parameter out of its range.

    >>> import ann, numpy as np
    >>> x = np.random.default_rng(0).normal(size=(3000, 16)).astype("f4")
    >>> index = ann.IVFPQ(16)
    >>> ids = index.add(x)
    >>> index.lists
    93
    >>> index.search(x[42], k=1, probes=10, rerank=50)[0].tolist()
    [42]
    """

    __slots__ = ()
    _parameters = ("lists", "subvectors", "bits", "code", "rerank")

    def __init__(
        self,
        dim: SupportsIndex,
        *,
        metric: Metric = "l2sq",
        dtype: DType = "f32",
        lists: SupportsIndex | None = None,
        subvectors: SupportsIndex | None = None,
        bits: SupportsIndex | None = None,
        code: Literal["pq", "rabitq1", "rabitq2", "rabitq4"] = "pq",
        rerank: Rerank | None = "auto",
        anisotropic: bool = True,
        opq: bool = False,
        spill: bool = False,
        seed: SupportsIndex = 0,
    ) -> None:
        measures = [lists, subvectors, bits]
        row_code_bits = next((bits for code, bits in _CODES.items() if code == rerank), None)
        stored = rerank if row_code_bits is None else None
        kept = (stored, row_code_bits, anisotropic, opq, spill)
        self._engine = Engine.ivfpq(dim, metric, dtype, measures, kept, code, seed)

    @property
    def lists(self) -> int:
        """Lists in use; 0 until the index is trained."""
        return self._engine.measures()[0]

    @property
    def subvectors(self) -> int:
        """Pieces of a vector that have a code each; 0 with RaBitQ."""
        subvectors: int = self._engine.subvectors
        return subvectors

    @property
    def bits(self) -> int:
        """Bits of a piece's code, or with RaBitQ of a coordinate."""
        return self._engine.code_bits or 4

    @property
    def rerank(self) -> Rerank | None:
        """What the best of a search are measured by."""
        bits = self._engine.row_code_bits
        vectors: DType | None = self._engine.vectors
        return _code(bits) if bits else vectors

    @property
    def code(self) -> Literal["pq", "rabitq1", "rabitq2", "rabitq4"]:
        """What codes are."""
        code: Literal["pq", "rabitq1", "rabitq2", "rabitq4"] = self._engine.code
        return code

    @property
    def opq(self) -> bool:
        """Whether vectors are rotated before they are cut into pieces."""
        return self._engine.opq

    @property
    def defaults(self) -> tuple[int, int]:
        """The `probes` of a search that is not told them, and its `rerank` at k=10."""
        return self._engine.measures()[1:]

    def train(self, x: npt.ArrayLike, *, threads: SupportsIndex = 0) -> None:
        """Learns lists and codes from vectors, which need not be in the index.

        `add` does so by itself. This is for vectors that come a few at a time, or not in the
        proportions of all that will. Vectors in the index are put into the new lists.

        Raises:
            InputError: as `add`; no vectors; an index that has vectors and keeps neither them nor
                codes of them.
        """
        self._engine.train(_input.vectors(x, self.dtype), threads)

    def tune(
        self,
        queries: npt.ArrayLike,
        k: SupportsIndex = 10,
        *,
        recall: float = 0.95,
        threads: SupportsIndex = 0,
    ) -> Tuned:
        """Finds the cheapest `probes` and `rerank` that reach a recall, and keeps them.

        Up to 256 of the queries are searched for exactly and in many other ways. Searches that are
        not told otherwise use what was found; it is saved with the index.

        Raises:
            InputError: no queries, an index without vectors, or one that keeps neither them nor
                codes of them; a recall that is not above 0 and at most 1.
        """
        sample = _input.vectors(queries, self.dtype)
        return Tuned(*self._engine.tune(sample, k, float(recall), threads))

    def compact(self) -> None:
        """Joins what removed vectors have left sparse; searches wait until that is done."""
        self._engine.compact()

    def rebalance(self, *, threads: SupportsIndex = 0) -> None:
        """Splits lists that have grown past twice the mean, and gives tiny ones away.

        For an index that has got many vectors unlike those that it was trained on. Searches wait
        until that is done.
        """
        self._engine.rebalance(threads)

    def search(
        self,
        q: npt.ArrayLike,
        k: SupportsIndex = 10,
        *,
        probes: SupportsIndex | None = None,
        rerank: SupportsIndex | None = None,
        ef: SupportsIndex | None = None,
        filter: Filter | None = None,
        exact: Exact | None = None,
        threads: SupportsIndex = 0,
    ) -> tuple[_Ids, _Distances]:
        """Finds the k nearest vectors of each query; see `Index.search`.

        Args:
            q, k, filter, exact, threads: as there.
            probes: lists that are read, from 1 to 1,000,000, at most: those that cannot be expected
                to have anything are not. More finds more and takes longer. None for what `tune` has
                found, else a sixteenth of the lists, or 8.
            rerank: candidates that are measured, by what the index keeps of vectors or by
                `exact`, from 1 to 1,000,000, at most: those too far off to
                be among the results are not. `ef` is another name for it. None for what `tune` has
                found, else 4 k + 40.

        Raises:
            InputError: as there; `rerank` and `ef` that differ.
        """
        if rerank is not None and ef is not None and rerank != ef:
            raise InputError(f"rerank = {rerank} and ef = {ef} are two names for one number")
        return self._search(q, k, [ef, None, probes, rerank], (filter, exact), threads)


class Flat(Index):
    """An exact index: every vector is compared. The right one for a few thousand vectors.

    Args:
        dim, metric, dtype: as for `HNSW`.

    >>> import ann
    >>> index = ann.Flat(2, metric="l2sq")
    >>> index.add([[0, 0], [3, 4]], ids=[10, 20]).tolist()
    [10, 20]
    >>> [ids.tolist() for ids in index.range_search([3, 3], radius=1)]
    [[20], [1.0]]
    """

    __slots__ = ()

    def __init__(
        self, dim: SupportsIndex, *, metric: Metric = "l2sq", dtype: DType = "f32"
    ) -> None:
        self._engine = Engine.flat(dim, metric, dtype)


def open(path: _Path, writable: bool = False) -> HNSW | DiskANN | IVFPQ | Flat:
    """Opens a saved index. The file is mapped, not read: that takes no time, whatever the size.

    Args:
        path: what `save` was given.
        writable: whether the index is to be changed. Changes are durable after `flush` or `close`,
            which the end of a `with` block calls.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: as the system says.
        FormatError: the file is not an index, or truncated, or damaged, or of a newer version.
        LockedError: it is open for writing elsewhere, or with `writable` for reading.
    """
    return _of_its_kind(Engine.open(path, writable))


def _bits(code: Code | None) -> int | None:
    if code not in _CODES:
        allowed = ", ".join(map(repr, _CODES))
        raise InputError(f"code = {code!r} is not allowed: one of {allowed}")
    return _CODES[code]


def _code(bits: int | None) -> Code | None:
    return next(code for code, of in _CODES.items() if of == bits)


def _of_its_kind(engine: Engine) -> HNSW | DiskANN | IVFPQ | Flat:
    if engine.kind == "hnsw":
        return _wrap(engine, HNSW)
    if engine.kind == "diskann":
        return _wrap(engine, DiskANN)
    if engine.kind == "ivfpq":
        return _wrap(engine, IVFPQ)
    return _wrap(engine, Flat)


def _wrap(engine: Engine, kind: type[_Self]) -> _Self:
    index = kind.__new__(kind)
    index._engine = engine
    return index


def _from_bytes(content: bytes) -> Index:
    """What pickle calls: the index in memory."""
    with tempfile.TemporaryDirectory(prefix="ann-") as folder:
        path = Path(folder, "index")
        path.write_bytes(content)
        return _of_its_kind(Engine.load(path))


def _hits(cursor: Cursor, filter: Any) -> Iterator[tuple[int, float]]:
    count = _FIRST_FETCH
    while True:
        ids, distances = cursor.fetch(count, filter)
        for hit in zip(ids.tolist(), distances.tolist()):
            cursor.check()
            yield hit
        if len(ids) < count:
            return
        count = min(2 * count, _LAST_FETCH)
