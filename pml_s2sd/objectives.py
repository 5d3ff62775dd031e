"""Objectives: one PML objective -> the same objective for another embedding size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch import nn

ObjectiveOrFactory = nn.Module | Callable[[int], nn.Module]


class SizeBound(NamedTuple):
    """What in a class of objectives is tied to the embedding size, and how it is initialised."""

    tensor: str
    """Name of the parameter or buffer."""
    axis: int
    """Its axis whose length is the embedding size."""
    initialise: Callable[[nn.Module, torch.Tensor], object]
    """Called with the module and the empty tensor of the new size, to fill it as the class does."""
    attribute: str | None = None
    """Name of the attribute that repeats the embedding size, if there is one."""


def _by_weight_init_func(module: Any, tensor: torch.Tensor) -> object:
    return module.weight_init_func(tensor)


def _normal(module: nn.Module, tensor: torch.Tensor) -> object:
    return nn.init.normal_(tensor)


def _unit_columns(module: nn.Module, tensor: torch.Tensor) -> object:
    return tensor.data.uniform_(-1, 1).renorm_(2, 1, 1e-5).mul_(1e5)


def _empty_queue(module: Any, tensor: torch.Tensor) -> object:
    return module.reset_queue()


SIZE_BOUND: dict[type[nn.Module], SizeBound] = {
    losses.CrossBatchMemory: SizeBound("embedding_memory", 1, _empty_queue, "embedding_size"),
    losses.LargeMarginSoftmaxLoss: SizeBound("W", 0, _by_weight_init_func),
    losses.ManifoldLoss: SizeBound("proxies", 1, _normal, "l"),
    losses.NormalizedSoftmaxLoss: SizeBound("W", 0, _by_weight_init_func),
    losses.P2SGradLoss: SizeBound("weight", 0, _unit_columns, "descriptors_dim"),
    losses.ProxyAnchorLoss: SizeBound("proxies", 1, _by_weight_init_func),
    losses.ProxyNCALoss: SizeBound("proxies", 1, _by_weight_init_func),
    losses.SoftTripleLoss: SizeBound("fc", 0, _by_weight_init_func),
}
"""Size-bound classes; a subclass inherits its parent's entry. Your own class is one line:
``SIZE_BOUND[MyLoss] = SizeBound("centres", axis=1, initialise=lambda module, t: torch.nn.init.normal_(t))``."""


# PML's classes that no training step can follow, by name, as not every version has them: why.
_UNUSABLE = {
    "DynamicSoftMarginLoss": "it keeps the graph of the step before, so that a second backward fails, in PML alone too",
}


def rebuild(loss: nn.Module, embedding_size: int) -> nn.Module:
    """The same objective for another embedding size, its size-bound tensors freshly initialised.

    Objectives inside wrappers (CrossBatchMemory, MultipleLosses, …) are rebuilt with them.

    Args:
        loss: the objective, left untouched.
        embedding_size: the new size.

    Returns:
        A new objective that shares no parameter, buffer or sub-module with `loss`; the new
        tensors have the device and dtype of those that they replace, a memory's queue those that PML makes.

    Example:
        >>> from pytorch_metric_learning import losses
        >>> from pml_s2sd.objectives import rebuild
        >>> rebuild(losses.ProxyAnchorLoss(num_classes=10, embedding_size=32), 64).proxies.shape
        torch.Size([10, 64])
    """
    rebuilt = copy.deepcopy(loss)
    for module in rebuilt.modules():
        bound = size_bound(module)
        if bound is not None:
            _resize(module, bound, embedding_size)
    return rebuilt


def base_objective(loss: ObjectiveOrFactory, embedding_size: int) -> nn.Module:
    """The base space's objective: the instance given, checked against the embedding size, or a made one.

    Raises:
        TypeError: `loss` is neither an objective nor a callable that returns one.
        ValueError: the instance was made for another size, or could not be rebuilt for other spaces.
    """
    if not isinstance(loss, nn.Module):
        return _made(loss, embedding_size)
    _check_usable(loss)
    for name, module in loss.named_modules():
        bound = size_bound(module)
        if bound is None:
            continue
        size = getattr(module, bound.tensor).shape[bound.axis]
        if size != embedding_size:
            raise ValueError(
                f"{_qualified(loss, name, bound.tensor)} is made for embedding_size={size}, but the base embeddings "
                f"have size {embedding_size}; build the loss with embedding_size={embedding_size}"
            )
    _check_rebuildable(loss, {embedding_size})
    return loss


def aux_objectives(loss: ObjectiveOrFactory, embedding_sizes: Collection[int]) -> list[nn.Module]:
    """One objective per auxiliary space, each rebuilt, or made, for its embedding size.

    Raises:
        TypeError, ValueError: as `base_objective`.
    """
    if not isinstance(loss, nn.Module):
        return [_made(loss, size) for size in embedding_sizes]
    _check_usable(loss)
    _check_rebuildable(loss, set(embedding_sizes))
    return [rebuild(loss, size) for size in embedding_sizes]


def of_one_process(module: Any) -> Any:
    """The objective, or the miner, without PML's wrapper for several processes."""
    if isinstance(module, DistributedLossWrapper):
        return module.loss
    return module.miner if isinstance(module, DistributedMinerWrapper) else module


def is_distributed(objective: nn.Module) -> bool:
    """Whether it, or a part of it, is in PML's wrapper for several processes."""
    return any(isinstance(module, DistributedLossWrapper) for module in objective.modules())


def _made(factory: Callable[[int], nn.Module], embedding_size: int) -> nn.Module:
    if isinstance(factory, type) or not callable(factory):
        raise TypeError(
            f"expected a PML objective or a callable embedding_size -> objective, got {factory!r}; "
            "for a class, pass an instance, or lambda embedding_size: TheLoss(..., embedding_size=embedding_size)"
        )
    objective = factory(embedding_size)
    if not isinstance(objective, nn.Module):
        raise TypeError(
            f"the callable embedding_size -> objective must return a torch.nn.Module, got {type(objective).__name__}"
        )
    _check_usable(objective)
    return objective


def _check_usable(loss: nn.Module) -> None:
    for module in loss.modules():
        if type(module).__name__ in _UNUSABLE:
            raise ValueError(
                f"{type(module).__name__} cannot be trained with: {_UNUSABLE[type(module).__name__]}; "
                "choose another loss"
            )


def size_bound(module: nn.Module) -> SizeBound | None:
    """What ties this module to the embedding size, if its class is known to be tied."""
    return next((SIZE_BOUND[cls] for cls in type(module).__mro__ if cls in SIZE_BOUND), None)


def _resize(module: nn.Module, bound: SizeBound, embedding_size: int) -> None:
    old = getattr(module, bound.tensor)
    shape = list(old.shape)
    shape[bound.axis] = embedding_size
    new = torch.empty(shape, dtype=old.dtype, device=old.device)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, bound.tensor, new)
    if bound.attribute is not None:
        setattr(module, bound.attribute, embedding_size)
    bound.initialise(module, new)


def _check_rebuildable(loss: nn.Module, embedding_sizes: set[int]) -> None:
    """Raise where a class that we do not know has a tensor that looks tied to the embedding size."""
    for name, module in loss.named_modules():
        if type(module).__module__.startswith("pytorch_metric_learning."):
            continue
        bound = size_bound(module)
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for tensor_name, tensor in tensors:
            if (bound is None or tensor_name != bound.tensor) and embedding_sizes.intersection(tensor.shape):
                raise ValueError(
                    f"{_qualified(loss, name, tensor_name)} has shape {tuple(tensor.shape)} and looks tied to the "
                    "embedding size. Every embedding space needs an instance of its own size: pass a callable that "
                    f"makes one, lambda embedding_size: {type(loss).__name__}(...), or add {type(module).__name__} to "
                    "pml_s2sd.objectives.SIZE_BOUND"
                )


def _qualified(loss: nn.Module, module_name: str, tensor_name: str) -> str:
    return ".".join(filter(None, (type(loss).__name__, module_name, tensor_name)))
