"""What to write, where a trunk returned something else than an embedder takes: the end of its error messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

# So many of a trunk's outputs are written out: the last ones, which are the deepest layers'.
_MOST = 4


class Entry(NamedTuple):
    """One of the things that a trunk's output holds."""

    place: str
    """How it is taken: `.name`, `['name']` or `[0]`."""
    field: Any
    """How `field=` names it."""
    value: Any


def entries(value: Any) -> list[Entry]:
    """What a trunk's output holds."""
    if isinstance(value, Mapping):  # Hugging Face's outputs too
        return [Entry(_place(value, key), key, entry) for key, entry in value.items()]
    if hasattr(value, "_fields"):  # a named tuple
        return [Entry(f".{name}", name, getattr(value, name)) for name in value._fields]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return [Entry(f".{name}", name, getattr(value, name)) for name in names]
    return [Entry(f"[{i}]", i, entry) for i, entry in enumerate(value)] if isinstance(value, tuple | list) else []


def contents(value: Any) -> str:
    """What a trunk's output holds, in words."""
    held = [
        f"{place} {tuple(entry.shape) if isinstance(entry, torch.Tensor) else type(entry).__name__}"
        for place, _, entry in entries(value)[-_MOST:]
    ]
    return f" of {', '.join(held)}" if held else ""


def remedy(features: Any, in_features: int, maps_only: bool) -> str:
    """What to write instead, for each of the tensors in `features` that could be meant."""
    if hasattr(features, "__array_interface__"):
        return "; write embedder(torch.as_tensor(features))"
    ways: list[str] = []
    if isinstance(features, torch.Tensor):
        ways = list(_ways(tuple(features.shape), in_features, maps_only, "features", ""))
    for place, field, value in entries(features):
        if isinstance(value, torch.Tensor):
            named = f"field={field!r}".replace("'", '"')
            ways += _ways(tuple(value.shape), in_features, maps_only, f"features{place}", named)
    return f"; write {', or '.join(ways[-_MOST:])}" if ways else ""


def _ways(shape: tuple[int, ...], channels: int, maps_only: bool, expression: str, field: str) -> Iterator[str]:
    """How features, or feature maps, are made of a tensor of this shape; and what of it that takes."""
    of_one_sample = shape[:1] == (channels,) and channels not in shape[1:]
    if of_one_sample and (len(shape) == 3 or (len(shape) == 1 and not maps_only)):
        yield f"embedder({expression}[None]), a batch of one sample"
    if len(shape) < 2 or 0 in shape[1:]:
        return
    if len(shape) == 4 and channels in (shape[1], shape[3]):
        yield f"s2sd(…, {field})"
    elif shape[1] == channels:
        if len(shape) > 2:
            pooled = ".flatten(2).unsqueeze(3)" if maps_only else ".flatten(2).mean(dim=2)"
            yield f"embedder({expression}{pooled}), all positions pooled"
        elif not maps_only:
            yield f"s2sd(…, {field})"
    if shape[-1] == channels and len(shape) == 3:
        settings = f"{field}, tokens=" if field else "tokens="
        if maps_only:
            yield f's2sd(…, {settings}"mean"), the mean and the maximum of the tokens'
        else:
            yield f's2sd(…, {settings}"class"), the class token, where it is the first'
            yield f's2sd(…, {settings}"mean"), the mean of the tokens'
    if shape[-1] == channels and len(shape) > 4:
        yield (
            f"embedder({expression}.movedim(-1, 1).flatten(2).unsqueeze(3)), channels last made channels first, all "
            "positions pooled"
        )


def _place(value: Mapping, key: Any) -> str:
    """As Hugging Face's outputs, which are attributes too, are written; otherwise by key."""
    is_attribute = isinstance(key, str) and getattr(value, key, None) is value[key]
    return f".{key}" if is_attribute else f"[{key!r}]"
