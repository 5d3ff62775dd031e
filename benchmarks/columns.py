"""Distillation against columns drawn at random, `S2SDLoss(columns=)`, against all: error, time and peak memory.

error: the study trains the recommended setting on emoji from scratch; the batch are its training images, augmented, and
the unseen ones. Each number of columns is drawn several times. *KL*: KL ÷ that of all columns - 1, the mean over draws.
*length*: of the base head's gradient along that of all columns, ÷ its length, - 1, likewise. *gradient*: |gradient -
that of all columns| ÷ |that of all columns|, of a single draw. *another batch*: the same of as many other images, with
all their columns.

cost: random embeddings of 128 and 512 to 2048 numbers, forward and backward, each way in a process of its own, taking
turns, medians. Linux.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import peak_mebibytes, reset_peak, save, settings
from torch import nn

from pml_s2sd import S2SDEmbeddings, s2sd

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from study.settings import Setting
from study.training import train

VIEWS = 4
EPOCHS = {"one epoch": 1, "four": 4}
COLUMNS = 1024
SIZES = (128, 512, 1024, 1536, 2048)
SOFTMAX = {
    "T = 0.05": {"temperature": 0.05, "include_diagonal": False},
    "T = 1": {"temperature": 1.0, "include_diagonal": True},
}
"""Recommended, and the paper's."""


class Nothing(nn.Module):
    """An objective that leaves the distillation alone."""

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 0 * embeddings.sum()


def distillation(sizes: tuple[int, ...], **options: object) -> nn.Module:
    """A loss that is the distillation from the spaces of these sizes, the base one first."""
    base, *aux = sizes
    return s2sd(Nothing(), 1, base, "MSD", aux_sizes=aux, distill_weight=1.0, **options)[1]


def error(rows: int, numbers: list[int], draws: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for trained, epochs in EPOCHS.items():
        batch, other = embedded(epochs, rows)
        for name, softmax in SOFTMAX.items():
            whole, gradient = value_and_gradient(batch, **softmax)
            for columns in numbers:
                drawn = [value_and_gradient(batch, columns=columns, **softmax) for _ in range(draws)]
                found[f"{name}, {trained}, {columns}"] = compared(drawn, whole, gradient)
            found[f"{name}, {trained}, another batch"] = compared(
                [value_and_gradient(other, **softmax)], whole, gradient
            )
    return found


@torch.no_grad()
def embedded(epochs: int, rows: int) -> list[S2SDEmbeddings]:
    """Two batches of embeddings, none of an image in the same view."""
    with torch.enable_grad():
        setting = Setting("scratch", Path(), epochs=epochs)
        trunk, embedder = train(setting, "multisimilarity", 64, seed=0, way="S2SD")[0]
    trunk.eval()
    every = torch.arange(len(setting.train_labels))
    images = [setting.batch(every) for _ in range(VIEWS)] + setting.test_batches()
    whole = torch.cat([embedder(trunk(part)) for x in images for part in x.split(256)])
    return [whole[some] for some in torch.randperm(len(whole))[: 2 * rows].split(rows)]


def value_and_gradient(batch: S2SDEmbeddings, **options: object) -> tuple[float, torch.Tensor]:
    """The KL, and its gradient with respect to the head's weight."""
    z = batch.embeddings.detach().requires_grad_()
    loss_func = distillation((z.shape[1], *(a.shape[1] for a in batch.aux)), **options)
    value = loss_func(S2SDEmbeddings(z, batch.aux, batch.features[:, :1]), torch.zeros(len(z), dtype=torch.long))
    value.backward()
    return value.item(), z.grad.T @ batch.features


def compared(found: Sequence[tuple[float, torch.Tensor]], whole: float, gradient: torch.Tensor) -> dict[str, float]:
    values, gradients = zip(*found, strict=True)
    length = gradient.norm()
    return {
        "KL": round(statistics.mean(values) / whole - 1, 4),
        "length": round(statistics.mean(((g * gradient).sum() / length**2).item() for g in gradients) - 1, 4),
        "gradient": round(statistics.mean(((g - gradient).norm() / length).item() for g in gradients), 4),
    }


def cost(rows: int, columns: int | None) -> tuple[float, float]:
    """Seconds of forward and backward, and MiB above the batch itself."""
    z, *aux = (torch.randn(rows, size) for size in SIZES)
    loss_func = distillation(SIZES, columns=columns)
    batch = S2SDEmbeddings(z.requires_grad_(), tuple(aux), torch.zeros(rows, 1))
    reset_peak()
    before, started = peak_mebibytes(), time.perf_counter()
    loss_func(batch, torch.zeros(rows, dtype=torch.long)).backward()
    return time.perf_counter() - started, peak_mebibytes() - before


def costs(rows: int, columns: int, repeats: int, threads: int) -> dict[str, object]:
    measured: dict[str, list[list[float]]] = {"all": [], "drawn": []}
    for _ in range(repeats):
        for way, of_way in measured.items():
            drawn = ["--columns", str(columns)] if way == "drawn" else ["--columns"]
            arguments = ["--one", "--rows", str(rows), *drawn, "--threads", str(threads)]
            done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
            of_way.append(json.loads(done.stdout))
    seconds, memory = (
        {way: statistics.median(of_one[k] for of_one in of_way) for way, of_way in measured.items()} for k in (0, 1)
    )
    return {
        "time ratio": round(seconds["drawn"] / seconds["all"], 3),
        "memory ratio": round(memory["drawn"] / memory["all"], 3),
        "seconds": {way: round(value, 2) for way, value in seconds.items()},
        "MiB": {way: round(value) for way, value in memory.items()},
    }


def main() -> None:
    chosen = settings(
        __doc__,
        repeats=3,
        parts={"nargs": "+", "choices": ["error", "cost"], "default": ["error", "cost"]},
        draws={"type": int, "default": 2},
        rows={"type": int, "nargs": "+", "default": [4096, 8192]},
        columns={"type": int, "nargs": "*", "default": [512, 1024, 2048, 4096]},
        one={"action": "store_true", "help": argparse.SUPPRESS},
    )
    if chosen.one:
        (columns,) = chosen.columns or [None]
        cost(64, 2)  # what is loaded at first use
        print(json.dumps(cost(chosen.rows[0], columns)))
        return
    if "error" in chosen.parts:
        rows = max(chosen.rows)
        save("columns_error", {f"B = {rows}": error(rows, chosen.columns, chosen.draws)}, chosen.results)
    if "cost" in chosen.parts:
        of_rows = {f"B = {rows}": costs(rows, COLUMNS, chosen.repeats, chosen.threads) for rows in chosen.rows}
        save("columns_cost", {f"{COLUMNS} columns": of_rows}, chosen.results)


if __name__ == "__main__":
    main()
