"""On which tensors of a batch a torch operation acts: the rule that `S2SDEmbeddings` state, as tables of torch's names.

A name is that of a torch function and of the method of `torch.Tensor` alike. Arguments are counted with the tensor
itself, or the sequence of tensors, as the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# Copies and conversions of whole samples: every space.
_DTYPES = ["float", "double", "half", "bfloat16", "int", "long", "short", "char", "byte", "bool"]
_DEVICES = ["cpu", "cuda", "xpu", "ipu", "mtia"]
_COPIES = ["clone", "detach", "detach_copy", "contiguous", "pin_memory"]
CONVERSIONS = frozenset(["to", "type", "type_as", *_DTYPES, "cfloat", "cdouble", "chalf", *_DEVICES, *_COPIES])
# What autograd, other processes and other streams have to know of a tensor: every space, in place.
MARKS = frozenset(["requires_grad_", "retain_grad", "detach_", "share_memory_", "record_stream"])
# Every space, where the dimension is that of the samples: where it stands among the arguments, and its default.
ALONG: dict[str, tuple[int | None, int | None]] = {
    **dict.fromkeys(["split", "split_copy", "unsafe_split", "chunk", "unsafe_chunk", "tensor_split"], (2, 0)),
    **dict.fromkeys(["split_with_sizes", "split_with_sizes_copy", "unsafe_split_with_sizes"], (2, 0)),
    **dict.fromkeys(["unbind", "unbind_copy"], (1, 0)),
    **dict.fromkeys(["index_select", "select", "select_copy", "narrow", "narrow_copy", "flip"], (1, None)),
    **dict.fromkeys(["unsqueeze", "unsqueeze_copy", "squeeze", "squeeze_copy", "unflatten"], (1, None)),
    **dict.fromkeys(["roll", "repeat_interleave"], (2, None)),
    **dict.fromkeys(["vsplit", "flipud"], (None, 0)),
}
JOINS: dict[str, tuple[int | None, int | None]] = {
    **dict.fromkeys(["cat", "concat", "concatenate", "stack"], (1, 0)),
    **dict.fromkeys(["vstack", "row_stack"], (None, 0)),
}
# Every space, where every number but the first is 1.
REPEATS = frozenset(["repeat", "tile"])
# These give a dimension of samples to what has none, single samples.
_ADD_A_DIMENSION = frozenset(["stack", "vstack", "row_stack", "unsqueeze", "unsqueeze_copy"])
# What changes a tensor, though no underscore says so.
_CHANGES = frozenset(["register_hook", "register_post_accumulate_grad_hook", "module_load"])


def changes_in_place(name: str) -> bool:
    """Whether an operation of this name changes the tensor that it is called on."""
    return (name.endswith("_") and not name.endswith("__")) or name in _CHANGES


_NAMES: dict[Any, str] = {
    getattr(namespace, name): name
    for namespace in (torch, torch.Tensor, torch.nn.functional, torch.nn.init)
    for name in dir(namespace)
    if changes_in_place(name) or name in {*CONVERSIONS, *ALONG, *JOINS, *REPEATS}
}


def name_of(function: Any) -> str:
    """The name of a torch function, or of a method of `torch.Tensor`."""
    if torch.compiler.is_compiling():  # which knows functions, and not their names
        return _NAMES.get(function, "")
    return getattr(function, "__name__", "").partition(".")[0]  # torch.ops.aten.add_.Tensor is "add_.Tensor"


def keeps_samples(name: str, ndim: int, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether this call, on one tensor of `ndim` dimensions, takes, orders, repeats, splits, copies or converts whole
    samples."""
    if name in CONVERSIONS:
        return name != "type" or len(args) + len(kwargs) > 1  # .type() is a question
    if name in REPEATS:
        return _repeats_samples(ndim, args, kwargs)
    return name in ALONG and _along_samples(name, ALONG[name], ndim, args, kwargs)


def joins_samples(name: str, ndim: int, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether this call, on a sequence of tensors of `ndim` dimensions, joins whole samples."""
    return name in JOINS and _along_samples(name, JOINS[name], ndim, args, kwargs)


def _along_samples(
    name: str, dimension: tuple[int | None, int | None], ndim: int, args: tuple, kwargs: dict[str, Any]
) -> bool:
    dim: Any
    place, dim = dimension
    if place is not None and len(args) > place:
        # torch.Tensor.flip takes its dimensions in a row too
        dim = args[place:] if name == "flip" and len(args) > 2 else args[place]
    for keyword in ("dim", "dims", "axis"):
        dim = kwargs.get(keyword, dim)
    if isinstance(dim, tuple | list) and len(dim) == 1:
        dim = dim[0]
    adds = name in _ADD_A_DIMENSION
    return "out" not in kwargs and isinstance(dim, int) and dim in (0, -ndim - adds) and ndim + adds >= 2


def _repeats_samples(ndim: int, args: tuple, kwargs: dict[str, Any]) -> bool:
    (numbers,) = kwargs.values() if kwargs else (args[1:],)
    if len(numbers) == 1 and isinstance(numbers[0], tuple | list):
        numbers = numbers[0]
    return len(numbers) == ndim >= 2 and all(number == 1 for number in numbers[1:])


def index_takes_samples(index: Any, ndim: int) -> bool:
    """Whether ``x[index]`` selects along dimension 0 and leaves the others as they are."""
    rows, *columns = index if isinstance(index, tuple) and index else (index,)
    whole = all(column is ... or (isinstance(column, slice) and column == slice(None)) for column in columns)
    if ndim < 2 or len(columns) >= ndim or not whole:
        return False
    if isinstance(rows, torch.Tensor):
        return rows.dtype not in (torch.bool, torch.uint8) or rows.dim() == 1
    if isinstance(rows, np.ndarray):
        return rows.dtype != bool or rows.ndim == 1
    return isinstance(rows, slice | list | range) or rows is ... or _is_row_number(rows)


def _is_row_number(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool | np.bool_)
