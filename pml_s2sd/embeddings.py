"""S2SDEmbeddings: one batch seen by every embedding space, acting as its base embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree


@dataclass(eq=False)
class S2SDEmbeddings:
    """A batch's embeddings in the base space, in the auxiliary spaces, and the features under them.

    It acts as its base embeddings, z, wherever a tensor is expected (PyTorch's
    ``__torch_function__`` protocol): PML's miners and distances, torch functions, ``torch.nn``
    layers, arithmetic, indexing, ``.shape``, ``.device``. Such an operation returns a plain
    tensor; `S2SDLoss` alone looks at the other spaces. It is a pytree and a dataclass, so that
    DistributedDataParallel, FSDP and torch.compile see every tensor in it.

    Args:
        embeddings: z, the base embeddings, of shape (B, d).
        aux: the auxiliary embeddings a_1 … a_m, a tuple of tensors of shape (B, d_i).
        features: φ, what the auxiliary heads saw, of shape (B, F).

    Source: Roth et al., ICML 2021, section 3.

    Example:
        >>> import torch
        >>> from pml_s2sd import S2SDEmbeddings
        >>> batch = S2SDEmbeddings(torch.ones(4, 2), (torch.ones(4, 8),), torch.ones(4, 16))
        >>> batch.shape, batch[:3].shape, (2 * batch).sum().item()
        (torch.Size([4, 2]), torch.Size([3, 2]), 16.0)
        >>> torch.cat([batch, batch]).shape
        torch.Size([8, 2])
    """

    embeddings: torch.Tensor
    aux: tuple[torch.Tensor, ...]
    features: torch.Tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = pytree.tree_map(base_embeddings, (args, kwargs or {}), is_leaf=_is_s2sd_embeddings)
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Only reached for what is not defined above. Dunders are not forwarded: copy and pickle
        # probe for them on objects that are not filled yet.
        if name == "embeddings" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.embeddings, name)


def base_embeddings(value: Any) -> Any:
    """The base embeddings of an `S2SDEmbeddings`; anything else as it is."""
    return value.embeddings if _is_s2sd_embeddings(value) else value


def _is_s2sd_embeddings(value: Any) -> bool:
    return isinstance(value, S2SDEmbeddings)


def _forwarded(name: str) -> Callable:
    """An operator that Python looks up on the class, applied to the base embeddings."""

    def operator(self: S2SDEmbeddings, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.embeddings, name)(*map(base_embeddings, args), **kwargs)

    operator.__name__ = name
    return operator


_OPERATORS = """add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul
neg pos abs eq ne lt le gt ge bool float int len iter getitem contains array"""
for _name in _OPERATORS.split():
    setattr(S2SDEmbeddings, f"__{_name}__", _forwarded(f"__{_name}__"))
# Compared element by element, hashed by identity, as tensors are.
S2SDEmbeddings.__hash__ = object.__hash__  # type: ignore[method-assign]

pytree.register_pytree_node(
    S2SDEmbeddings,
    lambda batch: ([batch.embeddings, batch.aux, batch.features], None),
    lambda children, _: S2SDEmbeddings(*children),
    serialized_type_name="pml_s2sd.S2SDEmbeddings",
)
