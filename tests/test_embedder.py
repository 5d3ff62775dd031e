"""S2SDEmbedder: shapes, pooling, eval mode, deploy, torch.compile, own heads."""

import pytest
import torch
from torch.nn.utils import parametrizations, prune
from torch.utils import _pytree as pytree

from pml_s2sd import S2SDEmbedder, S2SDEmbeddings


@pytest.mark.parametrize("shape", [(5, 16), (5, 16, 7, 7), (5, 16, 3, 1), (1, 16)])
@pytest.mark.parametrize("aux_sizes", [(), (6,), (6, 10, 3)])
def test_output_in_training_mode(shape, aux_sizes):
    embedder = S2SDEmbedder(16, 4, aux_sizes)
    features = torch.randn(shape)
    batch = embedder(features)
    pooled = features.flatten(2).mean(2) if len(shape) == 4 else features
    assert isinstance(batch, S2SDEmbeddings)
    torch.testing.assert_close(batch.features, pooled)
    torch.testing.assert_close(batch.embeddings, pooled @ embedder.head.weight.T + embedder.head.bias)
    assert [tuple(a.shape) for a in batch.aux] == [(shape[0], size) for size in aux_sizes]
    for a, head in zip(batch.aux, embedder.aux_heads, strict=True):
        first, last = head[0], head[2]
        hidden = (pooled @ first.weight.T + first.bias).clamp(min=0)
        torch.testing.assert_close(a, hidden @ last.weight.T + last.bias)
        assert first.weight.shape == (a.shape[1], 16)
        assert last.weight.shape == (a.shape[1], a.shape[1])


def test_aggregate_pooling_feeds_the_auxiliary_heads_and_leaves_the_base_head():
    embedder = S2SDEmbedder(16, 4, (6,), aggregate_pooling=True)
    maps = torch.randn(5, 16, 7, 7)
    average, maximum = maps.flatten(2).mean(2), maps.flatten(2).max(2).values
    batch = embedder(maps)
    torch.testing.assert_close(batch.features, average + maximum)
    torch.testing.assert_close(batch.embeddings, embedder.head(average))
    torch.testing.assert_close(batch.aux[0], embedder.aux_heads[0](average + maximum))
    torch.testing.assert_close(embedder.eval()(maps), embedder.head(average))
    assert embedder.eval()(average).shape == (5, 4)  # pooled features serve at test time


@pytest.mark.parametrize(
    "head", [None, torch.nn.Sequential(torch.nn.Linear(16, 9), torch.nn.GELU(), torch.nn.Linear(9, 4))]
)
@pytest.mark.parametrize("aggregate_pooling", [False, True])
def test_deploy_is_the_base_head_alone_bit_for_bit(head, aggregate_pooling):
    embedder = S2SDEmbedder(16, 4, (6, 10), head=head, aggregate_pooling=aggregate_pooling)
    deployed = embedder.deploy()
    for shape in [(5, 16), (5, 16, 7, 7)]:
        features = torch.randn(shape)
        assert torch.equal(deployed(features), embedder.eval()(features))
    assert not deployed.training
    assert sum(p.numel() for p in deployed.parameters()) == sum(p.numel() for p in embedder.head.parameters())
    assert not [name for name, _ in deployed.named_parameters() if "aux" in name]


def test_deploy_is_a_copy_and_leaves_training_as_it_was():
    embedder = S2SDEmbedder(16, 4, (6,))
    deployed = embedder.deploy()
    assert embedder.training
    with torch.no_grad():
        embedder.head.weight.add_(1)
    assert not torch.equal(deployed.head.weight, embedder.head.weight)


class Remembering(torch.nn.Module):
    """Keeps what it computed last, graph and all."""

    def __init__(self):
        super().__init__()
        self.linear, self.last = torch.nn.Linear(16, 4), {}

    def forward(self, features):
        self.last["z"] = [self.linear(features)]
        return self.last["z"][0]


def linear():
    return torch.nn.Linear(16, 4)


COMPUTED_WEIGHTS = {
    "weight norm": lambda: torch.nn.utils.weight_norm(linear()),
    "weight norm of all": lambda: torch.nn.utils.weight_norm(linear(), dim=None),
    "weight norm inside": lambda: torch.nn.Sequential(
        torch.nn.Linear(16, 8), torch.nn.GELU(), torch.nn.utils.weight_norm(torch.nn.Linear(8, 4, bias=False))
    ),
    "spectral norm": lambda: torch.nn.utils.spectral_norm(linear()),
    "pruned": lambda: prune.l1_unstructured(linear(), "weight", 0.5),
    "pruned twice": lambda: prune.random_structured(prune.l1_unstructured(linear(), "weight", 0.5), "weight", 1, dim=1),
    "bias pruned": lambda: prune.l1_unstructured(linear(), "bias", 2),
    "parametrized weight norm": lambda: parametrizations.weight_norm(linear()),
    "parametrized spectral norm": lambda: parametrizations.spectral_norm(linear()),
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "remembering": Remembering,
    "lazy": lambda: torch.nn.LazyLinear(4),
}


def storages(module):
    tensors = [tensor for part in module.modules() for tensor in [*vars(part).values(), *part.state_dict().values()]]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if isinstance(tensor, torch.Tensor)}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("make", COMPUTED_WEIGHTS.values(), ids=COMPUTED_WEIGHTS)
def test_deploy_of_a_head_whose_weight_is_computed(make):
    """The weight that a training step leaves in the head has a graph behind it."""
    embedder = S2SDEmbedder(16, 4, (6,), head=make())
    features = torch.randn(5, 16)

    def train():
        embedder.train()(features).embeddings.square().sum().backward()
        with torch.no_grad():
            for p in embedder.head.parameters():
                p.sub_(0.1 * p.grad)
        embedder(features)

    train()
    deployed = embedder.deploy()
    assert embedder.head.training
    expected = embedder.eval()(features)
    assert torch.equal(deployed(features), expected)
    assert not storages(deployed) & storages(embedder)
    train()
    assert torch.equal(deployed(features), expected)
    assert not torch.equal(embedder.eval()(features), expected)


def test_base_head_starts_like_the_plain_linear_layer_of_the_same_seed():
    torch.manual_seed(3)
    linear = torch.nn.Linear(16, 4)
    torch.manual_seed(3)
    embedder = S2SDEmbedder(16, 4, (6, 10))
    assert torch.equal(embedder.head.weight, linear.weight)
    assert torch.equal(embedder.head.bias, linear.bias)


@pytest.mark.slow
@pytest.mark.parametrize("aggregate_pooling", [False, True])
def test_compiles_as_one_graph_with_gradients_in_every_head(aggregate_pooling):
    embedder = S2SDEmbedder(16, 4, (6, 10), aggregate_pooling=aggregate_pooling)
    compiled = torch.compile(embedder, fullgraph=True)
    features = torch.randn(5, 16, 3, 3)
    batch, expected = compiled(features), embedder(features)
    assert isinstance(batch, S2SDEmbeddings)
    for tensor, expected_tensor in zip(pytree.tree_leaves(batch), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(tensor, expected_tensor)
    sum(a.pow(2).sum() for a in (batch.embeddings, *batch.aux)).backward()
    gradients = [p.grad.clone() for p in embedder.parameters()]
    embedder.zero_grad()
    sum(a.pow(2).sum() for a in (expected.embeddings, *expected.aux)).backward()
    for gradient, p in zip(gradients, embedder.parameters(), strict=True):
        assert p.grad.abs().max() > 0
        torch.testing.assert_close(gradient, p.grad)


def test_transforms_see_every_space():
    """torch.func takes a batch for the pytree that it is."""
    embedder = S2SDEmbedder(16, 4, (6,), aux_head="linear")
    features = torch.randn(3, 5, 16)
    stacked, expected = torch.func.vmap(embedder)(features), embedder(features.flatten(0, 1))
    torch.testing.assert_close(stacked.aux[0].flatten(0, 1), expected.aux[0])
    jacobian = torch.func.jacrev(lambda x: embedder(x[None])[0])(features[0, 0])
    torch.testing.assert_close(jacobian.embeddings, embedder.head.weight)
    torch.testing.assert_close(jacobian.aux[0], embedder.aux_heads[0].weight)
    torch.testing.assert_close(jacobian.features, torch.eye(16))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((0, 4), {}, ValueError, "in_features must be at least 1, got 0"),
        ((16, -1), {}, ValueError, "embedding_size must be at least 1, got -1"),
        ((16, 4.0), {}, TypeError, "embedding_size must be an int, got float"),
        ((16, True), {}, TypeError, "embedding_size must be an int, got bool"),
        ((16, 4, 8), {}, TypeError, r"write \(8,\)"),
        ((16, 4, (8, 0)), {}, ValueError, "each of aux_sizes must be at least 1, got 0"),
        ((16, 4, ("8",)), {}, TypeError, "each of aux_sizes must be an int, got str"),
        ((16, 4), {"head": lambda x: x}, TypeError, r"head must be a torch.nn.Module from \(B, 16\) to \(B, 4\)"),
    ],
)
def test_wrong_arguments(arguments, options, error, words):
    with pytest.raises(error, match=words):
        S2SDEmbedder(*arguments, **options)


@pytest.mark.parametrize(
    ("features", "error", "words"),
    [
        (torch.randn(5, 15), ValueError, r"\(B, 16\).*got shape \(5, 15\)"),
        (torch.randn(16), ValueError, r"got shape \(16,\)"),
        (torch.randn(5, 16, 7), ValueError, r"got shape \(5, 16, 7\)"),
        (torch.randn(5, 16, 0, 7), ValueError, r"got shape \(5, 16, 0, 7\)"),
        (torch.ones(5, 16, dtype=torch.int64), TypeError, "floating-point dtype, got torch.int64"),
        ([[1.0] * 16], TypeError, "got list"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_wrong_features(features, error, words, training):
    embedder = S2SDEmbedder(16, 4, (6,)).train(training)
    with pytest.raises(error, match=words):
        embedder(features)
    with pytest.raises(error, match=words):
        embedder.deploy()(features)


def test_aggregate_pooling_says_that_it_needs_feature_maps():
    embedder = S2SDEmbedder(16, 4, (6,), aggregate_pooling=True)
    with pytest.raises(ValueError, match=r"needs feature maps of shape \(B, 16, H, W\), got shape \(5, 16\).*MSDF"):
        embedder(torch.randn(5, 16))


def test_a_head_of_another_size_is_named():
    embedder = S2SDEmbedder(16, 4, (6,), head=torch.nn.Linear(16, 5))
    with pytest.raises(ValueError, match=r"head returned shape \(3, 5\), expected \(3, 4\)"):
        embedder(torch.randn(3, 16))
