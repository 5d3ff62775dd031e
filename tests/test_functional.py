"""torch.func's transforms and gradients of gradients."""

import pytest
import torch
from pytorch_metric_learning import losses, miners

from pml_s2sd import s2sd

LABELS = torch.arange(32) // 4
FEATURES = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)).repeat_interleave(4, 0) + torch.randn(
    32, 16, generator=torch.Generator().manual_seed(0)
)
OBJECTIVES = {
    "cosines": lambda: (losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
    "distances": lambda: (losses.TripletMarginLoss(), None),
    "proxies": lambda: (losses.ProxyAnchorLoss(8, 4), None),
    "classes": lambda: (losses.CosFaceLoss(8, 4), None),
}


def make(name, dtype=torch.float32, **options):
    torch.manual_seed(0)
    loss, miner = OBJECTIVES[name]()
    embedder, loss_func = s2sd(loss, 16, 4, "MSDF", aux_sizes=(6, 10), miner=miner, feature_delay=0, **options)
    return embedder.to(dtype), loss_func.to(dtype)


@pytest.mark.parametrize("base_gradient", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_functional_gradient_is_that_of_backward(name, base_gradient):
    embedder, loss_func = make(name, distill_weight=3.0, base_gradient=base_gradient)

    def loss(parameters):
        return loss_func(torch.func.functional_call(embedder, parameters, (FEATURES,)), LABELS)

    gradient, value = torch.func.grad_and_value(loss)(dict(embedder.named_parameters()))
    assert loss_func.calls == 0  # under a transform nothing is kept
    expected = loss_func(embedder(FEATURES), LABELS)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    for parameter, p in embedder.named_parameters():
        torch.testing.assert_close(gradient[parameter], p.grad, rtol=1e-4, atol=1e-6)
    assert loss_func.calls == 1


@pytest.mark.parametrize("name", ["cosines", "proxies"])
def test_second_derivatives_are_those_of_finite_differences(name):
    embedder, loss_func = make(name, torch.float64, distill_weight=3.0)
    direction = torch.randn(4, 16, dtype=torch.float64)

    def squared_gradient(w):
        loss = loss_func(torch.func.functional_call(embedder, {"head.weight": w}, (FEATURES.double(),)), LABELS)
        return torch.autograd.grad(loss, w, create_graph=True)[0].square().sum()

    w = embedder.head.weight.detach().requires_grad_()
    (exact,) = torch.autograd.grad(squared_gradient(w), w)
    h = 1e-6
    difference = squared_gradient(w + h * direction) - squared_gradient(w - h * direction)
    torch.testing.assert_close((exact * direction).sum(), difference.detach() / (2 * h), rtol=1e-4, atol=1e-6)
