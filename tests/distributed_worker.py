"""What each process of `test_distributed.py` runs: one training step of a wrapped embedder, gradients compared.

Started as ``python distributed_worker.py MODE RANK WORLD_SIZE STORE_FILE``; exits non-zero on any difference.
"""

import copy
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from pytorch_metric_learning import losses
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from pml_s2sd import s2sd

BATCH, FEATURES = 8, 12

WRAPPERS: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "ddp": DistributedDataParallel,
    "ddp_find_unused": lambda model: DistributedDataParallel(model, find_unused_parameters=True),
    "ddp_static_graph": lambda model: DistributedDataParallel(model, static_graph=True),
    "fsdp2": lambda model: shard_each_head(model),
}


def shard_each_head(model: torch.nn.Module) -> torch.nn.Module:
    """FSDP2 as it is applied to large models: what is resharded after forward must be gathered again in backward."""
    for head in [model.head, *model.aux_heads]:
        fully_shard(head)
    return fully_shard(model, reshard_after_forward=True)


def step(model: torch.nn.Module, loss_func: torch.nn.Module, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    features = torch.randn(BATCH, FEATURES, generator=generator)
    loss = loss_func(model(features), torch.arange(BATCH) // 2)
    loss.backward()
    return loss.detach()


def main(mode: str, rank: int, world_size: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    embedder, loss_func = s2sd(losses.ContrastiveLoss(), FEATURES, 4, "MSDF", aux_sizes=(6, 10), feature_delay=0)

    # what one process gets as the mean over the ranks' batches
    expected = copy.deepcopy(embedder)
    for other in range(world_size):
        step(expected, loss_func, other)

    wrapped = WRAPPERS[mode](embedder)
    for _ in range(2):  # static_graph and FSDP behave differently from the second step on
        wrapped.zero_grad()
        step(wrapped, loss_func, rank)

    for (name, parameter), reference in zip(embedder.named_parameters(), expected.parameters(), strict=True):
        gradient = parameter.grad.full_tensor() if mode == "fsdp2" else parameter.grad
        assert reference.grad.abs().max() > 0, name
        torch.testing.assert_close(
            gradient, reference.grad / world_size, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )
    print(f"rank {rank} of {world_size}: all gradients equal")
    dist.barrier()  # neither leaves while the other still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
