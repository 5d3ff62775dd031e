"""The pictures in a finished run's folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import Dataset

from pml_s2sd.report import read_run
from pml_s2sd.report.pictures import draw_curves, draw_map, draw_retrieval, save_png
from pml_s2sd.report.series import curve_panels


def draw_run(folder: Path, embeddings: dict[str, torch.Tensor], test_set: Dataset) -> None:
    """curves.png, from metrics.json; retrieval.png and, a model, VARIANT.map.png, from the embeddings of the test set.

    Args:
        folder: the run's.
        embeddings: normalised, (N, d), by the model's name.
        test_set: what was embedded.
    """
    run = read_run(folder)
    recall = {
        variant: f"all {len(test_set):,}: Recall@1 {100 * run.models[variant]['precision_at_1']:.1f} %"
        for variant in embeddings
    }
    save_png(draw_curves(curve_panels([run])), folder / "curves.png")
    save_png(draw_retrieval(embeddings, test_set, below=recall), folder / "retrieval.png")
    for variant, x in embeddings.items():
        save_png(draw_map(x, test_set.labels, test_set.names, variant), folder / f"{variant}.map.png")
