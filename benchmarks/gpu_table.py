"""The tables of benchmarks/results/gpu.json: steps with and without S2SD, and what else `make gpu` does on a card."""

from __future__ import annotations

from typing import Any, NamedTuple

WAYS = ("without S2SD", "recommended", "MSDF")
NOT_MEASURED = "–"
NOT_PMLS = "MultiSimilarityLoss: waits that are not PML's"
RATIO_TARGET = 1.03
"""A ResNet-50's step with S2SD, against the baseline."""


class Row(NamedTuple):
    """A row of the table of steps: where its figures are, by way, and what they may be at most."""

    title: str
    section: str
    quantity: str
    target: float | None = None


ROWS = (
    Row("loss step: waits for the device", "synchronisation", "waits", 0),
    Row(f"with {NOT_PMLS}", "synchronisation", NOT_PMLS, 0),
    Row("loss step: kernels launched", "launches", "kernels"),
    Row("loss step, ms", "graph", "eager, milliseconds"),
    Row("loss step in a CUDA graph, ms", "graph", "graph, milliseconds"),
    Row("loss step compiled, ms", "compile", "compiled, milliseconds"),
    Row("ResNet-50's step, ms", "network", "milliseconds"),
    Row("ResNet-50's step, ratio", "network", "ratio", RATIO_TARGET),
    Row("ResNet-50's step, peak MiB", "network", "MiB"),
)
ELSE = {
    "tests that need a device, passed": ("tests", "passed"),
    "tests that need a device, failed": ("tests", "failed"),
    "CUDA graph: largest difference to the eager step, recommended": ("graph", "largest difference", "recommended"),
    "CUDA graph: largest difference to the eager step, MSDF": ("graph", "largest difference", "MSDF"),
    "distillation at B = 8,192, plainly, ms": ("large batch", "milliseconds", "plain"),
    "distillation at B = 8,192, in blocks, ms": ("large batch", "milliseconds", "blocks"),
    "distillation at B = 8,192, plainly, peak MiB": ("large batch", "MiB", "plain"),
    "distillation at B = 8,192, in blocks, peak MiB": ("large batch", "MiB", "blocks"),
    "compress, a million rows of 512 to 64, seconds": ("million rows", "compress", "seconds"),
    "consolidate, a million rows of 2,048 to 128, seconds": ("million rows", "consolidate", "seconds"),
}


def steps(figures: dict[str, Any]) -> list[list[object]]:
    """Header and rows: a step as it is without S2SD, with the recommended setting, with the paper's MSDF."""
    table: list[list[object]] = [["on one GPU", *WAYS, "target"]]
    for row in ROWS:
        found = {way: of(figures, row.section, row.quantity, way) for way in WAYS}
        table.append([row.title, *found.values(), "" if row.target is None else verdicts(found, row.target)])
    return table


def what_else(figures: dict[str, Any]) -> list[list[object]]:
    return [["on one GPU", "value"], *([title, of(figures, *path)] for title, path in ELSE.items())]


def of(figures: dict[str, Any], section: str, *path: str) -> object:
    """A figure of a section; where it is missing, the sign for it."""
    found: Any = figures.get(section, {}).get("figures", {})
    for key in path:
        found = found.get(key, {}) if isinstance(found, dict) else {}
    return NOT_MEASURED if found == {} else found


def verdicts(found: dict[str, object], target: float) -> str:
    """Whether each way with S2SD meets the target."""
    met = [
        f"{way} {'met' if value <= target else 'not met'}"
        for way, value in found.items()
        if way != WAYS[0] and isinstance(value, int | float)
    ]
    return f"≤ {target}: {', '.join(met) or 'not measured'}"
