"""PML's loss wrappers inside S2SDLoss, nested as PML allows, and S2SDLoss inside them."""

import pytest
import torch
from pml_cases import CLASSES, DISTRIBUTED_WRAPPER_NEEDS_PROCESSES, LABELS
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from pml_s2sd import S2SDEmbedder, S2SDLoss

FEATURES, SIZES = 16, (5, 7)


def build(loss, **options):
    embedder = S2SDEmbedder(FEATURES, SIZES[0], SIZES[1:])
    return embedder, S2SDLoss(loss, embedder, **{"distill_weight": 50.0, **options})


def spaces(batch):
    return [batch.embeddings, *batch.aux]


def assert_terms(loss_func, expected):
    """`expected`: the objective's value in the base space and in the auxiliary one."""
    for name, value in zip(("base", "aux"), expected, strict=True):
        torch.testing.assert_close(loss_func.terms[name], value.detach(), check_dtype=False)


@pytest.mark.pml("losses", "CrossBatchMemory")
def test_cross_batch_memory_keeps_a_queue_per_space():
    def make(size):
        return losses.CrossBatchMemory(losses.ContrastiveLoss(), size, 30, miner=miners.MultiSimilarityMiner())

    embedder, loss_func = build(make(SIZES[0]))
    alone = [make(size) for size in SIZES]
    for _ in range(4):  # the queues fill and wrap around
        batch = embedder(torch.randn(12, FEATURES))
        loss_func(batch, LABELS)
        assert_terms(loss_func, [memory(x, LABELS) for memory, x in zip(alone, spaces(batch), strict=True)])
    for ours, theirs in zip([loss_func.base_loss, *loss_func.aux_losses.values()], alone, strict=True):
        assert torch.equal(ours.embedding_memory, theirs.embedding_memory)
        assert ours.queue_idx == theirs.queue_idx


@pytest.mark.pml("losses", "CrossBatchMemory")
def test_enqueue_mask_reaches_every_space():
    def make(size):
        return losses.CrossBatchMemory(losses.NTXentLoss(), size, 30)

    embedder, loss_func = build(make(SIZES[0]))
    batch = embedder(torch.randn(12, FEATURES))
    mask = torch.arange(12) >= 6
    labels = torch.arange(12) % 6
    loss_func(batch, labels, enqueue_mask=mask)
    assert_terms(loss_func, [make(x.shape[1])(x, labels, enqueue_mask=mask) for x in spaces(batch)])
    assert loss_func.aux_losses.a1.queue_idx == 6


@pytest.mark.pml("losses", "SelfSupervisedLoss")
@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised_loss(symmetric):
    embedder, loss_func = build(losses.SelfSupervisedLoss(losses.NTXentLoss(), symmetric=symmetric))
    batch, augmented = embedder(torch.randn(12, FEATURES)), embedder(torch.randn(12, FEATURES))
    loss_func(batch, ref_emb=augmented).backward()
    alone = losses.SelfSupervisedLoss(losses.NTXentLoss(), symmetric=symmetric)
    assert_terms(loss_func, [alone(x, r) for x, r in zip(spaces(batch), spaces(augmented), strict=True)])
    assert loss_func.terms["distill"] > 0


@pytest.mark.pml("losses", "MultipleLosses")
@pytest.mark.parametrize("keyed", [False, True])
def test_multiple_losses_with_their_own_miners(keyed):
    def make(size):
        parts = {"triplet": losses.TripletMarginLoss(), "arcface": losses.ArcFaceLoss(CLASSES, size)}
        mined = {"triplet": miners.BatchHardMiner(), "arcface": None}
        if keyed:
            return losses.MultipleLosses(parts, {"triplet": mined["triplet"]}, {"triplet": 1, "arcface": 0.5})
        return losses.MultipleLosses(list(parts.values()), list(mined.values()), [1, 0.5])

    embedder, loss_func = build(make(SIZES[0]))
    batch = embedder(torch.randn(12, FEATURES))
    loss_func(batch, LABELS).backward()
    expected = []
    for loss, x in zip([loss_func.base_loss, *loss_func.aux_losses.values()], spaces(batch), strict=True):
        arcface = loss.losses["arcface" if keyed else 1]
        mined = miners.BatchHardMiner()(x, LABELS)
        expected.append(losses.TripletMarginLoss()(x, LABELS, mined) + 0.5 * arcface(x, LABELS))
        assert arcface.W.shape == (x.shape[1], CLASSES)
        assert arcface.W.grad.abs().max() > 0
    assert_terms(loss_func, expected)


@pytest.mark.pml("losses", "MultipleLosses")
@pytest.mark.filterwarnings("ignore:DistributedLossWrapper is being used in a non-distributed setting")
def test_wrappers_nest_as_pml_allows():
    def make(size):
        memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), size, 30)
        proxies = losses.ProxyAnchorLoss(CLASSES, size)
        return losses.MultipleLosses(
            [memory, proxies if DISTRIBUTED_WRAPPER_NEEDS_PROCESSES else DistributedLossWrapper(proxies)]
        )

    embedder, loss_func = build(make(SIZES[0]))
    batch = embedder(torch.randn(12, FEATURES))
    loss_func(batch, LABELS).backward()
    expected = []
    for loss, x in zip([loss_func.base_loss, *loss_func.aux_losses.values()], spaces(batch), strict=True):
        proxies = getattr(loss.losses[1], "loss", loss.losses[1])
        alone = losses.CrossBatchMemory(losses.ContrastiveLoss(), x.shape[1], 30)
        expected.append(alone(x, LABELS) + proxies(x, LABELS))
    assert_terms(loss_func, expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss: losses.CrossBatchMemory(loss, SIZES[0]),
        losses.SelfSupervisedLoss,
        DistributedLossWrapper,
    ],
)
def test_s2sd_inside_a_wrapper_is_refused_by_pml(wrap):
    with pytest.raises(Exception, match=r"not supported for S2SDLoss|must extend BaseMetricLossFunction"):
        wrap(build(losses.ContrastiveLoss())[1])
