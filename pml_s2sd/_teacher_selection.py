"""TeacherSelection: which spaces retrieve better than the base space, and so have something to teach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ._kept_state import keep
from .distillation import at_self_columns

MEMORY = 0.98
"""Share of the past in the running sums: about fifty steps count."""
LEAD, FULL_LEAD = 0.05, 0.1
"""Teachers are followed from the first lead on, and in full from the second."""


class TeacherSelection(nn.Module):
    """How much each teacher is followed: alike those that retrieve better than the base space, the others not.

        w_i = f(A) · [s_i > s_z] / Σ_j [s_j > s_z],   0 where no teacher is better
        A   = (1/m) Σ_i max(0, s_i - s_z) / (1 - s_z),   the teachers' lead: the share that they find of what z misses
        f   = 0 up to A = 0.05, 1 from 0.1 on, a straight line between

    A small lead is that of any larger space over features that tell little yet, as a network's that is
    trained from scratch: to follow it would keep the features as they are.

    s is the mean reciprocal rank of a sample's nearest neighbour of its own class, among what it is compared
    with but itself, over the steps so far, of which the last fifty or so count. Ties count against a space, and so
    does what is not a number: a space that has collapsed or overflowed is not better. Labels decide whether a
    teacher is followed, never what it teaches: its distribution stays that of its similarities.

    Args:
        teachers: their number, m.

    Attributes:
        sums: (1 + m, 2), float32 on the similarities' device, the base space first: running sums of reciprocal ranks
            and of the samples that have them; part of the state_dict.

    Example:
        >>> import torch
        >>> from pml_s2sd._teacher_selection import TeacherSelection
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> right = (labels[:, None] == labels).float()
        >>> unsure = torch.eye(4)[[1, 2, 3, 0]]  # finds the one of the own class for two of four
        >>> TeacherSelection(teachers=2)([unsure, -right, right], labels, labels, self_columns=torch.arange(4))
        tensor([0., 1.])
    """

    sums: torch.Tensor

    def __init__(self, teachers: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(1 + teachers, 2))

    @property
    def scores(self) -> torch.Tensor:
        """(1 + m,), s of the base space and of the teachers; 0 before the first step."""
        return self.sums[:, 0] / self.sums[:, 1].clamp(min=torch.finfo(torch.float32).tiny)

    def forward(
        self,
        similarities: Sequence[torch.Tensor],
        labels: torch.Tensor,
        ref_labels: torch.Tensor,
        self_columns: torch.Tensor,
        *,
        learn: bool = True,
        sum_over_processes: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    ) -> torch.Tensor:
        """w, (m,), after this step's ranks.

        Args:
            similarities: of the base space and of the teachers, (B, R) each.
            labels: those of the rows, (B,).
            ref_labels: those of the columns, (R,).
            self_columns: (B,), the column in which each row meets itself, which is no neighbour; -1 without one.
            learn: whether this step counts later.
        """
        device = similarities[0].device
        if self.sums.device != device or self.sums.dtype != torch.float32:  # steps of 2 % vanish in bfloat16
            self.sums = self.sums.to(device, torch.float32)
        labels, ref_labels, self_columns = (x.to(device) for x in (labels, ref_labels, self_columns))
        now = torch.stack([reciprocal_ranks(D, labels, ref_labels, self_columns) for D in similarities])
        now = sum_over_processes(now)
        sums = torch.where(now[:, 1:] > 0, MEMORY * self.sums + (1 - MEMORY) * now, self.sums)
        score, *scores = (sums[:, 0] / sums[:, 1].clamp(min=torch.finfo(torch.float32).tiny)).unbind()
        if learn:
            keep(self.sums, sums)
        of_teachers = torch.stack(scores)
        better = (of_teachers > score).float()
        lead = (better * (of_teachers - score)).mean() / (1 - score).clamp(min=torch.finfo(torch.float32).tiny)
        followed = ((lead - LEAD) / (FULL_LEAD - LEAD)).clamp(0, 1)
        return followed * better / better.sum().clamp(min=1)


def reciprocal_ranks(
    D: torch.Tensor, labels: torch.Tensor, ref_labels: torch.Tensor, self_columns: torch.Tensor
) -> torch.Tensor:
    """(Σ 1 / rank of the nearest of the own class, number of rows that have one); it ranks behind those as near."""
    others = at_self_columns(D.detach().float(), self_columns, -torch.inf)
    of_class = at_self_columns(labels[:, None] == ref_labels, self_columns, False)
    nearest = others.masked_fill(~of_class, -torch.inf).amax(dim=1, keepdim=True)
    counted = of_class.any(dim=1)
    ranks = 1 + (~(others < nearest) & (labels[:, None] != ref_labels)).sum(dim=1)
    return torch.stack([(counted / ranks).sum(), counted.sum()])
