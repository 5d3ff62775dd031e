"""AutomaticWeights: the sum of the S2SD objective without a γ to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ._call import Call
from ._gradient_balance import GradientBalance
from ._one_process import OneProcess
from ._teacher_selection import TeacherSelection
from .distillation import Weigh

RATIO = 2.0
"""r: the distillation term's gradient is twice as long as the objective's."""


class AutomaticWeights(nn.Module):
    """L(z) + (1/m) Σ_i L(a_i)  +  Σ_i w_i KL(D^z, D^{a_i})  +  γ_F · KL(D^z, D^φ),

    where the gradients of L(z) and of the second sum into z are brought to a ratio by `GradientBalance`, the latter
    twice as long, in the one backward pass. A teacher is followed only while its space retrieves better than the
    base space, and not, or less than in full, while teachers lead by little: w is `TeacherSelection`'s.

    References get no gradient from the balanced term. Who retrieves better is judged by labels, those of references
    too; without any, as in SelfSupervisedLoss, sample i and reference i are the two of one class.

    The methods are those of `FixedWeights`.

    Args:
        teachers: m, the number of auxiliary spaces.
        feature: γ_F.
    """

    terms_of_students = (("distill",), ("feature",))
    distill = "auto"

    def __init__(self, teachers: int, feature: float) -> None:
        super().__init__()
        self.feature = feature
        self.selection = TeacherSelection(teachers)
        self.balance = GradientBalance(RATIO)

    def check(self, call: Call) -> None:
        references = None if call.with_itself else call.ref
        two_views = (
            references is not None
            and "indices_tuple" not in call.arguments
            and len(references.embeddings) == len(call.batch.embeddings)
        )
        if call.labels is None and not two_views:
            raise ValueError(
                "an automatic weight needs labels, or as many references as samples, to see which spaces retrieve "
                "better; give labels, or set distill_weight to a number"
            )
        if call.labels is not None and references is not None and "ref_labels" not in call.arguments:
            raise ValueError("an automatic weight needs ref_labels where ref_emb and labels are given; give them")

    def students(self, step: OneProcess) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        z = step.rows.embeddings
        for_objective, balanced = self.balance.split(z, step.sum_over_processes)
        columns = step.student_columns(balanced)
        if not step.call.with_itself:
            columns = columns.detach()
        return for_objective, [(balanced, columns), (z, step.student_columns(z))]

    def of_teachers(self, step: OneProcess) -> Weigh | None:
        labels, ref_labels = step.classes()
        self_columns = step.self_columns()
        learn = torch.is_grad_enabled()  # without gradients a call measures and trains nothing

        def weigh(similarities: Sequence[torch.Tensor], rows: slice) -> torch.Tensor:
            weights = self.selection(
                similarities,
                labels[rows],
                ref_labels,
                self_columns[rows],
                learn=learn,
                sum_over_processes=step.sum_over_processes,
            )
            self.balance.strength = weights.sum()
            return weights

        return weigh

    def total(self, base: torch.Tensor, aux: torch.Tensor | None, kl: Mapping[str, torch.Tensor]) -> torch.Tensor:
        total = base if aux is None else base + aux
        if "distill" in kl:
            total = total + kl["distill"]
        if "feature" in kl:
            total = total + self.feature * kl["feature"]
        return total

    def found(self) -> dict[str, torch.Tensor]:
        return {"distill_weight": self.balance.weight}
