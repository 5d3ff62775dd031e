"""The way of several processes taken by one alone, over gloo here and over NCCL where there is a GPU."""

import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch.nn.parallel import DistributedDataParallel

from pml_s2sd import s2sd
from pml_s2sd.distributed import Processes

LABELS = torch.arange(12) // 2
FEATURES = torch.randn(12, 7, generator=torch.Generator().manual_seed(1))
OPTIONS = {
    "recommended": {},
    "MSDF": {"variant": "MSDF", "aux_sizes": (6, 8), "distill_weight": 3.0, "feature_delay": 0},
}


@pytest.fixture(params=[("gloo", "cpu"), pytest.param(("nccl", "cuda"), marks=pytest.mark.gpu)], ids=lambda p: p[0])
def device(request, tmp_path):
    """Of one process that talks to itself."""
    backend, name = request.param
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield torch.device(name, 0) if name == "cuda" else torch.device(name)
    dist.destroy_process_group()


def step(device, wrap, options):
    torch.manual_seed(0)
    embedder, loss_func = s2sd(wrap(losses.ProxyAnchorLoss(6, 4)), 7, 4, **options)
    model = DistributedDataParallel(embedder.to(device))
    loss = loss_func.to(device)(model(FEATURES.to(device)), LABELS.to(device))
    loss.backward()
    gradients = {name: p.grad.cpu() for name, p in [*embedder.named_parameters(), *loss_func.named_parameters()]}
    return {"loss": loss.detach().cpu(), **loss_func.terms_as_numbers(), **gradients}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_what_one_process_gathers_from_itself_changes_nothing(device, options, monkeypatch):
    expected = step(device, lambda loss: loss, OPTIONS[options])
    monkeypatch.setattr(Processes, "several", True)
    found = step(device, DistributedLossWrapper, OPTIONS[options])
    assert expected["distill"] > 0
    renamed = {name.replace(".loss.", "."): value for name, value in found.items()}
    assert renamed.keys() == expected.keys()
    torch.testing.assert_close(renamed, expected, rtol=1e-4, atol=1e-5)
