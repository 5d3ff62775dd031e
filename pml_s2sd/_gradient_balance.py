"""GradientBalance: the objective's and a distillation term's gradients, brought to a ratio where they meet, at the
embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ._kept_state import keep

Sum = Callable[[torch.Tensor], torch.Tensor]


class GradientBalance:
    """Splits embeddings so that the distillation term's gradient has a set length beside the objective's.

        gradient into z  =  g + w · g_KL,   w = r · s · |g| / |g_KL|

    g is the objective's gradient, g_KL that of the term, s its strength, norms are over the whole batch, of all
    processes. Forward is the identity; the norms are taken in the one backward pass there is,
    without waiting for the device. A common factor of the gradients, such as a loss scale, or the
    1/n of gradient accumulation, leaves w as it is. Where the term has no gradient, w is 0.

    Args:
        ratio: r.

    Attributes:
        strength: s, a float32 scalar, 1 after `split`; what is set before the backward pass counts.
        weight: w of the last backward pass, a float32 scalar; 0 before the first. A backward pass whose gradients
            overflow, a step that a gradient scaler skips, leaves it as it was.

    Raises:
        RuntimeError: where the gradient is differentiated once more.

    Source: after the idea of Chen et al., "GradNorm", ICML 2018, arXiv 1711.02257, where the weights that
        bring gradient norms to a ratio are learnt; here they are computed.

    Example:
        >>> import torch
        >>> from pml_s2sd._gradient_balance import GradientBalance
        >>> balance = GradientBalance(ratio=0.5)
        >>> x = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> for_objective, for_distillation = balance.split(x)
        >>> (for_objective.sum() + 100 * for_distillation.sum()).backward()
        >>> x.grad, balance.weight
        (tensor([[1.5000, 1.5000]]), tensor(0.0050))
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._step = _Step(torch.ones(()), torch.zeros(()))

    @property
    def strength(self) -> torch.Tensor:
        return self._step.strength

    @strength.setter
    def strength(self, strength: torch.Tensor) -> None:
        self._step.strength = strength

    @property
    def weight(self) -> torch.Tensor:
        return self._step.weight

    @torch.compiler.disable  # the backward pass writes the weight, which a compiled graph cannot
    def split(self, x: torch.Tensor, sum_over_processes: Sum = lambda x: x) -> tuple[torch.Tensor, torch.Tensor]:
        """x for the objective, and x for the term."""
        last = self.weight.to(x.device, copy=True)  # the step's own: the last step's terms keep theirs
        self._step = _Step(torch.ones((), device=x.device), last)
        return _Balanced.apply(x, self.ratio, self._step, sum_over_processes)


@dataclass
class _Step:
    strength: torch.Tensor
    weight: torch.Tensor


class _Balanced(torch.autograd.Function):
    @staticmethod
    def forward(
        x: torch.Tensor, ratio: float, step: _Step, sum_over_processes: Sum
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, ctx.ratio, ctx.step, ctx.sum_over_processes = inputs

    @staticmethod
    def backward(ctx: Any, of_objective: torch.Tensor, of_term: torch.Tensor) -> tuple:
        gradients = [g if g.dtype == torch.float64 else g.float() for g in (of_objective, of_term)]
        squares = ctx.sum_over_processes(torch.stack([g.detach().square().sum() for g in gradients]))
        weight = ctx.ratio * ctx.step.strength * (squares[0] / squares[1]).sqrt()
        weight = torch.where(squares[1] == 0, 0, weight)
        last = ctx.step.weight
        keep(last, torch.where(weight.isfinite(), weight, last))
        total = gradients[0] + weight * gradients[1]
        return _OnceDifferentiable.apply(total.to(of_objective.dtype)), None, None, None


class _OnceDifferentiable(torch.autograd.Function):
    """torch's once_differentiable, which torch.func does not know, with a way out."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(
            "an automatic weight is found in the backward pass, which has no derivative of its own then; for gradients "
            "of gradients set distill_weight to a number"
        )
