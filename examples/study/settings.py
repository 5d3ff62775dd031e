"""The study's three settings: emoji from scratch, on a frozen pretrained trunk, and on its last blocks fine-tuned."""

from __future__ import annotations

from pathlib import Path

import torch
from images import EmojiDataset, make_augmentation
from network import SmallResNet
from torch import nn

from study.pretrained import FEATURES, TURNS, LastBlocks, activations, turn

SETTINGS = ("frozen", "tuned", "scratch")
EPOCHS = {"frozen": 10, "tuned": 5, "scratch": 4}
HELD_OUT = 4
"""Of the training classes, one in so many is held out where settings are chosen."""


class Setting:
    """Training data, test data and a trunk.

    Args:
        name: one of `SETTINGS`.
        cache: where the pretrained settings keep their activations.
        epochs: other than the setting's own.
        choosing: every fourth training class stands in for the unseen ones, which are left alone.
        device: where data and trunk lie.
    """

    def __init__(
        self,
        name: str,
        cache: Path,
        *,
        epochs: int | None = None,
        choosing: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = name
        self.epochs = EPOCHS[name] if epochs is None else epochs
        self.device = torch.device(device)
        self.objective_lr = 1e-2
        if name == "scratch":
            train, test = EmojiDataset(train=True), EmojiDataset(train=False)
            self.train, self.train_labels = train.images[None], train.labels
            self.turned = torch.stack([turn(train.images, way) for way in range(TURNS)])
            self.test, self.test_labels = test.images, test.labels
            self.features = SmallResNet.out_channels
            self.trunk_lr = self.head_lr = 3e-3
            self.augment = make_augmentation()
        else:
            made = activations(cache, device)
            kind = "_features" if name == "frozen" else ""
            self.train, self.test = made[f"train{kind}"], made[f"test{kind}"]
            self.turned = made[f"turned{kind}"]
            self.train_labels, self.test_labels = made["train_labels"], made["test_labels"]
            self.features = FEATURES
            self.trunk_lr, self.head_lr = 1e-4, 1e-3
        if choosing:
            self._hold_out()
        self.train, self.test = self.train.to(self.device), self.test.to(self.device)
        self.turned = self.turned.to(self.device)

    def _hold_out(self) -> None:
        held_out = self.train_labels % HELD_OUT == 0
        self.test, self.test_labels = self.train[0, held_out], self.train_labels[held_out]
        self.train, kept = self.train[:, ~held_out], self.train_labels[~held_out]
        self.turned = self.turned[:, ~held_out]
        self.train_labels = kept.unique(return_inverse=True)[1]

    def trunk(self) -> nn.Module:
        if self.name == "frozen":
            return nn.Identity()
        return (SmallResNet() if self.name == "scratch" else LastBlocks()).to(memory_format=torch.channels_last)

    def batch(self, samples: torch.Tensor) -> torch.Tensor:
        """The trunk's input for training samples, each in a view drawn at random."""
        x = self.train[torch.randint(len(self.train), samples.shape), samples]
        if self.name == "scratch":
            x = self.augment(x.float() / 255)
        return self._as_input(x)

    def train_batches(self, view: int = 0) -> list[torch.Tensor]:
        """The training images in order: as they are, or in another view."""
        if self.name == "scratch" and view:
            return [self._as_input(self.augment(x.float() / 255)) for x in self.train[0].split(512)]
        return self._plain(self.train[view])

    def turned_batches(self, way: int) -> list[torch.Tensor]:
        """The training images in order, turned: classes that nobody was trained on."""
        return self._plain(self.turned[way])

    def mixed_batches(self) -> list[torch.Tensor]:
        """As many mixtures of two training images: nobody's class."""
        first, second = torch.randint(len(self.train[0]), (2, len(self.train[0])))
        share = 0.3 + 0.4 * torch.rand(len(first), *[1] * (self.train.dim() - 2), device=self.device)
        return self._plain(share * self.train[0, first] + (1 - share) * self.train[-1, second])

    def test_batches(self) -> list[torch.Tensor]:
        return self._plain(self.test)

    def _plain(self, x: torch.Tensor) -> list[torch.Tensor]:
        scale = 255 if self.name == "scratch" else 1
        return [self._as_input(batch / scale) for batch in x.split(512)]

    @staticmethod
    def _as_input(x: torch.Tensor) -> torch.Tensor:
        return x.float().contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.float()
