"""What a loss step has the host do: how often it waits for the device, and how many kernels it launches."""

from __future__ import annotations

import contextlib
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_step import MULTI_SIMILARITY, NEEDS_A_CARD, READS_NOTHING, REFERENCE, SMALL, LossStep
from gpu_table import NOT_PMLS, WAYS
from measure import synchronize

WAIT = "called a synchronizing CUDA operation"
"""What torch's detector says."""
LAUNCH = re.compile(r"_*cu(da)?Launch(Cooperative)?Kernel")
"""The calls of CUDA's runtime and driver that launch a kernel, as torch.profiler names them."""
STEPS, STEPS_SMALL = 10, 1


def synchronisation(device: torch.device, small: bool) -> dict[str, Any]:
    """Waits in a step: of an objective that reads nothing on the host, where there may be none, and of one that does.

    For the first torch's detector is set to error, and where it finds a wait the waits are counted. Of the second the
    waits are counted by who reads.
    """
    figures: dict[str, Any] = {"waits": {}, "MultiSimilarityLoss: waits": {}, NOT_PMLS: {}}
    sizes = SMALL if small else REFERENCE
    for way in WAYS:
        step, mining = (LossStep(way, objective, sizes, device) for objective in (READS_NOTHING, MULTI_SIMILARITY))
        for of_either in (step, mining):
            of_either()  # what is made at first use
        none = runs_without_waiting(step, device)
        by_reader = counted(mining, device)
        found = {
            "waits": 0 if none else counted(step, device).total(),
            "MultiSimilarityLoss: waits": dict(by_reader),
            NOT_PMLS: by_reader.total() - by_reader["pytorch_metric_learning"],
        }
        for name, value in found.items():
            figures[name][way] = value if device.type == "cuda" else NEEDS_A_CARD
    return figures


@contextlib.contextmanager
def detector(mode: str, device: torch.device) -> Iterator[None]:
    """torch's detector of waits, set to "warn" or "error"; on a CPU there is none."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def runs_without_waiting(step: Callable[[], Any], device: torch.device) -> bool:
    try:
        with detector("error", device):
            step()
    except RuntimeError as error:
        if WAIT not in str(error):
            raise
        return False
    return True


def counted(step: Callable[[], Any], device: torch.device) -> Counter[str]:
    """The waits of one step, by who reads."""
    found: Counter[str] = Counter()

    def note(message: Warning | str, *of_where: Any, **others: Any) -> None:
        if WAIT in str(message):
            found[reader([frame.filename for frame in traceback.extract_stack()])] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        with detector("warn", device):
            step()
    return found


def reader(files: list[str]) -> str:
    """Whose line is the innermost of these: PML's, this package's, or neither's, as in the backward pass."""
    for file in reversed(files):
        for package in ("pytorch_metric_learning", "pml_s2sd"):
            if package in Path(file).parts:
                return package
    return "neither"


def launches(device: torch.device, small: bool) -> dict[str, Any]:
    """Kernels that a step launches."""
    sizes, steps = (SMALL, STEPS_SMALL) if small else (REFERENCE, STEPS)
    objectives = {"kernels": READS_NOTHING, "MultiSimilarityLoss: kernels": MULTI_SIMILARITY}
    figures: dict[str, Any] = {name: {} for name in objectives}
    for name, objective in objectives.items():
        for way in WAYS:
            step = LossStep(way, objective, sizes, device)
            for _ in range(3):
                step()
            launched = kernels(calls_of(step, steps, device)) / steps
            if device.type == "cuda" and not launched:
                raise RuntimeError("torch.profiler saw no kernel launched; it needs CUPTI, and the right to use it")
            figures[name][way] = round(launched, 1) if device.type == "cuda" else NEEDS_A_CARD
    return figures


def calls_of(step: Callable[[], Any], steps: int, device: torch.device) -> dict[str, int]:
    """How often what is called in so many steps, by torch.profiler's name."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    synchronize()
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(steps):
            step()
        synchronize()
    return {event.key: event.count for event in profiler.key_averages()}


def kernels(calls: dict[str, int]) -> int:
    return sum(count for name, count in calls.items() if LAUNCH.match(name))
