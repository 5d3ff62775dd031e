"""A run's folder: what it was made with, its figures so far, its checkpoint, the deployed weights.

RUNS/CELL/seed0/run.json        configuration, arguments, seed, versions, git commit, machine
                metrics.json    figures of every epoch
                checkpoint      from which a run that was cut short goes on; gone when it is finished
                weights.pt      the deployed model, when it is finished
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from results import write_json

from paper.config import Config

PACKAGES = ("pml-s2sd", "pytorch-metric-learning", "torch", "torchvision", "numpy", "faiss-cpu", "pillow")


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings, self.metrics = path / "run.json", path / "metrics.json"
        self.checkpoint, self.weights = path / "run.checkpoint", path / "weights.pt"

    def made_with(self) -> dict[str, Any]:
        return json.loads(self.settings.read_text())

    def epochs(self) -> list[dict[str, float]]:
        """The figures so far."""
        return json.loads(self.metrics.read_text()) if self.metrics.exists() else []

    def finished(self) -> bool:
        return self.weights.exists()

    def open(self, made_with: dict[str, Any]) -> None:
        """Write down what the run is made with, or check that it is the same as what was written down.

        Raises:
            ValueError: naming the first setting that differs.
        """
        if self.settings.exists():
            before = self.made_with()
            for part in DECISIVE:
                for name in before[part].keys() | made_with[part].keys():
                    then, now = before[part].get(name), made_with[part].get(name)
                    if then != now:
                        raise ValueError(
                            f"{self.path} was made with {name} = {then}, this run has {now}; give the same to go on "
                            "with it, another --runs to keep it, or remove the folder to start again"
                        )
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.settings, made_with)


DECISIVE = ("config", "numerics", "versions")
"""The parts of run.json that decide a run's figures."""


def describe(config: Config, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What a run is made with, as run.json holds it."""
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    numerics = ("precision", "channels_last", "compile", "dry_run")
    return {
        "config": dataclasses.asdict(config),
        "numerics": {"seed": seed, **{name: chosen.pop(name) for name in numerics}},
        "arguments": chosen,
        "versions": {name: version(name) for name in PACKAGES},
        "commit": git_commit(),
        "machine": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def git_commit() -> str | None:
    """Of this file's repository, ending in -dirty where files were changed; None outside one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
