"""Checks of arguments and input: each raises an error that says what was expected and what came."""

from __future__ import annotations

import math
from typing import Any

import torch

from .embeddings import S2SDEmbeddings


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


def check_weight(name: str, weight: Any) -> None:
    """A number of at least 0, or the word "auto"."""
    if not isinstance(weight, str):
        check_number(name, weight, at_least=0)
    elif weight != "auto":
        raise ValueError(f'{name} must be a number or "auto", got {weight!r}')


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
        raise TypeError(
            f"{name} must be a tensor of shape (B,), got {type(labels).__name__}; use torch.as_tensor({name})"
        )
    if tuple(labels.shape) != (batch.shape[0],):
        remedy = "; flatten() a column, argmax(dim=1) one-hot rows" if labels.dim() == 2 else ""
        raise ValueError(
            f"{name} must have shape ({batch.shape[0]},), one for each of the {of}, got {tuple(labels.shape)}{remedy}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name} must be of an integer dtype, got {labels.dtype}; number the classes, or use .long()")


def check_judged(
    embeddings: S2SDEmbeddings | torch.Tensor,
    labels: torch.Tensor | None,
    indices_tuple: tuple[torch.Tensor, ...] | None,
    ref_emb: S2SDEmbeddings | torch.Tensor | None,
    ref_labels: torch.Tensor | None,
) -> None:
    """With an automatic weight teachers are followed where they retrieve better, which labels tell."""
    two_views = (
        indices_tuple is None and ref_emb is not None and ref_emb is not embeddings and len(ref_emb) == len(embeddings)
    )
    if labels is None and not two_views:
        raise ValueError(
            "an automatic weight needs labels, or as many references as samples, to see which spaces retrieve better; "
            "give labels, or set distill_weight and feature_weight to numbers"
        )
    if labels is not None and ref_emb is not None and ref_emb is not embeddings and ref_labels is None:
        raise ValueError("an automatic weight needs ref_labels where ref_emb and labels are given; give them")


def check_scalar(objective: torch.nn.Module, value: Any) -> None:
    """What an objective returned."""
    if not isinstance(value, torch.Tensor) or value.dim() != 0:
        is_tensor = isinstance(value, torch.Tensor)
        found = f"a tensor of shape {tuple(value.shape)}" if is_tensor else type(value).__name__
        raise TypeError(
            f"{type(objective).__name__} returned {found}, expected a scalar tensor; "
            "give it a reducer that reduces, such as pytorch_metric_learning.reducers.MeanReducer()"
        )


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
