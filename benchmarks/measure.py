"""Honest timings: the things compared take turns in one process, medians over the turns, ratios of these."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def medians(things: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 3) -> dict[str, float]:
    """Median seconds of a call of each, after some calls that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for turn in range(warm_up + repeats):
        for name, call in things.items():
            synchronize()
            started = time.perf_counter()
            call()
            synchronize()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mebibytes() -> float:
    """The most memory that this process has held. Linux: its own high-water mark, not inherited from the parent."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def save(name: str, figures: dict[str, Any]) -> None:
    """Print the figures, and write them to benchmarks/results/NAME.json with what they were measured on."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "pytorch-metric-learning", "pml-s2sd")},
    }
    print(f"{name}: " + json.dumps(figures, indent=1))
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine, "command": command(), "figures": figures}, indent=1) + "\n")
    os.replace(temporary, path)


def command() -> str:
    return f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()


def processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
