"""The two plots of docs/performance.md from benchmarks/results: where a step's time goes, and cost against B."""

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
RECOMMENDED = "recommended, "
"""What the names of that recipe's workloads begin with in loss_step.json; the others are MSDF's."""
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


def bars(axes: Axes, rows: dict[str, dict[str, float]], x_label: str) -> None:
    """A bar a row, the first on top, made of its parts from left to right."""
    names = list(rows)
    parts = list(rows[names[0]])
    left = [0.0] * len(names)
    for k, part in enumerate(parts):
        widths = [max(0.0, rows[name][part]) for name in names]
        axes.barh(names, widths, left=left, height=0.6, color=f"C{k}", label=part)
        left = [x + width for x, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel=x_label)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(parts), columnspacing=1)


def added(training_step: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What S2SD adds to a training step, by recipe: milliseconds of each part."""
    return {name.split(",")[0]: of_name["milliseconds more"] for name, of_name in training_step.items()}


def of_a_loss_step(loss_step: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What a loss step is made of, by recipe and objective: milliseconds of each part."""
    return {
        name if name.startswith(RECOMMENDED) else f"MSDF, {name}": {
            "heads": of_name["milliseconds"]["heads"],
            "base objective": of_name["milliseconds"]["base objective"],
            "auxiliary objectives": of_name["milliseconds over"]["auxiliary objectives"],
            "distillation": of_name["milliseconds over"]["distillation"],
        }
        for name, of_name in loss_step.items()
        if "milliseconds over" in of_name and ", " not in name.removeprefix(RECOMMENDED)
    }


def save(figure: Figure, name: str) -> None:
    figure.tight_layout()
    save_png(figure, DOCS / f"{name}.png")


def main() -> None:
    more, whole = added(read("training_step")["figures"]), of_a_loss_step(read("loss_step")["figures"])
    heights = (len(more), len(whole))
    steps, (training, loss) = plt.subplots(2, 1, figsize=(8, 1.7 + 0.45 * sum(heights)), height_ratios=heights)
    bars(training, more, "added to a training step of ResNet-50, ms")
    bars(loss, whole, "loss step, ms")
    save(steps, "cost_parts")

    figures = read("scaling_batch")["figures"]
    batch_size, (time, memory) = plt.subplots(1, 2, figsize=(8, 3.2))
    lines(time, figures["B"], "milliseconds", "batch size B", "loss step, ms")
    lines(memory, figures["B"], "MiB", "batch size B", "peak memory, MiB")
    save(batch_size, "cost_batch_size")


if __name__ == "__main__":
    main()
