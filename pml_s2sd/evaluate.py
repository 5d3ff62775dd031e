"""Embed a folder of images with a deployed model, and measure how well it retrieves.

    python -m pml_s2sd.evaluate --checkpoint runs/demo/msdfa.pt2 --images FOLDER
    python -m pml_s2sd.evaluate --checkpoint model.pt2 --images QUERIES --gallery FOLDER --index hnsw

FOLDER/class/name.png: a folder a class. Without --gallery each image is a query, and all others its gallery; a gallery
of its own has class folders of the same names. The checkpoint is a program of torch.export (docs/deployment.md), which
needs none of the code that made it; examples/train.py writes VARIANT.pt2. Prints the metrics of
RetrievalAccuracyCalculator, and writes them as JSON. A broken image is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from .accuracy import RetrievalAccuracyCalculator
from .image_folder import ImageFolder, Read
from .neighbours import ApproximateKNN

METRICS = (
    "r_precision",
    "mean_average_precision_at_r",
    "mean_average_precision_at_1000",
    "mean_reciprocal_rank",
    "NMI",
    "f1",
    "spectral_decay",
    "embedding_density",
    "effective_rank",
)

Model = Callable[[torch.Tensor], torch.Tensor]


class Embedded(NamedTuple):
    """The images of a folder that could be read: embeddings (N, d), normalised, and class names."""

    embeddings: torch.Tensor
    classes: list[str]
    broken: list[str]


def load_program(checkpoint: str | Path) -> tuple[Model, int | None]:
    """A model that torch.export.save wrote, and the side of the images that it takes, if that is fixed.

    Args:
        checkpoint: a program of one input, images (B, 3, S, S), and one output (B, d), for any B.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is cut short or something else.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no file {checkpoint}; expected a program that torch.export.save wrote")
    if not zipfile.is_zipfile(checkpoint):
        raise ValueError(f"{checkpoint} ({checkpoint.stat().st_size:,} bytes) is cut short, or no program; {_REMEDY}")
    try:
        program = torch.export.load(checkpoint)
    except Exception as error:  # torch names no type for what it cannot read
        raise ValueError(f"{checkpoint} is no program of torch.export: {error}; {_REMEDY}") from error
    names = set(program.graph_signature.user_inputs)
    shapes = [tuple(node.meta["val"].shape) for node in program.graph.nodes if node.name in names]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ValueError(f"{checkpoint} takes inputs of shapes {shapes}; expected one, images (B, 3, S, S)")
    side = shapes[0][2]
    return program.module(), side if isinstance(side, int) else None


_REMEDY = (
    "write one with torch.export.save(torch.export.export(model, (x,), "
    'dynamic_shapes=({0: torch.export.Dim("batch")},)), FILE)'
)


@torch.inference_mode()
def embed_folder(
    model: Model, images: ImageFolder, *, batch_size: int = 64, workers: int = 0, device: str = "cpu"
) -> Embedded:
    """Embed the images; those that cannot be read are named in `broken`.

    Raises:
        ValueError: no image can be read, or the model returns something else than embeddings (B, d).
    """
    loader = DataLoader(images, batch_size, num_workers=workers, collate_fn=list)
    made, kept, broken = [], [], []
    for batch in tqdm(loader, desc=f"embedding {len(images):,} images", unit="batch", delay=2):
        whole: list[Read] = [read for read in batch if read.image is not None]
        broken += [read.problem for read in batch if read.image is None]
        if not whole:
            continue
        x = torch.stack([read.image for read in whole if read.image is not None])
        z = model(x.to(device))
        if not isinstance(z, torch.Tensor) or z.dim() != 2 or len(z) != len(whole):
            got = tuple(z.shape) if isinstance(z, torch.Tensor) else type(z).__name__
            raise ValueError(f"the model returned {got} for {len(whole)} images; expected embeddings ({len(whole)}, d)")
        made.append(z.float().cpu())
        kept += [read.place for read in whole]
    if not made:
        raise ValueError(f"none of the {len(images)} images can be read, the first: {broken[0]}")
    embeddings = torch.nn.functional.normalize(torch.cat(made))
    return Embedded(embeddings, [images.classes[place] for place in kept], broken)


def measure(
    queries: Embedded,
    gallery: Embedded | None = None,
    *,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    knn: ApproximateKNN | None = None,
) -> dict[str, float]:
    """All metrics of queries in a gallery, or among each other.

    Raises:
        ValueError: there is one class only, or no class of the queries is in the gallery.
    """
    names = sorted({*queries.classes, *(gallery.classes if gallery else ())})
    if len(names) < 2:
        raise ValueError(f"all images are of one class, {names[0]!r}; retrieval needs at least two class folders")
    if gallery and not set(queries.classes) & set(gallery.classes):
        raise ValueError(
            f"no class is in both folders; the queries have {sorted(set(queries.classes))[:3]} …, the gallery "
            f"{sorted(set(gallery.classes))[:3]} …: class folders must have the same names"
        )
    label = {name: place for place, name in enumerate(names)}
    labels, ref_labels = (
        torch.tensor([label[name] for name in part.classes]) for part in (queries, gallery or queries)
    )
    include = (*(f"recall_at_{k}" for k in recall_at), *METRICS)
    calculator = RetrievalAccuracyCalculator(
        include=include, recall_at=recall_at, knn_func=knn, device=torch.device("cpu")
    )
    references = () if gallery is None else (gallery.embeddings, ref_labels)
    found = calculator.get_accuracy(queries.embeddings, labels, *references)
    return {name: float(found[name]) for name in include}


def evaluate(settings: argparse.Namespace) -> dict[str, Any]:
    """What the command does; returns what is written."""
    model, side = load_program(settings.checkpoint)
    side = settings.image_size or side
    if side is None:
        raise ValueError(f"{settings.checkpoint} takes images of any size; say which with --image-size")
    options = {"resize": settings.resize, "mean": settings.mean, "std": settings.std}
    folders = [settings.images] if settings.gallery is None else [settings.images, settings.gallery]
    datasets = [ImageFolder(folder, side, **options) for folder in folders]
    how = {"batch_size": settings.batch_size, "workers": settings.workers, "device": settings.device}
    if settings.device != "cpu":
        model = model.to(settings.device)  # type: ignore[attr-defined]
    parts = [embed_folder(model, dataset, **how) for dataset in datasets]
    knn = None if settings.index == "exact" else ApproximateKNN(settings.index, settings.effort)
    metrics = measure(*parts, recall_at=settings.recall_at, knn=knn)
    return {
        "checkpoint": str(settings.checkpoint),
        "images": str(settings.images),
        "gallery": None if settings.gallery is None else str(settings.gallery),
        "queries": len(parts[0].classes),
        "references": len(parts[-1].classes),
        "classes": len(set(parts[0].classes)),
        "embedding_size": parts[0].embeddings.shape[1],
        "left_out": [problem for part in parts for problem in part.broken],
        "index": settings.index,
        "index_recall": None if knn is None else knn.recall,
        "metrics": metrics,
        "versions": {name: version(name) for name in ("pml-s2sd", "pytorch-metric-learning", "torch")},
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pml_s2sd.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="a program that torch.export.save wrote")
    add("--images", type=Path, required=True, help="the queries, FOLDER/class/name.png")
    add("--gallery", type=Path, help="what is searched (default: the other queries)")
    add("--output", type=Path, help="the JSON file (default: the checkpoint's name with .metrics.json)")
    add("--image-size", type=int, help="side of the images (default: what the program takes)")
    add("--resize", type=int, help="resize the shorter side to this and cut out the centre (default: resize the whole)")
    add("--mean", type=float, nargs=3, default=[0.0, 0.0, 0.0], help="of the channels (default: 0 0 0)")
    add("--std", type=float, nargs=3, default=[1.0, 1.0, 1.0], help="of the channels (default: 1 1 1)")
    add("--recall-at", type=int, nargs="+", default=[1, 2, 4, 8], help="the K of Recall@K (default: 1 2 4 8)")
    add("--index", choices=["exact", "hnsw", "ivf"], default="exact", help="for large galleries (default: %(default)s)")
    add("--effort", type=int, default=64, help="candidates, or lists, visited a query (default: %(default)s)")
    add("--batch-size", type=int, default=64, help="default: %(default)s")
    add("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    add("--device", default="cpu", help="default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse_arguments(arguments)
    try:
        found = evaluate(settings)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    except ModuleNotFoundError as error:
        raise SystemExit(f'{error}; reading images needs: pip install "pml-s2sd[examples]"') from error
    for problem in found["left_out"]:
        print(f"left out, cannot be read: {problem}")
    print(
        f"{found['queries']:,} queries of {found['classes']:,} classes in {found['references']:,} images, "
        f"{len(found['left_out'])} left out"
    )
    for name, value in found["metrics"].items():
        print(f"{name:32} {value:.4f}")
    output = settings.output or settings.checkpoint.with_suffix(".metrics.json")
    temporary = output.with_name(output.name + ".tmp")
    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, output)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
