"""The two plots of docs/performance.md from benchmarks/results: cost against B, and against the auxiliary spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measure import read

from pml_s2sd.report.pictures import save_png

DOCS = Path(__file__).parents[1] / "docs"
LINES = {
    "S2SD": ("with S2SD", "C0", "-"),
    "heads": ("its heads alone", "C0", ":"),
    "plain": ("without S2SD", "C1", "-"),
}


def lines(axes: Axes, measured: dict[str, Any], quantity: str, x_label: str, y_label: str) -> None:
    x = [int(name) for name in measured]
    for way, (label, colour, style) in LINES.items():
        if way in measured[next(iter(measured))][quantity]:
            y = [f[quantity][way] for f in measured.values()]
            axes.plot(x, y, style, color=colour, marker="o", markersize=3, label=label)
    axes.set(xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
    axes.set_xticks(x, map(str, x))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def save(figure: Figure, name: str) -> None:
    figure.tight_layout()
    save_png(figure, DOCS / f"{name}.png")


def main() -> None:
    figures = read("scaling_batch")["figures"] | read("scaling_spaces")["figures"]
    batch_size, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.4))
    lines(time, figures["B"], "milliseconds", "batch size B", "loss step, ms")
    lines(memory, figures["B"], "MiB", "batch size B", "peak memory, MiB")
    save(batch_size, "cost_batch_size")

    spaces, (size, number) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    lines(size, figures["size of one space"], "milliseconds", "size of the one auxiliary space", "loss step, ms")
    lines(number, figures["number of spaces of 1024"], "milliseconds", "number of auxiliary spaces of size 1024", "")
    save(spaces, "cost_spaces")


if __name__ == "__main__":
    main()
