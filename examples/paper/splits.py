"""The data sets' zero-shot splits: half of the classes to train on, the others to test on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from pytorch_metric_learning.datasets import CUB, Cars196, StanfordOnlineProducts
from torch.utils.data import Dataset


class Size(NamedTuple):
    classes: int
    images: int


class Source(NamedTuple):
    """Where a data set's splits come from: PML's class, what it reads, and what is published of them."""

    title: str
    pml_dataset: type
    index_files: tuple[str, ...]
    layout: str
    train: Size
    test: Size


SOURCES = {
    "cub200": Source(
        "CUB200-2011",
        CUB,
        ("CUB_200_2011/images.txt", "CUB_200_2011/image_class_labels.txt"),
        "the unpacked CUB_200_2011.tgz: CUB_200_2011/images.txt, CUB_200_2011/image_class_labels.txt, "
        "CUB_200_2011/images/CLASS/NAME.jpg",
        Size(100, 5864),
        Size(100, 5924),
    ),
    "cars196": Source(
        "CARS196",
        Cars196,
        ("names.csv", "anno_train.csv", "anno_test.csv"),
        "the unpacked archive stanford-car-dataset-by-classes-folder: names.csv, anno_train.csv, anno_test.csv, "
        "car_data/car_data/train/CLASS/NAME.jpg, car_data/car_data/test/CLASS/NAME.jpg",
        Size(98, 8054),
        Size(98, 8131),
    ),
    "sop": Source(
        "Stanford Online Products",
        StanfordOnlineProducts,
        ("Stanford_Online_Products/Ebay_train.txt", "Stanford_Online_Products/Ebay_test.txt"),
        "the unpacked Stanford_Online_Products.zip: Stanford_Online_Products/Ebay_train.txt, "
        "Stanford_Online_Products/Ebay_test.txt, Stanford_Online_Products/CLASS_final/NAME.JPG",
        Size(11318, 59551),
        Size(11316, 60502),
    ),
}


class Split(Dataset):
    """Images of one split, with labels from 0 to the number of classes - 1.

    Args:
        name: of the data set, a key of `SOURCES`.
        root: the folder that its archive was unpacked in.
        split: "train" or "test".
        transform: of an RGB image into what the trunk takes.
        complete: whether the split has to have the published number of classes and images.

    Attributes:
        paths: N files.
        labels: (N,), int64.
        classes: the number of classes.

    Raises:
        FileNotFoundError, ValueError: naming the file, what was expected and the data set's layout.
    """

    def __init__(
        self, name: str, root: Path, split: str, transform: Callable[[Image.Image], Any], complete: bool = True
    ) -> None:
        source = SOURCES[name]
        self.paths, own_labels = _listed(source, root, split)
        numbers, self.labels = torch.unique(torch.tensor(own_labels), return_inverse=True)
        self.classes = len(numbers)
        self.transform = transform
        if complete:
            _check_size(source, root, split, Size(self.classes, len(self.paths)))
        _check_files(source, root, self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path = self.paths[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"cannot read the image {path} ({error}); unpack the data set's archive again") from error
        return self.transform(image), int(self.labels[index])


def check_sampling(dataset: Split, samples_per_class: int, batch_size: int) -> None:
    """Raise where there are fewer images of a class, or fewer classes, than the sampler takes for a batch."""
    counts = torch.bincount(dataset.labels)
    smallest = int(counts.argmin())
    if counts[smallest] < samples_per_class:
        example = dataset.paths[int((dataset.labels == smallest).nonzero()[0])]
        raise ValueError(
            f"the class of {example} has {counts[smallest]} training images, the sampler takes {samples_per_class} of "
            "a class; unpack the data set's archive again, or lower samples_per_class"
        )
    if dataset.classes * samples_per_class < batch_size:
        raise ValueError(
            f"a batch of {batch_size} with {samples_per_class} of a class needs {batch_size // samples_per_class} "
            f"classes, there are {dataset.classes} to train on; lower batch_size"
        )


def _listed(source: Source, root: Path, split: str) -> tuple[list[Path], list[int]]:
    """Files and the data set's own class numbers, by PML."""
    for file in source.index_files:
        if not (root / file).is_file():
            raise FileNotFoundError(
                f"{source.title}: no file {root / file}; --data is the folder that holds {source.layout}"
            )
    try:
        listed = source.pml_dataset(str(root), split=split, download=False)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{source.title}: cannot read {_files(source, root)} ({error}); they may be cut short: unpack the archive "
            "again"
        ) from error
    return [Path(path) for path in listed.paths], listed.labels


def _check_size(source: Source, root: Path, split: str, found: Size) -> None:
    expected: Size = getattr(source, split)
    if found != expected:
        raise ValueError(
            f"{source.title}: {_files(source, root)} list {found.images:,} images of {found.classes:,} classes to "
            f"{split} on, expected {expected.images:,} of {expected.classes:,}; they may be cut short: unpack the "
            "archive again"
        )


def _check_files(source: Source, root: Path, paths: list[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{source.title}: {len(missing):,} of the {len(paths):,} images that {_files(source, root)} list are "
            f"missing, the first is {missing[0]}; the archive may be cut short: unpack it again. Expected in {root}: "
            f"{source.layout}"
        )


def _files(source: Source, root: Path) -> str:
    return " and ".join(str(root / file) for file in source.index_files)
