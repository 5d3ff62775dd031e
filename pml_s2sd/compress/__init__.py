"""`compress`: embeddings of any model, made smaller by one linear map that keeps their similarities."""

from ._compress import compress

__all__ = ["compress"]
