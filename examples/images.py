"""Images for the examples: the embedded emoji, a folder of your own, and the augmentation."""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

import kornia.augmentation as K
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from pml_s2sd.evaluation.image_folder import find_images, read_image, some

SPLIT_SEED = 0
"""Decides which half of the classes is trained on; written down so that everyone tests on the same half."""

EMOJI_FOLDER = Path(__file__).parent / "data" / "emoji"
EMOJI_SIDE = 32


def split_classes(names: list[str], train: bool) -> list[str]:
    """The half of the class names that is trained on, or the other one: zero-shot, no class in both."""
    shuffled = sorted(names)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    half = (len(shuffled) + 1) // 2
    return sorted(shuffled[:half] if train else shuffled[half:])


class DrawingsDataset(Dataset):
    """Things drawn by several hands, on sheets, as `data/drawings.py` writes them: a class is a thing.

    Args:
        folder: holds ``index.csv`` (class, style, position) and of each style a sheet, ``STYLE.webp``.
        side: of each drawing, in pixels.
        train: the training half of the classes, or the unseen half.
        again: how to get the folder's files again; errors say it.

    Attributes:
        images: (N, 3, side, side), uint8.
        labels: (N,), int64, from 0 to the number of classes - 1.
        names: the classes' names, by label.
        styles: whose drawing each image is.

    Raises:
        FileNotFoundError, ValueError: the index is missing, or a sheet is missing or cut short.
    """

    def __init__(self, folder: Path, side: int, train: bool, again: str) -> None:
        index = folder / "index.csv"
        if not index.is_file():
            raise FileNotFoundError(f"no {index}; expected a folder of sheets of drawings with their index: {again}")
        with index.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self.names = split_classes(list({row["class"] for row in rows}), train)
        label_of = {name: label for label, name in enumerate(self.names)}
        rows = [row for row in rows if row["class"] in label_of]
        drawings = {
            style: read_sheet(folder / f"{style}.webp", side, again) for style in {row["style"] for row in rows}
        }
        self.styles = [row["style"] for row in rows]
        self.images = torch.stack([drawings[row["style"]][int(row["position"])] for row in rows])
        self.labels = torch.tensor([label_of[row["class"]] for row in rows])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index].float() / 255, int(self.labels[index])

    def fingerprint(self) -> bytes:
        """The same for the same images in the same order."""
        return self.images.numpy().tobytes()


class EmojiDataset(DrawingsDataset):
    """The same emoji drawn by several vendors, (N, 3, 32, 32): a class is an emoji, a style is a vendor.

    Args:
        train: the training half of the classes, or the unseen half.
    """

    def __init__(self, train: bool) -> None:
        again = "restore it with git checkout, or draw the data set again with make data"
        super().__init__(EMOJI_FOLDER, EMOJI_SIDE, train, again)


def read_sheet(path: Path, side: int, again: str) -> torch.Tensor:
    """The drawings on one sheet, row by row: (positions, 3, side, side), uint8."""
    try:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
    except OSError as error:
        raise ValueError(
            f"cannot read the sheet of drawings {path} ({error}); it may be missing or cut short: {again}"
        ) from error
    return pixels.unfold(0, side, side).unfold(1, side, side).flatten(0, 1).contiguous()


class ImageFolderDataset(Dataset):
    """Images of your own, laid out as ``folder/class/name.png``, half of the classes to train on.

    Args:
        folder: one folder a class inside.
        train: the training half of the classes, or the unseen half.
        side: images are resized to side × side.

    Raises:
        FileNotFoundError, ValueError: naming the folder, the expected layout and what was found.
    """

    def __init__(self, folder: Path, train: bool, side: int) -> None:
        found, left_out = find_images(folder)
        if train and left_out:
            print(f"left out of {folder}: {some(left_out)}", file=sys.stderr)
        if len(found) < 4:
            raise ValueError(
                f"{folder} holds {len(found)} class folders; expected at least 4, laid out as {folder}/class/name.png"
            )
        for name, files in found.items():
            if len(files) < 2:
                raise ValueError(
                    f"{folder / name} holds {len(files)} images; a class needs at least 2: a query and one to find"
                )
        self.side = side
        self.names = split_classes(list(found), train)
        self.files = [file for name in self.names for file in found[name]]
        self.labels = torch.tensor([label for label, name in enumerate(self.names) for _ in found[name]])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return read_image(self.files[index], (self.side, self.side)), int(self.labels[index])

    def fingerprint(self) -> bytes:
        """The same for the same files in the same order, unless one was written since."""
        written = [(str(file.resolve()), (about := file.stat()).st_size, about.st_mtime_ns) for file in self.files]
        return repr((self.side, written)).encode()


def make_augmentation() -> torch.nn.Module:
    """Affine and colour jitter of a whole batch (B, 3, H, W) in [0, 1], where the batch lies."""
    return torch.nn.Sequential(
        K.RandomAffine(degrees=10, translate=(0.06, 0.06), scale=(0.9, 1.1), padding_mode="border", p=1.0),
        K.ColorJiggle(brightness=0.2, contrast=0.2, saturation=0.2, p=1.0),
    )
