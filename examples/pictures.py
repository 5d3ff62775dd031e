"""Pictures of a run: training curves, and queries with their nearest neighbours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch.utils.data import Dataset

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from results import METRICS

QUERIES = 12
NEIGHBOURS = 5
RIGHT, WRONG = "#1a9641", "#d7191c"


def draw_curves(models: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracies on unseen classes and the training loss, epoch by epoch, a line a model."""
    figure, axes = plt.subplots(1, len(METRICS) + 1, figsize=(4 * (len(METRICS) + 1), 3.4), layout="constrained")
    for name, record in models.items():
        epochs = [epoch["epoch"] for epoch in record["epochs"]]
        for axis, metric in zip(axes, METRICS, strict=False):
            axis.plot(epochs, [100 * epoch[metric] for epoch in record["epochs"]], label=name)
        axes[-1].plot(epochs, [epoch["base" if "base" in epoch else "loss"] for epoch in record["epochs"]], label=name)
    for axis, metric in zip(axes, METRICS.values(), strict=False):
        axis.set(title=f"{metric}, unseen classes", xlabel="epoch", ylabel="%")
    axes[-1].set(title="base objective L(z), training classes", xlabel="epoch")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


def draw_retrieval(embeddings: dict[str, torch.Tensor], dataset: Dataset, path: Path) -> None:
    """A grid: a row a query, and for each model its nearest neighbours, right ones framed green, wrong ones red.

    The queries are spaced evenly over the data set, whatever the models make of them.

    Args:
        embeddings: normalised, (N, d), by the model's name.
        dataset: what was embedded; gives images and labels.
    """
    queries = torch.linspace(0, len(dataset) - 1, QUERIES + 2).long()[1:-1].tolist()
    columns = 1 + len(embeddings) * NEIGHBOURS
    figure, axes = plt.subplots(
        QUERIES, columns, figsize=(0.75 * columns, 0.78 * QUERIES + 0.5), squeeze=False, layout="constrained"
    )
    for row, query in enumerate(queries):
        show_image(axes[row][0], dataset, query, "#555555")
        for model, (name, x) in enumerate(embeddings.items()):
            similarities = x @ x[query]
            similarities[query] = -torch.inf
            for rank, neighbour in enumerate(similarities.topk(NEIGHBOURS).indices.tolist()):
                axis = axes[row][1 + model * NEIGHBOURS + rank]
                show_image(
                    axis, dataset, neighbour, RIGHT if dataset.labels[neighbour] == dataset.labels[query] else WRONG
                )
                if row == 0 and rank == NEIGHBOURS // 2:
                    axis.set_title(name)
    axes[0][0].set_title("query")
    save_figure(figure, path)


def show_image(axis: Any, dataset: Dataset, index: int, frame: str) -> None:
    axis.imshow(dataset[index][0].permute(1, 2, 0).numpy())
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(edgecolor=frame, linewidth=3)


def save_figure(figure: Any, path: Path) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
    os.replace(temporary, path)
