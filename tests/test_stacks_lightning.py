"""Lightning, as examples/stacks/with_lightning.py has it, against the same steps written out."""

import copy

import pytest
import torch
from stacks_reference import assert_same, batches_of_epochs, epoch_loader, make_model, quickly, trained_by_hand
from test_synchronisation import HostReads
from torch import nn

lightning = pytest.importorskip("lightning")
import with_lightning  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers.logger import DummyLogger  # noqa: E402
from plain_objective import BatchContrastive  # noqa: E402
from pytorch_metric_learning import losses  # noqa: E402
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
QUIET = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "use_distributed_sampler": False,
}
SETTINGS = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(with_lightning, "consolidate", quickly)


def of_all():
    return DistributedLossWrapper(losses.MultiSimilarityLoss())


def make_module(cls=with_lightning.Retrieval, objective=of_all):
    module = cls()
    module.trunk, module.embedder, module.loss_func = make_model(objective=objective)
    return module


def fit(module, loader=None, epochs=1, ckpt_path=None, **options):
    options = {"devices": 1, "logger": False, "enable_checkpointing": False, **QUIET, **SETTINGS, **options}
    trainer = lightning.Trainer(max_epochs=epochs, **options)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def parts_of(module):
    return nn.ModuleList([module.trunk, module.embedder, module.loss_func])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_is_the_steps_written_out(precision):
    module = make_module()
    expected = copy.deepcopy(parts_of(module))
    fit(module, epoch_loader(20), epochs=2, precision=precision)
    bf16 = precision == "bf16-mixed"
    trained_by_hand(*expected, batches_of_epochs(epoch_loader(20), 2), bf16=bf16, clip=1.0)
    assert_same(parts_of(module), expected, **({"rtol": 1e-3, "atol": 1e-4} if bf16 else {}))
    assert module.loss_func.calls == 2 * 4


class Logged(DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append({name: value for name, value in metrics.items() if name != "epoch"})


def test_terms_are_logged_and_nothing_waits_for_them():
    reads, terms = [], []

    class Watched(with_lightning.Retrieval):
        def log_dict(self, values, **options):
            terms.append({name: float(value) for name, value in values.items()})
            with HostReads() as watch:
                super().log_dict(values, **options)
            reads.append(watch.seen)

    logger = Logged()
    fit(make_module(Watched, BatchContrastive), epoch_loader(20), epochs=1, logger=logger, log_every_n_steps=1)
    assert terms[0].keys() == {"base", "aux", "distill", "feature"} and len(terms) == 4
    assert [row for row in logger.rows if row] == [terms[1], terms[3]]  # a row a step of two batches
    assert terms[1]["distill"] > 0
    assert reads[1:] == [[], [], []]  # the first call makes Lightning's own tensors


def test_a_checkpoint_goes_on_exactly(tmp_path):
    module = make_module()
    keep_all = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(module, epoch_loader(20), epochs=4, callbacks=[keep_all], enable_checkpointing=True)
    resumed = make_module()
    fit(resumed, epoch_loader(20), epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert resumed.loss_func.calls == module.loss_func.calls == 4 * 4
    assert_same(parts_of(resumed), parts_of(module), rtol=0, atol=0)
    assert torch.equal(resumed.deployed[1].head.weight, module.deployed[1].head.weight)


def test_the_hook_leaves_a_linear_head_on_the_trunk():
    module = make_module()
    fit(module, epoch_loader(20))
    trunk, embedder = module.deployed
    assert trunk is module.trunk
    images = torch.rand(3, 1, 8, 8)
    expected = trunk(images).mean((2, 3)) @ embedder.head.weight.T + embedder.head.bias
    torch.testing.assert_close(embedder.eval()(trunk(images)), expected)


class Spread(with_lightning.Retrieval):
    """Leaves behind what each process deployed, and takes home what was trained alone."""

    folder = None

    def train_dataloader(self):
        return epoch_loader(20, self.global_rank, self.trainer.world_size)

    def on_train_end(self):
        super().on_train_end()
        torch.save(self.deployed[1].state_dict(), self.folder / f"{self.global_rank}.pt")
        del self.deployed


def test_two_processes_are_one_on_the_whole_batch(tmp_path):
    module, alone = make_module(Spread), make_module()
    module.folder = tmp_path
    fit(module, epochs=2, devices=2, strategy="ddp_fork")
    fit(alone, epoch_loader(40), epochs=2)
    assert_same(parts_of(module).cpu(), parts_of(alone), rtol=1e-4, atol=1e-5)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == {"head.weight", "head.bias"} and first["head.weight"].shape == (8, 64)
    torch.testing.assert_close(first, second)
