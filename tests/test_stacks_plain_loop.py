"""examples/stacks: their length; and those that need no other library: a plain loop, PML's trainer, torch.compile."""

import copy
from pathlib import Path

import plain_loop
import pytest
import torch
import with_compile
import with_pml_trainer
from digits import recall_at_1
from pytorch_metric_learning import losses
from stacks_reference import assert_same, batches_of_epochs, epoch_loader, make_model, quickly, trained_by_hand
from torch import nn

from pml_s2sd import collect_features

STACKS = Path(__file__).parent.parent / "examples" / "stacks"
EXAMPLES = sorted(path for path in STACKS.glob("*.py") if path.stem.startswith("with_") or path.stem == "plain_loop")


def test_no_example_is_missing():
    libraries = ["accelerate", "compile", "lightning", "pml_trainer", "sentence_transformers", "transformers"]
    assert [path.stem for path in EXAMPLES] == ["plain_loop", *(f"with_{library}" for library in libraries)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_forty_lines(path):
    assert len(path.read_text().splitlines()) <= 40


def test_plain_loop_is_the_steps_written_out():
    parts = make_model()
    expected = trained_by_hand(*copy.deepcopy(parts), list(epoch_loader_once()), bf16=True)
    plain_loop.train(*parts, list(epoch_loader_once()), epochs=1)
    assert_same(nn.Sequential(*parts[:2]), expected, rtol=1e-3, atol=1e-4)  # the loss inside of autocast, or outside
    assert {p.dtype for p in expected.parameters()} == {torch.float32}
    assert parts[2].terms["distill"].dtype == torch.float32
    assert parts[2].calls == 4


def epoch_loader_once():
    return batches_of_epochs(epoch_loader(20), epochs=1)


def test_feature_delay_counts_calls():
    """Two steps of two batches each are four calls."""
    trunk, embedder, loss_func = make_model("MSDF", distill_weight=1.0, feature_delay=2 * plain_loop.ACCUMULATED)
    seen = []
    loss_func.register_forward_hook(lambda loss, *_: seen.append(float(loss.terms["feature"]) > 0))
    plain_loop.train(trunk, embedder, loss_func, list(epoch_loader_once()), epochs=2)
    assert seen == [False] * 4 + [True] * 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pml_trainer():
    trunk, embedder, loss_func = make_model()
    loader = epoch_loader(20)
    before = recall_at_1(nn.Sequential(trunk, embedder))
    with_pml_trainer.train(trunk, embedder, loss_func, loader, epochs=5)
    after = recall_at_1(nn.Sequential(trunk, quickly(embedder, *collect_features(trunk, loader))))
    assert loss_func.calls == 5 * 4
    assert after > before


@pytest.mark.slow
def test_compiled_steps_are_the_eager_ones():
    parts = make_model(objective=lambda: losses.NormalizedSoftmaxLoss(5, 8))
    batches, expected = list(epoch_loader_once()), nn.ModuleList(copy.deepcopy(parts))
    trained_by_hand(*expected, batches, accumulated=1)
    torch._dynamo.reset()
    with_compile.train(
        nn.Sequential(*parts[:2]), parts[2], batches, epochs=1, lr=1e-3, fullgraph=True, backend="aot_eager"
    )
    assert_same(nn.ModuleList(parts), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_full_graph_refuses_pairs():
    """Without fullgraph they are several graphs: `test_compile.py`."""
    trunk, embedder, loss_func = make_model()
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="pytorch_metric_learning"):
        with_compile.train(nn.Sequential(trunk, embedder), loss_func, epoch_loader(20), epochs=1, fullgraph=True)
