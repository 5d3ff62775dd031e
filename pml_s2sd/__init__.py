"""S2SD, simultaneous similarity-based self-distillation, for pytorch-metric-learning."""

from .compress import compress
from .consolidation import consolidate
from .embedder import S2SDEmbedder
from .embeddings import S2SDEmbeddings
from .loss import S2SDLoss
from .training_features import collect_features
from .trunk_features import count_features
from .variants import s2sd

__all__ = [
    "S2SDEmbedder",
    "S2SDEmbeddings",
    "S2SDLoss",
    "collect_features",
    "compress",
    "consolidate",
    "count_features",
    "s2sd",
]
__version__ = "0.1.0"
