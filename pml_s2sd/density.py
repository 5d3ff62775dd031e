"""How tightly classes are packed, against how far they lie apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F

BLOCK_ROWS = 8192
"""Rows taken in at a time: memory grows with the number of classes, not with N²."""


def embedding_density(x: torch.Tensor, labels: torch.Tensor) -> float:
    """π_intra / π_inter, with d(x, y) = 1 - cos(x, y)

    - π_intra: mean over the classes of at least two members of the mean d of two different members;
    - π_inter: mean d of the centres of two different classes, a centre being the mean of its
      class's normalised members.

    Exact without a matrix of distances: over n unit vectors, Σ_{i≠j} d(x_i, x_j) = n² - ‖Σ_i x_i‖².
    NaN where there is no class of two members, or one class only.

    Args:
        x: embeddings, (N, d), floating point, of any length.
        labels: (N,).

    Source: Roth et al., ICML 2020 (arXiv 2002.08473), section 5, with d, and the mean over classes,
        of the code they published; there, classes of one member count with the largest of the others.

    Example:
        >>> import torch
        >>> from pml_s2sd.density import embedding_density
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> round(embedding_density(x, torch.tensor([0, 0, 1, 1])), 6)  # 1 within the classes, 2 between centres
        0.5
    """
    _, classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    n = counts.double()
    sums = x.new_zeros(len(n), x.shape[1], dtype=torch.float64)
    squares = x.new_zeros(len(n), dtype=torch.float64)  # each 1, but for zero vectors
    for block, of_class in zip(x.split(BLOCK_ROWS), classes.split(BLOCK_ROWS), strict=True):
        unit = F.normalize(block.double())
        sums.index_add_(0, of_class, unit)
        squares.index_add_(0, of_class, unit.square().sum(1))
    intra = mean_distance(n, sums, squares)[counts > 1].mean()
    centres = F.normalize(sums / n[:, None])
    inter = mean_distance(x.new_tensor(len(n)).double(), centres.sum(0), centres.square().sum())
    return (intra / inter).item()


def mean_distance(n: torch.Tensor, sums: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - x_i · x_j over i ≠ j, of n vectors with this sum and this sum of squares; at least 0."""
    products = sums.square().sum(-1) - squares
    return (1 - products / (n * n - n)).clamp_min(0)
