"""Train an embedding model with a PML objective, with and without S2SD, and compare them on unseen classes.

    python examples/train.py --name demo                       # the embedded emoji, baseline and S2SD
    python examples/train.py --name mine --images FOLDER       # images of yours: FOLDER/class/name.png
    python examples/train.py --help

    python examples/train.py --name demo --resume              # go on with a run that was cut short

Writes runs/NAME/: report.html, one page with the tables and pictures; metrics.json, curves.png, retrieval.png; and for
every model VARIANT.pt (the deployed weights), VARIANT.pt2 (the deployed model, for python -m pml_s2sd.evaluate),
VARIANT.map.png, and VARIANT.checkpoint (from which --resume goes on, exactly; written at the end of every epoch).
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import (
    BrokenCheckpointError,
    load_checkpoint,
    random_states,
    remove_checkpoints,
    restore_random_states,
    save_checkpoint,
    save_exported,
    save_whole,
)
from images import EMOJI_SIDE, EmojiDataset, ImageFolderDataset, make_augmentation
from measures import embed, evaluate, measure_latency, measure_space
from network import SmallResNet
from pictures import draw_run
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.samplers import MPerClassSampler
from results import print_further_metrics, print_table
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pml_s2sd import S2SDEmbedder, s2sd
from pml_s2sd.embedder import Embedder
from pml_s2sd.report import RunWriter, write_report

# name -> (embedding_size, number of training classes) -> (objective, miner)
OBJECTIVES = {
    "multisimilarity": lambda d, classes: (
        losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5),
        miners.MultiSimilarityMiner(epsilon=0.1),
    ),
    "margin": lambda d, classes: (losses.MarginLoss(margin=0.2, beta=1.2), miners.DistanceWeightedMiner(cutoff=0.5)),
    "triplet": lambda d, classes: (losses.TripletMarginLoss(margin=0.2), miners.TripletMarginMiner(0.2, "semihard")),
    "contrastive": lambda d, classes: (losses.ContrastiveLoss(pos_margin=0, neg_margin=1), None),
    "ntxent": lambda d, classes: (losses.NTXentLoss(temperature=0.1), None),
    "supcon": lambda d, classes: (losses.SupConLoss(temperature=0.1), None),
    "proxyanchor": lambda d, classes: (losses.ProxyAnchorLoss(classes, d), None),
    "arcface": lambda d, classes: (losses.ArcFaceLoss(classes, d), None),
}
VARIANTS = ("baseline", "dsd", "msd", "msdf", "msdfa")


def build(
    settings: argparse.Namespace,
    variant: str,
    classes: int,
    wrap: Callable = lambda objective, miner: (objective, miner),
) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    """(model, loss_func, miner) of one variant; everything that two variants share is initialised alike.

    `wrap` puts the objective and its miner into wrappers of PML's.
    """
    seed_everything(settings.seed)
    trunk = SmallResNet()
    d = settings.embedding_size
    objective, miner = wrap(*OBJECTIVES[settings.objective](d, classes))
    if variant == "baseline":
        return nn.Sequential(trunk, Embedder(trunk.out_channels, d)), objective, miner

    options = (
        {"feature_weight": settings.feature_weight, "feature_delay": settings.feature_delay} if "f" in variant else {}
    )
    embedder, loss_func = s2sd(
        objective,
        trunk.out_channels,
        d,
        variant,
        aux_sizes=settings.aux_sizes[-1:] if variant == "dsd" else settings.aux_sizes,
        miner=miner,  # each space mines its own pairs
        distill_weight=settings.distill_weight,
        temperature=settings.temperature,
        **options,
    )
    return nn.Sequential(trunk, embedder), loss_func, None


def train(
    settings: argparse.Namespace, variant: str, train_set: Dataset, test_set: Dataset, writer: RunWriter
) -> nn.Module:
    """Train one variant; `writer` is given its figures after every epoch. Returns the deployed model.

    With settings.resume it goes on after the last epoch of which there is a checkpoint, as if it had not been stopped.
    """
    device = torch.device(settings.device)
    model, loss_func, miner = build(settings, variant, classes=len(train_set.names))
    # channels_last: the same numbers, and a third less time on a CPU
    model.to(device, memory_format=torch.channels_last)
    loss_func.to(device)
    augment = make_augmentation()

    sampler = MPerClassSampler(train_set.labels, settings.per_class, settings.batch_size, len(train_set))
    loader = DataLoader(train_set, settings.batch_size, sampler=sampler, num_workers=settings.workers, drop_last=True)
    optimizer, schedule = make_optimizer(settings, model, loss_func, steps=settings.epochs * len(loader))

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
    steps = settings.epochs * len(loader)
    with tqdm(total=steps, initial=done * len(loader), desc=variant, unit="step") as progress:
        for epoch in range(done + 1, settings.epochs + 1):
            figures = train_epoch(model, loss_func, miner, loader, augment, optimizer, schedule, progress)
            if not np.isfinite(figures["loss"]):
                raise SystemExit(
                    f"{variant}: the loss is {figures['loss']} in epoch {epoch}; try a smaller --lr or --distill-weight"
                )
            figures.update(evaluate(model, test_set, device))
            writer.add_epoch(variant, figures)
            state = {name: part.state_dict() for name, part in stateful.items()}
            state |= {
                "record": writer.content["models"][variant],
                "made_with": describe(settings),
                "random_states": random_states(),
            }
            save_checkpoint(checkpoint_path, {**state, "order_of_classes": [int(label) for label in sampler.labels]})
            progress.set_postfix(loss=f"{figures['loss']:.3f}", R1=f"{100 * figures['precision_at_1']:.1f}")

    return deploy(model)


def make_optimizer(settings: argparse.Namespace, model: nn.Module, loss_func: nn.Module, steps: int) -> tuple[Any, Any]:
    """Adam with cosine decay; an objective's own parameters, such as proxies, want a higher learning rate."""
    parameter_groups = [{"params": model.parameters()}]
    if any(True for _ in loss_func.parameters()):
        parameter_groups.append({"params": loss_func.parameters(), "lr": settings.loss_lr})
    optimizer = torch.optim.Adam(parameter_groups, lr=settings.lr)
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


def deploy(model: nn.Module) -> nn.Module:
    """The trained model as it is used: the base head alone, in eval mode."""
    trunk, embedder = model
    return nn.Sequential(trunk, embedder.deploy() if isinstance(embedder, S2SDEmbedder) else embedder).eval()


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # MPerClassSampler draws from it


def load_data(settings: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """(training half, unseen half) of the classes."""
    try:
        if settings.images is None:
            halves = EmojiDataset(train=True), EmojiDataset(train=False)
        else:
            halves = tuple(ImageFolderDataset(settings.images, train, settings.image_size) for train in (True, False))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"train.py: {error}") from error
    train_set = halves[0]
    drawn = min(len(train_set), settings.per_class * len(train_set.names))
    if settings.batch_size > drawn or settings.batch_size % settings.per_class:
        raise SystemExit(
            f"train.py: --batch-size must be a multiple of --per-class ({settings.per_class}) and at most {drawn}, for "
            f"{len(train_set)} training images of {len(train_set.names)} classes; got {settings.batch_size}"
        )
    return halves


def describe(settings: argparse.Namespace) -> dict[str, Any]:
    """What decides a run's figures: its settings and the versions of what it runs on."""
    packages = ("pml-s2sd", "pytorch-metric-learning", "torch", "numpy", "faiss-cpu", "kornia")
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
    return {
        "settings": {name: value for name, value in chosen.items() if name != "resume"},
        "versions": {name: version(name) for name in packages},
    }


def check_same_settings(path: Path, made_with: dict[str, Any], now: dict[str, Any]) -> None:
    for part in now:
        for name in {**made_with[part], **now[part]}:
            then, value = made_with[part].get(name), now[part].get(name)
            if then != value:
                raise SystemExit(
                    f"train.py: {path} was made with {name} = {then}, this run has {value}; give the same to go on "
                    "with it, or leave out --resume to start again"
                )


def run(settings: argparse.Namespace) -> dict[str, Any]:
    """Train every variant asked for, write the run's folder, return what is in metrics.json."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    train_set, test_set = load_data(settings)
    folder = settings.runs / settings.name
    folder.mkdir(parents=True, exist_ok=True)
    if not settings.resume:
        remove_checkpoints(folder)
    data = {
        "train_images": len(train_set),
        "test_images": len(test_set),
        "train_classes": len(train_set.names),
        "test_classes": len(test_set.names),
    }
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    writer = RunWriter(folder, **describe(settings), machine=machine, data=data)

    side = settings.image_size if settings.images else EMOJI_SIDE
    deployed: dict[str, nn.Module] = {}
    for variant in settings.variants:
        deployed[variant] = train(settings, variant, train_set, test_set, writer)
        save_whole(folder / f"{variant}.pt", deployed[variant].state_dict())
        save_exported(folder / f"{variant}.pt2", deployed[variant], torch.zeros(2, 3, side, side))

    device = torch.device(settings.device)
    latencies = measure_latency(deployed, side, device)
    embeddings = {}
    for variant, model in deployed.items():
        embeddings[variant], labels = embed(model, test_set, device)
        costs = {
            "deployed_parameters": sum(p.numel() for p in model.parameters()),
            "latency_ms_per_image": latencies[variant],
            "train_seconds": sum(epoch["train_seconds"] for epoch in writer.epochs(variant)),
        }
        writer.finish(variant, {**costs, **measure_space(embeddings[variant], labels.squeeze(1))})
    draw_run(folder, embeddings, test_set)
    return writer.content


@contextlib.contextmanager
def stoppable(how_to_go_on: str) -> Iterator[None]:
    """Ctrl-C, and a checkpoint that cannot be read, end the script with a sentence."""
    try:
        yield
    except BrokenCheckpointError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        print(f"\nStopped; {how_to_go_on}.", file=sys.stderr)
        raise SystemExit(130) from None


def weight(text: str) -> float | str:
    return text if text == "auto" else float(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--name", default="demo", help="the run's folder is RUNS/NAME (default: %(default)s)")
    add("--runs", type=Path, default=Path("runs"), help="default: %(default)s")
    add(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=["baseline", "msdfa"],
        help="models to compare (default: baseline msdfa)",
    )
    add("--objective", choices=OBJECTIVES, default="multisimilarity", help="default: %(default)s")
    add("--embedding-size", type=int, default=32, help="d (default: %(default)s)")
    add(
        "--aux-sizes",
        type=int,
        nargs="+",
        default=[128, 256, 512, 1024],
        help="sizes of the auxiliary spaces (default: 128 256 512 1024)",
    )
    add("--distill-weight", type=weight, default=1.0, help='γ, or "auto" (default: %(default)s)')
    add("--temperature", type=float, help='T (default: 1, or 0.05 with an "auto" weight)')
    add("--feature-weight", type=float, default=1.0, help="γ_F, for msdf and msdfa (default: %(default)s)")
    add(
        "--feature-delay", type=int, default=200, help="steps before feature distillation starts (default: %(default)s)"
    )
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--epochs", type=int, default=20, help="default: %(default)s")
    add("--batch-size", type=int, default=112, help="default: %(default)s")
    add("--per-class", type=int, default=2, help="samples of a class in a batch (default: %(default)s)")
    add("--lr", type=float, default=3e-3, help="learning rate of trunk and embedder (default: %(default)s)")
    add(
        "--loss-lr",
        type=float,
        default=1e-2,
        help="learning rate of an objective's own parameters (default: %(default)s)",
    )
    add("--images", type=Path, help="train on FOLDER/class/name.png instead of the emoji")
    add(
        "--image-size",
        type=int,
        default=32,
        help="side to which the images of --images are resized (default: %(default)s)",
    )
    add("--workers", type=int, default=0, help="processes that load images (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: a GPU where there is one")
    add("--threads", type=int, help="CPU threads (default: torch's choice)")
    add("--resume", action="store_true", help="go on with the run of this name where it was cut short")
    settings = parser.parse_args(arguments)
    if settings.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {settings.epochs}")
    return settings


def main() -> None:
    settings = parse_arguments()
    with stoppable(f"the same command with --resume goes on with {settings.runs / settings.name}"):
        results = run(settings)
    print_table(results["models"])
    print_further_metrics(results["models"])
    print(f"\nThe report, to open in a browser: {write_report([settings.runs / settings.name])}")


if __name__ == "__main__":
    main()
