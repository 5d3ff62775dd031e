"""What each of the two processes of `test_columns.py` runs: ``python columns_worker.py RANK STORE_FILE RESULT_FILE``.

Rank 0 writes the largest differences between what both compute and the formula with the columns that each drew.
"""

import json
import sys

import torch
import torch.distributed as dist
from columns_reference import kl_of_rows
from torch.nn.parallel import DistributedDataParallel

from pml_s2sd import s2sd

X = torch.randn(12, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
PARTS = [range(5), range(5, 12)]
COLUMNS, T, WEIGHT = 4, 0.3, 3.0


class Nothing(torch.nn.Module):
    """An objective that leaves the distillation alone."""

    def forward(self, embeddings, labels):
        return 0 * embeddings.sum()


def made(keep_own):
    torch.manual_seed(0)
    embedder, loss_func = s2sd(
        Nothing(), 7, 4, "DSD", aux_sizes=(6,), distill_weight=WEIGHT, temperature=T, columns=COLUMNS,
        include_diagonal=keep_own,
    )  # fmt: skip
    return embedder.double(), loss_func


def compared(rank, keep_own):
    embedder, loss_func = made(keep_own)
    rows = list(PARTS[rank])
    model = DistributedDataParallel(embedder)
    batch = model(X[rows])
    torch.manual_seed(10 + rank)  # as different as processes' generators are
    loss = loss_func(batch, torch.zeros(len(rows), dtype=torch.long))
    loss.backward()
    distill = loss_func.terms["distill"].clone()
    dist.all_reduce(distill)

    alone, _ = made(keep_own)
    batch = alone(X)
    of_parts = []
    for r, part in enumerate(PARTS):
        torch.manual_seed(10 + r)
        drawn = torch.randperm(12)[:COLUMNS].tolist()
        of_parts.append(kl_of_rows(batch.embeddings, batch.aux[0], part, drawn, keep_own, T))
    expected = torch.cat(of_parts).mean()
    (WEIGHT * expected).backward()
    gradient = alone.head.weight.grad
    return {
        "largest gradient": gradient.abs().max().item(),
        "gradient": (embedder.head.weight.grad - gradient).abs().max().item(),
        "distill": (distill / 2 - expected).abs().item(),
    }


def main(rank, store, result):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {name: compared(rank, keep) for name, keep in (("own kept", True), ("own left out", False))}
    if rank == 0:
        with open(result, "w") as file:
            json.dump(found, file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
