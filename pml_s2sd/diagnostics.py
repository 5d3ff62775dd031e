"""Diagnostics: whether the auxiliary spaces have something to teach, and whether the base space learns it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from torch import nn

from .checks import check_instance, check_int, check_labels, check_number
from .distillation import Space, Teaching, mean_divergences
from .embedder import S2SDEmbedder
from .embeddings import S2SDEmbeddings
from .similarity import Similarity

BLOCK_ENTRIES = 2**22
"""Similarities at hand at a time."""


@torch.no_grad()
def diagnose(
    embeddings: S2SDEmbeddings,
    labels: torch.Tensor,
    *,
    neighbours: int = 10,
    temperature: float = 1.0,
    include_diagonal: bool = True,
    distance: BaseDistance | None = None,
) -> dict[str, torch.Tensor]:
    """What each space retrieves, and how far the base space is from its teachers.

        recall_at_1    share of the samples whose nearest other sample is of their class
        divergence     KL(D^z, D^t) = T² / N · Σ_rows KL( softmax(D^t / T) ‖ softmax(D^z / T) )
        agreement      mean share of the k nearest others in z that are among the k nearest in t

    A teacher t has something to teach while its recall_at_1 is above that of z; it is learnt when its
    divergence falls and its agreement rises. Nothing of the kind is computed unless this is called.

    Args:
        embeddings: of a batch, or of a held-out set (see `held_out`), N ≥ 2 samples.
        labels: (N,), integers.
        neighbours: k ≥ 1, less than N.
        temperature: T > 0; the loss's own, ``loss_func.temperature``.
        include_diagonal: as in the loss, ``loss_func.include_diagonal``.
        distance: gives D, a PML distance; cosine similarity by default.

    Returns:
        Detached scalars by name: ``recall_at_1/z``, ``recall_at_1/a1`` … ``recall_at_1/features``,
        ``divergence/a1`` …, ``agreement/a1`` …, the auxiliary spaces in order, then the features. Only
        samples whose class has another count in recall_at_1, which is 0 where there is none.

    Raises:
        TypeError, ValueError: on input that cannot be used, naming what was expected and what came.

    Source: the divergence is the distillation term of Roth et al., ICML 2021, section 3.

    Example:
        >>> import torch
        >>> from pml_s2sd import S2SDEmbeddings
        >>> from pml_s2sd.diagnostics import diagnose
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> found = diagnose(S2SDEmbeddings(x, (2 * x,), x), torch.tensor([0, 0, 1, 1]), neighbours=1)
        >>> {name: round(value.item(), 3) for name, value in found.items() if name.endswith(("z", "a1"))}
        {'recall_at_1/z': 1.0, 'recall_at_1/a1': 1.0, 'divergence/a1': 0.0, 'agreement/a1': 1.0}
    """
    check_instance(
        "embeddings", embeddings, S2SDEmbeddings, "S2SDEmbeddings, as an S2SDEmbedder in training mode gives"
    )
    if labels is None:
        raise ValueError(f"labels are needed, one for each of the {len(embeddings)} samples, got None")
    check_labels("labels", labels, "embeddings", embeddings)
    check_int("neighbours", neighbours, at_least=1)
    check_number("temperature", temperature, above=0)
    check_instance("distance", distance, BaseDistance, "a pytorch_metric_learning distance")
    if neighbours >= len(labels):
        raise ValueError(
            f"neighbours must be less than the number of samples, got {neighbours} with {len(labels)} samples"
        )
    D = Similarity(CosineSimilarity() if distance is None else distance)
    prepared = [D.prepare(x.detach()) for x in (embeddings.embeddings, *embeddings.aux, embeddings.features)]
    z, *teachers = (Space(x, x) for x in prepared)
    labels = labels.to(z.x.device)
    nearest = [_nearest(D, space, neighbours) for space in (z, *teachers)]
    names = [*(f"a{i}" for i in range(1, len(teachers))), "features"]

    found = {f"recall_at_1/{name}": _recall(of, labels) for name, of in zip(["z", *names], nearest, strict=True)}
    first_self = None if include_diagonal else 0
    divergences = mean_divergences(D, z, [Teaching([teacher]) for teacher in teachers], temperature, first_self)
    found |= {f"divergence/{name}": value for name, value in zip(names, divergences, strict=True)}
    shared = [(nearest[0][:, :, None] == of[:, None, :]).any(dim=2).float().mean() for of in nearest[1:]]
    return found | {f"agreement/{name}": value for name, value in zip(names, shared, strict=True)}


def _nearest(D: Similarity, space: Space, k: int) -> torch.Tensor:
    """Of each sample the k nearest others, the nearest first, (N, k)."""
    N, rows = len(space.x), max(1, BLOCK_ENTRIES // len(space.x))
    found = []
    for start in range(0, N, rows):
        block = D(space.x[start : start + rows], space.ref)
        itself = start + torch.arange(len(block), device=block.device)
        found.append(block.scatter(1, itself[:, None], -torch.inf).topk(k, dim=1).indices)
    return torch.cat(found)


def _recall(nearest: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    _, class_of, members = labels.unique(return_inverse=True, return_counts=True)
    counted = members[class_of] > 1
    return ((labels[nearest[:, 0]] == labels) & counted).sum() / counted.sum().clamp(min=1)


@torch.no_grad()
def held_out(
    trunk: nn.Module, embedder: S2SDEmbedder, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[S2SDEmbeddings, torch.Tensor]:
    """Every space of a held-out set: the trunk in eval mode, the embedder in training mode.

    Both are left in the mode in which they came.

    Args:
        trunk: gives the features that the embedder takes.
        embedder: an `S2SDEmbedder`.
        batches: of (images, labels), such as a DataLoader; moved to the embedder's device.

    Returns:
        The embeddings of all samples, and their labels, on the embedder's device.

    Raises:
        TypeError, ValueError: embedder is no S2SDEmbedder; there is no batch.

    Example:
        >>> import torch
        >>> from pml_s2sd import S2SDEmbedder
        >>> from pml_s2sd.diagnostics import diagnose, held_out
        >>> batches = [(torch.randn(8, 12), torch.arange(8) // 2) for _ in range(2)]
        >>> embeddings, labels = held_out(torch.nn.Linear(12, 6), S2SDEmbedder(6, 2, (4,)), batches)
        >>> embeddings.aux[0].shape, sorted(diagnose(embeddings, labels))[:2]
        (torch.Size([16, 4]), ['agreement/a1', 'agreement/features'])
    """
    check_instance("embedder", embedder, S2SDEmbedder, "an S2SDEmbedder")
    device = next(embedder.parameters()).device
    modes = [(module, module.training) for part in (trunk, embedder) for module in part.modules()]
    made, labels = [], []
    try:
        trunk.eval()
        embedder.train()
        for images, of_images in batches:
            made.append(embedder(trunk(images.to(device))))
            labels.append(of_images.to(device))
    finally:
        for module, training in modes:
            module.training = training
    if not made:
        raise ValueError("batches is empty; expected at least one batch of (images, labels)")
    spaces = [torch.cat(parts) for parts in zip(*((e.embeddings, *e.aux, e.features) for e in made), strict=True)]
    return S2SDEmbeddings(spaces[0], tuple(spaces[1:-1]), spaces[-1]), torch.cat(labels)
