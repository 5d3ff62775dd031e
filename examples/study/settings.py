"""The study's settings: what is trained on, and with which trunk.

Emoji from scratch, on a frozen pretrained trunk, and on its last blocks fine-tuned; photographs on the same trunk,
frozen and fine-tuned; icons, the large set, on it frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from groceries import REPOSITORY
from icons import ICONS_FOLDER
from images import EmojiDataset, make_augmentation
from network import SmallResNet
from torch import nn

from pml_s2sd.training_features import TURNS, turn
from study.pretrained import FEATURES, Batch, LastBlocks, Pictures, activations, emoji, icons, photographs

HELD_OUT = 4
"""Of the training classes, one in so many is held out where settings are chosen."""


@dataclass
class Data:
    """Images (3, H, W), uint8, or activations or features of a trunk's front, floating point, here written as ….

    Args:
        train: (V, N, …), in V views.
        train_labels: (N,).
        turned: (ways, N, …), the training images turned, each way a class of its own.
        test: (M, …), of classes that are not trained on.
        test_labels: (M,).
        augment: what makes further views of the training images, where they are images.
    """

    train: torch.Tensor
    train_labels: torch.Tensor
    turned: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    augment: Batch | None = None

    def held_out(self) -> Data:
        """Every fourth training class stands in for the unseen ones, which are left alone."""
        held_out = self.train_labels % HELD_OUT == 0
        return Data(
            self.train[:, ~held_out],
            self.train_labels[~held_out].unique(return_inverse=True)[1],
            self.turned[:, ~held_out],
            self.train[0, held_out],
            self.train_labels[held_out],
            self.augment,
        )


@dataclass(frozen=True)
class Kind:
    """What makes a setting.

    Args:
        pictures: "emoji", "photographs" or "icons".
        shown: to the trunk: "images", or of the pretrained trunk the front's "activations", or its "features", pooled.
        trunk: makes what is trained below the head.
        features: that the trunk gives.
        epochs: unless another number is asked for.
        trunk_lr, head_lr: learning rates.
        per_class: images of a class in a batch.
        made_sizes: that `compress` makes of a large model; of a large set fewer.
    """

    pictures: str
    shown: str
    trunk: Callable[[], nn.Module]
    features: int
    epochs: int
    trunk_lr: float = 1e-4
    head_lr: float = 1e-3
    per_class: int = 2
    made_sizes: tuple[int, ...] = (8, 16, 32, 64)


SETTINGS = {
    "frozen": Kind("emoji", "features", nn.Identity, FEATURES, epochs=10),
    "tuned": Kind("emoji", "activations", LastBlocks, FEATURES, epochs=5),
    "scratch": Kind("emoji", "images", SmallResNet, SmallResNet.out_channels, epochs=4, trunk_lr=3e-3, head_lr=3e-3),
    # four a class: of 41 classes, two a class make no batch
    "photos": Kind("photographs", "features", nn.Identity, FEATURES, epochs=10, per_class=4),
    "photos tuned": Kind("photographs", "activations", LastBlocks, FEATURES, epochs=5, per_class=4),
    "icons": Kind("icons", "features", nn.Identity, FEATURES, epochs=5, made_sizes=(32, 64)),
}
EMOJI = tuple(name for name, kind in SETTINGS.items() if kind.pictures == "emoji")
"""The settings whose images are in this repository."""
PHOTOS = f"folder of photographs, a clone of {REPOSITORY}; for their settings, until their activations are made"
ICONS = "folder of icons, drawn by make icons; for their setting, until their features are made"
FILES = {"emoji": "study-activations.pt", "photographs": "photos-activations.pt", "icons": "icons-activations.pt"}


def cache_of(name: str, runs: Path) -> Path:
    """Where a setting's activations are kept."""
    return runs / FILES[SETTINGS[name].pictures]


class Setting:
    """Training data, test data and a trunk.

    Args:
        name: one of `SETTINGS`.
        cache: the file that keeps the activations of the settings of these pictures; see `cache_of`.
        photos: the folder of photographs; needed by their settings as long as `cache` is not there.
        icons: the folder of icons; likewise.
        epochs: other than the setting's own.
        choosing: every fourth training class stands in for the unseen ones, which are left alone.
        device: where data and trunk lie.
    """

    objective_lr = 1e-2

    def __init__(
        self,
        name: str,
        cache: Path,
        *,
        photos: Path | None = None,
        icons: Path = ICONS_FOLDER,
        epochs: int | None = None,
        choosing: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.kind = name, SETTINGS[name]
        self.epochs = self.kind.epochs if epochs is None else epochs
        self.device = torch.device(device)
        data = _loaded(self.kind, cache, photos, icons, device)
        if choosing:
            data = data.held_out()
        self.train, self.train_labels = data.train.to(self.device), data.train_labels
        self.turned = data.turned.to(self.device)
        self.test, self.test_labels = data.test.to(self.device), data.test_labels
        self.augment = data.augment

    def trunk(self) -> nn.Module:
        return self.kind.trunk().to(memory_format=torch.channels_last)

    def batch(self, samples: torch.Tensor) -> torch.Tensor:
        """The trunk's input for training samples, each in a view drawn at random."""
        x = _floats(self.train[torch.randint(len(self.train), samples.shape), samples])
        return _channels_last(x if self.augment is None else self.augment(x))

    def train_batches(self, view: int = 0) -> list[torch.Tensor]:
        """The training images in order: as they are, or in another view."""
        if self.augment is None or not view:
            return _batches(self.train[view])
        return [_channels_last(self.augment(_floats(x))) for x in self.train[0].split(512)]

    def turned_batches(self, way: int) -> list[torch.Tensor]:
        """The training images in order, turned: classes that nobody was trained on."""
        return _batches(self.turned[way])

    def mixed_batches(self) -> list[torch.Tensor]:
        """As many mixtures of two training images: nobody's class."""
        first, second = torch.randint(len(self.train[0]), (2, len(self.train[0])))
        share = 0.3 + 0.4 * torch.rand(len(first), *[1] * (self.train.dim() - 2), device=self.device)
        return _batches(share * _floats(self.train[0, first]) + (1 - share) * _floats(self.train[-1, second]))

    def test_batches(self) -> list[torch.Tensor]:
        return _batches(self.test)


def _loaded(kind: Kind, cache: Path, photos: Path | None, icons_folder: Path, device: torch.device | str) -> Data:
    if kind.shown == "images":
        train, test = EmojiDataset(train=True), EmojiDataset(train=False)
        turned = torch.stack([turn(train.images, way) for way in range(TURNS)])
        return Data(train.images[None], train.labels, turned, test.images, test.labels, make_augmentation())

    def pictures() -> Pictures:
        if kind.pictures == "emoji":
            return emoji()
        if kind.pictures == "icons":
            return icons(icons_folder)
        if photos is None:
            raise ValueError(
                f"no activations of the photographs in {cache} yet; expected the folder of photographs, to make them: "
                f"--photos FOLDER, where FOLDER is a clone of {REPOSITORY}"
            )
        return photographs(photos)

    made = activations(cache, pictures, device)
    train_x, turned, test_x = (
        made[part if kind.shown == "activations" else f"{part}_features"] for part in ("train", "turned", "test")
    )
    return Data(train_x, made["train_labels"], turned, test_x, made["test_labels"])


def _floats(x: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1]; activations and features as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _batches(x: torch.Tensor) -> list[torch.Tensor]:
    return [_channels_last(_floats(batch)) for batch in x.split(512)]
