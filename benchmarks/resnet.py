"""A plain network of ResNet-50's shape and size, so that nothing has to be downloaded to time a training step with it.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the stride is in the 3 × 3 convolution, as
in torchvision.
"""

from __future__ import annotations

import torch
from torch import nn

BLOCKS, FEATURES = (3, 4, 6, 3), 2048
PARAMETERS = 23_508_032
"""Of the trunk: 25,557,032 less the 2,049,000 of ImageNet's classifier."""


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3, 1 × 1 convolutions and a shortcut: (B, inputs, H, W) to (B, 4 · width, H / stride, W / stride)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            conv(inputs, width, 1),
            nn.ReLU(inplace=True),
            conv(width, width, 3, stride),
            nn.ReLU(inplace=True),
            conv(width, 4 * width, 1),
        )
        reshapes = stride > 1 or inputs != 4 * width
        self.shortcut = conv(inputs, 4 * width, 1, stride) if reshapes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.convs(x) + self.shortcut(x))


def resnet50() -> nn.Sequential:
    """The trunk: images (B, 3, H, W) to features (B, 2048), average-pooled."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, blocks in enumerate(BLOCKS):
        width = 64 * 2**stage
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, 2 if stage > 0 and block == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
