"""Similarity: a PML distance, as D of the S2SD objective."""

from __future__ import annotations

import torch
from pytorch_metric_learning.distances import BaseDistance

from .distillation import Comparison


class Similarity:
    """D^x: the similarities of samples to each other, or to references; larger means more similar.

        D = ±distance(x, ref),  minus where small means similar (`LpDistance`, `SNRDistance`)

    In two steps, so that what concerns one sample is done once: `prepare` the samples, or a `comparison` of them,
    then call. Both compute in float32 or wider, also under autocast.

    Args:
        distance: a PML distance.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.distances import CosineSimilarity
        >>> from pml_s2sd._similarity import Similarity
        >>> D = Similarity(CosineSimilarity())
        >>> x = D.prepare(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        >>> D(x, x)
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(self, distance: BaseDistance) -> None:
        self.distance = distance

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """x of shape (B, d), normalised where the distance normalises, float32 or wider."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            # A zero vector has no direction to turn; normalising would divide its gradient by 1e-12.
            if x.requires_grad:
                x = torch.where((x == 0).all(dim=1, keepdim=True), x.detach(), x)
            return self.distance.maybe_normalize(x)

    def comparison(self, x: torch.Tensor, ref: torch.Tensor) -> Comparison:
        """Samples (B, d) and references (R, d), which may be one tensor, prepared."""
        prepared = self.prepare(x)
        return Comparison(prepared, prepared if ref is x else self.prepare(ref))

    def __call__(self, x: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
        """D of prepared samples, (B, d), to prepared references, (R, d): (B, R)."""
        with torch.autocast(x.device.type, enabled=False):
            return self._larger_is_closer(self.distance.compute_mat(x, ref))

    def of_pairs(self, x: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
        """D of each prepared sample, (B, d), to the prepared reference beside it, (B, d): (B,)."""
        with torch.autocast(x.device.type, enabled=False):
            return self._larger_is_closer(self.distance.pairwise_distance(x, ref))

    def _larger_is_closer(self, D: torch.Tensor) -> torch.Tensor:
        if self.distance.power != 1:
            D = D**self.distance.power
        return D if self.distance.is_inverted else -D
