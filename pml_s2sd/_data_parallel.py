"""The embeddings of one replica under torch.nn.DataParallel, which joins those of all replicas into S2SDEmbeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .embeddings import S2SDEmbeddings, register_as_pytree


class ReplicaEmbeddings(S2SDEmbeddings):
    """A replica's part of the batch, in the form in which DataParallel joins outputs.

    Of outputs of a type that it does not know it makes ``type(output)(map(join, zip(*outputs)))``: iterating
    gives the fields, in place of rows, and a call with an iterator of joined fields gives the whole batch.
    """

    def __new__(cls, *fields: Any, **_: Any) -> Any:
        return S2SDEmbeddings(*fields[0]) if len(fields) == 1 else super().__new__(cls)

    def __iter__(self) -> Iterator:
        return iter((self.embeddings, self.aux, self.features))


register_as_pytree(ReplicaEmbeddings)
