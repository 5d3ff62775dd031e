"""SpacesByProcess: of several spaces' objectives each process computes some, for all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .distributed import Gathering


class SpacesByProcess:
    """Each space's objective on the samples of all processes is computed by one process, its owner, and by no other.

    The owner's value goes to every process, and its gradient with respect to a sample to the process that has the
    sample. Gradients follow DistributedDataParallel, as those of a `Gathering` do.

    Args:
        gathering: of this process's samples.
        local: by space, the embeddings of this process's samples.
        of_all: by space, those of all processes, without gradient.

    Attributes:
        own: by space, the embeddings of all processes, with gradient, of the spaces that this process owns.
    """

    def __init__(
        self, gathering: Gathering, local: Mapping[int, torch.Tensor], of_all: Mapping[int, torch.Tensor]
    ) -> None:
        self.gathering = gathering
        self.local = local
        self.dtype = torch.float32
        for x in local.values():
            self.dtype = torch.promote_types(self.dtype, x.dtype)
        self.owners = owners({space: x.shape[1] for space, x in local.items()}, gathering.processes)
        owned = self.owned_by(dist.get_rank(gathering.group))
        self._tie, *own = _FromOwners.apply(self, [of_all[space] for space in owned], *local.values())
        self.own: dict[int, torch.Tensor] = dict(zip(owned, own, strict=True))

    def owned_by(self, process: int) -> list[int]:
        return [space for space, owner in self.owners.items() if owner == process]

    def values_of_all(self, own: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Every space's value, from those of each process's own spaces."""
        nothing = self._tie.detach()
        values = torch.stack([own.get(space, nothing).detach().to(self.dtype) for space in self.owners])
        dist.all_reduce(values, group=self.gathering.group)
        by_space = dict(zip(self.owners, values.unbind(), strict=True)) | {
            space: value.to(self.dtype) for space, value in own.items()
        }
        # Also where this process owns no space: every process has to take part in the exchange of gradients.
        return {space: value + self._tie for space, value in by_space.items()}

    def gradients_from_owners(self, own: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        """Of this process's samples in every space, from the gradients of all samples in its own spaces.

        A process sends to each other the rows of that one's samples, its own spaces side by side.
        """
        gathering, rows = self.gathering, self.gathering.local.stop - self.gathering.local.start
        whole = [
            torch.zeros_like(x) if gradient is None else gradient
            for x, gradient in zip(self.own.values(), own, strict=True)
        ]
        no_column = next(iter(self.local.values())).new_empty(sum(gathering.sizes), 0, dtype=self.dtype)
        outgoing = torch.cat([no_column, *whole], dim=1)
        owned = [self.owned_by(process) for process in range(gathering.processes)]
        widths = [[self.local[space].shape[1] for space in spaces] for spaces in owned]
        lengths = [rows * sum(of_process) for of_process in widths]
        incoming = outgoing.new_empty(sum(lengths))
        sent = [size * outgoing.shape[1] for size in gathering.sizes]
        dist.all_to_all_single(incoming, outgoing.flatten(), lengths, sent, group=gathering.group)
        by_space: dict[int, torch.Tensor] = {}
        for spaces, of_process, part in zip(owned, widths, incoming.split(lengths), strict=True):
            columns = part.view(rows, sum(of_process)).split(of_process, dim=1) if spaces else ()
            by_space.update(zip(spaces, columns, strict=True))
        return [by_space[space].to(x.dtype) * gathering.processes for space, x in self.local.items()]


class _FromOwners(torch.autograd.Function):
    """A zero that every process adds to its loss, and the own spaces' embeddings of all; backward, the exchange."""

    @staticmethod
    def forward(ctx: Any, spaces: SpacesByProcess, of_all: list[torch.Tensor], *local: torch.Tensor) -> tuple:
        ctx.spaces = spaces
        ctx.set_materialize_grads(False)
        return local[0].new_zeros((), dtype=spaces.dtype), *(x.view_as(x) for x in of_all)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, _: torch.Tensor, *own: torch.Tensor | None) -> tuple:
        return None, None, *ctx.spaces.gradients_from_owners(own)


def owners(sizes: Mapping[int, int], processes: int) -> dict[int, int]:
    """The process that owns each space: the base space, 0, the first, then by turns from the largest size on."""
    in_turn = sorted(sizes, key=lambda space: (space != 0, -sizes[space]))
    turns = zip(in_turn, itertools.cycle(range(processes)), strict=False)
    return dict(sorted(turns))


def keeps_nothing(*parts: nn.Module | None) -> bool:
    """Whether an objective and its miner are the same after a call as before it, so that one process may do without.

    That is known of PML's classes that have no parameters, buffers or recorded statistics.
    """
    for part in filter(None, parts):
        if next(part.parameters(), None) is not None or next(part.buffers(), None) is not None:
            return False
        for module in part.modules():
            if not type(module).__module__.startswith(("pytorch_metric_learning.", "pml_s2sd.", "torch.nn.")):
                return False
            if getattr(module, "collect_stats", False):
                return False
    return True
