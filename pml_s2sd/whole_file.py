"""A file that is written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write, which takes its name when the block has ended: whoever reads `path` never finds half of it.

    It is written beside `path`, as ``NAME.tmp``, then flushed to the disk, then renamed. Where the block raises, what
    was at `path` stays, and the temporary file is removed.

    Args:
        path: what the file is called in the end; one of this name is replaced.
        mode: "wb" for bytes, "w" for text, in UTF-8.

    Raises:
        FileNotFoundError, ValueError: see `check_output`.

    Example:
        >>> from pml_s2sd.whole_file import whole_file
        >>> path = getfixture("tmp_path") / "metrics.json"
        >>> with whole_file(path, "w") as file:
        ...     _ = file.write("{}")
        >>> path.read_text()
        '{}'
    """
    path = Path(path)
    check_output(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_output(path: Path) -> None:
    """A file can be written at `path`, in a folder that is there; one that is there already is a regular file.

    Raises:
        FileNotFoundError, ValueError: saying what is there.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file to write, as {path / 'NAME'}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file, and would be replaced by one; give another name to write to")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} into; make it first")
