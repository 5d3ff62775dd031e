"""A whole training step of ResNet-50, with and without S2SD: 224 × 224, B = 112, bfloat16, channels-last, fused Adam.

ratio = (forward, loss, backward, Adam's step with S2SD) ÷ (the same without), taking turns in one process, several
steps a turn, so that the host may run ahead of the device as it does in training.
"""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any

import torch
from gpu_step import MULTI_SIMILARITY, NEEDS_A_CARD, REFERENCE, head_and_loss
from gpu_table import RATIO_TARGET, WAYS
from measure import medians, milliseconds, synchronize
from resnet import FEATURES, resnet50
from torch import nn

BATCH, SIDE = 112, 224
STEPS_A_TURN, SECONDS = 5, 45
"""Steps that are timed together, and how long all turns may take."""


class Training:
    """A model with its loss and its optimizer, on images that stay where they are."""

    def __init__(self, way: str, trunk: nn.Module, images: torch.Tensor) -> None:
        torch.manual_seed(0)
        device, sizes = images.device, REFERENCE._replace(rows=len(images), features=FEATURES)
        self.trunk = copy.deepcopy(trunk).to(device, memory_format=torch.channels_last)
        self.head, self.loss = head_and_loss(way, MULTI_SIMILARITY, sizes, device)
        parameters = [*self.trunk.parameters(), *self.head.parameters(), *self.loss.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-5, fused=True)
        self.images, self.labels = images, torch.arange(len(images), device=device) // 2

    def step(self) -> None:
        with torch.autocast(self.images.device.type, dtype=torch.bfloat16):
            loss = self.loss(self.head(self.trunk(self.images)), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def steps(self, number: int) -> None:
        for _ in range(number):
            self.step()


def network(device: torch.device, small: bool) -> dict[str, Any]:
    torch.backends.cudnn.benchmark = True
    batch, side = (4, 32) if small else (BATCH, SIDE)
    torch.manual_seed(0)
    images = torch.randn(batch, 3, side, side).to(device, memory_format=torch.channels_last)
    trunk = resnet50()
    trainings, memory = {}, {}
    for way in WAYS:
        trainings[way], memory[way] = with_peak(way, trunk, images)
    synchronize()
    started = time.perf_counter()
    trainings[WAYS[0]].step()
    synchronize()
    steps = 1 if small else STEPS_A_TURN
    seconds_a_turn = len(WAYS) * steps * (time.perf_counter() - started)
    turns = 1 if small else max(3, min(12, int(SECONDS / seconds_a_turn)))
    calls = {way: partial(training.steps, steps) for way, training in trainings.items()}
    times = {way: seconds / steps for way, seconds in medians(calls, turns, warm_up=1).items()}
    ratios = {way: round(times[way] / times[WAYS[0]], 4) for way in WAYS[1:]}
    return {
        "batch": batch,
        "side": side,
        "milliseconds": milliseconds(times),
        "ratio": ratios,
        f"at most {RATIO_TARGET}": {way: ratio <= RATIO_TARGET for way, ratio in ratios.items()},
        "MiB": memory,
    }


def with_peak(way: str, trunk: nn.Module, images: torch.Tensor) -> tuple[Training, int | str]:
    """A training, and the most MiB that a step holds on the device, parameters and Adam's state included."""
    if images.device.type != "cuda":
        return Training(way, trunk, images), NEEDS_A_CARD
    before = torch.cuda.memory_allocated()
    training = Training(way, trunk, images)
    training.steps(1)  # in which cuDNN also tries what needs more memory
    torch.cuda.reset_peak_memory_stats()
    training.steps(1)
    return training, round((torch.cuda.max_memory_allocated() - before) / 2**20)
