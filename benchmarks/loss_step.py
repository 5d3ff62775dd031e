"""What S2SD adds to a loss step, at the paper's sizes: B = 112, F = 2048, d = 128.

Of two recipes: the paper's MSDF, four MLP heads of 512 to 2048, and the recommended one, a linear head of 1024.

ratio = (auxiliary heads, all losses, mining, distillation, there and back) ÷ (the heads alone + the base objective
alone). What is over is split: the objectives in the auxiliary spaces as PML alone has them, and as S2SD runs them, and
the distillation. PML's part = (heads + one base objective for each space) ÷ (heads + base objective): the ratio where
nothing of S2SD's own took time.
Also the heads' rate in FLOP/s against that of one large matrix product, and the optimizer's step.
`--profile WORKLOAD` prints the operations that all losses of a workload spend their time in, and measures nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measure import medians, milliseconds, profile, save, settings
from pytorch_metric_learning import losses, miners
from torch import nn

from pml_s2sd import S2SDEmbeddings, S2SDLoss, s2sd
from pml_s2sd.miners import RhoDistanceWeightedMiner
from pml_s2sd.objectives import rebuild

B, F, d, AUX_SIZES = 112, 2048, 128, (512, 1024, 1536, 2048)
LABELS = torch.arange(B) // 2
WORKLOADS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module | None]]] = {
    "multisimilarity": (lambda: losses.MultiSimilarityLoss(2, 40, 0.5), lambda: miners.MultiSimilarityMiner(0.1)),
    "margin": (lambda: losses.MarginLoss(margin=0.2, beta=1.2), lambda: miners.DistanceWeightedMiner(cutoff=0.5)),
    "margin, without a loop over classes": (
        lambda: losses.MarginLoss(margin=0.2, beta=1.2),
        lambda: RhoDistanceWeightedMiner(0.0, cutoff=0.5, triplets_per_anchor=2),  # as many as PML's draws
    ),
    "proxyanchor": (lambda: losses.ProxyAnchorLoss(100, d), lambda: None),
}
MSDF = {"variant": "MSDF", "aux_sizes": AUX_SIZES, "feature_delay": 0}
RECIPES: dict[str, dict[str, Any]] = {"": MSDF, "recommended, ": {}}
"""What a workload's name begins with, and the options of `s2sd`."""


class Workload:
    """One objective with its miner at the reference sizes: the calls that are timed."""

    def __init__(
        self, objective: Callable[[], nn.Module], miner: Callable[[], nn.Module | None], recipe: dict[str, Any]
    ) -> None:
        torch.manual_seed(0)
        self.features = torch.randn(B, F, requires_grad=True)  # as a trunk's are
        self.embedder, self.loss_func = s2sd(objective(), F, d, miner=miner(), **recipe)
        self.without_distillation = S2SDLoss(objective(), self.embedder, miner=miner(), distill_weight=0.0)
        batch = self.embedder(self.features)
        self.embeddings = [batch.embeddings.detach(), *(a.detach() for a in batch.aux)]
        self.gradients = [torch.randn_like(x) for x in self.embeddings]
        self.by_pml = [(rebuild(objective(), x.shape[1]), miner()) for x in self.embeddings]

    def whole(self) -> None:
        self.embedder.zero_grad()
        self.loss_func.zero_grad()
        self.loss_func(self.embedder(self.features), LABELS).backward()

    def heads(self) -> None:
        self.embedder.zero_grad()
        out = self.embedder(self.features)
        torch.autograd.backward([out.embeddings, *out.aux], self.gradients)

    def pml(self, spaces: slice) -> None:
        for x, (loss, miner) in zip(self.embeddings[spaces], self.by_pml[spaces], strict=True):
            x = x.clone().requires_grad_()
            loss(x, LABELS, miner(x, LABELS) if miner is not None else None).backward()

    def all_losses(self, loss_func: S2SDLoss) -> None:
        z, *aux = (x.clone().requires_grad_() for x in self.embeddings)
        loss_func(S2SDEmbeddings(z, tuple(aux), self.features.detach()), LABELS).backward()

    def measure(self, repeats: int) -> dict:
        times = medians(
            {
                "whole": self.whole,
                "heads": self.heads,
                "base objective": lambda: self.pml(slice(1)),
                "all losses": lambda: self.all_losses(self.loss_func),
                "all objectives": lambda: self.all_losses(self.without_distillation),
                "auxiliary objectives, PML alone": lambda: self.pml(slice(1, None)),
            },
            repeats,
        )
        extra = {
            "auxiliary objectives": times["all objectives"] - times["base objective"],
            "distillation": times["all losses"] - times["all objectives"],
        }
        least = times["heads"] + times["base objective"]
        objectives = len(self.embeddings) * times["base objective"]
        return {
            "ratio": round(times["whole"] / least, 3),
            "PML's part": round((times["heads"] + objectives) / least, 3),
            "milliseconds": milliseconds(times),
            "milliseconds over": milliseconds(extra),
        }

    def profile(self) -> str:
        """The operations that all losses spend their time in, ten steps."""
        return profile(lambda: self.all_losses(self.loss_func))


def heads_rate(repeats: int) -> dict:
    """FLOP/s of the heads' forward and backward ÷ those of one 2048 × 2048 × 2048 product."""
    embedder, _ = s2sd(losses.ContrastiveLoss(), F, d, "MSDF", aux_sizes=AUX_SIZES)
    features = torch.randn(B, F, requires_grad=True)
    out = embedder(features)
    gradients = [torch.randn_like(x) for x in (out.embeddings, *out.aux)]
    square = torch.randn(2048, 2048)

    def heads() -> None:
        embedder.zero_grad()
        out = embedder(features)
        torch.autograd.backward([out.embeddings, *out.aux], gradients)

    times = medians({"heads": heads, "product": lambda: square @ square}, repeats)
    weights = sum(p.numel() for p in embedder.parameters() if p.dim() == 2)
    rates = {"heads": 6 * B * weights / times["heads"], "product": 2 * 2048**3 / times["product"]}
    return {
        "ratio": round(rates["heads"] / rates["product"], 3),
        "GFLOP/s": {k: round(v / 1e9, 1) for k, v in rates.items()},
    }


def optimizer_step(repeats: int) -> dict:
    """Adam's step for the auxiliary parameters, by its implementation."""
    embedder, _ = s2sd(losses.ContrastiveLoss(), F, d, "MSDF", aux_sizes=AUX_SIZES)
    for parameter in embedder.aux_heads.parameters():
        parameter.grad = torch.randn_like(parameter)
    options: dict[str, dict] = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    steps = {name: torch.optim.Adam(embedder.aux_heads.parameters(), **o).step for name, o in options.items()}
    return {f"{name}, milliseconds": t for name, t in milliseconds(medians(steps, repeats)).items()}


def main() -> None:
    workloads = {
        f"{of_recipe}{name}": (*parts, recipe)
        for of_recipe, recipe in RECIPES.items()
        for name, parts in WORKLOADS.items()
    }
    chosen = settings(__doc__, repeats=20, profile={"choices": list(workloads), "metavar": "WORKLOAD"})
    if chosen.profile:
        print(Workload(*workloads[chosen.profile]).profile())
        return
    figures: dict[str, Any] = {
        # the recommended steps are short: one disturbance would last for many of them
        name: Workload(*parts).measure(chosen.repeats * (3 if name.startswith("recommended") else 1))
        for name, parts in workloads.items()
    }
    figures["heads' rate ÷ one product's"] = heads_rate(chosen.repeats)
    figures["optimizer step"] = optimizer_step(chosen.repeats)
    save("loss_step", figures, chosen.results)


if __name__ == "__main__":
    main()
