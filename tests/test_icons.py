"""The icon data set, of five small sets made up here: which drawings it holds, what is left out, how it is read."""

import csv
import json

import build_icons
import drawings
import pytest
import torch
from icons import IconsDataset

SIDE = 64
CLASSES = ("home", "arrowleft", "star", "chartline")
"""The class at place k is a rectangle 8 (k + 1) wide, the set at place s draws it 8 (s + 1) high."""
NAMES = (
    ("home", "arrow-left", "star", "chart-line"),  # of no "chart" there is another style: line is no style
    ("home-outline", "arrow-left-outline", "star-outline", "chart-line-outline"),  # declared
    ("home", "arrow-left", "star", "chart-line"),
    ("home-line", "arrow-left-line", "star-line", "chart-line-line"),  # each is there as -solid, too
    ("24-home", "24-arrow-left", "24-star", "24-chart-line"),  # declared
)
METADATA = ({}, {"suffixes": {"outline": "Outline", "": "Filled"}}, {}, {}, {"prefixes": {"24": "24px"}})


def rectangle(width, height):
    return {"body": f'<path fill="currentColor" d="M0 0h{width}v{height}H0z"/>'}


def icons_of(place):
    icons = {name: rectangle(8 * (k + 1), 8 * (place + 1)) for k, name in enumerate(NAMES[place])}
    icons |= {"blank": {"body": "<g/>"}, "spinning": {"body": f"<g>{rectangle(60, 8 + place)['body']}<animate/></g>"}}
    if place == 2:
        icons["home-filled"] = rectangle(60, 60)  # another style of what is there without
    if place == 3:
        icons |= {f"{name.removesuffix('-line')}-solid": rectangle(60, 50 + k) for k, name in enumerate(NAMES[3])}
    if place == 4:
        icons["24-star"] = rectangle(24, 8)  # a copy of set 0's
    if place < 4:
        icons["moon"] = rectangle(48, 8 * (place + 1) if place < 3 else 8)  # set 3 copies set 0: three are left
    if place < 3:
        icons["rare"] = rectangle(56, 8 * (place + 1))
    return icons


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder as npm makes it."""
    monkeypatch.setattr(build_icons, "VERSIONS", {f"set{place}": "1.0.0" for place in range(5)})
    for place in range(5):
        folder = tmp_path / "node_modules" / "@iconify-json" / f"set{place}"
        folder.mkdir(parents=True)
        author = {"name": f"Hand {place}", **({"url": "https://example.org"} if place else {})}
        parts = {
            "package": {"version": "1.0.0", "license": "MIT"},
            "info": {"name": f"Set {place}", "author": author, "license": {"title": "MIT", "spdx": "MIT"}},
            "metadata": METADATA[place],
            "icons": {"icons": icons_of(place), "width": SIDE, "height": SIDE},
        }
        for name, content in parts.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def built(packages, tmp_path):
    build_icons.build(packages, tmp_path / "icons")
    return tmp_path / "icons"


def change(packages, name, part, **changed):
    path = packages / "node_modules" / "@iconify-json" / name / f"{part}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_a_class_is_a_name_without_styles_in_four_sets_that_draw_it_differently(built):
    with (built / "index.csv").open(newline="") as file:
        found = {(row["class"], row["style"]) for row in csv.DictReader(file)}
    everything = {(name, f"set{place}") for name in CLASSES for place in range(5)}
    assert found == everything - {("star", "set4")}


def test_the_data_set_holds_the_drawings_black_on_white(built):
    halves = [IconsDataset(train, built) for train in (True, False)]
    assert sorted(halves[0].names + halves[1].names) == sorted(CLASSES)
    assert [len(half.names) for half in halves] == [2, 2]
    for half in halves:
        assert half.images.shape[1:] == (3, SIDE, SIDE)
        for image, label, style in zip(half.images, half.labels, half.styles, strict=True):
            k, place = CLASSES.index(half.names[label]), int(style[-1])
            expected = torch.full((3, SIDE, SIDE), 255, dtype=torch.uint8)
            expected[:, : 8 * (place + 1), : 8 * (k + 1)] = 0
            assert torch.equal(image, expected)
        assert half[1][0].max() == 1
    assert halves[0].fingerprint() != halves[1].fingerprint()


def test_drawn_again_the_files_are_the_same(built, packages, tmp_path):
    build_icons.build(packages, tmp_path / "again")
    files = sorted(file.name for file in built.iterdir())
    assert files == ["ATTRIBUTION.md", "index.csv", *(f"set{place}.webp" for place in range(5))]
    assert [(built / name).read_bytes() for name in files] == [
        (tmp_path / "again" / name).read_bytes() for name in files
    ]


def test_every_set_is_attributed(built):
    lines = (built / "ATTRIBUTION.md").read_text().splitlines()
    assert "| set0.webp | Set 0 | Hand 0 | MIT | 4 | @iconify-json/set0 1.0.0 |" in lines
    assert "| set4.webp | Set 4 | [Hand 4](https://example.org) | MIT | 3 | @iconify-json/set4 1.0.0 |" in lines


def test_a_licence_that_is_not_permissive_is_refused(packages, tmp_path):
    change(packages, "set1", "package", license="GPL-3.0-only")
    with pytest.raises(SystemExit, match=r"set1 states \['GPL-3.0-only', 'MIT'\]; expected one of \('MIT', 'ISC'"):
        build_icons.build(packages, tmp_path / "icons")
    assert not (tmp_path / "icons").exists()


def test_another_version_is_refused(packages, tmp_path):
    change(packages, "set3", "package", version="1.0.1")
    with pytest.raises(SystemExit, match=r"set3 holds version 1.0.1; expected 1.0.0"):
        build_icons.build(packages, tmp_path / "icons")


def test_without_npm_the_script_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="npm, which is not installed; or give --packages FOLDER"):
        drawings.fetch_packages(tmp_path, {"set0": "1.0.0"})


def test_a_folder_that_is_missing_or_cut_short_says_how_to_draw_it(built, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/index.csv; expected .* make icons"):
        IconsDataset(train=True, folder=tmp_path / "nowhere")
    sheet = built / "set2.webp"
    sheet.write_bytes(sheet.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"cannot read the sheet of drawings .*set2.webp .*make icons"):
        IconsDataset(train=True, folder=built)
