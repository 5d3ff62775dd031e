"""What a vector of 16, 32, 64 or 128 bytes retrieves: codes of compressed, PCA and original embeddings, side by side.

    python examples/codes.py embeddings.npy --labels labels.npy --output codes.png

A fifth of the classes is held out, and retrieved by cosine, each row among the others; maps, PCA and codes are trained
on the rest, maps with its labels (--without-labels: without). What is stored is coded, what is searched for is not.

- float32; float16; int8: faiss's SQ8, a byte a dimension.
- 1 bit: the sign of each dimension; the query's product with the signs.
- PQ, OPQ: faiss's product quantisers, a byte a part: of the original embeddings, and PQ of PCA and compressed ones
  with four dimensions a byte. k-means of 10 passes, and 5 rotations of OPQ, where faiss has 25 and 50.

Prints a Markdown table of Recall@1 and MAP@R, and draws them against the bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupShuffleSplit
from tqdm import tqdm

from pml_s2sd import compress
from pml_s2sd.accuracy import RetrievalAccuracyCalculator

SIZES = (16, 32, 64, 128)
A_BYTE = 4
"""Dimensions that share a byte of a product quantiser."""
PASSES, ROTATIONS = 10, 5
"""Of k-means in a product quantiser, and of OPQ."""
COLOURS = {"original": "black", "PCA": "tab:blue", "compressed": "tab:orange"}
MARKS = {"float32": "o:", "float16": "P-.", "int8": "s--", "1 bit": "^:", "PQ": "D-", "OPQ": "v-"}


class Row(NamedTuple):
    """What codes of so many bytes retrieve."""

    embeddings: str
    dimensions: int
    code: str
    bytes: int
    recall_at_1: float
    map_at_r: float


class Space(NamedTuple):
    """Training rows and those measured, in one space; float32, each of length 1."""

    train: np.ndarray
    test: np.ndarray


def float32(space: Space) -> np.ndarray:
    return space.test


def float16(space: Space) -> np.ndarray:
    return space.test.astype(np.float16).astype(np.float32)


def signs(space: Space) -> np.ndarray:
    return np.sign(space.test)


def by_faiss(factory: str) -> Callable[[Space], np.ndarray]:
    """The measured rows as a faiss code, trained on the training rows, gives them back.

    A product quantiser's factory ends with np, no polysemous training: that orders the centroids anew for another way
    to search, which takes most of the time, and leaves what is decoded as it is.
    """

    def decoded(space: Space) -> np.ndarray:
        index = faiss.index_factory(space.train.shape[1], factory)
        quicken(index)
        index.train(space.train)
        return index.sa_decode(index.sa_encode(space.test))

    return decoded


def quicken(index: faiss.Index) -> None:
    """Fewer passes for a product quantiser, and for the rotation before it."""
    if isinstance(index, faiss.IndexPreTransform):
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter, rotation.niter_pq_0 = ROTATIONS, PASSES
        index = faiss.downcast_index(index.index)
    if isinstance(index, faiss.IndexPQ):
        index.pq.cp.niter = PASSES


def retrieval(queries: np.ndarray, stored: np.ndarray, labels: np.ndarray, metric: int) -> tuple[float, float]:
    """Recall@1 and MAP@R of each query among the others' stored rows."""

    def knn(query: torch.Tensor, k: int, reference: torch.Tensor, _: bool) -> tuple[torch.Tensor, torch.Tensor]:
        distances, rows = faiss.knn(query.numpy(), stored, k, metric=metric)
        return torch.from_numpy(distances), torch.from_numpy(rows)

    names = ("precision_at_1", "mean_average_precision_at_r")
    calculator = RetrievalAccuracyCalculator(names, device=torch.device("cpu"), knn_func=knn)
    found = calculator.get_accuracy(queries, labels)
    return found[names[0]], found[names[1]]


def rows_of(
    train: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    train_labels: np.ndarray | None = None,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> list[Row]:
    """Every code of every size, where the embeddings have the dimensions for it.

    Args:
        train: what maps, PCA and codes are trained on, (N, k); at least 256 rows, for the product quantisers.
        test: what is retrieved, (n, k).
        test_labels: (n,), integers.
        train_labels: (N,), integers, for `compress`; None: without.
        sizes: bytes a vector.
        seed: of `compress`.
    """
    columns = train.shape[1]
    spaces = spaces_of(train, test, train_labels, sizes, seed)
    rows = []
    bar = tqdm(cells(columns, sizes), delay=3, leave=False)
    for name, d, code, size in bar:
        bar.set_description(f"{name}, {code} of {size} bytes")
        if (name, d) in spaces and (code != "PQ" or d % size == 0):
            encode = {
                "float32": float32,
                "float16": float16,
                "int8": by_faiss("SQ8"),
                "1 bit": signs,
                "PQ": by_faiss(f"PQ{size}x8np"),
                "OPQ": by_faiss(f"OPQ{size}_{A_BYTE * size},PQ{size}x8np"),
            }[code]
            space = spaces[name, d]
            metric = faiss.METRIC_L2 if code in ("PQ", "OPQ") else faiss.METRIC_INNER_PRODUCT
            rows.append(Row(name, d, code, size, *retrieval(space.test, encode(space), test_labels, metric)))
    return rows


def cells(columns: int, sizes: Sequence[int]) -> list[tuple[str, int, str, int]]:
    """What is measured: embeddings, their dimensions, code, bytes."""
    whole = [("float32", 4 * columns), ("float16", 2 * columns), ("int8", columns), ("1 bit", columns // 8)]
    found = [("original", columns, code, size) for code, size in whole]
    for size in sizes:
        found.append(("original", columns, "PQ", size))
        found += [("original", columns, "OPQ", size)] * (A_BYTE * size <= columns)
        for name in ("PCA", "compressed"):
            found += [(name, size // 4, "float32", size), (name, size // 2, "float16", size)]
            found += [(name, size, "int8", size), (name, 8 * size, "1 bit", size), (name, A_BYTE * size, "PQ", size)]
    return found


def spaces_of(
    train: np.ndarray, test: np.ndarray, train_labels: np.ndarray | None, sizes: Sequence[int], seed: int
) -> dict[tuple[str, int], Space]:
    """The embeddings to code, by name and dimensions."""
    columns = train.shape[1]
    original = Space(unit(train), unit(test))
    wanted = {d for name, d, _, _ in cells(columns, sizes) if name == "compressed"}
    dimensions = sorted(d for d in wanted if 1 <= d <= min(train.shape))
    layers = compress(train, dimensions, labels=train_labels, seed=seed)
    pca = PCA(max(dimensions), svd_solver="covariance_eigh").fit(original.train)
    projected = [pca.transform(rows) for rows in original]
    spaces = {("original", columns): original}
    for d in dimensions:
        weight = layers[d].weight.detach().float().cpu().numpy()
        spaces["compressed", d] = Space(*(unit(rows @ weight.T) for rows in original))
        spaces["PCA", d] = Space(*(unit(rows[:, :d]) for rows in projected))
    return spaces


def unit(rows: np.ndarray) -> np.ndarray:
    return torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float32))).numpy()


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line an embedding and code, a column a number of bytes, Recall@1 / MAP@R in percent; best in bold."""
    sizes = sorted({row.bytes for row in rows})
    best = {size: max(row.recall_at_1 for row in rows if row.bytes == size) for size in sizes}
    lines = [["embeddings", "code", *(f"{size:,} bytes" for size in sizes)], ["---"] * (2 + len(sizes))]
    for name in COLOURS:
        for code in MARKS:
            cells = {row.bytes: row for row in rows if (row.embeddings, row.code) == (name, code)}
            if cells:
                lines.append([name, code, *(cell(cells.get(size), best[size]) for size in sizes)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(row: Row | None, best: float) -> str:
    if row is None:
        return ""
    text = f"{100 * row.recall_at_1:.1f} / {100 * row.map_at_r:.1f}"
    return f"**{text}**" if row.recall_at_1 == best else text


def plot(rows: Sequence[Row], path: Path) -> None:
    """Recall@1 and MAP@R in percent against bytes a vector: a colour an embedding, a mark and line a code.

    A grey line is the original as float32. What is larger than all compressed codes, or below two thirds of that line,
    is in the table alone.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(1, 2)
    ticks = sorted({row.bytes for row in rows if row.embeddings != "original"})
    (whole,) = (row for row in rows if (row.embeddings, row.code) == ("original", "float32"))
    for panel, name, value in zip(panels, ("Recall@1", "MAP@R"), ("recall_at_1", "map_at_r"), strict=True):
        panel.axhline(100 * getattr(whole, value), color="grey", linewidth=1)
        for embeddings, colour in COLOURS.items():
            for code, mark in MARKS.items():
                drawn = [row for row in rows if (row.embeddings, row.code) == (embeddings, code) and row.bytes in ticks]
                drawn.sort(key=lambda row: row.bytes)
                values = [100 * getattr(row, value) for row in drawn]
                panel.plot([row.bytes for row in drawn], values, mark, color=colour, markersize=5, linewidth=1.2)
        panel.set(xscale="log", xlabel="bytes a vector", ylabel=f"{name}, percent")
        panel.set_ylim(200 / 3 * getattr(whole, value), 102 * max(getattr(row, value) for row in rows))
        panel.set_xticks(ticks, [f"{size:,}" for size in ticks], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    keys = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in COLOURS.items()]
    keys += [Line2D([], [], color="grey", linewidth=1, label=f"original, float32, {whole.bytes:,} bytes")]
    keys += [Line2D([], [], color="dimgrey", marker=m[0], linestyle=m[1:], label=code) for code, m in MARKS.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=5, fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("embeddings", type=Path, help="a .npy file of shape (N, k)")
    add("--labels", type=Path, required=True, help="a .npy file of shape (N,), integers")
    add("--without-labels", action="store_true", help="compress without the labels; they judge alone")
    add("--bytes", type=int, nargs="+", default=SIZES, metavar="B", help="default: 16 32 64 128")
    add("--seed", type=int, default=0, help="of the classes held out, and of compress (default: %(default)s)")
    add("--output", type=Path, default=Path("codes.png"), help="the picture (default: %(default)s)")
    settings = parser.parse_args()
    embeddings, labels = np.load(settings.embeddings), np.load(settings.labels)
    split = GroupShuffleSplit(1, test_size=0.2, random_state=settings.seed)
    ((train, test),) = split.split(embeddings, groups=labels)
    rows = rows_of(
        embeddings[train],
        embeddings[test],
        labels[test],
        train_labels=None if settings.without_labels else labels[train],
        sizes=settings.bytes,
        seed=settings.seed,
    )
    print(table(rows))
    plot(rows, settings.output)


if __name__ == "__main__":
    main()
