"""The value of one space's objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def objective_value(
    loss: nn.Module,
    miner: nn.Module | None,
    x: torch.Tensor,
    labels: torch.Tensor | None,
    ref: torch.Tensor | None,
    arguments: dict[str, Any],
) -> torch.Tensor:
    """L(x), on the tuples that the miner finds in x, where there is one.

    Only what was given is passed on: PML's wrappers do not all take the same arguments.

    Args:
        x: (B, d), the embeddings of this space.
        ref: (R, d), the references.
        arguments: what was given besides: indices_tuple, ref_labels, enqueue_mask, …
    """
    parameter = next(loss.parameters(), None)
    if parameter is not None and torch.promote_types(x.dtype, parameter.dtype) != x.dtype:
        # PML would turn the parameters, proxies for one, into x's lower precision, in place and for good.
        x, ref = x.to(parameter.dtype), ref if ref is None else ref.to(parameter.dtype)
    if ref is not None:
        arguments = {**arguments, "ref_emb": ref}
    if miner is not None:
        arguments = {**arguments, "indices_tuple": miner(x, labels, ref, arguments.get("ref_labels"))}
    value = loss(x, **arguments) if labels is None else loss(x, labels, **arguments)
    if not isinstance(value, torch.Tensor) or value.dim() != 0:
        is_tensor = isinstance(value, torch.Tensor)
        found = f"a tensor of shape {tuple(value.shape)}" if is_tensor else type(value).__name__
        raise TypeError(
            f"{type(loss).__name__} returned {found}, expected a scalar tensor; "
            "give it a reducer that reduces, such as pytorch_metric_learning.reducers.MeanReducer()"
        )
    return value
