"""Icons for the examples: of the same name in many icon sets; make icons draws them."""

from __future__ import annotations

from pathlib import Path

from images import DrawingsDataset

ICONS_FOLDER = Path(__file__).parent / "data" / "icons"
ICONS_SIDE = 64


class IconsDataset(DrawingsDataset):
    """Icons of the same name in several sets, black on white, (N, 3, 64, 64): a class is a name, a style is a set.

    Args:
        train: the training half of the classes, or the unseen half, as of the emoji: see `images.split_classes`.
        folder: where `data/build_icons.py` wrote them.

    Raises:
        FileNotFoundError, ValueError: the index is missing, or a sheet is missing or cut short.
    """

    def __init__(self, train: bool, folder: Path = ICONS_FOLDER) -> None:
        super().__init__(folder, ICONS_SIDE, train, "draw the data set with make icons")
