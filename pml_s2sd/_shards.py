"""Rows that lie in several arrays, such as memory-mapped files, read as if they lay in one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class Shards:
    """Arrays (N_i, …) one after another, as one of shape (Σ N_i, …): what `Rows` asks of an array, and no more.

    Args:
        arrays: at least one, of the same dtype and the same shape but for N_i; memory-mapped or not.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = list(arrays)
        self._ends = np.cumsum([len(array) for array in arrays])
        self.shape = (int(self._ends[-1]), *arrays[0].shape[1:])
        self.dtype, self.ndim = arrays[0].dtype, arrays[0].ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray | torch.Tensor) -> np.ndarray:
        """The rows of these numbers, of 0 to Σ N_i - 1, in this order, copied: (n, …)."""
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        of_shard = np.searchsorted(self._ends, numbers, side="right")
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        for shard in np.unique(of_shard):
            here, array = of_shard == shard, self._arrays[shard]
            found[here] = array[numbers[here] - (self._ends[shard] - len(array))]
        return found
