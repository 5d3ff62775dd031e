"""GradientBalance: the objective's and a distillation term's gradients, brought to a ratio where they meet, at the
embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Sum = Callable[[torch.Tensor], torch.Tensor]


class GradientBalance:
    """Splits embeddings so that the distillation term's gradient has a set length beside the objective's.

        gradient into z  =  g + w · g_KL,   w = r · s · |g| / |g_KL|

    g is the objective's gradient, g_KL that of the term, s its strength, norms are over the whole batch, of all
    processes. Forward is the identity; the norms are taken in the one backward pass there is,
    without waiting for the device. A common factor of the gradients, such as a loss scale, or the
    1/n of gradient accumulation, leaves w as it is. Where the term has no gradient, w is 0. To a second derivative w is
    a constant.

    Args:
        ratio: r.

    Attributes:
        strength: s, a float32 scalar, 1 after `split`; what is written there before the backward pass counts.
        weight: w of the last backward pass, a float32 scalar; 0 before the first. A backward pass whose gradients
            overflow, a step that a gradient scaler skips, leaves it as it was.

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
        self.strength = torch.ones(())
        self.weight = torch.zeros(())

    @torch.compiler.disable  # the backward pass writes the weight, which a compiled graph cannot
    def split(self, x: torch.Tensor, sum_over_processes: Sum = lambda x: x) -> tuple[torch.Tensor, torch.Tensor]:
        """x for the objective, and x for the term."""
        self.strength = torch.ones((), device=x.device)
        self.weight = self.weight.to(x.device, copy=True)  # the step's own: the last step's terms keep theirs
        return _Balanced.apply(x, self.ratio, self.strength, self.weight, sum_over_processes)


class _Balanced(torch.autograd.Function):
    @staticmethod
    def forward(
        x: torch.Tensor, ratio: float, strength: torch.Tensor, weight: torch.Tensor, sum_over_processes: Sum
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, ctx.ratio, ctx.strength, ctx.weight, ctx.sum_over_processes = inputs

    @staticmethod
    def backward(ctx: Any, of_objective: torch.Tensor, of_term: torch.Tensor) -> tuple:
        gradients = [g if g.dtype == torch.float64 else g.float() for g in (of_objective, of_term)]
        squares = ctx.sum_over_processes(torch.stack([g.detach().square().sum() for g in gradients]))
        weight = ctx.ratio * ctx.strength * (squares[0] / squares[1]).sqrt()
        weight = torch.where(squares[1] > 0, weight, 0)
        ctx.weight.copy_(torch.where(weight.isfinite(), weight, ctx.weight))
        total = gradients[0] + weight * gradients[1]
        return total.to(of_objective.dtype), None, None, None, None
