"""Evaluate a deployed model on a folder of images: every metric of `RetrievalAccuracyCalculator`.

    python -m pml_s2sd.evaluate --checkpoint MODEL.onnx --images FOLDER
    python -m pml_s2sd.evaluate --checkpoint MODEL.pt2 --images QUERIES --gallery REFERENCES --index hnsw

The model takes images (B, 3, H, W), for any B, and returns embeddings (B, d). MODEL.onnx is ONNX, which is data: ask
for it where a model comes from others. MODEL.pt2 is a program of torch.export;
examples/train.py writes one for each model.
WARNING: loading a .pt2 file runs code that its maker put into it; load only files that you trust. docs/deployment.md
says how to export yours. Images lie as FOLDER/class/name.png. Without --gallery every image is searched among all
others. Embeddings are normalised. The metrics are printed, and written to MODEL.evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from .._argument_checks import check_int
from .._text import encodable, print_text
from ..whole_file import check_output, whole_file
from ._exported_model import ExportedModel, image_size, load_exported_model
from .accuracy import RetrievalAccuracyCalculator
from .image_folder import ImageFolder, pillow_image, some, together
from .neighbours import ApproximateKNN


@dataclass(frozen=True)
class Embedded:
    """A folder's images in the embedding space.

    Attributes:
        x: normalised embeddings, (N, d), on the CPU.
        classes: the name of each one's class.
        broken: a message for each image that could not be read, and is not among the N.
    """

    x: torch.Tensor
    classes: list[str]
    broken: list[str]


@torch.no_grad()
def embed_folder(
    model: ExportedModel,
    images: ImageFolder,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    workers: int,
) -> Embedded:
    """Embed every image that can be read, (image - mean) / std by channel.

    Raises:
        ValueError: none can be read, or the model returns no embeddings.
    """
    loader = DataLoader(images, batch_size, num_workers=workers, collate_fn=together)
    shift, scale = (torch.tensor(values, device=model.device).view(3, 1, 1) for values in (mean, std))
    kept: list[int] = []
    embedded: list[torch.Tensor] = []
    broken: list[str] = []
    with tqdm(total=len(images), desc=f"embedding {images.folder.name}", unit="image") as progress:
        for indices, read, messages in loader:
            for message in messages:
                tqdm.write(f"left out: {message}", file=sys.stderr)
            broken += messages
            if read:
                batch = (torch.stack(read).to(model.device) - shift) / scale
                z = embed_batch(model, batch.to(model.dtype))
                if not isinstance(z, torch.Tensor) or z.dim() != 2 or len(z) != len(read):
                    found = f"a tensor of shape {tuple(z.shape)}" if isinstance(z, torch.Tensor) else type(z).__name__
                    raise ValueError(f"{model.path} returned {found} for {len(read)} images, expected embeddings")
                embedded.append(torch.nn.functional.normalize(z.float()).cpu())
                kept += indices
            progress.update(len(read) + len(messages))
    if not embedded:
        raise ValueError(f"none of the {len(images)} images in {images.folder} can be read; see the messages above")
    return Embedded(torch.cat(embedded), [images.classes[index] for index in kept], broken)


def embed_batch(model: ExportedModel, images: torch.Tensor) -> Any:
    try:
        return model.embed(images)
    except Exception as error:  # its kinds are those of whatever runs the model
        raise ValueError(
            f"{model.path} fails on images of shape {tuple(images.shape)}: {error}; export it for any number of "
            "images, and try --device cpu"
        ) from error


def classes_not_to_be_found(queries: Sequence[str], references: Sequence[str] | None) -> list[str]:
    """The queries' classes that have nothing among the references, or in the absence of these no second image.

    Raises:
        ValueError: what is searched has one class alone, or there is nothing to be found for any query.
    """
    counts = Counter(queries if references is None else references)
    where = "the images" if references is None else "the gallery"
    if len(counts) < 2:
        raise ValueError(
            f"{where} are of one class alone, {next(iter(counts))!r}, in which whatever is found is right; give two "
            "classes at least, a folder each"
        )
    needed = 2 if references is None else 1
    lone = sorted(name for name in set(queries) if counts[name] < needed)
    if len(lone) == len(set(queries)):
        remedy = (
            "every class has a single image; give classes at least two: a query, and one to find"
            if references is None
            else f"no class of the queries ({some(lone)}) is among those of the gallery ({some(sorted(counts))}); name "
            "the class folders alike in both"
        )
        raise ValueError(f"there is nothing to be found: {remedy}")
    return lone


def evaluate(settings: argparse.Namespace) -> dict[str, Any]:
    """What the command does, but for printing the metrics: embed, search, measure. Returns what is written to JSON.

    Args:
        settings: as `parse_arguments` gives them.

    Raises:
        FileNotFoundError, ValueError, ImportError: naming what cannot be used, what was expected and what to do.
    """
    pillow_image()
    for name in ("batch_size", "effort"):
        check_int(f"--{name.replace('_', '-')}", getattr(settings, name), at_least=1)
    check_int("--workers", settings.workers, at_least=0)
    if not all(value > 0 for value in settings.std):
        raise ValueError(f"each of --std must be above 0, got {settings.std}")
    if settings.gallery is not None and settings.gallery.resolve() == settings.images.resolve():
        raise ValueError(
            "--gallery is the folder of --images itself, where every image would find itself; leave --gallery out, "
            "and each is searched among the others"
        )
    model = load_exported_model(settings.checkpoint, settings.device)
    size = image_size(model, settings.image_size)
    folders = [ImageFolder(folder, size) for folder in (settings.images, settings.gallery) if folder is not None]
    classes_not_to_be_found(folders[0].classes, folders[1].classes if len(folders) > 1 else None)
    knn = None if settings.index == "flat" else ApproximateKNN(settings.index, settings.effort)
    calculator = RetrievalAccuracyCalculator(
        device=model.device if faiss.get_num_gpus() > 0 else torch.device("cpu"),
        knn_func=knn,
        recall_at=settings.recall_at,
    )

    embedded = [
        embed_folder(model, folder, settings.mean, settings.std, settings.batch_size, settings.workers)
        for folder in folders
    ]
    lone = classes_not_to_be_found(embedded[0].classes, embedded[1].classes if len(embedded) > 1 else None)
    number_of = {name: i for i, name in enumerate(sorted({name for part in embedded for name in part.classes}))}
    labels = [torch.tensor([number_of[name] for name in part.classes]) for part in embedded]
    references = (embedded[1].x, labels[1]) if len(embedded) > 1 else (None, None)
    metrics = calculator.get_accuracy(embedded[0].x, labels[0], *references)
    return {
        "checkpoint": str(settings.checkpoint),
        "images": str(settings.images),
        "gallery": None if settings.gallery is None else str(settings.gallery),
        "image_size": list(size),
        "mean": settings.mean,
        "std": settings.std,
        "embedding_size": embedded[0].x.shape[1],
        "queries": len(embedded[0].x),
        "query_classes": len(set(embedded[0].classes)),
        "references": len(embedded[-1].x),
        "reference_classes": len(set(embedded[-1].classes)),
        "classes_without_reference": lone,
        "queries_without_reference": sum(name in set(lone) for name in embedded[0].classes),
        "broken": [message for part in embedded for message in part.broken],
        "left_out": [entry for folder in folders for entry in folder.left_out],
        "index": {"kind": settings.index, **({} if knn is None else {"effort": knn.effort, "recall": knn.recall})},
        "metrics": metrics,
    }


def print_results(results: dict[str, Any]) -> None:
    """What was evaluated, what was left out, and a line a metric."""
    searched = "each among the others"
    if results["gallery"] is not None:
        searched = f"in {results['references']:,} of {results['reference_classes']:,} classes"
    print_text(f"\n{results['queries']:,} images of {results['query_classes']:,} classes, {searched}")
    if results["broken"]:
        print_text(f"left out: {len(results['broken'])} images that cannot be read, named above")
    if results["left_out"]:
        print_text(f"left out: {len(results['left_out'])} entries that are no images of a class")
        print_text(f"({some(results['left_out'])})")
    if results["classes_without_reference"]:
        print_text(
            f"{results['queries_without_reference']} images have nothing of their class to find, and count in no "
            f"metric over queries: {some(results['classes_without_reference'])}"
        )
    for name, value in results["metrics"].items():
        print_text(f"{name:32} {value:.4f}")


def write_results(path: Path, results: dict[str, Any]) -> None:
    """JSON; NaN and infinity, which it lacks, become null, and what UTF-8 lacks becomes an escape."""
    metrics = {name: value if math.isfinite(value) else None for name, value in results["metrics"].items()}
    with whole_file(path, "w") as file:
        file.write(json.dumps(encodable({**results, "metrics": metrics}), indent=1, allow_nan=False) + "\n")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pml_s2sd.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="MODEL",
        help="the deployed model, ONNX (.onnx) or of torch.export (.pt2, which runs code: only files that you trust)",
    )
    add("--images", type=Path, required=True, metavar="FOLDER", help="the queries, FOLDER/class/name.png")
    add("--gallery", type=Path, metavar="FOLDER", help="what they are searched in (default: each among the others)")
    add("--output", type=Path, metavar="FILE", help="default: MODEL.evaluation.json, beside the checkpoint")
    add("--image-size", type=int, metavar="SIDE", help="default: what the model was exported for")
    rgb: dict[str, Any] = {"type": float, "nargs": 3, "metavar": ("R", "G", "B")}
    add("--mean", **rgb, default=[0.0, 0.0, 0.0], help="taken off images in [0, 1] (default: 0 0 0)")
    add("--std", **rgb, default=[1.0, 1.0, 1.0], help="divided by after that (default: 1 1 1)")
    add("--recall-at", type=int, nargs="+", default=[1, 2, 4, 8], metavar="K", help="default: 1 2 4 8")
    add(
        "--index",
        choices=("flat", "ivf", "hnsw"),
        default="flat",
        help="exact search, or an approximate one for large galleries; prints the recall it costs (default: flat)",
    )
    add("--effort", type=int, default=64, help="lists or candidates visited a query by ivf, hnsw (default: 64)")
    add("--batch-size", type=int, default=128, help="default: %(default)s")
    add("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    add("--device", help="default: a GPU where there is one")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse_arguments(arguments)
    try:
        output = settings.output or settings.checkpoint.with_suffix(".evaluation.json")
        check_output(output)
        results = evaluate(settings)
        write_results(output, results)
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f"evaluate: {error}") from error
    print_results(results)
    print_text(f"\nwritten to {output}")


if __name__ == "__main__":
    main()
