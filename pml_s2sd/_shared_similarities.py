"""SharedSimilarities: an auxiliary space's similarities, once for its miner, its objective and distillation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from torch import nn

from .objectives import of_one_process

CDIST_DIFFERENCES = 25
"""Up to this many rows torch.cdist takes differences, above it a matrix product."""


class SharedSimilarities:
    """Inside ``with shared.for_one_step():`` the spaces' objectives and miners compute a batch's similarities once.

    Their plain cosine and Euclidean distances are replaced, at construction, by ones that share. Outside of the
    block those compute as PML's do, and nothing of a step is kept.

    Args:
        spaces: the objective and the miner, or None, of each auxiliary space.
    """

    def __init__(self, spaces: Iterable[tuple[nn.Module, nn.Module | None]]) -> None:
        self._cosines = [_share(*parts) for parts in spaces]

    @contextlib.contextmanager
    def for_one_step(self) -> Iterator[None]:
        for cosine in self._cosines:
            cosine.begin()
        try:
            yield
        finally:
            for cosine in self._cosines:
                cosine.end()

    def known(self, space: int, x: torch.Tensor | None) -> torch.Tensor | None:
        """The cosines of x with itself, where objective or miner of a space, counted from 1, have asked for them."""
        return self._cosines[space - 1].known(x)


class SharedCosine(CosineSimilarity):
    """PML's CosineSimilarity; between `begin` and `end` the first batch that is compared with itself is kept.

    Who asks gets a copy, as some of PML's classes write into it. What is compared with references, is not in
    float32 or wider, or under autocast, is computed by PML.

    Source: `pytorch_metric_learning.distances.CosineSimilarity`.

    Example:
        >>> import torch
        >>> from pml_s2sd._shared_similarities import SharedCosine
        >>> distance, x = SharedCosine(), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
        >>> distance.begin()
        >>> distance(x)
        tensor([[1., 0.],
                [0., 1.]])
        >>> distance.known(x) is distance.known(x)
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.end()

    def begin(self) -> None:
        self._sharing = True

    def end(self) -> None:
        """Let go of the batch and its graph."""
        self._sharing = False
        self._batch: torch.Tensor | None = None
        self._similarities: torch.Tensor | None = None

    def forward(self, query_emb: torch.Tensor, ref_emb: torch.Tensor | None = None) -> torch.Tensor:
        similarities = self.of(query_emb, ref_emb)
        return super().forward(query_emb, ref_emb) if similarities is None else similarities.clone()

    def of(self, x: torch.Tensor, ref: torch.Tensor | None) -> torch.Tensor | None:
        """D^x of the batch, the same tensor at every call, not to be written into; None where PML computes it."""
        compared_with_itself = ref is None or ref is x
        if not (self._sharing and compared_with_itself and x.dtype in (torch.float32, torch.float64)):
            return None
        if self._batch is None and not torch.is_autocast_enabled(x.device.type):
            with torch.set_grad_enabled(x.requires_grad):  # a miner, which asks first, does so under no_grad
                self._batch, self._similarities = x, cosines(x)
        return self.known(x)

    def known(self, x: torch.Tensor | None) -> torch.Tensor | None:
        """D^x where somebody has asked for it, else None."""
        return self._similarities if x is not None and x is self._batch else None


class SharedEuclidean(LpDistance):
    """PML's LpDistance of order 2 between unit vectors, from the cosines of a `SharedCosine`:

        ‖x̂ - ŷ‖² = x̂·x̂ + ŷ·ŷ - 2 x̂·ŷ,

    where x̂·x̂ is 1, and 0 for a zero vector. Above 25 rows torch.cdist, PML's way, does the same with
    normalised vectors; up to 25 it takes differences, which are exact for near duplicates, and so PML computes it.

    Args:
        cosine: who keeps the batch's cosines.

    Source: `pytorch_metric_learning.distances.LpDistance`.

    Example:
        >>> import torch
        >>> from pml_s2sd._shared_similarities import SharedCosine, SharedEuclidean
        >>> cosine, x = SharedCosine(), torch.eye(26)
        >>> cosine.begin()
        >>> SharedEuclidean(cosine)(x)[0, :3]
        tensor([0.0000, 1.4142, 1.4142])
    """

    def __init__(self, cosine: SharedCosine) -> None:
        super().__init__()
        self.cosine = cosine

    def forward(self, query_emb: torch.Tensor, ref_emb: torch.Tensor | None = None) -> torch.Tensor:
        cosines = self.cosine.of(query_emb, ref_emb) if len(query_emb) > CDIST_DIFFERENCES else None
        if cosines is None:
            return super().forward(query_emb, ref_emb)
        squares = cosines.detach().diagonal()
        squared = squares[:, None] + squares - 2 * cosines
        equal = squared <= 0  # where the root has no derivative; as torch.cdist's, it is 0
        return squared.masked_fill(equal, 1).sqrt().masked_fill(equal, 0)


def cosines(x: torch.Tensor) -> torch.Tensor:
    """x xᵀ / (n nᵀ), n the norms of the rows, (B, B): one product forward and one backward, and no other pass over
    (B, d) than the norms.

    Zero vectors get no gradient. At B = 112, d = 2048 half the time of normalise and multiply.
    """
    return _Cosines.apply(x)


class _Cosines(torch.autograd.Function):
    """D_ij = x_i·x_j / (n_i n_j). With G = ∂L/∂D and H = G + Gᵀ,

        ∂L/∂x_k  =  Σ_j H_kj x_j / (n_k n_j)  -  x_k / n_k² · Σ_j H_kj D_kj  =  (M x)_k

    Autograd multiplies G and Gᵀ each with x.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        inverse = _inverse_norms(x)
        return (x @ x.T) * inverse[:, None] * inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, G: torch.Tensor) -> torch.Tensor:
        x, D = ctx.saved_tensors
        inverse = _inverse_norms(x)
        H = G + G.T
        M = H * inverse[:, None] * inverse - torch.diag((H * D).sum(dim=1) * inverse**2)
        return M @ x


def _inverse_norms(x: torch.Tensor) -> torch.Tensor:
    """(B,), 0 for a zero vector."""
    norms = torch.linalg.vector_norm(x, dim=1)
    return norms.masked_fill(norms <= 1e-12, torch.inf).reciprocal()


def _share(*parts: nn.Module | None) -> SharedCosine:
    """Give an objective and its miner one SharedCosine in place of plain cosine and Euclidean distances, if any."""
    shared = SharedCosine()
    for part in map(of_one_process, parts):
        distance = getattr(part, "distance", None)
        if is_plain_cosine(distance) or isinstance(distance, SharedCosine):
            part.distance = shared
        elif _is_plain_euclidean(distance) or isinstance(distance, SharedEuclidean):
            part.distance = SharedEuclidean(shared)
    return shared


def is_plain_cosine(distance: Any) -> bool:
    """Whether it is PML's CosineSimilarity as it comes, without recorded statistics."""
    return type(distance) is CosineSimilarity and _as_it_comes(distance)


def _is_plain_euclidean(distance: Any) -> bool:
    return type(distance) is LpDistance and _as_it_comes(distance)


def _as_it_comes(distance: Any) -> bool:
    arguments = (distance.p, distance.power, distance.normalize_embeddings)
    return arguments == (2, 1, True) and not distance.collect_stats
