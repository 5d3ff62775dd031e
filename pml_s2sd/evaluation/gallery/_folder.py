"""A folder of results that take long: what they were made of is written beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...whole_file import whole_file


def claimed(folder: Path, made_of: dict[str, Any]) -> Path:
    """The folder, made if need be, where it is empty or holds results of the same.

    Args:
        made_of: a gallery's identity, and settings; JSON.

    Raises:
        ValueError: it is a file, or holds results of something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder, or one to make")
    note = folder / "made_of.json"
    if note.exists():
        try:
            there = json.loads(note.read_text(encoding="utf-8"))
            differ = sorted(name for name in {*made_of, *there} if made_of.get(name) != there.get(name))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{note} does not say what the folder holds; remove {folder}, or give another") from error
        if differ:
            raise ValueError(
                f"{folder} holds results of {described(there, differ)}, these are of {described(made_of, differ)}; "
                "give the same again, another folder, or remove this one"
            )
        return folder
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files; give an empty folder, or one to make")
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(note, "w") as file:
        json.dump(made_of, file, indent=1)
    return folder


def described(made_of: dict[str, Any], names: list[str]) -> str:
    """The settings of these names; of a gallery its number of files and rows, and when the last one was written."""
    return ", ".join(
        f"{name} {of_gallery(made_of.get(name)) if name == 'gallery' else made_of.get(name)}" for name in names
    )


def of_gallery(files: Any) -> str:
    rows = sum(file["shape"][0] for file in files)
    latest = max(files, key=lambda file: file["modified"])
    return f"of {len(files)} files, {rows:,} rows, the latest {latest['file']} at {latest['modified'] / 1e9:.3f}"
