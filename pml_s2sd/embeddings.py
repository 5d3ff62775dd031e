"""S2SDEmbeddings: one batch seen by every embedding space, acting as its base embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

import torch
from torch.utils import _pytree as pytree

from . import _tensor_rule as rule


@dataclass(eq=False)
class S2SDEmbeddings:
    """A batch's embeddings in the base space, in the auxiliary spaces, and the features under them.

    It acts as its base embeddings, z, wherever a tensor is expected (PyTorch's
    ``__torch_function__`` protocol): PML's miners and distances, torch functions, ``torch.nn``
    layers, arithmetic, ``.shape``, ``.device``. One rule says what an operation acts on, be it a
    method, a function or an operator:

    - What takes, orders, repeats, splits, joins, copies or converts whole samples acts on every
      space and returns `S2SDEmbeddings`: ``batch[rows]``, ``torch.cat``, ``stack``, ``split``,
      ``chunk``, ``unbind``, ``index_select`` and their like along dimension 0; ``.to``, ``.float``,
      ``.detach``, ``.clone``.
    - What autograd is told or asked acts on every space: ``.requires_grad_()``, ``.retain_grad()``,
      ``.detach_()``, ``.grad``, ``.backward(gradient)``. So batches in parts, with their gradients
      kept for a second pass (GradCache), are written as for a tensor.
    - What else would change the batch in place is refused: ``add_`` and every other method that
      ends so, ``+=``, ``batch[0] = …``, hooks, ``out=batch``, ``inplace=True``. Name the space that
      you mean, such as ``batch.embeddings.add_(1)``.
    - Everything else computes with z alone and returns what torch returns.

    It is a pytree and a dataclass, so that DistributedDataParallel, FSDP and torch.compile see
    every tensor in it.

    Args:
        embeddings: z, the base embeddings, of shape (B, d).
        aux: the auxiliary embeddings a_1 … a_m, a tuple of tensors of shape (B, d_i).
        features: φ, what the auxiliary heads saw, of shape (B, F).

    Raises:
        TypeError: where an operation would change the base embeddings alone.

    Source: Roth et al., ICML 2021, section 3.

    Example:
        >>> import torch
        >>> from pml_s2sd import S2SDEmbeddings
        >>> batch = S2SDEmbeddings(torch.ones(4, 2), (torch.ones(4, 8),), torch.ones(4, 16))
        >>> batch.shape, (2 * batch).sum().item(), torch.nn.functional.normalize(batch).shape
        (torch.Size([4, 2]), 16.0, torch.Size([4, 2]))
        >>> torch.cat([batch, batch[:3]]).aux[0].shape
        torch.Size([7, 8])
        >>> [part.features.shape for part in batch.split(3)]
        [torch.Size([3, 16]), torch.Size([1, 16])]
    """

    embeddings: torch.Tensor
    aux: tuple[torch.Tensor, ...]
    features: torch.Tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, options = _tensor_first(args, kwargs or {})
        name, first = rule.name_of(func), args[0] if args else None
        if func in (torch.autograd.backward, torch.autograd.grad):
            raise TypeError(
                f"torch.autograd.{name} takes tensors, got a batch of several spaces; name the tensors, as "
                "(batch.embeddings, *batch.aux), or take every gradient on with batch.backward(gradients)"
            )
        if name in rule.MARKS and isinstance(first, S2SDEmbeddings):
            return getattr(first, name)(*args[1:], **options)
        changed = [options.get("out"), first if rule.changes_in_place(name) or options.get("inplace") else None]
        if _hold_batches(changed):
            raise _refused(name)
        if isinstance(first, S2SDEmbeddings) and rule.keeps_samples(name, first._ndim, args, options):
            return _in_every_space(lambda tensor: func(tensor, *args[1:], **options), first)
        if _all_batches(first) and rule.joins_samples(name, first[0]._ndim, args, options):
            return _in_every_space(lambda *tensors: func(tensors, *args[1:], **options), *first)
        args, options = pytree.tree_map(base_embeddings, (args, options), is_leaf=_is_s2sd_embeddings)
        return cls._computed(func(*args, **options))

    @classmethod
    def _computed(cls, result: Any) -> Any:
        """What an operation on the base embeddings gave."""
        return result

    @property
    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return self.embeddings, *self.aux, self.features

    @property
    def _ndim(self) -> int:
        return next(tensor.dim() for tensor in self._tensors if tensor is not None)

    def __getattr__(self, name: str) -> Any:
        # Only reached for what is not defined on the class. Dunders are not forwarded: copy and
        # pickle probe for them on objects that are not filled yet.
        if name == "embeddings" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        attribute = getattr(self.embeddings, name)
        return _refusing(name) if rule.changes_in_place(name) else attribute

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(torch.Tensor, name) and name not in ("grad", "requires_grad"):
            raise _refused(f"setting .{name}")
        object.__setattr__(self, name, value)

    def __getitem__(self, index: Any) -> S2SDEmbeddings | torch.Tensor:
        if rule.index_takes_samples(index, self._ndim):
            return _in_every_space(lambda tensor: tensor[index], self)
        return self._computed(self.embeddings[index])

    def __iter__(self) -> Iterator:
        return iter(self.unbind())

    @property
    def data(self) -> S2SDEmbeddings:
        return _in_every_space(lambda tensor: tensor.data, self)

    @property
    def requires_grad(self) -> bool:
        return self.embeddings.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    @property
    def grad(self) -> S2SDGradients | None:
        """The gradients of all spaces, None for a space that has none; None where no space has one."""
        gradients = [tensor.grad for tensor in self._tensors]
        return None if all(gradient is None for gradient in gradients) else _made(S2SDGradients, gradients)

    @grad.setter
    def grad(self, value: S2SDEmbeddings | None) -> None:
        gradients = (None,) * len(self._tensors) if value is None else _gradients_of(value)
        for tensor, gradient in zip(self._tensors, gradients, strict=True):
            tensor.grad = gradient

    def backward(
        self,
        gradient: S2SDEmbeddings | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        """Takes the gradients of all spaces on through the graph; a space without one is left out."""
        given = zip(self._tensors, _gradients_of(gradient), strict=True)
        pairs = [(tensor, own) for tensor, own in given if own is not None and tensor.requires_grad]
        if not pairs:
            raise RuntimeError("no space of the batch both requires a gradient and is given one")
        tensors, gradients = zip(*pairs, strict=True)
        torch.autograd.backward(tensors, gradients, retain_graph, create_graph, inputs=inputs)


class S2SDGradients(S2SDEmbeddings):
    """The gradients of all spaces of a batch, None where a space has none: its ``.grad``.

    They are taken, split, joined and converted like a batch, for ``batch.backward(gradients)``. A
    tensor computed from those of the base space alone would leave the others out, so that it is
    refused.
    """

    @classmethod
    def _computed(cls, result: Any) -> Any:
        if any(isinstance(value, torch.Tensor) for value in pytree.tree_leaves(result)):
            raise TypeError(
                "this would take the base space's gradient alone; pass the gradients of all spaces on with "
                "batch.backward(gradients), or name the space that you mean, as gradients.embeddings"
            )
        return result

    def __getattr__(self, name: str) -> Any:
        attribute = super().__getattr__(name)
        if not callable(attribute):
            return self._computed(attribute)
        return lambda *args, **kwargs: self._computed(attribute(*args, **kwargs))


def base_embeddings(value: Any) -> Any:
    """The base embeddings of an `S2SDEmbeddings`; anything else as it is."""
    return value.embeddings if _is_s2sd_embeddings(value) else value


def _is_s2sd_embeddings(value: Any) -> bool:
    return isinstance(value, S2SDEmbeddings)


def _all_batches(value: Any) -> TypeGuard[Sequence[S2SDEmbeddings]]:
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(_is_s2sd_embeddings, value))


def _hold_batches(value: Any) -> bool:
    return any(map(_is_s2sd_embeddings, pytree.tree_leaves(value, is_leaf=_is_s2sd_embeddings)))


def _tensor_first(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The tensor, or the tensors, as the first argument, where they were given by keyword."""
    keyword = next((keyword for keyword in ("input", "tensor", "tensors") if keyword in kwargs), None)
    if args or keyword is None:
        return args, kwargs
    return (kwargs[keyword],), {name: value for name, value in kwargs.items() if name != keyword}


def _made(cls: type[S2SDEmbeddings], tensors: Sequence) -> Any:
    return cls(tensors[0], tuple(tensors[1:-1]), tensors[-1])


def _in_every_space(function: Callable, *batches: S2SDEmbeddings) -> Any:
    """A batch of what `function` makes of each space's tensors; where that is several tensors, a batch for each."""
    numbers = [len(batch.aux) for batch in batches]
    if len(set(numbers)) > 1:
        raise ValueError(f"batches of one model are joined, got batches of {numbers} auxiliary spaces")
    spaces = zip(*(batch._tensors for batch in batches), strict=True)
    results = [None if tensors[0] is None else function(*tensors) for tensors in spaces]
    some = next(result for result in results if result is not None)
    cls = type(batches[0])
    if isinstance(some, torch.Tensor):
        return _made(cls, results)
    several = [(None,) * len(some) if result is None else result for result in results]
    return tuple(_made(cls, tensors) for tensors in zip(*several, strict=True))


def _gradients_of(value: Any) -> tuple[torch.Tensor, ...]:
    if not isinstance(value, S2SDEmbeddings):
        raise TypeError(
            f"expected a gradient for every space, as the .grad of S2SDEmbeddings is, got {type(value).__name__}; "
            "for the base space alone name it: batch.embeddings.backward(gradient), batch.embeddings.grad = gradient"
        )
    return value._tensors


def _refused(what: str) -> TypeError:
    return TypeError(
        f"{what} would act on the base embeddings alone, in place; name the space that you mean, as batch.embeddings, "
        "or go through all of them: for tensor in (batch.embeddings, *batch.aux)"
    )


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise _refused(name)

    return refuse


def _on_base(name: str) -> Callable:
    """An operator that Python looks up on the class, applied to the base embeddings."""

    def operator(self: S2SDEmbeddings, *args: Any, **kwargs: Any) -> Any:
        return self._computed(getattr(self.embeddings, name)(*args, **kwargs))

    return operator


def _on_samples(name: str) -> Callable:
    """A method that, given the right arguments, keeps whole samples."""

    def method(self: S2SDEmbeddings, *args: Any, **kwargs: Any) -> Any:
        if rule.keeps_samples(name, self._ndim, (self, *args), kwargs):
            return _in_every_space(lambda tensor: getattr(tensor, name)(*args, **kwargs), self)
        return self._computed(getattr(self.embeddings, name)(*args, **kwargs))

    return method


def _marking(name: str) -> Callable:
    """A method that marks a tensor, in place, applied to every space."""

    def method(self: S2SDEmbeddings, *args: Any, **kwargs: Any) -> S2SDEmbeddings | None:
        for tensor in self._tensors:
            if tensor is not None:
                getattr(tensor, name)(*args, **kwargs)
        return self if name.endswith("_") else None

    return method


_OPERATORS = """add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul
and rand or ror xor rxor lshift rlshift rshift rrshift neg pos invert abs eq ne lt le gt ge
bool int float complex index len contains array dlpack dlpack_device"""
_IN_PLACE_OPERATORS = "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift setitem delitem"
for _name in _OPERATORS.split():
    setattr(S2SDEmbeddings, f"__{_name}__", _on_base(f"__{_name}__"))
for _name in _IN_PLACE_OPERATORS.split():
    setattr(S2SDEmbeddings, f"__{_name}__", _refusing(f"__{_name}__"))
for _name in rule.CONVERSIONS | rule.ALONG.keys() | rule.REPEATS:
    if hasattr(torch.Tensor, _name):
        setattr(S2SDEmbeddings, _name, _on_samples(_name))
for _name in rule.MARKS:
    setattr(S2SDEmbeddings, _name, _marking(_name))
# Compared element by element, hashed by identity, as tensors are; NumPy leaves its operators to it, as to tensors.
S2SDEmbeddings.__hash__ = object.__hash__  # type: ignore[method-assign]
S2SDEmbeddings.__array_priority__ = torch.Tensor.__array_priority__  # type: ignore[attr-defined]


def register_as_pytree(cls: type[S2SDEmbeddings]) -> None:
    """Shows all tensors of a batch to torch.compile, torch.export and torch.utils.checkpoint."""
    pytree.register_pytree_node(
        cls,
        lambda batch: ([batch.embeddings, batch.aux, batch.features], None),
        lambda children, _: cls(*children),
        serialized_type_name=f"pml_s2sd.{cls.__name__}",
    )


register_as_pytree(S2SDEmbeddings)
register_as_pytree(S2SDGradients)
