"""Honest timings: the things compared take turns in one process, medians over the turns, ratios of these."""

from __future__ import annotations

import argparse
import json
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
from tqdm import tqdm

import pml_s2sd
from pml_s2sd.whole_file import whole_file

RESULTS = Path(__file__).parent / "results"


def settings(description: str | None, repeats: int, **options: dict[str, Any]) -> argparse.Namespace:
    """The command line of a benchmark: what all have, and its own options; sets the number of threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    for name, option in options.items():
        parser.add_argument(f"--{name}", **option)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def medians(things: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 3) -> dict[str, float]:
    """Median seconds of a call of each, after some calls that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for turn in tqdm(range(warm_up + repeats), desc=" / ".join(things)[:60], leave=False, disable=None):
        for name, call in list(things.items())[:: -1 if turn % 2 else 1]:  # none is always the one after another
            synchronize()
            started = time.perf_counter()
            call()
            synchronize()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def profile(call: Callable[[], Any], steps: int = 10) -> str:
    """The operations that a call spends its time in."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            call()
    return profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(times: dict[str, float]) -> dict[str, float]:
    return {name: round(1e3 * seconds, 2) for name, seconds in times.items()}


def peak_mebibytes() -> float:
    """Of this process so far. Linux: the high-water mark that, unlike getrusage's, is not the parent's."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def reset_peak() -> None:
    """Bring the high-water mark down to what this process holds now."""
    Path("/proc/self/clear_refs").write_text("5")


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """What `save` wrote: machine, command, figures."""
    return json.loads((folder / f"{name}.json").read_text())


def save(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> None:
    """Print the figures, and write them to NAME.json of a folder with what they were measured on."""
    folder.mkdir(exist_ok=True)
    print(f"{name}: " + json.dumps(figures, indent=1))
    with whole_file(folder / f"{name}.json", "w") as file:
        file.write(json.dumps({"machine": machine(), "command": command(), "figures": figures}, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What figures depend on beside the code."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "pytorch-metric-learning")},
        "pml-s2sd": pml_s2sd.__version__,
    }


def command() -> str:
    return f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()


def processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
