"""Checkpoints of a training run: written whole or not at all, and the one before is kept."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pml_s2sd.whole_file import whole_file


class BrokenCheckpointError(Exception):
    """A checkpoint that cannot be read."""


@contextlib.contextmanager
def stoppable(how_to_go_on: str) -> Iterator[None]:
    """Ctrl-C, and a checkpoint that cannot be read, end the script with a sentence."""
    try:
        yield
    except BrokenCheckpointError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        print(f"\nStopped; {how_to_go_on}.", file=sys.stderr)
        raise SystemExit(130) from None


def save_whole(path: Path, content: Any) -> None:
    """torch.save, whole or not at all."""
    with whole_file(path) as file:
        torch.save(content, file)


def save_exported(path: Path, model: torch.nn.Module, x: torch.Tensor) -> None:
    """The model as a program of torch.export, for any number of inputs shaped as x's: it loads without this code."""
    model = copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format).eval()
    program = torch.export.export(model, (x.cpu(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with whole_file(path) as file:
        torch.export.save(program, file)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state`; what was at `path` becomes the previous checkpoint."""
    with whole_file(path) as file:
        torch.save(state, file)
        if path.exists():
            os.replace(path, previous_of(path))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The newest checkpoint, or None where there is none.

    Raises:
        BrokenCheckpointError: it cannot be read, as when it was cut short; says what to do.
    """
    if not path.exists():  # killed between the two renames
        path = previous_of(path)
    if not path.exists():
        return None
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:
        previous = previous_of(path)
        way_on = f"remove it, and its run starts from the beginning: rm {path}"
        if previous.exists() and previous != path:
            way_on = f"the one before is kept; to go on from it: mv {previous} {path}"
        raise BrokenCheckpointError(
            f"the checkpoint {path} ({path.stat().st_size:,} bytes) cannot be read, it may have been cut short "
            f"({type(error).__name__}); {way_on}"
        ) from error


def previous_of(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def remove_checkpoints(folder: Path) -> None:
    for path in folder.glob("*.checkpoint*"):
        path.unlink()


def random_states() -> dict[str, Any]:
    """The state of every generator that training draws from, in types that torch.load takes for weights."""
    algorithm, keys, *rest = np.random.get_state()
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (
            str(algorithm),
            torch.from_numpy(keys.astype(np.int64)),
            *(int(rest[0]), int(rest[1]), float(rest[2])),
        ),
        "python": (version, list(numbers), gauss),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    algorithm, keys, *rest = states["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
