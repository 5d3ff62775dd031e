"""What a bad day brings to a training step: each case gives the right value, or an error that says what to do."""

import copy
from typing import NamedTuple

import pytest
import torch
from formula import s2sd as s2sd_formula
from pytorch_metric_learning import losses

from pml_s2sd import S2SDEmbeddings, s2sd

B, F, d, AUX = 6, 5, 3, (4, 7)
LABELS = torch.arange(B) // 2
OPTIONS = {"distill_weight": 3.0, "temperature": 0.5, "feature_weight": 2.0, "feature_delay": 0}


class Day(NamedTuple):
    """What comes in. `error` is what the message has to say; `nan` says that the value has to be that."""

    features: torch.Tensor
    labels: object
    error: str | None = None
    nan: bool = False
    change: object = lambda embedder, loss_func: None
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


def freeze(embedder, loss_func):
    embedder.requires_grad_(False)


def another_embedder(embedder, loss_func):
    """The loss was made for other auxiliary sizes."""
    loss_func.aux_sizes = (4, 8)


DAYS = {
    "an ordinary one": Day(features(), LABELS),
    "NaN features": Day(with_entry(torch.nan), LABELS, nan=True),
    "infinite features": Day(with_entry(torch.inf), LABELS, nan=True),
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
    "a list of labels": Day(features(), LABELS.tolist(), error="labels must be a tensor of shape .*got list"),
    "an array of labels": Day(features(), LABELS.numpy(), error="labels must be a tensor of shape .*got ndarray"),
    "2-D labels": Day(features(), LABELS[:, None], error=r"labels must have shape \(6,\).*got \(6, 1\)"),
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
    "a frozen embedder": Day(features().requires_grad_(), LABELS, change=freeze),
    "embedder in eval mode": Day(
        features(), LABELS, error=r"got Tensor; put the embedder into training mode", change=lambda e, loss: e.eval()
    ),
    "another embedder's loss": Day(
        features(), LABELS, error=r"aux\[1\] must have shape .*make the loss with the embedder", change=another_embedder
    ),
    "a 1-sample map": Day(features(1, maps=True), LABELS[:1], variant="MSDFA"),
}


def expected_value(embedder, objectives, batch, labels):
    """The formula in float64, with PML's objectives on each space."""
    spaces = [x.double() for x in (batch.embeddings, *batch.aux)]
    L = [lambda x, loss=loss: loss(x, labels.long()) for loss in objectives]
    weights = (OPTIONS["distill_weight"], OPTIONS["feature_weight"], OPTIONS["temperature"])
    return s2sd_formula(L, spaces[0], spaces[1:], batch.features.double(), *weights)


@pytest.mark.parametrize("make", [losses.ContrastiveLoss, lambda: losses.ProxyNCALoss(6, d)], ids=["pairs", "proxies"])
@pytest.mark.parametrize("day", DAYS)
def test_a_bad_day(day, make):
    case = DAYS[day]
    if day == "negative labels" and make is not losses.ContrastiveLoss:
        pytest.skip("classes of proxies are counted from 0")
    embedder, loss_func = s2sd(make(), F, d, case.variant, aux_sizes=AUX, **OPTIONS)
    objectives = [copy.deepcopy(loss).double() for loss in (loss_func.base_loss, *loss_func.aux_losses.values())]
    case.change(embedder, loss_func)
    before = copy.deepcopy(loss_func.state_dict())

    if case.error is not None:
        with pytest.raises((TypeError, ValueError), match=case.error):
            loss_func(embedder(case.features), case.labels)
        assert loss_func.terms == {}
        torch.testing.assert_close(loss_func.state_dict(), before, rtol=0, atol=0)
        return

    batch = embedder(case.features)
    loss = loss_func(batch, case.labels)
    if case.nan:
        assert torch.isnan(loss)
        return
    torch.testing.assert_close(
        loss.double(), expected_value(embedder, objectives, batch, case.labels), rtol=1e-4, atol=1e-5
    )
    loss.backward()
    learning = [*embedder.parameters(), case.features]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learning if p.requires_grad)


def test_a_validation_loss_takes_both_kinds_of_embeddings():
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), F, d, aux_sizes=AUX)
    loss_func.eval()
    batch = embedder(features())
    assert isinstance(batch, S2SDEmbeddings)
    expected = losses.ContrastiveLoss()(batch.embeddings, LABELS)
    assert loss_func(batch, LABELS) == loss_func(batch.embeddings, LABELS) == expected
    assert loss_func.calls == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_training_call_without_gradients_gives_the_value(mode):
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), F, d, aux_sizes=AUX, **OPTIONS)
    expected = loss_func(embedder(features()), LABELS)
    with mode():
        found = loss_func(embedder(features()), LABELS)
    assert found == expected
    assert not found.requires_grad


def test_labels_that_are_their_own_references_stay_one_tensor():
    embedder, loss_func = s2sd(losses.NTXentLoss(), F, d, aux_sizes=AUX, **OPTIONS)
    batch, labels = embedder(features()), LABELS.int()
    with_references = loss_func(batch, labels, None, batch, labels)
    torch.testing.assert_close(with_references, loss_func(batch, LABELS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_labels_on_the_host_with_embeddings_on_the_device():
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), F, d, aux_sizes=AUX, **OPTIONS)
    expected = loss_func(embedder(features()), LABELS)
    found = loss_func.cuda()(embedder.cuda()(features().cuda()), LABELS)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
