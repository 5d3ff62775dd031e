"""A call of the loss: PML's five arguments, checked and brought to one form once, at the entrance."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ._input_checks import check_batch, check_labels
from .embeddings import S2SDEmbeddings, base_embeddings


class Call(NamedTuple):
    """What a step works on. `Call.checked` makes it."""

    batch: S2SDEmbeddings
    labels: torch.Tensor | None
    """(B,), int64."""
    ref: S2SDEmbeddings | None
    """The references: None, or the very object that `batch` is, where a batch is compared with itself."""
    arguments: dict[str, Any]
    """What else the objectives are called with, as far as it was given: indices_tuple, ref_labels, enqueue_mask, …
    ref_labels is the very tensor that `labels` is where the caller gave one tensor for both: PML then leaves out the
    pairs of a sample with itself."""

    @classmethod
    def checked(
        cls,
        embeddings: Any,
        labels: Any,
        indices_tuple: tuple[torch.Tensor, ...] | None,
        ref_emb: Any,
        ref_labels: Any,
        others: dict[str, Any],
        *,
        sizes: tuple[int, tuple[int, ...]],
        training: bool,
    ) -> Call:
        """The call of an `S2SDLoss` for spaces of these sizes, the base one and the auxiliary ones.

        Raises:
            TypeError, ValueError: on input that cannot be used, naming what was expected and what came.
        """
        check_batch("embeddings", embeddings, *sizes, training=training)
        check_labels("labels", labels, "embeddings", embeddings)
        if ref_emb is not None:
            check_batch("ref_emb", ref_emb, *sizes, training=training)
            check_labels("ref_labels", ref_labels, "ref_emb", ref_emb)
        elif ref_labels is not None:
            raise ValueError("ref_labels was given without ref_emb")

        one_tensor = ref_labels is labels
        labels = None if labels is None else labels.long()
        if one_tensor:
            ref_labels = labels
        elif ref_labels is not None:
            ref_labels = ref_labels.long()
        if not training:  # plain tensors too: nothing but the base space is looked at
            itself = ref_emb is embeddings
            embeddings = base_space_alone(base_embeddings(embeddings))
            ref_emb = embeddings if itself else base_space_alone(base_embeddings(ref_emb))
        given = {"indices_tuple": indices_tuple, "ref_labels": ref_labels, **others}
        return cls(embeddings, labels, ref_emb, {name: value for name, value in given.items() if value is not None})

    @property
    def with_itself(self) -> bool:
        """Whether the batch is compared with itself, as it is without references."""
        return self.ref is None or self.ref is self.batch

    def references(self, space: int, x: torch.Tensor) -> torch.Tensor | None:
        """What the objective of a space (0 the base, i the i-th auxiliary one) compares x with, or None for x alone."""
        if self.ref is None:
            return None
        return x if self.ref is self.batch else of_space(self.ref, space)


def base_space_alone(z: Any) -> Any:
    """Base embeddings as a batch without auxiliary spaces and features; None as it is."""
    return None if z is None else S2SDEmbeddings(z, (), None)  # type: ignore[arg-type]


def of_space(batch: S2SDEmbeddings, space: int) -> torch.Tensor:
    """The embeddings in one space, 0 the base, i the i-th auxiliary one."""
    return batch.embeddings if space == 0 else batch.aux[space - 1]
