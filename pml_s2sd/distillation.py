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


class Teaching(NamedTuple):
    """Teachers of one term, and how much each is followed."""

    teachers: Sequence[Teacher]
    weigh: Callable[[Sequence[torch.Tensor]], torch.Tensor] | None = None
    """From the similarities of the student and of the teachers, (B, R) each, to the w_i, (m,); None: 1/m each.
    Called once, without gradient; where rows are handled in blocks, with the first of them."""


def mean_divergences(
    D: Matrix,
    student: Space,
    groups: Sequence[Teaching],
    temperature: float,
    first_self: int | None = None,
) -> list[torch.Tensor]:
    """Σ_i w_i KL(D^z, D^{t_i}) over the m ≥ 1 teachers t_i of each group, w_i = 1/m by default.

    Where D has more than `PLAIN_ENTRIES` entries, rows are handled in blocks and the gradient is
    made along with the value, so that memory grows with B, not with B²; value and gradient are
    the same. torch.compile does not trace into that case.

    Args:
        D: (x, ref) -> (B, R), the similarities of rows of x to rows of ref.
        student: z; the gradient goes into its x and ref.
        groups: teachers, each of the student's B and R; no gradient goes into them, nor into the w_i.
        temperature: T > 0.
        first_self: the column in which row 0 meets itself; it, and the one after it in row 1, and so
            on, are left out of the softmax. None: every entry counts.

    Returns:
        A scalar a group.

    Example:
        >>> import torch
        >>> from pml_s2sd.distillation import Space, Teaching, mean_divergences
        >>> z = torch.eye(2)
        >>> mean_divergences(lambda x, ref: x @ ref.T, Space(z, z), [Teaching([Space(z, z)])], temperature=1.0)
        [tensor(0.)]
    """
    if len(student.x) * len(student.ref) > PLAIN_ENTRIES:
        return _mean_divergences_in_blocks(D, student, groups, temperature, first_self)
    of_student = D(*student)
    log_probs = row_log_probs(of_student, temperature, first_self)
    values = []
    for teachers, weigh in groups:
        with torch.no_grad():
            similarities = [_rows(D, teacher, slice(None)) for teacher in teachers]
            weights = None if weigh is None else weigh([of_student.detach(), *similarities])
        of_teachers = torch.stack([divergence(log_probs, t, temperature, first_self) for t in similarities])
        values.append(of_teachers.mean() if weights is None else (weights * of_teachers).sum())
    return values


def _rows(D: Matrix, teacher: Teacher, rows: slice) -> torch.Tensor:
    """Rows of a teacher's similarities."""
    return teacher[rows].detach() if isinstance(teacher, torch.Tensor) else D(teacher.x[rows], teacher.ref)


def divergence(
    student_log_probs: torch.Tensor, teacher: torch.Tensor, temperature: float, first_self: int | None = None
) -> torch.Tensor:
    """KL(D^z, D^t) = T² / B · Σ_rows KL( softmax(D^t / T) ‖ softmax(D^z / T) )

    Args:
        student_log_probs: `row_log_probs` of the student's similarities, (B, R). They are taken
            rather than D^z, so that several teachers share them.
        teacher: D^t, (B, R).
        temperature: T > 0.
        first_self: as in `mean_divergences`.

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
    teacher_log_probs = row_log_probs(teacher, temperature, first_self)
    return temperature**2 * F.kl_div(student_log_probs, teacher_log_probs, reduction="batchmean", log_target=True)


def row_log_probs(similarities: torch.Tensor, temperature: float, first_self: int | None = None) -> torch.Tensor:
    """log softmax(D / T) over each row, in D's dtype, without the entries that `first_self` leaves out."""
    logits = similarities / temperature
    if first_self is not None:
        itself = first_self + torch.arange(len(logits), device=logits.device)
        logits = logits.scatter(1, itself[:, None], -torch.finfo(logits.dtype).max / 8)
    return F.log_softmax(logits, dim=1)


@torch.compiler.disable
def _mean_divergences_in_blocks(
    D: Matrix, student: Space, groups: Sequence[Teaching], temperature: float, first_self: int | None
) -> list[torch.Tensor]:
    return list(_BlockwiseDivergences.apply(D, groups, temperature, first_self, *student))


def _weights(D: Matrix, group: Teaching, of_student: torch.Tensor, rows: slice) -> torch.Tensor:
    """w_i, (m,), in the student's dtype."""
    teachers, weigh = group
    if weigh is None:
        return of_student.new_full((len(teachers),), 1 / len(teachers))
    return weigh([of_student, *(_rows(D, teacher, rows) for teacher in teachers)]).to(of_student.dtype)


class _BlockwiseDivergences(torch.autograd.Function):
    """`mean_divergences`, a block of rows at a time; the gradient with respect to D^z is known in closed form,

    ∂ Σ_i w_i KL(D^z, D^{t_i}) / ∂D^z = T / B · Σ_i w_i ( softmax(D^z / T) - softmax(D^{t_i} / T) ),

    and taken on to z by D's own derivative while the block is at hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        D: Matrix,
        groups: Sequence[Teaching],
        T: float,
        first_self: int | None,
        x: torch.Tensor,
        ref: torch.Tensor,
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
            itself = None if first_self is None else first_self + start
            log_p = row_log_probs(similarities.detach(), T, itself)
            p = log_p.exp()
            if start == 0:
                weights = [_weights(D, group, similarities.detach(), rows) for group in groups]
            for k, (teachers, _) in enumerate(groups):
                toward_p = torch.zeros_like(p) if with_gradient else None
                for w, teacher in zip(weights[k], teachers, strict=True):
                    log_q = row_log_probs(_rows(D, teacher, rows), T, itself)
                    q = log_q.exp()
                    values[k] += (T**2 / B) * w * torch.sum(q * log_q.sub_(log_p))
                    if toward_p is not None:
                        toward_p += q.sub_(p).mul_(-w)
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
        return None, None, None, None, into_x, into_ref
