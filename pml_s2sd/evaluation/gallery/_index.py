"""An index on the disk, for galleries in which exact search takes too long; a killed build goes on."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from faiss.contrib.ondisk import merge_ondisk
from tqdm import tqdm

from ..._argument_checks import check_choice, check_int
from ...whole_file import whole_file
from ..neighbours import recall_of_exact, without
from ._exact import Found, GalleryKNN, checked_queries
from ._folder import claimed
from ._processes import in_processes
from ._shards import BLOCK_BYTES, Gallery, checked_gallery

TRAINED_ON = 64
"""Rows a list on which the centres of the lists, and the codes, are trained."""
CODE_VALUES = 256
"""Values of a byte of a code, for each of which a row at least is needed to train on."""
SEARCHED_AT_A_TIME = 256
LISTS = "lists.ivfdata"


class Piece(NamedTuple):
    """Rows of a gallery to add to an index of their own."""

    trained: Path
    gallery: Gallery
    rows: range
    path: Path


class Search(NamedTuple):
    """Queries, and how to search them."""

    path: Path
    effort: int
    gallery: Gallery | None
    query: np.ndarray
    k: int
    candidates: int


class OnDiskKNN:
    """An approximate index of a `Gallery` on the disk, re-ranked by the exact rows; prints the recall that it costs.

    PML's protocol for ``knn_func``, as `GalleryKNN`, and as `ApproximateKNN` for galleries in memory: at the first call
    for a gallery the index is built, and the recall measured and printed, on at most 256 queries spaced evenly, against
    exact search. Both are kept in `folder`.

    √N centres are trained by k-means on 64 √N rows spaced evenly. Each row goes to the list of its nearest centre.
    "ivfpq" keeps there what is left of it as a code: d is cut into `code_size` parts, each replaced by the nearest of
    256 trained values, one byte. A search visits the `effort` lists whose centres are nearest, and estimates distances
    from codes. Of the `rerank` · k nearest by these the distances are computed anew, from the gallery's own rows, and
    the k nearest returned. "ivf" keeps the rows as float32 in the lists instead, and needs no re-ranking.

    Rows are added in one pass, a piece of at most 2²⁰ rows to an index of its own. The pieces are then merged into one
    file on the disk, of which a search reads the lists that it visits. A build that was killed goes on with the piece
    it was at. The disk holds 8 + `code_size` bytes a row ("ivf": 8 + 4 d), twice until pieces are merged.

    Args:
        folder: for the index. It belongs to one gallery and one setting of kind and code_size.
        kind: "ivfpq" or "ivf".
        effort: lists that are visited a query. Twice as much costs twice the time, for more recall.
        code_size: bytes a row of "ivfpq", a divisor of d; d / 4 unless given.
        rerank: candidates a neighbour of "ivfpq" whose distances are computed anew.
        processes: that build and search at the same time; see `GalleryKNN`.

    Attributes:
        recall: the recall measured last; None before the first call.

    Raises:
        TypeError, ValueError: on bad arguments; when called, where the reference is no `Gallery`, or has fewer
            than 256 rows to train codes on, where code_size does not divide d, or the folder holds something else.

    Source: Jégou, Douze and Schmid 2011, Product Quantization for Nearest Neighbor Search; faiss, ``contrib.ondisk``.

    Example:
        >>> import numpy as np, torch
        >>> from pml_s2sd.evaluation.gallery import Gallery, OnDiskKNN
        >>> x = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float16)
        >>> np.save(getfixture("tmp_path") / "gallery.npy", x)
        >>> gallery = Gallery(getfixture("tmp_path") / "gallery.npy")
        >>> knn = OnDiskKNN(getfixture("tmp_path") / "index")
        >>> knn(torch.from_numpy(x[:3]), 1, gallery)[1]
        ivfpq: 1.000 of the 1 nearest of exact search are found, on 3 of 3 queries in 1000 references
        tensor([[0],
                [1],
                [2]])
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        kind: str = "ivfpq",
        effort: int = 64,
        *,
        code_size: int | None = None,
        rerank: int = 10,
        processes: int = 1,
    ) -> None:
        check_choice("kind", kind, ("ivfpq", "ivf"))
        if code_size is not None:
            check_int("code_size", code_size, at_least=1)
            if kind == "ivf":
                raise ValueError('code_size is of kind "ivfpq"; "ivf" keeps whole rows, leave code_size out')
        for name, value in (("effort", effort), ("rerank", rerank), ("processes", processes)):
            check_int(name, value, at_least=1)
        self.folder, self.kind, self.effort = Path(folder), kind, effort
        self.code_size, self.rerank, self.processes = code_size, rerank, processes
        self.recall: float | None = None
        self._built: list[dict[str, Any]] | None = None

    def __call__(
        self, query: torch.Tensor, k: int, reference: Gallery, ref_includes_query: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gallery, wanted = checked_gallery(reference), k + int(ref_includes_query)
        x = checked_queries(query, gallery)
        if self._built != gallery.identity():
            self.build(gallery)
            self._measure(query, wanted, gallery)
        found = self._search(x, wanted, gallery)
        distances, indices = torch.from_numpy(found.distances), torch.from_numpy(found.indices)
        if ref_includes_query:
            distances, indices = without(torch.arange(len(query)), distances, indices)
        return distances.to(query.device), indices.to(query.device)

    def build(self, gallery: Gallery) -> None:
        """Build the index, or go on with it; nothing is done where it is there."""
        code_size, lists = checked_code_size(self.kind, self.code_size, gallery), max(1, int(len(gallery) ** 0.5))
        made_of = {"gallery": gallery.identity(), "kind": self.kind, "code_size": code_size, "lists": lists}
        folder = claimed(self.folder, made_of)
        if not (folder / "index.faiss").exists():
            trained = folder / "trained.faiss"
            if not trained.exists():
                write(train(gallery, self.kind, lists, code_size), trained)
            pieces = [folder / f"piece-{i:05}.faiss" for i in range(len(gallery.pieces()))]
            todo = [
                Piece(trained, gallery, rows, path)
                for path, rows in zip(pieces, gallery.pieces(), strict=True)
                if not path.exists()
            ]
            progress = tqdm(total=len(gallery), unit="row", unit_scale=True, desc="index", delay=3, leave=False)
            with progress:
                progress.update(len(gallery) - sum(len(piece.rows) for piece in todo))
                for rows in in_processes(add_piece, todo, self.processes):
                    progress.update(rows)
            merge(trained, pieces, folder)
        for piece in folder.glob("piece-*.faiss"):
            piece.unlink()
        self._built = gallery.identity()

    def _search(self, query: np.ndarray, k: int, gallery: Gallery) -> Found:
        exact_in_lists = self.kind == "ivf"
        candidates = k if exact_in_lists else min(k * self.rerank, max(k, len(gallery)))
        at_a_time = max(1, min(SEARCHED_AT_A_TIME, BLOCK_BYTES // (4 * gallery.shape[1] * candidates)))
        to_rank = None if exact_in_lists else gallery
        tasks = [
            Search(self.folder / "index.faiss", self.effort, to_rank, query[start : start + at_a_time], k, candidates)
            for start in range(0, len(query), at_a_time)
        ]
        found = in_processes(search, tasks, self.processes)
        parts = list(tqdm(found, total=len(tasks), unit="block", desc=f"{self.kind} search", delay=3, leave=False))
        return Found(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _measure(self, query: torch.Tensor, k: int, gallery: Gallery) -> None:
        exact = GalleryKNN(self.folder / "exact", processes=self.processes)
        self.recall = recall_of_exact(
            self.kind,
            query,
            k,
            len(gallery),
            lambda sample: exact(torch.from_numpy(sample), k, gallery)[1].numpy(),
            lambda sample: self._search(sample, k, gallery).indices,
        )


def checked_code_size(kind: str, code_size: int | None, gallery: Gallery) -> int | None:
    """Bytes a code; None where there are no codes."""
    if kind == "ivf":
        return None
    rows, d = gallery.shape
    if rows < CODE_VALUES:
        raise ValueError(
            f'codes are trained on {CODE_VALUES} rows at least, the gallery has {rows}; take GalleryKNN, or kind "ivf"'
        )
    if code_size is None and d % 4:
        raise ValueError(f"code_size is d / 4 unless given, and d is {d}; give a divisor of d")
    size = d // 4 if code_size is None else code_size
    if d % size:
        raise ValueError(f"code_size must divide d, which is {d}, got {size}")
    return size


def train(gallery: Gallery, kind: str, lists: int, code_size: int | None) -> Any:
    """An empty index of as many lists, trained on rows spaced evenly."""
    rows, d = gallery.shape
    sample = np.unique(np.linspace(0, rows - 1, min(rows, max(TRAINED_ON * lists, 2 * CODE_VALUES)), dtype=np.int64))
    centres = faiss.IndexFlatL2(d)
    index: Any
    if code_size is None:
        index = faiss.IndexIVFFlat(centres, d, lists)
    else:
        index = faiss.IndexIVFPQ(centres, d, lists, code_size, 8)
        index.pq.cp.min_points_per_centroid = 1
    index.cp.min_points_per_centroid = 1  # faiss would print a warning where the gallery is small
    index.train(gallery.take(sample))
    return index


def add_piece(piece: Piece) -> int:
    """Write an index of these rows alone; returns how many they are."""
    index = faiss.read_index(str(piece.trained))
    for first, rows in piece.gallery.blocks(piece.rows):
        index.add_with_ids(rows, np.arange(first, first + len(rows)))
    write(index, piece.path)
    return len(piece.rows)


def merge(trained: Path, pieces: list[Path], folder: Path) -> None:
    """Write one index of all pieces: its lists first, and, when these are on the disk, the file that makes it whole."""
    index, lists = faiss.read_index(str(trained)), folder / LISTS
    merge_ondisk(index, [str(piece) for piece in pieces], str(lists))
    with lists.open("rb") as file:
        os.fsync(file.fileno())
    write(index, folder / "index.faiss")


def write(index: Any, path: Path) -> None:
    with whole_file(path) as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=1)
def opened(path: Path, modified: int) -> Any:
    """The index of a file, whose lists stay on the disk, in the file beside it."""
    lists = path.with_name(LISTS)
    if not lists.is_file():
        raise FileNotFoundError(f"no file {lists}, which holds the lists of {path.name}; remove {path.parent}")
    index: Any
    try:
        index = faiss.read_index(str(path))
        in_place = lists.samefile(lists_of(index).filename)
    except (RuntimeError, FileNotFoundError):
        in_place = False
    if not in_place:  # the folder has been moved; faiss prints a line then
        index = faiss.read_index(str(path), faiss.IO_FLAG_ONDISK_SAME_DIR)
    expected, size = lists_of(index).totsize, lists.stat().st_size
    if size < expected:
        raise ValueError(f"{lists} is cut short: expected {expected:,} bytes, it has {size:,}; remove {path.parent}")
    return index


def lists_of(index: Any) -> Any:
    return faiss.downcast_InvertedLists(index.invlists)


def search(task: Search) -> Found:
    index = opened(task.path, task.path.stat().st_mtime_ns)
    index.nprobe = min(task.effort, index.nlist)
    distances, indices = index.search(task.query, task.candidates)
    distances[indices < 0] = np.inf
    return Found(distances, indices) if task.gallery is None else ranked(task, indices)


def ranked(task: Search, indices: np.ndarray) -> Found:
    """The k nearest of the candidates, by distances to the rows themselves."""
    gallery, query = task.gallery, np.ascontiguousarray(task.query)
    assert gallery is not None
    is_found = indices >= 0
    rows, of_candidate = np.unique(indices[is_found], return_inverse=True)
    of_query, of_row = np.nonzero(is_found)[0].astype(np.int64), np.ascontiguousarray(of_candidate, dtype=np.int64)
    candidates, exact = gallery.take(rows), np.empty(len(of_row), dtype=np.float32)
    pointers = map(faiss.swig_ptr, (query, of_query, candidates, of_row, exact))
    faiss.pairwise_indexed_L2sqr(query.shape[1], len(of_row), *pointers)  # type: ignore[attr-defined]
    distances = np.full(indices.shape, np.inf, dtype=np.float32)
    distances[is_found] = exact
    order = np.lexsort((indices, distances))[:, : task.k]
    return Found(np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1))
