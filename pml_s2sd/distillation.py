"""Distillation of similarities: plain functions of tensors, the KL terms of the S2SD objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

Matrix = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

WHOLE_ENTRIES = 2**22
"""Similarity matrices of more entries (B = 2048 with itself) are handled in blocks of rows."""


class Comparison(NamedTuple):
    """A batch in one embedding space: samples (B, d) and what they are compared with, (R, d)."""

    x: torch.Tensor
    ref: torch.Tensor


Teacher = Comparison | torch.Tensor
"""A teacher's batch, or its similarities (B, R) where they are known already."""


def mean_divergences(
    D: Matrix,
    student: Comparison,
    terms: Sequence[Sequence[Teacher]],
    temperature: float,
    self_columns: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """(1/m) Σ_i KL(D^z, D^{t_i}) over the m ≥ 1 teachers t_i of each term.

    Where D has more than `WHOLE_ENTRIES` entries, rows are handled in blocks and the gradient is
    made along with the value, so that memory grows with B, not with B²; value and gradient are
    the same. torch.compile does not trace into that case.

    Args:
        D: (x, ref) -> (B, R), the similarities of rows of x to rows of ref.
        student: z; the gradient goes into its x and ref.
        terms: the teachers of each, of the student's B and R; no gradient goes into them.
        temperature: T > 0.
        self_columns: (B,), int64, the column in which each row meets itself, -1 where in none: left out of the
            softmax. None: every entry counts.

    Returns:
        A scalar a term.

    Example:
        >>> import torch
        >>> from pml_s2sd.distillation import Comparison, mean_divergences
        >>> z = torch.eye(2)
        >>> D = lambda x, ref: x @ ref.T
        >>> mean_divergences(D, Comparison(z, z), [[Comparison(z, z)]], temperature=1.0)
        [tensor(0.)]
    """
    if len(student.x) * len(student.ref) > WHOLE_ENTRIES:
        from ._distillation_in_blocks import mean_divergences_in_blocks  # it loads torch's compiler

        return mean_divergences_in_blocks(D, student, terms, temperature, self_columns)
    log_probs = row_log_probs(D(*student), temperature, self_columns)
    values = []
    for teachers in terms:
        with torch.no_grad():
            similarities = [rows_of(D, teacher, slice(None)) for teacher in teachers]
        of_teachers = [divergence(log_probs, t, temperature, self_columns) for t in similarities]
        values.append(torch.stack(of_teachers).mean())
    return values


def rows_of(D: Matrix, teacher: Teacher, rows: slice) -> torch.Tensor:
    """Rows of a teacher's similarities, (rows, R)."""
    return teacher[rows].detach() if isinstance(teacher, torch.Tensor) else D(teacher.x[rows], teacher.ref)


def divergence(
    student_log_probs: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    self_columns: torch.Tensor | None = None,
) -> torch.Tensor:
    """KL(D^z, D^t) = T² / B · Σ_rows KL( softmax(D^t / T) ‖ softmax(D^z / T) )

    Args:
        student_log_probs: `row_log_probs` of the student's similarities, (B, R). They are taken
            rather than D^z, so that several teachers share them.
        teacher: D^t, (B, R).
        temperature: T > 0.
        self_columns: as in `mean_divergences`.

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
    teacher_log_probs = row_log_probs(teacher, temperature, self_columns)
    return temperature**2 * F.kl_div(student_log_probs, teacher_log_probs, reduction="batchmean", log_target=True)


def row_log_probs(
    similarities: torch.Tensor, temperature: float, self_columns: torch.Tensor | None = None
) -> torch.Tensor:
    """log softmax(D / T) over each row, in D's dtype, without the entries that `self_columns` leaves out."""
    logits = similarities / temperature
    if self_columns is not None:
        logits = at_self_columns(logits, self_columns, -torch.finfo(logits.dtype).max / 8)
    return F.log_softmax(logits, dim=1)


def at_self_columns(matrix: torch.Tensor, self_columns: torch.Tensor, value: float) -> torch.Tensor:
    """The matrix, (B, R), with `value` where a row meets itself: in the column named for it, (B,), -1 for none."""
    columns = self_columns[:, None]
    meets = columns >= 0
    columns = columns.clamp(min=0)
    return matrix.scatter(1, columns, matrix.gather(1, columns).masked_fill(meets, value))


def columns_of_copies(x: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """Where each sample finds itself among references: in the batch itself, a part of it, a copy, a memory queue.

    Args:
        x, ref: (B, d) and (R, d), embeddings of one space.

    Returns:
        (B,), int64: the column of the reference that is this sample, up to rounding; -1 where there is none.

    Example:
        >>> import torch
        >>> from pml_s2sd.distillation import columns_of_copies
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> columns_of_copies(x, torch.tensor([[0.0, 1.0], [3.0, 0.0], [2.0, 4.0]]))
        tensor([-1,  1])
    """
    with torch.autocast(x.device.type, enabled=False):
        x, ref = (t.detach() if t.dtype == torch.float64 else t.detach().float() for t in (x, ref))
        # The nearest: |ref|² - 2 x·ref orders references as |x - ref|² does.
        nearest = (ref.square().sum(1) - 2 * x @ ref.T).argmin(dim=1)
        apart = torch.linalg.vector_norm(x - ref[nearest], dim=1)
        return torch.where(apart <= 1e-5 * torch.linalg.vector_norm(x, dim=1), nearest, -1)
