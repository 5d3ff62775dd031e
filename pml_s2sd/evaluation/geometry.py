"""The geometry of an embedding space: which directions it uses, and how tightly its classes are packed."""

from __future__ import annotations

import torch
import torch.nn.functional as F

BLOCK_ROWS = 8192
"""Rows taken in at a time: memory grows with d² and with the number of classes, not with N."""


def singular_values(x: torch.Tensor) -> torch.Tensor:
    """σ_1 ≥ … ≥ σ_n, n = min(N, d), of the matrix of embeddings as they are, not centred.

    By a QR decomposition that takes in a block of rows at a time (X and its R have the same
    singular values), in float64. A value that is 0 but for rounding is 0.

    Args:
        x: embeddings, (N, d), floating point.

    Returns:
        (n,), float64, in falling order.

    Example:
        >>> import torch
        >>> from pml_s2sd.evaluation.geometry import singular_values
        >>> singular_values(torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    r = x.new_empty(0, x.shape[1], dtype=torch.float64)
    for block in x.split(BLOCK_ROWS):
        r = torch.linalg.qr(torch.cat([r, block.double()]), mode="r").R
    values = torch.linalg.svdvals(r)
    rounding = values.max() * max(x.shape) * torch.finfo(torch.float64).eps
    return values.masked_fill(values <= rounding, 0.0)


def spectral_decay(values: torch.Tensor) -> float:
    """ρ = KL(uniform ‖ p) = 1/n Σ_i log( (1/n) / p_i ),  p_i = σ_i / Σ_j σ_j

    0 where every direction is used alike; infinite where some direction is not used at all.
    Spaces of a lower ρ tend to serve unseen classes better.

    Args:
        values: σ, (n,), the `singular_values` of the embeddings, none left out.

    Source: Roth et al., ICML 2020 (arXiv 2002.08473), section 5.

    Example:
        >>> import torch
        >>> from pml_s2sd.evaluation.geometry import spectral_decay
        >>> spectral_decay(torch.tensor([2.0, 2.0, 2.0])), spectral_decay(torch.tensor([2.0, 0.0]))
        (0.0, inf)
    """
    p = values.double() / values.double().sum()
    return -(p * len(p)).log().mean().item() + 0.0


def effective_rank(values: torch.Tensor) -> float:
    """exp H(p) = exp( -Σ_i p_i log p_i ),  p_i = σ_i / Σ_j σ_j

    From 1, all in one direction, to n, every direction used alike.

    Args:
        values: σ, (n,), the `singular_values` of the embeddings.

    Source: Roy and Vetterli, EUSIPCO 2007, "The effective rank: a measure of effective dimensionality".

    Example:
        >>> import torch
        >>> from pml_s2sd.evaluation.geometry import effective_rank
        >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
        2.0
    """
    p = values.double() / values.double().sum()
    return torch.special.entr(p).sum().exp().item()


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
        >>> from pml_s2sd.evaluation.geometry import embedding_density
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
