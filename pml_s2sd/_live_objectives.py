"""LiveObjectives: what a user changes on the base space's objective or miner while training reaches every space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pytorch_metric_learning.losses import CrossBatchMemory
from torch import nn

from .objectives import size_bound

HOW = (
    "which would reach the base space only; change every space's by "
    "loss_func.change_objectives(lambda objective, embedding_size: …), or make a new S2SDLoss"
)


PLAIN = (int, float, str, type(None))


class Part(NamedTuple):
    """A module of the base space's objective, and the ones in its place in the auxiliary spaces."""

    base: nn.Module
    others: list[nn.Module | None]
    values: tuple[str, ...]
    """Names of the plain values that its user may set."""
    children: tuple[str, ...]


class LiveObjectives:
    """Carries over what was changed between two training calls: the plain values of an objective's modules, such as a
    margin on a schedule, and an emptied CrossBatchMemory. What cannot be carried over is refused.

    What an objective changes in itself during a call is its own, and is left alone.

    Args:
        base: the base space's objective, or miner, or None.
        others: those of the auxiliary spaces.
    """

    def __init__(self, base: nn.Module | None, others: Sequence[nn.Module | None]) -> None:
        for objective in filter(None, (base, *others)):
            _as_plain_numbers(objective)
        by_path = [{} if other is None else dict(other.named_modules()) for other in others]
        self.parts = []
        for path, module in [] if base is None else base.named_modules():
            children = tuple(name for name, _ in module.named_children())
            self.parts.append(Part(module, [of.get(path) for of in by_path], _settable(module), children))
        self.memories = [part for part in self.parts if isinstance(part.base, CrossBatchMemory)]
        self.known = self._current()

    def _current(self) -> list[list[Any]]:
        return [
            [
                *(_plain(getattr(part.base, name)) for name in part.values),
                *(getattr(part.base, n) for n in part.children),
            ]
            for part in self.parts
        ]

    def remember(self) -> None:
        """What there is now is not a change of the user's."""
        current = self._current()
        if current != self.known:
            self.known = current

    def carry_over(self, *, what_can_be: bool = False) -> None:
        """Bring the auxiliary spaces to what was changed since `remember`.

        Args:
            what_can_be: leave out what cannot be carried over.

        Raises:
            ValueError: a module was replaced, or an auxiliary space has no such value: nothing is changed then.
        """
        current = self._current()
        if current != self.known:
            changes, refusals = self._changes(current)
            if refusals and not what_can_be:
                raise ValueError(refusals[0])
            for module, name, value in changes:
                setattr(module, name, value)
            self.known = current
        for part in self.memories:
            if _is_empty(part.base):
                for other in part.others:
                    if isinstance(other, CrossBatchMemory) and not _is_empty(other):
                        other.reset_queue()

    def _changes(self, current: list[list[Any]]) -> tuple[list[tuple[nn.Module, str, Any]], list[str]]:
        """What to set on which module of the auxiliary spaces, and why anything cannot be set."""
        changes: list[tuple[nn.Module, str, Any]] = []
        refusals = []
        for part, values, known in zip(self.parts, current, self.known, strict=True):
            of_class = type(part.base).__name__
            for name, value, before in zip((*part.values, *part.children), values, known, strict=True):
                if value is before or (name in part.values and value == before):
                    continue
                if name in part.values and isinstance(value, type):
                    refusals.append(f"{of_class}.{name} was set from {before!r} to a {value.__name__}, {HOW}")
                elif name in part.children:
                    refusals.append(f"{of_class}.{name} was replaced by a {type(value).__name__}, {HOW}")
                elif all(other is not None and getattr(other, name, None) in (before, value) for other in part.others):
                    changes += [(other, name, value) for other in part.others if other is not None]
                else:
                    refusals.append(f"{of_class}.{name} was set from {before!r} to {value!r}, {HOW}")
        return changes, refusals


def _as_plain_numbers(objective: nn.Module) -> None:
    """NumPy's numbers, such as ArcFaceLoss's margin, become Python's: torch.compile takes the former for arrays."""
    for module in objective.modules():
        for name, value in vars(module).items():
            if isinstance(value, np.number):
                vars(module)[name] = value.item()


def _plain(value: Any) -> Any:
    """A plain value, or the type of what took its place: what a tensor holds is not looked at, and not kept."""
    return value if isinstance(value, PLAIN) else type(value)


def _settable(module: nn.Module) -> tuple[str, ...]:
    bound = size_bound(module)
    not_the_users = {"training", "queue_idx", "has_been_filled", *getattr(module, "_record_these_stats", ())}
    if bound is not None:
        not_the_users.add(bound.attribute)
    return tuple(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in not_the_users and isinstance(value, PLAIN)
    )


def _is_empty(memory: Any) -> bool:
    return memory.queue_idx == 0 and not memory.has_been_filled
