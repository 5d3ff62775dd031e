"""Exact search in a gallery larger than memory, from which a killed run goes on."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch
from tqdm import tqdm

from ..._argument_checks import check_int
from ...whole_file import whole_file
from ..neighbours import on_cpu, without
from ._folder import claimed
from ._processes import in_processes
from ._shards import Gallery, checked_gallery

NOTED_EVERY = 5.0
"""Seconds after which what has been found is noted again; a killed run repeats what was not."""


class Found(NamedTuple):
    """The k nearest: squared distances (Q, k), float32, and rows (Q, k), int64; inf and -1 where there are fewer."""

    distances: np.ndarray
    indices: np.ndarray


class Task(NamedTuple):
    """A piece of a gallery to search in."""

    gallery: Gallery
    piece: range
    query: np.ndarray
    k: int


class GalleryKNN:
    """Exact nearest neighbours in a `Gallery`, piece by piece, on several processes; a killed search goes on.

    PML's protocol for ``knn_func``: called with (query, k, gallery, ref_includes_query), it returns distances (squared
    Euclidean) and indices, each (Q, k). They are those of PML's search in memory; of rows at the same distance the
    first come first. Where the gallery has fewer than k rows, the index is -1.

    For each piece, of at most 2²⁰ rows of a file, the queries' nearest there are merged with those found so far. With a
    `folder` these are noted there, and a run that was killed goes on with the next piece; one that has ended is read.
    The folder belongs to one gallery: where a file has changed it is refused.

    Time is that of Q · N · d multiplications; a float16 row is read, converted and checked once for each 4096 queries,
    the calculator's block. docs/evaluation.md has figures. Memory: a block of 64 MiB, and 12 bytes a neighbour, twice.

    Args:
        folder: for what has been found; None keeps nothing.
        processes: that search pieces at the same time, each with its share of faiss's threads. A script that asks for
            more than one has to start its work below ``if __name__ == "__main__":``, as always with Python's processes.

    Raises:
        TypeError, ValueError: on bad arguments; when called, where the reference is no `Gallery`, the queries
            are of another width, or the folder holds something else.

    Source: faiss, ``contrib.exhaustive_search.knn_ground_truth``, which keeps nothing.

    Example:
        >>> import numpy as np, torch
        >>> from pml_s2sd.evaluation.gallery import Gallery, GalleryKNN
        >>> np.save(getfixture("tmp_path") / "gallery.npy", np.array([[0.0], [1.0], [3.0]]))
        >>> gallery = Gallery(getfixture("tmp_path") / "gallery.npy")
        >>> distances, indices = GalleryKNN()(torch.tensor([[0.75]]), 2, gallery)
        >>> distances, indices
        (tensor([[0.0625, 0.5625]]), tensor([[1, 0]]))
    """

    def __init__(self, folder: str | os.PathLike | None = None, *, processes: int = 1) -> None:
        check_int("processes", processes, at_least=1)
        self.folder = None if folder is None else Path(folder)
        self.processes = processes

    def __call__(
        self, query: torch.Tensor, k: int, reference: Gallery, ref_includes_query: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gallery, wanted = checked_gallery(reference), k + int(ref_includes_query)
        x = checked_queries(query, gallery)
        note = None
        if self.folder is not None:
            folder = claimed(self.folder, {"gallery": gallery.identity()})
            note = folder / f"{hashlib.sha256(x.tobytes()).hexdigest()[:16]}-{wanted}.npz"
        found = self._search(x, wanted, gallery, note)
        distances, indices = torch.from_numpy(found.distances), torch.from_numpy(found.indices)
        if ref_includes_query:
            distances, indices = without(torch.arange(len(query)), distances, indices)
        return distances.to(query.device), indices.to(query.device)

    def _search(self, query: np.ndarray, k: int, gallery: Gallery, note: Path | None) -> Found:
        found, done = nothing(len(query), k), 0
        if note is not None and note.exists():
            found, done = read(note)
        pieces = gallery.pieces()
        noted = time.monotonic()
        tasks = [Task(gallery, piece, query, k) for piece in pieces[done:]]
        progress = tqdm(total=len(gallery), unit="row", unit_scale=True, desc="exact search", delay=3, leave=False)
        with progress:
            progress.update(sum(map(len, pieces[:done])))
            for here in in_processes(nearest_in_piece, tasks, self.processes):
                found = nearest(found, here)
                progress.update(len(pieces[done]))
                done += 1
                if note is not None and (done == len(pieces) or time.monotonic() - noted > NOTED_EVERY):
                    write(note, found, done)
                    noted = time.monotonic()
        return found


def nearest_in_piece(task: Task) -> Found:
    heap = faiss.ResultHeap(len(task.query), task.k)
    for first, rows in task.gallery.blocks(task.piece):
        distances, indices = faiss.knn(task.query, rows, min(task.k, len(rows)))
        heap.add_result(distances, indices + first)
    heap.finalize()
    return Found(np.where(heap.I < 0, np.float32(np.inf), heap.D), heap.I)


def nearest(found: Found, more: Found) -> Found:
    """The k nearest of both, by distance and then by row."""
    distances, indices = (np.concatenate(pair, axis=1) for pair in zip(found, more, strict=True))
    order = np.lexsort((indices, distances))[:, : found.indices.shape[1]]
    return Found(np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1))


def nothing(queries: int, k: int) -> Found:
    return Found(np.full((queries, k), np.inf, dtype=np.float32), np.full((queries, k), -1, dtype=np.int64))


def read(note: Path) -> tuple[Found, int]:
    try:
        with np.load(note) as arrays:
            return Found(arrays["distances"], arrays["indices"]), int(arrays["done"])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{note} is broken, and no results of a search ({error}); remove it") from error


def write(note: Path, found: Found, done: int) -> None:
    with whole_file(note) as file:
        np.savez(file, distances=found.distances, indices=found.indices, done=done)


def checked_queries(query: torch.Tensor, gallery: Gallery) -> np.ndarray:
    """float32 rows as faiss takes them, of the gallery's width."""
    if query.dim() != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query must have shape (Q, {gallery.shape[1]}), as the rows of the gallery, got {tuple(query.shape)}; use "
            "one model"
        )
    return on_cpu(query)
