"""What the examples beside this file share: scikit-learn's digits. 0 to 4 are trained on, 5 to 9 are retrieved."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, SIZE = 64, 8
"""F, the channels of the trunk, and d, the numbers of an embedding."""


def dataset(train: bool) -> TensorDataset:
    """Images (N, 1, 8, 8) in [0, 1], and labels."""
    images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    chosen = (labels < 5) == train
    return TensorDataset(images[chosen].float().view(-1, 1, 8, 8) / 16, labels[chosen])


class EpochSampler(MPerClassSampler):
    """As many of every class in a batch; the same samples in epoch n; each of several processes takes its part of them.

    Trainers call `set_epoch`: a resumed run goes on with the samples that it would have had.
    """

    process, processes = 0, 1

    def set_epoch(self, epoch: int) -> None:
        np.random.seed(epoch)  # PML's samplers draw from NumPy's global state, which most checkpoints do not hold
        self.labels.sort()  # they shuffle them in place

    def __iter__(self) -> Iterator[int]:
        return islice(super().__iter__(), self.process, None, self.processes)

    def __len__(self) -> int:
        return super().__len__() // self.processes


def training_loader(batch_size: int = 100, process: int = 0, processes: int = 1) -> DataLoader:
    """Batches of `batch_size` samples of each process."""
    digits = dataset(train=True)
    per_class = batch_size * processes // 5
    sampler = EpochSampler(digits.tensors[1], m=per_class, length_before_new_iter=len(digits))
    sampler.process, sampler.processes = process, processes
    return DataLoader(digits, batch_size, sampler=sampler, drop_last=True)


def make_trunk() -> nn.Module:
    """Feature maps (B, 64, 4, 4) of images (B, 1, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, FEATURES, 3, stride=2, padding=1), nn.ReLU()
    )


def seed_everything() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # PML's samplers draw from it


@torch.no_grad()
def recall_at_1(model: nn.Module) -> float:
    """Of the digits that were not trained on."""
    images, labels = dataset(train=False).tensors
    embeddings = nn.functional.normalize(model.eval()(images))
    return AccuracyCalculator(include=("precision_at_1",), k=1).get_accuracy(embeddings, labels)["precision_at_1"]
