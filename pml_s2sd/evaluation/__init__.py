"""What an embedding space is worth: metrics of retrieval, its geometry, and whether its teachers teach."""

from .accuracy import RetrievalAccuracyCalculator
from .diagnostics import diagnose, embed_spaces
from .neighbours import ApproximateKNN

__all__ = ["ApproximateKNN", "RetrievalAccuracyCalculator", "diagnose", "embed_spaces"]
