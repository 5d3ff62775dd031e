"""Matrices and labels as users have them: tensors, arrays, memory-mapped files, one or several."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._shards import Shards

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Shard = str | os.PathLike | np.ndarray
Opened = torch.Tensor | np.ndarray | Shards
Matrix = Opened | Shard | Sequence[Shard]


def opened(name: str, matrix: Any, *, dims: tuple[int, ...] = (2,)) -> Opened:
    """Rows, floating point, of a tensor, an array, or the path of a .npy file (memory-mapped), or a list of these two.

    Args:
        dims: the numbers of dimensions that there may be.
    """
    if isinstance(matrix, list | tuple) and all(isinstance(shard, Shard) for shard in matrix):
        return _joined(name, matrix, dims)
    if isinstance(matrix, str | os.PathLike):
        matrix = mapped(name, Path(matrix))
    if not isinstance(matrix, Opened):
        raise TypeError(
            f"{name} must be a tensor or array of shape (N, k), the path of a .npy file, or a list of such files, got "
            f"{type(matrix).__name__}"
        )
    floating = matrix.is_floating_point() if isinstance(matrix, torch.Tensor) else matrix.dtype.kind == "f"
    if not floating:
        raise TypeError(f"{name} must be of a floating-point dtype, got {matrix.dtype}; convert it to float32")
    if matrix.ndim not in dims or 0 in matrix.shape:
        shapes = " or ".join({2: "(N, k)", 4: "(N, k, H, W)"}[n] for n in dims)
        raise ValueError(f"{name} must have shape {shapes}, one row a sample, got {tuple(matrix.shape)}")
    return matrix


def _joined(name: str, shards: Sequence[Shard], dims: tuple[int, ...]) -> Shards:
    """The rows of all shards, in order."""
    if not shards:
        raise ValueError(f"{name} is an empty list; give at least one .npy file")
    arrays: dict[str, np.ndarray] = {}
    for i, shard in enumerate(shards):
        named = f"{name}[{i}]" if isinstance(shard, np.ndarray) else f"{name} of {shard}"
        array = shard if isinstance(shard, np.ndarray) else mapped(name, Path(shard))
        opened(named, array, dims=dims)
        arrays[named] = array
    first_named, first = next(iter(arrays.items()))
    for named, array in arrays.items():
        if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]):
            raise ValueError(
                f"{named} has rows of shape {tuple(array.shape[1:])}, {array.dtype}, and {first_named} of "
                f"{tuple(first.shape[1:])}, {first.dtype}; all shards must have the same"
            )
    return Shards(list(arrays.values()))


def mapped(name: str, path: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} for {name}; expected a .npy file")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"cannot read {name} from {path} ({path.stat().st_size:,} bytes): it is cut short{_announced(path)}, or no "
            f".npy file ({error}); write it again with numpy.save"
        ) from error


def _announced(path: Path) -> str:
    """How long the header of a .npy file says that the file is; nothing where it cannot be read."""
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        with path.open("rb") as file:
            shape, _, dtype = read_header[np.lib.format.read_magic(file)](file)
            expected = file.tell() + math.prod(shape) * dtype.itemsize
    except (ValueError, EOFError, OSError, KeyError):
        return ""
    return f", {expected:,} bytes expected for {dtype} of shape {shape}"


def checked_labels(labels: Any, count: int) -> torch.Tensor:
    y = labels if isinstance(labels, torch.Tensor) else np.asarray(labels)
    integers = y.dtype in INTEGERS if isinstance(y, torch.Tensor) else y.dtype.kind in "iu"
    if not integers:
        raise TypeError(f"labels must be integers, got {y.dtype}; number the classes, -1 where one is not known")
    if tuple(y.shape) != (count,):
        raise ValueError(f"labels must have shape ({count},), one for each row, got {tuple(y.shape)}")
    y = y.long() if isinstance(y, torch.Tensor) else torch.from_numpy(y.astype(np.int64))
    return y.clamp(min=-1)
