"""Evaluation at the size of Stanford Online Products, and in a gallery of a million: time, peak memory, recall.

Two parts, each measurement in a process of its own, d = 128, embeddings made up: classes of 2 to 12 about centres whose
directions are used ever less. Linux.

- whole: every image is searched among all others. PML's metrics, by PML's AccuracyCalculator and by
  RetrievalAccuracyCalculator (the same k); what the latter computes over queries; all of its metrics.
- gallery: queries in a large gallery, by exact search, IVF and HNSW: building the index (and measuring what it
  finds: the share of the exact search's neighbours), then search and metrics by number of queries, and Recall@1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import faiss
import torch
from measure import peak_mebibytes, reset_peak, save
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from pml_s2sd.evaluation.accuracy import BY_QUERY, RetrievalAccuracyCalculator
from pml_s2sd.evaluation.neighbours import ApproximateKNN

D = 128
SMALLEST, LARGEST, MEAN = 2, 12, 60_502 / 11_316
"""Images a class, and their mean in the test half of Stanford Online Products."""
NOISE = 0.8
"""The spread within a class, that of the classes' centres being 1."""
CPU = torch.device("cpu")
RECALLS = ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8")
WHOLE = ("PML's metrics, by PML", "PML's metrics", "over queries", "all metrics")
GALLERY = ("flat", "ivf", "hnsw")


def made(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised embeddings, (rows, D), and labels."""
    torch.manual_seed(0)
    classes = round(rows / MEAN)
    further = torch.randperm((LARGEST - SMALLEST) * classes)[: rows - SMALLEST * classes] % classes
    labels = torch.cat([torch.arange(classes).repeat(SMALLEST), further])[torch.randperm(rows)]
    scale = torch.arange(1, D + 1) ** -0.5
    x = torch.randn(classes, D)[labels].add_(NOISE * torch.randn(rows, D)).mul_(scale)
    return torch.nn.functional.normalize(x), labels


def whole(way: str, rows: int) -> dict[str, float]:
    """Seconds, MiB above the embeddings, and Recall@1, of a way to evaluate."""
    if way == "PML's metrics, by PML":
        calculator = AccuracyCalculator(device=CPU, k="max_bin_count")
    else:
        of_pml = tuple(AccuracyCalculator(device=CPU).get_curr_metrics())
        include = {"PML's metrics": of_pml, "over queries": (*BY_QUERY, *RECALLS), "all metrics": ()}[way]
        calculator = RetrievalAccuracyCalculator(include, device=CPU)
    calculator.get_accuracy(*made(500))  # what is loaded at first use
    x, labels = made(rows)
    reset_peak()
    before, started = peak_mebibytes(), time.perf_counter()
    found = calculator.get_accuracy(x, labels)
    seconds, memory = time.perf_counter() - started, peak_mebibytes() - before
    return {"seconds": seconds, "MiB": memory, "Recall@1": found["precision_at_1"]}


def gallery(kind: str, queries: list[int], references: int, effort: int) -> dict[str, float]:
    """Seconds to build, and to search each number of queries, MiB above the embeddings, what share is found."""
    x, labels = made(max(queries) + references)
    reference, of_reference = x[-references:], labels[-references:]
    reset_peak()
    before, started = peak_mebibytes(), time.perf_counter()
    figures: dict[str, float] = {}
    knn = None if kind == "flat" else ApproximateKNN(kind, effort)
    if knn is not None:
        knn(x[: min(queries)], LARGEST, reference)
        figures["build, seconds"] = time.perf_counter() - started
        figures["found"] = knn.recall
    calculator = RetrievalAccuracyCalculator(("r_precision", *RECALLS), device=CPU, knn_func=knn)
    for number in queries:
        started = time.perf_counter()
        found = calculator.get_accuracy(x[:number], labels[:number], reference, of_reference)
        figures[f"{number:,} queries, seconds"] = time.perf_counter() - started
        figures[f"{number:,} queries, Recall@1"] = found["recall_at_1"]
    return {**figures, "MiB": peak_mebibytes() - before}


def in_a_process(settings: argparse.Namespace, part: str, way: str) -> dict[str, float]:
    arguments = ["--one", part, way, "--rows", settings.rows, "--queries", *settings.queries]
    arguments += ["--references", settings.references, "--effort", settings.effort, "--threads", settings.threads]
    print(f"{part}: {way}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, *map(str, arguments)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {name: round(value, 4) for name, value in json.loads(printed.splitlines()[-1]).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["whole", "gallery"], default=["whole", "gallery"])
    parser.add_argument("--rows", type=int, default=60_000, help="images of the whole (default: %(default)s)")
    parser.add_argument("--references", type=int, default=1_000_000, help="the gallery (default: %(default)s)")
    parser.add_argument("--queries", type=int, nargs="+", default=[1000, 10_000], help="in it (default: 1000 10000)")
    parser.add_argument("--effort", type=int, default=64, help="of the approximate indices (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=2, metavar=("PART", "WAY"), help=argparse.SUPPRESS)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    faiss.omp_set_num_threads(settings.threads)
    if settings.one:
        part, way = settings.one
        if part == "whole":
            measured_here = whole(way, settings.rows)
        else:
            measured_here = gallery(way, settings.queries, settings.references, settings.effort)
        print(json.dumps(measured_here))
        return
    if "whole" in settings.parts:
        measured = {way: in_a_process(settings, "whole", way) for way in WHOLE}
        by_pml, ours = measured["PML's metrics, by PML"], measured["PML's metrics"]
        ratios = {f"{name} ratio": round(ours[name] / by_pml[name], 3) for name in ("seconds", "MiB")}
        save("evaluation_whole", {f"{settings.rows:,} among each other": {**ratios, **measured}})
    if "gallery" in settings.parts:
        measured = {kind: in_a_process(settings, "gallery", kind) for kind in GALLERY}
        name = f"{settings.queries[-1]:,} queries, seconds"
        ratios = {
            f"{kind}, seconds ratio": round(measured[kind][name] / measured["flat"][name], 4) for kind in GALLERY[1:]
        }
        save("evaluation_gallery", {f"in {settings.references:,}": {**ratios, **measured}})


if __name__ == "__main__":
    main()
