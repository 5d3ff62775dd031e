"""The singular-value spectrum of an embedding space, and what is read off it."""

from __future__ import annotations

import torch

BLOCK_ROWS = 8192
"""Rows taken in at a time: memory grows with d², not with N."""


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
        >>> from pml_s2sd.spectrum import singular_values
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
        >>> from pml_s2sd.spectrum import spectral_decay
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
        >>> from pml_s2sd.spectrum import effective_rank
        >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
        2.0
    """
    p = values.double() / values.double().sum()
    return torch.special.entr(p).sum().exp().item()
