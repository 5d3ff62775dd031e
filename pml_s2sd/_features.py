"""A trunk's features: what an embedder takes of them, how it pools and converts them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._what_to_write import contents, remedy


def average_pool(features: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Global average pooling of (B, F, H, W), features (B, F) as they are; in `dtype`, None for their own."""
    if features.dim() == 4:
        return features.mean(dim=(2, 3), dtype=dtype)
    return features if dtype is None else features.to(dtype)


def max_pool(features: torch.Tensor) -> torch.Tensor:
    """Global max pooling of (B, F, H, W)."""
    return nn.functional.adaptive_max_pool2d(features, 1).flatten(1)


def smallest_maps(average: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
    """The smallest feature maps of this average and maximum, each (B, F): (B, F, 1, 2)."""
    return torch.stack([maximum, 2 * average - maximum], dim=2)[:, :, None]


def dtype_for(head: nn.Module, features: torch.Tensor) -> torch.dtype | None:
    """The dtype that the features have to be converted to for `head`; None where it takes them as they are."""
    dtype = next((p.dtype for p in head.parameters() if p.dtype.is_floating_point), features.dtype)
    if dtype == features.dtype or (_autocast(features.device.type) and torch.float64 not in (dtype, features.dtype)):
        return None
    return dtype


def _autocast(device: str) -> bool:
    """Whether layers on this device convert their input by themselves, all but float64."""
    return device != "meta" and torch.is_autocast_enabled(device)


class PlainOutput:
    """What most trunks return: features, or feature maps. An embedder with a field or tokens has a `NamedOutput`."""

    def tensor(self, output: Any) -> Any:
        """What is meant of the output: all of it."""
        return output

    def features(
        self, output: Any, attention_mask: torch.Tensor | None, in_features: int, *, maps_only: bool
    ) -> torch.Tensor:
        """Features (B, F) or feature maps (B, F, H, W), checked. No mask is needed: nothing of them is padded."""
        return checked_features(output, in_features, maps_only=maps_only)


def checked_features(features: Any, in_features: int, *, maps_only: bool) -> torch.Tensor:
    """Features (B, F) or feature maps (B, F, H, W), floating point; with `maps_only` the latter.

    Maps whose channels are last, (B, H, W, F), come back with channels first, where the shape leaves no doubt.
    """
    expected = f"feature maps of shape (B, {in_features}, H, W)"
    if not maps_only:
        expected = f"features of shape (B, {in_features}) or {expected}"
    if not isinstance(features, torch.Tensor):
        found = f"{type(features).__name__}{contents(features)}"
        raise TypeError(f"expected {expected}, got {found}{remedy(features, in_features, maps_only)}")
    if not features.is_floating_point():
        raise TypeError(
            f"expected {expected} in a floating-point dtype, got {features.dtype}; convert them: features.float()"
        )
    if features.is_nested:
        raise ValueError(f"expected {expected}, got a nested tensor; pool each of its sequences first")
    shape = tuple(features.shape)
    if len(shape) == 4 and shape[1] != in_features and shape[3] == in_features:
        features = features.movedim(3, 1)
    if len(shape) not in (2, 4) or features.shape[1] != in_features or 0 in features.shape[2:]:
        to_write = remedy(features, in_features, maps_only) or "; in_features must be the trunk's number of channels"
        raise ValueError(f"expected {expected}, got shape {shape}{to_write}")
    if maps_only and len(shape) != 4:
        raise ValueError(
            f"aggregate_pooling (variant MSDFA) needs {expected}, got shape {shape}; "
            "remove the trunk's own pooling, or choose the variant MSDF"
        )
    return features
