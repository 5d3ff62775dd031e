"""S2SDEmbeddings: one batch seen by every embedding space, acting as its base embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree


@dataclass(eq=False)
class S2SDEmbeddings:
    """A batch's embeddings in the base space, in the auxiliary spaces, and the features under them.

    It acts as its base embeddings, z, wherever a tensor is expected (PyTorch's
    ``__torch_function__`` protocol): PML's miners and distances, torch functions, ``torch.nn``
    layers, arithmetic, indexing, ``.shape``, ``.device``. Such an operation returns a plain
    tensor. What takes, joins or converts whole samples returns `S2SDEmbeddings`, so that it can
    stand between the embedder and the loss: ``batch[rows]``, ``torch.cat`` of batches along
    dimension 0, ``.to``, ``.float``, ``.detach``, ``.clone`` and their like.

    It is a pytree and a dataclass, so that DistributedDataParallel, FSDP and torch.compile see
    every tensor in it.

    Args:
        embeddings: z, the base embeddings, of shape (B, d).
        aux: the auxiliary embeddings a_1 … a_m, a tuple of tensors of shape (B, d_i).
        features: φ, what the auxiliary heads saw, of shape (B, F).

    Source: Roth et al., ICML 2021, section 3.

    Example:
        >>> import torch
        >>> from pml_s2sd import S2SDEmbeddings
        >>> batch = S2SDEmbeddings(torch.ones(4, 2), (torch.ones(4, 8),), torch.ones(4, 16))
        >>> batch.shape, (2 * batch).sum().item(), torch.nn.functional.normalize(batch).shape
        (torch.Size([4, 2]), 16.0, torch.Size([4, 2]))
        >>> torch.cat([batch, batch[:3]]).aux[0].shape
        torch.Size([7, 8])
    """

    embeddings: torch.Tensor
    aux: tuple[torch.Tensor, ...]
    features: torch.Tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.cat, torch.concat, torch.concatenate):
            batches = _joined_samples(*args, **kwargs)
            if batches is not None:
                return pytree.tree_map(lambda *tensors: torch.cat(tensors), *batches)
        args, kwargs = pytree.tree_map(base_embeddings, (args, kwargs), is_leaf=_is_s2sd_embeddings)
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Only reached for what is not defined on the class. Dunders are not forwarded: copy and
        # pickle probe for them on objects that are not filled yet.
        if name == "embeddings" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.embeddings, name)

    def __getitem__(self, index: Any) -> S2SDEmbeddings | torch.Tensor:
        if isinstance(index, slice | list | np.ndarray) or (isinstance(index, torch.Tensor) and index.dim() == 1):
            return pytree.tree_map(lambda tensor: tensor[index], self)
        return self.embeddings[index]


def base_embeddings(value: Any) -> Any:
    """The base embeddings of an `S2SDEmbeddings`; anything else as it is."""
    return value.embeddings if _is_s2sd_embeddings(value) else value


def _is_s2sd_embeddings(value: Any) -> bool:
    return isinstance(value, S2SDEmbeddings)


def _joined_samples(tensors: Sequence, dim: int = 0, *, axis: int | None = None, out: Any = None) -> Sequence | None:
    """The batches that torch.cat, given these arguments, joins along dimension 0, or None."""
    dim = dim if axis is None else axis
    return tensors if dim == 0 and out is None and all(map(_is_s2sd_embeddings, tensors)) else None


def _on_base(name: str) -> Callable:
    """An operator that Python looks up on the class, applied to the base embeddings."""

    def operator(self: S2SDEmbeddings, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.embeddings, name)(*map(base_embeddings, args), **kwargs)

    return operator


def _on_every_tensor(name: str) -> Callable:
    """A method that converts a tensor, applied to every space."""

    def method(self: S2SDEmbeddings, *args: Any, **kwargs: Any) -> S2SDEmbeddings:
        return pytree.tree_map(lambda tensor: getattr(tensor, name)(*args, **kwargs), self)

    return method


_OPERATORS = """add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul
neg pos abs eq ne lt le gt ge bool float int len iter contains array"""
for _name in _OPERATORS.split():
    setattr(S2SDEmbeddings, f"__{_name}__", _on_base(f"__{_name}__"))
for _name in ("to", "type_as", "cpu", "cuda", "float", "double", "half", "bfloat16", "contiguous", "clone", "detach"):
    setattr(S2SDEmbeddings, _name, _on_every_tensor(_name))
# Compared element by element, hashed by identity, as tensors are.
S2SDEmbeddings.__hash__ = object.__hash__  # type: ignore[method-assign]

pytree.register_pytree_node(
    S2SDEmbeddings,
    lambda batch: ([batch.embeddings, batch.aux, batch.features], None),
    lambda children, _: S2SDEmbeddings(*children),
    serialized_type_name="pml_s2sd.S2SDEmbeddings",
)
