"""What is trained and tested on: two halves of the classes, as images or as a frozen front's activations of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from activations import activations_of
from images import EmojiDataset, ImageFolderDataset, make_augmentation
from torch import nn
from torch.utils.data import DataLoader, Dataset
from trunks import make_front

from pml_s2sd import collect_features
from pml_s2sd.training_features import TURNS, TrainingFeatures

MOST_FEATURES = 100_000
"""Consolidation takes a sample of so many views of images, where there are more."""


@dataclass
class Data:
    """What a model is trained and tested on.

    Attributes:
        images: the training half of the classes, and the unseen half, as images.
        train, test: the same, as the part of the trunk that trains takes them: samples and labels.
        augment: what a batch of `train` still goes through.
        front: what comes before the part that trains, None where all of the trunk does.
    """

    images: tuple[Any, Any]
    train: Any
    test: Any
    augment: nn.Module
    front: nn.Module | None

    @property
    def side(self) -> int:
        """Of the images."""
        return self.images[1][0][0].shape[-1]

    def counts(self) -> dict[str, int]:
        """Images and classes of both halves."""
        halves = dict(zip(("train", "test"), self.images, strict=True))
        counts = {f"{name}_images": len(half) for name, half in halves.items()}
        return counts | {f"{name}_classes": len(half.names) for name, half in halves.items()}

    def features(
        self, trunk: nn.Module, settings: argparse.Namespace, keep_maximum: bool, own: Callable[[Dataset], Dataset]
    ) -> TrainingFeatures:
        """The trunk's features of the training half in all its views, for `consolidate`; this process's are `own`'s."""
        if self.front is not None:
            samples, views, turned = self.train.all_of_them(), 1, False
        else:
            samples, views, turned = self.train, settings.views, settings.turned
        loader = DataLoader(own(samples), 64, num_workers=settings.workers)
        found = len(samples) * (views + (TURNS if turned else 0))
        return collect_features(
            trunk,
            loader,
            views=views,
            turned=turned,
            keep_maximum=keep_maximum,
            rows=MOST_FEATURES if found > MOST_FEATURES else None,
            read=lambda batch: (self.augment(batch[0]).contiguous(memory_format=torch.channels_last), batch[1]),
        )


def load_data(settings: argparse.Namespace) -> Data:
    halves = load_images(settings)
    front = make_front(settings.trunk, settings.image_size)
    if front is None:
        return Data(halves, *halves, make_augmentation(), None)
    train, test = activations_of(
        front,
        halves,
        settings.runs / "activations",
        views=settings.views,
        turned=settings.turned and settings.consolidate and settings.variants != ["baseline"],
        device=torch.device(settings.device),
        workers=settings.workers,
    )
    return Data(halves, train, test, nn.Identity(), front)


def load_images(settings: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """(training half, unseen half) of the classes."""
    try:
        if settings.images is None:
            halves = EmojiDataset(train=True), EmojiDataset(train=False)
        else:
            halves = tuple(ImageFolderDataset(settings.images, train, settings.image_size) for train in (True, False))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"train.py: {error}") from error
    train_set = halves[0]
    drawn = min(len(train_set), settings.per_class * len(train_set.names))
    if settings.batch_size > drawn or settings.batch_size % settings.per_class:
        raise SystemExit(
            f"train.py: --batch-size must be a multiple of --per-class ({settings.per_class}) and at most {drawn}, for "
            f"{len(train_set)} training images of {len(train_set.names)} classes; got {settings.batch_size}"
        )
    return halves
