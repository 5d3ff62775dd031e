"""Accelerate, as examples/stacks/with_accelerate.py has it, against the same steps written out."""

import copy

import pytest
import torch
from stacks_reference import assert_same, batches_of_epochs, epoch_loader, make_model, quickly, trained_by_hand
from torch import nn

accelerate = pytest.importorskip("accelerate")
import with_accelerate  # noqa: E402
from accelerate.launchers import debug_launcher  # noqa: E402
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402
from pytorch_metric_learning import losses  # noqa: E402
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper  # noqa: E402

from pml_s2sd import collect_features  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def no_state():
    """Accelerate keeps one for the process."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()


def prepared(batch_size=20, **options):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, **options)
    trunk, embedder, loss_func = make_model(objective=lambda: DistributedLossWrapper(losses.MultiSimilarityLoss()))
    accelerator.register_for_checkpointing(loss_func)
    model = nn.Sequential(trunk, embedder)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, epoch_loader(batch_size))
    return accelerator, model, loss_func, optimizer, loader


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_is_the_steps_written_out(precision):
    accelerator, model, loss_func, optimizer, loader = prepared(mixed_precision=precision)
    expected = copy.deepcopy(nn.ModuleList(make_model()))
    with_accelerate.train(accelerator, model, loss_func, optimizer, loader, epochs=range(2))
    trained_by_hand(*expected, batches_of_epochs(epoch_loader(20), 2), bf16=precision == "bf16", widened=True)
    found = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if precision == "bf16" else {}
    assert_same(found, expected[:2], **tolerance)
    assert loss_func.calls == 2 * 4


def test_a_checkpoint_goes_on_exactly(tmp_path):
    whole = prepared()
    with_accelerate.train(*whole, epochs=range(2), checkpoint=tmp_path / "two")
    with_accelerate.train(*whole, epochs=range(2, 4))
    resumed = prepared()
    resumed[0].load_state(tmp_path / "two")
    assert resumed[2].calls == 2 * 4  # registered; else it would count from 0
    with_accelerate.train(*resumed, epochs=range(2, 4))
    assert_same(resumed[1], whole[1], rtol=0, atol=0)
    assert resumed[2].calls == whole[2].calls == 4 * 4


def on_each_process(folder):
    accelerator, model, loss_func, optimizer, loader = prepared()
    with_accelerate.train(accelerator, model, loss_func, optimizer, loader, epochs=range(2))
    trunk, embedder = accelerator.unwrap_model(model)
    features, labels = collect_features(trunk, loader)
    torch.save(
        {"model": nn.Sequential(trunk, embedder).state_dict(), "calls": loss_func.calls, "samples": len(labels),
         "deployed": quickly(embedder, features, labels).state_dict()},
        folder / f"{accelerator.process_index}.pt",
    )  # fmt: skip


def test_two_processes_are_one_on_the_whole_batch(tmp_path):
    debug_launcher(on_each_process, (tmp_path,), num_processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(first, second)
    alone = trained_by_hand(*make_model(), batches_of_epochs(epoch_loader(40), 2))
    torch.testing.assert_close(first["model"], dict(alone.state_dict()), rtol=1e-4, atol=1e-5)
    assert first["calls"] == 2 * 2
    assert first["samples"] == 80  # those of both
