"""The whole loss step beside the authors' formulas, written plainly, and beside plain PML: B = 112, F = 2048, d = 128.

Forward and backward, heads included, taking turns in one process:
  plain PML     the linear head, its objective and its miner
  the formulas  the paper's MSDF as it is on paper: four MLP heads, each space's objective and miner by PML, each
                teacher's similarities and KL; no two of them share anything
  MSDF          the same by `s2sd`
  recommended   `s2sd` as it comes: one linear head
The authors' code is not here. It also loops over anchors in Python, which the formulas do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from loss_step import AUX_SIZES, LABELS, MSDF, WORKLOADS, B, F, d
from measure import medians, milliseconds, save, settings
from torch import nn
from torch.nn import functional

from pml_s2sd import s2sd
from pml_s2sd.objectives import rebuild

GAMMA = 50.0
COMPARED = {
    "multisimilarity": ("multisimilarity", "multisimilarity"),
    "margin": ("margin", "margin"),
    "margin, our miner in S2SD": ("margin", "margin, without a loop over classes"),
    "proxyanchor": ("proxyanchor", "proxyanchor"),
}


class Formulas(nn.Module):
    """½ · [ L(z) + (1/m) Σ_i L(a_i) ] + γ · (1/m) Σ_i KL(D^z, D^{a_i}) + γ · KL(D^z, D^φ), T = 1.

    Source: Roth et al., ICML 2021, section 3.
    """

    def __init__(self, objective: nn.Module, miner: Callable[[], nn.Module | None]) -> None:
        super().__init__()
        self.head = nn.Linear(F, d)
        self.aux_heads = nn.ModuleList(
            nn.Sequential(nn.Linear(F, size), nn.ReLU(), nn.Linear(size, size)) for size in AUX_SIZES
        )
        self.objectives = nn.ModuleList(rebuild(objective, size) for size in (d, *AUX_SIZES))
        self.miners = [miner() for _ in self.objectives]

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        z, *aux = self.head(features), *(g(features) for g in self.aux_heads)
        base, *others = (
            loss(x, labels, None if miner is None else miner(x, labels))
            for x, loss, miner in zip((z, *aux), self.objectives, self.miners, strict=True)
        )
        D = similarities(z)
        distilled = torch.stack([divergence(D, similarities(a)) for a in aux]).mean()
        objective = 0.5 * (base + torch.stack(others).mean())
        return objective + GAMMA * (distilled + divergence(D, similarities(features)))


def similarities(x: torch.Tensor) -> torch.Tensor:
    unit = functional.normalize(x)
    return unit @ unit.T


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    p, q = student.log_softmax(dim=1), teacher.detach().softmax(dim=1)
    return functional.kl_div(p, q, reduction="batchmean")


class Step:
    """One way of the step: `module` maps features and labels to the loss."""

    def __init__(self, module: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *parts: nn.Module) -> None:
        self.module, self.parts = module, parts
        self.features = torch.randn(B, F, requires_grad=True)  # as a trunk's are

    def __call__(self) -> None:
        for part in self.parts:
            part.zero_grad()
        self.module(self.features, LABELS).backward()


def plain_pml(loss: nn.Module, miner: nn.Module | None) -> Step:
    head = nn.Linear(F, d)

    def step(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        z = head(features)
        return loss(z, labels, None if miner is None else miner(z, labels))

    return Step(step, head, loss)


def by_s2sd(loss: nn.Module, miner: nn.Module | None, **recipe: object) -> Step:
    embedder, loss_func = s2sd(loss, F, d, miner=miner, **recipe)  # type: ignore[arg-type]
    return Step(lambda features, labels: loss_func(embedder(features), labels), embedder, loss_func)


def measure(theirs: str, ours: str, repeats: int) -> dict[str, Any]:
    """With one workload of loss_step.py by plain PML and by the formulas, and one by `s2sd`."""
    torch.manual_seed(0)
    loss, miner = WORKLOADS[theirs]
    our_loss, our_miner = WORKLOADS[ours]
    formulas = Formulas(loss(), miner)
    ways = {
        "plain PML": plain_pml(loss(), miner()),
        "the formulas": Step(formulas, formulas),
        "MSDF": by_s2sd(our_loss(), our_miner(), **MSDF),
        "recommended": by_s2sd(our_loss(), our_miner()),
    }
    times = medians(ways, repeats)
    return {
        "milliseconds": milliseconds(times),
        "÷ plain PML": {way: round(seconds / times["plain PML"], 2) for way, seconds in list(times.items())[1:]},
        "÷ the formulas": {way: round(times[way] / times["the formulas"], 3) for way in ("MSDF", "recommended")},
    }


def main() -> None:
    chosen = settings(__doc__, repeats=20)
    figures = {name: measure(theirs, ours, chosen.repeats) for name, (theirs, ours) in COMPARED.items()}
    save("authors_step", figures, chosen.results)


if __name__ == "__main__":
    main()
