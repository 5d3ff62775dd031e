"""`consolidate`: after training, the base head distilled anew from the auxiliary spaces over the whole training set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import nn

from ._argument_checks import checked_device
from ._features import average_pool, checked_features, max_pool
from ._matrices import Matrix, Opened, checked_labels, opened
from ._modes import in_eval_mode, whole_state
from ._similarity_map import MadeRows, Rows, Settings, checked_sizes, subset_rows_for, train_maps
from .embedder import Embedder, S2SDEmbedder

KEPT_ENTRIES = 2**27
"""Teachers' embeddings of at most so many numbers (half a GiB) are made once and kept; others at each step."""


@overload
def consolidate(
    embedder: Embedder, features: Matrix, labels: Any = None, *, size: int | None = None, **options: Any
) -> Embedder: ...
@overload
def consolidate(
    embedder: Embedder, features: Matrix, labels: Any = None, *, size: Sequence[int], **options: Any
) -> dict[int, Embedder]: ...
def consolidate(  # type: ignore[misc]  # the overloads leave the options to this signature
    embedder: Embedder,
    features: Matrix,
    labels: torch.Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    size: int | Sequence[int] | None = None,
    label_weight: float = 0.3,
    temperature: float = 0.05,
    subset_rows: int | None = None,
    steps: int = 300,
    learning_rate: float = 3e-3,
    seed: int | torch.Generator = 0,
    device: str | torch.device | None = None,
) -> Embedder | dict[int, Embedder]:
    """The base head, distilled once more from the auxiliary spaces: over the whole training set, after training.

        min over W:  (1/m) Σ_i KL( softmax( (cos(a_i, a_i) + λ [y = y]) / T ) ‖ softmax( cos(W φ, W φ) / T ) ),

    over random subsets of the training set, no sample compared with itself. In a batch of a hundred the small space
    is shown few of the similarities that it is to keep; here it is shown them by the million. It is one linear map, of
    any size: one training gives every size. The engine is that of `compress`; it takes seconds on a CPU.

    Args:
        embedder: the trained one, such as ``model[1]``. Its auxiliary spaces are the teachers; where it has none, the
            base space is, for another size. It stays as it was.
        features: φ of the training set, as the embedder takes them: (N, F), or feature maps (N, F, H, W), which
            aggregate_pooling (variant MSDFA) needs. A tensor, an array, or the path of a .npy file, which is then
            memory-mapped. `collect_features` makes them of a trunk and a loader.
        labels: y, (N,), integers. Below 0: not known. None: without labels.
        size: d, at most F; that of the embedder unless given; or several.
        label_weight, temperature, subset_rows, steps, learning_rate, seed: as in `compress`.
        device: where it is computed; that of the embedder unless given.

    Returns:
        An `Embedder` in eval mode, its head a ``torch.nn.Linear(F, d)`` with a bias of zeros, on the embedder's device
        and of its dtype: it costs what the base head costs. For several sizes a dict of them by size. Compare what it
        returns by cosine, as PML does.

    Raises:
        TypeError, ValueError: on an embedder, array, label or number that does not fit; says what to do.
        FileNotFoundError: there is no such file.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from pml_s2sd import consolidate, s2sd
        >>> embedder, loss_func = s2sd(losses.MultiSimilarityLoss(), in_features=64, embedding_size=8)
        >>> features, labels = torch.randn(200, 64), torch.arange(200) // 4  # of the training set
        >>> deployed = consolidate(embedder, features, labels)
        >>> deployed.head
        Linear(in_features=64, out_features=8, bias=True)
        >>> sorted(consolidate(embedder, features, labels, size=[4, 16]))
        [4, 16]
    """
    embedder = getattr(embedder, "_orig_mod", embedder)  # of torch.compile
    if not isinstance(embedder, Embedder):
        raise TypeError(
            f"embedder must be the S2SDEmbedder that was trained, got {type(embedder).__name__}; pass the embedder "
            "itself, such as model[1] or model.module[1]"
        )
    F = embedder.in_features
    sizes = checked_sizes(embedder.embedding_size if size is None else size, F)
    matrix = opened("features", features, dims=(2, 4))
    _check(embedder, matrix)
    settings = Settings(label_weight, temperature, subset_rows, steps, learning_rate, seed).checked()
    nothing = torch.zeros(0, device=matrix.device if isinstance(matrix, torch.Tensor) else "cpu")
    parameter = next(embedder.parameters(), nothing)
    at = checked_device(parameter.device if device is None else device)
    y = None if labels is None else checked_labels(labels, len(matrix)).to(at)
    compared = settings.subset_rows or subset_rows_for(y)

    def averaged(maps: torch.Tensor) -> torch.Tensor:
        return average_pool(checked_features(maps, F, maps_only=True))

    with torch.no_grad(), torch.autocast(at.type, enabled=False), in_eval_mode(embedder):
        rows = Rows("features", matrix, at, torch.float64 if parameter.dtype == torch.float64 else torch.float32)
        x = rows if matrix.ndim == 2 else MadeRows(rows, F, averaged)
        few = len(rows) <= steps * compared
        teachers = [
            teacher.kept() if few and len(rows) * teacher.columns <= KEPT_ENTRIES else teacher
            for teacher in _teachers(embedder, rows)
        ]
        maps = train_maps(x, teachers, sizes, settings._replace(subset_rows=compared), labels=y)
        deployed = {d: _deployed(embedder, weight.to(parameter.device, parameter.dtype)) for d, weight in maps.items()}
    return deployed if isinstance(size, Sequence) else deployed[sizes[0]]


def _teachers(embedder: Embedder, rows: Rows) -> list[MadeRows]:
    """The auxiliary spaces of the features, or the base space where there is none."""
    aggregated = False
    heads, sizes = [embedder.head], [embedder.embedding_size]
    if isinstance(embedder, S2SDEmbedder) and embedder.aux_sizes:
        heads, sizes, aggregated = [*embedder.aux_heads], [*embedder.aux_sizes], embedder.aggregate_pooling

    def embed_with(head: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        parameters = whole_state(head)
        first = next(iter(parameters.values()), None)

        def embed(features: torch.Tensor) -> torch.Tensor:
            features = checked_features(features, embedder.in_features, maps_only=aggregated)
            pooled = average_pool(features)
            if aggregated:
                pooled = pooled + max_pool(features)
            pooled = pooled if first is None else pooled.to(first.device, first.dtype)
            embeddings = torch.func.functional_call(head, parameters, (pooled,))
            return embeddings.to(features.device)

        return embed

    return [MadeRows(rows, size, embed_with(head)) for head, size in zip(heads, sizes, strict=True)]


def _deployed(embedder: Embedder, weight: torch.Tensor) -> Embedder:
    """An embedder that reads the trunk as this one, with the map (d, F); the global random state is left alone."""
    d, F = weight.shape
    head = nn.utils.skip_init(nn.Linear, F, d, device=weight.device, dtype=weight.dtype)
    head.weight.copy_(weight)
    head.bias.zero_()
    return Embedder(F, d, head, field=embedder.field, tokens=embedder.tokens).eval()


def _check(embedder: Embedder, matrix: Opened) -> None:
    """Features that the embedder takes, of at least two samples."""
    maps_only = isinstance(embedder, S2SDEmbedder) and embedder.aggregate_pooling
    if maps_only and matrix.ndim == 2:
        raise ValueError(
            f"aggregate_pooling (variant MSDFA) needs feature maps (N, {embedder.in_features}, H, W), got shape "
            f"{tuple(matrix.shape)}; collect_features(…, keep_maximum=True) makes the smallest that will do"
        )
    one = matrix[:1]
    checked_features(
        torch.from_numpy(np.array(one, dtype=one.dtype.newbyteorder("="))) if isinstance(one, np.ndarray) else one,
        embedder.in_features,
        maps_only=maps_only,
    )
    if len(matrix) < 2:
        raise ValueError(f"features has {len(matrix)} rows, and one has nothing to be similar to; give at least 2")
