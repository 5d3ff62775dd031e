"""Activations of the pretrained trunk's frozen front, made once: what the study's pretrained settings train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from checkpoints import save_whole
from groceries import GroceriesDataset
from images import EmojiDataset, make_augmentation
from kornia.augmentation import RandomHorizontalFlip
from pretrained import FEATURES as FEATURES
from pretrained import Front, LastBlocks
from torch import nn
from tqdm import tqdm

from pml_s2sd.training_features import TURNS, turn

VIEWS = 4
"""Of each training image: as it is, and augmented."""
FEW = 16
"""Images that the front takes at a time: their activations stay in a CPU's cache."""
Batch = Callable[[torch.Tensor], torch.Tensor]
"""What is done to a batch of images."""


class Pictures(NamedTuple):
    """What is shown to the front.

    Args:
        load: whether to train -> a data set with images (N, 3, H, W), uint8, and labels (N,).
        side: the front sees side × side pixels.
        augment: changes a batch in [0, 1].
    """

    load: Callable[[bool], EmojiDataset | GroceriesDataset]
    side: int
    augment: Batch


def emoji() -> Pictures:
    return Pictures(EmojiDataset, side=96, augment=make_augmentation())


def photographs(folder: Path) -> Pictures:
    """Of 160 pixels: the front takes a third of the time that it takes for 224."""
    side = 160
    flipped = nn.Sequential(RandomHorizontalFlip(p=0.5), make_augmentation())
    return Pictures(lambda train: GroceriesDataset(folder, train, side), side, flipped)


def activations(cache: Path, pictures: Callable[[], Pictures], device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the file `cache` holds: made of the pictures where it is not there yet.

    float16 activations of all images and their pooled features: train (VIEWS, N, …), turned (TURNS, N, …), test (N, …),
    each with `_features`; train_labels and test_labels (N,).
    """
    if cache.exists() and "turned" in (made := torch.load(cache)):
        return made
    made = _made(pictures(), device)
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_whole(cache, made)
    return made


@torch.inference_mode()
def _made(pictures: Pictures, device: torch.device | str) -> dict[str, torch.Tensor]:
    front, last = Front(pictures.side).to(device), LastBlocks().eval().to(device)
    train, test = pictures.load(True), pictures.load(False)
    torch.manual_seed(0)

    def run(images: torch.Tensor, change: Batch = lambda batch: batch) -> torch.Tensor:
        batches = tqdm(images.split(128), desc="activations", unit="batch")
        parts = (part for batch in batches for part in change(batch.float() / 255).split(FEW))
        return torch.cat([front(part.to(device)).half().cpu() for part in parts])

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([last(batch.to(device).float()).mean((2, 3)).cpu() for batch in x.split(256)])

    views = [run(train.images), *(run(train.images, pictures.augment) for _ in range(VIEWS - 1))]
    turned = [run(train.images, lambda x, way=way: turn(x, way)) for way in range(TURNS)]
    made = {"train": torch.stack(views), "turned": torch.stack(turned), "test": run(test.images)}
    made["train_features"] = torch.stack([pooled(view) for view in views])
    made["turned_features"] = torch.stack([pooled(way) for way in turned])
    made["test_features"] = pooled(made["test"])
    return made | {"train_labels": train.labels, "test_labels": test.labels}
