"""Draw the icon data set: icons of the same name in many icon sets, 64 x 64, black on white.

    pip install "resvg-py==0.5.0" "pillow==13.0.0"
    python examples/data/build_icons.py            # needs npm, once, to fetch the drawings

A class is an icon's name, an image is one set's drawing of it. The sets have permissive licences. Emoji, flags,
brands and animations are left out, and of one family of sets, such as the releases of Font Awesome, all but one.
Names are matched across sets after removing styles, such as "outline" and "24-filled", and hyphens; of several styles
in one set, the drawing with the shortest name is taken. A drawing with the very pixels of another one is left out: sets
copy from each other, and the set that comes first in `VERSIONS` keeps it. A class needs at least `MIN_DRAWINGS`.
Running it again gives the same files, byte for byte: versions are pinned, drawings are sorted, the WebP is lossless.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from drawings import DrawingSet, Drawn, command, draw, read_set, write_attribution, write_drawings
from tqdm import tqdm

VERSIONS: dict[str, str] = {
    "feather": "1.2.1",
    "raphael": "1.2.1",
    "oi": "1.2.0",
    "simple-line-icons": "1.2.1",
    "ion": "1.2.7",
    "mdi": "1.2.3",
    "octicon": "1.2.36",
    "zondicons": "1.2.2",
    "fe": "1.2.4",
    "bx": "1.2.3",
    "eva": "1.2.3",
    "akar-icons": "1.2.7",
    "ant-design": "1.2.9",
    "basil": "1.2.4",
    "bi": "1.2.7",
    "bytesize": "1.2.2",
    "carbon": "1.2.29",
    "charm": "1.2.3",
    "ci": "1.2.2",
    "cil": "1.2.3",
    "clarity": "1.2.4",
    "codicon": "1.2.74",
    "cuida": "1.2.5",
    "duo-icons": "1.2.2",
    "ei": "1.2.2",
    "eos-icons": "1.2.4",
    "ep": "1.2.4",
    "f7": "1.2.2",
    "fa7-solid": "1.2.5",
    "flowbite": "1.2.7",
    "fluent": "1.2.60",
    "fluent-mdl2": "1.2.1",
    "fontisto": "1.2.1",
    "formkit": "1.2.2",
    "garden": "1.2.6",
    "gg": "1.2.2",
    "gravity-ui": "1.2.15",
    "grommet-icons": "1.2.4",
    "guidance": "1.2.2",
    "healthicons": "1.2.13",
    "heroicons": "1.2.3",
    "hugeicons": "1.2.35",
    "humbleicons": "1.2.20",
    "icon-park-outline": "1.2.4",
    "iconamoon": "1.2.2",
    "iconoir": "1.2.11",
    "icons8": "1.2.1",
    "ix": "1.2.12",
    "jam": "1.2.3",
    "lets-icons": "1.2.2",
    "lineicons": "1.2.6",
    "lsicon": "1.2.5",
    "lucide": "1.2.137",
    "mage": "1.2.4",
    "majesticons": "1.2.5",
    "maki": "1.2.5",
    "material-symbols": "1.2.93",
    "meteor-icons": "1.2.8",
    "mi": "1.2.2",
    "mingcute": "1.2.8",
    "mynaui": "1.2.19",
    "nimbus": "1.2.1",
    "ooui": "1.2.24",
    "oui": "1.2.6",
    "pajamas": "1.2.15",
    "pepicons-pop": "1.2.4",
    "ph": "1.2.2",
    "pixel": "1.2.2",
    "pixelarticons": "1.2.9",
    "prime": "1.2.5",
    "proicons": "1.2.20",
    "qlementine-icons": "1.2.16",
    "quill": "1.2.4",
    "radix-icons": "1.2.6",
    "ri": "1.2.10",
    "rivet-icons": "1.2.2",
    "si": "1.2.17",
    "solar": "1.2.13",
    "stash": "1.2.4",
    "streamline": "1.2.5",
    "streamline-ultimate": "1.2.2",
    "system-uicons": "1.2.4",
    "tabler": "1.2.41",
    "tdesign": "1.2.19",
    "teenyicons": "1.2.2",
    "uil": "1.2.3",
    "uiw": "1.2.4",
    "vaadin": "1.2.1",
    "weui": "1.2.4",
    "wpf": "1.2.0",
}
"""The first eleven are old ones, which others copied."""
PERMISSIVE = ("MIT", "ISC", "BSD-3-Clause", "Apache-2.0", "CC0-1.0", "Unlicense", "CC-BY-4.0")
STYLES = (
    *("outline", "outlined", "line", "linear", "stroke", "filled", "fill", "solid", "bold", "regular", "light", "thin"),
    *("round", "rounded", "sharp", "duotone", "twotone"),
)
"""Ends of names, where the rest is a name in the same set, too, or has another style there."""
MIN_DRAWINGS = 4
SIDE = 64
OUTPUT = Path(__file__).parent / "icons"


def without_styles(icons: DrawingSet) -> dict[str, str]:
    """Of each icon's name what is left without styles: those that the package declares, then those of `STYLES`."""
    declared = {
        kind: sorted(filter(None, icons.metadata.get(kind, ())), key=len, reverse=True)
        for kind in ("prefixes", "suffixes")
    }
    found = {}
    for name in icons.icons["icons"]:
        left = next((name[len(style) + 1 :] for style in declared["prefixes"] if name.startswith(f"{style}-")), name)
        found[name] = next(
            (left[: -len(style) - 1] for style in declared["suffixes"] if left.endswith(f"-{style}")), left
        )
    there = set(found.values())
    for name, left in found.items():
        for style in STYLES:
            rest = left.removesuffix(f"-{style}")
            if rest != left and not there.isdisjoint({rest, *(f"{rest}-{s}" for s in STYLES if s != style)}):
                left = rest
        found[name] = left
    return found


def match_names(sets: Sequence[DrawingSet]) -> dict[str, dict[str, str]]:
    """class name -> {set: icon name}, for the classes with enough drawings, in alphabetical order."""
    classes: dict[str, dict[str, str]] = defaultdict(dict)
    for icons in sets:
        for name, left in sorted(without_styles(icons).items(), key=lambda item: (len(item[0]), item[0])):
            if "<animate" not in icons.icons["icons"][name]["body"]:
                classes[left.replace("-", "")].setdefault(icons.name, name)
    return {name: icons for name, icons in sorted(classes.items()) if len(icons) >= MIN_DRAWINGS}


def check_licences(sets: Sequence[DrawingSet]) -> None:
    for icons in sets:
        stated = {icons.licence, icons.info["license"]["spdx"]}
        if not stated <= set(PERMISSIVE):
            sys.exit(f"@iconify-json/{icons.name} states {sorted(stated)}; expected one of {PERMISSIVE}")


def different(drawings: dict[str, list[Drawn]]) -> dict[str, list[Drawn]]:
    """Without drawings that have the pixels of an earlier one or none that is black, and then without small classes."""
    seen = {b"\xff" * SIDE * SIDE}
    kept: dict[str, list[Drawn]] = {}
    for name, of_set in drawings.items():
        kept[name] = []
        for drawn in of_set:
            if (pixels := drawn.image.tobytes()) not in seen:
                seen.add(pixels)
                kept[name].append(drawn)
    count: dict[str, int] = defaultdict(int)
    for of_set in kept.values():
        for drawn in of_set:
            count[drawn.label] += 1
    return {name: [drawn for drawn in of_set if count[drawn.label] >= MIN_DRAWINGS] for name, of_set in kept.items()}


def build(packages: Path, output: Path) -> None:
    """Write sheets, index and attribution."""
    sets = [read_set(packages, name, version) for name, version in VERSIONS.items()]
    check_licences(sets)
    classes = match_names(sets)
    drawings = {}
    for icons in tqdm(sets, unit="set"):
        members = [(name, of[icons.name]) for name, of in classes.items() if icons.name in of]
        drawings[icons.name] = [Drawn(name, draw(icons.icons, icon, SIDE).convert("L")) for name, icon in members]
    drawings = different(drawings)
    write_drawings(output, drawings, side=SIDE, quality=75, method=4)
    lines = [
        f"Made by `examples/data/build_icons.py`. Changes made to every set: rendered to {SIDE} x {SIDE} pixels, black",
        "on white, arranged on sheets; one style of each icon. Left out: drawings with the very pixels of another one,",
        f"and icons drawn by fewer than {MIN_DRAWINGS} sets.",
    ]
    write_attribution(output, sets, drawings, lines)
    labels = {drawn.label for of_set in drawings.values() for drawn in of_set}
    print(f"{len(labels)} classes, {sum(map(len, drawings.values()))} images of {len(sets)} sets in {output}")


if __name__ == "__main__":
    command(__doc__.splitlines()[0], VERSIONS, build, OUTPUT)
