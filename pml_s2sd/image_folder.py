"""A folder of images, FOLDER/class/…/name.png, read one by one; a broken one is passed on as such."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Read(NamedTuple):
    """An image (3, S, S) in [0, 1], normalised where asked for, or why there is none."""

    place: int
    image: torch.Tensor | None
    problem: str = ""


class ImageFolder(Dataset[Read]):
    """The images below a folder; the folders directly inside are the classes.

    Args:
        folder: holds one folder a class.
        side: S, to which images are resized.
        resize: the shorter side is resized to this, and the centre S × S is cut out; by default the whole
            image is resized to S × S, whatever its shape.
        mean, std: a value a channel, (x - mean) / std; by default x as it is.

    Raises:
        FileNotFoundError, ValueError: naming the folder, the expected layout and what was found.

    Example:
        >>> from pml_s2sd.image_folder import ImageFolder
        >>> ImageFolder("nowhere", side=32)
        Traceback (most recent call last):
        FileNotFoundError: no folder nowhere; expected images laid out as nowhere/class/name.png
    """

    def __init__(
        self,
        folder: str | Path,
        side: int,
        *,
        resize: int | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        folder = Path(folder)
        layout = f"expected images laid out as {folder}/class/name.png"
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; {layout}")
        if resize is not None and resize < side:
            raise ValueError(f"resize must be at least the image size {side}, which is cut out of it, got {resize}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be three values each, std above 0, got {tuple(mean)} and {tuple(std)}")
        self.files = sorted(f for f in folder.glob("*/**/*") if f.suffix.lower() in ENDINGS and f.is_file())
        if not self.files:
            raise ValueError(f"no image with an ending of {', '.join(ENDINGS)} in class folders of {folder}; {layout}")
        self.classes = [file.relative_to(folder).parts[0] for file in self.files]
        self.side, self.resize = side, resize
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Read:
        from PIL import Image

        try:
            with Image.open(self.files[index]) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # as Pillow raises them
            return Read(index, None, f"{self.files[index]}: {error}")
        shape, bilinear = (self.side, self.side), Image.Resampling.BILINEAR
        if self.resize is None:
            image = image.resize(shape, bilinear)
        else:
            larger = [round(length * self.resize / min(image.size)) for length in image.size]
            left, top = ((length - self.side) // 2 for length in larger)
            image = image.resize((larger[0], larger[1]), bilinear)
            image = image.crop((left, top, left + self.side, top + self.side))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return Read(index, (pixels - self.mean) / self.std)
