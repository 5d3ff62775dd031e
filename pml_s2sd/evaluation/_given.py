"""Embeddings and labels as they are given, tensors or arrays of many dtypes, as the metrics take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..embeddings import base_embeddings


def as_embeddings(name: str, given: Any) -> torch.Tensor:
    """A finite matrix of embeddings, (N, d), float32.

    Args:
        name: what it is called in errors.
        given: a tensor, `S2SDEmbeddings`, or whatever numpy makes an array of.
    """
    x = base_embeddings(given)
    if not isinstance(x, torch.Tensor):
        array = np.asarray(x)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must be embeddings, numbers of shape (N, d), got {described(given, array)}")
        x = torch.from_numpy(array.astype(np.float32))
    if x.is_complex():
        raise TypeError(f"{name} must be embeddings of real numbers, got {x.dtype}")
    if x.dim() != 2 or not len(x):
        raise ValueError(f"{name} must be embeddings of shape (N, d), N at least 1, got shape {tuple(x.shape)}")
    x = x.float()
    broken = (~torch.isfinite(x).all(dim=1)).sum().item()
    if broken:
        raise ValueError(
            f"{name} holds {broken} embeddings of {len(x)} that are NaN or infinite, which have no nearest neighbours; "
            "see what the model makes of their samples, or whether training diverged"
        )
    return x


def as_labels(name: str, given: Any) -> torch.Tensor:
    """Labels, (N,) or several a sample (N, L): int64 of integers and bools, which are told apart exactly; else float64.

    Args:
        name: what they are called in errors.
        given: a tensor, or whatever numpy makes an array of; a column (N, 1) is taken for (N,).
    """
    if isinstance(given, torch.Tensor) and not given.is_complex():
        labels = given.double() if given.is_floating_point() else given.long()
        wraps = given.dtype == torch.uint64
    else:
        array = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
        if array.dtype.kind not in "biuf":
            raise TypeError(
                f"{name} must be numbers, a label for each embedding, got {described(given, array)}; number classes of "
                "other names, those of queries and references together: numpy.unique(names, return_inverse=True)[1]"
            )
        labels = torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
        wraps = array.dtype.kind == "u" and array.dtype.itemsize == 8
    if labels.dim() not in (1, 2):
        raise ValueError(f"{name} must have shape (N,), a label for each embedding, got shape {tuple(labels.shape)}")
    if wraps and (labels < 0).any():
        raise ValueError(f"{name} holds labels of 2⁶³ and above; number the classes from 0")
    if labels.is_floating_point() and torch.isnan(labels).any():
        raise ValueError(f"{name} holds NaN, which is no class; leave these samples out, or give them a class")
    return (labels.squeeze(1) if labels.dim() == 2 and labels.shape[1] == 1 else labels).contiguous()


def described(given: Any, array: np.ndarray) -> str:
    """What was given, and of what."""
    if not array.size or not array.ndim:
        return repr(given)
    return f"{type(given).__name__} of {type(array.flat[0]).__name__}"
