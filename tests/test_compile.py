"""torch.compile: the distillation, and whole training steps, in one graph, not compiled again as calls are counted."""

import shutil
from pathlib import Path

import pytest
import torch
from plain_objective import BatchContrastive
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity

from pml_s2sd import s2sd
from pml_s2sd._similarity import Similarity
from pml_s2sd.distillation import Comparison, mean_divergences

LABELS = torch.arange(12) // 2


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def training_step(make_objective, variant="MSDF", aux_sizes=(6, 10), **options):
    torch.manual_seed(0)
    delay = {"feature_delay": 2} if "F" in variant else {}
    sizes = aux_sizes[:1] if variant == "DSD" else aux_sizes
    embedder, loss_func = s2sd(
        make_objective(), 16, 4, variant, aux_sizes=sizes, distill_weight=3.0, **delay, **options
    )
    features = torch.randn((12, 16, 3, 3) if variant == "MSDFA" else (12, 16))

    def step(features, labels):
        return loss_func(embedder(features), labels)

    return step, features, [*embedder.parameters(), *loss_func.parameters()]


def losses_and_gradients(step, features, parameters, times=4):
    values = []
    for _ in range(times):
        for parameter in parameters:
            parameter.grad = None
        value = step(features, LABELS)
        value.backward()
        values.append(value.detach())
    return values, [parameter.grad for parameter in parameters]


@pytest.mark.parametrize("variant", ["DSD", "MSD", "MSDF", "MSDFA"])
def test_a_whole_step_is_one_graph_for_all_calls(variant):
    eager = losses_and_gradients(*training_step(BatchContrastive, variant))
    step, *rest = training_step(BatchContrastive, variant)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = losses_and_gradients(torch.compile(step, backend="aot_eager", fullgraph=True), *rest)
    torch.testing.assert_close(compiled, eager)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    if "F" in variant:  # feature distillation started on the way
        assert compiled[0][2] > compiled[0][1]


@pytest.mark.parametrize("variant", ["MSDF", "MSDFA"])
def test_a_batch_of_another_size_compiles_once_more_and_then_no_more(variant):
    """Sizes become symbolic, as torch.compile has it; nothing of ours fixes them again."""

    def losses_of(compiling):
        step, features, _ = training_step(BatchContrastive, variant)
        step = compiling(step)
        return [step(features[:B], LABELS[:B]).detach() for B in (12, 7, 5, 9)]

    compiled = losses_of(lambda step: torch.compile(step, backend="aot_eager", fullgraph=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    torch.testing.assert_close(compiled, losses_of(lambda step: step))


# PML's objectives that read nothing on the host
ONE_GRAPH = {
    "NormalizedSoftmaxLoss": lambda: losses.NormalizedSoftmaxLoss(6, 4),
    "ProxyNCALoss": lambda: losses.ProxyNCALoss(6, 4),
    "ArcFaceLoss": lambda: losses.ArcFaceLoss(6, 4),
    "SoftTripleLoss": lambda: losses.SoftTripleLoss(6, 4),
}


@pytest.mark.parametrize("name", ONE_GRAPH)
def test_a_whole_step_with_an_objective_of_pml_is_one_graph(name):
    eager = losses_and_gradients(*training_step(ONE_GRAPH[name]))
    step, *rest = training_step(ONE_GRAPH[name])
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = losses_and_gradients(torch.compile(step, backend="aot_eager", fullgraph=True), *rest)
    torch.testing.assert_close(compiled, eager)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_distillation_is_one_graph():
    D = Similarity(CosineSimilarity())

    def distil(z, t):
        z, t = D.prepare(z), D.prepare(t)
        return mean_divergences(D, Comparison(z, z), [[Comparison(t, t)]], 0.5)[0]

    z, t = torch.randn(8, 3, requires_grad=True), torch.randn(8, 5)
    compiled = torch.compile(distil, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z, t), distil(z, t))
    torch.testing.assert_close(*(torch.autograd.grad(f(z, t), z) for f in (compiled, distil)))


# where PML itself breaks the graph: where it counts pairs, or decides on values
COUNTS_PAIRS, DECIDES = "loss_and_miner_utils.py", "generic_pair_loss.py"
PML_OBJECTIVES = {
    "MultiSimilarityLoss": (losses.MultiSimilarityLoss, {COUNTS_PAIRS, DECIDES}),
    "MultiSimilarityLoss, mined": (losses.MultiSimilarityLoss, {COUNTS_PAIRS, DECIDES, "multi_similarity_miner.py"}),
    "ContrastiveLoss": (losses.ContrastiveLoss, {COUNTS_PAIRS, "threshold_reducer.py"}),
    "ProxyAnchorLoss": (lambda: losses.ProxyAnchorLoss(6, 4), {"proxy_anchor_loss.py", "divisor_reducer.py"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PML_OBJECTIVES)
def test_with_pml_objectives_every_graph_break_is_pmls(name):
    make, breaks_of_pml = PML_OBJECTIVES[name]
    options = {"aux_sizes": (6,), "miner": miners.MultiSimilarityMiner() if "mined" in name else None}
    step, features, _ = training_step(make, **options)
    explained = torch._dynamo.explain(step)(features, LABELS)
    places = [Path(break_.user_stack[-1].filename) for break_ in explained.break_reasons]
    assert {place.name for place in places if "pytorch_metric_learning" in place.parts} == breaks_of_pml
    assert [place for place in places if "pytorch_metric_learning" not in place.parts] == []

    torch._dynamo.reset()
    eager = losses_and_gradients(*training_step(make, **options))
    step, *rest = training_step(make, **options)
    compiled_step = torch.compile(step, backend="aot_eager")
    first, _ = losses_and_gradients(compiled_step, *rest, times=1)  # PML's pieces are compiled for each space
    with torch._dynamo.config.patch(error_on_recompile=True):  # feature distillation starts on the way
        later, gradients = losses_and_gradients(compiled_step, *rest, times=3)
    torch.testing.assert_close((first + later, gradients), eager)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_gives_the_eager_values():
    eager = losses_and_gradients(*training_step(BatchContrastive))
    step, *rest = training_step(BatchContrastive)
    compiled = losses_and_gradients(torch.compile(step, fullgraph=True), *rest)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
