"""Several processes: the samples of all of them, gathered once a step, and objectives computed on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from pytorch_metric_learning.utils.distributed import (
    DistributedLossWrapper,
    DistributedMinerWrapper,
    get_indices_tuple,
)
from torch import nn

from .embeddings import S2SDEmbeddings
from .space import SpaceBatch, objective_value


def several_processes() -> bool:
    """Whether this is one of several processes of torch.distributed."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def of_one_process(module: Any) -> Any:
    """The loss, or the miner, without PML's wrapper for several processes."""
    if isinstance(module, DistributedLossWrapper):
        return module.loss
    return module.miner if isinstance(module, DistributedMinerWrapper) else module


class Gathering:
    """Gathers the rows that each process contributes to a step.

    Processes may bring different numbers of rows. All make a Gathering at the same point of their
    step, and gather the same things with it in the same order.

    Gradients follow DistributedDataParallel, which averages those of W processes: where process r's
    loss is ℓ_r, the average is the gradient of (1/W) Σ_r ℓ_r with respect to every process's rows.

    Args:
        rows: the number of rows of this process.

    Attributes:
        own: where this process's rows are in what was gathered.
        share: W · rows / (rows of all), so that the average over processes of (mean over own rows) · share
            is the mean over all rows.
    """

    def __init__(self, rows: int) -> None:
        self.processes = dist.get_world_size()
        self.sizes = _exchange(rows)
        start = sum(self.sizes[: dist.get_rank()])
        self.own = slice(start, start + rows)
        self.share = self.processes * rows / sum(self.sizes)

    def rows_of_all(self, own: torch.Tensor) -> torch.Tensor:
        """The rows of every process in the order of ranks, without gradient, (rows of all, …)."""
        if own.dtype == torch.bool:
            return self.rows_of_all(own.to(torch.uint8)).bool()
        largest = max(self.sizes)
        padded = own.detach().contiguous()
        if len(own) < largest:
            padded = torch.cat([padded, padded.new_zeros(largest - len(own), *own.shape[1:])])
        by_rank = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(by_rank, padded)
        return torch.cat([rows[:size] for rows, size in zip(by_rank, self.sizes, strict=True)])

    def columns_of_all(self, own: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`rows_of_all` of matrices, in one go."""
        gathered = self.rows_of_all(torch.cat([x.detach() for x in own], dim=1))
        parts = gathered.split([x.shape[1] for x in own], dim=1)
        return [part.to(x.dtype) for part, x in zip(parts, own, strict=True)]

    def same_everywhere(self, own: torch.Tensor, gathered: torch.Tensor) -> torch.Tensor:
        """`gathered`, with a gradient into `own`, for a loss that every process computes alike."""
        return _IntoOwnRows.apply(own, gathered, self.own, self.processes)

    def parts_everywhere(self, own: torch.Tensor, gathered: torch.Tensor) -> torch.Tensor:
        """`gathered`, with a gradient into `own`, for a loss of which every process computes its part."""
        return _IntoOwnRows.apply(own, gathered, self.own, None)

    def own_first(self, gathered: torch.Tensor) -> torch.Tensor:
        """The own rows before those of the others: PML's order."""
        return torch.cat([gathered[self.own], gathered[: self.own.start], gathered[self.own.stop :]])


class _IntoOwnRows(torch.autograd.Function):
    """The gathered rows. Backward: the own rows' gradient, times `factor`, or, without one, summed over processes."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, gathered: torch.Tensor, rows: slice, factor: int | None) -> torch.Tensor:
        ctx.rows, ctx.factor = rows, factor
        return gathered.view_as(gathered)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        if ctx.factor is not None:
            return gradient[ctx.rows] * ctx.factor, None, None, None
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed[ctx.rows], None, None, None


class Everyone:
    """A step's batch, and its references, of all processes.

    torch.compile does not trace into it: it talks to other processes.

    Args:
        batch, ref: this process's samples and references; the latter's tensors None where there are none.
        labels, arguments: what else the objectives are called with.
        objectives: each space's, base first; those in a `DistributedLossWrapper` are computed on all samples.
        aux, features: whether these are needed for distillation.
    """

    @torch.compiler.disable
    def __init__(
        self,
        batch: S2SDEmbeddings,
        labels: torch.Tensor | None,
        ref: S2SDEmbeddings,
        arguments: dict[str, Any],
        objectives: Sequence[nn.Module],
        *,
        aux: bool,
        features: bool,
    ) -> None:
        self.own = batch, ref
        self.gathering = Gathering(len(batch.embeddings))
        self.ref_gathering = None
        if ref.embeddings is not None:
            self.ref_gathering = self.gathering if ref is batch else Gathering(len(ref.embeddings))

        wrapped = [isinstance(loss, DistributedLossWrapper) for loss in objectives]
        aux = aux or any(wrapped[1:])
        self.batch = _of_all(batch, self.gathering, aux, features)
        self.ref = ref
        if self.ref_gathering is not None:
            self.ref = self.batch if ref is batch else _of_all(ref, self.ref_gathering, aux, features)

        # Indices count as PML's DistributedMinerWrapper does; else the order is the same on every process.
        self.own_first = "indices_tuple" in arguments
        if any(wrapped):
            self.labels = self._labels(labels, self.gathering)
            ref_labels = arguments.get("ref_labels")  # one tensor with labels: PML leaves out pairs of a sample itself
            self.one_labels = labels is not None and ref_labels is labels
            self.ref_labels = self.labels if self.one_labels else self._labels(ref_labels, self.ref_gathering)
            self.enqueue_mask = self._labels(arguments.get("enqueue_mask"), self.gathering)

    def _labels(self, own: torch.Tensor | None, gathering: Gathering | None) -> torch.Tensor | None:
        """Labels or a mask; moved to the embeddings' device, as PML does."""
        if own is None or gathering is None:
            return None
        return self._ordered(gathering.rows_of_all(own.to(self.own[0].embeddings.device)), gathering)

    def _ordered(self, gathered: torch.Tensor, gathering: Gathering) -> torch.Tensor:
        return gathering.own_first(gathered) if self.own_first else gathered

    @torch.compiler.disable
    def objective(
        self,
        loss: DistributedLossWrapper,
        miner: nn.Module | None,
        own: SpaceBatch,
        space: int,
        announce: Callable[[torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """L of one space (0 the base, i the i-th auxiliary one) on the samples of all processes.

        As `DistributedLossWrapper` has it, but exact. PML's own multiplies the loss by the number of
        processes, and with it the gradient of proxies; it takes batches of one size only; with
        ``efficient=True`` it leaves out the gradient that reaches a sample as another process's
        reference. Here DistributedDataParallel's average of the gradients is the gradient of L on the
        whole batch. With ``efficient=True``, where a process compares its own samples with all, that
        holds for an L that is a mean over samples.

        Args:
            announce: called with what L is computed on, where that is not own.x.
        """
        inner, miner = of_one_process(loss), of_one_process(miner)
        x, ref = _space(self.batch, space), _space(self.ref, space)
        if not loss.efficient:
            x = self._ordered(self.gathering.same_everywhere(own.x, x), self.gathering)
            if announce is not None:
                announce(x)
            if own.ref is own.x:
                ref = x
            elif own.ref is not None and self.ref_gathering is not None:
                ref = self._ordered(self.ref_gathering.same_everywhere(own.ref, ref), self.ref_gathering)
            of_all = _given(ref_labels=self.ref_labels, enqueue_mask=self.enqueue_mask)
            return objective_value(inner, miner, SpaceBatch(x, self.labels, ref, {**own.arguments, **of_all}))

        arguments = own.arguments
        itself = own.ref is own.x and self.one_labels
        if own.ref is not None and not itself and self.ref_gathering is not None:
            ref = self._ordered(self.ref_gathering.parts_everywhere(own.ref, ref), self.ref_gathering)
            arguments = {**arguments, **_given(ref_labels=self.ref_labels)}
        else:
            ref = self.gathering.parts_everywhere(own.x, x)
            ref = self.gathering.own_first(ref)
            labels = self.labels if self.own_first or self.labels is None else self.gathering.own_first(self.labels)
            arguments = {**arguments, **_given(ref_labels=labels)}
            if "indices_tuple" not in arguments:  # a sample is not compared with itself
                arguments["indices_tuple"] = get_indices_tuple(own.labels, labels, own.x, ref, miner)
                miner = None
        value = objective_value(inner, miner, own._replace(ref=ref, arguments=arguments))
        # Also where this process has no pair: every process has to take part in summing the gradient.
        return self.gathering.share * value + ref[:0].sum()

    @torch.compiler.disable
    def compared(
        self, batch: S2SDEmbeddings, ref: S2SDEmbeddings
    ) -> tuple[S2SDEmbeddings, S2SDEmbeddings, slice | None]:
        """What distillation compares: samples, references (or none), and which of the samples are this process's.

        Args:
            batch, ref: this process's, as given; through their base embeddings the gradient comes back.
        """
        if self.ref_gathering is None or ref.embeddings is None:
            z = self.gathering.parts_everywhere(batch.embeddings, self.batch.embeddings)
            return S2SDEmbeddings(z, self.batch.aux, self.batch.features), ref, self.gathering.own
        z = self.ref_gathering.parts_everywhere(ref.embeddings, self.ref.embeddings)
        return batch, S2SDEmbeddings(z, self.ref.aux, self.ref.features), None

    @torch.compiler.disable
    def compared_labels(self, labels: torch.Tensor, of_references: bool) -> torch.Tensor:
        """The labels of all samples, or of all references, in the order of `compared`."""
        gathering = self.ref_gathering if of_references and self.ref_gathering is not None else self.gathering
        return gathering.rows_of_all(labels.to(self.own[0].embeddings.device))


def _of_all(own: S2SDEmbeddings, gathering: Gathering, aux: bool, features: bool) -> S2SDEmbeddings:
    wanted = [own.embeddings, *(own.aux if aux else ()), *((own.features,) if features else ())]
    z, *others = gathering.columns_of_all(wanted)
    return S2SDEmbeddings(
        z,
        tuple(others[: len(own.aux)]) if aux else (None,) * len(own.aux),  # type: ignore[arg-type]
        others[-1] if features else None,  # type: ignore[arg-type]
    )


def _space(batch: S2SDEmbeddings, space: int) -> Any:
    return batch.embeddings if space == 0 else batch.aux[space - 1]


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


@functools.lru_cache(maxsize=1)
def _host_group(default_group: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group whose processes exchange host memory."""
    return default_group if "gloo" in dist.get_backend_config() else dist.new_group(backend="gloo")


def _exchange(rows: int) -> list[int]:
    """Every process's number of rows, from host to host, so that no device is waited for."""
    assert dist.group.WORLD is not None
    own = torch.tensor(rows)
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own, group=_host_group(dist.group.WORLD))
    return [int(size) for size in sizes]
