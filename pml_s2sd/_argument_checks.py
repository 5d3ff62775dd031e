"""Checks of arguments: each raises an error that says what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch


def check_int(name: str, value: Any, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} ({value!r})")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")


def check_number(name: str, value: Any, *, at_least: float | None = None, above: float | None = None) -> None:
    """A finite real number, within the bound given."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} ({value!r})")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
    if above is not None and value <= above:
        raise ValueError(f"{name} must be above {above}, got {value}")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_instance(name: str, value: Any, cls: type, what: str) -> None:
    """None, or an instance of `cls`."""
    if value is not None and not isinstance(value, cls):
        raise TypeError(f"{name} must be {what} (an instance), got {value!r}")


def check_embedder(embedder: Any) -> None:
    """What an S2SDLoss reads of its embedder; duck-typed, so that a compiled one serves too."""
    if not (hasattr(embedder, "embedding_size") and hasattr(embedder, "aux_sizes")):
        raise TypeError(
            f"embedder must be the S2SDEmbedder of the model, got {type(embedder).__name__}; "
            "pass the embedder itself, not the model around it, e.g. model[1] or model.module.embedder"
        )


def checked_device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        raise ValueError(f"cannot use the device {device!r}: {error}") from error
