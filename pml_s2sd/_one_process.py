"""A step of one process: rows and columns are those of the call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ._call import Call, of_space
from ._objective_value import objective_value
from ._shared_similarities import SharedSimilarities
from .distillation import columns_of_copies
from .embeddings import S2SDEmbeddings


class OneProcess:
    """What one process compares: its samples, the rows, with each other or with the references, the columns.

    `ManyProcesses` has the same methods.

    Args:
        call: the call of the loss.

    Attributes:
        rows: this process's samples.
        columns: what they are compared with, as teachers see it, without gradient.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.rows: S2SDEmbeddings = call.batch
        self.columns: S2SDEmbeddings = call.batch if call.ref is None else call.ref
        self._self_columns: torch.Tensor | None = None

    def objectives(self, losses: Sequence[nn.Module], miners: Sequence[nn.Module | None]) -> list[torch.Tensor | None]:
        """L of every space, base first; None where another process computes it."""
        spaces = zip((self.rows.embeddings, *self.rows.aux), losses, miners, strict=True)
        return [self.objective(space, *parts) for space, parts in enumerate(spaces)]

    def values_of_all(self, objectives: list[torch.Tensor | None]) -> list[torch.Tensor]:
        """`objectives` with those of other processes."""
        return objectives  # type: ignore[return-value]

    def objective(self, space: int, x: torch.Tensor, loss: nn.Module, miner: nn.Module | None) -> torch.Tensor:
        """L(x) of one space, 0 the base, i the i-th auxiliary one; x (B, d) are its embeddings of the rows."""
        call = self.call
        return objective_value(loss, miner, x, call.labels, call.references(space, x), call.arguments)

    def student_columns(self, z: torch.Tensor) -> torch.Tensor:
        """What the base embeddings z of the rows are compared with, (R, d), with gradient."""
        return z if self.call.with_itself else self.columns.embeddings

    def self_columns(self) -> torch.Tensor:
        """(B,), the column in which each row meets itself; -1 where in none."""
        z = self.rows.embeddings
        if self._self_columns is None and self.call.with_itself:
            self._self_columns = torch.arange(len(z), device=z.device)
        elif self._self_columns is None:
            self._self_columns = columns_of_copies(z, self.columns.embeddings)
        return self._self_columns

    def known_cosines(self, space: int, shared: SharedSimilarities) -> torch.Tensor | None:
        """The cosines of rows and columns in an auxiliary space, (B, R), where its objective has asked for them."""
        return shared.known(space, of_space(self.rows, space)) if self.call.with_itself else None

    def part_of_mean(self, mean_over_rows: torch.Tensor) -> torch.Tensor:
        """This process's part of the mean over the rows of all."""
        return mean_over_rows
