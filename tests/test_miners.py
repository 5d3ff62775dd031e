"""RhoDistanceWeightedMiner: frequencies against the closed form, by chi-square tests on fixed seeds."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils import loss_and_miner_utils
from scipy import stats

from pml_s2sd import s2sd
from pml_s2sd.miners import RhoDistanceWeightedMiner

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3])
DRAWS = 4000


def batch(d=6):
    torch.manual_seed(1)
    return torch.nn.functional.normalize(torch.randn(len(LABELS), d) + 1.5)


def drawn(p, x, draws=DRAWS):
    torch.manual_seed(0)
    return [t.numpy() for t in RhoDistanceWeightedMiner(p, triplets_per_anchor=draws)(x, LABELS)]


def closed_form(x, anchor, cutoff=0.5, nonzero_loss_cutoff=1.4):
    """Probabilities of the negatives of an anchor, by Wu et al.'s density, in float64 and plain numpy."""
    x, labels = x.double().numpy(), LABELS.numpy()
    d = x.shape[1]
    weights = np.zeros(len(x))
    for j in range(len(x)):
        distance = np.linalg.norm(x[anchor] - x[j])
        if labels[j] != labels[anchor] and distance < nonzero_loss_cutoff:
            D = max(distance, cutoff)
            weights[j] = 1 / (D ** (d - 2) * (1 - D**2 / 4) ** ((d - 3) / 2))
    return weights / weights.sum()


def fits(counts, probabilities):
    """Whether counts are plausible, at a level at which one test in 10,000 fails by chance."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    if possible.sum() == 1:
        return True
    return stats.chisquare(counts[possible], counts.sum() * probabilities[possible]).pvalue > 1e-4


@pytest.mark.parametrize("anchor", range(8))
def test_negatives_follow_the_density_and_positives_are_uniform(anchor):
    x = batch()
    a, p, n = drawn(0.0, x)
    of_anchor = a == anchor
    assert of_anchor.sum() == DRAWS
    assert fits(np.bincount(n[of_anchor], minlength=9), closed_form(x, anchor))
    others = ((LABELS[anchor] == LABELS) & (torch.arange(9) != anchor)).double().numpy()
    assert fits(np.bincount(p[of_anchor], minlength=9), others / others.sum())


def test_the_statistic_sees_a_wrong_density():
    x = batch()
    a, _, n = drawn(0.0, x)
    wrong = closed_form(x, 0, cutoff=1.0)
    assert not fits(np.bincount(n[a == 0], minlength=9), wrong)


@pytest.mark.parametrize("share", [0.15, 0.4])
def test_a_share_p_of_the_triplets_is_turned_against_the_class(share):
    a, p, n = drawn(share, batch())
    turned = a == p
    assert stats.binomtest(int(turned.sum()), len(a), share).pvalue > 1e-4
    labels = LABELS.numpy()
    assert (labels[n[turned]] == labels[a[turned]]).all() and (n[turned] != a[turned]).all()
    assert (labels[n[~turned]] != labels[a[~turned]]).all()
    assert (labels[p] == labels[a]).all()
    first = turned & (a == 0)
    assert fits(np.bincount(n[first], minlength=9), np.array([0, 0.5, 0.5, 0, 0, 0, 0, 0, 0]))


def test_as_pmls_miner_in_a_low_dimension():
    """There PML's weights do not underflow: both miners' negatives have the same distribution."""
    x = batch()
    torch.manual_seed(3)
    pml = miners.DistanceWeightedMiner(cutoff=0.5)
    counts = np.zeros((9, 9))
    for _ in range(600):
        a, _, n = pml(x, LABELS)
        np.add.at(counts, (a.numpy(), n.numpy()), 1)
    assert all(fits(counts[anchor], closed_form(x, anchor)) for anchor in range(8))


def test_no_anchor_is_lost_in_1024_dimensions():
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(112, 1024) + torch.linspace(0.5, 3, 112)[:, None])
    labels = torch.arange(112) // 2
    assert len(RhoDistanceWeightedMiner(0.0)(x, labels)[0]) == 112
    assert len(torch.unique(miners.DistanceWeightedMiner(0.5)(x, labels)[0])) < 112


def test_the_same_seed_draws_the_same():
    torch.manual_seed(5)
    first = RhoDistanceWeightedMiner(0.3)(batch(), LABELS)
    again = drawn(0.3, batch(), draws=50), drawn(0.3, batch(), draws=50)
    assert all((one == other).all() for one, other in zip(*again, strict=True))
    assert len(first[0]) == 8


def test_an_anchor_alone_in_its_class_or_without_a_negative_is_left_out():
    alone, _, _ = RhoDistanceWeightedMiner(0.0)(batch(), torch.arange(9))
    assert len(alone) == 0
    x = torch.tensor([[1.0, 0, 0], [1, 0, 0], [-1, 0, 0], [-1, 0, 0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert len(RhoDistanceWeightedMiner(0.0)(x, labels)[0]) == 0
    assert len(RhoDistanceWeightedMiner(1.0)(x, labels)[0]) == 4
    assert len(RhoDistanceWeightedMiner(1.0)(x, torch.zeros(4, dtype=torch.long))[0]) == 4


def test_references_are_mined_with_p_0_and_refused_otherwise():
    x = batch()
    a, p, n = RhoDistanceWeightedMiner(0.0)(x[:3], LABELS[:3], x, LABELS.clone())
    assert a.tolist() == [0, 1, 2] and (LABELS[p] == 0).all() and (LABELS[n] != 0).all()
    with pytest.raises(ValueError, match="mine without references, or set p=0"):
        RhoDistanceWeightedMiner(0.2)(x[:3], LABELS[:3], x, LABELS.clone())


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_p_is_a_probability(p):
    with pytest.raises(ValueError, match="p "):
        RhoDistanceWeightedMiner(p)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes(dtype):
    a, _, n = RhoDistanceWeightedMiner(0.0)(batch().to(dtype), LABELS)
    assert len(a) == 8 and (LABELS[n] != LABELS[a]).all()


def test_each_space_of_r_margin_mines_for_itself():
    embedder, loss_func = s2sd(
        losses.MarginLoss(beta=0.6), 16, 4, "MSD", aux_sizes=(8, 1024), miner=RhoDistanceWeightedMiner(0.4)
    )
    x = torch.randn(len(LABELS), 16)
    loss_func(embedder(x), LABELS).backward()
    assert all(parameter.grad.isfinite().all() for parameter in embedder.parameters())
    triplets = loss_func.aux_miners["a2"](embedder(x).aux[1], LABELS)
    assert len(loss_and_miner_utils.convert_to_triplets(triplets, LABELS)[0]) >= 1
