"""What a bad day brings to a training step: each case gives the right value, or an error that says what to do."""

import copy
from typing import NamedTuple

import pytest
import torch
from formula import s2sd as s2sd_formula
from pytorch_metric_learning import losses
from torch.utils import _pytree as pytree

from pml_s2sd import S2SDEmbedder, S2SDEmbeddings, s2sd

B, F, d, AUX = 6, 5, 3, (4, 7)
LABELS = torch.arange(B) // 2
OPTIONS = {"distill_weight": 3.0, "temperature": 0.5, "feature_weight": 2.0, "feature_delay": 0}


class Day(NamedTuple):
    """What comes in. `error` is what the message has to say; `nan` says that the value has to be that."""

    features: torch.Tensor
    labels: object
    error: str | None = None
    nan: bool = False
    change: object = lambda embedder: embedder
    variant: str = "MSDF"


def features(rows=B, maps=False):
    return torch.randn((rows, F, 2, 3) if maps else (rows, F), generator=torch.Generator().manual_seed(1))


def with_entry(value):
    bad = features()
    bad[1, 2] = value
    return bad


def every_other(x):
    """The same values, every other entry of a larger tensor."""
    return torch.stack([x, x + 1], dim=-1)[..., 0]


def frozen(embedder):
    return embedder.requires_grad_(False)


def of_other_sizes(embedder):
    return S2SDEmbedder(F, d, (4, 8))


def of_the_same_sizes(embedder):
    return S2SDEmbedder(F, d, AUX)


DAYS = {
    "an ordinary one": Day(features(), LABELS),
    "NaN features": Day(with_entry(torch.nan), LABELS, nan=True),
    "infinite features": Day(with_entry(torch.inf), LABELS, nan=True),
    "features of minus infinity": Day(with_entry(-torch.inf), LABELS, nan=True),
    "empty batch": Day(features(0), LABELS[:0], error=r"is empty: a batch needs at least one sample.*drop_last"),
    "B = 1": Day(features(1), LABELS[:1]),
    "one class": Day(features(), torch.zeros(B, dtype=torch.int64)),
    "as many classes as samples": Day(features(), torch.arange(B)),
    "int32 labels": Day(features(), LABELS.int()),
    "int16 labels": Day(features(), LABELS.short()),
    "uint8 labels": Day(features(), LABELS.byte()),
    "bool labels": Day(features(), LABELS == 1),
    "negative labels": Day(features(), LABELS - 1),
    "float labels": Day(
        features(), LABELS.float(), error=r"labels must be of an integer dtype, got torch.float32.*\.long"
    ),
    "a list of labels": Day(
        features(),
        LABELS.tolist(),
        error=r"labels must be a tensor of shape .*got list; use torch\.as_tensor\(labels\)",
    ),
    "an array of labels": Day(
        features(),
        LABELS.numpy(),
        error=r"labels must be a tensor of shape .*got ndarray; use torch\.as_tensor\(labels\)",
    ),
    "2-D labels": Day(
        features(), LABELS[:, None], error=r"labels must have shape \(6,\).*got \(6, 1\); flatten\(\) a column"
    ),
    "one-hot labels": Day(
        features(),
        torch.nn.functional.one_hot(LABELS),
        error=r"labels must have shape \(6,\).*got \(6, 3\);.*argmax\(dim=1\) one-hot",
    ),
    "labels without data": Day(features(), LABELS.to("meta"), error="Cannot copy out of meta tensor; no data"),
    "too few labels": Day(features(), LABELS[:4], error=r"labels must have shape \(6,\).*got \(4,\)"),
    "features of the wrong size": Day(
        torch.randn(B, F + 1), LABELS, error=r"\(B, 5\).*got shape \(6, 6\); in_features"
    ),
    "integer features": Day(torch.ones(B, F, dtype=torch.int64), LABELS, error="floating-point dtype, got torch.int64"),
    "non-contiguous features": Day(every_other(features()), LABELS),
    "transposed features": Day(features().T.contiguous().T, LABELS),
    "non-contiguous feature maps": Day(every_other(features(maps=True)), LABELS, variant="MSDFA"),
    "channels-last feature maps": Day(
        features(maps=True).contiguous(memory_format=torch.channels_last), LABELS, variant="MSDFA"
    ),
    "a frozen trunk": Day(features().requires_grad_(False), LABELS),
    "a trunk that learns": Day(features().requires_grad_(), LABELS),
    "a frozen embedder": Day(features().requires_grad_(), LABELS, change=frozen),
    "embedder in eval mode": Day(
        features(),
        LABELS,
        error=r"got Tensor: either the embedder is in eval mode, then call model.train\(\)",
        change=lambda embedder: embedder.eval(),
    ),
    "another embedder's embeddings": Day(
        features(), LABELS, error=r"aux\[1\] must have shape .*make the loss with the embedder", change=of_other_sizes
    ),
    "another embedder's, of the same sizes": Day(features(), LABELS, change=of_the_same_sizes),
    "a 1-sample map": Day(features(1, maps=True), LABELS[:1], variant="MSDFA"),
}


def expected_value(embedder, objectives, batch, labels):
    """The formula in float64, with PML's objectives on each space."""
    spaces = [x.double() for x in (batch.embeddings, *batch.aux)]
    L = [lambda x, loss=loss: loss(x, labels.long()) for loss in objectives]
    weights = (OPTIONS["distill_weight"], OPTIONS["feature_weight"], OPTIONS["temperature"])
    return s2sd_formula(L, spaces[0], spaces[1:], batch.features.double(), *weights)


OBJECTIVES = {
    "pairs": losses.ContrastiveLoss,
    "proxies": lambda: losses.ProxyNCALoss(6, d),
    "a memory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), d, memory_size=20),
}
CLASSES_FROM_0 = {"proxies"}


@pytest.mark.parametrize(
    ("day", "objective"),
    [(day, name) for day in DAYS for name in OBJECTIVES if not (day == "negative labels" and name in CLASSES_FROM_0)],
)
def test_a_bad_day(day, objective):
    case = DAYS[day]
    embedder, loss_func = s2sd(OBJECTIVES[objective](), F, d, case.variant, aux_sizes=AUX, **OPTIONS)
    loss_func(embedder(features(maps=case.variant == "MSDFA")), LABELS)  # an ordinary step before
    objectives = [copy.deepcopy(loss).double() for loss in (loss_func.base_loss, *loss_func.aux_losses.values())]
    before, terms_before = copy.deepcopy(loss_func.state_dict()), loss_func.terms
    embedder = case.change(embedder)

    if case.error is not None:
        with pytest.raises((TypeError, ValueError, NotImplementedError), match=case.error):
            loss_func(embedder(case.features), case.labels)
        assert loss_func.terms is terms_before
        torch.testing.assert_close(loss_func.state_dict(), before, rtol=0, atol=0)
        return

    batch = embedder(case.features)
    loss = loss_func(batch, case.labels)
    assert loss_func.calls == 2
    if case.nan:
        assert torch.isnan(loss)
        assert torch.isnan(loss_func.terms["distill"])
        assert torch.isnan(loss_func.terms["feature"])
        return
    torch.testing.assert_close(
        loss.double(), expected_value(embedder, objectives, batch, case.labels), rtol=1e-4, atol=1e-5
    )
    loss.backward()
    learning = [*embedder.parameters(), case.features]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learning if p.requires_grad)


LAYOUTS = {
    "every other entry": every_other,
    "channels last": lambda maps: maps.contiguous(memory_format=torch.channels_last),
    "transposed": lambda maps: maps.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("variant", ["MSDF", "MSDFA"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_feature_maps_changes_nothing(layout, variant):
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), F, d, variant, aux_sizes=AUX, **OPTIONS)
    results = []
    for maps in (features(maps=True), LAYOUTS[layout](features(maps=True))):
        embedder.zero_grad()
        batch = embedder(maps.requires_grad_())
        loss = loss_func(batch, LABELS)
        loss.backward()
        results.append([*pytree.tree_leaves(batch), loss, maps.grad, *(p.grad for p in embedder.parameters())])
    assert not maps.is_contiguous()
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_frozen_trunk_under_an_embedder_that_learns():
    trunk = torch.nn.Linear(4, F).requires_grad_(False)
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), F, d, "MSDF", aux_sizes=AUX, **OPTIONS)
    x = torch.randn(B, 4)
    loss_func(torch.nn.Sequential(trunk, embedder)(x), LABELS).backward()
    found = [p.grad.clone() for p in embedder.parameters()]
    embedder.zero_grad()
    loss_func(embedder(trunk(x).detach()), LABELS).backward()
    assert all(p.grad is None for p in trunk.parameters())
    torch.testing.assert_close(found, [p.grad for p in embedder.parameters()])


def test_where_nothing_learns_the_value_is_the_same_and_has_no_gradient():
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), F, d, "MSDF", aux_sizes=AUX, **OPTIONS)
    expected = loss_func(embedder(features()), LABELS)
    found = loss_func(embedder.requires_grad_(False)(features()), LABELS)
    assert found == expected
    assert not found.requires_grad


def test_a_nan_that_the_objective_hides_is_seen_by_the_distillation():
    embedder, loss_func = s2sd(losses.TripletMarginLoss(), F, d, "MSDF", aux_sizes=AUX, **OPTIONS)
    batch = embedder(with_entry(torch.nan))
    loss = loss_func(batch, LABELS)
    # PML's reducer averages the triplets above 0, and NaN is not
    assert loss_func.terms["base"] == losses.TripletMarginLoss()(batch.embeddings, LABELS)
    assert torch.isfinite(loss_func.terms["base"])
    assert torch.isnan(loss)


@pytest.mark.parametrize("labels", [LABELS - 1, LABELS + 5], ids=["negative", "too large"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: losses.ProxyAnchorLoss(6, d), "Class values must be"),
        (lambda: losses.NormalizedSoftmaxLoss(6, d), "Target .* is out of bounds"),
    ],
    ids=["proxies", "class weights"],
)
def test_classes_that_the_objective_does_not_have_are_refused_by_it(make, words, labels):
    """Only the objective knows its classes, and finding them out of range takes reading them on the host."""
    embedder, loss_func = s2sd(make(), F, d, "MSDF", aux_sizes=AUX, **OPTIONS)
    loss_func(embedder(features()), LABELS)
    before, terms_before = copy.deepcopy(loss_func.state_dict()), loss_func.terms
    with pytest.raises((RuntimeError, IndexError), match=words):
        loss_func(embedder(features()), labels)
    assert loss_func.terms is terms_before
    torch.testing.assert_close(loss_func.state_dict(), before, rtol=0, atol=0)


def test_a_validation_loss_takes_both_kinds_of_embeddings():
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), F, d, "MSDF", aux_sizes=AUX)
    loss_func.eval()
    batch = embedder(features())
    assert isinstance(batch, S2SDEmbeddings)
    expected = losses.ContrastiveLoss()(batch.embeddings, LABELS)
    assert loss_func(batch, LABELS) == loss_func(batch.embeddings, LABELS) == expected
    assert loss_func.calls == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_training_call_without_gradients_gives_the_value(mode):
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), F, d, "MSDF", aux_sizes=AUX, **OPTIONS)
    expected = loss_func(embedder(features()), LABELS)
    with mode():
        found = loss_func(embedder(features()), LABELS)
    assert found == expected
    assert not found.requires_grad


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_goes_on_after_a_call_in_inference_mode(objective):
    """What such a call leaves in memories serves the next one as any other call's would; as a training call it does
    not count."""
    results = []
    for mode in (torch.no_grad, torch.inference_mode):
        torch.manual_seed(0)
        embedder, loss_func = s2sd(OBJECTIVES[objective](), F, d, "MSDF", aux_sizes=AUX, **OPTIONS)
        with mode():
            loss_func(embedder(features()), LABELS)
        loss = loss_func(embedder(features() + 1), LABELS)
        loss.backward()
        results.append([loss, loss_func.state_dict(), *(p.grad for p in embedder.parameters())])
    assert results[0][1]["calls"] == 1
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_labels_that_are_their_own_references_stay_one_tensor():
    embedder, loss_func = s2sd(losses.NTXentLoss(), F, d, "MSDF", aux_sizes=AUX, **OPTIONS)
    batch, labels = embedder(features()), LABELS.int()
    with_references = loss_func(batch, labels, None, batch, labels)
    torch.testing.assert_close(with_references, loss_func(batch, LABELS))


@pytest.mark.gpu
def test_labels_on_the_host_with_embeddings_on_the_device():
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), F, d, "MSDF", aux_sizes=AUX, **OPTIONS)
    expected = loss_func(embedder(features()), LABELS)
    found = loss_func.cuda()(embedder.cuda()(features().cuda()), LABELS)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
