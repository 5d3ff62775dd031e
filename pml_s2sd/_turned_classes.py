"""The labels of images that were turned: classes of their own, which no teacher was trained on."""

from __future__ import annotations

import torch

FIRST = 2**59
"""Labels from here on are of such classes: far from those that anybody gives."""


def turned_classes(labels: torch.Tensor, ways: torch.Tensor) -> torch.Tensor:
    """Of each label and way of turning a class of its own; a label below 0, not known, stays as it is.

    Args:
        labels: integers, below 2^59.
        ways: 0 where an image is not turned; they broadcast against labels.
    """
    check_before_turning(labels)
    return torch.where(labels < 0, labels, labels + ways * FIRST)


def check_before_turning(labels: torch.Tensor) -> None:
    """Labels that turned classes do not have."""
    if labels.numel() and int(labels.max()) >= FIRST:
        raise ValueError(
            f"turned makes labels from 2^59 on, and the largest is {int(labels.max())}; number the classes"
        )


def of_trained_classes(labels: torch.Tensor) -> torch.Tensor:
    """Where a row is of no turned class."""
    return labels < FIRST
