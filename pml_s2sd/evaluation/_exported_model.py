"""A deployed model as a program of torch.export, which is loaded without the model's code."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._argument_checks import check_int

Size = tuple[int | None, int | None]
"""(H, W), each None where any is taken."""


@dataclass(frozen=True)
class ExportedModel:
    """A deployed model: what embeds a batch of images, and what it expects.

    Attributes:
        path: where it was read.
        embed: images (B, 3, H, W) to embeddings (B, d).
        size: (H, W); each None where any is taken.
        dtype: of the images.
        device: where it runs.
    """

    path: Path
    embed: Any
    size: Size
    dtype: torch.dtype
    device: torch.device


def load_exported_model(path: str | Path, device: str | torch.device = "cpu") -> ExportedModel:
    """Read a program of torch.export from images to embeddings.

    Args:
        path: a .pt2 file.
        device: where it is to run, whatever it was exported on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, it is something else, it takes no images or one batch size alone, or there is no
            such device; says what to do.

    Example:
        >>> import torch
        >>> from pml_s2sd.evaluation._exported_model import load_exported_model
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 2)).eval()
        >>> any_batch = ({0: torch.export.Dim("batch")},)
        >>> program = torch.export.export(model, (torch.rand(2, 3, 4, 4),), dynamic_shapes=any_batch)
        >>> torch.export.save(program, f"{getfixture('tmp_path')}/model.pt2")
        >>> loaded = load_exported_model(f"{getfixture('tmp_path')}/model.pt2")
        >>> loaded.size, loaded.embed(torch.rand(5, 3, 4, 4)).shape
        ((4, 4), torch.Size([5, 2]))
    """
    path, device = Path(path), checked_device(device)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}; expected a program of torch.export, such as MODEL.pt2")
    names = names_in_archive(path)
    if not names:
        raise ValueError(
            f"cannot read the checkpoint {path} ({path.stat().st_size:,} bytes): it is cut short, or no program of "
            "torch.export; write it again with torch.export.save"
        )
    if any(name.split("/")[1:] == ["data.pkl"] for name in names):
        raise ValueError(
            f"{path} holds weights without the model that they belong to; give a program of torch.export, as "
            "examples/train.py writes beside it (.pt2), or export the model as docs/deployment.md says"
        )
    try:
        with path.open("rb") as file:
            program = torch.export.load(file)
    except Exception as error:  # its kinds are torch's own affair
        raise ValueError(
            f"torch.export cannot load {path} ({error}); it is broken, or of another version of torch than "
            f"{torch.__version__}: export the model again"
        ) from error
    size, dtype = expected_images(path, program)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return ExportedModel(path, program.module(), size, dtype, device)


def names_in_archive(path: Path) -> list[str]:
    """What is in a zip archive, as torch's files are; empty for another file, or one that is cut short."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        return []
    # A program holds archives: where it is cut behind one, that is what is found, and not from the first byte on.
    return [entry.filename for entry in entries] if min((e.header_offset for e in entries), default=0) == 0 else []


def expected_images(path: Path, program: torch.export.ExportedProgram) -> tuple[Size, torch.dtype]:
    """(H, W), each None where any is taken, and the dtype, of the images that a program is called with."""
    names = program.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    shapes = [tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)]
    if len(inputs) != 1 or len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3:
        raise ValueError(
            f"{path} takes inputs of shapes {shapes}, expected images (B, 3, H, W) alone; export trunk and embedder "
            "together, torch.nn.Sequential(trunk, embedder.deploy())"
        )
    batch, _, height, width = (side if isinstance(side, int) else None for side in shapes[0])
    if batch is not None:
        raise ValueError(
            f"{path} takes batches of exactly {batch} images; export it with "
            'dynamic_shapes=({0: torch.export.Dim("batch")},), for any number of them'
        )
    return (height, width), inputs[0].dtype


def checked_device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        raise ValueError(f"cannot use the device {device!r}: {error}") from error


def image_size(model: ExportedModel, side: int | None) -> tuple[int, int]:
    """(H, W): what the model expects, or `side` where it takes any."""
    if side is not None:
        check_int("--image-size", side, at_least=1)
    height, width = (side if expected is None else expected for expected in model.size)
    if height is None or width is None:
        raise ValueError(f"{model.path} takes images of any size; give the one of its training, --image-size SIDE")
    if side is not None and (height, width) != (side, side):
        raise ValueError(
            f"--image-size is {side}, but {model.path} takes images of {height} × {width}; leave --image-size out"
        )
    return height, width
