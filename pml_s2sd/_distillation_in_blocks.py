"""`mean_divergences` of a large batch, a block of rows at a time: memory grows with B, not with B²."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .distillation import Comparison, Matrix, Teacher, row_log_probs, rows_of

BLOCK_ENTRIES = 2**20
"""Entries of a block of rows."""


@torch.compiler.disable  # it differentiates as it goes
def mean_divergences_in_blocks(
    D: Matrix,
    student: Comparison,
    terms: Sequence[Sequence[Teacher]],
    temperature: float,
    self_columns: torch.Tensor | None,
) -> list[torch.Tensor]:
    """As `pml_s2sd.distillation.mean_divergences`."""
    return list(_DivergencesInBlocks.apply(D, terms, temperature, self_columns, *student))


class _DivergencesInBlocks(torch.autograd.Function):
    """The gradient with respect to D^z is known in closed form,

    ∂ (1/m) Σ_i KL(D^z, D^{t_i}) / ∂D^z = T / B · (1/m) Σ_i ( softmax(D^z / T) - softmax(D^{t_i} / T) ),

    and taken on to z by D's own derivative while the block is at hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        D: Matrix,
        terms: Sequence[Sequence[Teacher]],
        T: float,
        self_columns: torch.Tensor | None,
        x: torch.Tensor,
        ref: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        B, R = len(x), len(ref)
        with_gradient = any(ctx.needs_input_grad)
        values = [x.new_zeros(()) for _ in terms]
        gradients = [(torch.zeros_like(x), torch.zeros_like(ref)) for _ in terms] if with_gradient else []
        block_rows = max(1, BLOCK_ENTRIES // R)
        for start in range(0, B, block_rows):
            rows = slice(start, start + block_rows)
            block, columns = x[rows].detach().requires_grad_(), ref.detach().requires_grad_()
            with torch.set_grad_enabled(with_gradient):
                similarities = D(block, columns)
            left_out = None if self_columns is None else self_columns[rows]
            log_p = row_log_probs(similarities.detach(), T, left_out)
            p = log_p.exp()
            for k, teachers in enumerate(terms):
                toward_p = torch.zeros_like(p) if with_gradient else None
                for teacher in teachers:
                    log_q = row_log_probs(rows_of(D, teacher, rows), T, left_out)
                    q = log_q.exp()
                    values[k] += T**2 / (B * len(teachers)) * torch.sum(q * log_q.sub_(log_p))
                    if toward_p is not None:
                        toward_p += q.sub_(p).div_(-len(teachers))
                if toward_p is not None:
                    wanted = (block, columns)
                    into_block, into_columns = torch.autograd.grad(
                        similarities, wanted, (T / B) * toward_p, retain_graph=k + 1 < len(terms)
                    )
                    gradients[k][0][rows] += into_block
                    gradients[k][1].add_(into_columns)
        ctx.save_for_backward(*(g for pair in gradients for g in pair))
        return tuple(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *of_values: torch.Tensor) -> tuple:
        saved = ctx.saved_tensors
        into_x = sum(g * of_value for g, of_value in zip(saved[0::2], of_values, strict=True))
        into_ref = sum(g * of_value for g, of_value in zip(saved[1::2], of_values, strict=True))
        return None, None, None, None, into_x, into_ref
