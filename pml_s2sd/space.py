"""One embedding space's objective: what it is called with, and its value."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from .checks import check_scalar


class SpaceBatch(NamedTuple):
    """A batch as one space's objective sees it."""

    x: torch.Tensor
    """(B, d), the embeddings of this space."""
    labels: torch.Tensor | None
    ref: torch.Tensor | None
    """(R, d), the references."""
    arguments: dict[str, Any]
    """What was given besides: indices_tuple, ref_labels, enqueue_mask, …"""


def objective_value(loss: nn.Module, miner: nn.Module | None, batch: SpaceBatch) -> torch.Tensor:
    """L(x), on the tuples that the miner finds in x, where there is one.

    Only what was given is passed on: PML's wrappers do not all take the same arguments.
    """
    x, labels, ref, arguments = batch
    if ref is not None:
        arguments = {**arguments, "ref_emb": ref}
    if miner is not None:
        arguments = {**arguments, "indices_tuple": miner(x, labels, ref, arguments.get("ref_labels"))}
    value = loss(x, **arguments) if labels is None else loss(x, labels, **arguments)
    check_scalar(loss, value)
    return value
