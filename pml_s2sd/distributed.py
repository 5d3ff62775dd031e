"""Several processes: the rows of all of them, gathered."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


class Processes:
    """The processes among which samples are gathered: all, or a group of them.

    Args:
        group: a ProcessGroup, a one-dimensional DeviceMesh, or None for all.

    Raises:
        TypeError, ValueError: on something else, a mesh of several dimensions, or a group that this process is not in.
    """

    def __init__(self, group: Any = None) -> None:
        if isinstance(group, DeviceMesh):
            if group.ndim != 1:
                names = group.mesh_dim_names or range(group.ndim)
                raise ValueError(
                    f"process_group is a mesh with the dimensions {tuple(names)}; pass the one over which batches "
                    'differ, the data-parallel one, such as mesh["dp"]'
                )
            group = group.get_group()
        if group is dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("process_group is a group that this process is not in; make the loss on its members only")
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"process_group must be a ProcessGroup, a DeviceMesh or None, got {group!r}")
        self.group = group

    @property
    def several(self) -> bool:
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self.group) > 1

    def __deepcopy__(self, memo: dict) -> Processes:
        return self  # a group cannot be copied


class Gathering:
    """Gathers the rows that each process contributes to a step.

    Processes may bring different numbers of rows. Each makes a Gathering at the same point of its step, and gathers the
    same things with it in the same order.

    Gradients follow DistributedDataParallel, which averages them over W processes. With ℓ_r the loss of process r, the
    average is the gradient of (1/W) Σ_r ℓ_r with respect to the rows of every process.

    Args:
        rows: the number of rows of this process.
        group: the processes that take part; None for all.

    Attributes:
        local: where this process's rows are in what was gathered.
        mean_factor: W · rows / (rows of all). Each process multiplies its mean over local rows by it; the average over
            processes is then the mean over all rows.
    """

    def __init__(self, rows: int, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.processes = dist.get_world_size(group)
        self.sizes = _exchange(rows, group)
        start = sum(self.sizes[: dist.get_rank(group)])
        self.local = slice(start, start + rows)
        self.mean_factor = self.processes * rows / sum(self.sizes)

    def rows_of_all(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of every process in the order of ranks, without gradient, (rows of all, …)."""
        if rows.dtype == torch.bool:
            return self.rows_of_all(rows.to(torch.uint8)).bool()
        largest = max(self.sizes)
        padded = rows.detach().contiguous()
        if len(rows) < largest:
            padded = torch.cat([padded, padded.new_zeros(largest - len(rows), *rows.shape[1:])])
        gathered = padded.new_empty(largest * self.processes, *rows.shape[1:])
        by_rank = list(gathered.split(largest))
        dist.all_gather(by_rank, padded, group=self.group)
        if min(self.sizes) == largest:
            return gathered
        return torch.cat([rows[:size] for rows, size in zip(by_rank, self.sizes, strict=True)])

    def matrices_of_all(self, matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`rows_of_all` of several matrices, in one go."""
        gathered = self.rows_of_all(torch.cat([x.detach() for x in matrices], dim=1))
        parts = gathered.split([x.shape[1] for x in matrices], dim=1)
        return [part.to(x.dtype) for part, x in zip(parts, matrices, strict=True)]

    def same_everywhere(self, rows: torch.Tensor, gathered: torch.Tensor) -> torch.Tensor:
        """`gathered`, with a gradient into this process's rows, for a loss that every process computes alike."""
        return _IntoLocalRows.apply(rows, gathered, self, self.processes)

    def parts_everywhere(self, rows: torch.Tensor, gathered: torch.Tensor) -> torch.Tensor:
        """`gathered`, with a gradient into this process's rows, for a loss of which every process computes its part."""
        return _IntoLocalRows.apply(rows, gathered, self, None)

    def local_first(self, gathered: torch.Tensor) -> torch.Tensor:
        """This process's rows before those of the others: PML's order."""
        return torch.cat([gathered[self.local], gathered[: self.local.start], gathered[self.local.stop :]])


class _IntoLocalRows(torch.autograd.Function):
    """The gathered rows. Backward: the local rows' gradient, times `factor`, or summed over processes without one."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, gathered: torch.Tensor, gathering: Gathering, factor: int | None
    ) -> torch.Tensor:
        ctx.gathering, ctx.factor = gathering, factor
        return gathered.view_as(gathered)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        local = ctx.gathering.local
        if ctx.factor is not None:
            return gradient[local] * ctx.factor, None, None, None
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, group=ctx.gathering.group)
        return summed[local], None, None, None


@functools.lru_cache(maxsize=8)
def _host_group(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """The same processes as a group that exchanges host memory."""
    if "gloo" in dist.get_backend_config(group):
        return group
    return dist.new_group(dist.get_process_group_ranks(group), backend="gloo", use_local_synchronization=True)


def _exchange(rows: int, group: dist.ProcessGroup | None) -> list[int]:
    """Every process's number of rows, from host to host, so that no device is waited for."""
    group = group or dist.group.WORLD
    assert group is not None
    local = torch.tensor(rows)
    sizes = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, local, group=_host_group(group))
    return [int(size) for size in sizes]
