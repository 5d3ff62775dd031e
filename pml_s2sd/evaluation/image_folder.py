"""A folder of images, FOLDER/class/name.png; pillow, which reads them, comes with the `examples` extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def files_by_class(folder: str | Path) -> dict[str, list[Path]]:
    """The image files of each class folder, by the classes' names, both in alphabetical order.

    Raises:
        FileNotFoundError: there is no such folder.

    Example:
        >>> from pml_s2sd.evaluation.image_folder import files_by_class
        >>> files_by_class("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: no folder nowhere; expected images laid out as nowhere/class/name.png
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected images laid out as {folder}/class/name.png")
    return {
        path.name: sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)
        for path in sorted(folder.iterdir())
        if path.is_dir()
    }


def read_image(file: Path, size: tuple[int, int]) -> torch.Tensor:
    """An image as RGB, stretched to a size (H, W) bilinearly: (3, H, W), float32 in [0, 1].

    Raises:
        ImportError: pillow is not installed.
        ValueError: the file is no image, or a broken one.
    """
    Image = pillow_image()
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
    except Exception as error:  # what a decoder raises depends on the format and on how the file is broken
        raise ValueError(f"cannot read the image {file}: {error}; mend or remove it") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def pillow_image() -> Any:
    """The module PIL.Image."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('images are read with pillow; install it with pip install "pml-s2sd[examples]"') from error
    return Image


Sample = tuple[int, torch.Tensor | str]


class ImageFolder(Dataset):
    """The images of a folder, laid out as FOLDER/class/name.png; a broken one becomes a message.

    Args:
        folder: one folder a class inside; class folders without images are left out.
        size: (H, W) to which images are stretched.

    Attributes:
        files: N paths.
        classes: N names of classes.

    A sample is (its index, its image (3, H, W) in [0, 1], or where that cannot be read why); batches are
    made of samples by `together`.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: str | Path, size: tuple[int, int]) -> None:
        self.folder, self.size = Path(folder), size
        found = files_by_class(folder)
        self.files = [file for files in found.values() for file in files]
        self.classes = [name for name, files in found.items() for _ in files]
        if not self.files:
            endings = ", ".join(sorted(IMAGE_ENDINGS))
            raise ValueError(
                f"no images in {folder}, in its {len(found)} class folders; expected {folder}/class/name.png, or one "
                f"of {endings}"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        try:
            return index, read_image(self.files[index], self.size)
        except ValueError as error:
            return index, str(error)


def together(samples: Sequence[Sample]) -> tuple[list[int], list[torch.Tensor], list[str]]:
    """A batch: the indices of the images that could be read, these images, and the messages of the others."""
    read = [(index, image) for index, image in samples if isinstance(image, torch.Tensor)]
    messages = [message for _, message in samples if isinstance(message, str)]
    return [index for index, _ in read], [image for _, image in read], messages
