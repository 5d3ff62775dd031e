"""The report: its numbers against metrics.json, escaping; sorting and width in a browser where there is one."""

import base64
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from run_folders import record_of, write_run

from pml_s2sd.report.__main__ import main
from pml_s2sd.report.columns import FIGURES
from pml_s2sd.report.page import write_report
from pml_s2sd.report.pictures import save_png
from pml_s2sd.report.run_folder import COSTS, PERCENTAGES, PROPERTIES


class Page(HTMLParser):
    """Tables by name, as lists of rows {column: (value sorted by, text)}; every tag and its attributes.

    `meanings` is what the heads say under their names.
    """

    def __init__(self, path):
        super().__init__()
        self.tables, self.meanings, self.tags, self.text, self._cell = {}, {}, [], "", None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if attributes.get("class") == "scroll":
            self.header, self.rows = [], []
            self.tables[attributes["aria-label"]] = self.rows
        elif tag == "tr":
            self._row = {}
        elif tag in ("td", "th"):
            self._cell = [attributes.get("data-value"), ""]
        elif tag == "small" and self._cell[0] is None:
            self._cell.append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            value, text, *meaning = self._cell
            if value is None:
                self.header.append(text)
                self.meanings[text] = "".join(meaning)
            else:
                self._row[self.header[len(self._row)]] = (value, text)
            self._cell = None
        elif tag == "tr" and self._row:
            self.rows.append(self._row)

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell[-1] += data

    def pictures(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]


def test_the_numbers_are_those_of_metrics_json(tmp_path):
    folder = write_run(tmp_path, "demo")
    output = write_report([folder])
    assert output == folder / "report.html"
    page = Page(output)
    models = json.loads((folder / "metrics.json").read_text())["models"]
    rows = page.tables["Every model"]
    assert [row["model"][1] for row in rows] == ["baseline", "msdfa"]
    for row, record in zip(rows, models.values(), strict=True):
        for metric, title in (PERCENTAGES | PROPERTIES).items():
            value, text = row[title]
            assert float(value) == record[metric]
            assert text == (f"{100 * record[metric]:.1f}" if metric in PERCENTAGES else f"{record[metric]:.3f}")
        assert row["parameters"] == ("306544", "306,544")
        assert row["d"][1] == "32"
        assert row["epochs"][1] == "3"
    assert "Means over runs" not in page.tables
    assert re.search(r"45\.0Recall@1, msdfa\s", page.text)
    assert "3,390 images of 613 classes" in page.text
    made = {row["setting"][1]: row["demo"][1] for row in page.tables["How it was made"]}
    assert made["aux_sizes"] == "64, 128"
    assert made["torch, version"] == "2.6.0"
    assert made["machine"] == "x86_64, 1 threads"
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_consolidated_model_has_its_seconds_and_what_it_was_before(tmp_path):
    folder = write_run(tmp_path, "demo")
    content = json.loads((folder / "metrics.json").read_text())
    content["models"]["msdfa"] |= {"consolidation_seconds": 41.6, "precision_at_1_before_consolidation": 0.4321}
    (folder / "metrics.json").write_text(json.dumps(content))
    page = Page(write_report([folder]))
    baseline, msdfa = page.tables["Every model"]
    assert (baseline["consolidation s"][1], msdfa["consolidation s"]) == ("–", ("41.6", "42"))
    assert "Recall@1, msdfa; 43.2 before consolidation" in page.text
    assert page.text.count("before consolidation") == 1
    content["models"]["msdfa"]["precision_at_1_before_consolidation"] = "high"
    (folder / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="precision_at_1_before_consolidation of model 'msdfa' is 'high'"):
        write_report([folder])


def test_the_page_loads_nothing_and_has_its_pictures_inside(tmp_path):
    folder = write_run(tmp_path, "demo")
    for name in ("retrieval.png", "baseline.map.png", "msdfa.map.png"):
        save_png(Figure((1, 1)), folder / name)
    (folder / "msdfa.map.png").write_bytes((folder / "msdfa.map.png").read_bytes()[:-20])  # cut short: left out
    page = Page(write_report([folder]))
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"url\(|@import|https?://|<link|fetch|XMLHttp", page.source)
    assert "default-src 'none'" in page.source  # and a browser is told so
    drawn = [source for source in sources if source.startswith("data:image/svg+xml;base64,")]
    assert len(drawn) == 3  # Recall@1, the objective, the spectrum
    assert all(base64.b64decode(source.split(",")[1]).rstrip().endswith(b"</svg>") for source in drawn)
    kept = [base64.b64decode(s.split(",")[1]) for s in sources if s.startswith("data:image/png;base64,")]
    assert kept == [(folder / name).read_bytes() for name in ("retrieval.png", "baseline.map.png")]
    assert all(attributes["alt"] for attributes in page.pictures())


def test_seeds_have_means_and_paired_gains(tmp_path):
    starts = {0: (0.40, 0.45), 1: (0.42, 0.44), 2: (0.47, 0.50)}
    folders = [
        write_run(tmp_path, f"s{seed}", {"baseline": record_of(a), "msdfa": record_of(b, epochs=3 + seed)}, seed=seed)
        for seed, (a, b) in starts.items()
    ]
    page = Page(write_report([*folders, folders[0]], tmp_path / "all.html"))  # a folder given twice counts once
    assert len(page.tables["Every model"]) == 6
    means = {row["model"][1]: row for row in page.tables["Means over runs"]}
    baseline = [100 * a for a, _ in starts.values()]
    gain = [100 * (b - a) for a, b in starts.values()]
    assert means["baseline"]["Recall@1"][1] == f"{statistics.mean(baseline):.1f} ± {statistics.stdev(baseline):.1f}"
    assert means["gain of msdfa"]["Recall@1"][1] == f"+{statistics.mean(gain):.1f} ± {statistics.stdev(gain):.1f}"
    assert float(means["gain of msdfa"]["Recall@1"][0]) == pytest.approx(statistics.mean(gain) / 100)
    assert means["msdfa"]["runs"][1] == "3"
    assert "Recall@1 on unseen classes against the embedding size" not in page.source


def test_what_is_looked_for_stands_first_and_every_figure_is_explained(tmp_path):
    page = Page(write_report([write_run(tmp_path, "demo")]))
    columns = list(page.tables["Every model"][0])
    assert columns[:6] == ["model", "Recall@1", "MAP@R", "parameters", "ms/image", "training s"]
    assert {*PERCENTAGES.values(), *PROPERTIES.values(), "d", "seed", "epochs"} < set(columns)
    assert [column for column in columns[1:] if not page.meanings[column]] == []
    assert FIGURES.keys() == {*PERCENTAGES, *PROPERTIES, *COSTS}
    assert page.meanings["Recall@1"] == "% of queries whose nearest is of their class"


def test_a_gain_of_one_run_is_not_shown(tmp_path):
    page = Page(write_report([write_run(tmp_path, "demo")]))
    assert "A gain of one run has no interval and is not shown" in page.text
    assert "on the baseline" not in page.text
    assert not re.search(r"\+\d", page.text)


def test_a_gain_of_several_runs_has_its_interval(tmp_path):
    """Of 5, 2 and 3 points: mean 10/3, standard error √(7/3)/√3, and 4.302653, Student's t of 2 degrees of freedom."""
    starts = {0: (0.40, 0.45), 1: (0.42, 0.44), 2: (0.47, 0.50)}
    folders = [
        write_run(tmp_path, f"s{seed}", {"baseline": record_of(a), "msdfa": record_of(b)}, seed=seed)
        for seed, (a, b) in starts.items()
    ]
    alone = write_run(tmp_path, "once", {"baseline": record_of(0.3), "msdfa": record_of(0.4)}, objective="another")
    page = Page(write_report(folders, tmp_path / "all.html"))
    half = 4.302653 * math.sqrt(7 / 3) / math.sqrt(3)
    interval = f"95 % interval {10 / 3 - half:+.1f} to {10 / 3 + half:+.1f}"
    assert f"Recall@1, msdfa, 3 runs; +3.3 on the baseline, {interval}" in page.text
    assert "A gain of one run" not in page.text
    page = Page(write_report([*folders, alone], tmp_path / "all.html"))
    assert "A gain of one run" in page.text
    assert f"Recall@1, msdfa, objective=None, 3 runs; +3.3 on the baseline, {interval}" in page.text
    assert "Recall@1, msdfa, objective=another" in page.text
    gains = [row["model"][1] for row in page.tables["Means over runs"] if row["model"][1].startswith("gain")]
    assert gains == ["gain of msdfa, objective=None"]


def test_means_have_the_costs_and_a_dash_where_a_run_lacks_a_figure(tmp_path):
    seconds = {0: 10.0, 1: 20.0}
    folders = [
        write_run(
            tmp_path,
            f"s{seed}",
            {
                "baseline": record_of(0.4),
                "s2sd": record_of(0.5) | {"consolidation_seconds": s, "train_seconds": 61.2 + s},
            },
            seed=seed,
        )
        for seed, s in seconds.items()
    ]
    means = {
        row["model"][1]: row for row in Page(write_report(folders, tmp_path / "all.html")).tables["Means over runs"]
    }
    assert [means["baseline"][c][1] for c in ("parameters", "training s", "consolidation s")] == ["306,544", "61", "–"]
    assert [means["s2sd"][c][1] for c in ("training s", "consolidation s")] == ["76 ± 7", "15 ± 7"]
    assert [means["gain of s2sd"][c][1] for c in ("parameters", "training s")] == ["+0", "+15 ± 7"]
    assert means["gain of s2sd"]["consolidation s"] == ("", "–")


def test_sizes_have_a_picture_and_what_differs_comes_first(tmp_path):
    folders = [
        write_run(tmp_path, f"d{d}-{seed}", {"msdfa": record_of(d / 100)}, embedding_size=d, seed=seed, epochs=3 + seed)
        for d in (16, 32)
        for seed in (0, 1)
    ]
    page = Page(write_report(folders, tmp_path / "sizes.html"))
    descriptions = [attributes["alt"] for attributes in page.pictures()]
    assert sum("against the embedding size" in description for description in descriptions) == 1
    first = page.tables["How it was made"][0]
    assert first["setting"][1] == "name"  # what differs comes first
    assert [row["setting"][1] for row in page.tables["How it was made"]].index("aux_sizes") > 2


ODD = "<script>alert(1)</script>\"'&$x$title"


def test_names_and_settings_are_escaped(tmp_path):
    name = ODD.replace("/", "∕")  # a folder's name
    models = {"baseline": record_of(0.4), ODD: record_of(0.45)}
    folder = write_run(tmp_path, name, models, objective="<img src=x onerror=alert(2)>")
    page = Page(write_report([folder]))
    assert page.source.count("<script>") == page.source.count("</script>") == 1
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert [row["model"][1] for row in page.tables["Every model"]] == ["baseline", ODD]
    assert {row["setting"][1]: row[name][1] for row in page.tables["How it was made"]}["objective"].startswith("<img")
    assert f"Recall@1, {ODD}" in page.text


def test_what_is_missing_or_infinite_is_shown_as_such(tmp_path):
    small = {"precision_at_1": 0.4, "epochs": [{"epoch": 1, "loss": 0.5}]}  # as of train_distributed.py
    models = {"baseline": {**small, "spectral_decay": float("inf")}, "msd": {**small, "NMI": float("nan")}}
    models["msdfa"] = {"epochs": [{"epoch": 1, "loss": 0.5}]}
    folder = write_run(tmp_path, "demo", models)
    content = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({"models": content["models"]}))  # no settings either
    page = Page(write_report([folder]))
    baseline, msd = page.tables["Every model"]
    assert baseline["spectral decay"] == ("Infinity", "∞")
    assert baseline["NMI"] == msd["NMI"] == msd["spectral decay"] == baseline["d"] == ("", "–")
    assert "Recall@2" not in baseline
    assert "demo, msdfa is not finished (1 epochs) and left out." in page.text


EXTREMES = [0, -1, 2**63 - 1, -(2**63), 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf")]


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", EXTREMES)
def test_figures_of_any_size_make_a_page(tmp_path, value):
    """What cannot be shown is a dash, or an infinity."""
    shown = "–" if math.isnan(value) else {math.inf: "∞", -math.inf: "-∞"}.get(value)
    changed = record_of(0.45) | {"spectral_decay": value, "train_seconds": value, "singular_values": [value, 1.0]}
    changed["epochs"][1] |= {"loss": value, "precision_at_1": value}
    runs = [
        write_run(tmp_path, "a", {"baseline": record_of(0.4), "msdfa": changed}, embedding_size=value),
        write_run(tmp_path, "b", {"msdfa": record_of(0.5)}),
    ]
    page = Page(write_report(runs, tmp_path / "page.html"))
    row = page.tables["Every model"][1]
    assert row["spectral decay"][1] == (shown or f"{value:.3f}")
    assert row["training s"][1] == (shown or f"{value:.0f}")
    assert len(page.pictures()) == (4 if 0 < value < math.inf else 3)  # Recall@1 against d, where there are two

    changed = record_of(0.45) | {"precision_at_1": value}
    changed["epochs"][1]["epoch"] = value
    page = Page(write_report([write_run(tmp_path, "c", {"baseline": record_of(0.4), "msdfa": changed})]))
    assert page.tables["Every model"][1]["Recall@1"][1] == (shown or f"{100.0 * value:.1f}".replace("inf", "∞"))
    assert shown is None or "–Recall@1, msdfa" in page.text
    assert len(page.pictures()) == 3


def test_names_of_any_bytes_make_a_page(tmp_path, capsys):
    root = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(root)
    folder = write_run(Path(os.fsdecode(root)), "demo", {"\ud800": record_of(0.4), "msdfa": record_of(0.5)})
    save_png(Figure((1, 1)), folder / "msdfa.map.png")
    (folder / "msdfa.map.png").rename(folder / os.fsdecode(b"\xe9.map.png"))
    main([str(folder)])
    assert capsys.readouterr().out.strip().endswith(r"/caf\udce9/demo/report.html")
    page = Page(folder / "report.html")
    assert [row["model"][1] for row in page.tables["Every model"]] == [r"\ud800", "msdfa"]
    assert r"Test embeddings of \udce9, by t-SNE" in page.text


@pytest.mark.parametrize("text", ["", "{", "null", '{"models":' + "[" * 200_000, '{"models": {"x": {"epochs": 3}}}'])
def test_a_metrics_json_that_cannot_be_used_ends_the_command_in_a_sentence(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(SystemExit, match=r"^report: .*metrics.json"):
        main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_the_command(tmp_path, capsys):
    folder = write_run(tmp_path, "demo")
    main([str(folder), "--output", str(tmp_path / "page.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    before = (tmp_path / "page.html").read_bytes()
    with pytest.raises(SystemExit, match=r"report: no folder .*nowhere"):
        main([str(folder), str(tmp_path / "nowhere"), "--output", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").read_bytes() == before
    with pytest.raises(SystemExit, match=r"demo is a folder; give the name of a file"):
        main([str(folder), "--output", str(folder)])
    with pytest.raises(SystemExit, match=r"no folder .*absent to write page.html into; make it first"):
        main([str(folder), "--output", str(tmp_path / "absent" / "page.html")])
    done = subprocess.run([sys.executable, "-m", "pml_s2sd.report", "nowhere"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == "report: no folder nowhere; expected a run of examples/train.py, RUNS/NAME"


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Loads the page in a frame of a phone's or a desktop's width, taps headers, and leaves what it saw in the document.
HARNESS = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" style="border:0;width:WIDTHpx;height:900px"></iframe>
<script id="page" type="application/json">PAGE</script>
<script>
const frame = document.getElementById("frame");
frame.onload = () => {
  const page = frame.contentDocument, seen = {width: frame.contentWindow.innerWidth};
  seen.overflow = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  const table = page.querySelector("table"), headers = [...table.tHead.rows[0].cells];
  seen.scrolls = table.parentElement.scrollWidth > table.parentElement.clientWidth;
  const column = (name) => headers.findIndex((cell) => cell.querySelector("button").textContent === name);
  const tap = (name) => {
    const button = headers[column(name)].querySelector("button");
    button.focus();
    button.click();
    return [[...table.tBodies[0].rows].map((row) => row.cells[0].dataset.value), headers[column(name)].ariaSort,
      headers.filter((cell) => cell.ariaSort !== "none").length, page.activeElement === button,
      button.getBoundingClientRect().height >= 44];
  };
  seen.taps = [tap("F1"), tap("F1"), tap("model"), tap("model"), tap("F1"), tap("d")];
  const box = table.parentElement, hint = box.parentElement.previousElementSibling.querySelector("button");
  const right = (element) => element.getBoundingClientRect().right;
  const inSight = () => headers.filter((cell, i) => i > 0 && right(cell) <= right(box) + 1 &&
    cell.getBoundingClientRect().left >= right(headers[0]) - 1).map((cell) => cell.querySelector("button").textContent);
  const said = () => {
    box.dispatchEvent(new Event("scroll"));
    return [hint.textContent, headers.filter((cell) => right(cell) > right(box) + 1).length];
  };
  box.scrollLeft = 0;
  seen.hints = [said()];
  seen.reached = inSight();
  for (let taps = 0; taps < 30 && seen.hints.at(-1)[1] > 0; taps++) {
    hint.click();
    seen.hints.push(said());
    seen.reached.push(...inSight());
  }
  seen.columns = headers.slice(1).map((cell) => cell.querySelector("button").textContent);
  hint.click();
  seen.back = box.scrollLeft;
  seen.folded = [...page.querySelectorAll("details")].at(-1).open === false;
  seen.images = [...page.images].every((image) => image.complete && image.naturalWidth > 0);
  const ascii = JSON.stringify(seen).replace(/[^\\x00-\\x7f]/g, (c) => "\\\\u" + c.charCodeAt(0).toString(16));
  document.body.innerHTML = "<pre>" + btoa(ascii) + "</pre>";
};
frame.srcdoc = JSON.parse(document.getElementById("page").textContent);
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_it_fits_the_screen_and_sorts(tmp_path, width):
    f1 = {"ten": 0.1, "nine": 0.09, "hundred": 1.0, "none": None, "w" * 90: 0.5}
    models = {name: {**record_of(0.4), "f1": value} for name, value in f1.items()}
    del models["none"]["f1"]
    folder = write_run(tmp_path, "demo" + "x" * 80, models, objective="y" * 200)
    save_png(Figure((9, 9)), folder / "retrieval.png")
    page = write_report([folder]).read_text(encoding="utf-8")
    harness = tmp_path / "harness.html"
    embedded = json.dumps(page).replace("</", "<\\/")
    harness.write_text(HARNESS.replace("WIDTH", str(width)).replace("PAGE", embedded, 1), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --virtual-time-budget=20000 --window-size=1400,1000 --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<pre>(.*?)</pre>", done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(base64.b64decode(found.group(1)))
    assert seen["width"] == width
    assert seen["overflow"] == 0
    assert seen["scrolls"]
    assert seen["images"]
    assert seen["folded"]
    for text, out_of_sight in seen["hints"][:-1]:
        assert text == ("1 more column →" if out_of_sight == 1 else f"{out_of_sight} more columns →")
    assert [out_of_sight > 0 for _, out_of_sight in seen["hints"]] == [True] * (len(seen["hints"]) - 1) + [False]
    assert (seen["hints"][-1][0], seen["back"]) == ("← first columns", 0)
    assert set(seen["reached"]) == set(seen["columns"])
    assert seen["columns"][:5] == ["Recall@1", "MAP@R", "parameters", "ms/image", "training s"]
    rising = ["nine", "ten", "w" * 90, "hundred"]
    expected = [
        ([*reversed(rising), "none"], "descending"),
        ([*rising, "none"], "ascending"),
        (sorted(f1), "ascending"),
        (sorted(f1, reverse=True), "descending"),
        ([*reversed(rising), "none"], "descending"),
        ([*reversed(rising), "none"], "descending"),  # all alike: the order stays
    ]
    for (names, direction, marked, focused, tall), (in_order, is_direction) in zip(seen["taps"], expected, strict=True):
        assert [name.split()[0] for name in names] == in_order
        assert (direction, marked, focused, tall) == (is_direction, 1, True, True)
