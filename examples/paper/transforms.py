"""From an RGB image to what the trunk takes."""

from __future__ import annotations

import torch
from torchvision.transforms import v2

from paper.config import Config
from paper.trunks import NETWORKS


def make_transform(config: Config, train: bool) -> v2.Transform:
    """PIL image to a normalised tensor (3, side, side), float32: a random crop to train on, the centre to test on."""
    crop = (
        [v2.RandomResizedCrop(config.side), v2.RandomHorizontalFlip()]
        if train
        else [v2.Resize(config.resize), v2.CenterCrop(config.side)]
    )
    network = NETWORKS[config.trunk]
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(network.mean, network.std)]
    return v2.Compose([*crop, *to_tensor])
