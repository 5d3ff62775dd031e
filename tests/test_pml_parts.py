"""Every PML miner, distance, reducer and regularizer, as part of a wrapped objective or of S2SDLoss itself."""

import numpy as np
import pytest
import torch
from formula import s2sd as plain_s2sd
from pml_cases import CLASSES, LABELS, each, exported
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

from pml_s2sd import S2SDEmbedder, S2SDLoss

FEATURES, SIZES = 16, (5, 7, 9)

MINERS = {
    "AngularMiner": lambda: miners.AngularMiner(angle=5),
    "BatchEasyHardMiner": miners.BatchEasyHardMiner,
    "BatchHardMiner": miners.BatchHardMiner,
    "DistanceWeightedMiner": miners.DistanceWeightedMiner,
    "EmbeddingsAlreadyPackagedAsTriplets": miners.EmbeddingsAlreadyPackagedAsTriplets,
    "HDCMiner": lambda: miners.HDCMiner(filter_percentage=0.4),
    "MultiSimilarityMiner": miners.MultiSimilarityMiner,
    "PairMarginMiner": lambda: miners.PairMarginMiner(pos_margin=0.2, neg_margin=1.3),
    "TripletMarginMiner": miners.TripletMarginMiner,
    "UniformHistogramMiner": lambda: miners.UniformHistogramMiner(num_bins=5, pos_per_bin=3, neg_per_bin=3),
}
DISTANCES = {
    "CosineSimilarity": distances.CosineSimilarity,
    "DotProductSimilarity": distances.DotProductSimilarity,
    "LpDistance": distances.LpDistance,
    "SNRDistance": distances.SNRDistance,
}
CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 1.5])
REDUCERS = {
    "AvgNonZeroReducer": reducers.AvgNonZeroReducer,
    "ClassWeightedReducer": lambda: reducers.ClassWeightedReducer(CLASS_WEIGHTS),
    "DivisorReducer": reducers.DivisorReducer,
    "MeanReducer": reducers.MeanReducer,
    "MultipleReducers": lambda: reducers.MultipleReducers({"pos_loss": reducers.SumReducer()}),
    "PerAnchorReducer": reducers.PerAnchorReducer,
    "SumReducer": reducers.SumReducer,
    "ThresholdReducer": lambda: reducers.ThresholdReducer(low=0.1),
}
EMBEDDING_REGULARIZERS = {
    "LpRegularizer": regularizers.LpRegularizer,
    "ZeroMeanRegularizer": regularizers.ZeroMeanRegularizer,
}
WEIGHT_REGULARIZERS = {
    "CenterInvariantRegularizer": regularizers.CenterInvariantRegularizer,
    "RegularFaceRegularizer": regularizers.RegularFaceRegularizer,
    "SparseCentersRegularizer": lambda: regularizers.SparseCentersRegularizer(CLASSES, centers_per_class=10),
}


def make_embedder():
    torch.manual_seed(0)
    return S2SDEmbedder(FEATURES, SIZES[0], SIZES[1:]).double()


def features():
    return torch.randn(len(LABELS), FEATURES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def seed_everything(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)


def assert_equals_formula(embedder, loss_func, objectives, *arguments):
    """Value, and gradients of the embedder, of one call against the plain formula."""
    batch = embedder(features())
    seed_everything(5)
    loss = loss_func(batch, LABELS, *arguments)
    seed_everything(5)
    expected = plain_s2sd(objectives, batch.embeddings, batch.aux, batch.features, loss_func.distill_weight, 0.0, 1.0)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    found = torch.autograd.grad(loss, embedder.parameters(), retain_graph=True)
    wanted = torch.autograd.grad(expected, embedder.parameters())
    for gradient, expected_gradient in zip(found, wanted, strict=True):
        assert torch.isfinite(gradient).all()
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("module", "listed", "others"),
    [
        (miners, MINERS, {"BaseMiner"}),
        (distances, DISTANCES, {"BaseDistance", "BatchedDistance"}),
        (reducers, REDUCERS, {"BaseReducer", "DoNothingReducer"}),
        (regularizers, {**EMBEDDING_REGULARIZERS, **WEIGHT_REGULARIZERS}, {"BaseRegularizer"}),
    ],
    ids=["miners", "distances", "reducers", "regularizers"],
)
def test_no_class_is_missing(module, listed, others):
    assert set(exported(module)) == set(listed) | others


ABSTRACT = {
    "miners": (miners.BaseMiner, "miner"),
    "distances": (distances.BaseDistance, "distance"),
    "reducers": (reducers.BaseReducer, "reducer"),
    "regularizers": (regularizers.BaseRegularizer, "embedding_regularizer"),
}


@pytest.mark.parametrize(
    ("cls", "option"),
    [
        pytest.param(*row, id=row[0].__name__, marks=pytest.mark.pml(of, row[0].__name__))
        for of, row in ABSTRACT.items()
    ],
)
def test_abstract_classes_compute_nothing(cls, option):
    embedder = make_embedder()
    if option in ("miner", "distance"):
        loss_func = S2SDLoss(losses.ContrastiveLoss(), embedder, distill_weight=50.0, **{option: cls()})
    else:
        loss_func = S2SDLoss(losses.ContrastiveLoss(**{option: cls()}), embedder, distill_weight=50.0)
    with pytest.raises(NotImplementedError):
        loss_func(embedder(features()), LABELS)
    assert loss_func.calls == 0


@pytest.mark.parametrize("name", each("miners", MINERS))
def test_a_miner_given_to_the_loss_mines_in_each_space(name):
    embedder = make_embedder()
    loss_func = S2SDLoss(losses.TripletMarginLoss(), embedder, miner=MINERS[name](), distill_weight=2.0)
    objectives = [lambda x: losses.TripletMarginLoss()(x, LABELS, MINERS[name]()(x, LABELS))] * 3
    assert_equals_formula(embedder, loss_func, objectives)


@pytest.mark.parametrize("name", each("miners", MINERS))
def test_a_miner_called_by_the_user_gives_its_tuples_to_every_space(name):
    embedder = make_embedder()
    loss_func = S2SDLoss(losses.TripletMarginLoss(), embedder, distill_weight=2.0)
    seed_everything(1)
    tuples = MINERS[name]()(embedder(features()), LABELS)
    seed_everything(1)
    expected = MINERS[name]()(embedder(features()).embeddings, LABELS)
    assert all(torch.equal(found, wanted) for found, wanted in zip(tuples, expected, strict=True))
    assert sum(map(len, tuples)) > 0
    assert_equals_formula(embedder, loss_func, [lambda x: losses.TripletMarginLoss()(x, LABELS, tuples)] * 3, tuples)


@pytest.mark.parametrize("name", each("distances", DISTANCES))
def test_an_objective_keeps_its_distance_in_every_space(name):
    embedder = make_embedder()
    make = lambda: losses.TripletMarginLoss(distance=DISTANCES[name]())  # noqa: E731
    loss_func = S2SDLoss(make(), embedder, distill_weight=2.0)
    assert_equals_formula(embedder, loss_func, [lambda x: make()(x, LABELS)] * 3)


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def signal_to_noise(x):
    noise = (unit(x)[:, None] - unit(x)[None]).var(dim=2)
    return noise / unit(x).var(dim=1, keepdim=True)


# what each distance is as a similarity: larger is more alike
SIMILARITIES = {
    "CosineSimilarity": lambda x: unit(x) @ unit(x).T,
    "DotProductSimilarity": lambda x: unit(x) @ unit(x).T,
    "LpDistance": lambda x: -(unit(x)[:, None] - unit(x)[None]).norm(dim=2),
    "SNRDistance": lambda x: -signal_to_noise(x),
}


@pytest.mark.parametrize("name", each("distances", DISTANCES))
def test_distillation_takes_every_distance_as_a_similarity(name):
    embedder = make_embedder()
    loss_func = S2SDLoss(
        losses.ContrastiveLoss(), embedder, distance=DISTANCES[name](), temperature=0.5, distill_weight=50.0
    )
    batch = embedder(features())
    loss_func(batch, LABELS)[None].sum().backward()
    p = torch.softmax(SIMILARITIES[name](batch.embeddings) / 0.5, 1)
    qs = [torch.softmax(SIMILARITIES[name](a) / 0.5, 1) for a in batch.aux]
    expected = sum(0.25 * (q * (q / p).log()).sum(1).mean() for q in qs) / len(qs)
    torch.testing.assert_close(loss_func.terms["distill"], expected.detach(), rtol=1e-9, atol=1e-12)
    assert all(torch.isfinite(parameter.grad).all() for parameter in embedder.parameters())


@pytest.mark.pml("distances", "BatchedDistance")
def test_a_batched_distance_is_refused_as_it_gives_no_matrix():
    batched = distances.BatchedDistance(distances.LpDistance(), iter_fn=print)
    with pytest.raises(TypeError, match="distance must be a pytorch_metric_learning distance"):
        S2SDLoss(losses.ContrastiveLoss(), make_embedder(), distance=batched, distill_weight=50.0)


@pytest.mark.parametrize("name", each("reducers", REDUCERS))
def test_an_objective_keeps_its_reducer_in_every_space(name):
    embedder = make_embedder()
    # a DivisorReducer needs an objective that names a divisor
    cls = losses.MarginLoss if name == "DivisorReducer" else losses.ContrastiveLoss
    make = lambda: cls(reducer=REDUCERS[name]())  # noqa: E731
    loss_func = S2SDLoss(make(), embedder, distill_weight=2.0)
    assert_equals_formula(embedder, loss_func, [lambda x: make()(x, LABELS)] * 3)


@pytest.mark.pml("reducers", "DoNothingReducer")
def test_an_objective_that_does_not_reduce_is_named():
    embedder = make_embedder()
    loss_func = S2SDLoss(losses.TripletMarginLoss(reducer=reducers.DoNothingReducer()), embedder, distill_weight=50.0)
    with pytest.raises(TypeError, match=r"TripletMarginLoss returned dict, expected a scalar tensor.*MeanReducer"):
        loss_func(embedder(features()), LABELS)
    loss_func = S2SDLoss(lambda size: torch.nn.Identity(), embedder, distill_weight=50.0)
    with pytest.raises(TypeError, match=r"Identity returned a tensor of shape \(12, 5\), expected a scalar tensor"):
        loss_func(embedder(features()))
    assert loss_func.calls == 0


@pytest.mark.parametrize("name", each("regularizers", EMBEDDING_REGULARIZERS))
def test_embedding_regularizers_act_in_every_space(name):
    embedder = make_embedder()
    make = lambda: losses.ContrastiveLoss(  # noqa: E731
        embedding_regularizer=EMBEDDING_REGULARIZERS[name](), embedding_reg_weight=0.3
    )
    loss_func = S2SDLoss(make(), embedder, distill_weight=2.0)
    assert_equals_formula(embedder, loss_func, [lambda x: make()(x, LABELS)] * 3)
    assert not torch.equal(make()(features(), LABELS), losses.ContrastiveLoss()(features(), LABELS))


@pytest.mark.parametrize("name", each("regularizers", WEIGHT_REGULARIZERS))
def test_weight_regularizers_act_on_every_spaces_weights(name):
    def make(size):
        return losses.SoftTripleLoss(
            CLASSES, size, weight_regularizer=WEIGHT_REGULARIZERS[name](), weight_reg_weight=0.3
        )

    embedder = make_embedder()
    seed_everything(1)
    made = [make(size).double() for size in SIZES]
    seed_everything(1)
    loss_func = S2SDLoss(make(SIZES[0]), embedder, distill_weight=2.0).double()
    assert_equals_formula(
        embedder, loss_func, [lambda x, objective=objective: objective(x, LABELS) for objective in made]
    )
    unregularized = losses.SoftTripleLoss(CLASSES, SIZES[0]).double()
    unregularized.load_state_dict(made[0].state_dict(), strict=False)
    z = embedder(features()).embeddings
    assert not torch.equal(made[0](z, LABELS), unregularized(z, LABELS))
