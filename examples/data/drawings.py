"""Drawings of the npm packages @iconify-json/…: fetched at pinned versions, drawn, arranged on sheets, attributed."""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import resvg_py
from PIL import Image

from pml_s2sd.whole_file import whole_file

COLUMNS = 40
"""Of a sheet."""


class DrawingSet(NamedTuple):
    """One package.

    Args:
        name: after @iconify-json/.
        version: pinned.
        icons: what icons.json holds: icons by name, their bodies, the sizes that they share.
        info: what info.json holds: the set's name, author and licence.
        metadata: what metadata.json holds: categories, and the prefixes and suffixes that are styles.
        licence: its SPDX identifier, by package.json.
    """

    name: str
    version: str
    icons: dict[str, Any]
    info: dict[str, Any]
    metadata: dict[str, Any]
    licence: str


class Drawn(NamedTuple):
    """One image: the class that it belongs to, and the drawing."""

    label: str
    image: Image.Image


def fetch_packages(folder: Path, versions: Mapping[str, str]) -> None:
    """Install the npm packages, at their pinned versions, into `folder`."""
    if shutil.which("npm") is None:
        sys.exit("the drawings are fetched with npm, which is not installed; or give --packages FOLDER")
    names = [f"@iconify-json/{name}@{version}" for name, version in versions.items()]
    subprocess.run(["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(folder), *names], check=True)


def read_set(packages: Path, name: str, version: str) -> DrawingSet:
    """One set, checked against its pinned version."""
    folder = packages / "node_modules" / "@iconify-json" / name
    package, icons, info, metadata = (
        json.loads((folder / f"{part}.json").read_text()) for part in ("package", "icons", "info", "metadata")
    )
    if package["version"] != version:
        sys.exit(
            f"{folder} holds version {package['version']}; expected {version}, so that the files come out the same"
        )
    return DrawingSet(name, version, icons, info, metadata, package["license"])


def draw(icons: dict[str, Any], name: str, side: int) -> Image.Image:
    """Render one icon to a side × side RGB image on white; an icon that is not square is centred."""
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    length = max(width, height)
    view = f"{left - (length - width) / 2:g} {top - (length - height) / 2:g} {length:g} {length:g}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view}" width="{length:g}" height="{length:g}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, background="white", skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def write_drawings(
    output: Path, drawings: Mapping[str, Sequence[Drawn]], *, side: int, quality: int = 100, method: int = 6
) -> None:
    """One sheet a set, `NAME.webp`, and `index.csv`: class, style (the set's name), position in its sheet.

    Args:
        drawings: of each set, in the order of its sheet.
        side: of each image, in pixels.
        quality, method: how hard the WebP, which is lossless, is compressed.
    """
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, drawn in drawings.items():
        sheet = Image.new("RGB", (COLUMNS * side, -(-len(drawn) // COLUMNS) * side), "white")
        for position, (label, image) in enumerate(drawn):
            row, column = divmod(position, COLUMNS)
            sheet.paste(image, (column * side, row * side))
            rows.append((label, name, position))
        encoded = io.BytesIO()
        sheet.save(encoded, "WEBP", lossless=True, quality=quality, method=method)
        with whole_file(output / f"{name}.webp") as file:
            file.write(encoded.getvalue())

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["class", "style", "position"])
    writer.writerows(sorted(rows))
    with whole_file(output / "index.csv") as file:
        file.write(table.getvalue().encode())


def write_attribution(
    output: Path, sets: Sequence[DrawingSet], drawings: Mapping[str, Sequence[Drawn]], lines: Sequence[str]
) -> None:
    """`ATTRIBUTION.md`: who drew what, under which licence, and, in `lines`, what was changed."""
    table = [
        "# Where the drawings come from",
        "",
        *lines,
        "",
        "| sheet | set | author | licence | drawings | npm package |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, version, _, info, *_ in sets:
        author, licence = info["author"], info["license"]
        table.append(
            f"| {name}.webp | {info['name']} | {_linked(author['name'], author)} | "
            f"{_linked(licence['title'], licence)} | {len(drawings[name])} | @iconify-json/{name} {version} |"
        )
    with whole_file(output / "ATTRIBUTION.md") as file:
        file.write(("\n".join(table) + "\n").encode())


def _linked(text: str, of: dict[str, str]) -> str:
    return f"[{text}]({of['url']})" if "url" in of else text


def command(description: str, versions: Mapping[str, str], build: Callable[[Path, Path], None], output: Path) -> None:
    """What each data set's script does: fetch the packages, unless they are there, and build(packages, output).

    Args:
        versions: of each set.
        output: the folder that is written unless another is asked for.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--packages", type=Path, help="a folder whose node_modules holds the packages already")
    parser.add_argument("--output", type=Path, default=output)
    arguments = parser.parse_args()
    if arguments.packages:
        build(arguments.packages, arguments.output)
    else:
        with tempfile.TemporaryDirectory() as folder:
            fetch_packages(Path(folder), versions)
            build(Path(folder), arguments.output)
