"""The paper's objectives with their miners, from PML's parts."""

from __future__ import annotations

from pytorch_metric_learning import losses, miners
from torch import nn

from pml_s2sd.miners import RhoDistanceWeightedMiner

Objective = tuple[nn.Module, nn.Module]


def multisimilarity(classes: int, alpha: float, beta: float, base: float, epsilon: float) -> Objective:
    return losses.MultiSimilarityLoss(alpha, beta, base), miners.MultiSimilarityMiner(epsilon)


def margin(classes: int, margin: float, beta: float, cutoff: float, p: float = 0.0) -> Objective:
    """Margin loss with a learnable β a class. R-Margin with p > 0.

    The miner with p = 0 is distance-weighted sampling of one triplet an anchor. PML's own loses
    anchors to rounding in the large auxiliary spaces.
    """
    loss = losses.MarginLoss(margin=margin, beta=beta, learn_beta=True, num_classes=classes)
    return loss, RhoDistanceWeightedMiner(p, cutoff)


OBJECTIVES = {"multisimilarity": multisimilarity, "margin": margin, "rmargin": margin}
