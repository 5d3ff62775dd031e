"""Compress files of embeddings: a linear map to fewer dimensions, and what it keeps, beside PCA; then the rows mapped.

    python -m pml_s2sd.compress embeddings.npy --size 64 --output map.npz
    python -m pml_s2sd.compress embeddings.npy --size 64 --labels labels.npy --output map.onnx
    python -m pml_s2sd.compress shards/*.npy --map map.npz --output small --dtype float16

embeddings.npy holds float16, float32 or float64 of shape (N, k), labels.npy integers of shape (N,), -1 where a class is
not known; both may be several files, which are read one after another and need not fit into memory.

With --size a map is trained on all rows. The suffix of --output says the format: .npz (the array weight, (size, k):
z = x @ weight.T), .safetensors, .onnx or .faiss. What is printed is measured on rows that a map made for this was not
trained on: with labels Recall@1 and MAP@R of classes held out, without them the share of the nearest neighbours that
stay the same.

With --map the rows of each file go through that map, and into a file of the same name in the folder --output, each of
length 1. A run that was killed goes on when it is started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._argument_checks import checked_device
from .._matrices import checked_labels, mapped, opened
from .._shards import Shards
from ._compress import compress
from ._formats import checked_format, load_map, save_map
from ._map_files import DTYPES, map_files
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


def train(settings: argparse.Namespace) -> None:
    """A map of all rows, and what one keeps that was trained without some."""
    checked_format(settings.output)
    embeddings = opened("embeddings", settings.embeddings)
    assert isinstance(embeddings, Shards)  # of files
    labels = None
    if settings.labels is not None:
        given = np.concatenate([np.atleast_1d(mapped("labels", path)) for path in settings.labels])
        labels = checked_labels(given, len(embeddings)).numpy()
    count = len(embeddings)
    if count < 4:
        names = ", ".join(map(str, settings.embeddings))
        raise ValueError(f"{names} has {count} rows; give at least 4, of which some are held out")
    layer = compress(settings.embeddings, settings.size, labels=labels, seed=settings.seed, device=settings.device)
    save_map(layer, settings.output)
    print(f"a map from {layer.in_features} to {layer.out_features} dimensions, written to {settings.output}")
    if labels is not None and len(classes_of_two(labels)) < 3:
        print("fewer than three classes have two rows, so that none is held out; neighbours are compared instead")
    measured = measure(embeddings, settings.size, labels, seed=settings.seed, device=settings.device)
    print(f"\nmeasured on {measured.on}, held out from training a map like it; float32 rows\n")
    print(table(measured, count))


def apply(settings: argparse.Namespace) -> None:
    """The rows of all files through a map that there is."""
    if settings.labels is not None:
        raise ValueError("--labels are for training a map, with --size; a map that is given, with --map, is trained")
    layer = load_map(settings.map).to(checked_device(settings.device))
    written = map_files(layer, settings.embeddings, settings.output, dtype=settings.dtype)
    count = sum(len(mapped("mapped rows", path)) for path in written)
    print(
        f"{count:,} rows of {layer.out_features} dimensions, {settings.dtype}, in {settings.output}: "
        f"{megabytes(sum(path.stat().st_size for path in written))} in {len(written):,} files"
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pml_s2sd.compress",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("embeddings", type=Path, nargs="+", metavar="FILE", help=".npy files of shape (N, k)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--size", type=int, help="train a map: dimensions of the compressed embeddings")
    what.add_argument("--map", type=Path, metavar="FILE", help="map the rows: what --size wrote")
    add("--output", type=Path, required=True, help="of --size a file: NAME.npz, .safetensors, …; of --map a folder")
    add("--labels", type=Path, nargs="+", metavar="FILE", help=".npy files of shape (N,), integers")
    add("--dtype", choices=DTYPES, default="float32", help="of mapped rows (default: %(default)s)")
    add("--seed", type=int, default=0, help="the same one gives the same map (default: %(default)s)")
    add("--device", default="cpu", help="default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse_arguments(arguments)
    try:
        apply(settings) if settings.size is None else train(settings)
    except (OSError, TypeError, ValueError, ImportError) as error:
        raise SystemExit(f"compress: {error}") from error


if __name__ == "__main__":
    main()
