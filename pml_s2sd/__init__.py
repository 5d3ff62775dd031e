"""S2SD, simultaneous similarity-based self-distillation, for pytorch-metric-learning."""

from .compress import compress
from .embedder import S2SDEmbedder
from .embeddings import S2SDEmbeddings
from .loss import S2SDLoss
from .variants import s2sd

__all__ = ["S2SDEmbedder", "S2SDEmbeddings", "S2SDLoss", "compress", "s2sd"]
__version__ = "0.1.0"
