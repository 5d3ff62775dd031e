"""Checks of input: each raises an error that says what was expected and what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .embeddings import S2SDEmbeddings


def check_batch(name: str, batch: Any, embedding_size: int, aux_sizes: tuple[int, ...], *, training: bool) -> None:
    """`S2SDEmbeddings` of the sizes that the loss was made for; in eval mode a tensor too."""
    if not isinstance(batch, S2SDEmbeddings):
        if training:
            raise TypeError(
                f"in training mode {name} must be the S2SDEmbeddings that an S2SDEmbedder returns, unchanged, got "
                f"{type(batch).__name__}: either the embedder is in eval mode, then call model.train(), or an "
                "operation took the base space alone, then do without it, or take whole samples (batch[rows], "
                "batch.split(n)); only a validation loss wants loss_func.eval(), which switches S2SD off"
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
