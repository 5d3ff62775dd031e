"""A trunk's features: what an embedder takes of them, how it pools and converts them, what it says of anything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# So many of a trunk's outputs are written out: the last ones, which are the deepest layers'.
_MOST = 4


def average_pool(features: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Global average pooling of (B, F, H, W), features (B, F) as they are; in `dtype`, None for their own."""
    if features.dim() == 4:
        return features.mean(dim=(2, 3), dtype=dtype)
    return features if dtype is None else features.to(dtype)


def max_pool(features: torch.Tensor) -> torch.Tensor:
    """Global max pooling of (B, F, H, W)."""
    return nn.functional.adaptive_max_pool2d(features, 1).flatten(1)


def dtype_for(head: nn.Module, features: torch.Tensor) -> torch.dtype | None:
    """The dtype that the features have to be converted to for `head`; None where it takes them as they are."""
    dtype = next((p.dtype for p in head.parameters() if p.dtype.is_floating_point), features.dtype)
    if dtype == features.dtype or (_autocast(features.device.type) and torch.float64 not in (dtype, features.dtype)):
        return None
    return dtype


def _autocast(device: str) -> bool:
    """Whether layers on this device convert their input by themselves, all but float64."""
    return device != "meta" and torch.is_autocast_enabled(device)


def check_features(features: Any, in_features: int, *, maps_only: bool) -> None:
    """Features (B, F) or feature maps (B, F, H, W), floating point; with `maps_only` the latter."""
    expected = f"feature maps of shape (B, {in_features}, H, W)"
    if not maps_only:
        expected = f"features of shape (B, {in_features}) or {expected}"
    if not isinstance(features, torch.Tensor):
        found = f"{type(features).__name__}{_contents(features)}"
        raise TypeError(f"expected {expected}, got {found}{_remedy(features, in_features, maps_only)}")
    if not features.is_floating_point():
        raise TypeError(
            f"expected {expected} in a floating-point dtype, got {features.dtype}; convert them: features.float()"
        )
    if features.is_nested:
        raise ValueError(f"expected {expected}, got a nested tensor; pool each of its sequences first")
    shape = tuple(features.shape)
    if len(shape) not in (2, 4) or shape[1] != in_features or 0 in shape[2:]:
        remedy = _remedy(features, in_features, maps_only)
        remedy = remedy or "; in_features must be the trunk's number of channels"
        raise ValueError(f"expected {expected}, got shape {shape}{remedy}")
    if maps_only and len(shape) != 4:
        raise ValueError(
            f"aggregate_pooling (variant MSDFA) needs {expected}, got shape {shape}; "
            "remove the trunk's own pooling, or choose the variant MSDF"
        )


def _remedy(features: Any, in_features: int, maps_only: bool) -> str:
    """What to write instead, for each of the tensors in `features` that could be meant."""
    if isinstance(features, torch.Tensor):
        entries = {"features": features}
    elif hasattr(features, "__array_interface__"):
        return "; write embedder(torch.as_tensor(features))"
    else:
        entries = {f"features{place}": value for place, value in _entries(features)}
    ways = [
        f"embedder({expression}{way}){meaning}"
        for expression, value in entries.items()
        if isinstance(value, torch.Tensor)
        for way, meaning in _ways(tuple(value.shape), in_features, maps_only)
    ]
    return f"; write {', or '.join(ways[-_MOST:])}" if ways else ""


def _ways(shape: tuple[int, ...], channels: int, maps_only: bool) -> Iterator[tuple[str, str]]:
    """How to make features, or feature maps, of a tensor of this shape; and what of it that takes."""
    of_one_sample = shape[:1] == (channels,) and channels not in shape[1:]
    if of_one_sample and (len(shape) == 3 or (len(shape) == 1 and not maps_only)):
        yield "[None]", ", a batch of one sample"
    if len(shape) < 2 or 0 in shape[1:]:
        return
    if shape[1] == channels:
        if len(shape) == 4 or (len(shape) == 2 and not maps_only):
            yield "", ""
        elif len(shape) > 2:
            yield ".flatten(2).unsqueeze(3)" if maps_only else ".flatten(2).mean(dim=2)", ", all positions pooled"
    if shape[-1] == channels and len(shape) == 3:
        if maps_only:
            yield ".mT.unsqueeze(3)", ", all tokens pooled"
        else:
            yield "[:, 0]", ", the class token, where it is the first"
            yield ".mean(dim=1)", ", the mean of the tokens"
    if shape[-1] == channels and len(shape) == 4:
        yield ".movedim(-1, 1)", ", channels last made channels first"
    if shape[-1] == channels and len(shape) > 4:
        yield ".movedim(-1, 1).flatten(2).unsqueeze(3)", ", channels last made channels first, all positions pooled"


def _entries(value: Any) -> list[tuple[str, Any]]:
    """What a trunk's output holds, each with the way to take it: `.name`, `['name']` or `[0]`."""
    if isinstance(value, dict):  # Hugging Face's outputs too
        return [(_place(value, key), entry) for key, entry in value.items()]
    if hasattr(value, "_fields"):  # a named tuple
        return [(f".{name}", getattr(value, name)) for name in value._fields]
    if dataclasses.is_dataclass(value):
        return [(f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    return [(f"[{i}]", entry) for i, entry in enumerate(value)] if isinstance(value, tuple | list) else []


def _place(value: dict, key: Any) -> str:
    """As Hugging Face's outputs, which are attributes too, are written; otherwise by key."""
    is_attribute = isinstance(key, str) and getattr(value, key, None) is value[key]
    return f".{key}" if is_attribute else f"[{key!r}]"


def _contents(value: Any) -> str:
    held = [
        f"{place} {tuple(entry.shape) if isinstance(entry, torch.Tensor) else type(entry).__name__}"
        for place, entry in _entries(value)[-_MOST:]
    ]
    return f" of {', '.join(held)}" if held else ""
