"""Draw the emoji data set: the same emoji by several vendors, 32 x 32, on white.

    pip install "resvg-py==0.5.0" "pillow==13.0.0"
    python examples/data/build_emoji.py            # needs npm, once, to fetch the drawings

A class is an emoji name, an image is one vendor's drawing of it. Names are matched across vendors
after removing hyphens; skin tones and flags are left out; a class needs at least `MIN_DRAWINGS`.
The output is committed, so that nobody needs this script to train. Running it again gives the
same files, byte for byte: versions are pinned, drawings are sorted, the WebP is lossless.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from drawings import DrawingSet, Drawn, command, draw, read_set, write_attribution, write_drawings
from tqdm import tqdm

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
OUTPUT = Path(__file__).parent / "emoji"


def match_names(sets: Sequence[DrawingSet]) -> dict[str, dict[str, str]]:
    """class name -> {set: icon name}, for the classes with enough drawings, in alphabetical order."""
    classes: dict[str, dict[str, str]] = defaultdict(dict)
    for style in sets:
        flags = set(style.metadata["categories"].get("Flags", ()))
        for icon in style.icons["icons"]:
            if icon not in flags and "skin-tone" not in icon:
                classes[icon.replace("-", "")][style.name] = icon
    return {name: icons for name, icons in sorted(classes.items()) if len(icons) >= MIN_DRAWINGS}


def build(packages: Path, output: Path) -> None:
    """Write sheets, index and attribution."""
    sets = [read_set(packages, name, version) for name, version in VERSIONS.items()]
    classes = match_names(sets)
    drawings = {}
    for style in sets:
        members = [(name, icons[style.name]) for name, icons in classes.items() if style.name in icons]
        drawings[style.name] = [
            Drawn(name, draw(style.icons, icon, SIDE)) for name, icon in tqdm(members, desc=style.name, unit="drawing")
        ]
    write_drawings(output, drawings, side=SIDE)
    lines = [
        f"Made by `examples/data/build_emoji.py`. Changes made to every set: rendered to {SIDE} x {SIDE} RGB on",
        f"white, arranged on sheets; skin tones, flags and emoji drawn by fewer than {MIN_DRAWINGS} vendors left out.",
    ]
    write_attribution(output, sets, drawings, lines)
    print(f"{len(classes)} classes, {sum(map(len, drawings.values()))} images in {output}")


if __name__ == "__main__":
    command(__doc__.splitlines()[0], VERSIONS, build, OUTPUT)
