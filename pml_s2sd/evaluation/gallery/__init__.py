"""Galleries larger than memory: rows in memory-mapped shards, searched exactly or by an index on the disk."""

from ._exact import GalleryKNN
from ._index import OnDiskKNN
from ._shards import Gallery

__all__ = ["Gallery", "GalleryKNN", "OnDiskKNN"]
