"""Balance: the objective's and the distillation's gradients, brought to a ratio where they meet, at the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from .distributed import several_processes


class Balance:
    """Splits embeddings so that each distillation term's gradient has a set length beside the objective's.

        gradient into z  =  g + Σ_k w_k · g_k,   w_k = r · s_k · |g| / |g_k|

    g is the objective's gradient, g_k that of the k-th term, s_k its strength, norms are over the whole batch, of all
    processes. Forward is the identity; the norms are taken in the one backward pass there is,
    without waiting for the device. A common factor of the gradients, such as a loss scale, or the
    1/n of gradient accumulation, leaves w_k as it is. Where a term has no gradient, w_k is 0.

    Args:
        ratio: r.

    Attributes:
        strengths: s_k, (terms,), float32, 1 after `split`; what is written there before the backward pass counts.
        weights: w_k of the last backward pass, (terms,), float32; zeros before the first.

    Source: after the idea of Chen et al., "GradNorm", ICML 2018, arXiv 1711.02257, where the weights that
        bring gradient norms to a ratio are learnt; here they are computed.

    Example:
        >>> import torch
        >>> from pml_s2sd.balance import Balance
        >>> balance = Balance(ratio=0.5)
        >>> x = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> for_objective, for_distillation = balance.split(x, terms=1)
        >>> (for_objective.sum() + 100 * for_distillation[0].sum()).backward()
        >>> x.grad, balance.weights
        (tensor([[1.5000, 1.5000]]), tensor([0.0050]))
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.strengths = torch.ones(0)
        self.weights = torch.zeros(0)

    @torch.compiler.disable  # the backward pass writes weights, which a compiled graph cannot
    def split(self, x: torch.Tensor, terms: int) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """x for the objective, and x for each of the terms."""
        self.strengths, self.weights = torch.ones(terms, device=x.device), torch.zeros(terms, device=x.device)
        for_objective, *for_terms = _Balanced.apply(x, self.ratio, self.strengths, self.weights)
        return for_objective, for_terms


class _Balanced(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, ratio: float, strengths: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.ratio, ctx.strengths, ctx.weights = ratio, strengths, weights
        return tuple(x.view_as(x) for _ in range(1 + len(weights)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_objective: torch.Tensor, *of_terms: torch.Tensor) -> tuple:
        gradients = [g if g.dtype == torch.float64 else g.float() for g in (of_objective, *of_terms)]
        squares = torch.stack([g.square().sum() for g in gradients])
        if several_processes():
            dist.all_reduce(squares)
        weights = ctx.ratio * ctx.strengths * (squares[0] / squares[1:]).sqrt()
        weights = torch.where(squares[1:] > 0, weights, 0)
        ctx.weights.copy_(weights)
        total = gradients[0] + sum(w * g for w, g in zip(weights, gradients[1:], strict=True))
        return total.to(of_objective.dtype), None, None, None
