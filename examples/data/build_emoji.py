"""Draw the emoji data set: the same emoji by several vendors, 32 x 32, on white.

    pip install "resvg-py==0.5.0" "pillow==13.0.0"
    python examples/data/build_emoji.py            # needs npm, once, to fetch the drawings

A class is an emoji name, an image is one vendor's drawing of it. Names are matched across vendors
after removing hyphens; skin tones and flags are left out; a class needs at least `MIN_DRAWINGS`.
The output is committed, so that nobody needs this script to train. Running it again gives the
same files, byte for byte: versions are pinned, drawings are sorted, the WebP is lossless.
"""

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import resvg_py
from PIL import Image
from tqdm import tqdm

from pml_s2sd.whole_file import whole_file

VERSIONS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "fxemoji": "1.2.2",
    "twemoji": "1.2.5",
    "emojione": "1.2.3",
    "streamline-emojis": "1.2.4",
    "fluent-emoji-flat": "1.2.6",
}
MIN_DRAWINGS = 4
SIDE = 32
COLUMNS = 40
OUTPUT = Path(__file__).parent / "emoji"


def fetch_packages(folder: Path) -> None:
    """Install the npm packages, at their pinned versions, into `folder`."""
    if shutil.which("npm") is None:
        sys.exit("build_emoji.py fetches the drawings with npm, which is not installed; or give --packages FOLDER")
    names = [f"@iconify-json/{style}@{version}" for style, version in VERSIONS.items()]
    subprocess.run(["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(folder), *names], check=True)


def read_style(packages: Path, style: str) -> dict:
    """One vendor's set: its icons, its names that are flags, its licence; checked against `VERSIONS`."""
    folder = packages / "node_modules" / "@iconify-json" / style
    found = json.loads((folder / "package.json").read_text())["version"]
    if found != VERSIONS[style]:
        sys.exit(f"{folder} holds version {found}; expected {VERSIONS[style]}, so that the files come out the same")
    icons = json.loads((folder / "icons.json").read_text())
    categories = json.loads((folder / "metadata.json").read_text())["categories"]
    return {
        "icons": icons,
        "flags": set(categories.get("Flags", ())),
        "info": json.loads((folder / "info.json").read_text()),
    }


def match_names(styles: dict[str, dict]) -> dict[str, dict[str, str]]:
    """class name -> {style: icon name}, for the classes with enough drawings, in alphabetical order."""
    classes: dict[str, dict[str, str]] = defaultdict(dict)
    for style, data in styles.items():
        for icon in data["icons"]["icons"]:
            if icon not in data["flags"] and "skin-tone" not in icon:
                classes[icon.replace("-", "")][style] = icon
    return {name: icons for name, icons in sorted(classes.items()) if len(icons) >= MIN_DRAWINGS}


def draw(icons: dict, name: str) -> Image.Image:
    """Render one icon to a SIDE x SIDE RGB image on white; an icon that is not square is centred."""
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    side = max(width, height)
    view = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view}" width="{side:g}" height="{side:g}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, background="white", skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def build(packages: Path, output: Path) -> None:
    """Write one sheet a style, `index.csv` (class, style, position in its sheet) and `ATTRIBUTION.md`."""
    styles = {style: read_style(packages, style) for style in VERSIONS}
    classes = match_names(styles)
    output.mkdir(parents=True, exist_ok=True)

    rows = []
    for style, data in styles.items():
        members = [(name, icons[style]) for name, icons in classes.items() if style in icons]
        sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(members) // COLUMNS) * SIDE), "white")
        for position, (name, icon) in enumerate(tqdm(members, desc=style, unit="drawing")):
            row, column = divmod(position, COLUMNS)
            sheet.paste(draw(data["icons"], icon), (column * SIDE, row * SIDE))
            rows.append((name, style, position))
        encoded = io.BytesIO()
        sheet.save(encoded, "WEBP", lossless=True, quality=100, method=6)
        with whole_file(output / f"{style}.webp") as file:
            file.write(encoded.getvalue())

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["class", "style", "position"])
    writer.writerows(sorted(rows))
    for name, text in {"index.csv": table.getvalue(), "ATTRIBUTION.md": attribution(styles, rows)}.items():
        with whole_file(output / name) as file:
            file.write(text.encode())
    print(f"{len(classes)} classes, {len(rows)} images in {output}")


def attribution(styles: dict[str, dict], rows: list[tuple[str, str, int]]) -> str:
    """Who drew what, under which licence, and what was changed."""
    lines = [
        "# Where the drawings come from",
        "",
        f"Made by `examples/data/build_emoji.py`. Changes made to every set: rendered to {SIDE} x {SIDE} RGB on",
        f"white, arranged on sheets; skin tones, flags and emoji drawn by fewer than {MIN_DRAWINGS} vendors left out.",
        "",
        "| sheet | set | author | licence | drawings | npm package |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for style, data in styles.items():
        info = data["info"]
        count = sum(row[1] == style for row in rows)
        lines.append(
            f"| {style}.webp | {info['name']} | [{info['author']['name']}]({info['author']['url']}) | "
            f"[{info['license']['title']}]({info['license']['url']}) | {count} | "
            f"@iconify-json/{style} {VERSIONS[style]} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, help="a folder whose node_modules holds the packages already")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if arguments.packages:
        build(arguments.packages, arguments.output)
    else:
        with tempfile.TemporaryDirectory() as folder:
            fetch_packages(Path(folder))
            build(Path(folder), arguments.output)


if __name__ == "__main__":
    main()
