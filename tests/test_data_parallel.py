"""torch.nn.DataParallel around the embedder: the batch that it puts together from its replicas' parts."""

import copy
import pickle

import pytest
import torch
from pytorch_metric_learning import losses
from torch.nn.parallel import scatter_gather
from torch.utils import _pytree as pytree

from pml_s2sd import S2SDEmbedder, S2SDEmbeddings, s2sd

LABELS = torch.arange(9) // 2
FEATURES = torch.randn(9, 16, generator=torch.Generator().manual_seed(1))


class OnTheHost:
    """torch's own joining of tensors takes those of GPUs alone."""

    @staticmethod
    def apply(_, dim, *tensors):
        return torch.cat(tensors, dim)


@pytest.fixture
def outputs_joined(monkeypatch):
    monkeypatch.setattr(scatter_gather, "Gather", OnTheHost)
    return lambda outputs: scatter_gather.gather(outputs, "cpu")


def replicas_of(embedder, number=2):
    """As DataParallel marks its replicas, sharing the embedder's parameters."""
    replicas = [copy.copy(embedder) for _ in range(number)]
    for replica in replicas:
        replica._is_replica = True
    return replicas


@pytest.mark.parametrize("aux_sizes", [(), (6,), (6, 10)])
def test_the_parts_of_replicas_become_one_batch(outputs_joined, aux_sizes):
    embedder = S2SDEmbedder(16, 4, aux_sizes)
    parts = [replica(part) for replica, part in zip(replicas_of(embedder), FEATURES.split(5), strict=True)]
    batch, expected = outputs_joined(parts), embedder(FEATURES)
    assert type(batch) is S2SDEmbeddings
    torch.testing.assert_close(pytree.tree_leaves(batch), pytree.tree_leaves(expected))
    inside = outputs_joined([{"embedded": part, "number": part.sum()[None]} for part in parts])
    torch.testing.assert_close(inside["embedded"].features, expected.features)


def test_gradients_are_those_of_one_device(outputs_joined):
    embedder, loss_func = s2sd(
        losses.ContrastiveLoss(), 16, 4, "MSDF", aux_sizes=(6, 10), distill_weight=2.0, feature_delay=0
    )
    loss_func(embedder(FEATURES), LABELS).backward()
    expected = [p.grad.clone() for p in embedder.parameters()]
    embedder.zero_grad()
    parts = [replica(part) for replica, part in zip(replicas_of(embedder), FEATURES.split(5), strict=True)]
    loss_func(outputs_joined(parts), LABELS).backward()
    torch.testing.assert_close([p.grad for p in embedder.parameters()], expected)


def test_within_a_replica_it_is_a_batch(outputs_joined):
    """A model that goes on with the embedder's output, or computes the loss, does so in each replica."""
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), 16, 4, "MSDF", aux_sizes=(6,), distill_weight=2.0)
    (replica,) = replicas_of(embedder, 1)
    batch, expected = replica(FEATURES), embedder(FEATURES)
    assert isinstance(batch, S2SDEmbeddings)
    torch.testing.assert_close(loss_func(batch, LABELS), loss_func(expected, LABELS))
    assert torch.equal(2 * batch, 2 * expected.embeddings)
    for part in batch[2:5], torch.cat(batch.split(4))[2:5], pickle.loads(pickle.dumps(batch.detach()))[2:5]:
        torch.testing.assert_close(pytree.tree_leaves(part), pytree.tree_leaves(expected[2:5]))
    (alone,) = [outputs_joined([batch])]
    assert type(alone) is S2SDEmbeddings
    assert torch.equal(replica.eval()(FEATURES), embedder.eval()(FEATURES))


@pytest.mark.gpu
def test_on_gpus():
    """On one GPU twice, where there is one."""
    devices = list(range(torch.cuda.device_count()))
    embedder, loss_func = s2sd(
        losses.ContrastiveLoss(), 16, 4, "MSDF", aux_sizes=(6, 10), distill_weight=2.0, feature_delay=0
    )
    embedder, loss_func = embedder.cuda(), loss_func.cuda()
    features, labels = FEATURES.cuda(), LABELS.cuda()
    loss_func(embedder(features), labels).backward()
    expected = [p.grad.clone() for p in embedder.parameters()]
    embedder.zero_grad()
    model = torch.nn.DataParallel(embedder, device_ids=devices if len(devices) > 1 else [0, 0])
    batch = model(features)
    assert type(batch) is S2SDEmbeddings
    loss_func(batch, labels).backward()
    torch.testing.assert_close([p.grad for p in embedder.parameters()], expected, rtol=1e-3, atol=1e-4)
