"""Photographs for the examples: the Grocery Store data set, in the layout of its public repository.

5,421 photographs of 81 fine-grained classes, taken with a phone in grocery stores; MIT licence. To get them:
git clone https://github.com/marcusklasson/GroceryStoreDataset
"""

from __future__ import annotations

import csv
import re
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from pml_s2sd.evaluation.image_folder import read_image, some

REPOSITORY = "https://github.com/marcusklasson/GroceryStoreDataset"
LISTS = ("train", "val", "test")
"""The official split, into known classes; all of it is used here, and split by class."""
LINE = re.compile(r"(?P<path>.+), *(?P<fine>\d+), *(?P<coarse>\d+) *")
NAME, NUMBER = "Class Name (str)", "Class ID (int)"
"""Columns of classes.csv."""


class Picture(NamedTuple):
    """A line of a list: the picture's file, and the number of its fine class."""

    file: Path
    number: int


class GroceriesDataset(Dataset):
    """The Grocery Store data set, split by class: fine classes of an even number to train on, of an odd one unseen.

    Args:
        folder: a clone of the repository; it holds ``dataset/train.txt``, ``val.txt`` and ``test.txt`` of lines "path,
            fine class, coarse class", ``dataset/classes.csv``, and the pictures.
        train: the classes to train on, or the unseen ones.
        side: pictures are stretched to side × side pixels.

    Attributes:
        files: N paths, in the order of the lists.
        labels: (N,), int64, from 0 to the number of classes - 1.
        names: the classes' names, by label.

    A sample is (its picture (3, side, side), float32 in [0, 1], its label).

    Raises:
        FileNotFoundError, ValueError: a list is missing, cut short or of other lines, or a picture is missing; the
            error names it, and what was expected.

    Source: Klasson, Zhang, Kjellström, "A Hierarchical Grocery Store Image Dataset with Visual and Semantic Labels",
    WACV 2019, arXiv 1901.00711.
    """

    def __init__(self, folder: str | Path, train: bool, side: int) -> None:
        root = Path(folder) / "dataset"
        missing = [name for name in (*(f"{name}.txt" for name in LISTS), "classes.csv") if not (root / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"no {', '.join(missing)} in {root}; expected a clone of the data set: git clone {REPOSITORY}"
            )
        names = _class_names(root / "classes.csv")
        pictures = [picture for name in LISTS for picture in _listed(root, name, names)]
        chosen = [picture for picture in pictures if (picture.number % 2 == 0) == train]
        numbers = sorted({picture.number for picture in chosen})
        label_of = {number: label for label, number in enumerate(numbers)}
        self.side = side
        self.files = [picture.file for picture in chosen]
        self.labels = torch.tensor([label_of[picture.number] for picture in chosen])
        self.names = [names[number] for number in numbers]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return read_image(self.files[index], (self.side, self.side)), int(self.labels[index])

    @cached_property
    def images(self) -> torch.Tensor:
        """All pictures, (N, 3, side, side), uint8: read when they are first asked for."""
        pixels = torch.empty(len(self), 3, self.side, self.side, dtype=torch.uint8)
        for index in tqdm(range(len(self)), desc="photographs", unit="picture"):
            pixels[index] = (255 * self[index][0]).round()
        return pixels


def _class_names(path: Path) -> dict[int, str]:
    """The fine classes' names, by their numbers."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return {int(row[NUMBER]): row[NAME] for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path}: expected a table with the columns "{NAME}" and "{NUMBER}", a number in the latter, found '
            f"{list(rows[0])} and {error!r}; restore it with git checkout"
        ) from error


def _listed(root: Path, name: str, names: dict[int, str]) -> list[Picture]:
    """The pictures of one list, each of which is there; and no other picture is."""
    path = root / f"{name}.txt"
    pictures = []
    for place, line in enumerate(path.read_text().splitlines(), 1):
        found = LINE.fullmatch(line)
        if found is None or int(found["fine"]) not in names:
            raise ValueError(
                f'{path}, line {place}: expected "path, fine class, coarse class", the fine class one of the '
                f'{len(names)} of classes.csv, got "{line}"; the list may be cut short: restore it with git checkout'
            )
        pictures.append(Picture(root / found["path"], int(found["fine"])))
    there, listed = set((root / name).rglob("*.jpg")), {picture.file for picture in pictures}
    if missing := [str(picture.file) for picture in pictures if picture.file not in there]:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(pictures)} pictures of {path} are missing: {some(missing)}; restore them with "
            "git checkout"
        )
    if unlisted := sorted(str(file) for file in there - listed):
        raise ValueError(
            f"{path} names {len(pictures)} pictures, and {len(there)} are there; not named are {some(unlisted)}; the "
            "list may be cut short: restore it with git checkout, or remove these pictures"
        )
    return pictures
