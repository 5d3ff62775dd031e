"""Where `collect_features` puts what it has so far: in memory, or in a folder from which a killed run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .whole_file import whole_file

NOTED_EVERY = 5.0
"""Seconds after which what has been done is noted again; a killed run repeats what was not."""


class Part(NamedTuple):
    """Features (n, …) with the labels of their samples, and in which way these were turned, 0 for not; (n,), int64."""

    features: Any
    labels: torch.Tensor
    ways: torch.Tensor


class InMemory:
    """All parts, in order."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def goes_on(self, in_order: bool) -> tuple[int, int]:
        return 0, 0

    def append(self, view: int, batch: int, parts: Sequence[Part]) -> None:
        self._parts += parts

    def end_of(self, view: int) -> None:
        pass

    def __enter__(self) -> InMemory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def finished(self) -> Part:
        if not self._parts:
            nothing = torch.zeros(0, dtype=torch.int64)
            return Part(torch.zeros(0, 0), nothing, nothing)
        return Part(*(torch.cat(column) for column in zip(*self._parts, strict=True)))


class InFolder:
    """All parts, in order, appended to three files; a fourth says what they hold.

    Args:
        folder: made if need be.
        made_with: what decides about the rows, JSON; a folder of others is refused.

    Raises:
        ValueError: the folder holds something else, or less than was noted.
    """

    FILES = ("features.bin", "labels.bin", "ways.bin")

    def __init__(self, folder: Path, made_with: dict[str, Any]) -> None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"path is {folder}, a file; give a folder, or one to make")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._note = folder / "progress.json"
        self._at: dict[str, Any] = {
            "made_with": made_with,
            "view": 0,
            "batch": 0,
            "rows": 0,
            "rows_before_view": 0,
            "row": None,
        }
        if self._note.exists():
            self._read(made_with)
        self._noted = time.monotonic()
        self._files: list[Any] = []

    def _read(self, made_with: dict[str, Any]) -> None:
        try:
            noted = json.loads(self._note.read_text())
            there = noted["made_with"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._note} is cut short or no note of features; remove {self.folder}") from error
        if there != made_with:
            raise ValueError(
                f"{self.folder} holds features made with {there}, these are to be made with {made_with}; give the "
                "same, or another path"
            )
        self._at = noted

    def goes_on(self, in_order: bool) -> tuple[int, int]:
        """The view and batch to go on with: after the last ones noted, or with a whole view where order is random."""
        at = self._at
        if not in_order and at["batch"]:
            at["batch"], at["rows"] = 0, at["rows_before_view"]
        if not at["rows"]:
            at["row"] = None
        for name, width in zip(self.FILES, self._widths(), strict=True):
            path = self.folder / name
            path.touch()
            if path.stat().st_size < at["rows"] * width:
                raise ValueError(f"{path} is cut short: it holds less than {self._note} says; remove {self.folder}")
            with path.open("r+b") as file:
                file.truncate(at["rows"] * width)
        self._files = [(self.folder / name).open("ab") for name in self.FILES]
        return at["view"], at["batch"]

    def append(self, view: int, batch: int, parts: Sequence[Part]) -> None:
        at = self._at
        for part in parts:
            row = {"shape": list(part.features.shape[1:]), "dtype": str(part.features.numpy().dtype)}
            if at["row"] not in (None, row):
                raise ValueError(
                    f"{self.folder} holds features of {at['row']}, the trunk gives {row}; give another path"
                )
            at["row"] = row
            for file, column in zip(self._files, part, strict=True):
                file.write(column.contiguous().numpy().tobytes())
            at["rows"] += len(part.labels)
        at["batch"] = batch + 1
        if time.monotonic() - self._noted > NOTED_EVERY:
            self._write()

    def end_of(self, view: int) -> None:
        self._at |= {"view": view + 1, "batch": 0, "rows_before_view": self._at["rows"]}
        self._write()

    def __enter__(self) -> InFolder:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is written later, whatever happened."""
        for file in self._files:
            file.close()

    def finished(self) -> Part:
        """Of all rows; the features memory-mapped."""
        rows, row = self._at["rows"], self._at["row"]
        if not rows:
            return InMemory().finished()
        features = np.memmap(self.folder / self.FILES[0], row["dtype"], "r", shape=(rows, *row["shape"]))
        labels, ways = (torch.from_numpy(np.fromfile(self.folder / name, np.int64, rows)) for name in self.FILES[1:])
        return Part(features, labels, ways)

    def _widths(self) -> list[int]:
        """Bytes a row of each file."""
        row = self._at["row"]
        wide = 0 if row is None else int(np.prod(row["shape"])) * np.dtype(row["dtype"]).itemsize
        return [wide, 8, 8]

    def _write(self) -> None:
        """Note what is there, after it is there."""
        for file in self._files:
            file.flush()
        with whole_file(self._note, "w") as file:
            json.dump(self._at, file)
        self._noted = time.monotonic()
