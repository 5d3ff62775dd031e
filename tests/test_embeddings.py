"""S2SDEmbeddings acts as its base embeddings, and shows all its tensors to pytrees."""

import copy
import operator
import pickle

import numpy as np
import pytest
import torch
from pml_cases import exported
from pytorch_metric_learning import distances, miners
from pytorch_metric_learning.miners import BaseMiner
from torch.utils import _pytree as pytree

from pml_s2sd import S2SDEmbeddings

LABELS = torch.arange(12) // 3


def make_batch(size=12):
    return S2SDEmbeddings(torch.randn(size, 4), (torch.randn(size, 6), torch.randn(size, 10)), torch.randn(size, 16))


def classes_of(name, module, base):
    found = [cls for cls in exported(module).values() if issubclass(cls, base) and "Base" not in cls.__name__]
    assert found
    return [pytest.param(cls, id=cls.__name__, marks=pytest.mark.pml(name, cls.__name__)) for cls in found]


def make_miner(cls):
    """An instance with as many tuples as it can give on random embeddings."""
    options = {
        "HDCMiner": {"filter_percentage": 0.5},
        "UniformHistogramMiner": {"num_bins": 10, "pos_per_bin": 5, "neg_per_bin": 5},
        "PairMarginMiner": {"pos_margin": 0.2, "neg_margin": 0.8},
    }
    return cls(**options.get(cls.__name__, {}))


@pytest.mark.parametrize("cls", classes_of("miners", miners, BaseMiner))
def test_every_miner_takes_it_as_its_base_embeddings(cls):
    batch = make_batch()
    torch.manual_seed(1)
    np.random.seed(1)
    found = make_miner(cls)(batch, LABELS)
    torch.manual_seed(1)
    np.random.seed(1)
    expected = make_miner(cls)(batch.embeddings, LABELS)
    assert len(found) == len(expected)
    assert sum(len(indices) for indices in expected) > 0
    for indices, expected_indices in zip(found, expected, strict=True):
        assert torch.equal(indices, expected_indices)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("cls", classes_of("distances", distances, torch.nn.Module))
def test_every_distance_takes_it_as_its_base_embeddings(cls, normalize):
    batch, other = make_batch(), make_batch(5)
    if cls is distances.BatchedDistance:
        blocks, expected_blocks = [], []
        cls(distances.LpDistance(), iter_fn=lambda mat, *_: blocks.append(mat), batch_size=4)(batch, other)
        cls(distances.LpDistance(), iter_fn=lambda mat, *_: expected_blocks.append(mat), batch_size=4)(
            batch.embeddings, other.embeddings
        )
        assert torch.equal(torch.cat(blocks), torch.cat(expected_blocks))
        return
    # CosineSimilarity normalizes always and takes no such option
    distance = cls() if cls is distances.CosineSimilarity else cls(normalize_embeddings=normalize)
    assert torch.equal(distance(batch), distance(batch.embeddings))
    assert torch.equal(distance(batch, other), distance(batch.embeddings, other.embeddings))


def test_torch_functions_modules_and_indexing_act_on_the_base_embeddings():
    batch = make_batch()
    z = batch.embeddings
    linear = torch.nn.Linear(4, 3)
    assert torch.equal(linear(batch), linear(z))
    assert torch.equal(torch.cat([batch, z, batch], dim=1), torch.cat([z, z, z], dim=1))
    assert torch.equal(torch.stack((batch, batch)), torch.stack((z, z)))
    assert torch.equal(torch.nn.functional.normalize(batch), torch.nn.functional.normalize(z))
    assert torch.equal(torch.cdist(batch, batch), torch.cdist(z, z))
    assert torch.equal(torch.where(batch > 0, batch, 0.0), z.clamp(min=0))
    assert torch.equal(torch.add(input=batch, other=batch), 2 * z)
    for index in (3, (slice(None), 2), (slice(2), slice(1, 3)), batch > 0):
        assert torch.equal(batch[index], z[index])
    assert len(batch) == 12
    assert [torch.equal(row, expected) for row, expected in zip(batch, z, strict=True)] == [True] * 12
    assert np.array_equal(np.asarray(batch), z.numpy())


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "matmul", "lt", "ge", "eq"])
def test_operators_act_on_the_base_embeddings_on_either_side(name):
    batch = S2SDEmbeddings(torch.randn(4, 4), (), torch.randn(4, 9))
    z, other = batch.embeddings, torch.randn(4, 4)
    operation = getattr(operator, name)
    assert torch.equal(operation(batch, other), operation(z, other))
    assert torch.equal(operation(other, batch), operation(other, z))
    assert torch.equal(operation(batch, batch), operation(z, z))
    assert torch.equal(-batch, -z)


def test_attributes_and_methods_are_those_of_the_base_embeddings():
    batch = make_batch()
    assert batch.shape == (12, 4)
    assert batch.size(0) == 12
    assert batch.ndim == 2
    assert batch.dtype == torch.float32
    assert batch.device == torch.device("cpu")
    assert torch.equal(batch.sum(dim=1), batch.embeddings.sum(dim=1))
    with pytest.raises(AttributeError, match="no_such_attribute"):
        operator.attrgetter("no_such_attribute")(batch)


@pytest.mark.parametrize("rows", [slice(2, 5), LABELS == 1, torch.tensor([4, 0]), [4, 0], np.array([4, 0])], ids=str)
def test_rows_are_taken_in_every_space(rows):
    batch = make_batch()
    taken = batch[rows]
    assert isinstance(taken, S2SDEmbeddings)
    for tensor, original in zip(pytree.tree_leaves(taken), pytree.tree_leaves(batch), strict=True):
        assert torch.equal(tensor, original[rows])


def test_batches_are_joined_in_every_space_and_with_tensors_in_the_base_space():
    batch, other = make_batch(), make_batch(5)
    for joined in (
        torch.cat([batch, other]),
        torch.concat((batch, other), dim=0),
        torch.cat(tensors=[batch, other]),
        torch.cat([batch, other], axis=0),
    ):
        assert isinstance(joined, S2SDEmbeddings)
        tensors = zip(pytree.tree_leaves(joined), pytree.tree_leaves(batch), pytree.tree_leaves(other), strict=True)
        assert all(torch.equal(tensor, torch.cat([first, second])) for tensor, first, second in tensors)
    mixed = torch.cat([batch, other.embeddings])
    assert isinstance(mixed, torch.Tensor)
    assert torch.equal(mixed, torch.cat([batch.embeddings, other.embeddings]))
    beside = torch.cat([batch, batch], axis=1)
    assert torch.equal(beside, torch.cat([batch.embeddings] * 2, dim=1))
    assert torch.equal(torch.cat([batch, other], out=torch.empty(0)), torch.cat([batch.embeddings, other.embeddings]))


def test_conversions_act_on_every_space():
    batch = make_batch()
    batch.embeddings.requires_grad_()
    for converted in (batch.double(), batch.to(torch.float64), batch.type_as(torch.zeros((), dtype=torch.float64))):
        assert isinstance(converted, S2SDEmbeddings)
        for tensor, original in zip(pytree.tree_leaves(converted), pytree.tree_leaves(batch), strict=True):
            assert torch.equal(tensor, original.double())
    assert not batch.detach().embeddings.requires_grad
    assert batch.embeddings.requires_grad


def test_gradients_reach_the_base_embeddings_alone():
    batch = make_batch()
    for tensor in (batch.embeddings, batch.features):
        tensor.requires_grad_()
    (3 * batch).sum().backward()
    assert torch.equal(batch.embeddings.grad, torch.full((12, 4), 3.0))
    assert batch.features.grad is None


def test_it_is_a_pytree_of_all_its_tensors():
    batch = make_batch()
    leaves, spec = pytree.tree_flatten(batch)
    assert [leaf.shape[1] for leaf in leaves] == [4, 6, 10, 16]
    rebuilt = pytree.tree_unflatten(leaves, spec)
    assert isinstance(rebuilt, S2SDEmbeddings)
    assert rebuilt.aux[1] is batch.aux[1]
    doubled = pytree.tree_map(lambda tensor: tensor.double(), batch)
    assert {leaf.dtype for leaf in pytree.tree_leaves(doubled)} == {torch.float64}
    assert isinstance(doubled.aux, tuple)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda batch: pickle.loads(pickle.dumps(batch))])
def test_copies_and_pickles_hold_all_spaces(copied):
    batch = make_batch()
    again = copied(batch)
    assert isinstance(again, S2SDEmbeddings)
    for tensor, expected in zip(pytree.tree_leaves(again), pytree.tree_leaves(batch), strict=True):
        assert torch.equal(tensor, expected)
    assert isinstance(hash(again), int)
