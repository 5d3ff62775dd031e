"""What trains less than its user believes is said, once, and what only measures leaves no trace."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from torch.utils.checkpoint import checkpoint

from pml_s2sd import s2sd

LABELS = torch.arange(12) // 2
FEATURES = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))


def make(loss=None, **options):
    torch.manual_seed(0)
    return s2sd(loss or losses.ContrastiveLoss(), 16, 4, "MSD", aux_sizes=(6, 10), **options)


def test_a_loss_left_in_eval_mode_beside_a_model_that_trains_is_said_once():
    embedder, loss_func = make()
    loss_func.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            loss_func(embedder(FEATURES), LABELS)
        loss_func(embedder.eval()(FEATURES), LABELS)
    embedder.train()
    with pytest.warns(UserWarning, match=r"in eval mode.*call loss_func.train\(\)"):
        loss_func(embedder(FEATURES), LABELS).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_func(embedder(FEATURES), LABELS)


@pytest.mark.parametrize("base_gradient", [True, False])
def test_reentrant_checkpointing_that_loses_the_gradient_is_said(base_gradient):
    """With proxies backward() succeeds all the same."""
    for reentrant in (True, False):
        embedder, loss_func = make(losses.ProxyAnchorLoss(6, 4), base_gradient=base_gradient)
        trunk = torch.nn.Linear(16, 16)
        model = torch.nn.Sequential(trunk, embedder)
        x = FEATURES.clone().requires_grad_()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss_func(checkpoint(model, x, use_reentrant=reentrant), LABELS).backward()
        said = any("use_reentrant=False" in str(w.message) and "no embedding" in str(w.message) for w in caught)
        trained = all(p.grad is not None for p in (trunk.weight, embedder.head.weight))
        assert said != trained and trained != reentrant


def test_measuring_without_gradients_is_not_a_training_call():
    embedder, loss_func = make()
    loss_func(embedder(FEATURES), LABELS)
    before = copy.deepcopy(loss_func.state_dict())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_func(embedder(FEATURES.flip(0)), LABELS)
    for name, value in loss_func.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_terms_are_json():
    embedder, loss_func = make()
    assert loss_func.terms_as_numbers() == {}
    loss_func(embedder(FEATURES), LABELS)
    written = json.loads(json.dumps(loss_func.terms_as_numbers()))
    assert written == {name: term.item() for name, term in loss_func.terms.items()}
    assert written["distill"] > 0


@pytest.mark.parametrize("loss", [losses.ProxyAnchorLoss(6, 4), losses.ArcFaceLoss(6, 4), losses.SoftTripleLoss(6, 4)])
def test_parameters_keep_their_precision_under_autocast(loss):
    """PML would turn them into bfloat16, in place."""
    embedder, loss_func = make(loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = embedder(FEATURES)
        assert batch.embeddings.dtype == torch.bfloat16
        loss_func(batch, LABELS).backward()
    assert {p.dtype for p in loss_func.parameters()} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in loss_func.parameters())


WORDS = [f"class {i}" for i in LABELS.tolist()]


@pytest.mark.parametrize(
    "labels", [WORDS, np.array(WORDS), tuple(WORDS), LABELS.tolist(), LABELS.numpy(), LABELS.double().numpy()]
)
def test_the_advice_for_labels_that_are_no_tensor_can_be_followed(labels):
    embedder, loss_func = make()
    with pytest.raises(TypeError, match="labels must be a tensor") as error:
        loss_func(embedder(FEATURES), labels)
    advice = str(error.value).split("; ")[1].removeprefix("use ").removeprefix("number the classes: ")
    numbered = eval(advice, {"torch": torch, "numpy": np, "labels": labels})
    assert torch.equal(numbered, LABELS)
    assert torch.isfinite(loss_func(embedder(FEATURES), numbered))
