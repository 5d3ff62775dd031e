"""A small residual network for small images: the examples' trunk."""

from __future__ import annotations

import torch
from torch import nn


def freeze_batch_norm(module: nn.Module) -> None:
    """Running statistics as they are, also in training mode; scales and shifts are still trained."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut; halves height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(in_channels, out_channels, 1, bias=False))
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.shortcut(x) + self.body(x))


class SmallResNet(nn.Sequential):
    """Images (B, 3, H, W) in [0, 1] to feature maps (B, 128, H/8, W/8), H and W at least 16."""

    out_channels = 128

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            ResidualBlock(16, 32),
            ResidualBlock(32, 64),
            ResidualBlock(64, self.out_channels),
        )
