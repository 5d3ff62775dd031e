"""Which process computes which space's objective, and which objectives may be computed by one process for all.

That values and gradients are those of one process is in test_distributed.py and test_process_group.py.
"""

import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

from pml_s2sd._spaces_by_process import SpacesByProcess, keeps_nothing, owners
from pml_s2sd.distributed import Gathering
from pml_s2sd.miners import RhoDistanceWeightedMiner

SIZES = {0: 128, 1: 512, 2: 1024, 3: 1536, 4: 2048}


@pytest.mark.parametrize(
    ("processes", "expected"),
    [(1, [0, 0, 0, 0, 0]), (2, [0, 0, 1, 0, 1]), (3, [0, 1, 0, 2, 1]), (8, [0, 4, 3, 2, 1])],
)
def test_the_first_process_has_the_base_space_and_the_largest_go_to_different_ones(processes, expected):
    assert owners(SIZES, processes) == dict(enumerate(expected))


def test_without_the_base_space_the_first_process_has_the_largest():
    assert owners({1: 6, 2: 10}, 2) == {1: 1, 2: 0}


class Counting(losses.ContrastiveLoss):
    """A user's own objective may keep what nobody else knows of."""


class CountingMiner(miners.MultiSimilarityMiner):
    pass


@pytest.mark.parametrize(
    ("loss", "miner"),
    [
        (losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
        (losses.MarginLoss(), RhoDistanceWeightedMiner(0.2)),
        (losses.TripletMarginLoss(distance=distances.LpDistance(), reducer=reducers.ThresholdReducer(low=0)), None),
        (losses.ContrastiveLoss(embedding_regularizer=regularizers.LpRegularizer()), None),
    ],
)
def test_pmls_objectives_without_parameters_keep_nothing(loss, miner):
    assert keeps_nothing(loss, miner)


@pytest.mark.parametrize(
    ("loss", "miner"),
    [
        (losses.ProxyAnchorLoss(4, 8), None),
        (losses.MarginLoss(learn_beta=True), None),
        (losses.CrossBatchMemory(losses.ContrastiveLoss(), 8), None),
        (losses.TripletMarginLoss(collect_stats=True), None),
        (losses.TripletMarginLoss(distance=distances.LpDistance(collect_stats=True)), None),
        (Counting(), None),
        (losses.ContrastiveLoss(), CountingMiner()),
    ],
)
def test_what_keeps_something_is_computed_by_every_process(loss, miner):
    assert not keeps_nothing(loss, miner)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_spaces_of_several_dtypes_and_one_that_gets_no_gradient(one_process):
    local = {0: torch.randn(4, 3, requires_grad=True), 2: torch.randn(4, 5).bfloat16().requires_grad_()}
    local[1] = torch.randn(4, 2, requires_grad=True)
    spaces = SpacesByProcess(Gathering(4), local, {space: x.detach() for space, x in local.items()})
    assert {space: x.dtype for space, x in spaces.own.items()} == {space: x.dtype for space, x in local.items()}
    own = {0: spaces.own[0].square().sum(), 2: 3 * spaces.own[2].sum(), 1: torch.zeros(())}
    values = spaces.values_of_all(own)
    assert {value.dtype for value in values.values()} == {torch.float32}
    assert [values[space].item() for space in own] == [own[space].float().item() for space in own]
    sum(values.values()).backward()
    torch.testing.assert_close(local[0].grad, 2 * local[0].detach())
    assert torch.equal(local[2].grad, torch.full((4, 5), 3.0).bfloat16())
    assert torch.equal(local[1].grad, torch.zeros(4, 2))


def test_nan_stays_nan(one_process):
    x = torch.full((2, 3), torch.nan, requires_grad=True)
    spaces = SpacesByProcess(Gathering(2), {0: x}, {0: x.detach()})
    assert spaces.values_of_all({0: spaces.own[0].sum()})[0].isnan()
