"""`compress`: the checks of its arguments, and the map as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch

from .._argument_checks import checked_device
from .._matrices import Matrix, checked_labels, opened
from .._similarity_map import Rows, Settings, checked_sizes, train_maps


@overload
def compress(embeddings: Matrix, size: int, **options: Any) -> torch.nn.Linear: ...
@overload
def compress(embeddings: Matrix, size: Sequence[int], **options: Any) -> dict[int, torch.nn.Linear]: ...
def compress(  # type: ignore[misc]  # the overloads leave the options to this signature
    embeddings: Matrix,
    size: int | Sequence[int],
    *,
    labels: torch.Tensor | np.ndarray | Sequence[int] | None = None,
    features: Matrix | None = None,
    rows: np.ndarray | None = None,
    label_weight: float = 0.3,
    temperature: float = 0.05,
    subset_rows: int | None = None,
    steps: int = 300,
    learning_rate: float = 3e-3,
    seed: int | torch.Generator = 0,
    device: str | torch.device | None = None,
) -> torch.nn.Linear | dict[int, torch.nn.Linear]:
    """A linear map to `size` dimensions that keeps the similarities of embeddings, for retrieval by cosine.

        min over W:  KL( softmax( (e_S e_Sᵀ + λ [y_i = y_j]) / T ) ‖ softmax( cos(x_S W) / T ) ),  over subsets S

    e are the embeddings, normalised, x the features or the embeddings themselves; nobody is compared with
    itself. It starts from PCA; with features and many classes, nearer to what predicts e best. Seconds on a CPU; time
    hardly grows with N.

    Args:
        embeddings: e, (N, k), N at least 2, of any model: a tensor or array of float16, float32 or float64,
            memory-mapped or not, or the path of a .npy file, which is then memory-mapped; or a list of such files or
            arrays, one after another. The length of a row does not matter; a row of zeros has no direction, and is
            passed over.
        size: d, at most F: of the map; or several, for a map each, the same as one alone.
        labels: y, (N,), integers, where classes are known: those of a class are drawn together. Below 0: not known.
        features: x, (N, F), as `embeddings`, where the map is to be taken of these instead.
        rows: the numbers of the rows to train on, (M,), M at least 2, where not all are to be: no copy is made.
        label_weight: λ ≥ 0.
        temperature: T > 0.
        subset_rows: rows of a subset S; by default 512, or twice as many as there are classes, 2048 at most.
        steps: subsets, each drawn anew.
        learning_rate: of Adam, decaying to 0 by a cosine.
        seed: the same one gives the same map; a generator is drawn from once.
        device: where it is computed; that of the tensor, or the CPU, unless given.

    Returns:
        A Linear(F, d) without bias, on that device, float64 where the input is and float32 otherwise; for
        several sizes a dict of them by size. Normalise what it returns, or compare by cosine.

    Raises:
        TypeError, ValueError: on an array, label or number that does not fit; says what to do.
        FileNotFoundError: there is no such file.

    Source: the distillation of S2SD (Roth et al., ICML 2021, arXiv 2009.08348), over a whole set of embeddings.

    Example:
        >>> import torch
        >>> from pml_s2sd import compress
        >>> embeddings = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
        >>> to_4 = compress(embeddings, 4)
        >>> to_4
        Linear(in_features=16, out_features=4, bias=False)
        >>> small = torch.nn.functional.normalize(to_4(embeddings))
        >>> sorted(compress(embeddings, [2, 4]))
        [2, 4]
    """
    embeddings = opened("embeddings", embeddings)
    features = None if features is None else opened("features", features)
    _check(embeddings, features, rows)
    sizes = checked_sizes(size, (embeddings if features is None else features).shape[1])
    settings = Settings(label_weight, temperature, subset_rows, steps, learning_rate, seed).checked()
    if device is None:
        device = embeddings.device if isinstance(embeddings, torch.Tensor) else "cpu"
    device = checked_device(device)
    wide = [matrix for matrix in (embeddings, features) if matrix is not None and matrix.dtype.itemsize > 4]
    dtype = torch.float64 if wide else torch.float32
    y = None if labels is None else checked_labels(labels, len(embeddings)).to(device)
    e = Rows("embeddings", embeddings, device, dtype, rows)
    x = e if features is None else Rows("features", features, device, dtype, rows)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        maps = train_maps(x, [e], sizes, settings, rows=rows, labels=y)
        layers = {d: layer_of(weight) for d, weight in maps.items()}
    return layers[size] if isinstance(size, int) else layers


@torch.no_grad()
def layer_of(weight: torch.Tensor) -> torch.nn.Linear:
    """A Linear of this weight, (d, F); the global random state is left alone."""
    d, F = weight.shape
    layer = torch.nn.utils.skip_init(torch.nn.Linear, F, d, bias=False, device=weight.device, dtype=weight.dtype)
    layer.weight.copy_(weight)
    return layer


def _check(embeddings: Any, features: Any, rows: Any) -> None:
    N = len(embeddings)
    if N < 2:
        raise ValueError("embeddings has one row, which has nothing to be similar to; give at least 2")
    if rows is not None:
        if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iu":
            raise TypeError(f"rows must be an array of integers, the numbers of rows, got {type(rows).__name__}")
        if rows.ndim != 1 or len(rows) < 2 or rows.min() < 0 or rows.max() >= N:
            raise ValueError(f"rows must be at least 2 numbers of 0 to {N - 1}, got shape {rows.shape}")
    if features is not None and len(features) != N:
        raise ValueError(f"features has {len(features)} rows and embeddings {N}; give both of the same samples")
