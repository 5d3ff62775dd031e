"""What is deployed after training with S2SD ÷ the same model trained without: program, output, size and latency.

The two are loaded with the same weights. program: the operations that torch.export records, their arguments included.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from measure import medians, milliseconds, save, settings
from resnet import FEATURES, resnet50
from torch import nn
from torch.export import ExportedProgram

from pml_s2sd import S2SDEmbedder

d = 128


def program(exported: ExportedProgram) -> list[tuple[str, Any]]:
    """The operations in their order, with their arguments, tensors by the place where they were made."""
    nodes = list(exported.graph.nodes)
    place = {node: k for k, node in enumerate(nodes)}
    return [
        (
            node.op if node.op in ("placeholder", "output") else str(node.target),
            torch.fx.map_arg((node.args, node.kwargs), lambda n: place[n]),
        )
        for node in nodes
    ]


def size(model: nn.Module) -> dict[str, int]:
    file = io.BytesIO()
    torch.save(list(model.state_dict().values()), file)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(model.state_dict()),
        "bytes": file.getbuffer().nbytes,
    }


def compare(trunk: nn.Module, x: torch.Tensor, repeats: int) -> dict:
    """The deployed model and the plain one, with the weights of one trained embedder."""
    embedder = S2SDEmbedder(FEATURES, d)
    plain = nn.Linear(FEATURES, d)
    plain.load_state_dict(embedder.head.state_dict())
    models = {name: nn.Sequential(trunk, head).eval() for name, head in (("S2SD", embedder.deploy()), ("plain", plain))}
    exported = {name: torch.export.export(model, (x,)) for name, model in models.items()}
    programs = {name: program(of_model) for name, of_model in exported.items()}
    sizes = {name: size(model) for name, model in models.items()}
    with torch.inference_mode():
        outputs = {name: model(x) for name, model in models.items()}
        eager = medians({name: lambda model=model: model(x) for name, model in models.items()}, repeats)
        modules = {name: of_model.module() for name, of_model in exported.items()}
        as_exported = medians({name: lambda module=module: module(x) for name, module in modules.items()}, repeats)
    return {
        "same program": programs["S2SD"] == programs["plain"],
        "operations": len(programs["S2SD"]),
        "bitwise same output": torch.equal(outputs["S2SD"], outputs["plain"]),
        "size ratio": round(sizes["S2SD"]["bytes"] / sizes["plain"]["bytes"], 4),
        "size": sizes,
        "latency ratio": round(eager["S2SD"] / eager["plain"], 3),
        "milliseconds": milliseconds(eager),
        "latency ratio, exported": round(as_exported["S2SD"] / as_exported["plain"], 3),
        "milliseconds, exported": milliseconds(as_exported),
    }


def main() -> None:
    chosen = settings(__doc__, repeats=30)
    torch.manual_seed(0)
    figures = {
        "network, one image of 224 × 224": compare(resnet50(), torch.randn(1, 3, 224, 224), chosen.repeats),
        "head alone, 112 features": compare(nn.Identity(), torch.randn(112, FEATURES), 20 * chosen.repeats),
    }
    save("deployed", figures, chosen.results)


if __name__ == "__main__":
    main()
