"""Files of embeddings, mapped into a folder: a file of smaller rows for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from .._matrices import mapped, opened
from .._similarity_map import BLOCK_ROWS, Rows
from ..whole_file import whole_file
from ._formats import load_map, plain, save_map

MAP_NAME = "map.npz"
"""Of the file that says which map the rows of a folder are of."""
DTYPES = ("float32", "float16")


def map_files(
    layer: torch.nn.Linear, files: Sequence[str | os.PathLike], folder: str | os.PathLike, *, dtype: str = "float32"
) -> list[Path]:
    """The rows of each file through the map, each of length 1, in a file of the same name in a folder.

        z = W e / ‖W e‖

    Files are read and written a block of rows at a time, in memory that does not grow with them. Each is written whole
    or not at all: called again, a run that was killed goes on with the files that are missing, or older than what they
    are made of. The folder also holds the map, as ``map.npz``, and never takes rows of another.

    Args:
        layer: of `compress` or `load_map`, Linear(k, d); it computes where it lies.
        files: the paths of .npy files, float16, float32 or float64, (N_i, k), of different names.
        folder: made if need be; other than that of the files.
        dtype: of what is written, "float32" or "float16".

    Returns:
        The paths of what is in the folder, (N_i, d) each, in the order of the files.

    Raises:
        FileNotFoundError, TypeError, ValueError: naming the file that does not fit, what was expected and what to do;
            but for rows that are NaN or infinite, which are met when their file is read, before anything is written.

    Example:
        >>> import numpy, torch
        >>> from pml_s2sd.compress import map_files
        >>> folder = getfixture("tmp_path")
        >>> for name in ("a.npy", "b.npy"):
        ...     numpy.save(folder / name, numpy.random.default_rng(0).normal(size=(100, 8)).astype("float16"))
        >>> layer = torch.nn.Linear(8, 2, bias=False)
        >>> a, b = map_files(layer, [folder / "a.npy", folder / "b.npy"], folder / "small")
        >>> numpy.load(b, mmap_mode="r").shape
        (100, 2)
        >>> sorted(path.name for path in (folder / "small").iterdir())
        ['a.npy', 'b.npy', 'map.npz']
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if layer.bias is not None and layer.bias.any():
        raise ValueError("layer has a bias, which a map has not; expected a layer of compress or load_map")
    lengths = _lengths(layer, [Path(path) for path in files])
    folder = Path(folder)
    targets = {path: folder / path.name for path in lengths}
    for path, target in targets.items():
        if target.resolve() == path.resolve():
            raise ValueError(f"{folder} is the folder of {path}, which would be replaced; give another folder")
    _claim(folder, layer)
    d = layer.out_features
    done = {path for path, target in targets.items() if _is_made(path, target, (lengths[path], d), dtype)}
    rows, name = sum(lengths.values()), f"{layer.in_features} to {d}"
    bar = tqdm(total=rows, desc=name, unit="row", unit_scale=True, delay=3, leave=False)
    with bar, torch.no_grad(), torch.autocast(layer.weight.device.type, enabled=False):
        for path, target in targets.items():
            if path in done:
                bar.update(lengths[path])
            else:
                _map_file(layer, path, target, np.dtype(dtype), bar)
    return list(targets.values())


def _lengths(layer: torch.nn.Linear, paths: Sequence[Path]) -> dict[Path, int]:
    """The rows that each file has, where the layer takes all of them and they are called differently."""
    if not paths:
        raise ValueError("files is empty; give at least one .npy file")
    lengths: dict[Path, int] = {}
    of_name: dict[str, Path] = {}
    for path in paths:
        if path.name in of_name:
            raise ValueError(
                f"{of_name[path.name]} and {path} have the same name, and what is written takes it; rename one"
            )
        of_name[path.name] = path
        shard = opened(str(path), mapped("embeddings", path))
        if shard.shape[1] != layer.in_features:
            raise ValueError(
                f"{path} has rows of {shard.shape[1]} numbers, and the map takes {layer.in_features}; give the "
                "embeddings that it was trained on, or others of the same model"
            )
        lengths[path] = len(shard)
    return lengths


def _claim(folder: Path, layer: torch.nn.Linear) -> None:
    """Say in the folder which map its rows are of, or see that they are of this one."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder is {folder}, a file; give a folder, or one to make")
    folder.mkdir(parents=True, exist_ok=True)
    of_folder = folder / MAP_NAME
    if not of_folder.exists():
        save_map(layer, of_folder)
    elif not np.array_equal(plain(load_map(of_folder).weight), plain(layer.weight)):
        raise ValueError(
            f"{folder} holds rows of another map, {of_folder}: rows of two maps cannot be compared; go on with that "
            f"one, load_map({str(of_folder)!r}), or give another folder"
        )


def _is_made(path: Path, target: Path, shape: tuple[int, int], dtype: str) -> bool:
    """Whether the target holds the rows of the file already.

    Raises:
        ValueError: it holds something else.
    """
    if not target.exists() or target.stat().st_mtime_ns < path.stat().st_mtime_ns:
        return False
    try:
        found = mapped("mapped rows", target)
    except ValueError as error:
        raise ValueError(f"{target} is in the way, remove it: {error}") from error
    if (found.shape, found.dtype) != (shape, np.dtype(dtype)):
        raise ValueError(
            f"{target} holds {found.dtype} of shape {found.shape}, expected {dtype} of shape {shape}; remove it, or "
            "give another folder"
        )
    return True


def _map_file(layer: torch.nn.Linear, path: Path, target: Path, dtype: np.dtype, bar: tqdm) -> None:
    shard = mapped("embeddings", path)
    wide = layer.weight.dtype == torch.float64 or shard.dtype.itemsize > 4
    weight = layer.weight.to(torch.float64 if wide else torch.float32)
    shape = (len(shard), layer.out_features)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with whole_file(target) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, len(shard), BLOCK_ROWS):
            shard = mapped("embeddings", path)  # anew, so that the pages of the block before are given back
            rows = Rows(str(path), shard, weight.device, weight.dtype)
            z = F.normalize(rows.as_they_are(slice(first, first + BLOCK_ROWS)) @ weight.T)
            file.write(z.cpu().numpy().astype(dtype).tobytes())
            bar.update(len(z))
