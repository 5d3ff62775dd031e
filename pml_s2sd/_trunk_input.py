"""What a trunk is given: a tensor; a dict, passed as keywords; a tuple, passed as arguments one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ._features import dtype_for
from ._trunk_output import MASK

Inputs = torch.Tensor | Mapping[str, Any] | tuple


def call(trunk: nn.Module, inputs: Inputs) -> Any:
    """What the trunk returns for them."""
    if isinstance(inputs, Mapping):
        return trunk(**inputs)
    return trunk(*inputs) if isinstance(inputs, tuple) else trunk(inputs)


def mask_of(inputs: Inputs) -> Any:
    """The mask of a text's tokens among them; None for none."""
    return inputs.get(MASK) if isinstance(inputs, Mapping) else None


def inputs_and_labels(batch: Any) -> tuple[Any, Any]:
    """The first two of a list or tuple; of a dict the labels, and all else."""
    if isinstance(batch, list | tuple) and len(batch) >= 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    raise TypeError(
        f'a batch of the loader must be images and labels, or a dict that holds "labels", got {type(batch).__name__}; '
        'say how to read it: collect_features(…, read=lambda batch: (batch["image"], batch["label"]))'
    )


def tensors(inputs: Any) -> Iterator[torch.Tensor]:
    """All that `inputs` holds, at any depth."""
    if isinstance(inputs, torch.Tensor):
        yield inputs
    elif isinstance(inputs, Mapping | tuple | list):
        for part in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from tensors(part)


def device_of(trunk: nn.Module) -> torch.device:
    """That of its parameters."""
    return next((p.device for p in trunk.parameters()), torch.device("cpu"))


def placed(inputs: Any, trunk: nn.Module, device: torch.device, rows: torch.Tensor | None = None) -> Any:
    """The same for the trunk: each tensor on the device, a floating one in the trunk's dtype.

    Args:
        rows: (B,), bool, of the rows of each tensor that are taken; None: all.
    """
    if isinstance(inputs, torch.Tensor):
        taken = (inputs if rows is None else inputs[rows.to(inputs.device)]).to(device)
        return taken.to(dtype_for(trunk, taken) or taken.dtype) if taken.is_floating_point() else taken
    if isinstance(inputs, Mapping):
        return {name: placed(part, trunk, device, rows) for name, part in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(placed(part, trunk, device, rows) for part in inputs)
    return inputs
