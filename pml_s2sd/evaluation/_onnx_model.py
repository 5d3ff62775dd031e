"""An ONNX model, which is data: reading it runs no code of its maker's; by onnxruntime, the `onnx` extra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}
"""Of images that a model may take, by onnxruntime's names."""

Shape = tuple[int | None, ...]
"""Of a tensor, None where any size is taken."""


def open_onnx(path: Path, device: torch.device | None) -> tuple[Callable, list[Shape], torch.dtype | None]:
    """What runs an ONNX model, the shapes of its inputs, and the dtype of the first.

    Args:
        path: a .onnx file.
        device: where it is to run; None for a GPU where onnxruntime has one.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: it is no ONNX model, or onnxruntime does not know such a device.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX models are run by onnxruntime: pip install onnxruntime") from error
    providers = _providers(device, onnxruntime)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # its kinds are onnxruntime's own affair
        raise ValueError(
            f"onnxruntime cannot load {path} ({path.stat().st_size:,} bytes): {error}; it is cut short, no ONNX model, "
            f"or of a later version than onnxruntime {onnxruntime.__version__} knows: export the model again"
        ) from error
    inputs = session.get_inputs()
    shapes = [tuple(side if isinstance(side, int) else None for side in of_input.shape) for of_input in inputs]

    def embed(images: torch.Tensor) -> Any:
        found = session.run(None, {inputs[0].name: images.cpu().numpy()})
        return torch.from_numpy(found[0]) if len(found) == 1 else tuple(found)

    return embed, shapes, DTYPES.get(inputs[0].type) if inputs else None


def _providers(device: torch.device | None, onnxruntime: Any) -> list[Any]:
    """What onnxruntime is to run on, by its names."""
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    cpu = ["CPUExecutionProvider"]
    if device is None:
        return (["CUDAExecutionProvider"] if has_cuda else []) + cpu
    if device.type == "cpu":
        return cpu
    if device.type != "cuda" or not has_cuda:
        raise ValueError(
            f"cannot use the device {str(device)!r}: this onnxruntime runs on {onnxruntime.get_device()}; leave "
            "--device out, or install onnxruntime-gpu"
        )
    return [("CUDAExecutionProvider", {"device_id": device.index or 0}), *cpu]
