"""What is large: the distillation at B = 8,192, in blocks of rows and plainly; maps of a million rows on the device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_step import NEEDS_A_CARD, largest_difference
from large_batch import SIZES, D
from measure import medians, milliseconds, synchronize
from pytorch_metric_learning import losses

from pml_s2sd import compress, consolidate, distillation, s2sd
from pml_s2sd.distillation import Comparison, mean_divergences

WHOLE_ENTRIES = {"plain": 2**60, "blocks": 0}
"""`distillation.WHOLE_ENTRIES` of each way."""
OF_A_CLASS, NOISE = 10, 0.8
SAMPLE, NEIGHBOURS = 2000, 10


def large_batch(device: torch.device, small: bool) -> dict[str, Any]:
    """Four teachers of 512 to 2048 dimensions, forward and backward: time, peak memory above the batch."""
    rows = 96 if small else 8192
    torch.manual_seed(0)
    z, *teachers = (torch.randn(rows, size).to(device) for size in SIZES)

    def distil(way: str) -> list[torch.Tensor]:
        leaf = z.clone().requires_grad_()
        with entries(way):
            student, *others = (Comparison(x, x) for x in map(D.prepare, (leaf, *teachers)))
            loss = mean_divergences(D, student, [others], temperature=1.0)[0]
            loss.backward()
        assert leaf.grad is not None
        return [loss.detach(), leaf.grad]

    difference = largest_difference(distil("blocks"), distil("plain"))
    ways = {way: partial(distil, way) for way in WHOLE_ENTRIES}
    memory = {way: peak(device, call)[1] for way, call in ways.items()}
    times = medians(ways, 2 if small else 10)
    return {
        "rows": rows,
        "milliseconds": milliseconds(times),
        "time ratio": round(times["blocks"] / times["plain"], 3),
        "MiB": memory,
        "largest difference": difference,
    }


@contextlib.contextmanager
def entries(way: str) -> Iterator[None]:
    """The distillation goes this way."""
    before = distillation.WHOLE_ENTRIES
    distillation.WHOLE_ENTRIES = WHOLE_ENTRIES[way]
    try:
        yield
    finally:
        distillation.WHOLE_ENTRIES = before


def million_rows(device: torch.device, small: bool) -> dict[str, Any]:
    """`compress` from 512 to 64 dimensions, and `consolidate` from 2,048 features to 128, of made-up rows."""
    rows, steps = (2000, 5) if small else (1_000_000, 300)
    compress(torch.randn(1000, 32, device=device), 8, steps=2)  # what is loaded at first use
    return {
        "rows": rows,
        "compress": compressed(rows, *((32, 8) if small else (512, 64)), steps, device),
        "consolidate": consolidated(rows, *((32, 8) if small else (2048, 128)), steps, device),
    }


def compressed(rows: int, columns: int, size: int, steps: int, device: torch.device) -> dict[str, Any]:
    embeddings, _ = made_up(rows, columns, torch.float32, device)
    return of_a_map(device, embeddings, lambda: compress(embeddings, size, steps=steps))


def consolidated(rows: int, columns: int, size: int, steps: int, device: torch.device) -> dict[str, Any]:
    features, labels = made_up(rows, columns, torch.float16, device)
    embedder, _ = s2sd(losses.MultiSimilarityLoss(), columns, size)
    embedder = embedder.to(device)
    return of_a_map(device, features, lambda: consolidate(embedder, features, labels, steps=steps).head)


def of_a_map(device: torch.device, rows: torch.Tensor, make: Callable[[], Any]) -> dict[str, Any]:
    """Seconds, peak memory above the rows, and what share of a sample's nearest neighbours the map keeps."""
    synchronize()
    started = time.perf_counter()
    layer, memory = peak(device, make)
    synchronize()
    seconds = round(time.perf_counter() - started, 2)
    sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE].float()
    with torch.no_grad():
        kept = shared(nearest(sample), nearest(layer(sample)))
    return {"seconds": seconds, "MiB": memory, "neighbours kept": round(kept, 3)}


def nearest(x: torch.Tensor) -> torch.Tensor:
    """Each row's nearest others by cosine, as a mask (n, n)."""
    x = torch.nn.functional.normalize(x)
    similarities = (x @ x.T).fill_diagonal_(-torch.inf)
    return torch.zeros_like(similarities, dtype=torch.bool).scatter_(1, similarities.topk(NEIGHBOURS).indices, True)


def shared(nearest_before: torch.Tensor, nearest_after: torch.Tensor) -> float:
    return float((nearest_before & nearest_after).sum() / nearest_before.sum())


def peak(device: torch.device, call: Callable[[], Any]) -> tuple[Any, int | str]:
    """What a call returns, and the MiB that it held on the device at most, above what was held before."""
    if device.type != "cuda":
        return call(), NEEDS_A_CARD
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    returned = call()
    return returned, round((torch.cuda.max_memory_allocated() - before) / 2**20)


def made_up(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of classes of ten about centres whose directions are used ever less, and their labels."""
    draw = torch.Generator(device).manual_seed(0)
    scale = torch.arange(1, columns + 1, device=device) ** -0.5
    labels = torch.arange(rows, device=device) // OF_A_CLASS
    made = torch.empty(rows, columns, dtype=dtype, device=device)
    block_rows = min(rows, 50_000)
    for first in range(0, rows, block_rows):
        block = made[first : first + block_rows]
        centres = torch.randn(-(-len(block) // OF_A_CLASS), columns, generator=draw, device=device)
        noise = torch.randn(block.shape, generator=draw, device=device)
        block.copy_((centres.repeat_interleave(OF_A_CLASS, 0)[: len(block)] + NOISE * noise) * scale)
    return made, labels
