"""SharedCosine, SharedEuclidean: PML's matrices and gradients, computed once, and kept no longer than a step."""

import copy
import gc
import weakref

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners

from pml_s2sd import S2SDEmbedder, S2SDLoss, _shared_similarities, distillation
from pml_s2sd._shared_similarities import CDIST_DIFFERENCES, SharedCosine, SharedEuclidean, SharedSimilarities, cosines

LABELS = torch.arange(12) // 2


def sharing(x):
    distance = SharedCosine()
    distance.begin()
    distance(x)
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
    assert torch.autograd.gradcheck(cosines, x)
    assert torch.autograd.gradgradcheck(cosines, x)


def test_with_proxies_it_is_pmls():
    x, proxies = (torch.randn(n, 5, dtype=torch.float64) for n in (12, 7))
    assert torch.equal(sharing(x)(x, proxies), distances.CosineSimilarity()(x, proxies))


@pytest.mark.parametrize("B", [CDIST_DIFFERENCES, CDIST_DIFFERENCES + 1, 40])
def test_euclidean_matrix_and_gradient_are_those_of_pml(B):
    x = 3 * torch.randn(B, 5, dtype=torch.float64)
    x[1] = 0
    x[3] = 2 * x[2]  # at a distance of 0
    x.requires_grad_()
    into_D = torch.randn(B, B, dtype=torch.float64)
    into_D[:, 1] = into_D[1] = 0  # PML's gradient into a zero vector is that of dividing by 1e-12
    into_D[2, 3] = into_D[3, 2] = 0  # and of rounding where a distance is 0
    found, expected = SharedEuclidean(sharing(x))(x), distances.LpDistance()(x)
    assert found.diagonal().abs().max() == 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)  # √(rounding) at 0
    torch.testing.assert_close(found**2, expected**2, rtol=0, atol=1e-14)
    gradients = [torch.autograd.grad(D, x, into_D.fill_diagonal_(0))[0] for D in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_euclidean_distances_of_near_duplicates_in_a_small_batch_are_as_exact_as_pmls():
    x = torch.randn(CDIST_DIFFERENCES, 8)
    x[1] = x[0] + 1e-5
    assert torch.equal(SharedEuclidean(sharing(x))(x), distances.LpDistance()(x))


def test_equal_vectors_have_a_finite_gradient_also_of_their_distance():
    x = torch.ones(40, 3, requires_grad=True)
    SharedEuclidean(sharing(x))(x).sum().backward()
    assert x.grad.abs().max() < 1e-6


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


def test_other_dtypes_are_pmls():
    x = torch.randn(4, 3).bfloat16()
    assert torch.equal(sharing(x)(x), distances.CosineSimilarity()(x))


def test_under_autocast_it_is_pmls():
    x = torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert sharing(x).known(x) is None
        assert torch.equal(sharing(x)(x), distances.CosineSimilarity()(x))


def test_a_batch_that_is_not_the_first_or_is_over_is_pmls_even_when_changed_in_place(monkeypatch):
    calls = counted(monkeypatch)
    x = torch.randn(4, 3)
    distance = SharedCosine()
    distance(x)
    assert torch.equal(distance(x.mul_(-1).add_(1)), distances.CosineSimilarity()(x))
    other = torch.randn(4, 3)
    distance.begin()
    distance(other)
    distance(x)
    assert torch.equal(distance(x.mul_(-1).add_(1)), distances.CosineSimilarity()(x))
    distance.end()
    distance(other)
    assert distance.known(other) is None and [x is other for x in calls] == [True]


def test_only_plain_cosine_and_euclidean_distances_are_replaced():
    loss, miner = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()
    SharedSimilarities([(loss, miner)])
    assert type(loss.distance) is SharedCosine and loss.distance is miner.distance
    margin, weighted = losses.MarginLoss(), miners.DistanceWeightedMiner()
    SharedSimilarities([(margin, weighted)])
    assert type(margin.distance) is SharedEuclidean and margin.distance.cosine is weighted.distance.cosine
    powered = losses.MultiSimilarityLoss(distance=distances.CosineSimilarity(power=2))
    squared = losses.MarginLoss(distance=distances.LpDistance(power=2))
    subclass = type("Mine", (distances.CosineSimilarity,), {})()
    others = powered, squared, losses.ContrastiveLoss(distance=subclass)
    before = [loss.distance for loss in others]
    SharedSimilarities([(loss, None) for loss in others])
    assert all(loss.distance is distance for loss, distance in zip(others, before, strict=True))


def counted(monkeypatch):
    calls = []
    monkeypatch.setattr(_shared_similarities, "cosines", lambda x: calls.append(x) or cosines(x))
    return calls


@pytest.mark.parametrize(
    ("loss", "miner"),
    [
        (losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
        (losses.MarginLoss(), miners.DistanceWeightedMiner()),
    ],
)
def test_a_step_computes_an_auxiliary_space_once_and_leaves_the_users_objects_alone(monkeypatch, loss, miner):
    distance = type(loss.distance)
    embedder = S2SDEmbedder(7, 3, (4, 5))
    loss_func = S2SDLoss(loss, embedder, miner=miner, distill_weight=50.0)
    calls = counted(monkeypatch)
    loss_func(embedder(torch.randn(40, 7)), torch.arange(40) // 2).backward()
    assert [x.shape[1] for x in calls] == [4, 5]
    assert type(loss.distance) is type(miner.distance) is distance


def test_nothing_of_a_step_is_kept_after_it():
    embedder = S2SDEmbedder(7, 3, (4,))
    loss_func = S2SDLoss(
        losses.MultiSimilarityLoss(), embedder, miner=miners.MultiSimilarityMiner(), distill_weight=50.0
    )
    batch = embedder(torch.randn(12, 7))
    aux = weakref.ref(batch.aux[0])
    loss_func(batch, LABELS)
    copy.deepcopy(loss_func)
    del batch
    gc.collect()
    assert aux() is None


@pytest.mark.parametrize("plain_entries", [100, 2**22])
def test_a_space_s_similarities_are_not_made_whole_for_distillation_alone(plain_entries, monkeypatch):
    """An objective with proxies does not ask for them, and in blocks of rows nobody needs them whole."""
    monkeypatch.setattr(distillation, "WHOLE_ENTRIES", plain_entries)
    asked = counted(monkeypatch)

    def terms(objective):
        torch.manual_seed(0)
        embedder = S2SDEmbedder(16, 8, (12, 20))
        loss_func = S2SDLoss(objective, embedder, distill_weight=50.0)
        torch.manual_seed(1)
        loss_func(embedder(torch.randn(32, 16)), torch.arange(32) % 4).backward()
        return loss_func.terms["distill"]

    apart = terms(losses.ProxyAnchorLoss(4, 8))
    assert not asked
    shared = terms(losses.MultiSimilarityLoss())
    assert len(asked) == 2  # once a space
    torch.testing.assert_close(apart, shared)
