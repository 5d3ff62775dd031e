"""`compress`: embeddings of any model, made smaller by one linear map that keeps their similarities."""

from ._compress import compress
from ._formats import compressed_index, linear_transform, load_map, save_map
from ._map_files import map_files

__all__ = ["compress", "compressed_index", "linear_transform", "load_map", "map_files", "save_map"]
