"""What S2SD adds to a whole training step of a ResNet-50-sized network: images of 224 × 224, B = 32.

ratio = (forward, loss, backward, fused Adam's step with S2SD) ÷ (the same without), taking turns in one process, for
the recommended setting and for the paper's MSDF. The extra time is also measured part by part, as the difference of the
two ways in the heads, in the losses and in the optimizer: a step takes seconds, and its noise is larger than the parts
are. collecting = the trunk's forward in eval mode ÷ the step without S2SD. `consolidate` needs it once for each view of
each image: V views after E epochs add V / E of it to the training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import medians, milliseconds, save, settings
from pytorch_metric_learning import losses, miners
from resnet import FEATURES, PARAMETERS, resnet50
from torch import nn

from pml_s2sd import S2SDEmbedder, S2SDEmbeddings, s2sd

d = 128
VARIANTS = {"recommended": None, "MSDF": "MSDF"}


def multi_similarity() -> nn.Module:
    return losses.MultiSimilarityLoss(2, 40, 0.5)


class Way:
    """A model with its loss and optimizer: the whole step, and its parts."""

    def __init__(self, trunk: nn.Module, head: nn.Module, loss: Callable, images: torch.Tensor) -> None:
        self.trunk, self.head, self.loss, self.images = copy.deepcopy(trunk), head, loss, images
        self.labels = torch.arange(len(images)) // 2
        parameters = [*self.trunk.parameters(), *head.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-5, fused=True)
        self.features = torch.randn(len(images), FEATURES, requires_grad=True)
        self.embeddings = detached(head(self.features))

    def step(self) -> None:
        loss = self.loss(self.head(self.trunk(self.images)), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def heads(self) -> None:
        self.head.zero_grad()
        out = tensors(self.head(self.features))
        torch.autograd.backward(out, [torch.ones_like(x) for x in out])

    def losses(self) -> None:
        self.loss(self.embeddings, self.labels).backward()

    def update(self) -> None:
        self.optimizer.step()


def difference(ways: dict[str, Way], call: Callable[[Way], None], repeats: int) -> float:
    """Seconds that a part takes more with S2SD."""
    times = medians({name: partial(call, way) for name, way in ways.items()}, repeats)
    return times["S2SD"] - times["baseline"]


@torch.no_grad()
def collecting(way: Way) -> None:
    way.trunk.eval()(way.images)


def tensors(batch: S2SDEmbeddings | torch.Tensor) -> list[torch.Tensor]:
    return [batch] if isinstance(batch, torch.Tensor) else [batch.embeddings, *batch.aux]


def detached(batch: S2SDEmbeddings | torch.Tensor) -> S2SDEmbeddings | torch.Tensor:
    """As leaves, into which the losses' gradients go."""
    z, *aux = (x.detach().requires_grad_() for x in tensors(batch))
    return z if isinstance(batch, torch.Tensor) else S2SDEmbeddings(z, tuple(aux), batch.features.detach())


def main() -> None:
    chosen = settings(__doc__, repeats=5, batch={"type": int, "default": 32}, size={"type": int, "default": 224})
    torch.manual_seed(0)
    trunk = resnet50()
    found = sum(p.numel() for p in trunk.parameters())
    if found != PARAMETERS:
        raise RuntimeError(f"the trunk has {found} parameters, ResNet-50's has {PARAMETERS}")
    images = torch.randn(chosen.batch, 3, chosen.size, chosen.size)
    miner, loss = miners.MultiSimilarityMiner(0.1), multi_similarity()
    figures = {}
    for name, variant in VARIANTS.items():
        miner_of_each = miners.MultiSimilarityMiner(0.1)
        embedder, loss_func = s2sd(multi_similarity(), FEATURES, d, variant, miner=miner_of_each, feature_delay=0)
        assert isinstance(embedder, S2SDEmbedder)
        ways = {
            "baseline": Way(trunk, nn.Linear(FEATURES, d), lambda z, labels: loss(z, labels, miner(z, labels)), images),
            "S2SD": Way(trunk, embedder, loss_func, images),
        }
        figures[f"{name}, B = {chosen.batch}, {chosen.size} × {chosen.size}"] = compared(ways, chosen.repeats)
    save("training_step", figures, chosen.results)


def compared(ways: dict[str, Way], repeats: int) -> dict[str, Any]:
    """Whole steps, parts, and what collecting features takes."""
    whole = medians({name: way.step for name, way in ways.items()}, repeats, warm_up=1)
    parts = {
        part: difference(ways, call, 6 * repeats)
        for part, call in (("heads", Way.heads), ("losses", Way.losses), ("optimizer", Way.update))
    }
    forward = medians({"forward": partial(collecting, ways["baseline"])}, repeats)["forward"]
    return {
        "ratio": round(whole["S2SD"] / whole["baseline"], 4),
        "ratio by parts": round(1 + sum(parts.values()) / whole["baseline"], 4),
        "collecting": round(forward / whole["baseline"], 4),
        "milliseconds": milliseconds(whole),
        "milliseconds more": milliseconds(parts),
        "parameters": {
            name: sum(p.numel() for p in [*way.trunk.parameters(), *way.head.parameters()])
            for name, way in ways.items()
        },
    }


if __name__ == "__main__":
    main()
