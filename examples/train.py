"""Train an embedding model with a PML objective, with and without S2SD, and compare them on unseen classes.

    python examples/train.py --name demo                       # the embedded emoji, baseline and S2SD
    python examples/train.py --name mine --images FOLDER       # images of yours: FOLDER/class/name.png
    python examples/train.py --name mine --images FOLDER --image-size 224 --trunk timm:resnet50
    python examples/train.py --help

    python examples/train.py --name demo --resume              # go on with a run that was cut short

The trunk is EfficientNet-Lite0 with ImageNet weights, of which the last blocks are fine-tuned; trunks.py has others.
S2SD is consolidated after training. Writes RUNS/NAME/: report.html, one page with the tables and pictures;
metrics.json, curves.png, retrieval.png; and for every model VARIANT.pt (the deployed weights), VARIANT.pt2 (the
deployed model, for python -m pml_s2sd.evaluate), VARIANT.map.png, and VARIANT.checkpoint (from which --resume goes on,
exactly; written at the end of every epoch). What the frozen blocks make of the images is kept in RUNS/activations,
3.5 kB a view of 96 × 96 pixels, 19 kB of 224 × 224.
"""

from __future__ import annotations

import argparse
import platform
import time
from typing import Any

import numpy as np
import torch
from checkpoints import (
    load_checkpoint,
    random_states,
    remove_checkpoints,
    restore_random_states,
    save_checkpoint,
    save_exported,
    save_whole,
    stoppable,
)
from loop import make_optimizer, seed_everything, train_epoch
from measures import embed, evaluate, measure_latency, measure_space
from models import build, consolidated, deploy, from_images
from options import check_same_settings, describe, parse_arguments
from pictures import draw_run
from pytorch_metric_learning.samplers import MPerClassSampler
from results import print_further_metrics, print_table
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from training_data import Data, load_data

from pml_s2sd.report import RunWriter, write_report
from pml_s2sd.report.run_folder import BEFORE_CONSOLIDATION


def train(settings: argparse.Namespace, variant: str, data: Data, writer: RunWriter) -> nn.Module:
    """Train one variant; `writer` is given its figures after every epoch. Returns the trained model.

    With settings.resume it goes on after the last epoch of which there is a checkpoint, as if it had not been stopped.
    """
    device = torch.device(settings.device)
    model, loss_func, miner = build(settings, variant, classes=len(data.train.names))
    # channels_last: the same numbers, and a third less time on a CPU
    model.to(device, memory_format=torch.channels_last)
    loss_func.to(device)

    sampler = MPerClassSampler(data.train.labels, settings.per_class, settings.batch_size, len(data.train))
    loader = DataLoader(data.train, settings.batch_size, sampler=sampler, num_workers=settings.workers, drop_last=True)
    steps = settings.epochs * len(loader)
    optimizer, schedule = make_optimizer(settings, model, loss_func, steps)

    seed_everything(settings.seed)  # the same batches and augmentations for every variant

    checkpoint_path = settings.runs / settings.name / f"{variant}.checkpoint"
    stateful = {"model": model, "loss_func": loss_func, "optimizer": optimizer, "schedule": schedule}
    checkpoint = load_checkpoint(checkpoint_path) if settings.resume else None
    if checkpoint is not None:
        check_same_settings(checkpoint_path, checkpoint["made_with"], describe(settings))
        for name, part in stateful.items():
            part.load_state_dict(checkpoint[name])
        sampler.labels = checkpoint["order_of_classes"]
        restore_random_states(checkpoint["random_states"])
        writer.restore(variant, checkpoint["record"])

    done = len(writer.epochs(variant))
    with tqdm(total=steps, initial=done * len(loader), desc=variant, unit="step") as progress:
        for epoch in range(done + 1, settings.epochs + 1):
            figures = train_epoch(model, loss_func, miner, loader, data.augment, optimizer, schedule, progress)
            if not np.isfinite(figures["loss"]):
                raise SystemExit(
                    f"{variant}: the loss is {figures['loss']} in epoch {epoch}; try a smaller --lr or "
                    "--trunk-lr, or --distill-weight for the paper's variants"
                )
            figures.update(evaluate(model, data.test, device))
            writer.add_epoch(variant, figures)
            state = {name: part.state_dict() for name, part in stateful.items()}
            state |= {
                "record": writer.content["models"][variant],
                "made_with": describe(settings),
                "random_states": random_states(),
            }
            save_checkpoint(checkpoint_path, {**state, "order_of_classes": [int(label) for label in sampler.labels]})
            progress.set_postfix(loss=f"{figures['loss']:.3f}", R1=f"{100 * figures['precision_at_1']:.1f}")
    return model


def finish(
    settings: argparse.Namespace, variant: str, model: nn.Module, data: Data, writer: RunWriter
) -> tuple[nn.Module, dict[str, float]]:
    """The trained part as it is deployed, consolidated but for the baseline, and what that took and changed."""
    if variant == "baseline" or not settings.consolidate:
        return deploy(model), {}
    seed_everything(settings.seed)
    started = time.perf_counter()
    deployed = consolidated(model, data, settings)
    return deployed, {
        "consolidation_seconds": time.perf_counter() - started,
        BEFORE_CONSOLIDATION: writer.epochs(variant)[-1]["precision_at_1"],
    }


def run(settings: argparse.Namespace) -> dict[str, Any]:
    """Train every variant asked for, write the run's folder, return what is in metrics.json."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    data = load_data(settings)
    folder = settings.runs / settings.name
    folder.mkdir(parents=True, exist_ok=True)
    if not settings.resume:
        remove_checkpoints(folder)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    writer = RunWriter(folder, **describe(settings), machine=machine, data=data.counts())

    trained: dict[str, nn.Module] = {}
    deployed: dict[str, nn.Module] = {}
    costs: dict[str, dict[str, float]] = {}
    for variant in settings.variants:
        model = train(settings, variant, data, writer)
        trained[variant], costs[variant] = finish(settings, variant, model, data, writer)
        deployed[variant] = from_images(trained[variant], data.front)
        save_whole(folder / f"{variant}.pt", deployed[variant].state_dict())
        save_exported(folder / f"{variant}.pt2", deployed[variant], torch.zeros(2, 3, data.side, data.side))

    device = torch.device(settings.device)
    latencies = measure_latency(deployed, data.side, device)
    embeddings = {}
    for variant, model in trained.items():
        embeddings[variant], labels = embed(model, data.test, device)
        costs[variant] |= {
            "deployed_parameters": sum(p.numel() for p in deployed[variant].parameters()),
            "latency_ms_per_image": latencies[variant],
            "train_seconds": sum(epoch["train_seconds"] for epoch in writer.epochs(variant)),
        }
        writer.finish(variant, {**costs[variant], **measure_space(embeddings[variant], labels.squeeze(1))})
    draw_run(folder, embeddings, data.images[1])
    return writer.content


def main() -> None:
    settings = parse_arguments(description=__doc__)
    with stoppable(f"the same command with --resume goes on with {settings.runs / settings.name}"):
        results = run(settings)
    print_table(results["models"])
    print_further_metrics(results["models"])
    print(f"\nThe report, to open in a browser: {write_report([settings.runs / settings.name])}")


if __name__ == "__main__":
    main()
