"""How the loss step's time and memory grow: with B, with the number and size of auxiliary spaces, and with processes.

F = 2048, d = 128, MSDF, forward and backward, as loss_step.py has them:
  plain   the linear head and the objective, without S2SD
  heads   the linear head and the auxiliary heads alone
  S2SD    everything; over = S2SD ÷ (heads + the base objective), ratio = S2SD ÷ plain
B: ProxyAnchorLoss(100 classes), as MultiSimilarityLoss itself needs many B × B matrices; memory is the peak of a
process of its own, parameters and gradients included. Spaces and processes: MultiSimilarityLoss and its miner, B = 112
in each process, over gloo, in PML's DistributedLossWrapper, on one thread each. Processes: also of the recommended
recipe; the base objective is PML's on the global batch; PML's part = (heads + as many base objectives as the busiest
process has spaces) ÷ (heads + base objective).

`--profile WORLD_SIZE` prints the operations that one of so many processes spends its time in, and measures no more.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from measure import medians, milliseconds, peak_mebibytes, profile, reset_peak, save, settings
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import nn

from pml_s2sd import s2sd

F, d, AUX_SIZES, B = 2048, 128, (512, 1024, 1536, 2048), 112
RECIPES: dict[str, dict[str, Any]] = {
    "MSDF": {"variant": "MSDF", "aux_sizes": AUX_SIZES, "feature_delay": 0},
    "recommended": {},
}
SPACE_SIZES, SPACE_NUMBERS = (128, 256, 512, 1024, 2048, 4096), (1, 2, 4, 8)


def proxy_anchor() -> tuple[nn.Module, None]:
    return losses.ProxyAnchorLoss(100, d), None


def multi_similarity() -> tuple[nn.Module, nn.Module]:
    return losses.MultiSimilarityLoss(2, 40, 0.5), miners.MultiSimilarityMiner(0.1)


def distributed() -> tuple[nn.Module, nn.Module]:
    loss, miner = multi_similarity()
    return DistributedLossWrapper(loss), miner


class Step:
    """The calls that are timed, on B features: with S2SD, without, the heads alone, the base objective alone."""

    def __init__(
        self, rows: int, recipe: dict[str, Any], parts: Callable[[], tuple[nn.Module, nn.Module | None]]
    ) -> None:
        torch.manual_seed(0)
        self.features = torch.randn(rows, F, requires_grad=True)
        self.labels = torch.arange(rows) // 2 % 100
        self.head, (self.loss, self.miner) = nn.Linear(F, d), parts()
        loss, miner = parts()
        self.embedder, self.loss_func = s2sd(loss, F, d, miner=miner, **recipe)
        self.z = torch.randn(rows, d)

    def calls(self) -> dict[str, Callable[[], None]]:
        return {"plain": self.plain, "heads": self.heads, "base objective": self.objective, "S2SD": self.with_s2sd}

    def with_s2sd(self) -> None:
        self.embedder.zero_grad()
        self.loss_func(self.embedder(self.features), self.labels).backward()

    def plain(self) -> None:
        self.head.zero_grad()
        self._loss(self.head(self.features)).backward()

    def heads(self) -> None:
        self.embedder.zero_grad()
        out = self.embedder(self.features)
        torch.autograd.backward([out.embeddings, *out.aux], [torch.ones_like(x) for x in (out.embeddings, *out.aux)])

    def objective(self) -> None:
        self._loss(self.z.clone().requires_grad_()).backward()

    def _loss(self, z: torch.Tensor) -> torch.Tensor:
        return self.loss(z, self.labels, self.miner(z, self.labels) if self.miner is not None else None)


def figures_of(times: dict[str, float]) -> dict:
    return {
        "over": round(times["S2SD"] / (times["heads"] + times["base objective"]), 3),
        "ratio": round(times["S2SD"] / times["plain"], 2),
        "milliseconds": milliseconds(times),
    }


def of_sizes(*aux_sizes: int) -> dict[str, Any]:
    return RECIPES["MSDF"] | {"aux_sizes": aux_sizes}


def peak_of_a_step(rows: int, way: str) -> float:
    """MiB of the batch, the parameters, their gradients, and all that is in between."""
    Step(8, of_sizes(8), proxy_anchor).calls()[way]()  # what is loaded at first use
    reset_peak()
    before = peak_mebibytes()
    Step(rows, RECIPES["MSDF"] if way == "S2SD" else of_sizes(), proxy_anchor).calls()[way]()
    return peak_mebibytes() - before


def against_batch_size(chosen: argparse.Namespace) -> dict:
    figures = {}
    for rows in chosen.rows:
        repeats = max(2, min(chosen.repeats, 8192 // rows))
        figures[str(rows)] = figures_of(medians(Step(rows, RECIPES["MSDF"], proxy_anchor).calls(), repeats, warm_up=1))
        memory = {
            way: float(itself("--peak", way, "--rows", rows, "--threads", chosen.threads)) for way in ("plain", "S2SD")
        }
        figures[str(rows)]["MiB"] = {way: round(value, 1) for way, value in memory.items()}
        print(f"B = {rows}: {figures[str(rows)]}", flush=True)
    return figures


def against_spaces(aux_sizes: dict[int, tuple[int, ...]], repeats: int) -> dict:
    return {
        str(name): figures_of(medians(Step(B, of_sizes(*sizes), multi_similarity).calls(), repeats))
        for name, sizes in aux_sizes.items()
    }


def against_processes(chosen: argparse.Namespace) -> dict:
    figures = {}
    for recipe in RECIPES:
        spaces = len(s2sd(losses.ContrastiveLoss(), F, d, **RECIPES[recipe])[0].aux_sizes) + 1
        for n in chosen.processes:
            times = json.loads(of_several(n, "--repeats", chosen.repeats, "--recipe", recipe))
            least = times["heads"] + times["base objective"]
            objectives = math.ceil(spaces / n) * times["base objective"]
            pmls = round((times["heads"] + objectives) / least, 3)
            figures[f"{recipe}, {n}"] = {**figures_of(times), "PML's part": pmls}
    return figures


def of_several(world_size: int, *arguments: object) -> str:
    """What the first of so many processes prints."""
    with tempfile.TemporaryDirectory() as folder:
        own = ["--world", world_size, "--store", str(Path(folder) / "store"), "--threads", 1, *arguments, "--rank"]
        processes = [start(*own, rank) for rank in range(world_size)]
        outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a process of {world_size} failed: {outputs}")
    return outputs[0]


def in_one_of_several(chosen: argparse.Namespace) -> str:
    rank, world_size = chosen.rank, chosen.world
    dist.init_process_group("gloo", init_method=f"file://{chosen.store}", rank=rank, world_size=world_size)
    step = Step(B, RECIPES[chosen.recipe], distributed if world_size > 1 else multi_similarity)
    found = profile(step.with_s2sd) if chosen.profile else json.dumps(medians(step.calls(), chosen.repeats))
    dist.barrier()  # none leaves while another still talks to it
    dist.destroy_process_group()
    return found


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def itself(*arguments: object) -> str:
    process = start(*arguments)
    output = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"the process of {arguments} failed")
    return output


PARTS: dict[str, Callable[[argparse.Namespace], dict]] = {
    "spaces": lambda chosen: {
        "size of one space": against_spaces({size: (size,) for size in SPACE_SIZES}, chosen.repeats),
        "number of spaces of 1024": against_spaces({m: (1024,) * m for m in SPACE_NUMBERS}, chosen.repeats),
    },
    "processes": lambda chosen: {"processes": against_processes(chosen)},
    "batch": lambda chosen: {"B": against_batch_size(chosen)},
}


def main() -> None:
    hidden = {"help": argparse.SUPPRESS}
    chosen = settings(
        __doc__,
        repeats=20,
        parts={"nargs": "+", "choices": list(PARTS), "default": list(PARTS)},
        rows={"type": int, "nargs": "+", "default": [64, 256, 1024, 4096, 16384]},
        processes={"type": int, "nargs": "+", "default": [1, 2]},
        profile={"type": int, "metavar": "WORLD_SIZE"},
        recipe={"choices": list(RECIPES), "default": "MSDF", "help": "of --profile"},
        peak={"choices": ["plain", "S2SD"], **hidden},
        rank={"type": int, **hidden},
        world={"type": int, **hidden},
        store=hidden,
    )
    if chosen.peak:
        print(peak_of_a_step(chosen.rows[0], chosen.peak))
    elif chosen.rank is not None:
        print(in_one_of_several(chosen))
    elif chosen.profile:
        print(of_several(chosen.profile, "--profile", chosen.profile, "--recipe", chosen.recipe))
    else:
        for part in chosen.parts:
            save(f"scaling_{part}", PARTS[part](chosen), chosen.results)


if __name__ == "__main__":
    main()
