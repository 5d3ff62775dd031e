"""Every class in `pytorch_metric_learning.losses`, wrapped by S2SDLoss from an instance."""

import copy

import numpy as np
import pytest
import torch
from formula import s2sd as plain_s2sd
from pml_cases import BATCH, LABELS, LOSS_CASES, abstract, each, exported
from pytorch_metric_learning import losses

from pml_s2sd import S2SDEmbedder, S2SDEmbeddings, S2SDLoss

SIZES = (5, 7, 9)
FEATURES = 11


def random_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    z, *aux = (torch.randn(BATCH, size, generator=generator, dtype=torch.float64).requires_grad_() for size in SIZES)
    return S2SDEmbeddings(z, tuple(aux), torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64))


def seed_everything(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)


def test_no_class_is_missing():
    listed = set(LOSS_CASES) | set(abstract("losses"))
    assert set(exported(losses)) - {"DynamicSoftMarginLoss"} == listed


@pytest.mark.parametrize("name", each("losses", LOSS_CASES))
def test_value_equals_the_formula_with_separately_made_objectives(name):
    case = LOSS_CASES[name]
    embedder = S2SDEmbedder(FEATURES, SIZES[0], SIZES[1:])
    seed_everything(1)
    made = [case.make(size).double() for size in SIZES]
    seed_everything(1)
    loss_func = S2SDLoss(case.make(SIZES[0]), embedder, distill_weight=2.0).double()
    for ours, theirs in zip([loss_func.base_loss, *loss_func.aux_losses.values()], made, strict=True):
        for parameter, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(parameter, expected)  # initialised by the loss's own function

    batch, ref = random_batch(0), random_batch(1)
    refs = (ref.embeddings, ref.aux, ref.features) if case.ref else None
    alone = [
        lambda x, objective=objective, r=r: objective(x, **case.arguments(r))
        for objective, r in zip(made, (ref.embeddings, *ref.aux), strict=True)
    ]
    seed_everything(2)
    loss = loss_func(batch, **case.arguments(ref))
    seed_everything(2)
    expected = plain_s2sd(alone, batch.embeddings, batch.aux, batch.features, 2.0, 0.0, 1.0, refs)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    assert loss.shape == ()

    loss.backward()
    for space in (batch.embeddings, *batch.aux):
        assert torch.isfinite(space.grad).all()
        assert space.grad.abs().max() > 0
    for parameter_name, parameter in loss_func.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", each("losses", [name for name, case in LOSS_CASES.items() if case.bound]))
def test_size_bound_tensors_have_the_shape_of_their_space(name):
    case = LOSS_CASES[name]
    tensor, shape = case.bound
    loss_func = S2SDLoss(case.make(SIZES[0]), S2SDEmbedder(FEATURES, SIZES[0], SIZES[1:]), distill_weight=50.0)
    found = [tuple(getattr(loss, tensor).shape) for loss in (loss_func.base_loss, *loss_func.aux_losses.values())]
    assert found == [shape(size) for size in SIZES]


@pytest.mark.parametrize("name", each("losses", LOSS_CASES))
def test_thirty_steps_on_a_toy_problem_lower_it(name):
    """Samples of a class share a direction, the rest is noise; the last ten losses are below the first ten."""
    case = LOSS_CASES[name]
    seed_everything(0)
    embedder = S2SDEmbedder(16, SIZES[0], SIZES[1:])
    loss_func = S2SDLoss(case.make(SIZES[0]), embedder, distill_weight=1.0)
    optimizer = torch.optim.Adam([*embedder.parameters(), *loss_func.parameters()], lr=5e-3)
    prototypes = torch.randn(4, 16)

    def batch():
        return embedder(prototypes[LABELS] + 0.3 * torch.randn(BATCH, 16))

    seen = []
    for _ in range(30):
        loss = loss_func(batch(), **case.arguments(batch()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert np.mean(seen[-10:]) < np.mean(seen[:10])


@pytest.mark.parametrize("name", each("losses", LOSS_CASES))
def test_a_wrapped_loss_is_copied_and_saved(name):
    case = LOSS_CASES[name]
    loss_func = S2SDLoss(case.make(SIZES[0]), S2SDEmbedder(FEATURES, SIZES[0], SIZES[1:]), distill_weight=50.0)
    copied = copy.deepcopy(loss_func)
    other = S2SDLoss(case.make(SIZES[0]), S2SDEmbedder(FEATURES, SIZES[0], SIZES[1:]), distill_weight=50.0)
    other.load_state_dict(loss_func.state_dict())
    for again in (copied, other):
        for parameter, expected in zip(again.parameters(), loss_func.parameters(), strict=True):
            assert torch.equal(parameter, expected)


@pytest.mark.pml("losses", "DynamicSoftMarginLoss")
@pytest.mark.skipif(not hasattr(losses, "DynamicSoftMarginLoss"), reason="came after this version of PML")
@pytest.mark.parametrize(
    "inside", [lambda loss: loss, lambda loss: losses.MultipleLosses([loss]), lambda loss: lambda d: loss]
)
def test_what_cannot_be_trained_in_pml_alone_is_refused(inside):
    objective, head = losses.DynamicSoftMarginLoss(), torch.nn.Linear(16, 5)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        for _ in range(2):
            objective(head(torch.randn(BATCH, 16)), LABELS).backward()
    for options in ({"loss": inside(objective)}, {"loss": losses.NTXentLoss(), "aux_loss": inside(objective)}):
        with pytest.raises(ValueError, match="DynamicSoftMarginLoss cannot be trained with: it keeps the graph"):
            S2SDLoss(embedder=S2SDEmbedder(FEATURES, 5, (7,)), distill_weight=50.0, **options)


@pytest.mark.parametrize("name", each("losses", abstract("losses")))
def test_abstract_classes_compute_nothing(name):
    cls = getattr(losses, name)
    if name.endswith("Mixin"):
        with pytest.raises(TypeError, match="expected a PML objective or a callable"):
            S2SDLoss(cls, S2SDEmbedder(FEATURES, 5, (7,)), distill_weight=50.0)
        return
    made = {"GenericPairLoss": lambda: cls(mat_based_loss=True), "BaseLossWrapper": lambda: cls(losses.NTXentLoss())}
    # some of PML's abstract methods take other arguments than they are given
    with pytest.raises((NotImplementedError, TypeError), match=r"^$|_compute_loss\(\) takes"):
        loss_func = S2SDLoss(made.get(name, cls)(), S2SDEmbedder(FEATURES, SIZES[0], SIZES[1:]), distill_weight=50.0)
        loss_func(random_batch(0), LABELS)
