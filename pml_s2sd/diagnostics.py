"""`pml_s2sd.evaluation.diagnostics` under its first name."""

from .evaluation.diagnostics import diagnose, embed_spaces

__all__ = ["diagnose", "embed_spaces"]
