"""Auxiliary heads that are frozen at their random start teach all the same: found out, and said once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import nn


class FrozenHeads:
    """Knows how the heads started. It is no part of the model: nothing of it is saved, moved or trained."""

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        self._starts = [_last_parameter(head).detach().clone() for head in heads]
        self._asked: set[int] = set()

    def warn(self, heads: Iterable[nn.Module]) -> None:
        """Warns of heads of which nothing trains and nothing has been trained or loaded. Each is asked once, when it is
        first seen frozen, as the answer waits for the device."""
        if torch.compiler.is_compiling():
            return
        names = []
        for i, head in enumerate(heads):
            if i not in self._asked and _is_frozen(head):
                self._asked.add(i)
                if _is_unchanged(_last_parameter(head), self._starts[i]):
                    names.append(f"a{i + 1}")
        if names:
            warnings.warn(
                f"the auxiliary heads of {', '.join(names)} are frozen at their random start, and teach all the same; "
                "let them train: embedder.aux_heads.requires_grad_(), or with PEFT "
                "LoraConfig(modules_to_save=['embedder'], ...), by the embedder's name in the model; heads that are "
                "frozen on purpose are given trained weights first",
                stacklevel=2,
            )


def _last_parameter(head: nn.Module) -> torch.Tensor:
    """The bias of the last layer, which any training moves."""
    *_, last = head.parameters()
    return last


def _is_frozen(head: nn.Module) -> bool:
    parameters = list(head.parameters())  # a replica of DataParallel has none; functional_call puts in plain tensors
    return bool(parameters) and not any(p.requires_grad or not isinstance(p, nn.Parameter) for p in parameters)


def _is_unchanged(parameter: torch.Tensor, start: torch.Tensor) -> bool:
    """False too where the values are elsewhere: sharded, quantised, not there yet."""
    if type(parameter.data) is not torch.Tensor or parameter.is_meta or start.is_meta:
        return False
    return parameter.shape == start.shape and torch.equal(parameter, start.to(parameter))
