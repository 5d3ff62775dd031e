"""`pml_s2sd.evaluation.neighbours` under its first name."""

from .evaluation.neighbours import ApproximateKNN

__all__ = ["ApproximateKNN"]
