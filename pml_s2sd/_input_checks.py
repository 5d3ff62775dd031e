"""Checks of input: each raises an error that says what was expected and what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .embeddings import S2SDEmbeddings


def check_features(features: Any, in_features: int, *, maps_only: bool) -> None:
    """Features (B, F) or feature maps (B, F, H, W), floating point; with `maps_only` the latter."""
    expected = f"feature maps of shape (B, {in_features}, H, W)"
    if not maps_only:
        expected = f"features of shape (B, {in_features}) or {expected}"
    if not isinstance(features, torch.Tensor):
        raise TypeError(f"expected {expected}, got {type(features).__name__}")
    if not features.is_floating_point():
        raise TypeError(f"expected {expected} in a floating-point dtype, got {features.dtype}")
    shape = tuple(features.shape)
    if len(shape) not in (2, 4) or shape[1] != in_features or 0 in shape[2:]:
        raise ValueError(f"expected {expected}, got shape {shape}; in_features must be the trunk's number of channels")
    if maps_only and len(shape) != 4:
        raise ValueError(
            f"aggregate_pooling (variant MSDFA) needs {expected}, got shape {shape}; "
            "remove the trunk's own pooling, or choose the variant MSDF"
        )


def check_batch(name: str, batch: Any, embedding_size: int, aux_sizes: tuple[int, ...], *, training: bool) -> None:
    """`S2SDEmbeddings` of the sizes that the loss was made for; in eval mode a tensor too."""
    if not isinstance(batch, S2SDEmbeddings):
        if training:
            raise TypeError(
                f"in training mode {name} must be the S2SDEmbeddings that an S2SDEmbedder returns, unchanged, got "
                f"{type(batch).__name__}; put the embedder into training mode (model.train()), or, for a validation "
                "loss, this loss into eval mode (loss_func.eval())"
            )
        if not isinstance(batch, torch.Tensor):
            raise TypeError(f"{name} must be a tensor of shape (B, {embedding_size}), got {type(batch).__name__}")
        _check_matrix(name, batch, embedding_size)
        return
    _check_matrix(f"{name}.embeddings", batch.embeddings, embedding_size)
    if len(batch.aux) != len(aux_sizes):
        raise ValueError(
            f"{name}.aux has {len(batch.aux)} auxiliary spaces, but this loss was made for {len(aux_sizes)} "
            f"(sizes {aux_sizes}); make the S2SDLoss with the embedder of this model"
        )
    rows = batch.embeddings.shape[0]
    for i, (a, size) in enumerate(zip(batch.aux, aux_sizes, strict=True)):
        _check_matrix(f"{name}.aux[{i}]", a, size, rows)
    _check_matrix(f"{name}.features", batch.features, None, rows)


def check_labels(name: str, labels: Any, of: str, batch: S2SDEmbeddings | torch.Tensor) -> None:
    if labels is None:
        return
    if not isinstance(labels, torch.Tensor):
        kind = np.asarray(labels).dtype.kind
        remedy = f"use torch.as_tensor({name})"
        if kind not in "biu":  # words, objects, numbers with a point
            remedy = f"number the classes: torch.as_tensor(numpy.unique({name}, return_inverse=True)[1])"
        raise TypeError(f"{name} must be a tensor of shape (B,), got {type(labels).__name__}; {remedy}")
    if tuple(labels.shape) != (batch.shape[0],):
        remedy = "; flatten() a column, argmax(dim=1) one-hot rows" if labels.dim() == 2 else ""
        raise ValueError(
            f"{name} must have shape ({batch.shape[0]},), one for each of the {of}, got {tuple(labels.shape)}{remedy}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name} must be of an integer dtype, got {labels.dtype}; number the classes, or use .long()")


def _check_matrix(name: str, x: torch.Tensor, columns: int | None, rows: int | None = None) -> None:
    fits = x.dim() == 2 and columns in (None, x.shape[1]) and rows in (None, x.shape[0])
    if not fits:
        # Written out here only: a size put into text is a constant to torch.compile, which then compiles
        # anew for every batch size.
        expected = f"({'B' if rows is None else rows}, {'F' if columns is None else columns})"
        raise ValueError(
            f"{name} must have shape {expected}, got {tuple(x.shape)}; make the loss with the embedder of this model"
        )
    if x.shape[0] == 0:
        raise ValueError(
            f"{name} is empty: a batch needs at least one sample; skip the batch, or use drop_last in the loader"
        )
    if not x.is_floating_point():
        raise TypeError(f"{name} must be of a floating-point dtype, got {x.dtype}")
