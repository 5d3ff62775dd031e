"""Trunks: torchvision's networks up to their last feature maps, with BatchNorm frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from network import freeze_batch_norm
from torch import nn
from torchvision import models


class Network(NamedTuple):
    """One of torchvision's networks, and what it was trained with."""

    make: Callable[..., nn.Module]
    weights: models.WeightsEnum
    options: dict[str, bool]
    """Of `make` where there are no weights, so that the same layers come out."""
    last_layer: str
    channels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NETWORKS = {
    "resnet50": Network(
        models.resnet50,
        models.ResNet50_Weights.IMAGENET1K_V1,
        {},
        "layer4",
        2048,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    ),
    # The stand-in for Inception-BN: also Inception with batch normalisation, 1024 channels.
    "googlenet": Network(
        models.googlenet,
        models.GoogLeNet_Weights.IMAGENET1K_V1,
        {"aux_logits": False, "init_weights": False},
        "inception5b",
        1024,
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
    ),
}


class Trunk(nn.Module):
    """Images (B, 3, H, W), normalised as its `Network` says, to feature maps (B, out_channels, H/32, W/32).

    BatchNorm is frozen as in the authors' code: running statistics stay those of ImageNet, also in
    training mode; scales and shifts are trained.

    Args:
        name: a key of `NETWORKS`.
        pretrained: ImageNet weights, which torchvision downloads once; otherwise random ones.
    """

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        network = NETWORKS[name]
        full = network.make(weights=network.weights) if pretrained else network.make(weights=None, **network.options)
        layers = dict(full.named_children())
        names = list(layers)
        self.layers = nn.Sequential(*(layers[n] for n in names[: names.index(network.last_layer) + 1]))
        self.out_channels = network.channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        freeze_batch_norm(self)
        return self
