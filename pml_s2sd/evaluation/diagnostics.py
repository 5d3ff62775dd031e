"""Diagnostics: whether the teachers have something to teach, and whether the base space learns it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from torch import nn
from tqdm import tqdm

from .._argument_checks import check_instance, check_int, check_number
from .._input_checks import check_batch, check_labels
from .._similarity import Similarity
from .._trunk_input import call, inputs_and_labels, mask_of, placed
from ..distillation import divergence, row_log_probs
from ..embeddings import S2SDEmbeddings

BLOCK_ENTRIES = 2**22
"""Similarities of one space that are held at a time: memory grows with B, not with B²."""


@torch.no_grad()
def diagnose(
    embeddings: S2SDEmbeddings,
    labels: torch.Tensor,
    *,
    neighbours: int = 10,
    temperature: float = 1.0,
    include_diagonal: bool = True,
    distance: BaseDistance | None = None,
) -> dict[str, float]:
    """How well each space retrieves, and how far the base space is from each of its teachers.

    For a training batch, or a held-out set from `embed_spaces`; each sample among the others:

    - ``recall_at_1/…`` of ``base``, ``a1`` … ``am`` and ``features``: the share of samples whose nearest
      neighbour is of their class. A teacher that is no better than the base has nothing to teach. Samples
      alone in their class are left out; where one of another class is as near, it counts as the nearest.
    - ``kl/…`` of ``a1`` … ``am`` and ``features``: KL(D^z, D^t), the term that the loss distils with, which
      falls while the base learns from t.
    - ``overlap/…`` of ``a1`` … ``am`` and ``features``: the mean share of a sample's k nearest neighbours in
      t that are among its k nearest in the base space. By chance it is k / (B - 1); it rises while the
      base learns from t.

    Nothing runs unless it is called, and it waits for the device once: every hundred steps is
    often enough. With a space that holds NaN or infinity, what compares it is NaN.

    Args:
        embeddings: of B samples.
        labels: (B,), of any integer dtype.
        neighbours: k, from 1 to B - 1.
        temperature: T of the KL; give the loss's own, ``loss_func.temperature``.
        include_diagonal: whether a sample's similarity to itself counts in the KL, ``loss_func.include_diagonal``.
        distance: gives D, ``loss_func.distance``; cosine similarity unless given.

    Returns:
        A float a name, as above; Recall@1 is NaN where no class has two samples.

    Raises:
        TypeError, ValueError: on embeddings, labels or arguments that cannot be used.

    Source: KL, Roth et al., ICML 2021, section 3; Recall@1, Jégou et al. 2011.

    Example:
        >>> import torch
        >>> from pml_s2sd import S2SDEmbeddings
        >>> from pml_s2sd.evaluation.diagnostics import diagnose
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.5], [0.5, 1.0]])
        >>> a = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.2]])
        >>> found = diagnose(S2SDEmbeddings(z, (a,), z), torch.tensor([0, 0, 1, 1]), neighbours=2)
        >>> {name: round(value, 3) for name, value in found.items() if "features" not in name}
        {'recall_at_1/base': 0.0, 'recall_at_1/a1': 1.0, 'kl/a1': 0.358, 'overlap/a1': 0.625}
    """
    check_number("temperature", temperature, above=0)
    check_instance("distance", distance, BaseDistance, "a pytorch_metric_learning distance")
    check_spaces(embeddings, labels, neighbours)
    D = Similarity(CosineSimilarity() if distance is None else distance)
    spaces = [D.prepare(x) for x in (embeddings.embeddings, *embeddings.aux, embeddings.features)]
    _, classes, counts = torch.unique(labels.to(embeddings.device), return_inverse=True, return_counts=True)
    rows = len(classes)
    sums = classes.new_zeros(3, len(spaces), dtype=torch.float64)  # of hits, of divergences, of shared neighbours
    size = max(1, BLOCK_ENTRIES // rows)
    for start in tqdm(range(0, rows, size), desc="diagnosing", unit="block", delay=3, leave=False):
        similarities = [D(x[start : start + size], x) for x in spaces]
        itself = torch.arange(start, start + len(similarities[0]), device=classes.device)[:, None]
        same = classes[itself] == classes
        sums[0] += hits(similarities, same, itself)
        sums[1] += len(itself) * divergences(similarities, temperature, None if include_diagonal else itself[:, 0])
        sums[2] += shared_neighbours(similarities, neighbours, itself)
    of = torch.stack([(counts[classes] > 1).sum(), classes.new_tensor(rows), classes.new_tensor(rows * neighbours)])
    means = sums / of[:, None]
    broken = torch.stack([~torch.isfinite(x).all() for x in spaces])
    means = means.masked_fill(broken, torch.nan)
    means[1:] = means[1:].masked_fill(broken[0], torch.nan)
    return named(means.tolist())


def hits(similarities: Sequence[torch.Tensor], same: torch.Tensor, itself: torch.Tensor) -> torch.Tensor:
    """By space, the number of rows whose nearest other sample is of their class, and of no other one as well."""
    own = same.scatter(1, itself, False)
    nearer = [D.masked_fill(~own, -torch.inf).amax(1) > D.masked_fill(same, -torch.inf).amax(1) for D in similarities]
    return torch.stack(nearer).sum(dim=1)


def divergences(
    similarities: Sequence[torch.Tensor], temperature: float, left_out: torch.Tensor | None
) -> torch.Tensor:
    """By space, KL(D^z, D^t), z the first of them."""
    log_probs = row_log_probs(similarities[0], temperature, left_out)
    return torch.stack([divergence(log_probs, D, temperature, left_out) for D in similarities])


def shared_neighbours(similarities: Sequence[torch.Tensor], k: int, itself: torch.Tensor) -> torch.Tensor:
    """By space, how many of the rows' k nearest are among the k nearest in the first of them."""
    nearest = [D.scatter(1, itself, -torch.inf).topk(k, dim=1).indices for D in similarities]
    in_base = torch.zeros_like(similarities[0], dtype=torch.bool).scatter(1, nearest[0], True)
    return torch.stack([in_base.gather(1, of_space).sum() for of_space in nearest])


def named(means: Sequence[Sequence[float]]) -> dict[str, float]:
    """Recall@1 of every space, divergence and overlap of every teacher, by their names."""
    spaces = ["base", *(f"a{i}" for i in range(1, len(means[0]) - 1)), "features"]
    kinds = zip(("recall_at_1", "kl", "overlap"), means, strict=True)
    return {
        f"{kind}/{space}": value
        for kind, values in kinds
        for space, value in zip(spaces, values, strict=True)
        if kind == "recall_at_1" or space != "base"
    }


def check_spaces(embeddings: Any, labels: Any, neighbours: int) -> None:
    """Matrices of as many rows in every space, labels for them, and more rows than neighbours."""
    if not isinstance(embeddings, S2SDEmbeddings):
        raise TypeError(
            f"embeddings must be the S2SDEmbeddings that an S2SDEmbedder returns in training mode, got "
            f"{type(embeddings).__name__}; for a held-out set, take those of embed_spaces"
        )
    check_batch(
        "embeddings", embeddings, embeddings.shape[-1], tuple(a.shape[-1] for a in embeddings.aux), training=True
    )
    if labels is None:
        raise TypeError("labels must be a tensor of shape (B,), got None; Recall@1 needs the classes")
    check_labels("labels", labels, "embeddings", embeddings)
    check_int("neighbours", neighbours, at_least=1)
    if neighbours >= len(embeddings.embeddings):
        raise ValueError(
            f"neighbours must be below the number of samples, {len(embeddings.embeddings)}, got {neighbours}; "
            "give fewer neighbours, or more samples"
        )


def embed_spaces(trunk: nn.Module, embedder: nn.Module, batches: Iterable[Any]) -> tuple[S2SDEmbeddings, torch.Tensor]:
    """Every space's embeddings of a held-out set, for `diagnose`.

    The trunk, and whatever is inside the embedder, is in eval mode: running statistics are used and not
    changed, nothing is dropped. Only the embedder itself is in training mode, in which it returns all
    spaces. Afterwards every module is in the mode in which it was.

    Args:
        trunk: images to what the embedder takes.
        embedder: the `S2SDEmbedder`.
        batches: of (images, labels), or dicts that hold "labels", such as a DataLoader that does not shuffle; they are
            moved to where the trunk's parameters are. What `collect_features` says of its trunk's input holds here.

    Returns:
        Embeddings and labels, (N,), on the CPU. For a large set on a GPU, ``embeddings.to("cuda")``.

    Raises:
        TypeError: the embedder returns something else, as one inside a wrapper does.
        ValueError: there is no batch.

    Example:
        >>> import torch
        >>> from pml_s2sd import S2SDEmbedder
        >>> from pml_s2sd.evaluation.diagnostics import diagnose, embed_spaces
        >>> trunk, embedder = torch.nn.Flatten(), S2SDEmbedder(12, 4, aux_sizes=(8,))
        >>> batches = [(torch.rand(5, 3, 2, 2), torch.tensor([0, 0, 1, 1, 2])) for _ in range(2)]
        >>> embeddings, labels = embed_spaces(trunk, embedder, batches)
        >>> embeddings.shape, embeddings.aux[0].shape, labels.shape
        (torch.Size([10, 4]), torch.Size([10, 8]), torch.Size([10]))
        >>> sorted(diagnose(embeddings, labels, neighbours=3))[:3]
        ['kl/a1', 'kl/features', 'overlap/a1']
    """
    modes = [(module, module.training) for part in (trunk, embedder) for module in part.modules()]
    device = next((tensor.device for part in (trunk, embedder) for tensor in part.parameters()), torch.device("cpu"))
    spaces: list[S2SDEmbeddings] = []
    labels: list[torch.Tensor] = []
    try:
        trunk.eval()
        embedder.eval()
        embedder.training = True
        with torch.no_grad():
            for given in tqdm(batches, desc="embedding", unit="batch", delay=3, leave=False):
                inputs, of_inputs = inputs_and_labels(given)
                inputs = placed(inputs, trunk, device)
                output, mask = call(trunk, inputs), mask_of(inputs)
                batch = embedder(output) if mask is None else embedder(output, mask)
                if not isinstance(batch, S2SDEmbeddings):
                    raise TypeError(
                        f"embedder must be the S2SDEmbedder itself, got {type(embedder).__name__}, which returned "
                        f"{type(batch).__name__}; of a wrapped model take the one inside, e.g. model.module[1]"
                    )
                spaces.append(batch.cpu())
                labels.append(torch.as_tensor(of_inputs).cpu())
    finally:
        for module, training in modes:
            module.training = training
    if not spaces:
        raise ValueError("batches is empty: expected batches of (images, labels); check the data set and its loader")
    return torch.cat(spaces), torch.cat(labels)  # type: ignore[arg-type, return-value]
