"""`train.py` on several processes, one for each GPU, or on CPUs:

    torchrun --nproc_per_node 2 examples/train_distributed.py --name demo2        # options as train.py's, but --resume

Every step's global batch is the one that a single process would see; each process takes its part of it. The objective,
its miner and the distillation see the whole of it, so that gradients equal those of one process, up to what the trunk
makes of smaller batches: BatchNorm takes the statistics of a process's own part (on GPUs, SyncBatchNorm would not), and
each process draws augmentations of its own. The test set is embedded in parts, too, and so is the training set for
consolidation, of which each process then has the whole. Rank 0 makes the activations of a
frozen front, and writes metrics.json and VARIANT.pt into RUNS/NAME.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from checkpoints import save_whole
from loop import make_optimizer, seed_everything, train_epoch
from measures import embed, make_calculator
from models import build, consolidated, deploy, from_images
from options import describe, parse_arguments
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from results import METRICS
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from tqdm import tqdm
from training_data import Data, load_data

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


def train(settings: argparse.Namespace, variant: str, data: Data, writer: RunWriter | None) -> nn.Module:
    """As train.train; rank 0 has the `writer`."""
    device = torch.device(settings.device)
    model, loss_func, miner = build(settings, variant, len(data.train.names), wrapped)
    model.to(device, memory_format=torch.channels_last)
    loss_func.to(device)
    parallel = DistributedDataParallel(model)

    sampler = MPerClassSampler(data.train.labels, settings.per_class, settings.batch_size, len(data.train))
    batches = PartOfBatches(sampler, settings.batch_size)
    loader = DataLoader(data.train, batch_sampler=batches, num_workers=settings.workers)
    optimizer, schedule = make_optimizer(settings, model, loss_func, steps=settings.epochs * len(loader))

    seed_everything(settings.seed)  # the sampler's, the same on every process
    torch.manual_seed(settings.seed + 1000 * dist.get_rank())  # the augmentation's
    steps = settings.epochs * len(loader)
    with tqdm(total=steps, desc=variant, unit="step", disable=dist.get_rank() > 0) as progress:
        for _ in range(settings.epochs):
            figures = train_epoch(parallel, loss_func, miner, loader, data.augment, optimizer, schedule, progress)
            for buffer in model.buffers():  # BatchNorm's, of which each process has its own
                dist.broadcast(buffer, src=0)
            figures |= evaluate(model, data.test, device)
            if writer is not None:
                writer.add_epoch(variant, figures)
    return model


def deployed_of(settings: argparse.Namespace, variant: str, model: nn.Module, data: Data) -> nn.Module:
    """The model as it is deployed, the same on every process; each brings the features of a part of the images."""
    if variant == "baseline" or not settings.consolidate:
        return deploy(model)
    return consolidated(model, data, settings, own=lambda samples: Subset(samples, part_of(range(len(samples)))))


def load_data_in_turn(settings: argparse.Namespace) -> Data:
    """Rank 0 first: it makes the files of activations that the others read."""
    if dist.get_rank() > 0:
        dist.barrier()
    data = load_data(settings)
    if dist.get_rank() == 0:
        dist.barrier()
    return data


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
        data = load_data_in_turn(settings)
        folder = settings.runs / settings.name
        writer = None
        if dist.get_rank() == 0:
            writer = RunWriter(folder, **describe(settings), processes=dist.get_world_size(), data=data.counts())
        for variant in settings.variants:
            model = deployed_of(settings, variant, train(settings, variant, data, writer), data)
            figures = evaluate(model, data.test, torch.device(settings.device))
            if writer is not None:
                writer.finish(variant, figures)
                save_whole(folder / f"{variant}.pt", from_images(model, data.front).state_dict())
                print(f"{variant}: " + ", ".join(f"{title} {100 * figures[m]:.1f}" for m, title in METRICS.items()))
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
