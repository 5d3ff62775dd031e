"""Text of any origin, such as names of files, where it has to be encoded."""

from __future__ import annotations

import sys
from typing import Any


def encodable(value: Any) -> Any:
    r"""Text, and all text within dicts, lists and tuples, with what UTF-8 lacks written as escapes.

    Python holds a byte of a file's name that is not UTF-8 as a lone surrogate, and JSON may hold one as ``"\ud800"``.

    Example:
        >>> from pml_s2sd._text import encodable
        >>> print(encodable({"classes": ["café", "caf\udce9"]})["classes"])
        ['café', 'caf\\udce9']
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {encodable(name): encodable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [encodable(entry) for entry in value]
    return value


def print_text(text: str) -> None:
    """Print, with what the terminal's encoding lacks written as escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
