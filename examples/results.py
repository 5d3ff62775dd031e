"""Results of the examples: files of them, and the tables that are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pml_s2sd.report.run_folder import PERCENTAGES, PROPERTIES
from pml_s2sd.whole_file import whole_file

METRICS = {metric: PERCENTAGES[metric] for metric in ("precision_at_1", "r_precision", "mean_average_precision_at_r")}
"""What every epoch is measured by."""


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    """A killed run leaves the last whole file."""
    with whole_file(path, "w") as file:
        file.write(content)


def print_table(models: dict[str, dict[str, Any]]) -> None:
    """One row a model: accuracies on unseen classes in percent, cost of the deployed model, what training took."""
    consolidated = any("consolidation_seconds" in record for record in models.values())
    header = ["model", *METRICS.values(), "parameters", "ms/image", "training s"]
    rows = [
        [
            name,
            *(f"{100 * record[metric]:.1f}" for metric in METRICS),
            f"{record['deployed_parameters']:,}",
            f"{record['latency_ms_per_image']:.3f}",
            f"{record['train_seconds']:.0f}",
            *([f"{record.get('consolidation_seconds', 0):.0f}"] if consolidated else []),
        ]
        for name, record in models.items()
    ]
    print("\n" + markdown_table([*header, *(["consolidation s"] if consolidated else [])], rows))


def print_further_metrics(models: dict[str, dict[str, Any]]) -> None:
    """One row a model: the metrics of unseen classes that `print_table` leaves out."""
    others = {metric: title for metric, title in PERCENTAGES.items() if metric not in METRICS}
    rows = [
        [
            name,
            *(f"{100 * record[metric]:.1f}" for metric in others),
            *(f"{record[metric]:.3f}" for metric in PROPERTIES),
        ]
        for name, record in models.items()
    ]
    print("\n" + markdown_table(["model", *others.values(), *PROPERTIES.values()], rows))


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
