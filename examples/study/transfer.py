"""Distillation from a trained teacher in the batch, as others do it: what the study compares S2SD with.

Each takes embeddings of the student (B, d) and of the teacher (B, k), B the batch, and compares the batch's pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Transfer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def rkd(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Relational knowledge distillation, distances and twice the angles (Park et al., CVPR 2019, arXiv 1904.05068)."""
    s, t = F.normalize(student), F.normalize(teacher)
    return F.smooth_l1_loss(_relative_distances(s), _relative_distances(t)) + 2 * F.smooth_l1_loss(
        _angles(s), _angles(t)
    )


def pkt(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018, arXiv 1803.10837), the sum over the batch's pairs.

    Σ_ij p_ij log(p_ij / q_ij), p and q the teacher's and student's (cos + 1) / 2, normalised over j, i ≠ j.
    """
    p, q = _affinities(teacher), _affinities(student)
    return (p * (p.clamp(min=1e-12) / q.clamp(min=1e-12)).log()).sum()


def relaxed_contrastive(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Relaxed contrastive loss (Kim et al., CVPR 2021, arXiv 2103.14908).

    1/B Σ_ij [ w_ij d_ij² + (1 - w_ij) max(0, 1 - d_ij)² ], d the student's distances, each row divided by its mean, and
    w_ij = exp(-‖t_i - t_j‖²) of the teacher, i ≠ j.
    """
    s, t = F.normalize(student), F.normalize(teacher)
    w = (-_squared_distances(t)).exp()
    d = _distances(s)
    d = d / d.mean(dim=1, keepdim=True)
    terms = w * d**2 + (1 - w) * (1 - d).clamp(min=0) ** 2
    return terms.masked_fill(_diagonal(terms), 0).sum() / len(s)


TRANSFERS: dict[str, Transfer] = {"RKD": rkd, "PKT": pkt, "relaxed contrastive": relaxed_contrastive}


class Taught(nn.Module):
    """objective(z) + weight · transfer(z, teacher(x)), or weight · transfer alone.

    Args:
        objective: of PML; None: the teacher alone.
        teacher: (trunk, embedder), trained; used in eval mode, without gradients.
        transfer, weight: of the loss.
    """

    def __init__(self, objective: nn.Module | None, teacher: nn.Module, transfer: Transfer, weight: float) -> None:
        super().__init__()
        self.objective, self.transfer, self.weight = objective, transfer, weight
        self._teacher = [teacher.eval()]  # in a list, so that its parameters are none of this loss

    def teach(self, shown: torch.Tensor) -> None:
        """What the teacher makes of the batch that the next call is about."""
        with torch.no_grad():
            self._taught = self._teacher[0](shown)

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor, tuples: tuple | None = None) -> torch.Tensor:
        loss = self.weight * self.transfer(embeddings, self._taught)
        return loss if self.objective is None else loss + self.objective(embeddings, labels, tuples)


def _diagonal(rows: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(rows), dtype=torch.bool, device=rows.device)


def _squared_distances(x: torch.Tensor) -> torch.Tensor:
    """Of rows of length 1."""
    return (2 - 2 * x @ x.T).clamp(min=0)


def _distances(x: torch.Tensor) -> torch.Tensor:
    """Of rows of length 1; the root's gradient at 0 is left out."""
    return (_squared_distances(x) + 1e-12).sqrt().masked_fill(_diagonal(x), 0)


def _relative_distances(x: torch.Tensor) -> torch.Tensor:
    """Divided by their mean over pairs of two."""
    d = _distances(x)
    return d / (d.sum() / (len(x) * (len(x) - 1)))


def _angles(x: torch.Tensor) -> torch.Tensor:
    """Cosine of the angle at j between i and k, (B, B, B), by j, i, k; 0 where i or k is j."""
    products = x @ x.T
    between = products[None] - products[:, :, None] - products[:, None] + products.diagonal()[:, None, None]
    inverse = (1 / (_squared_distances(x) + 1e-12).sqrt()).masked_fill(_diagonal(x), 0)
    return between * inverse[:, :, None] * inverse[:, None]


def _affinities(x: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(x)
    affinity = ((unit @ unit.T + 1) / 2).masked_fill(_diagonal(unit), 0)
    return affinity / affinity.sum(dim=1, keepdim=True)
