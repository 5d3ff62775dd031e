"""The map in other programs: files, and faiss."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ._compress import layer_of

if TYPE_CHECKING:
    import faiss


def linear_transform(layer: torch.nn.Linear) -> faiss.LinearTransform:
    """The layer as a `faiss.LinearTransform`, from float32 rows (N, F) to (N, d).

    Example:
        >>> import torch
        >>> from pml_s2sd.compress import linear_transform
        >>> layer = torch.nn.Linear(8, 2)
        >>> linear_transform(layer).apply(torch.ones(3, 8).numpy()).shape
        (3, 2)
    """
    import faiss  # only where it is needed: it takes longer to load than all of this package

    transform = faiss.LinearTransform(layer.in_features, layer.out_features, layer.bias is not None)
    faiss.copy_array_to_vector(plain(layer.weight).ravel(), transform.A)
    if layer.bias is not None:
        faiss.copy_array_to_vector(plain(layer.bias), transform.b)
    transform.is_trained = True
    return transform


def compressed_index(layer: torch.nn.Linear, index: faiss.Index) -> faiss.IndexPreTransform:
    """An index of d dimensions, served with the original embeddings: these are mapped and normalised on the way in.

    Training, adding and searching take rows (N, F) as before the map; what is stored is the d dimensions. On rows of
    length 1 the smallest L2 distance is the largest cosine, so that either metric of `index` will do.

    Args:
        layer: of `compress`, Linear(F, d).
        index: any faiss index of d dimensions, empty.

    Raises:
        ValueError: the index is of another size, or holds rows already.

    Example:
        >>> import faiss, torch
        >>> from pml_s2sd import compress
        >>> from pml_s2sd.compress import compressed_index
        >>> embeddings = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
        >>> index = compressed_index(compress(embeddings, 8), faiss.IndexFlatIP(8))
        >>> index.add(embeddings.numpy())
        >>> index.search(embeddings[:3].numpy(), 1)[1].ravel()
        array([0, 1, 2])
    """
    if index.d != layer.out_features or index.ntotal:
        raise ValueError(
            f"index must be empty and of {layer.out_features} dimensions, those of the map, got {index.d} dimensions "
            f"and {index.ntotal} rows"
        )
    import faiss

    served = faiss.IndexPreTransform(index)
    served.prepend_transform(faiss.NormalizationTransform(index.d))
    served.prepend_transform(linear_transform(layer))
    return served


def save_map(layer: torch.nn.Linear, path: str | os.PathLike) -> None:
    """Write the map in the format of the path's suffix; whole or not at all.

    - ``.npz``: the array ``weight``, (d, F), float32; z = x @ weight.T.
    - ``.safetensors``: the tensor ``weight``, the state of a torch.nn.Linear (needs the package safetensors).
    - ``.onnx``: a model from ``embeddings`` (N, F) to ``compressed`` (N, d) (needs the package onnx).
    - ``.faiss``: a `faiss.LinearTransform`, for faiss.read_VectorTransform.

    Args:
        layer: of `compress`, Linear(F, d) without bias.
        path: the file, in a folder that is there.

    Raises:
        ValueError: another suffix.
        FileNotFoundError: there is no such folder.
        ImportError: the format's package is not installed.

    Example:
        >>> import numpy, torch
        >>> from pml_s2sd.compress import save_map
        >>> path = f"{getfixture('tmp_path')}/map.npz"
        >>> save_map(torch.nn.Linear(8, 2, bias=False), path)
        >>> numpy.load(path)["weight"].shape
        (2, 8)
    """
    path = Path(path)
    write = checked_format(path).write
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(layer, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_map(path: str | os.PathLike) -> torch.nn.Linear:
    """The map of a file that `save_map` wrote, in any of its formats.

    Args:
        path: the file.

    Returns:
        A Linear(F, d) without bias, float32, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix, or no map in the file.
        ImportError: the format's package is not installed.

    Example:
        >>> import torch
        >>> from pml_s2sd.compress import load_map, save_map
        >>> layer, path = torch.nn.Linear(8, 2, bias=False), f"{getfixture('tmp_path')}/map.npz"
        >>> save_map(layer, path)
        >>> torch.equal(load_map(path).weight, layer.weight)
        True
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected a map that save_map, or the command with --size, wrote")
    read = checked_format(path).read
    try:
        weight = np.array(read(path), dtype=np.float32, ndmin=1)
    except Exception as error:  # each package raises errors of its own
        raise ValueError(
            f"cannot read a map from {path} ({type(error).__name__}: {error}); it is cut short, or no map; write it "
            "again with save_map"
        ) from error
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"{path} holds an array of shape {weight.shape}; expected a map, (d, F), that save_map wrote")
    return layer_of(torch.from_numpy(weight))


def checked_format(path: Path) -> Format:
    """The format of a path's suffix, where all that it needs is there."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} has none of the suffixes that say the format of a map: {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for {path}; make it first")
    package = FORMATS[path.suffix].package
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"a map in {path.suffix} needs the package {package}: pip install {package}")
    return FORMATS[path.suffix]


def plain(weight: torch.Tensor) -> np.ndarray:
    """float32, on the CPU, in one piece."""
    return weight.detach().float().cpu().contiguous().numpy()


def _npz(layer: torch.nn.Linear, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=plain(layer.weight))


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays["weight"]


def _safetensors(layer: torch.nn.Linear, path: Path) -> None:
    save_file = importlib.import_module("safetensors.numpy").save_file
    save_file({"weight": plain(layer.weight)}, path)


def _read_safetensors(path: Path) -> np.ndarray:
    return importlib.import_module("safetensors.numpy").load_file(path)["weight"]


def _onnx(layer: torch.nn.Linear, path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    def rows_of(name: str, columns: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", columns])

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["embeddings", "weight"], ["compressed"])],
        "pml_s2sd.compress",
        [rows_of("embeddings", layer.in_features)],
        [rows_of("compressed", layer.out_features)],
        [numpy_helper.from_array(np.ascontiguousarray(plain(layer.weight).T), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def _read_onnx(path: Path) -> np.ndarray:
    import onnx

    return onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]).T


def _faiss(layer: torch.nn.Linear, path: Path) -> None:
    import faiss

    faiss.write_VectorTransform(linear_transform(layer), str(path))


def _read_faiss(path: Path) -> np.ndarray:
    import faiss

    transform: Any = faiss.read_VectorTransform(str(path))
    return faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)


class Format(NamedTuple):
    """How a map is written and read, and the package that this needs."""

    package: str
    write: Callable[[torch.nn.Linear, Path], None]
    read: Callable[[Path], np.ndarray]


FORMATS = {
    ".npz": Format("numpy", _npz, _read_npz),
    ".safetensors": Format("safetensors", _safetensors, _read_safetensors),
    ".onnx": Format("onnx", _onnx, _read_onnx),
    ".faiss": Format("faiss", _faiss, _read_faiss),
}
