"""What S2SD does on a GPU, in at most eight minutes on one card: `make gpu`. Nothing is downloaded.

Tests that need a device; waits of the host; kernels launched; a loss step in a CUDA graph and compiled; a whole step of
ResNet-50; the distillation at B = 8,192; maps of a million rows. Each section runs in a process of its own, for so many
seconds at most, and what is found is written after each: one that fails loses none of the others.

`--device cpu --small` is a dry run on tiny sizes: what a CPU cannot tell is "needs a card", and nothing is written
unless `--results` says where.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_host import launches, synchronisation
from gpu_network import network
from gpu_programs import compiled, graph
from gpu_scale import large_batch, million_rows
from gpu_tests import device_tests
from measure import RESULTS, command, machine

from pml_s2sd.whole_file import whole_file


class Section(NamedTuple):
    """What it measures, on a device, in full or small, and the seconds that it may take."""

    measure: Callable[[torch.device, bool], dict[str, Any]]
    seconds: int


SECTIONS = {
    "tests": Section(device_tests, 80),
    "synchronisation": Section(synchronisation, 30),
    "launches": Section(launches, 40),
    "graph": Section(graph, 40),
    "compile": Section(compiled, 90),
    "network": Section(network, 90),
    "large batch": Section(large_batch, 30),
    "million rows": Section(million_rows, 60),
}
DONE = "done"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument(
        "--results", type=Path, help="folder of gpu.json (default: benchmarks/results, but of a dry run)"
    )
    parser.add_argument("--one", choices=list(SECTIONS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"this needs a CUDA device, and torch {torch.__version__} sees none; nothing was measured. "
            "`python benchmarks/gpu.py --device cpu --small` is a dry run without one"
        )
    device = torch.device(chosen.device)
    if chosen.one:
        print(json.dumps(SECTIONS[chosen.one].measure(device, chosen.small)))
        return 0
    in_full = chosen.device == "cuda" and not chosen.small
    folder = chosen.results or (RESULTS if in_full else None)
    figures: dict[str, Any] = {}
    for number, name in enumerate(chosen.only, start=1):
        print(f"{number} of {len(chosen.only)}: {name}, at most {SECTIONS[name].seconds} s", flush=True)
        figures[name] = in_a_process(name, chosen)
        print(json.dumps(figures[name], indent=1), flush=True)
        if folder is not None:
            write(figures, device, folder)
    return int(any(of_one["outcome"] != DONE or of_one["figures"].get("failed") for of_one in figures.values()))


def in_a_process(name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """The section's outcome, seconds, and figures or last words."""
    arguments = [sys.executable, __file__, "--one", name, "--device", chosen.device, *["--small"] * chosen.small]
    started = time.perf_counter()
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            printed, errors = process.communicate(timeout=SECTIONS[name].seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started
            process.communicate()
            return {"outcome": "out of time", "seconds": SECTIONS[name].seconds}
    seconds = round(time.perf_counter() - started, 1)
    if process.returncode:
        return {"outcome": "failed", "seconds": seconds, "error": errors[-2000:]}
    return {"outcome": DONE, "seconds": seconds, "figures": json.loads(printed.splitlines()[-1])}


def write(figures: dict[str, Any], device: torch.device, folder: Path) -> None:
    """gpu.json, as far as it is known."""
    folder.mkdir(exist_ok=True)
    found = {"machine": {**machine(), **card(device)}, "command": command(), "figures": figures}
    with whole_file(folder / "gpu.json", "w") as file:
        file.write(json.dumps(found, indent=1) + "\n")


def card(device: torch.device) -> dict[str, Any]:
    """What tells cards apart; of a CPU, nothing."""
    if device.type != "cuda":
        return {"gpu": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "MiB": round(properties.total_memory / 2**20),
        "driver": driver(),
        "cuda": torch.version.cuda,
    }


def driver() -> str | None:
    """The driver's version, where nvidia-smi says it."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return lines[0] if lines else None


if __name__ == "__main__":
    sys.exit(main())
