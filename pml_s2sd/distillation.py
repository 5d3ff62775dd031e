"""Distillation of similarities: plain functions of tensors, the KL terms of the S2SD objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F


def similarity(
    distance: Callable[..., torch.Tensor],
    x: torch.Tensor,
    ref: torch.Tensor | None = None,
) -> torch.Tensor:
    """D^x: `distance` of the rows of x to each other, or to the rows of ref.

    Computed in float32 or wider, also under autocast.

    Args:
        distance: a function (x, ref) -> (B, R), ref None for x itself, such as a PML distance.
        x: (B, d), floating point.
        ref: (R, d), or None for x itself.

    Returns:
        (B, R), the diagonal included; R = B where ref is None.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.distances import CosineSimilarity
        >>> from pml_s2sd.distillation import similarity
        >>> similarity(CosineSimilarity(), torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    with torch.autocast(x.device.type, enabled=False):
        x = _at_least_float32(x)
        return distance(x, None if ref is None else _at_least_float32(ref))


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


def mean_divergence(
    student_log_probs: torch.Tensor, teachers: Iterable[torch.Tensor], temperature: float
) -> torch.Tensor:
    """(1/m) Σ_i KL(D^z, D^{t_i}), over at least one teacher."""
    return torch.stack([divergence(student_log_probs, teacher, temperature) for teacher in teachers]).mean()


def row_log_probs(similarities: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(D / T) over each row, in D's dtype."""
    return F.log_softmax(similarities / temperature, dim=1)


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
