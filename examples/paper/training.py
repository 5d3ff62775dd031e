"""One run of a cell: trained with one seed, evaluated after every epoch, to be stopped and gone on with."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from checkpoints import (
    load_checkpoint,
    random_states,
    remove_checkpoints,
    restore_random_states,
    save_checkpoint,
    save_whole,
)
from loop import seed_everything
from models import deploy
from pytorch_metric_learning.samplers import MPerClassSampler
from results import write_json
from torch.utils.data import DataLoader
from tqdm import tqdm

from paper.building import Parts, build
from paper.config import Config
from paper.evaluation import evaluate
from paper.generated import write_small_dataset
from paper.loggers import LOGGERS
from paper.precision import autocast, make_scaler
from paper.run_folder import RunFolder
from paper.splits import Split, check_sampling
from paper.transforms import make_transform

DRY_STEPS = 2


@contextmanager
def data_folder(config: Config, options: argparse.Namespace) -> Iterator[Path]:
    """The user's, or for a dry run one of generated images."""
    if not options.dry_run:
        yield options.data
        return
    with TemporaryDirectory() as temporary:
        write_small_dataset(config.dataset, Path(temporary))
        yield Path(temporary)


def load_splits(config: Config, options: argparse.Namespace, data: Path) -> tuple[Split, Split]:
    """(to train on, to test on).

    Raises:
        FileNotFoundError, ValueError: on a data set that cannot be used, naming the file and the layout.
    """
    train_set, test_set = (
        Split(config.dataset, data, part, make_transform(config, part == "train"), complete=not options.dry_run)
        for part in ("train", "test")
    )
    check_sampling(train_set, config.samples_per_class, config.batch_size)
    return train_set, test_set


def train(
    config: Config, options: argparse.Namespace, seed: int, folder: RunFolder, train_set: Split, test_set: Split
) -> list[dict[str, float]]:
    """Train from the start, or from the checkpoint in the folder, and leave the deployed weights there.

    Returns the figures of every epoch; those of a finished run without training.
    """
    if folder.finished():
        return folder.epochs()
    device = torch.device(options.device)
    seed_everything(seed)
    parts = build(config, train_set.classes, pretrained=not options.dry_run, device=device)
    if options.channels_last:
        parts.model.to(memory_format=torch.channels_last)
    if options.compile:
        parts.model[0].compile()
    scaler = make_scaler(device, options.precision)

    images_an_epoch = DRY_STEPS * config.batch_size if options.dry_run else len(train_set)
    sampler = MPerClassSampler(train_set.labels, config.samples_per_class, config.batch_size, images_an_epoch)
    loading = {"num_workers": options.workers, "pin_memory": device.type == "cuda"}
    loader = DataLoader(train_set, config.batch_size, sampler=sampler, drop_last=True, **loading)
    test_loader = DataLoader(test_set, config.batch_size, **loading)
    seed_everything(seed)  # the same batches and crops for every variant

    stateful = {"model": parts.model, "loss_func": parts.loss_func, "optimizer": parts.optimizer, "scaler": scaler}
    epochs: list[dict[str, float]] = []
    checkpoint = load_checkpoint(folder.checkpoint)
    if checkpoint is not None:
        for name, part in stateful.items():
            part.load_state_dict(checkpoint[name])
        sampler.labels = checkpoint["order_of_classes"]
        restore_random_states(checkpoint["random_states"])
        epochs = checkpoint["epochs"]

    steps = config.epochs * len(loader)
    with (
        LOGGERS[options.logger](folder) as log,
        tqdm(total=steps, initial=len(epochs) * len(loader), desc=f"seed {seed}", unit="step") as progress,
    ):
        for epoch in range(len(epochs) + 1, config.epochs + 1):
            figures = train_epoch(parts, scaler, loader, options, progress)
            if not math.isfinite(figures["loss"]):
                raise SystemExit(f"train.py: the loss is {figures['loss']} in epoch {epoch}; try --precision float32")
            figures |= evaluate(parts.model, test_loader, device, options.precision)
            epochs.append(figures)
            log(figures, epoch)
            write_json(folder.metrics, epochs)
            if epoch < config.epochs:
                state = {name: part.state_dict() for name, part in stateful.items()}
                state |= {"epochs": epochs, "random_states": random_states()}
                state |= {"order_of_classes": [int(label) for label in sampler.labels]}
                save_checkpoint(folder.checkpoint, state)
            progress.set_postfix(loss=f"{figures['loss']:.3f}", R1=f"{100 * figures['precision_at_1']:.1f}")
    save_whole(folder.weights, deploy(parts.model).state_dict())
    remove_checkpoints(folder.path)
    return epochs


def train_epoch(
    parts: Parts, scaler: torch.amp.GradScaler, loader: DataLoader, options: argparse.Namespace, progress: tqdm
) -> dict[str, float]:
    """One epoch; returns the means of the loss and of its terms."""
    device = torch.device(options.device)
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    parts.model.train()
    parts.loss_func.train()
    steps = []
    for images, labels in loader:
        images = images.to(device, non_blocking=True, memory_format=memory_format)
        labels = labels.to(device, non_blocking=True)
        with autocast(device, options.precision):
            embeddings = parts.model(images)
        embeddings = embeddings.float()
        tuples = parts.miner(embeddings, labels) if parts.miner is not None else None
        loss = parts.loss_func(embeddings, labels, tuples)

        parts.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(parts.optimizer)
        scaler.update()
        steps.append({"loss": loss.detach(), **getattr(parts.loss_func, "terms", {})})
        progress.update()
    return {name: torch.stack([step[name] for step in steps]).mean().item() for name in steps[0]}
