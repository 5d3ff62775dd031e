"""A step of several processes: rows are this process's samples, columns those of all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, get_indices_tuple
from torch import nn

from ._call import Call, base_space_alone, of_space
from ._objective_value import objective_value
from ._shared_similarities import SharedSimilarities
from ._spaces_by_process import SpacesByProcess, keeps_nothing
from .distillation import columns_of_copies
from .distributed import Gathering
from .embeddings import S2SDEmbeddings
from .objectives import of_one_process


class ManyProcesses:
    """What one of several processes compares: its samples, the rows, with those or the references of all, the columns.

    As `OneProcess`, whose methods it has. torch.compile does not trace into it: it talks to other processes.

    Args:
        call: this process's call of the loss.
        group: the processes that take part; None for all.
        objectives: each space's, base first; those in a `DistributedLossWrapper` are computed on all samples.
        aux, features: whether these are needed for distillation.
    """

    @torch.compiler.disable
    def __init__(
        self,
        call: Call,
        group: dist.ProcessGroup | None,
        objectives: Sequence[nn.Module],
        *,
        aux: bool,
        features: bool,
    ) -> None:
        self.call = call
        self.rows = call.batch
        wrapped = [isinstance(loss, DistributedLossWrapper) for loss in objectives]
        aux = aux or any(wrapped[1:])
        self.gathering = self.column_gathering = Gathering(len(call.batch.embeddings), group)
        self.samples = self.columns = _of_all(call.batch, self.gathering, aux, features)
        if not call.with_itself and call.ref is not None:
            self.column_gathering = Gathering(len(call.ref.embeddings), group)
            self.columns = _of_all(call.ref, self.column_gathering, aux, features)

        # Indices count as PML's DistributedMinerWrapper does; else the order is the same on every process.
        self.local_first = "indices_tuple" in call.arguments
        self._self_columns: torch.Tensor | None = None
        self.objective_inputs: dict[int, torch.Tensor] = {}
        self.by_process: SpacesByProcess | None = None
        if any(wrapped):
            arguments = call.arguments
            self.labels = self._gathered_labels(call.labels, self.gathering)
            self.one_tensor = call.labels is not None and arguments.get("ref_labels") is call.labels
            self.ref_labels = self.labels
            if not self.one_tensor:
                self.ref_labels = self._gathered_labels(arguments.get("ref_labels"), self.column_gathering)
            self.enqueue_mask = self._gathered_labels(arguments.get("enqueue_mask"), self.gathering)

    def _gathered_labels(self, local: torch.Tensor | None, gathering: Gathering) -> torch.Tensor | None:
        """Labels or a mask; moved to the embeddings' device, as PML does."""
        if local is None:
            return None
        return self._ordered(gathering.rows_of_all(local.to(self.rows.embeddings.device)), gathering)

    def _ordered(self, gathered: torch.Tensor, gathering: Gathering) -> torch.Tensor:
        return gathering.local_first(gathered) if self.local_first else gathered

    @torch.compiler.disable
    def objectives(self, losses: Sequence[nn.Module], miners: Sequence[nn.Module | None]) -> list[torch.Tensor | None]:
        """L of every space, None where another process computes it.

        Those on the samples of all that keep nothing are shared out among the processes.
        """
        spaces = list(zip((self.rows.embeddings, *self.rows.aux), losses, miners, strict=True))
        shared_out = {
            space: x for space, (x, loss, miner) in enumerate(spaces) if self._one_process_is_enough(loss, miner)
        }
        values: dict[int, torch.Tensor] = {}
        if len(shared_out) > 1:
            of_all = {space: of_space(self.samples, space) for space in shared_out}
            self.by_process = SpacesByProcess(self.gathering, shared_out, of_all)
            values = {space: self._of_all_rows(space, x, *spaces[space]) for space, x in self.by_process.own.items()}
        return [
            values.get(space) if self.by_process and space in shared_out else self.objective(space, *parts)
            for space, parts in enumerate(spaces)
        ]

    @torch.compiler.disable
    def values_of_all(self, objectives: list[torch.Tensor | None]) -> list[torch.Tensor]:
        """`objectives` with those of other processes. Called last of all: it waits for them."""
        known = {space: value for space, value in enumerate(objectives) if value is not None}
        if self.by_process is not None:
            known |= self.by_process.values_of_all({s: v for s, v in known.items() if s in self.by_process.own})
        return [known[space] for space, _ in enumerate(objectives)]

    def _one_process_is_enough(self, loss: nn.Module, miner: nn.Module | None) -> bool:
        of_all_rows = isinstance(loss, DistributedLossWrapper) and not loss.efficient
        return of_all_rows and self.call.with_itself and keeps_nothing(of_one_process(loss), of_one_process(miner))

    @torch.compiler.disable
    def objective(self, space: int, x: torch.Tensor, loss: nn.Module, miner: nn.Module | None) -> torch.Tensor:
        """L of one space, of the samples of all processes where it is in a `DistributedLossWrapper`.

        As `DistributedLossWrapper` has it, but exact. PML's own multiplies the loss by the number of
        processes, and with it the gradient of proxies; it takes batches of one size only; with
        ``efficient=True`` it leaves out the gradient that reaches a sample as another process's
        reference. Here DistributedDataParallel's average of the gradients is the gradient of L on the
        whole batch. With ``efficient=True``, where a process compares its own samples with all, that
        holds for an L that is a mean over samples.
        """
        call = self.call
        ref = call.references(space, x)
        if not isinstance(loss, DistributedLossWrapper):
            exact = with_exact_wrappers(loss, self.gathering.group)
            return objective_value(exact, miner, x, call.labels, ref, call.arguments)
        if loss.efficient:
            return self._of_local_rows(space, x, ref, of_one_process(loss), of_one_process(miner))
        return self._of_all_rows(
            space, self.gathering.same_everywhere(x, of_space(self.samples, space)), x, loss, miner
        )

    def _of_all_rows(
        self, space: int, gathered: torch.Tensor, x: torch.Tensor, loss: nn.Module, miner: nn.Module | None
    ) -> torch.Tensor:
        """L of the samples of all, `gathered`, of which x are this process's."""
        gathered = self.objective_inputs[space] = self._ordered(gathered, self.gathering)
        ref = self.call.references(space, x)
        if ref is x:
            ref = gathered
        elif ref is not None:
            ref = self.column_gathering.same_everywhere(ref, of_space(self.columns, space))
            ref = self._ordered(ref, self.column_gathering)
        arguments = self.call.arguments | _given(ref_labels=self.ref_labels, enqueue_mask=self.enqueue_mask)
        return objective_value(of_one_process(loss), of_one_process(miner), gathered, self.labels, ref, arguments)

    def _of_local_rows(
        self, space: int, x: torch.Tensor, ref: torch.Tensor | None, loss: nn.Module, miner: nn.Module | None
    ) -> torch.Tensor:
        """L of this process's samples, compared with those of all: its part of the mean."""
        arguments = self.call.arguments
        if ref is not None and not (ref is x and self.one_tensor):
            gathered = self.column_gathering.parts_everywhere(ref, of_space(self.columns, space))
            gathered = self._ordered(gathered, self.column_gathering)
            arguments = arguments | _given(ref_labels=self.ref_labels)
        else:
            gathered = self.gathering.parts_everywhere(x, of_space(self.samples, space))
            gathered = self.gathering.local_first(gathered)
            labels = self.labels
            if labels is not None and not self.local_first:
                labels = self.gathering.local_first(labels)
            arguments = arguments | _given(ref_labels=labels)
            if "indices_tuple" not in arguments:  # a sample is not compared with itself
                arguments["indices_tuple"] = get_indices_tuple(self.call.labels, labels, x, gathered, miner)
                miner = None
        value = objective_value(loss, miner, x, self.call.labels, gathered, arguments)
        # Also where this process has no pair: every process has to take part in summing the gradient.
        return self.gathering.mean_factor * value + gathered[:0].sum()

    @torch.compiler.disable
    def student_columns(self, z: torch.Tensor) -> torch.Tensor:
        local = z if self.call.with_itself else self.call.ref.embeddings  # type: ignore[union-attr]
        return self.column_gathering.parts_everywhere(local, self.columns.embeddings)

    @torch.compiler.disable
    def self_columns(self) -> torch.Tensor:
        z = self.rows.embeddings
        if self._self_columns is None and self.call.with_itself:
            self._self_columns = torch.arange(self.gathering.local.start, self.gathering.local.stop, device=z.device)
        elif self._self_columns is None:
            self._self_columns = columns_of_copies(z, self.columns.embeddings)
        return self._self_columns

    def known_cosines(self, space: int, shared: SharedSimilarities) -> torch.Tensor | None:
        known = shared.known(space, self.objective_inputs.get(space))
        in_order = self.call.with_itself and not self.local_first
        return known[self.gathering.local] if in_order and known is not None else None

    def part_of_mean(self, mean_over_rows: torch.Tensor) -> torch.Tensor:
        return self.gathering.mean_factor * mean_over_rows


class ExactDistributedLoss(nn.Module):
    """PML's DistributedLossWrapper, as `ManyProcesses.objective` computes it, where it is inside another objective."""

    def __init__(self, wrapper: DistributedLossWrapper, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        self.wrapper, self.group = wrapper, group

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor | None = None,
        indices_tuple: tuple[torch.Tensor, ...] | None = None,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
        enqueue_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        batch = base_space_alone(embeddings)
        ref = batch if ref_emb is embeddings else base_space_alone(ref_emb)
        given = _given(indices_tuple=indices_tuple, ref_labels=ref_labels, enqueue_mask=enqueue_mask)
        step = ManyProcesses(Call(batch, labels, ref, given), self.group, [self.wrapper], aux=False, features=False)
        return step.objective(0, embeddings, self.wrapper, None)


def with_exact_wrappers(loss: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    """The objective with an `ExactDistributedLoss` for every DistributedLossWrapper in it; what it holds is shared."""
    if isinstance(loss, DistributedLossWrapper):
        return ExactDistributedLoss(loss, group)
    changed = {
        name: exact for name, part in loss.named_children() if (exact := with_exact_wrappers(part, group)) is not part
    }
    if not changed:
        return loss
    copied = copy.copy(loss)
    copied.__dict__["_modules"] = {**loss._modules, **changed}
    return copied


def _of_all(local: S2SDEmbeddings, gathering: Gathering, aux: bool, features: bool) -> S2SDEmbeddings:
    """The embeddings of all processes, without gradient; None in place of what is not wanted."""
    wanted = [local.embeddings, *(local.aux if aux else ()), *((local.features,) if features else ())]
    z, *others = gathering.matrices_of_all(wanted)
    return S2SDEmbeddings(
        z,
        tuple(others[: len(local.aux)]) if aux else (None,) * len(local.aux),  # type: ignore[arg-type]
        others[-1] if features else None,  # type: ignore[arg-type]
    )


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}
