"""The rows of a gallery, in .npy files that are never read whole."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..._matrices import mapped
from .._given import as_labels

BLOCK_BYTES = 2**26
"""Rows are read so many bytes at a time, reckoned in float32."""
PIECE_ROWS = 2**20
"""Of a shard, so many rows are one piece of work: what a killed run repeats at most."""

Paths = str | os.PathLike | Sequence[str | os.PathLike]


class Shard(NamedTuple):
    """A .npy file: where its rows start, and what tells whether it is still the same file."""

    path: str
    rows: int
    width: int
    dtype: str
    offset: int
    modified: int


class Gallery:
    """Embeddings in one or several .npy files, as a reference to search in; what is in memory is a block of rows.

    It is the `reference` of `RetrievalAccuracyCalculator.get_accuracy` where `knn_func` is `GalleryKNN` or `OnDiskKNN`.
    Its rows are numbered through all files, in their order. They are taken as they are: normalise them before they are
    saved, and the nearest are those of the largest cosine similarity.

    Args:
        paths: .npy files of shape (n, d), float16, float32 or float64, of one d; some may be empty. A pattern, such as
            "gallery-*.npy", is those that match, sorted by name; a list keeps its order.

    Attributes:
        shards: a file each.
        shape: (N, d), of all files together.

    Raises:
        FileNotFoundError: there is no such file. ValueError, TypeError: a file is cut short, of another width, shape or
        dtype, or there are no rows. Rows are checked
            when they are read: one that is NaN or infinite is refused with its file and number.

    Example:
        >>> import numpy as np
        >>> from pml_s2sd.evaluation.gallery import Gallery
        >>> folder = getfixture("tmp_path")
        >>> for i, rows in enumerate((3, 2)):
        ...     np.save(folder / f"gallery-{i}.npy", np.full((rows, 4), i, dtype=np.float16))
        >>> gallery = Gallery(folder / "gallery-*.npy")
        >>> gallery.shape, gallery[2:4][:, 0].tolist()
        ((5, 4), [0.0, 1.0])
    """

    def __init__(self, paths: Paths) -> None:
        self.shards = tuple(read_header(path) for path in found_files("the gallery", paths))
        rows, widths = sum(shard.rows for shard in self.shards), {shard.width for shard in self.shards}
        if len(widths) > 1:
            of_files = ", ".join(f"{shard.path}: {shard.width}" for shard in first_of_each_width(self.shards))
            raise ValueError(f"the shards of a gallery must be of one width, got {of_files}; use one model")
        self.shape = (rows, widths.pop())
        if not rows:
            raise ValueError(f"the gallery has no rows, in {len(self.shards)} files; give at least one row")
        self._starts = np.cumsum([0, *(shard.rows for shard in self.shards)])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> torch.Tensor:
        """Rows of a slice, float32, (n, d)."""
        return torch.from_numpy(self.take(np.arange(len(self))[rows]))

    def identity(self) -> list[dict[str, Any]]:
        """What changes where a file does: names, shapes, dtypes and times of writing; JSON."""
        return [
            {
                "file": Path(shard.path).name,
                "shape": [shard.rows, shard.width],
                "dtype": shard.dtype,
                "modified": shard.modified,
            }
            for shard in self.shards
        ]

    def read_labels(self, paths: Paths) -> torch.Tensor:
        """The labels of all rows, (N,): of one .npy file, or of one a shard, in the order of the shards.

        Args:
            paths: as those of the gallery.

        Raises:
            FileNotFoundError, TypeError, ValueError: there is no such file, it holds no numbers, or not one a row.
        """
        files = found_files("the gallery's labels", paths)
        if len(files) not in (1, len(self.shards)):
            raise ValueError(
                f"the gallery has {len(self.shards)} shards and {len(files)} files of labels; give one a shard, or one "
                "for all"
            )
        expected = [len(self)] if len(files) == 1 else [shard.rows for shard in self.shards]
        labels = [checked_labels(path, rows) for path, rows in zip(files, expected, strict=True)]
        return torch.cat(labels)

    def pieces(self) -> list[range]:
        """All rows, as ranges of at most `PIECE_ROWS`, each within a shard."""
        found = []
        for start, shard in zip(self._starts.tolist(), self.shards, strict=False):
            end = start + shard.rows
            found += [range(first, min(first + PIECE_ROWS, end)) for first in range(start, end, PIECE_ROWS)]
        return found

    def blocks(self, piece: range) -> Iterator[tuple[int, np.ndarray]]:
        """A piece a block at a time: (number of its first row, rows (n, d), float32)."""
        at_a_time = max(1, BLOCK_BYTES // (4 * self.shape[1]))
        at = self._shard_of(piece.start)
        shard, start = self.shards[at], int(self._starts[at])
        for first in range(piece.start, piece.stop, at_a_time):
            count = min(at_a_time, piece.stop - first)
            offset = shard.offset + (first - start) * shard.width * np.dtype(shard.dtype).itemsize
            # A map of these rows alone: it is gone, and with it what it takes of memory, after the block.
            rows = np.memmap(shard.path, shard.dtype, "r", offset, (count, shard.width))
            yield first, checked_rows(shard, np.arange(first - start, first - start + count), rows)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows of these numbers, which rise, (n, d), float32."""
        taken = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        bounds = np.searchsorted(rows, self._starts)
        for at, shard in enumerate(self.shards):
            these = slice(bounds[at], bounds[at + 1])
            if these.start < these.stop:
                whole = np.memmap(shard.path, shard.dtype, "r", shard.offset, (shard.rows, shard.width))
                inside = rows[these] - self._starts[at]
                taken[these] = checked_rows(shard, inside, whole[inside])
        return taken

    def _shard_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1


def found_files(name: str, paths: Paths) -> list[Path]:
    """The files of a pattern, sorted, or of a list."""
    if not isinstance(paths, str | os.PathLike):
        files = [Path(path) for path in paths]
        if not files:
            raise ValueError(f"{name} is of no files; give at least one .npy file")
        return files
    pattern = os.fspath(paths)
    if Path(pattern).exists():
        return [Path(pattern)]
    files = [Path(path) for path in sorted(glob.glob(pattern))]
    if not files:
        raise FileNotFoundError(f"no file {pattern} for {name}; expected a .npy file, or a pattern that some match")
    return files


def read_header(path: str | os.PathLike) -> Shard:
    """What the header of a .npy file says, where the file holds as much."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} for the gallery; expected a .npy file")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_column, dtype = read(file)
            offset = file.tell()
    except ValueError as error:
        raise ValueError(
            f"{path} ({size:,} bytes) is no .npy file, or cut short within its header ({error}); write it again with "
            "numpy.save"
        ) from error
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise TypeError(f"{path} must hold float16, float32 or float64, got {dtype}; convert it")
    if len(shape) != 2 or not shape[1] or (by_column and shape[0] > 1 and shape[1] > 1):
        order = ", by column" if by_column else ""
        raise ValueError(
            f"{path} must hold embeddings of shape (n, d), row by row, got shape {shape}{order}; save "
            "numpy.ascontiguousarray of such an array"
        )
    expected = offset + shape[0] * shape[1] * dtype.itemsize
    if size < expected:
        raise ValueError(
            f"{path} is cut short: its header says {shape[0]:,} rows of {shape[1]} {dtype}, which makes {expected:,} "
            f"bytes, and it has {size:,}; copy or write it again"
        )
    return Shard(str(path), *shape, dtype.str, offset, path.stat().st_mtime_ns)


def first_of_each_width(shards: Sequence[Shard]) -> list[Shard]:
    return list({shard.width: shard for shard in reversed(shards)}.values())[::-1]


def checked_rows(shard: Shard, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32, all finite; `numbers` are those that the rows have within the shard."""
    with np.errstate(over="ignore"):  # of float64; refused below
        converted = np.asarray(rows, dtype=np.float32, order="C")
    finite = np.isfinite(converted).all(axis=1)
    if not finite.all():
        broken = np.flatnonzero(~finite)
        raise ValueError(
            f"{shard.path} holds rows that are NaN or infinite in float32, {len(broken):,} of the {len(rows):,} just "
            f"read, the first of them row {numbers[broken[0]]:,}; they have no nearest neighbours: make the shard "
            "again without them"
        )
    return converted


def checked_labels(path: Path, rows: int) -> torch.Tensor:
    labels = as_labels(str(path), mapped("the gallery's labels", path))
    if tuple(labels.shape) != (rows,):
        raise ValueError(f"{path} must hold {rows:,} labels, one for each row, got shape {tuple(labels.shape)}")
    return labels


def checked_gallery(reference: Any) -> Gallery:
    """What the searches of this package are given as reference."""
    if not isinstance(reference, Gallery):
        raise TypeError(
            f"reference must be a Gallery, got {type(reference).__name__}; give the .npy files as Gallery(paths), and "
            "leave knn_func out for embeddings in memory"
        )
    return reference
