"""`compress`: embeddings of any model, made smaller by one linear map that keeps their similarities."""

from ._compress import compress
from ._formats import compressed_index, linear_transform, save_map

__all__ = ["compress", "compressed_index", "linear_transform", "save_map"]
