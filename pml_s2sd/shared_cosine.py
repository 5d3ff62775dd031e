"""SharedCosine, SharedEuclidean: the similarities of a batch, computed once for all who ask."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from torch import nn

from .distributed import of_one_process

CDIST_DIFFERENCES = 25
"""Up to this many rows torch.cdist takes differences, above it a matrix product."""


class SharedCosine(CosineSimilarity):
    """PML's CosineSimilarity for a space's miner, objective and distillation, which ask for the same matrix in turn.

    For the batch that is announced by `expect`, until `forget`, it is computed at the first request; each
    who asks through `forward` gets a copy, as some of PML's classes write into it. With references, such as
    proxies, it is `Cosine`. What is not of that batch, not in float32 or wider, or under autocast, is
    computed by PML.

    Source: `pytorch_metric_learning.distances.CosineSimilarity`.

    Example:
        >>> import torch
        >>> from pml_s2sd.shared_cosine import SharedCosine
        >>> distance = SharedCosine()
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
        >>> distance.expect(x)
        >>> distance(x)
        tensor([[1., 0.],
                [0., 1.]])
        >>> distance.of(x) is distance.of(x)
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def expect(self, x: torch.Tensor) -> None:
        """Share the similarities of this batch, (B, d), from now on."""
        self._batch: torch.Tensor | None = x
        self._similarities: torch.Tensor | None = None

    def forget(self) -> None:
        """Let go of the batch and its graph."""
        self._batch = self._similarities = None

    def forward(self, query_emb: torch.Tensor, ref_emb: torch.Tensor | None = None) -> torch.Tensor:
        if ref_emb is None or ref_emb is query_emb:
            similarities = self.of(query_emb)
            return super().forward(query_emb, ref_emb) if similarities is None else similarities.clone()
        if self._is_shared(query_emb) and ref_emb.ndim == 2 and ref_emb.dtype == query_emb.dtype:
            return Cosine.apply(query_emb, ref_emb)
        return super().forward(query_emb, ref_emb)

    def of(self, x: torch.Tensor) -> torch.Tensor | None:
        """D^x of the batch, the same tensor at every call, not to be written into; None where PML computes it."""
        if not self._is_shared(x):
            return None
        if self._similarities is None:
            with torch.set_grad_enabled(x.requires_grad):  # a miner, which asks first, does so under no_grad
                self._similarities = CosineWithItself.apply(x)
        return self._similarities

    @property
    def known(self) -> torch.Tensor | None:
        """D^x of the batch where somebody has asked for it, else None."""
        return self._similarities

    def _is_shared(self, x: torch.Tensor) -> bool:
        if x is not self._batch or x.dtype not in (torch.float32, torch.float64):
            return False
        return not torch.is_autocast_enabled(x.device.type)


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
        >>> from pml_s2sd.shared_cosine import SharedCosine, SharedEuclidean
        >>> cosine, x = SharedCosine(), torch.eye(26)
        >>> cosine.expect(x)
        >>> SharedEuclidean(cosine)(x)[0, :3]
        tensor([0.0000, 1.4142, 1.4142])
    """

    def __init__(self, cosine: SharedCosine) -> None:
        super().__init__()
        self.cosine = cosine

    def forward(self, query_emb: torch.Tensor, ref_emb: torch.Tensor | None = None) -> torch.Tensor:
        own_references = ref_emb is None or ref_emb is query_emb
        cosines = self.cosine.of(query_emb) if own_references and len(query_emb) > CDIST_DIFFERENCES else None
        if cosines is None:
            return super().forward(query_emb, ref_emb)
        squares = cosines.detach().diagonal()
        squared = squares[:, None] + squares - 2 * cosines
        equal = squared <= 0  # where the root has no derivative; as torch.cdist's, it is 0
        return squared.masked_fill(equal, 1).sqrt().masked_fill(equal, 0)


class CosineWithItself(torch.autograd.Function):
    """D = x xᵀ / (n nᵀ), n the norms of the rows, at least 1e-12: one matrix product, and one for the gradient,

    ∂D/∂x · G = ( S / (n nᵀ) - diag(Σ_columns S ∘ D / n²) ) x,  S = G + Gᵀ,

    where PML's way, normalise and multiply, takes three and passes over (B, d). Zero vectors get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        inverse = _inverse_norms(x)
        D = (x @ x.T) * inverse[:, None] * inverse
        ctx.save_for_backward(x, D)
        return D

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        x, D = ctx.saved_tensors
        inverse = _inverse_norms(x)  # anew, so that it can be differentiated once more
        symmetric = gradient + gradient.T
        along = (symmetric * D).sum(1) * inverse**2
        return torch.addmm(along[:, None] * x, symmetric * inverse[:, None] * inverse, x, beta=-1)


class Cosine(torch.autograd.Function):
    """D = x rᵀ / (n_x n_rᵀ) of samples with references, proxies for one: without PML's normalised copies and their
    gradients' passes over (B, d) and (R, d),

    ∂D/∂x · G = S r - diag(Σ_columns G ∘ D / n_x²) x,  S = G / (n_x n_rᵀ),  and so for r.

    Zero vectors get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
        D = (x @ ref.T) * _inverse_norms(x)[:, None] * _inverse_norms(ref)
        ctx.save_for_backward(x, ref, D)
        return D

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, ref, D = ctx.saved_tensors
        of_x, of_ref = _inverse_norms(x), _inverse_norms(ref)  # anew, so that it can be differentiated once more
        scaled, along = gradient * of_x[:, None] * of_ref, gradient * D
        into_x = torch.addmm((along.sum(1) * of_x**2)[:, None] * x, scaled, ref, beta=-1)
        if not ctx.needs_input_grad[1]:
            return into_x, None
        return into_x, torch.addmm((along.sum(0) * of_ref**2)[:, None] * ref, scaled.T, x, beta=-1)


def _inverse_norms(x: torch.Tensor) -> torch.Tensor:
    norms = torch.linalg.vector_norm(x, dim=1)
    return torch.where(norms > 1e-12, 1 / norms, 0)


def share(*parts: nn.Module | None) -> SharedCosine | None:
    """Give an objective and its miner one SharedCosine in place of plain cosine and Euclidean distances, if any."""
    shared = SharedCosine()
    replaced = False
    for part in map(of_one_process, parts):
        distance = getattr(part, "distance", None)
        if is_plain_cosine(distance):
            part.distance = shared
        elif _is_plain_euclidean(distance):
            part.distance = SharedEuclidean(shared)
        else:
            continue
        replaced = True
    return shared if replaced else None


def is_plain_cosine(distance: Any) -> bool:
    """Whether it is PML's CosineSimilarity as it comes, without recorded statistics."""
    return type(distance) is CosineSimilarity and _is_plain(distance)


def _is_plain_euclidean(distance: Any) -> bool:
    return type(distance) is LpDistance and _is_plain(distance)


def _is_plain(distance: Any) -> bool:
    as_it_comes = (distance.p, distance.power, distance.normalize_embeddings) == (2, 1, True)
    return as_it_comes and not distance.collect_stats
