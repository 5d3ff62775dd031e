"""The configuration of one table cell, read from its TOML file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHOICES = {
    "dataset": ("cub200", "cars196", "sop"),
    "variant": ("baseline", "dsd", "msd", "msdf", "msdfa"),
    "trunk": ("resnet50", "googlenet"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What a cell is trained with; the names are those of the file."""

    dataset: str
    variant: str
    trunk: str
    embedding_size: int
    epochs: int
    batch_size: int
    samples_per_class: int
    learning_rate: float
    weight_decay: float
    side: int
    """Of the square images that the trunk sees."""
    resize: int
    """Test images: their shorter side, before the centre is cut out."""
    objective: dict[str, Any]
    """``name``, and the arguments of `objectives.OBJECTIVES[name]`."""
    s2sd: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of `pml_s2sd.s2sd`; none for the baseline."""
    paper_recall_at_1: float | None = None
    """The paper's figure in percent, a mean of five seeds; None where it has none, or we do not know it."""


def load_config(path: Path) -> Config:
    """The configuration in a file.

    Raises:
        FileNotFoundError, ValueError: naming the file, what was expected and what was found.
    """
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no configuration {path}; those of the paper are in {CONFIGS}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    fields = {field.name: field for field in dataclasses.fields(Config)}
    needed = {name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING}
    if found.keys() - fields.keys() or needed - found.keys():
        raise ValueError(
            f"{path}: unknown settings {sorted(found.keys() - fields.keys())}, missing ones "
            f"{sorted(needed - found.keys())}; expected {', '.join(fields)}"
        )
    for name, choices in CHOICES.items():
        if found[name] not in choices:
            raise ValueError(f"{path}: {name} must be one of {', '.join(choices)}, got {found[name]!r}")
    config = Config(**found)
    if config.batch_size % config.samples_per_class:
        raise ValueError(
            f"{path}: batch_size must be a multiple of samples_per_class, got {config.batch_size} and "
            f"{config.samples_per_class}"
        )
    return config


CONFIGS = Path(__file__).parent / "configs"
