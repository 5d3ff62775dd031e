"""One process of `test_train_distributed.py`: evaluation_worker.py RANK WORLD_SIZE STORE_FILE RESULT_FILE."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from images import EmojiDataset
from models import build
from options import parse_arguments
from train_distributed import evaluate


def main(rank: str, world_size: str, store: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world_size))
    model, *_ = build(parse_arguments(["--trunk", "scratch"]), "msdfa", classes=2)
    figures = evaluate(model, EmojiDataset(train=False), torch.device("cpu"))
    if rank == "0":
        Path(result).write_text(json.dumps(figures))
    else:
        assert figures == {}
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
