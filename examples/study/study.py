"""Does S2SD help, how much, when not: the rows of every question, measured, and the tables and plots from them.

    PYTHONPATH=examples python -m study.study                                          # everything (hours)
    PYTHONPATH=examples python -m study.study --questions auto --settings frozen --objectives margin --seeds 0 1
    PYTHONPATH=examples python -m study.study --published                              # go on from results.jsonl
    PYTHONPATH=examples python -m study.study --published --publish                    # and write it, and docs/study.md

One JSON a run, in RUNS/study; a run that is there, made in the same way, is not repeated. Several processes may share
the folder. Ends by writing RUNS/study/tables.md and the plots beside it, and where the rows are published, by
comparing them with what was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from results import write_json, write_text

from pml_s2sd._automatic_weights import RATIO
from pml_s2sd._teacher_selection import FULL_LEAD, LEAD
from pml_s2sd.loss import AUTO_TEMPERATURE
from study.plots import plot_gains, plot_sizes, plot_weights
from study.questions import COMPARED, QUESTIONS, SEEDS, Row
from study.settings import PHOTOS, SETTINGS, Setting, cache_of
from study.tables import Found, compare, tables
from study.training import run
from study.ways import WAYS

PUBLISHED = Path(__file__).parent / "results.jsonl"
DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- tables, written by study.py --publish -->", "<!-- end of tables -->"


def made_by(row: Row) -> dict[str, Any]:
    """All that a run's figures depend on, but for versions and chance."""
    way = WAYS[row.way].describe()
    if "auto" in str(way):
        way |= {"ratio": RATIO, "automatic temperature": AUTO_TEMPERATURE, "leads": [LEAD, FULL_LEAD]}
    return {**row._asdict(), "epochs": SETTINGS[row.setting].epochs, "made": way}


def read(lines: list[str]) -> dict[Row, dict[str, Any]]:
    """The runs that were made as they would be made now."""
    records = [json.loads(line) for line in lines]
    found = {Row(*(record[name] for name in Row._fields)): record for record in records}
    return {
        row: record
        for row, record in found.items()
        if row.way in WAYS and all(record.get(name) == value for name, value in made_by(row).items())
    }


def wanted(chosen: argparse.Namespace) -> list[Row]:
    rows = (row for name in chosen.questions for row in QUESTIONS[name].rows(chosen.seeds))
    return [
        row
        for row in dict.fromkeys(rows)
        if row.setting in chosen.settings
        and row.objective in chosen.objectives
        and (chosen.ways is None or row.way in chosen.ways)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--objectives", nargs="+", choices=COMPARED, default=COMPARED)
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--photos", type=Path, help=PHOTOS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--published", action="store_true", help="rows that were published are not measured again")
    parser.add_argument("--publish", action="store_true", help="write results.jsonl, and tables and plots in docs/")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    folder = chosen.runs / "study"
    folder.mkdir(parents=True, exist_ok=True)
    published = read(PUBLISHED.read_text().splitlines()) if PUBLISHED.exists() else {}
    loaded: dict[str, Setting] = {}
    for row in wanted(chosen):
        path = folder / row.file
        known = read([json.dumps(json.loads(path.read_text()))]) if path.exists() else {}
        if row in known or (chosen.published and row in published):
            continue
        if row.setting not in loaded:
            loaded[row.setting] = Setting(row.setting, cache_of(row.setting, chosen.runs), photos=chosen.photos)
        figures = run(loaded[row.setting], row)
        write_json(path, {**made_by(row), **figures, "torch": torch.__version__, "threads": chosen.threads})
    here = read([json.dumps(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))])
    found = Found({**published, **here} if chosen.published else here)
    print(tables(found))
    if published and not chosen.published:
        print("\n" + compare(found, Found(published)))
    write_text(folder / "tables.md", tables(found) + "\n")
    draw(found, folder, "")
    if chosen.publish:
        publish(found)


def draw(found: Found, folder: Path, prefix: str) -> None:
    plot_gains(found, folder / f"{prefix}gains.png")
    plot_sizes(found, folder / f"{prefix}sizes.png")
    plot_weights(found, folder / f"{prefix}weights.png")


def publish(found: Found) -> None:
    write_text(PUBLISHED, "".join(json.dumps(found[row]) + "\n" for row in sorted(found)))
    draw(found, DOCS, "study_")
    page = (DOCS / "study.md").read_text()
    before, after = page[: page.index(BEGIN)], page[page.index(END) :]
    write_text(DOCS / "study.md", f"{before}{BEGIN}\n\n{tables(found)}\n\n{after}")


if __name__ == "__main__":
    main()
