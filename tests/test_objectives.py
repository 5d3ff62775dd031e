"""Objectives are rebuilt for each space's size: right shapes, fresh values, nothing shared."""

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from pml_s2sd import S2SDEmbedder, S2SDLoss
from pml_s2sd.objectives import SIZE_BOUND, SizeBound, aux_objectives, base_objective, rebuild

CLASSES = 5
# name -> (embedding size -> objective, the size-bound tensor, its shape for that size)
SIZE_BOUND_OBJECTIVES = {
    "ArcFaceLoss": (lambda d: losses.ArcFaceLoss(CLASSES, d), "W", lambda d: (d, CLASSES)),
    "CosFaceLoss": (lambda d: losses.CosFaceLoss(CLASSES, d), "W", lambda d: (d, CLASSES)),
    "SphereFaceLoss": (lambda d: losses.SphereFaceLoss(CLASSES, d), "W", lambda d: (d, CLASSES)),
    "LargeMarginSoftmaxLoss": (lambda d: losses.LargeMarginSoftmaxLoss(CLASSES, d), "W", lambda d: (d, CLASSES)),
    "SubCenterArcFaceLoss": (
        lambda d: losses.SubCenterArcFaceLoss(num_classes=CLASSES, embedding_size=d),
        "W",
        lambda d: (d, 3 * CLASSES),
    ),
    "NormalizedSoftmaxLoss": (lambda d: losses.NormalizedSoftmaxLoss(CLASSES, d), "W", lambda d: (d, CLASSES)),
    "ProxyAnchorLoss": (lambda d: losses.ProxyAnchorLoss(CLASSES, d), "proxies", lambda d: (CLASSES, d)),
    "ProxyNCALoss": (lambda d: losses.ProxyNCALoss(CLASSES, d), "proxies", lambda d: (CLASSES, d)),
    "SoftTripleLoss": (lambda d: losses.SoftTripleLoss(CLASSES, d), "fc", lambda d: (d, 10 * CLASSES)),
    "P2SGradLoss": (lambda d: losses.P2SGradLoss(d, CLASSES), "weight", lambda d: (d, CLASSES)),
    "ManifoldLoss": (lambda d: losses.ManifoldLoss(d, K=CLASSES), "proxies", lambda d: (CLASSES, d)),
}


@pytest.mark.parametrize(("make", "tensor", "shape"), SIZE_BOUND_OBJECTIVES.values(), ids=SIZE_BOUND_OBJECTIVES)
@pytest.mark.parametrize("size", [8, 48])
def test_rebuilt_as_if_made_for_that_size(make, tensor, shape, size):
    loss = make(8)
    before = getattr(loss, tensor).clone()
    torch.manual_seed(1)
    rebuilt = rebuild(loss, size)
    torch.manual_seed(1)
    made = make(size)
    found = getattr(rebuilt, tensor)
    assert tuple(found.shape) == shape(size)
    assert isinstance(found, torch.nn.Parameter)
    assert torch.equal(found, getattr(made, tensor))  # initialised by the loss's own function
    assert torch.equal(getattr(loss, tensor), before)
    labels = torch.arange(2 * CLASSES) % CLASSES
    embeddings = torch.randn(2 * CLASSES, size, requires_grad=True)
    arguments = (embeddings,) if isinstance(loss, losses.ManifoldLoss) else (embeddings, labels)
    torch.manual_seed(2)
    value = rebuilt(*arguments)
    torch.manual_seed(2)
    torch.testing.assert_close(value, made(*arguments))
    value.backward()
    assert torch.isfinite(found.grad).all()


def test_a_loss_initialises_with_its_own_weight_init_func():
    loss = losses.ProxyAnchorLoss(CLASSES, 8, weight_init_func=lambda tensor: torch.nn.init.constant_(tensor, 3.0))
    assert torch.equal(rebuild(loss, 16).proxies, torch.full((CLASSES, 16), 3.0))


def test_dtype_and_frozen_state_are_kept():
    loss = losses.ArcFaceLoss(CLASSES, 8).double()
    loss.W.requires_grad_(False)
    rebuilt = rebuild(loss, 16)
    assert rebuilt.W.dtype == torch.float64
    assert not rebuilt.W.requires_grad


def test_nothing_is_shared_and_the_settings_are_kept():
    loss = losses.MarginLoss(margin=0.3, beta=0.9, learn_beta=True, num_classes=CLASSES)
    rebuilt = rebuild(loss, 16)
    assert rebuilt.margin == 0.3
    assert torch.equal(rebuilt.beta, loss.beta)
    assert rebuilt.beta is not loss.beta
    assert not set(map(id, loss.modules())) & set(map(id, rebuilt.modules()))


def test_wrappers_are_rebuilt_with_what_is_inside():
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, memory_size=20, miner=miners.MultiSimilarityMiner())
    memory(torch.randn(6, 8), torch.arange(6) // 2)
    rebuilt = rebuild(memory, 16)
    assert rebuilt.embedding_memory.shape == (20, 16)
    assert rebuilt.embedding_size == 16
    assert not rebuilt.embedding_memory.any()
    assert rebuilt.queue_idx == 0
    assert memory.queue_idx == 6
    rebuilt(torch.randn(6, 16), torch.arange(6) // 2)
    assert memory.queue_idx == rebuilt.queue_idx == 6

    several = losses.MultipleLosses(
        {"a": losses.ContrastiveLoss(), "b": losses.ArcFaceLoss(CLASSES, 8)}, weights={"a": 1, "b": 2}
    )
    rebuilt = rebuild(several, 16)
    assert rebuilt.losses["b"].W.shape == (16, CLASSES)
    assert rebuilt.weights == {"a": 1, "b": 2}
    assert rebuild(DistributedLossWrapper(losses.ProxyNCALoss(CLASSES, 8)), 16).loss.proxies.shape == (CLASSES, 16)
    assert rebuild(losses.SelfSupervisedLoss(losses.NTXentLoss(0.3)), 16).loss.temperature == 0.3


def test_the_instance_serves_the_base_space_and_every_other_space_gets_its_own():
    loss = losses.ProxyAnchorLoss(CLASSES, 8)
    assert base_objective(loss, 8) is loss
    first, second = aux_objectives(loss, (8, 16))
    assert first.proxies.shape == (CLASSES, 8)
    assert second.proxies.shape == (CLASSES, 16)
    assert not torch.equal(first.proxies, loss.proxies)


def test_a_callable_makes_one_for_each_size():
    embedder = S2SDEmbedder(16, 4, (6, 10))
    loss_func = S2SDLoss(
        lambda embedding_size: losses.ProxyNCALoss(CLASSES, embedding_size), embedder, distill_weight=50.0
    )
    sizes = [loss.proxies.shape[1] for loss in (loss_func.base_loss, *loss_func.aux_losses.values())]
    assert sizes == [4, 6, 10]


@pytest.mark.parametrize(("make", "tensor", "shape"), SIZE_BOUND_OBJECTIVES.values(), ids=SIZE_BOUND_OBJECTIVES)
def test_an_instance_made_for_another_size_is_named(make, tensor, shape):
    with pytest.raises(
        ValueError, match=rf"\.{tensor} is made for embedding_size=9, but the base embeddings have size 8"
    ):
        base_objective(make(9), 8)


class CentreLoss(torch.nn.Module):
    """A user's own loss with centres of the embedding size."""

    def __init__(self, classes, embedding_size):
        super().__init__()
        self.centres = torch.nn.Parameter(torch.randn(classes, embedding_size))

    def forward(self, embeddings, labels):
        return (embeddings - self.centres[labels]).pow(2).mean()


def test_an_unknown_class_that_looks_size_bound_is_named_and_may_be_registered(monkeypatch):
    with pytest.raises(ValueError, match=r"CentreLoss\.centres has shape \(5, 8\).*lambda embedding_size: CentreLoss"):
        base_objective(CentreLoss(CLASSES, 8), 8)
    with pytest.raises(ValueError, match=r"MultipleLosses\.losses\.0\.centres"):
        base_objective(losses.MultipleLosses([CentreLoss(CLASSES, 8)]), 8)
    with pytest.raises(ValueError, match=r"CentreLoss\.centres"):
        aux_objectives(CentreLoss(CLASSES, 16), (4, 16))

    bound = SizeBound("centres", axis=1, initialise=lambda module, tensor: torch.nn.init.zeros_(tensor))
    monkeypatch.setitem(SIZE_BOUND, CentreLoss, bound)
    embedder = S2SDEmbedder(16, 8, (6,))
    loss_func = S2SDLoss(CentreLoss(CLASSES, 8), embedder, distill_weight=50.0)
    assert torch.equal(loss_func.aux_losses.a1.centres, torch.zeros(CLASSES, 6))


def test_an_unknown_class_without_size_bound_tensors_is_copied():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, embeddings, labels):
            return self.scale * embeddings.pow(2).mean()

    loss = Scaled()
    (rebuilt,) = aux_objectives(base_objective(loss, 8), (16,))
    assert rebuilt.scale is not loss.scale
    assert torch.equal(rebuilt.scale, loss.scale)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (3, "expected a PML objective or a callable.*got 3"),
        (losses.ContrastiveLoss, "for a class, pass an instance"),
        (lambda embedding_size: "loss", "must return a torch.nn.Module, got str"),
    ],
)
def test_what_is_no_objective_is_named(loss, words):
    with pytest.raises(TypeError, match=words):
        base_objective(loss, 8)
    with pytest.raises(TypeError, match=words):
        aux_objectives(loss, (8,))
