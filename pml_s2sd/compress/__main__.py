"""Compress a file of embeddings: a linear map to fewer dimensions, and what it keeps, beside PCA.

    python -m pml_s2sd.compress embeddings.npy --size 64 --output map.npz
    python -m pml_s2sd.compress embeddings.npy --size 64 --labels labels.npy --output map.onnx

embeddings.npy holds float16, float32 or float64 of shape (N, k), labels.npy integers of shape (N,), -1 where a class is
not known. The suffix of --output says the format: .npz (the array weight, (size, k): z = x @ weight.T), .safetensors,
.onnx or .faiss. The map is trained on all rows. What is printed is measured on rows that a map made for this was not
trained on: with labels Recall@1 and MAP@R of classes held out, without them the share of the nearest neighbours that
stay the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._matrices import checked_labels, mapped, opened
from ._compress import compress
from ._formats import checked_format, save_map
from ._measure import Measured, classes_of_two, measure


def table(measured: Measured, count: int) -> str:
    """What was measured, a line a space, with the bytes of an index of `count` rows."""
    metrics = list(measured.spaces[0].metrics)
    header = ["", "dimensions", "bytes a row", f"index of {count:,} rows", *metrics]
    lines = [header]
    for space in measured.spaces:
        bytes_a_row = 4 * space.dimensions
        values = [f"{space.metrics[name]:.4f}" for name in metrics]
        lines.append([space.name, str(space.dimensions), f"{bytes_a_row:,}", megabytes(count * bytes_a_row), *values])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def run(settings: argparse.Namespace) -> None:
    """What the command does.

    Raises:
        OSError, TypeError, ValueError, ImportError: naming what cannot be used, what was expected and what to do.
    """
    checked_format(settings.output)
    embeddings = opened("embeddings", settings.embeddings)
    assert isinstance(embeddings, np.ndarray)  # of a file
    labels = None
    if settings.labels is not None:
        labels = checked_labels(mapped("labels", settings.labels), len(embeddings)).numpy()
    count = len(embeddings)
    if count < 4:
        raise ValueError(f"{settings.embeddings} has {count} rows; give at least 4, of which some are held out")
    layer = compress(embeddings, settings.size, labels=labels, seed=settings.seed, device=settings.device)
    save_map(layer, settings.output)
    print(f"a map from {layer.in_features} to {layer.out_features} dimensions, written to {settings.output}")
    if labels is not None and len(classes_of_two(labels)) < 3:
        print("fewer than three classes have two rows, so that none is held out; neighbours are compared instead")
    measured = measure(embeddings, settings.size, labels, seed=settings.seed, device=settings.device)
    print(f"\nmeasured on {measured.on}, held out from training a map like it; float32 rows\n")
    print(table(measured, count))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pml_s2sd.compress",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("embeddings", type=Path, help="a .npy file of shape (N, k)")
    add("--size", type=int, required=True, help="dimensions of the compressed embeddings")
    add("--output", type=Path, required=True, metavar="FILE", help="where the map goes: FILE.npz, .safetensors, …")
    add("--labels", type=Path, metavar="FILE", help="a .npy file of shape (N,), integers")
    add("--seed", type=int, default=0, help="the same one gives the same map (default: %(default)s)")
    add("--device", default="cpu", help="default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse_arguments(arguments)
    try:
        run(settings)
    except (OSError, TypeError, ValueError, ImportError) as error:
        raise SystemExit(f"compress: {error}") from error


if __name__ == "__main__":
    main()
