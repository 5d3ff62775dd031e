"""Distillation of similarities: plain functions of tensors, the KL terms of the S2SD objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

Matrix = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

PLAIN_ENTRIES = 2**22
"""Similarity matrices of more entries (B = 2048 with itself) are handled in blocks of rows."""
BLOCK_ENTRIES = 2**20
"""Entries of such a block."""


class Space(NamedTuple):
    """A batch in one embedding space: samples (B, d) and what they are compared with, (R, d)."""

    x: torch.Tensor
    ref: torch.Tensor


Teacher = Space | torch.Tensor
"""A teacher's batch, or its similarities (B, R) where they are known already."""


def mean_divergences(
    D: Matrix, student: Space, groups: Sequence[Sequence[Teacher]], temperature: float
) -> list[torch.Tensor]:
    """(1/m) Σ_i KL(D^z, D^{t_i}) over the m ≥ 1 teachers t_i of each group.

    Where D has more than `PLAIN_ENTRIES` entries, rows are handled in blocks and the gradient is
    made along with the value, so that memory grows with B, not with B²; value and gradient are
    the same. torch.compile does not trace into that case.

    Args:
        D: (x, ref) -> (B, R), the similarities of rows of x to rows of ref.
        student: z; the gradient goes into its x and ref.
        groups: teachers, each of the student's B and R; no gradient goes into them.
        temperature: T > 0.

    Returns:
        A scalar a group.

    Example:
        >>> import torch
        >>> from pml_s2sd.distillation import Space, mean_divergences
        >>> z = torch.eye(2)
        >>> mean_divergences(lambda x, ref: x @ ref.T, Space(z, z), [[Space(z, z)]], temperature=1.0)
        [tensor(0.)]
    """
    if len(student.x) * len(student.ref) > PLAIN_ENTRIES:
        return _mean_divergences_in_blocks(D, student, groups, temperature)
    log_probs = row_log_probs(D(*student), temperature)
    with torch.no_grad():
        teachers = [[t.detach() if isinstance(t, torch.Tensor) else D(*t) for t in group] for group in groups]
    return [torch.stack([divergence(log_probs, t, temperature) for t in group]).mean() for group in teachers]


def divergence(student_log_probs: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(D^z, D^t) = T² / B · Σ_rows KL( softmax(D^t / T) ‖ softmax(D^z / T) )

    Args:
        student_log_probs: `row_log_probs` of the student's similarities, (B, R). They are taken
            rather than D^z, so that several teachers share them.
        teacher: D^t, (B, R).
        temperature: T > 0.

    Returns:
        A scalar, at least 0, and 0 where student and teacher agree.

    Source: Roth et al., ICML 2021, section 3, with the T² of Hinton et al. 2015 (arXiv 1503.02531).

    Example:
        >>> import torch
        >>> from pml_s2sd.distillation import divergence, row_log_probs
        >>> D = torch.tensor([[1.0, 0.2], [0.2, 1.0]])
        >>> divergence(row_log_probs(D, temperature=1.0), D, temperature=1.0).item()
        0.0
    """
    kl = F.kl_div(student_log_probs, row_log_probs(teacher, temperature), reduction="batchmean", log_target=True)
    return temperature**2 * kl


def row_log_probs(similarities: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(D / T) over each row, in D's dtype."""
    return F.log_softmax(similarities / temperature, dim=1)


@torch.compiler.disable
def _mean_divergences_in_blocks(
    D: Matrix, student: Space, groups: Sequence[Sequence[Teacher]], temperature: float
) -> list[torch.Tensor]:
    return list(_BlockwiseDivergences.apply(D, groups, temperature, *student))


class _BlockwiseDivergences(torch.autograd.Function):
    """`mean_divergences`, a block of rows at a time; the gradient with respect to D^z is known in closed form,

    ∂ (1/m) Σ_i KL(D^z, D^{t_i}) / ∂D^z = T / B · ( softmax(D^z / T) - (1/m) Σ_i softmax(D^{t_i} / T) ),

    and taken on to z by D's own derivative while the block is at hand.
    """

    @staticmethod
    def forward(
        ctx: Any, D: Matrix, groups: Sequence[Sequence[Teacher]], T: float, x: torch.Tensor, ref: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        B, R = len(x), len(ref)
        with_gradient = any(ctx.needs_input_grad)
        values = [x.new_zeros(()) for _ in groups]
        gradients = [(torch.zeros_like(x), torch.zeros_like(ref)) for _ in groups] if with_gradient else []
        block_rows = max(1, BLOCK_ENTRIES // R)
        for start in range(0, B, block_rows):
            rows = slice(start, start + block_rows)
            block, columns = x[rows].detach().requires_grad_(), ref.detach().requires_grad_()
            with torch.set_grad_enabled(with_gradient):
                similarities = D(block, columns)
            log_p = row_log_probs(similarities.detach(), T)
            for k, group in enumerate(groups):
                toward_p = log_p.exp() if with_gradient else None
                for teacher in group:
                    known = isinstance(teacher, torch.Tensor)
                    t = teacher[rows].detach() if known else D(teacher.x[rows], teacher.ref)  # type: ignore[union-attr]
                    log_q = row_log_probs(t, T)
                    q = log_q.exp()
                    values[k] += (T**2 / B / len(group)) * torch.sum(q * log_q.sub_(log_p))
                    if toward_p is not None:
                        toward_p.sub_(q, alpha=1 / len(group))
                if toward_p is not None:
                    wanted = (block, columns)
                    into_block, into_columns = torch.autograd.grad(
                        similarities, wanted, (T / B) * toward_p, retain_graph=k + 1 < len(groups)
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
        return None, None, None, into_x, into_ref
