"""Galleries of 1 and 10 million rows in files, and what 100 million would take: where the time goes, and a model of it.

Embeddings of d = 64, float16, made up shard by shard in --folder (1.3 GB, and 3 GB for the indices): a million rows and
50,000 classes a shard, classes about centres whose directions are used ever less, normalised. Linux.

Each part is timed for itself, in this process. The model has one constant for each kind of work in a part, what it
takes at a million; it predicts the others by how the work grows, with L = √N lists:
  read                         N           all blocks, converted to float32 and checked
  train                        L² and 1    k-means of L centres on 64 L rows; codes on at most 65,536 rows
  assign                       N · L       one shard, read and assigned to lists, times the number of shards
  add                          N · L and N as assign, and the rest: encode rows, and write pieces
  merge                        N           the pieces into one file
  exact, 256 queries           N
  index, 1,000 queries         N / L       lists visited times their length; no re-ranking
  re-rank, 1,000 queries       1           120 candidates a query

100 million are simulated. Rows of one shard are assigned to the nearest of 10,000 rows, as many as there would be
lists. The pieces of 10 million are merged ten times over into one file of 100 million codes, and that is searched: its
lists, of 31,623 rows on average, are longer than the 10,000 rows of an index made for 100 million, and the prediction
is for such lists. The rest is left to the model.

A run that is killed goes on with the part that it was at: what was measured is kept in FOLDER/measured.json. With
--again every part is measured once more, and the faster figure kept: other work on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from faiss.contrib.ondisk import merge_ondisk
from measure import RESULTS, peak_mebibytes, save

from pml_s2sd.evaluation.gallery import Gallery, GalleryKNN
from pml_s2sd.evaluation.gallery._index import Piece, Search, add_piece, merge, ranked, search, train, write
from pml_s2sd.whole_file import whole_file

D, SHARD, CLASSES = 64, 1_000_000, 50_000
NOISE = 0.8
"""The spread within a class, that of the classes' centres being 1."""
EXACT, QUERIES, K, CANDIDATES = 256, 1000, 12, 120
EFFORTS = (16, 64)
ROWS = (SHARD, 10 * SHARD)
SIMULATED, LISTS = 100 * SHARD, 10_000

OF_LISTS = "train the lists"
GROWTH: dict[str, Callable[[float, float], float]] = {
    "read": lambda rows, lists: rows,
    "train": lambda rows, lists: lists**2,
    "assign": lambda rows, lists: rows * lists,
    "add": lambda rows, lists: rows * lists,
    "merge": lambda rows, lists: rows,
    "exact, 256 queries": lambda rows, lists: rows,
    **{f"index, 1,000 queries, effort {effort}": lambda rows, lists: rows / lists for effort in EFFORTS},
    "re-rank, 1,000 queries": lambda rows, lists: 1,
}
"""How a part's work grows; of train and add the first kind of it."""
REST: dict[str, tuple[str, Callable[[float], float]]] = {
    "train": (OF_LISTS, lambda rows: 1),
    "add": ("assign", lambda rows: rows),
}
"""Parts of two kinds of work: the part that is the first kind alone, and how the rest grows."""


def make_shard(folder: Path, number: int) -> None:
    """Rows, their labels, and queries with theirs; nothing is done where they are there."""
    if (folder / f"queries-{number:02}.npy").exists():
        return
    generator = np.random.default_rng(number)
    scale = np.arange(1, D + 1, dtype=np.float32) ** -0.5
    centres = generator.standard_normal((CLASSES, D), dtype=np.float32)
    made = {}
    for name, rows in (("gallery", SHARD), ("queries", QUERIES)):
        labels = generator.integers(CLASSES, size=rows)
        x = (centres[labels] + NOISE * generator.standard_normal((rows, D), dtype=np.float32)) * scale
        made[f"labels-{name}"] = labels + number * CLASSES
        made[name] = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    for name, array in made.items():
        with whole_file(folder / f"{name}-{number:02}.npy") as file:
            np.save(file, array)


class Measured:
    """Figures of a gallery by part, kept in a file."""

    again = False

    def __init__(self, folder: Path, name: str) -> None:
        self._path, self._name = folder / "measured.json", name
        self._all = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.figures: dict[str, float] = self._all.setdefault(name, {})

    def add(self, figures: dict[str, float]) -> None:
        peak = max(self.figures.get("MiB", 0.0), peak_mebibytes())
        self.figures.update({**figures, "MiB": peak})
        with whole_file(self._path, "w") as file:
            json.dump(self._all, file, indent=1)

    def time(self, part: str, call: Callable[[], object], times: float = 1) -> None:
        if self.again or part not in self.figures:
            started = time.perf_counter()
            call()
            seconds = times * (time.perf_counter() - started)
            self.add({part: min(seconds, self.figures.get(part, seconds))})
            print(f"{self._name}: {part}: {seconds:.2f} s", file=sys.stderr, flush=True)


def first(folder: Path, name: str, shards: int, rows: int) -> np.ndarray:
    """As many rows of as many shards' files, equally many of each."""
    parts = [np.load(folder / f"{name}-{i:02}.npy")[: -(-rows // shards)] for i in range(shards)]
    mixed = np.stack(parts, axis=1)
    return mixed.reshape(-1, *mixed.shape[2:])[:rows]


def measure(folder: Path, rows: int) -> dict[str, float]:
    """Seconds of each part, what the index finds, and MiB, with so many rows."""
    shards, lists = rows // SHARD, int(rows**0.5)
    gallery = Gallery([folder / f"gallery-{i:02}.npy" for i in range(shards)])
    here = folder / f"index-{rows}"
    here.mkdir(exist_ok=True)
    seconds = Measured(folder, f"{rows:,}")

    seconds.time("read", lambda: read(gallery))
    if rows == ROWS[0]:
        seconds.time(OF_LISTS, lambda: train(gallery, "ivf", lists, None))
    trained = here / "trained.faiss"
    seconds.time("train", lambda: write(train(gallery, "ivfpq", lists, D // 4), trained))
    index = faiss.read_index(str(trained))
    seconds.time("assign", lambda: assign(index.quantizer, gallery), times=shards)
    pieces = [here / f"piece-{i:02}.faiss" for i in range(shards)]
    todo = [Piece(trained, gallery, piece, path) for piece, path in zip(gallery.pieces(), pieces, strict=True)]
    seconds.time("add", lambda: list(map(add_piece, todo)))
    seconds.time("merge", lambda: merge(trained, pieces, here))

    query = np.ascontiguousarray(first(folder, "queries", shards, QUERIES).astype(np.float32))
    seconds.time("exact, 256 queries", lambda: np.save(here / "exact.npy", exact(gallery, query[:EXACT])))
    for effort in EFFORTS:
        part = f"index, 1,000 queries, effort {effort}"
        searched(here, None, query[:EXACT], effort, CANDIDATES)  # what is loaded at first use
        seconds.time(part, lambda effort=effort: searched(here, None, query, effort, CANDIDATES))
    of_codes = searched(here, None, query, EFFORTS[-1], CANDIDATES)
    tasks = searches(here, gallery, query, EFFORTS[-1], CANDIDATES)
    ranked(tasks[0], of_codes[:EXACT])  # what is loaded at first use
    seconds.time("re-rank, 1,000 queries", lambda: rank(tasks, of_codes))
    if "exact, Recall@1" not in seconds.figures:
        seconds.add(quality(folder, here, gallery, query[:EXACT], shards))
    return seconds.figures


def read(gallery: Gallery) -> None:
    for piece in gallery.pieces():
        for _ in gallery.blocks(piece):
            pass


def assign(centres: Any, gallery: Gallery) -> None:
    """The rows of the first shard."""
    for _, rows in gallery.blocks(range(SHARD)):
        centres.assign(rows, 1)


def exact(gallery: Gallery, query: np.ndarray) -> np.ndarray:
    return GalleryKNN()(torch.from_numpy(query), K, gallery)[1].numpy()


def searches(folder: Path, gallery: Gallery | None, query: np.ndarray, effort: int, candidates: int) -> list[Search]:
    return [
        Search(folder / "index.faiss", effort, gallery, query[i : i + EXACT], K, candidates)
        for i in range(0, len(query), EXACT)
    ]


def searched(folder: Path, gallery: Gallery | None, query: np.ndarray, effort: int, candidates: int) -> np.ndarray:
    """Indices of the candidates by codes alone, or of the nearest of them where there is a gallery to re-rank by."""
    return np.concatenate([search(task).indices for task in searches(folder, gallery, query, effort, candidates)])


def rank(tasks: list[Search], candidates: np.ndarray) -> None:
    for i, task in enumerate(tasks):
        ranked(task, candidates[i * EXACT : (i + 1) * EXACT])


def quality(folder: Path, index: Path, gallery: Gallery, query: np.ndarray, shards: int) -> dict[str, float]:
    """Of exact search Recall@1; of the index that, and the share of exact search's neighbours that it finds."""
    expected, of_queries = np.load(index / "exact.npy"), first(folder, "labels-queries", shards, len(query))
    labels = np.concatenate([np.load(folder / f"labels-gallery-{i:02}.npy") for i in range(shards)])
    figures = {"exact, Recall@1": float((labels[expected[:, 0]] == of_queries).mean())}
    for effort in EFFORTS:
        for candidates in (K, CANDIDATES):
            found = searched(index, gallery if candidates > K else None, query, effort, candidates)[:, :K]
            name = f"effort {effort}, {'re-ranked' if candidates > K else 'by codes alone'}"
            shared = sum(len(set(a) & set(b)) for a, b in zip(expected.tolist(), found.tolist(), strict=True))
            figures[f"{name}, found"] = shared / expected.size
            figures[f"{name}, Recall@1"] = float((labels[found[:, 0]] == of_queries).mean())
    return figures


def simulate(folder: Path) -> dict[str, float]:
    """Seconds of the parts that can be made to do the work of 100 million rows."""
    shards = ROWS[-1] // SHARD
    copies = SIMULATED // ROWS[-1]
    of_ten, here = folder / f"index-{ROWS[-1]}", folder / f"index-{SIMULATED}"
    here.mkdir(exist_ok=True)
    gallery = Gallery(copies * [folder / f"gallery-{i:02}.npy" for i in range(shards)])
    seconds = Measured(folder, f"{SIMULATED:,}")
    centres = faiss.IndexFlatL2(D)
    centres.add(gallery.take(np.linspace(0, ROWS[-1] - 1, LISTS, dtype=np.int64)))
    seconds.time("assign", lambda: assign(centres, gallery), times=SIMULATED // SHARD)
    pieces = copies * [of_ten / f"piece-{i:02}.faiss" for i in range(shards)]

    def merge_copies() -> None:
        index = faiss.read_index(str(of_ten / "trained.faiss"))
        merge_ondisk(index, list(map(str, pieces)), str(here / "lists.ivfdata"))
        write(index, here / "index.faiss")

    seconds.time("merge", merge_copies)
    query = np.ascontiguousarray(first(folder, "queries", shards, QUERIES).astype(np.float32))
    for effort in EFFORTS:
        searched(here, None, query[:EXACT], effort, CANDIDATES)
        part = f"index, 1,000 queries, effort {effort}"
        seconds.time(part, lambda effort=effort: searched(here, None, query, effort, CANDIDATES))
    return seconds.figures


def parts(figures: dict[str, float]) -> dict[str, float]:
    return {name: figures[name] for name in GROWTH if name in figures}


def predicted(least: dict[str, float], rows: int, simulated: bool = False) -> dict[str, float]:
    """Seconds of each part, from what was timed at the least number of rows."""
    made = {}
    for name, growth in GROWTH.items():
        # The simulated index has the lists of 10 million rows.
        lists = (ROWS[-1] if simulated and name.startswith("index") else rows) ** 0.5
        first_kind, rest = least[name], 0.0
        if name in REST:
            alone, growth_of_rest = REST[name]
            first_kind = least[alone]
            rest = (least[name] - first_kind) * growth_of_rest(rows) / growth_of_rest(ROWS[0])
        made[name] = first_kind * growth(rows, lists) / growth(ROWS[0], ROWS[0] ** 0.5) + rest
    return made


def choice(seconds: dict[str, float]) -> dict[str, float]:
    """What building an index costs, and the number of queries after which it has paid."""
    exact_search = seconds["exact, 256 queries"] * QUERIES / EXACT
    build = seconds["train"] + seconds["add"] + seconds["merge"]
    index = seconds[f"index, 1,000 queries, effort {EFFORTS[-1]}"] + seconds["re-rank, 1,000 queries"]
    return {
        "exact, 1,000 queries, s": exact_search,
        "building an index, s": build,
        f"index, 1,000 queries, effort {EFFORTS[-1]}, s": index,
        "queries after which building has paid": QUERIES * build / (exact_search - index),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for shards and indices, 5 GB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--only", choices=["data", *(f"{rows}" for rows in (*ROWS, SIMULATED))], help="stop after these"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, keep the faster")
    settings = parser.parse_args()
    Measured.again = settings.again
    torch.set_num_threads(settings.threads)
    faiss.omp_set_num_threads(settings.threads)
    settings.folder.mkdir(parents=True, exist_ok=True)
    for number in range(ROWS[-1] // SHARD):
        make_shard(settings.folder, number)
    if settings.only == "data":
        return
    measured = {}
    for rows in ROWS:
        measured[rows] = measure(settings.folder, rows)
        if settings.only == f"{rows}":
            return
    measured[SIMULATED] = simulate(settings.folder)
    figures: dict[str, Any] = {}
    for rows, of_rows in measured.items():
        seconds = parts(of_rows)
        expected = predicted(measured[ROWS[0]], rows, simulated=rows == SIMULATED)
        figures[f"{rows:,}"] = {
            "seconds": rounded(seconds),
            "predicted": rounded(expected),
            "measured ÷ predicted": rounded({name: seconds[name] / expected[name] for name in seconds}),
            "choice": rounded(choice(predicted(measured[ROWS[0]], rows) if rows == SIMULATED else seconds)),
            "quality": rounded({name: x for name, x in of_rows.items() if name.endswith(("found", "Recall@1"))}),
            "MiB": round(of_rows["MiB"]),
        }
    save("gallery", figures, settings.results)


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in figures.items()}


if __name__ == "__main__":
    main()
