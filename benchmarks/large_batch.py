"""The distillation term at large batches, in blocks of rows against the plain computation: time and peak memory.

Each is run in a process of its own, taking turns, medians; d = 128, auxiliary 512 to 2048, forward and backward. Linux.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from measure import peak_mebibytes, reset_peak, save, settings
from pytorch_metric_learning.distances import CosineSimilarity

from pml_s2sd import distillation
from pml_s2sd._similarity import Similarity
from pml_s2sd.distillation import Comparison, mean_divergences

SIZES = (128, 512, 1024, 1536, 2048)
D = Similarity(CosineSimilarity())


def distil(rows: int) -> tuple[float, float]:
    """Seconds, and MiB above the batch itself."""
    z, *aux = (torch.randn(rows, size) for size in SIZES)
    z.requires_grad_()
    reset_peak()
    before, started = peak_mebibytes(), time.perf_counter()
    student, *teachers = (Comparison(x, x) for x in map(D.prepare, (z, *aux)))
    mean_divergences(D, student, [teachers], temperature=1.0)[0].backward()
    return time.perf_counter() - started, peak_mebibytes() - before


def in_a_process(rows: int, way: str, threads: int) -> tuple[float, float]:
    arguments = [sys.executable, __file__, "--one", way, "--rows", str(rows), "--threads", str(threads)]
    return tuple(json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    chosen = settings(
        __doc__,
        repeats=3,
        rows={"type": int, "nargs": "+", "default": [1024, 2048, 4096, 8192]},
        one={"choices": ["plain", "blocks"], "help": argparse.SUPPRESS},
    )
    if chosen.one:
        distillation.WHOLE_ENTRIES = 2**60 if chosen.one == "plain" else 0
        distil(64)  # what is loaded at first use
        print(json.dumps(distil(chosen.rows[0])))
        return
    figures = {}
    for rows in chosen.rows:
        measured: dict[str, list[tuple[float, float]]] = {"plain": [], "blocks": []}
        for _ in range(chosen.repeats):
            for way, of_way in measured.items():
                of_way.append(in_a_process(rows, way, chosen.threads))
        seconds, memory = (
            {way: statistics.median(of_one[k] for of_one in of_way) for way, of_way in measured.items()} for k in (0, 1)
        )
        figures[f"B = {rows}"] = {
            "time ratio": round(seconds["blocks"] / seconds["plain"], 3),
            "memory ratio": round(memory["blocks"] / memory["plain"], 3),
            "seconds": {way: round(value, 2) for way, value in seconds.items()},
            "MiB": {way: round(value) for way, value in memory.items()},
        }
        print(f"B = {rows}: {figures[f'B = {rows}']}", flush=True)
    save("large_batch", figures, chosen.results)


if __name__ == "__main__":
    main()
