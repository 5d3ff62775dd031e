"""Matrices and labels as users have them: tensors, arrays, memory-mapped files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Matrix = torch.Tensor | np.ndarray | str | os.PathLike


def opened(name: str, matrix: Any, *, dims: tuple[int, ...] = (2,)) -> torch.Tensor | np.ndarray:
    """Rows, floating point, of a tensor, an array, or the path of a .npy file (memory-mapped).

    Args:
        dims: the numbers of dimensions that there may be.
    """
    if isinstance(matrix, str | os.PathLike):
        matrix = mapped(name, Path(matrix))
    if not isinstance(matrix, torch.Tensor | np.ndarray):
        raise TypeError(
            f"{name} must be a tensor or array of shape (N, k), or the path of a .npy file, got {type(matrix).__name__}"
        )
    floating = matrix.is_floating_point() if isinstance(matrix, torch.Tensor) else matrix.dtype.kind == "f"
    if not floating:
        raise TypeError(f"{name} must be of a floating-point dtype, got {matrix.dtype}; convert it to float32")
    if matrix.ndim not in dims or 0 in matrix.shape:
        shapes = " or ".join({2: "(N, k)", 4: "(N, k, H, W)"}[n] for n in dims)
        raise ValueError(f"{name} must have shape {shapes}, one row a sample, got {tuple(matrix.shape)}")
    return matrix


def mapped(name: str, path: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} for {name}; expected a .npy file")
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"cannot read {name} from {path} ({path.stat().st_size:,} bytes): it is cut short, or no .npy file "
            f"({error}); write it again with numpy.save"
        ) from error
    return array


def checked_labels(labels: Any, count: int) -> torch.Tensor:
    y = labels if isinstance(labels, torch.Tensor) else np.asarray(labels)
    integers = y.dtype in INTEGERS if isinstance(y, torch.Tensor) else y.dtype.kind in "iu"
    if not integers:
        raise TypeError(f"labels must be integers, got {y.dtype}; number the classes, -1 where one is not known")
    if tuple(y.shape) != (count,):
        raise ValueError(f"labels must have shape ({count},), one for each row, got {tuple(y.shape)}")
    y = y.long() if isinstance(y, torch.Tensor) else torch.from_numpy(y.astype(np.int64))
    return y.clamp(min=-1)
