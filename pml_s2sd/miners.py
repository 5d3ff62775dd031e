"""RhoDistanceWeightedMiner: distance-weighted triplets, some of them turned against their own class."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.miners import DistanceWeightedMiner

from ._argument_checks import check_int, check_number


class RhoDistanceWeightedMiner(DistanceWeightedMiner):
    """Distance-weighted sampling of negatives, ρ-regularised: the miner of R-Margin.

        positive  ~  uniform over the other samples of the anchor's class
        negative  ~  w(D_an) ∝ 1 / q(max(D_an, cutoff)),  q(D) = D^(d-2) · (1 - D²/4)^((d-3)/2),
                     over the other classes' samples nearer than nonzero_loss_cutoff

    With probability p a triplet is turned: the anchor itself is its positive, and a sample drawn as
    a positive is its negative. That pushes samples of a class apart, so that a space keeps more
    directions than its training classes need.

    Without a Python loop over classes. Weights are normalised anchor by anchor in log space: in
    1,024 dimensions w ranges over hundreds of orders of magnitude, which PML's
    `DistanceWeightedMiner` brings to one scale for the whole batch, and loses anchors to rounding.
    With p = 0 it is that miner, otherwise.

    Args:
        p: the share of turned triplets, from 0 to 1. The paper's: 0.4 on CUB200, 0.35 on CARS196, 0.15
            on SOP.
        cutoff: smaller distances count as this one.
        nonzero_loss_cutoff: samples further away are no negatives.
        triplets_per_anchor: drawn independently. The paper's code draws one.
        distance: PML's ``LpDistance(p=2, power=1, normalize_embeddings=True)``, which is the default.

    Inputs: as PML's miners: embeddings (B, d), d at least 3, labels (B,), and references only with p = 0.

    Returns:
        (anchors, positives, negatives), each of shape (triplets_per_anchor · A,), int64, A the anchors that
        have both a positive and a negative; a turned triplet needs a positive alone.

    Raises:
        ValueError: on p outside [0, 1], or on references with p > 0, where an anchor is not among them.

    Source: Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric
        Learning", ICML 2020, section 5, arXiv 2002.08473; weights: Wu et al. 2017, arXiv 1706.07567, section 4.

    Example:
        >>> import torch
        >>> from pml_s2sd.miners import RhoDistanceWeightedMiner
        >>> _ = torch.manual_seed(0)
        >>> miner = RhoDistanceWeightedMiner(p=1.0)
        >>> miner(torch.randn(4, 8), torch.tensor([0, 0, 1, 1]))
        (tensor([0, 1, 2, 3]), tensor([0, 1, 2, 3]), tensor([1, 0, 3, 2]))
    """

    def __init__(
        self,
        p: float,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        triplets_per_anchor: int = 1,
        **kwargs: Any,
    ) -> None:
        check_number("p", p, at_least=0)
        if p > 1:
            raise ValueError(f"p is a probability, at most 1, got {p}")
        check_int("triplets_per_anchor", triplets_per_anchor, at_least=1)
        super().__init__(cutoff=cutoff, nonzero_loss_cutoff=nonzero_loss_cutoff, **kwargs)
        self.p = float(p)
        self.triplets_per_anchor = triplets_per_anchor

    def mine(
        self, embeddings: torch.Tensor, labels: torch.Tensor, ref_emb: torch.Tensor, ref_labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own_references = ref_labels is labels
        if self.p > 0 and not own_references:
            raise ValueError(
                "a turned triplet compares an anchor with itself, which is not among ref_emb; mine without references, "
                "or set p=0"
            )
        D = self.distance(embeddings, ref_emb)
        same = labels[:, None] == ref_labels
        positive = same.clone().fill_diagonal_(False) if own_references else same
        log_w = self.log_weights(D, embeddings.shape[1])
        log_w = log_w.masked_fill(same | (self.nonzero_loss_cutoff <= D), -torch.inf)
        has_negative = (log_w > -torch.inf).any(dim=1)

        anchors = torch.arange(len(labels), device=labels.device).repeat_interleave(self.triplets_per_anchor)
        turned = torch.rand(anchors.shape, device=anchors.device) < self.p
        kept = (positive.any(dim=1)[anchors] & (turned | has_negative[anchors])).nonzero().flatten()
        anchors, turned = anchors[kept], turned[kept]

        positives, negatives = _draw(positive.float().log()[anchors]), _draw(log_w[anchors])
        return anchors, torch.where(turned, anchors, positives), torch.where(turned, positives, negatives)

    def log_weights(self, D: torch.Tensor, embedding_size: int) -> torch.Tensor:
        """log w(D) up to a constant, float32 or wider, of distances on the unit sphere."""
        D = D.float() if D.dtype in (torch.float16, torch.bfloat16) else D
        D = D.clamp(self.cutoff, 2 - 1e-3)  # of exact opposites w is infinite
        return (2.0 - embedding_size) * D.log() - (embedding_size - 3) / 2 * (1 - D**2 / 4).log()


def _draw(log_weights: torch.Tensor) -> torch.Tensor:
    """A column of each row, with probability ∝ exp(log_weights): where log_weights plus Gumbel noise is largest."""
    uniform = torch.rand_like(log_weights).clamp_(min=torch.finfo(log_weights.dtype).tiny)
    return (log_weights - uniform.log_().neg_().log_()).argmax(dim=1)
