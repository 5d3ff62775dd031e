"""Nothing in a training step reads a tensor's value on the host: on a GPU, each reading waits for the device."""

from contextlib import nullcontext

import pytest
import torch
from plain_objective import BatchContrastive
from torch.utils._python_dispatch import TorchDispatchMode

from pml_s2sd import _distillation_in_blocks, distillation, s2sd

READS = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
    "lift_fresh",  # a tensor made of host data, which has to be copied to a GPU
}
MASKS = (torch.bool, torch.uint8)
LABELS = torch.arange(12) // 2


class HostReads(TorchDispatchMode):
    """Records the operations of which the result, or its shape, depends on values that the host has to know."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype in MASKS for index in indices)
        if by_mask or name in READS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def steps(variant, references=False, **options):
    torch.manual_seed(0)
    shape = (12, 16, 3, 3) if variant == "MSDFA" else (12, 16)
    delay = {"feature_delay": 1} if "F" in (variant or "") else {}
    sizes = (6,) if variant == "DSD" else (6, 10)
    embedder, loss_func = s2sd(BatchContrastive(), 16, 4, variant, aux_sizes=sizes, **delay, **options)
    features = torch.randn(shape, requires_grad=True)

    def step():
        batch = embedder(features)
        others = {"ref_emb": batch[:8], "ref_labels": LABELS[:8]} if references else {}
        loss_func(batch, LABELS, **others).backward()

    return step, loss_func


@pytest.mark.parametrize("way", ["plain", "in blocks of rows", "with references", "under autocast", "columns drawn"])
@pytest.mark.parametrize("variant", ["DSD", "MSD", "MSDF", "MSDFA"])
def test_a_step_reads_nothing_on_the_host_also_when_feature_distillation_starts(variant, way, monkeypatch):
    if way == "in blocks of rows":
        monkeypatch.setattr(distillation, "WHOLE_ENTRIES", 0)
        monkeypatch.setattr(_distillation_in_blocks, "BLOCK_ENTRIES", 30)
    drawn = {"columns": 5} if way == "columns drawn" else {}
    step, loss_func = steps(variant, references=way == "with references", **drawn)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if way == "under autocast" else nullcontext()
    terms = []
    with HostReads() as reads, autocast:
        for _ in range(3):
            step()
            terms.append(loss_func.terms)
    assert reads.seen == []
    assert loss_func.calls == 3
    assert [bool(of_call["feature"] > 0) for of_call in terms] == [False, "F" in variant, "F" in variant]
    assert all(isinstance(term, torch.Tensor) and not term.requires_grad for term in terms[-1].values())


@pytest.mark.parametrize("references", [False, True])
def test_a_step_of_the_recommended_setting_reads_nothing_on_the_host(references):
    step, loss_func = steps(None, references)
    with HostReads() as reads:
        for _ in range(3):
            step()
    assert reads.seen == []
    assert loss_func.terms["distill"] > 0


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x.detach().sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: torch.where(x > 0), "nonzero"),
        (lambda x: torch.equal(x, x + 1), "equal"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: x.detach().unique(), "_unique2"),
        (lambda x: torch.arange(2).repeat_interleave(torch.arange(2)), "repeat_interleave"),
        (lambda x: torch.tensor(3.0), "lift_fresh"),
    ],
    ids=["item", "bool", "where", "equal", "mask", "select", "unique", "repeat", "host data"],
)
def test_a_reading_would_be_seen(read, name):
    class Reading(BatchContrastive):
        def forward(self, embeddings, labels, **others):
            read(embeddings)
            return super().forward(embeddings, labels)

    step, loss_func = steps("MSDF")
    loss_func.aux_losses["a1"] = Reading()
    with HostReads() as reads:
        step()
    assert set(reads.seen) == {name}


def test_a_reading_in_backward_would_be_seen():
    def read(gradient):
        gradient.sum().item()

    class Reading(BatchContrastive):
        def forward(self, embeddings, labels, **others):
            embeddings.register_hook(read)
            return super().forward(embeddings, labels)

    step, loss_func = steps("MSDF")
    loss_func.aux_losses["a1"] = Reading()
    with HostReads() as reads:
        step()
    assert reads.seen == ["_local_scalar_dense"]
