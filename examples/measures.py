"""What is measured of a model: accuracies on classes that it was not trained on, its embedding space, its latency."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from typing import Any

import torch
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from results import METRICS
from torch import nn
from torch.utils.data import Dataset

from pml_s2sd.evaluation import RetrievalAccuracyCalculator
from pml_s2sd.evaluation.geometry import singular_values
from pml_s2sd.report.run_folder import PERCENTAGES, PROPERTIES


def evaluate(model: nn.Module, test_set: Dataset, device: torch.device) -> dict[str, float]:
    """Accuracies on classes that were not trained on: every image is a query, all others its gallery."""
    trunk, embedder = model
    tester = GlobalEmbeddingSpaceTester(
        batch_size=512, dataloader_num_workers=0, data_device=device, accuracy_calculator=make_calculator()
    )
    with contextlib.redirect_stderr(io.StringIO()):  # the tester's own progress bar, once an epoch
        accuracies = tester.test({"test": test_set}, epoch=0, trunk_model=trunk, embedder_model=embedder)
    return {metric: float(accuracies["test"][f"{metric}_level0"]) for metric in METRICS}


def make_calculator() -> RetrievalAccuracyCalculator:
    return RetrievalAccuracyCalculator(include=tuple(METRICS), device=torch.device("cpu"))


def measure_space(embeddings: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Every metric that is reported of a finished model, and the singular values of its embeddings.

    Args:
        embeddings: normalised, (N, d).
        labels: (N,).
    """
    metrics = [*PERCENTAGES, *PROPERTIES]
    found = RetrievalAccuracyCalculator(include=metrics, device=torch.device("cpu")).get_accuracy(embeddings, labels)
    values = singular_values(embeddings).tolist()
    return {**{metric: float(found[metric]) for metric in metrics}, "singular_values": values}


def embed(model: nn.Module, test_set: Dataset, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised embeddings of a data set, (N, d), and labels, (N, 1), by PML's tester."""
    tester = GlobalEmbeddingSpaceTester(batch_size=512, dataloader_num_workers=0, data_device=device)
    with contextlib.redirect_stderr(io.StringIO()):
        embeddings, labels = tester.get_all_embeddings(test_set, *model)
    return embeddings.cpu(), labels.cpu()


def measure_latency(
    deployed: dict[str, nn.Module], side: int, device: torch.device, batch: int = 32, repeats: int = 20
) -> dict[str, float]:
    """Milliseconds an image, per model: medians over repeats in which the models take turns."""
    images = torch.rand(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    seconds: dict[str, list[float]] = {name: [] for name in deployed}
    with torch.inference_mode():
        for repeat in range(repeats + 5):  # the first five warm up
            for name, model in deployed.items():
                synchronize(device)
                started = time.perf_counter()
                model(images)
                synchronize(device)
                if repeat >= 5:
                    seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(times) / batch for name, times in seconds.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
