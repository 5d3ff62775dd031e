"""Nearest neighbours: an approximate index for large galleries, and a search of many queries in blocks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
import torch
from tqdm import tqdm

from .._argument_checks import check_int

BLOCK_ROWS, BLOCK_ENTRIES = 4096, 2**22
"""At most so many queries, and so many neighbours, are searched at a time."""
SAMPLE = 256
"""Queries on which an approximate index is compared with exact search."""
ADDED_AT_A_TIME = 16_384

KNN = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class ApproximateKNN:
    """An approximate faiss index, for galleries too large for exact search; prints the recall that it costs.

    PML's protocol for ``knn_func``: called with (query, k, reference, ref_includes_query), it
    returns distances (squared Euclidean) and indices, each (Q, k). Where the index finds fewer than
    k, the index is -1. It is built when a reference tensor is first seen, and kept for that tensor.
    At that time the printed recall is measured, on queries spaced evenly: the mean share of the k
    nearest by exact search that are among the k found.

    Args:
        kind: "hnsw", a graph of 32 links a sample: slow to build, fast to search, high recall; or
            "ivf", √R lists of samples about k-means centres: faster to build, recall depends on
            how well the data clusters.
        effort: how many candidates of the graph (efSearch), or lists (nprobe), are visited a query. Twice
            as much costs twice the time, for more recall.

    Attributes:
        recall: the recall measured last; None before the first call.

    Raises:
        ValueError, TypeError: on another kind, or an effort that is no positive int.

    Source: Malkov and Yashunin 2016 (arXiv 1603.09320); Sivic and Zisserman, ICCV 2003; both as in faiss.

    Example:
        >>> import torch
        >>> from pml_s2sd.evaluation.neighbours import ApproximateKNN
        >>> knn = ApproximateKNN("hnsw")
        >>> distances, indices = knn(torch.tensor([[0.9]]), 2, torch.tensor([[0.0], [1.0], [3.0]]))
        hnsw: 1.000 of the 2 nearest of exact search are found, on 1 of 1 queries in 3 references
        >>> indices
        tensor([[1, 0]])
    """

    def __init__(self, kind: str, effort: int = 64) -> None:
        if kind not in ("hnsw", "ivf"):
            raise ValueError(f'kind must be "hnsw" or "ivf", got {kind!r}; for exact search leave knn_func out')
        check_int("effort", effort, at_least=1)
        self.kind = kind
        self.effort = effort
        self.recall: float | None = None
        self._index: Any = None
        self._reference: Callable[[], torch.Tensor | None] = lambda: None
        self._version = -1

    def __call__(
        self, query: torch.Tensor, k: int, reference: torch.Tensor, ref_includes_query: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = k + int(ref_includes_query)
        version = 0 if reference.is_inference() else reference._version  # inference tensors do not count writes
        if self._reference() is not reference or self._version != version:
            self._index = self._build(reference)
            self._reference, self._version = weakref.ref(reference), version
            self._measure(query, wanted, reference)
        distances, indices = (torch.from_numpy(found) for found in self._index.search(on_cpu(query), wanted))
        if ref_includes_query:
            distances, indices = without(torch.arange(len(query)), distances, indices)
        return distances.to(query.device), indices.to(query.device)

    def _build(self, reference: torch.Tensor) -> Any:
        points = on_cpu(reference)
        d, lists = points.shape[1], max(1, int(len(points) ** 0.5))
        index: Any
        if self.kind == "hnsw":
            index = faiss.IndexHNSWFlat(d, 32)
            index.hnsw.efSearch = self.effort
        else:
            index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, lists)
            index.nprobe = min(self.effort, lists)
            index.train(points)
        for start in tqdm(range(0, len(points), ADDED_AT_A_TIME), desc=f"{self.kind} index", delay=3, leave=False):
            index.add(points[start : start + ADDED_AT_A_TIME])
        return index

    def _measure(self, query: torch.Tensor, k: int, reference: torch.Tensor) -> None:
        self.recall = recall_of_exact(
            self.kind,
            query,
            k,
            len(reference),
            lambda sample: faiss.knn(sample, on_cpu(reference), k)[1],
            lambda sample: self._index.search(sample, k)[1],
        )


def recall_of_exact(
    name: str,
    query: torch.Tensor,
    k: int,
    references: int,
    exact: Callable[[np.ndarray], np.ndarray],
    approximate: Callable[[np.ndarray], np.ndarray],
) -> float:
    """The mean share of the k nearest by exact search that are among the k found, on at most 256 queries; prints it.

    Args:
        name: of the index.
        query: (Q, d), of which some are taken, spaced evenly.
        k: neighbours a query.
        references: how many there are.
        exact, approximate: from queries (n, d), float32, to indices (n, k).
    """
    sample = on_cpu(query[:: max(1, len(query) // SAMPLE)][:SAMPLE])
    expected, found = exact(sample), approximate(sample)
    shared = sum(len(set(row) & set(other)) for row, other in zip(expected.tolist(), found.tolist(), strict=True))
    recall = shared / expected.size
    print(
        f"{name}: {recall:.3f} of the {k} nearest of exact search are found, on {len(sample)} of "
        f"{len(query)} queries in {references} references"
    )
    return recall


def search_in_blocks(
    knn_func: KNN, query: torch.Tensor, k: int, reference: Any, selves: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Blocks of queries and their k nearest references: ((B,) rows of `query`, (B, k) rows of `reference`).

    A block's queries are spaced evenly over all, so that it is a sample of them.

    Args:
        knn_func: of PML's protocol.
        query: (Q, d).
        k: neighbours a query.
        reference: (R, d), as knn_func takes it.
        selves: (Q,), the row of `reference` that is the query itself and is left out; None where there is none.
    """
    size = max(1, min(BLOCK_ROWS, BLOCK_ENTRIES // k))
    blocks = -(-len(query) // size)
    for block in tqdm(range(blocks), desc=f"searching {len(reference):,}", unit="block", delay=3, leave=False):
        rows = torch.arange(block, len(query), blocks, device=query.device)
        distances, indices = knn_func(query[rows], k + int(selves is not None), reference, False)
        if selves is not None:
            indices = without(selves[rows], distances, indices)[1]
        yield rows, indices


def without(selves: torch.Tensor, distances: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(Q, k + 1) neighbours less the query itself; where it is not among them, less the last, as in PML."""
    is_self = indices == selves[:, None]
    is_self[~is_self.any(dim=1), -1] = True
    shape = (len(indices), indices.shape[1] - 1)
    return distances[~is_self].view(shape), indices[~is_self].view(shape)


def on_cpu(x: torch.Tensor) -> Any:
    """float32 rows as faiss takes them."""
    return x.detach().float().cpu().contiguous().numpy()
