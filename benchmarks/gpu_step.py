"""A loss step on a device: as PML alone has it, with the setting that we recommend, and with the paper's MSDF."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from gpu_table import WAYS
from pytorch_metric_learning import losses, miners
from torch import nn

from pml_s2sd import s2sd

NEEDS_A_CARD = "needs a card"
"""In place of a figure, in a dry run on the CPU."""


class Sizes(NamedTuple):
    """A batch of `rows` features (F), embedded in `size` dimensions, of so many classes; MSDF's auxiliary spaces."""

    rows: int
    features: int
    size: int
    classes: int
    aux_sizes: tuple[int, ...] = (512, 1024, 1536, 2048)


REFERENCE, SMALL = Sizes(112, 2048, 128, 100), Sizes(12, 16, 4, 6, aux_sizes=(6, 10))


class Objective(NamedTuple):
    """An objective of PML, made anew for each use, and the class of its miner."""

    loss: Callable[[Sizes], nn.Module]
    miner: Callable[[], nn.Module | None]


READS_NOTHING = Objective(lambda sizes: losses.NormalizedSoftmaxLoss(sizes.classes, sizes.size), lambda: None)
"""One of those that PML computes without reading a value on the host."""
MULTI_SIMILARITY = Objective(
    lambda sizes: losses.MultiSimilarityLoss(2, 40, 0.5), lambda: miners.MultiSimilarityMiner(0.1)
)


class Plain(nn.Module):
    """An objective and its miner, as a loop without S2SD calls them."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss(embeddings, labels, None if self.miner is None else self.miner(embeddings, labels))


def head_and_loss(
    way: str, objective: Objective, sizes: Sizes, device: str | torch.device
) -> tuple[nn.Module, nn.Module]:
    """What stands on the trunk, and what is called with what it returns."""
    loss, miner = objective.loss(sizes), objective.miner()
    if way == WAYS[0]:
        return nn.Linear(sizes.features, sizes.size).to(device), Plain(loss, miner).to(device)
    variant, aux_sizes = (None, None) if way == "recommended" else (way, sizes.aux_sizes)
    embedder, loss_func = s2sd(
        loss, sizes.features, sizes.size, variant, aux_sizes=aux_sizes, miner=miner, feature_delay=0
    )
    return embedder.to(device), loss_func.to(device)


class LossStep:
    """Head, losses and their gradients on made-up features of a trunk; calling it runs one step.

    No tensor of a step outlives it but the gradients: a CUDA graph must not meet autograd nodes of another stream.

    Attributes:
        leaves: the features and all parameters; the step fills their gradients.
    """

    def __init__(self, way: str, objective: Objective, sizes: Sizes, device: str | torch.device) -> None:
        torch.manual_seed(0)
        self.head, self.loss = head_and_loss(way, objective, sizes, device)
        self.features = torch.randn(sizes.rows, sizes.features).to(device).requires_grad_()
        self.labels = torch.arange(sizes.rows, device=device) // 2 % sizes.classes
        self.leaves = [self.features, *self.head.parameters(), *self.loss.parameters()]

    def __call__(self) -> torch.Tensor:
        """The loss, detached; gradients are new tensors."""
        self.clear()
        loss = self.value(self.features, self.labels)
        loss.backward()
        return loss.detach()

    def clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def value(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss(self.head(features), labels)

    def gradients(self) -> list[torch.Tensor]:
        """Of the last step."""
        return [leaf.grad for leaf in self.leaves if leaf.grad is not None]


def largest_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Of any entry, over the largest entry of its tensor."""
    differences = [
        float((x - y).abs().max() / y.abs().max().clamp_min(1e-12)) for x, y in zip(found, expected, strict=True)
    ]
    return max(differences)
