"""Columns drawn at random: each row is compared with some of what it could be compared with."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.distances import BaseDistance

from ._one_process import OneProcess
from ._shared_similarities import SharedSimilarities
from ._similarity import Similarity
from .distillation import Comparison
from .embeddings import S2SDEmbeddings


def with_drawn_columns(
    D: Similarity, step: OneProcess, left_out: torch.Tensor | None, columns: int, temperature: float
) -> tuple[Similarity, Any, torch.Tensor | None]:
    """What the distillation compares, `columns` of the R columns drawn; as it was where R is no more than that.

    Args:
        D: the similarities.
        step: its rows and columns, of one process or of several.
        left_out: (B,), each row's own column, which does not count; None where it does.
        columns: c ≥ 2.
        temperature: T of the softmax.

    Returns:
        The same three: D, a step with the columns drawn, and the column that does not count.
    """
    if len(step.columns.embeddings) <= columns:
        return D, step, left_out
    if left_out is not None:
        drawn = DrawnColumns(step, columns)
        return D, drawn, drawn.own_places
    kept = DrawnAndOwnColumns(step, columns, temperature)
    return SimilarityWithOwn(D.distance, kept.lowered_by), kept, kept.left_out


class DrawnColumns:
    """A step with `columns` of its columns, drawn uniformly: none twice, the same for all rows and spaces.

    For the distillation as `OneProcess`, whose methods it has. Torch's generator of the device draws, so that no host
    waits, and a run that restores it goes on exactly. Each of several processes draws its own: whatever their
    generators, the expectation of their mean gradient is the same, and nobody has to agree on anything.

    Attributes:
        rows, columns: as `OneProcess` has them.
        own_places: (B,), where among the columns drawn each row meets itself, -1 where nowhere.
    """

    def __init__(self, step: OneProcess, columns: int) -> None:
        self.step, self.rows = step, step.rows
        self.own = step.self_columns()
        device, R = self.own.device, len(step.columns.embeddings)
        self.drawn = torch.randperm(R, device=device)[:columns]
        places = torch.full((R,), -1, device=device).scatter(0, self.drawn, torch.arange(columns, device=device))
        self.own_places = torch.where(self.own >= 0, places[self.own.clamp(min=0)], -1)
        with torch.no_grad():
            every = step.columns
            aux = tuple(self._drawn_of(a) for a in every.aux)
            self.columns = S2SDEmbeddings(self._drawn_of(every.embeddings), aux, self._drawn_of(every.features))

    def _drawn_of(self, every: torch.Tensor) -> torch.Tensor:
        """None where it is: on several processes what nobody wants."""
        return every if every is None else every.index_select(0, self.drawn)

    def student_columns(self, z: torch.Tensor) -> torch.Tensor:
        return self._drawn_of(self.step.student_columns(z))

    def known_cosines(self, space: int, shared: SharedSimilarities) -> torch.Tensor | None:
        known = self.step.known_cosines(space, shared)
        return None if known is None else known.index_select(1, self.drawn)

    def part_of_mean(self, mean_over_rows: torch.Tensor) -> torch.Tensor:
        return self.step.part_of_mean(mean_over_rows)


class DrawnAndOwnColumns(DrawnColumns):
    """The columns drawn, and behind them each row's own, whether drawn or not: similarities of shape (B, c + 1).

    Nothing is as similar to a row as itself, and without it the softmax would be another one. The n others that were
    drawn stand for R - 1, the own column for itself alone. So its similarity is lowered by T · log((R - 1) / n): in the
    softmax it then weighs what it weighs among all.

    Attributes:
        lowered_by: (B,), T · log((R - 1) / n).
        left_out: (B,), the column that does not count: where the own one is among those drawn, or c, the own one, where
            a row meets itself nowhere; else -1.
    """

    def __init__(self, step: OneProcess, columns: int, temperature: float) -> None:
        super().__init__(step, columns)
        self.left_out = torch.where(self.own >= 0, self.own_places, columns)
        dtype = torch.promote_types(self.rows.embeddings.dtype, torch.float32)
        others = columns - (self.own_places >= 0).to(dtype)
        self.lowered_by = temperature * torch.log((len(step.columns.embeddings) - 1) / others)

    def known_cosines(self, space: int, shared: SharedSimilarities) -> torch.Tensor | None:
        known = self.step.known_cosines(space, shared)
        if known is None:
            return None
        own = known.gather(1, self.own.clamp(min=0)[:, None])
        return torch.cat([known.index_select(1, self.drawn), own - self.lowered_by[:, None]], dim=1)


class SimilarityWithOwn(Similarity):
    """The similarities of `DrawnAndOwnColumns`. A prepared row carries the one to itself as one number more.

    Args:
        distance: a PML distance.
        lowered_by: (B,), what is taken from the similarity of each row to itself.
    """

    def __init__(self, distance: BaseDistance, lowered_by: torch.Tensor) -> None:
        super().__init__(distance)
        self.lowered_by = lowered_by

    def comparison(self, x: torch.Tensor, ref: torch.Tensor) -> Comparison:
        rows, columns = super().comparison(x, ref)
        own = self.of_pairs(rows, rows) - self.lowered_by
        return Comparison(torch.cat([rows, own[:, None]], dim=1), columns)

    def __call__(self, x: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().__call__(x[:, :-1], ref), x[:, -1:]], dim=1)
