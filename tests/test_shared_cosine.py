"""SharedCosine: the matrix and gradient of PML's CosineSimilarity, computed once, and kept no longer than a step."""

import copy
import gc
import weakref

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners

from pml_s2sd import S2SDEmbedder, S2SDLoss
from pml_s2sd.shared_cosine import CosineWithItself, SharedCosine, share

LABELS = torch.arange(12) // 2


def sharing(x):
    distance = SharedCosine()
    distance.expect(x)
    return distance


@pytest.mark.parametrize("B", [1, 2, 12, 40])
def test_matrix_and_gradient_are_those_of_pml(B):
    x = (3 * torch.randn(B, 5, dtype=torch.float64)).requires_grad_()
    into_D = torch.randn(B, B, dtype=torch.float64)
    found, expected = sharing(x)(x), distances.CosineSimilarity()(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    gradients = [torch.autograd.grad(D, x, into_D)[0] for D in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_the_gradient_can_be_differentiated_again():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(CosineWithItself.apply, x)
    assert torch.autograd.gradgradcheck(CosineWithItself.apply, x)


def test_a_zero_vector_is_similar_to_none_and_gets_no_gradient():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    D = sharing(x)(x)
    D.sum().backward()
    torch.testing.assert_close(D, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert x.grad.tolist()[1] == [0.0, 0.0]


def test_writing_into_the_matrix_changes_it_for_no_one_else():
    x = torch.randn(4, 3, requires_grad=True)
    distance = sharing(x)
    distance(x).fill_(7.0)
    torch.testing.assert_close(distance(x), distances.CosineSimilarity()(x))


@pytest.mark.parametrize("query", [torch.randn(4, 3).bfloat16(), torch.randn(4, 3)], ids=["bfloat16", "references"])
def test_everything_else_is_pmls(query):
    ref = None if query.dtype == torch.bfloat16 else torch.randn(6, 3)
    assert torch.equal(sharing(query)(query, ref), distances.CosineSimilarity()(query, ref))


def test_under_autocast_it_is_pmls():
    x = torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert sharing(x).of(x) is None
        assert torch.equal(sharing(x)(x), distances.CosineSimilarity()(x))


def test_a_batch_that_was_not_announced_or_is_over_is_pmls_even_when_changed_in_place(monkeypatch):
    calls = counted(monkeypatch)
    x = torch.randn(4, 3)
    distance = sharing(torch.randn(4, 3))
    distance(x)
    assert torch.equal(distance(x.mul_(-1).add_(1)), distances.CosineSimilarity()(x))
    distance.expect(x)
    distance.forget()
    assert distance.of(x) is None and calls == []


def test_only_a_plain_cosine_is_replaced():
    loss, miner = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()
    assert share(loss, miner) is loss.distance is miner.distance
    powered = losses.MultiSimilarityLoss(distance=distances.CosineSimilarity(power=2))
    subclass = type("Mine", (distances.CosineSimilarity,), {})()
    assert share(powered, losses.MarginLoss(), losses.ContrastiveLoss(distance=subclass), None) is None
    assert powered.distance.power == 2


def counted(monkeypatch):
    calls = []
    compute = CosineWithItself.forward
    monkeypatch.setattr(CosineWithItself, "forward", staticmethod(lambda ctx, x: calls.append(x) or compute(ctx, x)))
    return calls


def test_a_step_computes_an_auxiliary_space_once_and_leaves_the_users_objects_alone(monkeypatch):
    loss, miner = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()
    embedder = S2SDEmbedder(7, 3, (4, 5))
    loss_func = S2SDLoss(loss, embedder, miner=miner)
    calls = counted(monkeypatch)
    loss_func(embedder(torch.randn(12, 7)), LABELS).backward()
    assert [x.shape[1] for x in calls] == [4, 5]
    assert type(loss.distance) is type(miner.distance) is distances.CosineSimilarity


def test_nothing_of_a_step_is_kept_after_it():
    embedder = S2SDEmbedder(7, 3, (4,))
    loss_func = S2SDLoss(losses.MultiSimilarityLoss(), embedder, miner=miners.MultiSimilarityMiner())
    batch = embedder(torch.randn(12, 7))
    aux = weakref.ref(batch.aux[0])
    loss_func(batch, LABELS)
    copy.deepcopy(loss_func)
    del batch
    gc.collect()
    assert aux() is None
