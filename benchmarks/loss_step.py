"""What S2SD adds to a loss step, at the paper's sizes: B = 112, F = 2048, d = 128, auxiliary 512 to 2048, MSDF.

ratio = (auxiliary heads, all losses, mining, distillation, there and back) ÷ (the heads alone + the base objective
alone). Also the heads' rate in FLOP/s against that of one large matrix product, and the optimizer's step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import medians, save
from pytorch_metric_learning import losses, miners
from torch import nn

from pml_s2sd import S2SDEmbeddings, s2sd
from pml_s2sd.miners import RhoDistanceWeightedMiner

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


def workload(objective: Callable[[], nn.Module], miner: Callable[[], nn.Module | None], repeats: int) -> dict:
    torch.manual_seed(0)
    features = torch.randn(B, F, requires_grad=True)  # as a trunk's are
    embedder, loss_func = s2sd(objective(), F, d, "MSDF", aux_sizes=AUX_SIZES, miner=miner(), feature_delay=0)
    base_loss, base_miner = objective(), miner()
    batch = embedder(features)
    z, aux = batch.embeddings.detach(), [a.detach() for a in batch.aux]
    gradients = [torch.randn_like(x) for x in (z, *aux)]

    def whole() -> None:
        embedder.zero_grad()
        loss_func.zero_grad()
        loss_func(embedder(features), LABELS).backward()

    def heads() -> None:
        embedder.zero_grad()
        out = embedder(features)
        torch.autograd.backward([out.embeddings, *out.aux], gradients)

    def base_objective() -> None:
        x = z.clone().requires_grad_()
        base_loss(x, LABELS, base_miner(x, LABELS) if base_miner is not None else None).backward()

    def all_losses() -> None:
        leaves = [x.clone().requires_grad_() for x in (z, *aux)]
        loss_func(S2SDEmbeddings(leaves[0], tuple(leaves[1:]), features.detach()), LABELS).backward()

    times = medians(
        {"whole": whole, "heads": heads, "base objective": base_objective, "all losses": all_losses}, repeats
    )
    return {
        "ratio": round(times["whole"] / (times["heads"] + times["base objective"]), 3),
        "milliseconds": {name: round(1e3 * seconds, 2) for name, seconds in times.items()},
    }


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
    return {f"{name}, milliseconds": round(1e3 * t, 2) for name, t in medians(steps, repeats).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    figures = {name: workload(*parts, settings.repeats) for name, parts in WORKLOADS.items()}
    figures["heads' rate ÷ one product's"] = heads_rate(settings.repeats)
    figures["optimizer step"] = optimizer_step(settings.repeats)
    save("loss_step", figures)


if __name__ == "__main__":
    main()
