"""The loop to copy: an epoch of training, as any with PML, and its optimizer."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm


def make_optimizer(settings: argparse.Namespace, model: nn.Module, loss_func: nn.Module, steps: int) -> tuple[Any, Any]:
    """Adam with cosine decay; a pretrained trunk wants a lower learning rate, an objective's proxies a higher one."""
    trunk, embedder = model
    parameter_groups = [
        {"params": list(trunk.parameters()), "lr": settings.trunk_lr},
        {"params": list(embedder.parameters()), "lr": settings.lr},
        {"params": list(loss_func.parameters()), "lr": settings.loss_lr},
    ]
    optimizer = torch.optim.Adam([group for group in parameter_groups if group["params"]])
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)


def train_epoch(
    model: nn.Module,
    loss_func: nn.Module,
    miner: nn.Module | None,
    loader: DataLoader,
    augment: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    progress: tqdm,
) -> dict[str, float]:
    """One epoch; returns the means of the loss and of its terms, and the seconds it took."""
    device = next(model.parameters()).device
    model.train()
    loss_func.train()
    started = time.perf_counter()
    losses_of_epoch = []
    for images, labels in loader:
        images = augment(images.to(device)).contiguous(memory_format=torch.channels_last)
        labels = labels.to(device)

        embeddings = model(images)
        tuples = miner(embeddings, labels) if miner is not None else None
        loss = loss_func(embeddings, labels, tuples)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses_of_epoch.append({"loss": loss.detach(), **getattr(loss_func, "terms", {})})
        progress.update()
    figures = {name: torch.stack([step[name] for step in losses_of_epoch]).mean().item() for name in losses_of_epoch[0]}
    return {**figures, "train_seconds": time.perf_counter() - started}


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # MPerClassSampler draws from it
