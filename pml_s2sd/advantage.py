"""Advantage: which spaces retrieve better than the base space, and so have something to teach."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from .distributed import several_processes

MEMORY = 0.98
"""Share of the past in the running mean of the scores: about fifty steps."""
LEAD, FULL_LEAD = 0.05, 0.1
"""Teachers are followed from the first lead on, and in full from the second."""


class Advantage(nn.Module):
    """How much each teacher is followed: alike those that retrieve better than the base space, the others not.

        w_i = f(A) · [s_i > s_z] / Σ_j [s_j > s_z],   0 where no teacher is better
        A   = (1/m) Σ_i max(0, s_i - s_z) / (1 - s_z),   the teachers' lead: the share that they find of what z misses
        f   = 0 up to A = 0.05, 1 from 0.1 on, a straight line between

    A small lead is that of any larger space over features that tell little yet, as a network's that is
    trained from scratch: to follow it would keep the features as they are.

    s is the mean reciprocal rank of a sample's nearest neighbour of its own class, in the batch, as a
    running mean over the steps that had any. Ties count against a space, and so does what is not a number:
    a space that has collapsed or overflowed has no advantage. Labels decide whether a teacher is followed,
    never what it teaches: its distribution stays that of its similarities.

    Args:
        teachers: their number, m.

    Attributes:
        scores: (1 + m,), float32 on the similarities' device, the running means, the base space's first, 0 before
            the first; part of the state_dict.

    Example:
        >>> import torch
        >>> from pml_s2sd.advantage import Advantage
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> right = (labels[:, None] == labels).float()
        >>> unsure = torch.eye(4)[[1, 2, 3, 0]]  # finds the one of the own class for two of four
        >>> Advantage(teachers=2)([unsure, -right, right], labels, labels, first_self=0)
        tensor([0., 1.])
    """

    scores: torch.Tensor

    def __init__(self, teachers: int) -> None:
        super().__init__()
        self.register_buffer("scores", torch.zeros(1 + teachers))

    def forward(
        self,
        similarities: Sequence[torch.Tensor],
        labels: torch.Tensor,
        ref_labels: torch.Tensor,
        first_self: int | None,
    ) -> torch.Tensor:
        """w, (m,), after this step's scores.

        Args:
            similarities: of the base space and of the teachers, (B, R) each.
            labels: those of the rows, (B,) or more, of which the first B count.
            ref_labels: those of the columns, (R,).
            first_self: the column in which row 0 meets itself, which is not a neighbour; None without one.
        """
        device = similarities[0].device
        if self.scores.device != device or self.scores.dtype != torch.float32:  # steps of 2 % vanish in bfloat16
            self.scores = self.scores.to(device, torch.float32)
        labels, ref_labels = labels[: len(similarities[0])].to(device), ref_labels.to(device)
        sums = torch.stack([reciprocal_ranks(D, labels, ref_labels, first_self) for D in similarities])  # (1 + m, 2)
        if several_processes():
            dist.all_reduce(sums)
        now = sums[:, 0] / sums[:, 1].clamp(min=1)
        running = torch.where(self.scores > 0, MEMORY * self.scores + (1 - MEMORY) * now, now)
        self.scores.copy_(torch.where(sums[:, 1] > 0, running, self.scores))
        base = self.scores[0]
        better = (self.scores[1:] > base).float()
        lead = (better * (self.scores[1:] - base)).mean() / (1 - base).clamp(min=torch.finfo(torch.float32).tiny)
        followed = ((lead - LEAD) / (FULL_LEAD - LEAD)).clamp(0, 1)
        return followed * better / better.sum().clamp(min=1)


def reciprocal_ranks(
    D: torch.Tensor, labels: torch.Tensor, ref_labels: torch.Tensor, first_self: int | None
) -> torch.Tensor:
    """(Σ 1 / rank of the nearest of the own class, number of rows that have one); it ranks behind those as near."""
    same = labels[:, None] == ref_labels
    others = D.detach().float()
    if first_self is not None:
        itself = first_self + torch.arange(len(D), device=D.device)[:, None]
        same = same.scatter(1, itself, False)
        others = others.scatter(1, itself, -torch.inf)
    nearest = others.masked_fill(~same, -torch.inf).amax(dim=1, keepdim=True)
    counted = same.any(dim=1)
    ranks = 1 + (~(others < nearest) & (labels[:, None] != ref_labels)).sum(dim=1)
    return torch.stack([(counted / ranks).sum(), counted.sum()])
