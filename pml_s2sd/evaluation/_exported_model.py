"""A deployed model, exported to ONNX or by torch.export; it is loaded without the code that defined it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._argument_checks import check_int, checked_device
from ._onnx_model import Shape, open_onnx

CPU = torch.device("cpu")

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
        device: where the images are to be.
    """

    path: Path
    embed: Callable[[torch.Tensor], Any]
    size: Size
    dtype: torch.dtype
    device: torch.device


def load_exported_model(path: str | Path, device: str | torch.device | None = "cpu") -> ExportedModel:
    """Read a model from images to embeddings, of ONNX or torch.export.

    A .onnx file is data. A .pt2 file is read by ``torch.export.load``, which runs code that its maker put into it: load
    only files that you trust.

    Args:
        path: a .onnx or .pt2 file.
        device: where it is to run, whatever it was exported on; None for a GPU where there is one.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: it is ONNX, and onnxruntime is not installed.
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
    path, device = Path(path), None if device is None else checked_device(device)
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint {path}; expected a program of torch.export, such as MODEL.pt2, or an ONNX model, MODEL.onnx"
        )
    if path.suffix.lower() == ".onnx":
        embed, shapes, dtype = open_onnx(path, device)
        return ExportedModel(path, embed, image_sides(path, shapes), checked_dtype(path, dtype), CPU)
    program = open_program(path)
    shapes, dtype = program_inputs(program)
    size = image_sides(path, shapes)
    device = checked_device("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return ExportedModel(path, program.module(), size, checked_dtype(path, dtype), device)


def open_program(path: Path) -> torch.export.ExportedProgram:
    """A program of torch.export, from a whole file of one."""
    names = names_in_archive(path)
    if not names:
        raise ValueError(
            f"cannot read the checkpoint {path} ({path.stat().st_size:,} bytes): it is cut short, or no program of "
            "torch.export; write it again with torch.export.save. An ONNX model is to be called MODEL.onnx"
        )
    if any(name.split("/")[1:] == ["data.pkl"] for name in names):
        raise ValueError(
            f"{path} holds weights without the model that they belong to; give a program of torch.export, as "
            "examples/train.py writes beside it (.pt2), or export the model as docs/deployment.md says"
        )
    try:
        with path.open("rb") as file:
            return torch.export.load(file)
    except Exception as error:  # its kinds are torch's own affair
        raise ValueError(
            f"torch.export cannot load {path} ({error}); it is broken, or of another version of torch than "
            f"{torch.__version__}: export the model again"
        ) from error


def names_in_archive(path: Path) -> list[str]:
    """What is in a zip archive, as torch's files are; empty for another file, or one that is cut short."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # other files, versions of zip, broken names
        return []
    # A program holds archives: where it is cut behind one, that is what is found, and not from the first byte on.
    return [entry.filename for entry in entries] if min((e.header_offset for e in entries), default=0) == 0 else []


def program_inputs(program: torch.export.ExportedProgram) -> tuple[list[Shape], torch.dtype | None]:
    """The shapes of a program's inputs, and the dtype of the first."""
    names = program.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    shapes = [tuple(side if isinstance(side, int) else None for side in getattr(x, "shape", ())) for x in inputs]
    return shapes, getattr(inputs[0], "dtype", None) if inputs else None


def image_sides(path: Path, shapes: list[Shape]) -> Size:
    """(H, W), each None where any is taken, of the images that a model with inputs of these shapes is called with."""
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3:
        raise ValueError(
            f"{path} takes inputs of shapes {shapes}, expected images (B, 3, H, W) alone; export trunk and embedder "
            "together, torch.nn.Sequential(trunk, embedder.deploy())"
        )
    batch, _, height, width = shapes[0]
    if batch is not None:
        raise ValueError(
            f"{path} takes batches of exactly {batch} images; export it with "
            'dynamic_shapes=({0: torch.export.Dim("batch")},), for any number of them'
        )
    return height, width


def checked_dtype(path: Path, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None or not dtype.is_floating_point:
        raise ValueError(
            f"{path} takes images of a dtype other than float16, float32 and float64; export it with float images in "
            "[0, 1]"
        )
    return dtype


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
