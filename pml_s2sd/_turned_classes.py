"""The labels of images that were turned: classes of their own, which no teacher was trained on."""

from __future__ import annotations

import torch

FIRST = 2**59
"""Labels from here on are of such classes: far from those that anybody gives."""


def of_trained_classes(labels: torch.Tensor) -> torch.Tensor:
    """Where a row is of no turned class."""
    return labels < FIRST
