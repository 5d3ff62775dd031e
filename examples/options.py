"""The options of train.py, and what decides a run's figures."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from models import VARIANTS
from objectives import OBJECTIVES
from trunks import FROM_SCRATCH, OTHER, PRETRAINED, kind_of

BY_TRUNK = ("image_size", "epochs", "lr", "trunk_lr")
"""Options whose defaults are the trunk's `Kind`'s."""


def parse_arguments(arguments: list[str] | None = None, description: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--name", default="demo", help="the run's folder is RUNS/NAME (default: %(default)s)")
    add("--runs", type=Path, default=Path("runs"), help="default: %(default)s")
    add("--resume", action="store_true", help="go on with the run of this name where it was cut short")

    data = parser.add_argument_group("what is trained, on what")
    add = data.add_argument
    add("--images", type=Path, help="train on FOLDER/class/name.png instead of the emoji")
    add("--image-size", type=int, help=f"side of the images that the trunk sees ({default_of('image_size')})")
    add(
        "--trunk",
        default="efficientnet-lite0",
        help="efficientnet-lite0, with ImageNet weights, the last blocks fine-tuned; scratch, a small network from "
        "random weights; timm:NAME, torchvision:NAME; or package.module:function, which returns a torch.nn.Module from "
        "images (B, 3, H, W) in [0, 1] to features (B, F) or feature maps (B, F, H', W') (default: %(default)s)",
    )
    add("--objective", choices=OBJECTIVES, default="multisimilarity", help="default: %(default)s")
    add("--embedding-size", type=int, default=32, help="d (default: %(default)s)")
    add(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=["baseline", "s2sd"],
        help="models to compare: the objective alone; the recommended setting; the paper's (default: baseline s2sd)",
    )
    add("--seed", type=int, default=0, help="default: %(default)s")

    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--epochs", type=int, help=default_of("epochs"))
    add("--batch-size", type=int, default=112, help="default: %(default)s")
    add("--per-class", type=int, default=2, help="samples of a class in a batch (default: %(default)s)")
    add("--lr", type=float, help=f"learning rate of the embedder ({default_of('lr')})")
    add("--trunk-lr", type=float, help=f"of the trunk ({default_of('trunk_lr')})")
    add("--loss-lr", type=float, default=1e-2, help="of an objective's own parameters (default: %(default)s)")
    add(
        "--views",
        type=int,
        default=4,
        help="augmented views of each image: those that a frozen front's activations are kept of, and those that "
        "consolidation sees (default: %(default)s)",
    )

    after = parser.add_argument_group("consolidation, after the training of all but the baseline")
    add = after.add_argument
    add("--no-consolidate", dest="consolidate", action="store_false", help="keep the base head as it was trained")
    add(
        "--turned",
        action=argparse.BooleanOptionalAction,
        help="show it turned and recoloured images too, as classes of their own, which helps with drawings, not with "
        "photographs (default: for the emoji)",
    )

    paper = parser.add_argument_group("the paper's variants: dsd, msd, msdf, msdfa")
    add = paper.add_argument
    add(
        "--aux-sizes",
        type=int,
        nargs="+",
        default=[128, 256, 512, 1024],
        help="sizes of the auxiliary spaces (default: 128 256 512 1024)",
    )
    add("--distill-weight", type=float, default=1.0, help="γ (default: %(default)s)")
    add("--temperature", type=float, default=1.0, help="T (default: %(default)s)")
    add("--feature-weight", type=float, default=1.0, help="γ_F, for msdf and msdfa (default: %(default)s)")
    add(
        "--feature-delay", type=int, default=200, help="steps before feature distillation starts (default: %(default)s)"
    )

    machine = parser.add_argument_group("the machine")
    add = machine.add_argument
    add("--workers", type=int, default=0, help="processes that load images (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: a GPU where there is one")
    add("--threads", type=int, help="CPU threads (default: torch's choice)")

    settings = parser.parse_args(arguments)
    try:
        kind = kind_of(settings.trunk)
    except ValueError as error:
        parser.error(str(error))
    for name in BY_TRUNK:
        if getattr(settings, name) is None:
            setattr(settings, name, getattr(kind, name))
    if settings.turned is None:
        settings.turned = settings.images is None
    for name in ("epochs", "views"):
        if getattr(settings, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(settings, name)}")
    if kind is PRETRAINED and settings.image_size % 32:
        parser.error(f"--image-size must be a multiple of 32 for {settings.trunk}, got {settings.image_size}")
    return settings


def default_of(name: str) -> str:
    """An option's default, which depends on the trunk, for --help."""
    first, scratch, other = (getattr(kind, name) for kind in (PRETRAINED, FROM_SCRATCH, OTHER))
    return f"default: {first}; from scratch {scratch}" + ("" if other == first else f"; other trunks {other}")


def describe(settings: argparse.Namespace) -> dict[str, Any]:
    """What decides a run's figures: its settings and the versions of what it runs on."""
    packages = ("pml-s2sd", "pytorch-metric-learning", "torch", "numpy", "faiss-cpu", "kornia")
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
    return {
        "settings": {name: value for name, value in chosen.items() if name != "resume"},
        "versions": {name: version(name) for name in packages + kind_of(settings.trunk).packages},
    }


AFTER_TRAINING = ("consolidate", "turned")
"""A run goes on with other ones."""


def check_same_settings(path: Path, made_with: dict[str, Any], now: dict[str, Any]) -> None:
    for part in now:
        for name in {**made_with[part], **now[part]}:
            then, value = made_with[part].get(name), now[part].get(name)
            if then != value and name not in AFTER_TRAINING:
                raise SystemExit(
                    f"train.py: {path} was made with {name} = {then}, this run has {value}; give the same to go on "
                    "with it, or leave out --resume to start again"
                )
