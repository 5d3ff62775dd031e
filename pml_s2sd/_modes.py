"""Modules as they are used after training, without a trace left on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """All parts of it in eval mode; afterwards each is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def whole_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Its parameters and buffers by name, those that FSDP2 has spread over processes gathered; all of these call it."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in state.items()}
