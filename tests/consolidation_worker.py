"""What each process of `test_training_features.py` runs: features of its share, and consolidation of all.

Started as ``python consolidation_worker.py MODE RANK FOLDER``; writes FOLDER/RANK.pt.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_training_features import Images, Trunk
from test_trunk_input import Language, Texts, embedder_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from pml_s2sd import S2SDEmbedder, collect_features, consolidate

OPTIONS = {"steps": 20, "subset_rows": 16}


def main(mode: str, rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    torch.manual_seed(0)
    embedder = S2SDEmbedder(8, 2, (4, 6))
    trunk, data = Trunk(), Images(24)
    loader = DataLoader(data, batch_size=5, sampler=DistributedSampler(data, shuffle=False))
    features, labels = collect_features(trunk, loader, path=folder / "features")
    expected = consolidate(embedder, features, labels, **OPTIONS).head.weight.detach()
    if mode == "ddp":
        model = DistributedDataParallel(nn.Sequential(trunk, embedder))
        weight = consolidate(model.module[1], features, labels, **OPTIONS).head.weight
    else:
        init_device_mesh("cpu", (2,))
        fully_shard(embedder)
        weight = consolidate(embedder, features, labels, **OPTIONS).head.weight
    texts = Texts()
    loader = DataLoader(texts, batch_size=5, sampler=DistributedSampler(texts, shuffle=False))
    of_texts = collect_features(Language(), loader, embedder=embedder_of(), path=folder / "texts")
    found = {"weight": weight.detach(), "expected": expected, "labels": labels, "texts": tuple(of_texts)}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
