"""One training of the study, and what embeddings are worth on the unseen classes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from loop import seed_everything
from objectives import OBJECTIVES as EXAMPLE_OBJECTIVES
from pytorch_metric_learning import losses
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import nn
from tqdm import tqdm

from pml_s2sd import s2sd
from pml_s2sd.embedder import Embedder
from pml_s2sd.miners import RhoDistanceWeightedMiner
from study.settings import Setting
from study.transfer import TRANSFERS, Taught
from study.ways import LARGE, WAYS, Way

BATCH = 112
PREFIXES = (8, 16, 32, 64, 128)
METRICS = ("precision_at_1", "mean_average_precision_at_r")
OBJECTIVES = {
    **EXAMPLE_OBJECTIVES,
    # distance-weighted sampling without a loop over classes: the same distribution in a third of the time
    "margin": lambda d, classes: (
        losses.MarginLoss(margin=0.2, beta=1.2),
        RhoDistanceWeightedMiner(0.0, cutoff=0.5),
    ),
}


class Matryoshka(nn.Module):
    """Σ_p L_p(z_1 … z_p) over nested prefixes of the embedding (Kusupati et al. 2022, arXiv 2205.13147)."""

    def __init__(self, objective: str, classes: int, prefixes: Sequence[int] = PREFIXES) -> None:
        super().__init__()
        parts = [OBJECTIVES[objective](p, classes) for p in prefixes]
        self.prefixes = tuple(prefixes)
        self.losses = nn.ModuleList(loss for loss, _ in parts)
        self.miners = [miner for _, miner in parts]

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor, _: None = None) -> torch.Tensor:
        total = embeddings.new_zeros(())
        for p, loss, miner in zip(self.prefixes, self.losses, self.miners, strict=True):
            z = embeddings[:, :p]
            total = total + loss(z, labels, None if miner is None else miner(z, labels))
        return total


def build(
    setting: Setting, objective: str, size: int, seed: int, way: Way, steps: int
) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module | None]:
    """(trunk, embedder, loss_func, miner); what two ways share is initialised alike."""
    features, classes = setting.kind.features, int(setting.train_labels.max()) + 1
    seed_everything(seed)
    trunk = setting.trunk()
    loss, miner = OBJECTIVES[objective](size, classes)
    if way.s2sd:
        options = dict(way.options)
        if "feature_weight" in options:
            options["feature_delay"] = int(way.delay * steps)
        embedder, loss_func = s2sd(loss, features, size, miner=miner, **options)
        return trunk, embedder, loss_func, None
    if way.nested:
        loss, miner = Matryoshka(objective, classes), None
    if way.transfer is not None:
        teacher = teacher_of(setting, objective, seed)
        seed_everything(seed)
        trunk = setting.trunk()
        loss = Taught(loss if way.objective else None, teacher, TRANSFERS[way.transfer], way.weight)
        miner = miner if way.objective else None
    head = None
    if way.hidden is not None:
        head = nn.Sequential(nn.Linear(features, way.hidden), nn.ReLU(), nn.Linear(way.hidden, size))
    return trunk, Embedder(features, size, head), loss, miner


@lru_cache(maxsize=1)
def teacher_of(setting: Setting, objective: str, seed: int) -> nn.Module:
    """The objective alone at 1,024; kept for the next student of it."""
    return train(setting, objective, LARGE, seed)[0]


def train(
    setting: Setting, objective: str, size: int, seed: int, way: str = "baseline"
) -> tuple[nn.Sequential, dict[str, Any]]:
    """The trained (trunk, embedder), and what it took."""
    steps = setting.epochs * (len(setting.train_labels) // BATCH)
    trunk, embedder, loss_func, miner = build(setting, objective, size, seed, WAYS[way], steps)
    model = nn.Sequential(trunk, embedder).to(setting.device)
    loss_func.to(setting.device)
    groups = [
        {"params": list(trunk.parameters()), "lr": setting.kind.trunk_lr},
        {"params": list(embedder.parameters()), "lr": setting.kind.head_lr},
        {"params": list(loss_func.parameters()), "lr": setting.objective_lr},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    seed_everything(seed)  # the same batches for every way
    model.train()
    started = time.perf_counter()
    for samples in tqdm(batches(setting, steps), total=steps, desc=f"{setting.name} {objective} {size} {way} {seed}"):
        labels = setting.train_labels[samples].to(setting.device)
        shown = setting.batch(samples)
        embeddings = model(shown)
        if isinstance(loss_func, Taught):
            loss_func.teach(shown)
        tuples = None if miner is None else miner(embeddings, labels)
        optimizer.zero_grad()
        loss_func(embeddings, labels, tuples).backward()
        optimizer.step()
        schedule.step()
    return model, {"train_seconds": round(time.perf_counter() - started, 2), "steps": steps}


def batches(setting: Setting, steps: int) -> Iterator[torch.Tensor]:
    sampler = MPerClassSampler(setting.train_labels, setting.kind.per_class, BATCH, len(setting.train_labels))
    while steps > 0:
        of_epoch = torch.tensor(list(sampler)).split(BATCH)
        for samples in of_epoch[: min(steps, len(setting.train_labels) // BATCH)]:
            steps -= 1
            yield samples


def retrieval(embeddings: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Recall@1 and MAP@R by cosine similarity, every row a query and all others its gallery, in percent."""
    embeddings = nn.functional.normalize(embeddings)
    if embeddings.device.type == "cpu":
        calculator = AccuracyCalculator(include=METRICS, k="max_bin_count", device=torch.device("cpu"))
        found = calculator.get_accuracy(embeddings, labels)
    else:
        found = on_device(embeddings, labels)
    return {metric: round(100 * float(value), 3) for metric, value in found.items()}


def on_device(embeddings: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """What AccuracyCalculator gives, by matrix products where the embeddings are; rows without a like are left out.

    Args:
        embeddings: normalised, (N, d).
        labels: (N,).
    """
    labels = labels.to(embeddings.device)
    R = torch.bincount(labels)[labels] - 1
    nearest = (embeddings @ embeddings.T).fill_diagonal_(-torch.inf).topk(int(R.max()), dim=1).indices
    hits = (labels[nearest] == labels[:, None]).double()
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    at_r = hits * (hits.cumsum(1) / rank) * (rank <= R[:, None])
    queries = R > 0
    of_query = at_r.sum(1)[queries] / R[queries]
    return {"mean_average_precision_at_r": float(of_query.mean()), "precision_at_1": float(hits[queries, 0].mean())}
