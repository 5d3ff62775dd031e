"""What an embedding space is worth: metrics of retrieval, its geometry, and whether its teachers teach."""

from .accuracy import RetrievalAccuracyCalculator
from .diagnostics import diagnose, embed_spaces
from .gallery import Gallery, GalleryKNN, OnDiskKNN
from .neighbours import ApproximateKNN

__all__ = [
    "ApproximateKNN",
    "Gallery",
    "GalleryKNN",
    "OnDiskKNN",
    "RetrievalAccuracyCalculator",
    "diagnose",
    "embed_spaces",
]
