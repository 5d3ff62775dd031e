"""A warning, once, where auxiliary heads are frozen at their random start."""

import copy
import warnings

import pytest
import torch
from pytorch_metric_learning import losses

from pml_s2sd import S2SDEmbedder, s2sd

FEATURES, LABELS = torch.randn(8, 16), torch.arange(8) // 2


def said(embedder, times=3):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            embedder(FEATURES.to(embedder.head.weight))
    return [str(warning.message) for warning in caught]


def freeze_aux(embedder):
    return embedder.aux_heads.requires_grad_(False)


def a_step(embedder):
    batch = embedder(FEATURES)
    sum(tensor.square().sum() for tensor in (batch.embeddings, *batch.aux)).backward()
    torch.optim.SGD(embedder.parameters(), lr=0.1).step()


@pytest.mark.parametrize("aux_head", ["mlp", "linear"])
def test_frozen_at_their_start_they_are_named_once(aux_head):
    embedder = S2SDEmbedder(16, 4, (6, 10, 3), aux_head=aux_head)
    assert said(embedder) == []
    freeze_aux(embedder)
    (text,) = said(embedder)
    assert "heads of a1, a2, a3 are frozen at their random start" in text
    assert "aux_heads.requires_grad_()" in text
    assert "modules_to_save=['embedder']" in text
    assert said(embedder) == []


def test_each_head_is_looked_at():
    embedder = S2SDEmbedder(16, 4, (6, 10))
    embedder.aux_heads[1].requires_grad_(False)
    (text,) = said(embedder)
    assert "heads of a2 are" in text


def test_moved_and_copied_models_know_how_they_started():
    for made in (lambda e: e.bfloat16(), copy.deepcopy, lambda e: e.double()):
        embedder = made(S2SDEmbedder(16, 4, (6,)))
        freeze_aux(embedder)
        assert len(said(embedder)) == 1


def loaded(embedder):
    other = S2SDEmbedder(16, 4, (6,))
    embedder.load_state_dict(other.state_dict())


FROZEN_ON_PURPOSE = {
    "after a step": lambda embedder: (a_step(embedder), freeze_aux(embedder)),
    "with loaded weights": lambda embedder: (loaded(embedder), freeze_aux(embedder)),
    "loaded while frozen": lambda embedder: (freeze_aux(embedder), loaded(embedder)),
    "a part of each head": lambda embedder: embedder.aux_heads[0][0].requires_grad_(False),
    "the whole model, nothing trains": lambda embedder: embedder.requires_grad_(False),
}


@pytest.mark.parametrize("freeze", FROZEN_ON_PURPOSE.values(), ids=FROZEN_ON_PURPOSE)
def test_what_was_trained_or_does_not_train_is_left_alone(freeze):
    embedder = S2SDEmbedder(16, 4, (6,))
    freeze(embedder)
    assert said(embedder) == []


def test_no_warning_without_gradients_in_eval_mode_or_without_heads():
    embedder = S2SDEmbedder(16, 4, (6,))
    freeze_aux(embedder)
    with torch.no_grad():
        assert said(embedder) == []
    assert said(embedder.eval()) == []
    assert said(S2SDEmbedder(16, 4, ())) == []


def test_it_is_no_part_of_the_model():
    embedder = S2SDEmbedder(16, 4, (6,))
    assert len(embedder.state_dict()) == len(list(embedder.parameters())) == 6
    with torch.device("meta"):
        on_meta = S2SDEmbedder(16, 4, (6,))
    freeze_aux(on_meta)
    on_meta(torch.empty(2, 16, device="meta"))
    on_meta.to_empty(device="cpu").load_state_dict(embedder.state_dict())
    assert said(on_meta) == []


def test_functional_calls_and_transforms_are_left_alone():
    embedder = S2SDEmbedder(16, 4, (6,))
    freeze_aux(embedder)
    parameters = {name: p.detach() for name, p in embedder.named_parameters()}

    def total(parameters, features):
        return torch.func.functional_call(embedder, parameters, (features,)).embeddings.sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient = torch.func.vmap(torch.func.grad(total), (None, 0))(parameters, FEATURES.view(2, 4, 16))
    assert gradient["head.weight"].shape == (2, 4, 16)


@pytest.mark.parametrize(("saved", "warned"), [(["embedder"], False), (None, True)])
def test_lora(saved, warned):
    """With LoRA on trunk and base head alone, PEFT freezes the auxiliary heads."""
    peft = pytest.importorskip("peft")
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), 16, 4, "MSDF", aux_sizes=(6, 10))
    model = torch.nn.Sequential()
    model.add_module("trunk", torch.nn.Sequential(torch.nn.Linear(16, 16)))
    model.add_module("embedder", embedder)
    targets = ["trunk.0"] if saved else ["trunk.0", "head"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, modules_to_save=saved))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss_func(model(FEATURES), LABELS).backward()
    assert any("random start" in str(warning.message) for warning in caught) == warned
