"""Generated images in the data sets' real layouts, for dry runs and tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

FIRST_TEST_CLASS = {"cub200": 101, "cars196": 99, "sop": 11319}
WriteImage = Callable[[Path, int], object]


def write_small_dataset(name: str, root: Path) -> None:
    """Eight classes to train on and four to test on, three images each."""
    first = FIRST_TEST_CLASS[name]
    write_dataset(name, root, dict.fromkeys([*range(1, 9), *range(first, first + 4)], 3))


def noise(path: Path, number: int) -> None:
    """A noisy image in a colour of its own; the first of every seven is grey, as some real ones are."""
    random = np.random.default_rng(number)
    pixels = (random.uniform(0, 200, 3) + random.uniform(0, 55, (72, 90, 3))).astype(np.uint8)
    Image.fromarray(pixels).convert("RGB" if number % 7 else "L").save(path, format="JPEG")


def write_dataset(name: str, root: Path, images_of: dict[int, int], write_image: WriteImage = noise) -> None:
    """A data set as its archive unpacks, as far as it is read.

    Args:
        name: of the data set.
        root: the folder to write in.
        images_of: class number, as the data set counts, from 1 -> number of images.
        write_image: called with the file and the number of each image.
    """
    numbers = [c for c, count in sorted(images_of.items()) for _ in range(count)]
    paths = WRITERS[name](root, numbers)
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        write_image(path, number)


def _write_cub200(root: Path, numbers: list[int]) -> list[Path]:
    folder = root / "CUB_200_2011"
    names = [f"{c:03d}.Bird_{c}/Bird_{c}_{i:04d}.jpg" for i, c in enumerate(numbers, start=1)]
    _write_lines(folder / "images.txt", [f"{i} {name}" for i, name in enumerate(names, start=1)])
    _write_lines(folder / "image_class_labels.txt", [f"{i} {c}" for i, c in enumerate(numbers, start=1)])
    return [folder / "images" / name for name in names]


def _write_cars196(root: Path, numbers: list[int]) -> list[Path]:
    """Classes hold images of the archive's own train and test folders, which zero-shot splits do not follow."""
    names = [f"Car C/V {c} 2012" for c in range(1, 197)]
    _write_lines(root / "names.csv", names)
    paths = []
    for part, half in (("train", numbers[::2]), ("test", numbers[1::2])):
        files = [f"{i:05d}.jpg" for i in range(1, len(half) + 1)]
        _write_lines(root / f"anno_{part}.csv", [f"{file},1,1,72,90,{c}" for file, c in zip(files, half, strict=True)])
        folder = root / "car_data" / "car_data" / part
        paths += [folder / names[c - 1].replace("/", "-") / file for file, c in zip(files, half, strict=True)]
    return paths


def _write_sop(root: Path, numbers: list[int]) -> list[Path]:
    folder = root / "Stanford_Online_Products"
    kinds = ("bicycle", "cabinet", "chair")
    files = [f"{kinds[c % 3]}_final/{c:012d}_{i}.JPG" for i, c in enumerate(numbers)]
    rows = [f"{i} {c} {c % 3 + 1} {file}" for i, (c, file) in enumerate(zip(numbers, files, strict=True), start=1)]
    to_train = sum(c < FIRST_TEST_CLASS["sop"] for c in numbers)
    for part, part_rows in (("train", rows[:to_train]), ("test", rows[to_train:])):
        _write_lines(folder / f"Ebay_{part}.txt", ["image_id class_id super_class_id path", *part_rows])
    return [folder / file for file in files]


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


WRITERS = {"cub200": _write_cub200, "cars196": _write_cars196, "sop": _write_sop}
