"""Embedders: pooling, the base head, and the auxiliary heads that exist in training only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ._argument_checks import check_choice, check_instance, check_int
from ._data_parallel import ReplicaEmbeddings
from ._features import average_pool, dtype_for, max_pool
from ._frozen_heads import FrozenHeads
from ._trunk_output import Field, Tokens, trunk_output
from .embeddings import S2SDEmbeddings


class Embedder(nn.Module):
    """The base head alone: what `S2SDEmbedder.deploy` returns, and what is left at test time.

        z = f(φ),  φ the features, average-pooled where they are feature maps

    Args:
        in_features: F, the number of features (channels) of the trunk.
        embedding_size: d.
        head: f, a module from (B, F) to (B, d). Default: ``torch.nn.Linear(F, d)``.
        field, tokens: as `S2SDEmbedder` has them.

    Input: as of `S2SDEmbedder`. Output: (B, d).

    Raises:
        TypeError, ValueError: on input that is no such tensor, naming what was expected and what came.

    Example:
        >>> import torch
        >>> from pml_s2sd import S2SDEmbedder
        >>> deployed = S2SDEmbedder(in_features=64, embedding_size=8).deploy()
        >>> deployed(torch.randn(5, 64, 7, 7)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        in_features: int,
        embedding_size: int,
        head: nn.Module | None = None,
        *,
        field: Field | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        super().__init__()
        if isinstance(in_features, nn.Module):
            raise TypeError(
                f"in_features must be the number of the trunk's features, got a {type(in_features).__name__}; write "
                "count_features(trunk, images)"
            )
        check_int("in_features", in_features, at_least=1)
        check_int("embedding_size", embedding_size, at_least=1)
        check_instance("head", head, nn.Module, f"a torch.nn.Module from (B, {in_features}) to (B, {embedding_size})")
        self.in_features = in_features
        self.embedding_size = embedding_size
        self.field, self.tokens = field, tokens
        self.trunk_output = trunk_output(field, tokens)
        self.head = nn.Linear(in_features, embedding_size) if head is None else head

    def forward(self, features: Any, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        features = self.trunk_output.features(features, attention_mask, self.in_features, maps_only=False)
        return self._embed(average_pool(features, dtype_for(self.head, features)))

    def _embed(self, pooled: torch.Tensor) -> torch.Tensor:
        z = self.head(pooled)
        expected = (pooled.shape[0], self.embedding_size)
        if z.shape != expected:
            raise ValueError(
                f"head returned shape {tuple(z.shape)}, expected {expected}: embedding_size is the head's output size"
            )
        return z

    def extra_repr(self) -> str:
        shown = f"in_features={self.in_features}, embedding_size={self.embedding_size}"
        shown += "" if self.field is None else f", field={self.field!r}"
        return shown if self.tokens is None else f"{shown}, tokens={self.tokens!r}"


def _mlp(in_features: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(in_features, size), nn.ReLU(), nn.Linear(size, size))


AUX_HEADS: dict[str, Callable[[int, int], nn.Module]] = {"mlp": _mlp, "linear": nn.Linear}


class _CopyOfComputedTensors(TorchFunctionMode):
    """While it is on, copy.deepcopy copies tensors with a graph behind them too, without the graph.

    torch refuses to. Such is the weight that weight norm, spectral norm or pruning left in a module at its last call,
    to be computed anew at the next.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


class S2SDEmbedder(Embedder):
    """A linear embedder with auxiliary heads in larger spaces, for training with `S2SDLoss`.

        z = f(φ),   a_i = g_i(φ),   g_i = Linear(F, d_i) - ReLU - Linear(d_i, d_i),   i = 1 … m

    It stands where PML's "embedder" stands. In training mode it returns `S2SDEmbeddings`; in eval
    mode a plain tensor (B, d), exactly what the base head alone gives, at the base head's cost.

    Args:
        in_features: F, the number of features (channels) of the trunk.
        embedding_size: d, the size of the embeddings that are kept.
        aux_sizes: d_1 … d_m, the sizes of the auxiliary spaces; empty for none.
        head: replaces the linear f by a module from (B, F) to (B, d).
        aggregate_pooling: the auxiliary heads and the feature teacher see global average pooling
            plus global max pooling (variant MSDFA); f keeps average pooling. Needs feature maps.
        aux_head: ``"mlp"``, the paper's g_i above, or ``"linear"``, g_i = Linear(F, d_i).
        aux_gradient: whether the auxiliary heads train the trunk, as in the paper.
        base_gradient: whether f does, as in the paper. Without it the trunk learns from the larger spaces alone, as if
            it were trained at their size, and f learns on features that it does not change.
        field: where the trunk returns no tensor, which of what it returns: the name of an attribute, the key of a dict,
            or the position in a tuple, such as ``"last_hidden_state"``, ``"layer4"``, -1.
        tokens: how token sequences (B, N, F) become features: ``"class"``, the first of them, or ``"mean"``; under
            aggregate_pooling the mean plus the maximum.

    Input: features (B, F), or feature maps (B, F, H, W) that it pools itself; maps (B, H, W, F) are told from these by
    their shape. With `field` or `tokens` also what these say. Floating point, and outside autocast converted to the
    head's dtype. A second input, ``attention_mask`` (B, N), integers or bool, is 0 where a token is padding, which has
    no part in mean and maximum; a dict or output object that holds one beside the field needs no other.
    Output: `S2SDEmbeddings` in training mode, a tensor (B, d) in eval mode.

    Raises:
        TypeError, ValueError: on arguments or input of the wrong type or shape, naming what was
            expected and what came.

    Source: Roth et al., ICML 2021, section 3; head architecture as in the authors' code.

    Example:
        >>> import torch
        >>> from pml_s2sd import S2SDEmbedder
        >>> embedder = S2SDEmbedder(in_features=64, embedding_size=8, aux_sizes=(16, 32))
        >>> batch = embedder(torch.randn(5, 64, 7, 7))
        >>> batch.embeddings.shape, [a.shape[1] for a in batch.aux], batch.features.shape
        (torch.Size([5, 8]), [16, 32], torch.Size([5, 64]))
        >>> embedder.eval()(torch.randn(5, 64, 7, 7)).shape
        torch.Size([5, 8])
        >>> of_texts = S2SDEmbedder(64, 8, (16,), field="last_hidden_state", tokens="mean")
        >>> output = {"last_hidden_state": torch.randn(5, 7, 64)}
        >>> of_texts(output, attention_mask=torch.ones(5, 7, dtype=torch.int64)).features.shape
        torch.Size([5, 64])
    """

    _is_replica = False  # torch.nn.DataParallel sets it

    def __init__(
        self,
        in_features: int,
        embedding_size: int,
        aux_sizes: Sequence[int] = (512, 1024, 1536, 2048),
        *,
        head: nn.Module | None = None,
        aggregate_pooling: bool = False,
        aux_head: Literal["mlp", "linear"] = "mlp",
        aux_gradient: bool = True,
        base_gradient: bool = True,
        field: Field | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        super().__init__(in_features, embedding_size, head, field=field, tokens=tokens)
        if isinstance(aux_sizes, int):
            raise TypeError(
                f"aux_sizes must be a sequence of sizes, got {aux_sizes}; for one auxiliary space write ({aux_sizes},)"
            )
        for size in aux_sizes:
            check_int("each of aux_sizes", size, at_least=1)
        self.aux_sizes = tuple(aux_sizes)
        check_choice("aux_head", aux_head, AUX_HEADS)
        if not base_gradient and not (aux_gradient and self.aux_sizes):
            raise ValueError(
                "no space would train the trunk: base_gradient is False, and "
                + ("aux_gradient too" if self.aux_sizes else "there is no auxiliary space")
                + "; set one of them to True"
            )
        if aggregate_pooling and tokens == "class":
            raise ValueError(
                'aggregate_pooling (variant MSDFA) takes the maximum of all tokens, got tokens="class", which is one; '
                'choose tokens="mean", or the variant MSDF'
            )
        self.aggregate_pooling = aggregate_pooling
        self.aux_head = aux_head
        self.aux_gradient = aux_gradient
        self.base_gradient = base_gradient
        self.aux_heads = nn.ModuleList(AUX_HEADS[aux_head](in_features, size) for size in self.aux_sizes)
        self._frozen_heads = FrozenHeads(self.aux_heads)

    def forward(  # type: ignore[override]
        self, features: Any, attention_mask: torch.Tensor | None = None
    ) -> S2SDEmbeddings | torch.Tensor:
        maps_only = self.aggregate_pooling and self.training
        features = self.trunk_output.features(features, attention_mask, self.in_features, maps_only=maps_only)
        pooled = average_pool(features, dtype_for(self.head, features))
        z = self._embed(pooled if self.base_gradient else pooled.detach())
        if not self.training:
            return z
        if z.requires_grad and any(p.requires_grad for p in self.head.parameters()):  # the embedder is being trained
            self._frozen_heads.warn(self.aux_heads)
        if self.aggregate_pooling:
            pooled = pooled + max_pool(features).to(pooled.dtype)
        into_heads = pooled if self.aux_gradient else pooled.detach()
        made = ReplicaEmbeddings if self._is_replica else S2SDEmbeddings
        return made(z, tuple(g(into_heads) for g in self.aux_heads), pooled)

    def deploy(self) -> Embedder:
        """The inference-only module: a copy of the base head, in eval mode, no auxiliary parameter left.

        Its output equals this embedder's in eval mode, bit for bit.
        """
        with _CopyOfComputedTensors():
            head = copy.deepcopy(self.head)
        return Embedder(self.in_features, self.embedding_size, head, field=self.field, tokens=self.tokens).eval()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, aux_sizes={self.aux_sizes}, aggregate_pooling={self.aggregate_pooling}"
