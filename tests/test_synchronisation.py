"""Nothing in a training step reads a tensor's value on the host: on a GPU, each reading waits for the device."""

import pytest
import torch
from plain_objective import BatchContrastive
from torch.utils._python_dispatch import TorchDispatchMode

from pml_s2sd import distillation, s2sd

READS = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "unique",
    "_unique",
    "is_nonzero",
    "equal",
    "bincount",
)
LABELS = torch.arange(12) // 2


class HostReads(TorchDispatchMode):
    """Records the operations of which the result, or its shape, depends on values that the host has to know."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if by_mask or any(name == read or name.startswith(f"{read}_") or name == f"{read}2" for read in READS):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def steps(variant, **options):
    torch.manual_seed(0)
    shape = (12, 16, 3, 3) if variant == "MSDFA" else (12, 16)
    delay = {"feature_delay": 1} if "F" in variant else {}
    sizes = (6,) if variant == "DSD" else (6, 10)
    embedder, loss_func = s2sd(BatchContrastive(), 16, 4, variant, aux_sizes=sizes, **delay, **options)
    features = torch.randn(shape, requires_grad=True)

    def step():
        loss_func(embedder(features), LABELS).backward()

    return step, loss_func


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("variant", ["DSD", "MSD", "MSDF", "MSDFA"])
def test_a_step_reads_nothing_on_the_host_also_when_feature_distillation_starts(variant, blocks, monkeypatch):
    if blocks:
        monkeypatch.setattr(distillation, "PLAIN_ENTRIES", 0)
    step, loss_func = steps(variant)
    with HostReads() as reads:
        for _ in range(3):
            step()
    assert reads.seen == []
    assert loss_func.calls == 3
    if "F" in variant:
        assert loss_func.terms["feature"] > 0
    assert all(isinstance(term, torch.Tensor) and not term.requires_grad for term in loss_func.terms.values())


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: torch.where(x > 0), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.unique(), "_unique2"),
    ],
)
def test_a_reading_would_be_seen(read, name):
    class Reading(BatchContrastive):
        def forward(self, embeddings, labels, **others):
            read(embeddings.detach())
            return super().forward(embeddings, labels)

    step, loss_func = steps("MSDF")
    loss_func.aux_losses["a1"] = Reading()
    with HostReads() as reads:
        step()
    assert name in reads.seen
