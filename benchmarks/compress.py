"""`compress` from 512 dimensions to 64: time and memory by the number of rows, and what the closed-form gradient saves.

- scale: seconds, and MiB above the input, for 100,000 rows and a million, each in a process of its own, from memory and
  from a file that is memory-mapped; the ratio of the times. Of a mapped file only memory that is the process's own
  counts: pages of the file are the input.
- shards: the same of two million rows of 256 float16 numbers in four files, a gigabyte, and of mapping all of them into
  files by `map_files`, where pages of files count.
- gradient: milliseconds a step's gradient takes in closed form, and by autograd through `distillation.divergence`.

Rows are made up: classes of ten about centres whose directions are used ever less. Linux.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import medians, milliseconds, save, settings

from pml_s2sd import compress
from pml_s2sd._similarity_map import Objective
from pml_s2sd.compress import map_files
from pml_s2sd.distillation import divergence, row_log_probs

COLUMNS, SIZE, SUBSET_ROWS = 512, 64, 512
OF_A_CLASS, NOISE = 10, 0.8
FEW, MANY = 100_000, 1_000_000
BLOCK_ROWS = 10_000
SHARDS, OF_A_SHARD, SHARD_COLUMNS = 4, 500_000, 256


def write_rows(path: Path, rows: int, columns: int = COLUMNS, dtype: str = "float32", seed: int = 0) -> None:
    """A .npy file of made-up embeddings, (rows, columns), written a block at a time."""
    draw = np.random.default_rng(seed)
    scale = np.arange(1, columns + 1, dtype=np.float32) ** -0.5
    file = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(rows, columns))
    for start in range(0, rows, BLOCK_ROWS):
        block = file[start : start + BLOCK_ROWS]
        centres = draw.standard_normal((len(block) // OF_A_CLASS, columns), dtype=np.float32)
        made = np.repeat(centres, OF_A_CLASS, axis=0) + NOISE * draw.standard_normal(block.shape, dtype=np.float32)
        block[:] = made * scale
    file.flush()


class PeakMemory:
    """The most memory that this process holds while the block runs, in MiB above what it holds before.

    Args:
        kind: RssAnon, its own; or VmRSS, with pages of files.
    """

    def __init__(self, kind: str = "RssAnon") -> None:
        self._kind = kind

    def __enter__(self) -> PeakMemory:
        self._before = self._peak = mebibytes_of(self._kind)
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self._peak = max(self._peak, mebibytes_of(self._kind))

    def __exit__(self, *of_error: object) -> None:
        self._over.set()
        self._watch.join()
        self.mebibytes = self._peak - self._before


def mebibytes_of(kind: str) -> float:
    """Memory of this process, of a kind that Linux tells."""
    found = re.search(rf"{kind}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def measured_here(path: str, where: str) -> dict[str, float]:
    compress(np.random.default_rng(0).standard_normal((1000, 32), dtype=np.float32), 8, steps=2)  # loaded at first use
    embeddings = np.load(path) if where == "memory" else np.load(path, mmap_mode="r")
    with PeakMemory() as peak:
        started = time.perf_counter()
        compress(embeddings, SIZE, subset_rows=SUBSET_ROWS)
        seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 2), "MiB above the input": round(peak.mebibytes)}


def shards_measured_here(folder: str) -> dict[str, dict[str, float]]:
    """Training a map of all files in a folder, and mapping them."""
    compress(np.random.default_rng(0).standard_normal((1000, 32), dtype=np.float32), 8, steps=2)  # loaded at first use
    files = sorted(Path(folder).glob("*.npy"))
    figures = {}
    with PeakMemory() as peak:
        started = time.perf_counter()
        layer = compress(files, SIZE, subset_rows=SUBSET_ROWS)
        trained = time.perf_counter()
    figures["the map trained"] = {"seconds": round(trained - started, 2), "MiB above the input": round(peak.mebibytes)}
    with PeakMemory("VmRSS") as peak:
        started = time.perf_counter()
        map_files(layer, files, Path(folder) / "small", dtype="float16")
        mapped = time.perf_counter()
    figures["all rows mapped"] = {"seconds": round(mapped - started, 2), "MiB above the input": round(peak.mebibytes)}
    return figures


def in_a_process(threads: int, *of_one: object) -> dict[str, Any]:
    """What is printed by this benchmark, run anew with --one."""
    command = [sys.executable, __file__, "--threads", str(threads), "--one", *map(str, of_one)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def shards(threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        for number in range(SHARDS):
            write_rows(Path(folder) / f"{number}.npy", OF_A_SHARD, SHARD_COLUMNS, "float16", seed=number)
        return in_a_process(threads, folder, "shards")


def scale(rows: list[int], threads: int) -> dict[str, object]:
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in rows:
            path = Path(folder) / f"{number}.npy"
            write_rows(path, number)
            for where in ("memory", "file"):
                figures[f"{number:,} rows, {where}"] = in_a_process(threads, path, where)
            path.unlink()
    for where in ("memory", "file"):
        few, many = (figures[f"{number:,} rows, {where}"]["seconds"] for number in (rows[0], rows[-1]))  # type: ignore[index]
        figures[f"{where}: seconds ratio to {rows[0]:,} rows"] = round(many / few, 2)
    return figures


def gradient(repeats: int) -> dict[str, object]:
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(SUBSET_ROWS, COLUMNS))
    weight = torch.linalg.qr(torch.randn(COLUMNS, SIZE))[0].T.contiguous().requires_grad_()
    objective = Objective(temperature=0.05, label_weight=0.0)

    def closed_form() -> torch.Tensor:
        with torch.no_grad():
            return objective.gradient(weight, x, objective.teacher_probs([x], None))

    def by_autograd() -> torch.Tensor:
        z = torch.nn.functional.normalize(x @ weight.T)
        itself = torch.arange(len(x))
        value = divergence(row_log_probs(z @ z.T, 0.05, itself), x @ x.T, 0.05, itself)
        return torch.autograd.grad(value, weight)[0]

    assert torch.allclose(closed_form(), by_autograd(), rtol=1e-3, atol=1e-8)
    times = medians({"closed form": closed_form, "autograd": by_autograd}, repeats)
    return {"milliseconds": milliseconds(times), "ratio": round(times["closed form"] / times["autograd"], 3)}


def main() -> None:
    chosen = settings(
        __doc__,
        repeats=30,
        rows={"type": int, "nargs": "+", "default": [FEW, MANY]},
        one={"nargs": 2, "metavar": ("FILE", "WHERE")},
    )
    if chosen.one:
        path, where = chosen.one
        figures = shards_measured_here(path) if where == "shards" else measured_here(path, where)
        print(json.dumps(figures))
        return
    figures = {
        f"scale, {COLUMNS} to {SIZE}": scale(chosen.rows, chosen.threads),
        f"shards, {SHARDS * OF_A_SHARD:,} rows, {SHARD_COLUMNS} to {SIZE}": shards(chosen.threads),
        "gradient": gradient(chosen.repeats),
    }
    save("compress", figures, chosen.results)


if __name__ == "__main__":
    main()
