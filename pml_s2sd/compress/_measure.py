"""What a map costs and keeps: retrieval on classes, or neighbours of rows, that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import faiss
import numpy as np
import torch

from .._shards import Shards
from .._similarity_map import START_ROWS, UNLABELLED, principal_axes
from ..evaluation import RetrievalAccuracyCalculator
from ._compress import compress
from ._formats import linear_transform

SHARE, MOST_ROWS, MOST_OF_A_CLASS = 0.2, 10_000, 50
"""At most so much of the rows or classes is held out, so many rows, and so many of a class."""
NEIGHBOURS = 10
"""The length of the lists that are compared."""


class HeldOut(NamedTuple):
    """The numbers of rows to measure on, and of those to train on, which share no class where there are labels."""

    measured: np.ndarray
    trained: np.ndarray


def held_out(count: int, labels: np.ndarray | None, seed: int) -> HeldOut:
    """Whole classes where there are labels, and otherwise rows, drawn at random.

    Args:
        count: N, at least 4.
        labels: (N,), -1 where not known: such rows are trained on. At least three classes have two rows.
        seed: decides which.
    """
    draw = np.random.default_rng(seed)
    order = draw.permutation(count)
    if labels is None:
        measured = order[: min(MOST_ROWS, max(2, int(SHARE * count)))]
        return HeldOut(np.sort(measured), np.sort(order[len(measured) :]))
    classes = draw.permutation(classes_of_two(labels))
    classes = classes[: max(2, int(SHARE * len(classes)))]
    names, number = np.unique(labels, return_inverse=True)
    turn_of = np.full(len(names), len(classes))
    turn_of[np.searchsorted(names, classes)] = np.arange(len(classes))
    turn = turn_of[number]  # of each row's class, among those that may be held out
    in_turn = order[np.argsort(turn[order], kind="stable")]
    place = np.arange(count) - np.searchsorted(turn[in_turn], turn[in_turn])  # of each row in its class
    measured = in_turn[(turn[in_turn] < len(classes)) & (place < MOST_OF_A_CLASS)][:MOST_ROWS]
    return HeldOut(np.sort(measured), np.flatnonzero(turn > turn[measured].max()))


def classes_of_two(labels: np.ndarray) -> np.ndarray:
    """The labels that two rows have at least: where there is something to be found."""
    classes, rows = np.unique(labels[labels != UNLABELLED], return_counts=True)
    return classes[rows > 1]


class Space(NamedTuple):
    """An embedding space and what it keeps."""

    name: str
    dimensions: int
    metrics: dict[str, float]


class Measured(NamedTuple):
    """What was measured, in each space, and on what."""

    on: str
    spaces: list[Space]


def measure(
    embeddings: np.ndarray | Shards, size: int, labels: np.ndarray | None, *, seed: int, device: str
) -> Measured:
    """The original, PCA and the map, on rows that the latter two are not trained on.

    Args:
        labels: (N,); neighbours are compared without them, or where fewer than three classes have two rows.
    """
    judged = labels if labels is not None and len(classes_of_two(labels)) > 2 else None
    parts = held_out(len(embeddings), judged, seed)
    layer = compress(embeddings, size, labels=labels, rows=parts.trained, seed=seed, device=device)
    sample = np.random.default_rng(seed).choice(parts.trained, min(START_ROWS, len(parts.trained)), replace=False)
    rows = unit(embeddings[parts.measured])
    spaces = {
        "original": rows,
        "PCA": pca(unit(embeddings[np.sort(sample)]), size)(rows),
        "map": linear_transform(layer).apply(rows),
    }
    if judged is None:
        on = f"{len(rows):,} rows"
        found = [{f"neighbours kept, of {NEIGHBOURS}": agreement(z, rows)} for z in spaces.values()]
    else:
        y = judged[parts.measured]
        on = f"{len(rows):,} rows of {len(np.unique(y)):,} classes"
        found = [retrieval(z, y) for z in spaces.values()]
    return Measured(on, [Space(name, z.shape[1], of) for (name, z), of in zip(spaces.items(), found, strict=True)])


def pca(rows: np.ndarray, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """The usual one, about the mean."""
    mean = rows.mean(axis=0)
    directions = principal_axes(iter([torch.from_numpy(rows)])).directions[:, :size].float().numpy()
    return lambda x: (x - mean) @ directions


def unit(rows: np.ndarray) -> np.ndarray:
    """float32, each of length 1, or 0."""
    return torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float32))).numpy()


def retrieval(z: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Recall@1 and MAP@R, each row among the others by cosine."""
    names = {"precision_at_1": "Recall@1", "mean_average_precision_at_r": "MAP@R"}
    calculator = RetrievalAccuracyCalculator(tuple(names), device=torch.device("cpu"))
    found = calculator.get_accuracy(unit(z), labels)
    return {name: found[by_pml] for by_pml, name in names.items()}


def agreement(z: np.ndarray, original: np.ndarray, k: int = NEIGHBOURS) -> float:
    """The share of each row's k nearest others by cosine that are also among its k nearest in the original space."""
    lists = [neighbours(space, min(k, len(z) - 1)) for space in (z, original)]
    return (lists[0][:, :, None] == lists[1][:, None, :]).any(axis=2).mean().item()


def neighbours(x: np.ndarray, k: int) -> np.ndarray:
    """(N, k), the nearest others of each row by cosine."""
    rows = unit(x)
    found = faiss.knn(rows, rows, k + 1, metric=faiss.METRIC_INNER_PRODUCT)[1]
    itself = found == np.arange(len(rows))[:, None]
    itself[~itself.any(axis=1), -1] = True
    return found[~itself].reshape(len(rows), k)
