"""What s2sd() makes without options: the trunk learns as from the objective alone at the larger size."""

import copy

import pytest
import torch
from formula import kl
from pytorch_metric_learning import losses, miners

from pml_s2sd import s2sd

F, D, LARGE = 10, 3, 12
LABELS = torch.arange(12) // 3
OBJECTIVES = {
    "pairs": (lambda size: losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner),
    "proxies": (lambda size: losses.ProxyAnchorLoss(4, size), lambda: None),
}


def made(name="pairs", **options):
    torch.manual_seed(0)
    trunk = torch.nn.Linear(6, F, dtype=torch.float64)
    make, miner = OBJECTIVES[name]
    embedder, loss_func = s2sd(make(D), F, D, aux_sizes=(LARGE,), miner=miner(), **options)
    return trunk, embedder.double(), loss_func.double()


def step(trunk, embedder, loss_func):
    x = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss = loss_func(embedder(trunk(x)), LABELS)
    loss.backward()
    return x, loss.detach()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_trunk_and_large_space_get_the_gradient_of_the_objective_alone_at_that_size(name):
    trunk, embedder, loss_func = made(name)
    alone = copy.deepcopy(trunk), copy.deepcopy(embedder.aux_heads[0]), copy.deepcopy(loss_func.aux_losses["a1"])
    x, _ = step(trunk, embedder, loss_func)
    own_trunk, head, objective = alone
    a = head(own_trunk(x))
    _, miner = OBJECTIVES[name]
    objective(a, LABELS, miner()(a, LABELS) if miner() else None).backward()
    for ours, expected in zip((trunk, embedder.aux_heads[0], loss_func.aux_losses["a1"]), alone, strict=True):
        found = [p.grad for p in ours.parameters()]
        torch.testing.assert_close(found, [p.grad for p in expected.parameters()], rtol=1e-10, atol=1e-14)
    assert trunk.weight.grad.abs().max() > 1e-4


@pytest.mark.parametrize("weight", [0.0, None, 7.0])
def test_the_value_is_the_plain_sum_without_the_half(weight):
    trunk, embedder, loss_func = made(distill_weight=weight)
    x, found = step(trunk, embedder, loss_func)
    objective, miner = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()
    phi = trunk(x).detach()
    z, a = embedder.head(phi), embedder.aux_heads[0](phi)
    expected = sum(objective(e, LABELS, miner(e, LABELS)) for e in (z, a))
    others = [[r for r in range(12) if r != b] for b in range(12)]
    distill = sum(kl(z[[b]], a[[b]], 0.05, z[rest], a[rest]) for b, rest in enumerate(others)) / 12
    expected = expected + (3200 if weight is None else weight) * distill
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=0)
    gradient = torch.autograd.grad(expected, embedder.head.weight)[0]
    torch.testing.assert_close(embedder.head.weight.grad, gradient, rtol=1e-8, atol=1e-12)
