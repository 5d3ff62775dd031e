"""`train.py` on several processes, one for each GPU, or on CPUs:

    torchrun --nproc_per_node 2 examples/train_distributed.py --name demo2        # options as train.py's, but --resume

Every step's global batch is the one that a single process would see; each process takes its part of it. The objective,
its miner and the distillation see the whole of it, so that gradients equal those of one process, up to what the trunk
makes of smaller batches: BatchNorm takes the statistics of a process's own part (on GPUs, SyncBatchNorm would not), and
each process draws augmentations of its own. The test set is embedded in parts, too. Rank 0 writes metrics.json and
VARIANT.pt into RUNS/NAME.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from checkpoints import save_whole
from images import make_augmentation
from measures import embed, make_calculator
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from results import METRICS
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from tqdm import tqdm
from train import (
    build,
    deploy,
    describe,
    load_data,
    make_optimizer,
    parse_arguments,
    seed_everything,
    train_epoch,
)

from pml_s2sd.distributed import Gathering
from pml_s2sd.report import RunWriter


class PartOfBatches(Sampler[list[int]]):
    """This process's part of every batch that `sampler` makes; the sampler has to make the same on every process."""

    def __init__(self, sampler: Sampler[int], batch_size: int) -> None:
        self.sampler, self.batch_size = sampler, batch_size

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(self.sampler)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield part_of(indices[start : start + self.batch_size])


def part_of(rows: Any) -> Any:
    """This process's rows; the parts follow one another in the order of ranks, and differ in length by one at most."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    return rows[len(rows) * rank // processes : len(rows) * (rank + 1) // processes]


def wrapped(objective: nn.Module, miner: nn.Module | None) -> tuple[nn.Module, nn.Module | None]:
    """An objective and its miner, on the batch of all processes."""
    return DistributedLossWrapper(objective), DistributedMinerWrapper(miner) if miner is not None else None


def train(
    settings: argparse.Namespace, variant: str, train_set: Dataset, test_set: Dataset, writer: RunWriter | None
) -> nn.Module:
    """As train.train; rank 0 has the `writer`."""
    device = torch.device(settings.device)
    model, loss_func, miner = build(settings, variant, len(train_set.names), wrapped)
    model.to(device, memory_format=torch.channels_last)
    loss_func.to(device)
    parallel = DistributedDataParallel(model)

    sampler = MPerClassSampler(train_set.labels, settings.per_class, settings.batch_size, len(train_set))
    batches = PartOfBatches(sampler, settings.batch_size)
    loader = DataLoader(train_set, batch_sampler=batches, num_workers=settings.workers)
    optimizer, schedule = make_optimizer(settings, parallel, loss_func, steps=settings.epochs * len(loader))

    seed_everything(settings.seed)  # the sampler's, the same on every process
    torch.manual_seed(settings.seed + 1000 * dist.get_rank())  # the augmentation's
    steps = settings.epochs * len(loader)
    with tqdm(total=steps, desc=variant, unit="step", disable=dist.get_rank() > 0) as progress:
        for _ in range(settings.epochs):
            figures = train_epoch(
                parallel, loss_func, miner, loader, make_augmentation(), optimizer, schedule, progress
            )
            for buffer in model.buffers():  # BatchNorm's, of which each process has its own
                dist.broadcast(buffer, src=0)
            figures |= evaluate(model, test_set, device)
            if writer is not None:
                writer.add_epoch(variant, figures)
    return deploy(model)


def evaluate(model: nn.Module, test_set: Dataset, device: torch.device) -> dict[str, float]:
    """measures.evaluate, each process embedding a part of the test set; accuracies on rank 0, nothing elsewhere."""
    part = Subset(test_set, part_of(range(len(test_set))))
    embeddings, labels = embed(model.eval(), part, device)
    gathering = Gathering(len(part))
    embeddings, labels = (gathering.rows_of_all(x.to(device)).cpu() for x in (embeddings, labels))
    if dist.get_rank() > 0:
        return {}
    accuracies = make_calculator().get_accuracy(embeddings, labels.squeeze(1))
    return {metric: float(accuracies[metric]) for metric in METRICS}


def main() -> None:
    settings = parse_arguments()
    if settings.resume:
        raise SystemExit("train_distributed.py: --resume is train.py's alone; leave it out")
    on_gpu = torch.device(settings.device).type == "cuda"
    if on_gpu:
        settings.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        train_set, test_set = load_data(settings)
        folder = settings.runs / settings.name
        writer = None
        if dist.get_rank() == 0:
            writer = RunWriter(folder, **describe(settings), processes=dist.get_world_size())
        for variant in settings.variants:
            model = train(settings, variant, train_set, test_set, writer)
            if writer is not None:
                writer.finish(variant)
                save_whole(folder / f"{variant}.pt", model.state_dict())
                last = writer.epochs(variant)[-1]
                print(f"{variant}: " + ", ".join(f"{title} {100 * last[m]:.1f}" for m, title in METRICS.items()))
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
