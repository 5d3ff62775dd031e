"""A loss step as one program: captured in a CUDA graph, and compiled by torch.compile; against the eager step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_step import NEEDS_A_CARD, READS_NOTHING, REFERENCE, SMALL, LossStep, largest_difference
from gpu_table import WAYS
from measure import medians, milliseconds, synchronize

REPEATS = 50


def graph(device: torch.device, small: bool) -> dict[str, Any]:
    """The step replayed, on features that it was not captured with: as the eager one, and how long both take."""
    sizes = SMALL if small else REFERENCE
    figures: dict[str, Any] = {
        "eager, milliseconds": {}, "graph, milliseconds": {}, "largest difference": {}
    }  # fmt: skip
    for way in WAYS:
        eager, step = (LossStep(way, READS_NOTHING, sizes, device) for _ in range(2))
        calls: dict[str, Callable[[], Any]] = {"eager": eager}
        difference: float | str = NEEDS_A_CARD
        if device.type == "cuda":
            captured = Captured(step)
            others = torch.randn(sizes.rows, sizes.features).to(device)
            for of_either in (eager, step):
                of_either.features.detach().copy_(others)
            found, expected = captured(), [eager(), *eager.gradients()]
            difference = largest_difference(found, expected)
            calls["graph"] = captured
        times = milliseconds(medians(calls, 2 if small else REPEATS))
        figures["eager, milliseconds"][way] = times["eager"]
        figures["graph, milliseconds"][way] = times.get("graph", NEEDS_A_CARD)
        figures["largest difference"][way] = difference
    return figures


class Captured:
    """A step in a CUDA graph; calling it replays the graph, and returns the loss and the gradients.

    Source: "CUDA semantics" in PyTorch's documentation, on capturing a whole network. Warming up happens on the stream
    of the capture, as autograd remembers streams.
    """

    def __init__(self, step: LossStep) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        step.clear()
        with torch.cuda.graph(self.graph, stream=stream):
            loss = step()
        self.results = [loss, *step.gradients()]

    def __call__(self) -> list[torch.Tensor]:
        self.graph.replay()
        return self.results


def compiled(device: torch.device, small: bool) -> dict[str, Any]:
    """The step's forward and backward as torch.compile makes them, in one graph."""
    sizes = SMALL if small else REFERENCE
    figures: dict[str, Any] = {
        "seconds to compile": {}, "compiled, milliseconds": {}, "ratio": {}, "largest difference": {}
    }  # fmt: skip
    for way in WAYS:
        eager, step = (LossStep(way, READS_NOTHING, sizes, device) for _ in range(2))
        torch._dynamo.reset()
        backend = "eager" if small else "inductor"  # a dry run needs no compiler
        step.value = torch.compile(step.value, fullgraph=True, backend=backend)
        synchronize()
        started = time.perf_counter()
        found = [step(), *step.gradients()]
        synchronize()
        figures["seconds to compile"][way] = round(time.perf_counter() - started, 1)
        figures["largest difference"][way] = largest_difference(found, [eager(), *eager.gradients()])
        times = medians({"eager": eager, "compiled": step}, 2 if small else REPEATS)
        figures["compiled, milliseconds"][way] = milliseconds(times)["compiled"]
        figures["ratio"][way] = round(times["compiled"] / times["eager"], 3)
    return figures
