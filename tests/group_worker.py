"""What each of the four processes of `test_process_group.py` runs.

Started as ``python group_worker.py RANK STORE_FILE RESULT_FILE``. Every rank that takes part in a case writes the
largest difference of its group's average to one process: of the value, of the gradients and of the terms.
"""

import json
import sys
import types
from typing import NamedTuple

import torch
import torch.distributed as dist
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch.distributed.device_mesh import init_device_mesh

from pml_s2sd import s2sd

X = torch.randn(12, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.arange(12) // 2


def contrastive(size, wrap):
    return wrap(losses.ContrastiveLoss())


def proxies(size, wrap):
    torch.manual_seed(size)
    return wrap(losses.ProxyAnchorLoss(6, size).double())


def several(size, wrap):
    """PML wants its wrapper inside MultipleLosses."""
    torch.manual_seed(size)
    return losses.MultipleLosses([wrap(losses.ProxyAnchorLoss(6, size).double()), wrap(losses.ContrastiveLoss())])


class Case(NamedTuple):
    objective: object = contrastive
    options: dict[str, object] = types.MappingProxyType({"distill_weight": 3.0, "temperature": 0.3})
    wrapped: bool = True
    training: bool = True


CASES = {
    "fixed weight": Case(),
    "without the diagonal": Case(options={"distill_weight": 3.0, "temperature": 0.1, "include_diagonal": False}),
    "recommended": Case(options={"base_gradient": False}),
    "proxies": Case(proxies),
    "not wrapped": Case(options={"distill_weight": 3.0}, wrapped=False),
    "several objectives": Case(several),
    "several objectives, no distillation": Case(several, {"distill_weight": 0.0}),
    "eval mode": Case(proxies, training=False),
    "eval mode, several objectives": Case(several, training=False),
}


def step(case, rows, wrap, group):
    torch.manual_seed(0)
    wrapper = DistributedLossWrapper if wrap and case.wrapped else lambda loss: loss
    embedder, loss_func = s2sd(
        lambda size: case.objective(size, wrapper), 7, 4, "MSD", aux_sizes=(6,), process_group=group, **case.options
    )
    embedder.double(), loss_func.train(case.training)
    batch = embedder(X[rows])
    value = loss_func(batch if case.training else batch.embeddings, LABELS[rows])
    value.backward()
    # The base objective alone is not the mean over processes of that on their own samples; the distillation is.
    parameters = [*embedder.parameters(), *loss_func.parameters()]
    found = {"distill": loss_func.terms.get("distill", torch.zeros(()))}
    if case.wrapped:
        found["value"] = value.detach()
        for i, p in enumerate(parameters):
            found[f"gradient {i}"] = torch.zeros_like(p) if p.grad is None else p.grad
    return found


def compared(case, ranks, group):
    """With `group` given by process, on its share of the rows, against one process."""
    expected = step(case, slice(0, 12), wrap=False, group=None if not dist.is_initialized() else ALONE)
    place = ranks.index(dist.get_rank())
    found = step(case, slice(0, 5) if place == 0 else slice(5, 12), wrap=True, group=group)
    process_group = group if isinstance(group, dist.ProcessGroup) else group.get_group()
    differences = {}
    for name, value in found.items():
        value = value.clone()
        dist.all_reduce(value, group=process_group)
        differences[name] = (value / 2 - expected[name]).abs().max().item()
    return differences


def main(rank, store, result):
    global ALONE
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=4)
    pair = dist.new_group([0, 1])
    ALONE = [dist.new_group([r]) for r in range(4)][rank]
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    found = {}
    if rank in (0, 1):  # the others do something else: nobody waits for them
        found = {f"{name}, a pair of four": compared(case, [0, 1], pair) for name, case in CASES.items()}
    of_mesh = [rank % 2, rank % 2 + 2]  # both ranks of a tensor-parallel pair have the same samples
    found |= {f"{name}, a mesh": compared(case, of_mesh, mesh["dp"]) for name, case in CASES.items()}
    try:
        s2sd(losses.ContrastiveLoss(), 7, 4, process_group=mesh)
    except ValueError as error:
        found["the whole mesh"] = str(error)
    if rank > 1:
        try:
            s2sd(losses.ContrastiveLoss(), 7, 4, process_group=pair)
        except ValueError as error:
            found["another's group"] = str(error)
    with open(f"{result}{rank}", "w") as file:
        json.dump(found, file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
