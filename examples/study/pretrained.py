"""Activations of the pretrained trunk's frozen front, made once: what the study's pretrained settings train on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from checkpoints import save_whole
from groceries import GroceriesDataset
from icons import ICONS_SIDE, IconsDataset
from images import DrawingsDataset, EmojiDataset, make_augmentation
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
        turns: ways to `turn` an image that show something else: all, or, of grey images, the first three.
        activations: whether they are kept, or their pooled features alone.
    """

    load: Callable[[bool], DrawingsDataset | GroceriesDataset]
    side: int
    augment: Batch
    turns: int = TURNS
    activations: bool = True


def emoji() -> Pictures:
    return Pictures(EmojiDataset, side=96, augment=make_augmentation())


def photographs(folder: Path) -> Pictures:
    """Of 160 pixels: the front takes a third of the time that it takes for 224."""
    side = 160
    flipped = nn.Sequential(RandomHorizontalFlip(p=0.5), make_augmentation())
    return Pictures(lambda train: GroceriesDataset(folder, train, side), side, flipped)


def icons(folder: Path) -> Pictures:
    """Of their own 64 pixels: the front takes less time than for 96, which tells them better apart.

    Of so many, features alone are kept. Grey images are the same with their colours exchanged.
    """
    load = partial(IconsDataset, folder=folder)
    return Pictures(load, ICONS_SIDE, make_augmentation(), turns=3, activations=False)


def activations(cache: Path, pictures: Callable[[], Pictures], device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the file `cache` holds: made of the pictures where it is not there yet.

    Pooled features of all images: train_features (VIEWS, N, F), turned_features (turns, N, F), test_features (N, F);
    float16 activations, where they are kept, without `_features`; train_labels and test_labels (N,).
    """
    if cache.exists() and "turned_features" in (made := torch.load(cache)):
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

    def run(images: torch.Tensor, change: Batch) -> tuple[torch.Tensor, ...]:
        """Pooled features and, where they are kept, activations."""
        made = []
        for batch in tqdm(images.split(128), desc="activations", unit="batch"):
            parts = change(batch.float() / 255).split(FEW)
            x = torch.cat([front(part.to(device)).half() for part in parts])
            features = last(x.float()).mean((2, 3)).cpu()
            made.append((features, x.cpu()) if pictures.activations else (features,))
        return tuple(torch.cat(batches) for batches in zip(*made, strict=True))

    def run_all(name: str, images: torch.Tensor, changes: Iterable[Batch]) -> dict[str, torch.Tensor]:
        views = zip(*(run(images, change) for change in changes), strict=True)
        return {name: torch.stack(view) for name, view in zip((f"{name}_features", name), views, strict=False)}

    made = run_all("train", train.images, [_as_it_is, *[pictures.augment] * (VIEWS - 1)])
    made |= run_all("turned", train.images, [partial(turn, way=way) for way in range(pictures.turns)])
    made |= {name: x[0] for name, x in run_all("test", test.images, [_as_it_is]).items()}
    return made | {"train_labels": train.labels, "test_labels": test.labels}


def _as_it_is(batch: torch.Tensor) -> torch.Tensor:
    return batch
