"""SharedCosine: the cosine similarities of a batch, computed once for all who ask."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch import nn


class SharedCosine(CosineSimilarity):
    """PML's CosineSimilarity for a space's miner, objective and distillation, which ask for the same matrix in turn.

    For the batch that is announced by `expect`, until `forget`, it is computed at the first request; each
    who asks through `forward` gets a copy, as some of PML's classes write into it. Everything else, and
    what is not in float32 or wider or under autocast, is computed by PML.

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
        similarities = self.of(query_emb) if ref_emb is None or ref_emb is query_emb else None
        return super().forward(query_emb, ref_emb) if similarities is None else similarities.clone()

    def of(self, x: torch.Tensor) -> torch.Tensor | None:
        """D^x of the batch, the same tensor at every call, not to be written into; None where PML computes it."""
        if x is not self._batch or x.dtype not in (torch.float32, torch.float64):
            return None
        if torch.is_autocast_enabled(x.device.type):
            return None
        if self._similarities is None:
            with torch.set_grad_enabled(x.requires_grad):  # a miner, which asks first, does so under no_grad
                self._similarities = CosineWithItself.apply(x)
        return self._similarities


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


def _inverse_norms(x: torch.Tensor) -> torch.Tensor:
    norms = torch.linalg.vector_norm(x, dim=1)
    return torch.where(norms > 1e-12, 1 / norms, 0)


def share(*parts: nn.Module | None) -> SharedCosine | None:
    """Give an objective and its miner one SharedCosine in place of a plain CosineSimilarity, if they have one."""
    shared = SharedCosine()
    inside = [_unwrapped(part) for part in parts]
    with_cosine = [part for part in inside if is_plain_cosine(getattr(part, "distance", None))]
    for part in with_cosine:
        part.distance = shared
    return shared if with_cosine else None


def _unwrapped(part: nn.Module | None) -> Any:
    if isinstance(part, DistributedLossWrapper):
        return part.loss
    return part.miner if isinstance(part, DistributedMinerWrapper) else part


def is_plain_cosine(distance: Any) -> bool:
    """Whether it is PML's CosineSimilarity as it comes, without recorded statistics."""
    return (
        type(distance) is CosineSimilarity
        and (distance.p, distance.power, distance.normalize_embeddings) == (2, 1, True)
        and not distance.collect_stats
    )
