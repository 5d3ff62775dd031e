"""FixedWeights: the sum of the S2SD objective, with numbers as weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ._call import Call
from ._one_process import OneProcess
from .distillation import Weigh


class FixedWeights(nn.Module):
    """½ · [ L(z) + (1/m) Σ_i L(a_i) ]  +  γ · (1/m) Σ_i KL(D^z, D^{a_i})  +  γ_F · KL(D^z, D^φ)

    `AutomaticWeights` has the same methods.

    Args:
        distill: γ.
        feature: γ_F.
    """

    terms_of_students = (("distill", "feature"),)
    """The terms that each student of `students` learns."""

    def __init__(self, distill: float, feature: float) -> None:
        super().__init__()
        self.distill, self.feature = distill, feature

    def check(self, call: Call) -> None:
        """Raise where a call lacks what these weights are found from."""

    def students(self, step: OneProcess) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """The base embeddings for the objective, and the students of distillation with what they are compared with."""
        z = step.rows.embeddings
        return z, [(z, step.student_columns(z))]

    def of_teachers(self, step: OneProcess) -> Weigh | None:
        """How much each auxiliary space is followed; None: all alike."""
        return None

    def total(self, base: torch.Tensor, aux: torch.Tensor | None, kl: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The objective, of L(z), (1/m) Σ_i L(a_i) and the distillation terms that there are."""
        total = base if aux is None else 0.5 * (base + aux)
        if "distill" in kl:
            total = total + self.distill * kl["distill"]
        if "feature" in kl:
            total = total + self.feature * kl["feature"]
        return total

    def found(self) -> dict[str, torch.Tensor]:
        """The weights that were found, for `S2SDLoss.terms`."""
        return {}
