"""Accuracies of a model on the classes that it was not trained on."""

from __future__ import annotations

import torch
from measures import make_calculator
from results import METRICS
from torch import nn
from torch.utils.data import DataLoader

from paper.precision import autocast


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device, precision: str) -> dict[str, float]:
    """The accuracies: every image is a query, all others its gallery."""
    model.eval()
    embeddings, labels = [], []
    for images, batch_labels in loader:
        with autocast(device, precision):
            z = model(images.to(device, non_blocking=True))
        embeddings.append(nn.functional.normalize(z.float()).cpu())
        labels.append(batch_labels)
    accuracies = make_calculator().get_accuracy(torch.cat(embeddings), torch.cat(labels))
    return {metric: float(accuracies[metric]) for metric in METRICS}
