"""The distillation term at large batches, in blocks of rows against the plain computation: time and peak memory.

Each is run in a process of its own, d = 128, auxiliary 512 to 2048, forward and backward. Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
from measure import peak_mebibytes, save
from pytorch_metric_learning.distances import CosineSimilarity

from pml_s2sd import distillation
from pml_s2sd.distillation import Space, Teaching, mean_divergences
from pml_s2sd.similarity import Similarity

SIZES = (128, 512, 1024, 1536, 2048)
D = Similarity(CosineSimilarity())


def distil(rows: int) -> tuple[float, float]:
    """Seconds, and MiB above the batch itself."""
    z, *aux = (torch.randn(rows, size) for size in SIZES)
    z.requires_grad_()
    before, started = peak_mebibytes(), time.perf_counter()
    student, *teachers = (Space(x, x) for x in map(D.prepare, (z, *aux)))
    mean_divergences(D, student, [Teaching(teachers)], temperature=1.0)[0].backward()
    return time.perf_counter() - started, peak_mebibytes() - before


def in_a_process(rows: int, way: str, threads: int) -> tuple[float, float]:
    arguments = [sys.executable, __file__, "--one", way, "--rows", str(rows), "--threads", str(threads)]
    return tuple(json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=["plain", "blocks"], help=argparse.SUPPRESS)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    if settings.one:
        distillation.PLAIN_ENTRIES = 2**60 if settings.one == "plain" else 0
        distil(64)  # what is loaded at first use
        print(json.dumps(distil(settings.rows[0])))
        return
    figures = {}
    for rows in settings.rows:
        measured = {way: in_a_process(rows, way, settings.threads) for way in ("plain", "blocks")}
        (plain_seconds, plain_memory), (seconds, memory) = measured["plain"], measured["blocks"]
        figures[f"B = {rows}"] = {
            "time ratio": round(seconds / plain_seconds, 3),
            "memory ratio": round(memory / plain_memory, 3),
            "seconds": {"plain": round(plain_seconds, 2), "blocks": round(seconds, 2)},
            "MiB": {"plain": round(plain_memory), "blocks": round(memory)},
        }
        print(f"B = {rows}: {figures[f'B = {rows}']}", flush=True)
    save("large_batch", figures)


if __name__ == "__main__":
    main()
