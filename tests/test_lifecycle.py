"""What training does to an embedder and its loss between steps: accumulate, recompute, copy, save, move."""

import copy
import io
import pickle

import pytest
import torch
from pytorch_metric_learning import losses
from torch.utils.checkpoint import checkpoint

from pml_s2sd import S2SDEmbeddings, s2sd

B, F, d, AUX = 8, 6, 3, (4, 5)
LABELS = torch.arange(B) // 2
FEATURES = torch.randn(B, F, generator=torch.Generator().manual_seed(1))


def made(objective=losses.ContrastiveLoss, **options):
    torch.manual_seed(0)
    options = {"feature_delay": 2, "distill_weight": 3.0, **options}
    return s2sd(objective(), F, d, "MSDF", aux_sizes=AUX, **options)


def proxies():
    return losses.ProxyAnchorLoss(4, d)


def memory():
    return losses.CrossBatchMemory(losses.ContrastiveLoss(), d, memory_size=12)


OBJECTIVES = {"pairs": losses.ContrastiveLoss, "proxies": proxies, "memory": memory}


def step(embedder, loss_func, features=FEATURES, labels=LABELS):
    embedder.zero_grad()
    loss_func.zero_grad()
    loss = loss_func(embedder(features), labels)
    loss.backward()
    return loss.detach(), [p.grad.clone() for module in (embedder, loss_func) for p in module.parameters()]


def test_gradients_of_micro_batches_add_up_and_each_counts_as_a_call():
    embedder, loss_func = made(feature_delay=0)
    halves = [step(embedder, loss_func, FEATURES[rows], LABELS[rows])[1] for rows in (slice(0, 4), slice(4, 8))]
    embedder.zero_grad()
    for rows in (slice(0, 4), slice(4, 8)):
        loss_func(embedder(FEATURES[rows]), LABELS[rows]).backward()
    found = [p.grad for p in embedder.parameters()]
    torch.testing.assert_close(found, [a + b for a, b in zip(*halves, strict=True)])
    assert loss_func.calls == 4


@pytest.mark.parametrize("base_gradient", [True, False])
@pytest.mark.parametrize("objective", ["pairs", "proxies"])
def test_cached_gradients_replayed_in_parts_are_those_of_the_whole_batch(objective, base_gradient):
    """GradCache, as its loop is written for a tensor: no part needs the graph of another."""
    embedder, loss_func = made(
        OBJECTIVES[objective], distill_weight=3.0, base_gradient=base_gradient, feature_weight=2.0, feature_delay=0
    )
    _, expected = step(embedder, loss_func)
    embedder, loss_func = made(
        OBJECTIVES[objective], distill_weight=3.0, base_gradient=base_gradient, feature_weight=2.0, feature_delay=0
    )
    parts = FEATURES.split(3)
    with torch.no_grad():
        batch = torch.cat([embedder(part) for part in parts])
    batch = batch.detach().requires_grad_()
    loss_func(batch, LABELS).backward()
    for part, gradient in zip(parts, batch.grad.split(3), strict=True):
        embedder(part).backward(gradient)
    torch.testing.assert_close([p.grad for p in [*embedder.parameters(), *loss_func.parameters()]], expected)


@pytest.mark.parametrize(
    "halves",
    [lambda batch: batch.split(4), lambda batch: torch.chunk(batch, 2), lambda batch: torch.tensor_split(batch, 2)],
    ids=["split", "chunk", "tensor_split"],
)
def test_two_views_of_one_forward(halves):
    """SupContrast's loop: both views in one batch, taken apart afterwards."""
    embedder, loss_func = made(lambda: losses.SelfSupervisedLoss(losses.NTXentLoss()), feature_delay=0)
    expected = loss_func(embedder(FEATURES[:4]), ref_emb=embedder(FEATURES[4:]))
    first, second = halves(embedder(FEATURES))
    torch.testing.assert_close(loss_func(first, ref_emb=second), expected)


def test_recomputing_the_embedder_in_backward_gives_the_same_gradients():
    embedder, loss_func = made()
    expected = step(embedder, loss_func)
    recomputing = lambda features: checkpoint(embedder, features, use_reentrant=False)  # noqa: E731
    embedder.zero_grad()
    batch = recomputing(FEATURES)
    assert isinstance(batch, S2SDEmbeddings)
    loss = loss_func(batch, LABELS)
    loss.backward()
    torch.testing.assert_close((loss.detach(), [p.grad for p in embedder.parameters()]), expected, rtol=0, atol=0)


def test_functional_transforms_of_the_embedder():
    embedder, _ = made()
    parameters = dict(embedder.named_parameters())
    call = lambda p, x=FEATURES: torch.func.functional_call(embedder, p, (x,))  # noqa: E731
    expected = embedder(FEATURES)
    torch.testing.assert_close(call(parameters).aux, expected.aux, rtol=0, atol=0)

    stacked = {name: torch.stack([p, 2 * p]) for name, p in parameters.items()}
    ensemble = torch.func.vmap(call)(stacked)
    torch.testing.assert_close(ensemble.embeddings[1], 2 * expected.embeddings)
    assert ensemble.aux[1].shape == (2, B, 5)

    gradient = torch.func.grad(lambda p: call(p).aux[0].sum())(parameters)
    (by_backward,) = torch.autograd.grad(expected.aux[0].sum(), embedder.aux_heads[0][2].weight)
    torch.testing.assert_close(gradient["aux_heads.0.2.weight"], by_backward)

    _, tangent = torch.func.jvp(embedder, (FEATURES,), (FEATURES,))
    torch.testing.assert_close(tangent.embeddings, FEATURES @ embedder.head.weight.T)


def through_pickle(modules):
    return pickle.loads(pickle.dumps(modules))


def through_torch_save(modules):
    file = io.BytesIO()
    torch.save(modules, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_copies_go_on_alike_and_share_nothing(objective, copied):
    modules = made(OBJECTIVES[objective])
    for _ in range(3):
        step(*modules)
    others = copied(modules)
    torch.testing.assert_close(step(*others), step(*modules), rtol=0, atol=0)
    theirs = {p.data_ptr() for module in modules for p in [*module.parameters(), *module.buffers()]}
    assert not theirs & {p.data_ptr() for module in others for p in [*module.parameters(), *module.buffers()]}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_state_dict_from_a_file_goes_on_where_it_stopped(objective, tmp_path):
    modules = made(OBJECTIVES[objective])
    for _ in range(2):  # the memory has been filled once, and feature distillation starts with the next step
        step(*modules)
    torch.save([module.state_dict() for module in modules], tmp_path / "state.pt")
    resumed = made(OBJECTIVES[objective])
    for parameter in [p for module in resumed for p in module.parameters()]:
        parameter.data.zero_()
    for module, state in zip(resumed, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        module.load_state_dict(state)
    for _ in range(2):
        torch.testing.assert_close(step(*resumed), step(*modules), rtol=0, atol=0)
        assert resumed[1].terms["feature"] == modules[1].terms["feature"] > 0


def test_a_state_of_another_objective_is_named():
    def two_memories():
        return losses.MultipleLosses([memory(), memory()])

    states = {
        objective: made(objective)[1].state_dict() for objective in (losses.ContrastiveLoss, memory, two_memories)
    }
    with pytest.raises(ValueError, match="the state has 6 CrossBatchMemory queues, this S2SDLoss has 3"):
        made(memory)[1].load_state_dict(states[two_memories])
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*base_loss.embedding_memory"):
        made()[1].load_state_dict(states[memory])
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*base_loss.embedding_memory"):
        made(memory)[1].load_state_dict(states[losses.ContrastiveLoss])
    _, loss_func = made(memory)
    assert "base_loss.embedding_memory" in loss_func.load_state_dict(states[losses.ContrastiveLoss], False).missing_keys


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_moving_to_another_dtype_after_construction_and_after_steps(objective):
    modules = made(OBJECTIVES[objective])
    expected = step(*modules)
    moved = [module.double() for module in made(OBJECTIVES[objective])]
    found = step(*moved, features=FEATURES.double())
    assert all(g.dtype == torch.float64 for g in found[1])
    torch.testing.assert_close(found[0].float(), expected[0])
    torch.testing.assert_close([g.float() for g in found[1]], expected[1], rtol=1e-4, atol=1e-6)
    back = [module.float() for module in moved]
    others = FEATURES.flip(0) ** 2  # none that is in a memory already
    torch.testing.assert_close(step(*back, others), step(*modules, others), rtol=1e-3, atol=1e-5)
    assert back[1].calls.dtype == torch.int64


@pytest.mark.parametrize("objective", ["pairs", "proxies"])
def test_made_on_the_meta_device_and_filled_from_a_state_dict(objective):
    modules = made(OBJECTIVES[objective])
    with torch.device("meta"):
        empty = made(OBJECTIVES[objective])
    for module, other in zip(empty, modules, strict=True):
        module.to_empty(device="cpu")
        module.load_state_dict(other.state_dict())
    torch.testing.assert_close(step(*empty), step(*modules), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_moving_to_a_gpu_and_back(objective):
    modules = made(OBJECTIVES[objective])
    expected = step(*modules)
    moved = [module.cuda() for module in made(OBJECTIVES[objective])]
    loss, _ = step(*moved, features=FEATURES.cuda())
    torch.testing.assert_close(loss.cpu(), expected[0], rtol=1e-3, atol=1e-4)
    others = FEATURES.flip(0) ** 2  # none that is in a memory already
    torch.testing.assert_close(step(*(m.cpu() for m in moved), others), step(*modules, others), rtol=1e-3, atol=1e-4)


def test_an_average_of_weights():
    embedder, loss_func = made()
    average = torch.optim.swa_utils.AveragedModel(embedder)
    optimizer = torch.optim.SGD(embedder.parameters(), lr=0.1)
    states = []
    for _ in range(3):
        step(embedder, loss_func)
        optimizer.step()
        average.update_parameters(embedder)
        states.append(embedder.head.weight.detach().clone())
    torch.testing.assert_close(average.module.head.weight, sum(states) / 3)
    torch.testing.assert_close(average.module.deploy()(FEATURES), average.eval()(FEATURES), rtol=0, atol=0)
