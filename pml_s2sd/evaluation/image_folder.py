"""A folder of images, FOLDER/class/name.png; pillow, which reads them, comes with the `examples` extra."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

IMAGE_FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
"""What is read, by pillow's names; no other format, whatever a file is called."""
IMAGE_ENDINGS = {ending for endings in IMAGE_FORMATS.values() for ending in endings}

ORIENTATION, BITS, PHOTOMETRIC = 274, 258, 262
"""Tags of TIFF, the first of EXIF too."""


def find_images(folder: str | Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The image files of each class folder, and what else there is.

    Regular files that are called as images are, in folders of `folder`, and links to such files or folders that lie
    elsewhere. Left out are hidden entries, links that lead back into the folder or above it, pipes, devices, and
    everything that is no image by its name or of no class.

    Args:
        folder: with a folder inside for each class.

    Returns:
        The files by the classes' names, both in alphabetical order, classes without images among them; and for each
        entry that is left out a text, its path and why.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected images laid out as {folder}/class/name.png")
    root = Path(os.path.realpath(folder))
    found: dict[str, list[Path]] = {}
    left_out: list[str] = []
    for path in sorted(folder.iterdir()):
        if why := _why_no_class(path, root):
            left_out.append(f"{path}: {why}")
            continue
        found[path.name] = []
        for file in sorted(path.iterdir()):
            if why := _why_no_image(file, root):
                left_out.append(f"{file}: {why}")
            else:
                found[path.name].append(file)
    return found, left_out


def files_by_class(folder: str | Path) -> dict[str, list[Path]]:
    """The image files of each class folder, by the classes' names, both in alphabetical order; see `find_images`.

    Raises:
        FileNotFoundError: there is no such folder.

    Example:
        >>> from pml_s2sd.evaluation.image_folder import files_by_class
        >>> files_by_class("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: no folder nowhere; expected images laid out as nowhere/class/name.png
    """
    return find_images(folder)[0]


def _why_no_class(path: Path, root: Path) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    if _leads_back(path, root):
        return "a link back into the folder of images, or above it"
    if path.is_dir():
        return None
    return "an image of no class" if path.suffix.lower() in IMAGE_ENDINGS and path.is_file() else "no folder"


def _why_no_image(path: Path, root: Path) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    if _leads_back(path, root):
        return "a link back into the folder of images, or above it"
    if path.is_dir():
        return "a folder within a class"
    if not path.is_file():
        return "no regular file"
    return None if path.suffix.lower() in IMAGE_ENDINGS else "no image by its name"


def _leads_back(path: Path, root: Path) -> bool:
    if not path.is_symlink():
        return False
    target = Path(os.path.realpath(path))
    return target.is_relative_to(root) or root.is_relative_to(target)


def read_image(file: Path, size: tuple[int, int]) -> torch.Tensor:
    """An image as RGB, upright, stretched to a size (H, W) bilinearly: (3, H, W), float32 in [0, 1].

    - Turned as its EXIF says. Transparent pixels show white. Of several frames the first. Colour profiles are not
      applied.
    - White is the largest value of the file's depth: 1, 2, 4, 8, 12 or 16 bits. Floats must lie in [0, 1], which is
      taken as it is. Integers of 32 bits, whose depth is not known, are taken for 16 bits where the largest is above
      255, and below 2¹⁶. Whatever else has more than 8 bits is refused.

    Raises:
        ImportError: pillow is not installed.
        ValueError: the file is no image, a broken one, or one whose white is not known.
    """
    Image = pillow_image()
    file = Path(file)
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is no regular file")
        Image.init()
        formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]  # pillow may be built without some
        with Image.open(file, formats=formats) as opened:
            image = _opaque(_upright(opened))
            if image.mode.startswith(("I", "F")):
                pixels = Image.fromarray(_unit_range(image, opened))
            else:
                pixels = image.convert("RGB")
            x = np.array(pixels.resize(size[::-1], Image.Resampling.BILINEAR))
    except Exception as error:  # what a decoder raises depends on the format and on how the file is broken
        raise ValueError(f"cannot read the image {file}: {error}; mend or remove it") from error
    if x.ndim == 2:
        return torch.from_numpy(x).clamp(0, 1).expand(3, *size).clone()
    return torch.from_numpy(x).permute(2, 0, 1).float() / 255


def _upright(image: Any) -> Any:
    """Turned as EXIF says, where that can be read."""
    from PIL import ImageOps

    image.load()
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # a broken EXIF tells of no orientation; the pixels are whole
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _opaque(image: Any) -> Any:
    """On white, where there is anything transparent."""
    Image = pillow_image()
    has_alpha = {"A", "a"} & set(image.getbands()) or "transparency" in image.info
    if not has_alpha or image.mode.startswith(("I", "F")):
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _unit_range(image: Any, opened: Any) -> np.ndarray:
    """One channel of more than 8 bits, (H, W), float32 in [0, 1]."""
    values = np.array(image, dtype=np.float64)
    tags = getattr(opened, "tag_v2", {})
    bits = tags.get(BITS, (16,))[0]
    low, high = values.min(), values.max()
    if image.mode == "F":
        white = 1.0
        fits, expected = bool(low >= 0 and high <= 1), "floats from 0 to 1"
    elif image.mode == "I" and opened.format == "TIFF":
        white = 65535.0
        fits, expected = bool(bits == 32 and low >= 0 and 255 < high <= white), "unsigned integers of 8 or 16 bits"
    else:
        white = float(2**bits - 1)
        fits, expected = bool(low >= 0 and high <= white), f"integers of {bits} bits"
    if not fits:
        raise ValueError(f"its values lie from {low:g} to {high:g}, of which white is not known; expected {expected}")
    x = values / white
    if "transparency" in image.info:
        x[values == image.info["transparency"]] = 1
    return (1 - x if tags.get(PHOTOMETRIC) == 0 else x).astype(np.float32)


def pillow_image() -> Any:
    """The module PIL.Image."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images are read with pillow: pip install pillow") from error
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
        left_out: a text for each other entry of the folder, its path and why; see `find_images`.

    A sample is (its index, its image (3, H, W) in [0, 1], or where that cannot be read why); batches are
    made of samples by `together`.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: str | Path, size: tuple[int, int]) -> None:
        self.folder, self.size = Path(folder), size
        found, self.left_out = find_images(folder)
        self.left_out += [f"{self.folder / name}: a class without images" for name, files in found.items() if not files]
        self.files = [file for files in found.values() for file in files]
        self.classes = [name for name, files in found.items() for _ in files]
        if not self.files:
            endings = ", ".join(sorted(IMAGE_ENDINGS))
            others = f"; found {some(self.left_out)}" if self.left_out else ""
            raise ValueError(
                f"no images in {folder}, in its {len(found)} class folders; expected {folder}/class/name.png, or one "
                f"of {endings}{others}"
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


def some(names: Sequence[str], at_most: int = 5) -> str:
    """The first of them, and how many more there are."""
    return ", ".join([*names[:at_most], *([f"and {len(names) - at_most} more"] if len(names) > at_most else [])])
