"""`pml_s2sd.evaluation.accuracy` under its first name."""

from .evaluation.accuracy import RetrievalAccuracyCalculator

__all__ = ["RetrievalAccuracyCalculator"]
