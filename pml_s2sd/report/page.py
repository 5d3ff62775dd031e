"""One self-contained HTML page of one or several training runs: tables that sort, training curves, pictures."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from .._text import encodable
from ..whole_file import check_output, whole_file
from .columns import EPOCHS, FIGURES, GLOSSARY, MODEL, RUNS, SEED, SIZE, Column, figures_in
from .pictures import as_svg, draw_curves, draw_sizes, draw_spectra
from .run_folder import BEFORE_CONSOLIDATION, Run, read_runs
from .series import curve_panels, gains, interval_of_mean, mean_and_deviation, recall_by_size, series_of, spectra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """What is shown, as HTML, and what is sorted by: a number, a text, or "" for no value."""

    html: str
    value: float | str = ""


def write_report(folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write the report of runs as one HTML file.

    Args:
        folders: those of the runs.
        output: the file; unless given, report.html in the run's folder or, of several runs, where you are.

    Returns:
        The file.

    Raises:
        FileNotFoundError, ValueError: a folder is no run (see `run_folder.read_run`), or output cannot be a file.
        ImportError: matplotlib is not installed.

    Example:
        >>> from pml_s2sd.report import write_report
        >>> write_report([])
        Traceback (most recent call last):
        ValueError: a report needs at least one run; give its folder, as runs/demo
    """
    if not folders:
        raise ValueError("a report needs at least one run; give its folder, as runs/demo")
    runs = read_runs(folders)
    if output is None:
        output = runs[0].folder / "report.html" if len(runs) == 1 else "report.html"
    output = Path(output)
    check_output(output)
    with np.errstate(all="ignore"):  # a run's figures may be infinite
        page = encodable(render(runs))
    with whole_file(output, "w") as file:
        file.write(page)
    return output


def render(runs: Sequence[Run]) -> str:
    """The page, as HTML."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        introduction(runs),
        headline(runs),
        *([f"<h2>Means over runs</h2>{means_table(runs)}"] if repeats(runs) else []),
        "<h2>Every model</h2>",
        models_table(runs),
        glossary(),
        "<h2>Pictures</h2>",
        about_pictures(runs),
        f'<div class="pictures">{"".join(drawn(runs))}</div>',
        *kept_pictures(runs),
        settings_table(runs),
    ]
    template = Template((files("pml_s2sd.report") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(section for section in sections if section))


def introduction(runs: Sequence[Run]) -> str:
    data = {repr(run.content.get("data")): run.content.get("data") for run in runs}.values()
    sentences = [
        "Tested on {test_images:,} images of {test_classes:,} classes that were not trained on.".format(**part)
        for part in data
        if isinstance(part, dict) and all(isinstance(part.get(f"test_{what}"), int) for what in ("images", "classes"))
    ]
    sentences += [
        f"{run.name}, {model} is not finished ({epochs} epochs) and left out."
        for run in runs
        for model, epochs in run.unfinished.items()
    ]
    if any(len(values) == 1 for values in gains(runs, "precision_at_1").values()):
        sentences.append(
            "A gain of one run has no interval and is not shown: repeat the run with other seeds, as make seeds does "
            "the demo."
        )
    return f'<p class="quiet">{escape(" ".join(sentences))}</p>' if sentences else ""


def repeats(runs: Sequence[Run]) -> bool:
    return any(len(members) > 1 for members in series_of(runs).values())


def headline(runs: Sequence[Run]) -> str:
    """Recall@1 of each series, its gain, and what it was before consolidation."""
    above = gains(runs, "precision_at_1")
    items = []
    for label, members in series_of(runs).items():
        note = f"Recall@1, {label}" + (f", {len(members)} runs" if len(members) > 1 else "")
        if label in above:
            note += gain_text(above[label])
        if all(BEFORE_CONSOLIDATION in record for _, record in members):
            before = mean_text([record[BEFORE_CONSOLIDATION] for _, record in members], "{:.1f}")
            note += f"; {before} before consolidation"
        recall = mean_text([record["precision_at_1"] for _, record in members], "{:.1f}")
        items.append(f"<li><strong>{recall}</strong>{escape(note)}</li>")
    return f'<ul class="headline">{"".join(items)}</ul>'


def gain_text(values: Sequence[float]) -> str:
    """The mean gain and its interval; nothing of one run, which has none."""
    if len(values) == 1:
        return ""
    mean, _ = mean_and_deviation([100 * value for value in values])
    low, high = interval_of_mean([100 * value for value in values])
    if not math.isfinite(low + high):
        return f"; {NONE} on the baseline"
    return f"; {mean:+.1f} on the baseline, 95 % interval {low:+.1f} to {high:+.1f}"


def mean_text(values: Sequence[float], form: str, scale: float = 100) -> str:
    """Mean, and ± standard deviation where there are several that differ."""
    mean, deviation = mean_and_deviation([scale * value for value in values])
    if not math.isfinite(mean) or not math.isfinite(deviation):
        return NONE
    return form.format(mean) + (f" ± {form.replace('+', '').format(deviation)}" if len(set(values)) > 1 else "")


def models_table(runs: Sequence[Run]) -> str:
    """A row a model: every figure that any model has, and the settings that matter most."""
    figures = figures_in(record for run in runs for record in run.models.values())
    rows = []
    for run in runs:
        for model, record in run.models.items():
            name = escape(model) + (f" <small>{escape(run.name)}</small>" if len(runs) > 1 else "")
            own = [plain(run.settings.get(setting)) for setting in ("embedding_size", "seed")]
            epochs = Cell(str(len(record["epochs"])), len(record["epochs"]))
            row = [number(record.get(figure), FIGURES[figure]) for figure in figures]
            rows.append([Cell(name, f"{model} {run.name}"), *row, *own, epochs])
    return table("Every model", [MODEL, *(FIGURES[figure] for figure in figures), SIZE, SEED, EPOCHS], rows)


def means_table(runs: Sequence[Run]) -> str:
    """A row a series, mean ± standard deviation over its runs, and one of what it gains on the baseline of its run."""
    figures = figures_in(record for run in runs for record in run.models.values())
    of_series = {
        label: {figure: [record[figure] for _, record in members if figure in record] for figure in figures}
        for label, members in series_of(runs).items()
    }
    rows = [means_row(label, values) for label, values in of_series.items()]
    above = {figure: gains(runs, figure) for figure in figures}
    for label, of_runs in above["precision_at_1"].items():
        if len(of_runs) > 1:
            values = {figure: above[figure].get(label, []) for figure in figures}
            rows.append(means_row(f"gain of {label}", values, sign="+"))
    about = "Mean ± standard deviation over runs; a gain is the difference to the baseline of the same run."
    means = table("Means over runs", [MODEL, *(FIGURES[figure] for figure in figures), RUNS], rows)
    return f'<p class="quiet">{about}</p>{means}'


def means_row(label: str, values: Mapping[str, Sequence[float]], sign: str = "") -> list[Cell]:
    """Means of the figures that every run of a series has, and how many runs."""
    runs = len(values["precision_at_1"])
    means = [
        mean_cell(of_figure, replace(FIGURES[figure], form=FIGURES[figure].form.replace("{:", f"{{:{sign}")))
        if len(of_figure) == runs
        else Cell(NONE)
        for figure, of_figure in values.items()
    ]
    return [Cell(escape(label), label), *means, Cell(str(runs), runs)]


def number(value: Any, column: Column) -> Cell:
    """A figure of metrics.json: shown rounded, sorted by as it stands there."""
    if not isinstance(value, int | float) or math.isnan(value):
        return Cell(NONE)
    if math.isinf(column.scale * value):
        return Cell("∞" if value > 0 else "-∞", value)
    return Cell(escape(column.form.format(column.scale * value)), value)


def mean_cell(values: Sequence[float], column: Column) -> Cell:
    text = mean_text(values, column.form, column.scale)
    return Cell(text, mean_and_deviation(values)[0] if text != NONE else "")


def plain(value: Any) -> Cell:
    """A setting as it is, a list's entries between commas."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return Cell(NONE) if value is None else Cell(escape(text), text)


def table(name: str, header: Sequence[Column], rows: Iterable[Sequence[Cell]], kind: str = "figures") -> str:
    """A table in a container that scrolls; its header's buttons sort it. The first cell of a row is its header.

    Above it is said that it scrolls; the page's script says how many columns are out of sight.
    """
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape(column.title)}</button>'
        f"{f'<small>{escape(column.meaning)}</small>' if column.meaning else ''}</th>"
        for column in header
    )
    body = "".join(f"<tr>{''.join(cell_html(cell, i == 0) for i, cell in enumerate(row))}</tr>" for row in rows)
    return (
        f'<p class="hint">{len(header)} columns; scroll sideways for those that do not fit →</p><div class="frame">'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table class="sortable {kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def cell_html(cell: Cell, is_header: bool) -> str:
    value = "Infinity" if cell.value == math.inf else "-Infinity" if cell.value == -math.inf else str(cell.value)
    tag, scope = ("th", ' scope="row"') if is_header else ("td", "")
    return f'<{tag}{scope} data-value="{escape(value)}">{cell.html}</{tag}>'


def glossary() -> str:
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in GLOSSARY.items())
    return f"<details><summary>What the columns mean, in full</summary><dl>{entries}</dl></details>"


def about_pictures(runs: Sequence[Run]) -> str:
    records = [record for run in runs for record in run.models.values()]
    sentences = ["Lines are means over runs, bands ± their standard deviation."] if repeats(runs) else []
    if any(BEFORE_CONSOLIDATION in record for record in records):
        sentences.append("Curves over epochs are of the head as training left it.")
    return f'<p class="quiet">{" ".join(sentences)}</p>' if sentences else ""


def drawn(runs: Sequence[Run]) -> Iterable[str]:
    """The pictures that are drawn from metrics.json; their titles are in them."""
    for title, series in curve_panels(runs).items():
        yield figure_of(draw_curves({title: series}), f"Line chart: {title}, after each epoch")
    if sizes := recall_by_size(runs):
        yield figure_of(draw_sizes(sizes), "Line chart: Recall@1 on unseen classes against the embedding size")
    if of_spaces := spectra(runs):
        yield figure_of(draw_spectra(of_spaces), "Line chart: singular values of the test set's embeddings")


def figure_of(figure: Figure, description: str) -> str:
    return f'<figure class="narrow">{image("image/svg+xml", as_svg(figure).encode(), description)}</figure>'


def kept_pictures(runs: Sequence[Run]) -> Iterable[str]:
    """Those that training left in the folders; of several runs, the first one's are open."""
    for position, run in enumerate(runs):
        maps = sorted(run.folder.glob("*.map.png"))
        captions = {
            run.folder
            / "retrieval.png": "Queries, evenly spaced, and their nearest neighbours: right with a check mark"
        }
        captions |= {path: f"Test embeddings of {path.name.removesuffix('.map.png')}, by t-SNE" for path in maps}
        pictures = [
            f'<figure class="{"narrow" if path in maps else "wide"}">{image("image/png", content, caption)}'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for path, caption in captions.items()
            if (content := whole_png(path))
        ]
        if pictures:
            state = " open" if position == 0 else ""
            yield (
                f"<details{state}><summary>Retrieval and maps, {escape(run.name)}</summary>"
                f'<div class="pictures">{"".join(pictures)}</div></details>'
            )


def whole_png(path: Path) -> bytes | None:
    """A picture's bytes; nothing where there is none, or it was cut short."""
    content = path.read_bytes() if path.is_file() else b""
    return content if content.startswith(b"\x89PNG\r\n") and content.endswith(b"IEND\xaeB`\x82") else None


def image(kind: str, content: bytes, description: str) -> str:
    return f'<img src="data:{kind};base64,{base64.b64encode(content).decode()}" alt="{escape(description)}">'


def settings_table(runs: Sequence[Run]) -> str:
    """Folded: a row a setting, version or figure of the data, a column a run; those in which runs differ come first."""
    found: list[dict[str, Any]] = []
    for run in runs:
        versions, data = (run.content.get(part, {}) for part in ("versions", "data"))
        of_run = dict(run.settings)
        of_run |= {f"{name}, version": value for name, value in versions.items()}
        of_run |= {name.replace("_", " "): value for name, value in data.items()}
        found.append({**of_run, "machine": run.content.get("machine")})
    names = list(dict.fromkeys(name for of_run in found for name in of_run))
    names.sort(key=lambda name: len({repr(of_run.get(name)) for of_run in found}) == 1)
    rows = [[Cell(escape(name), name), *(plain(of_run.get(name)) for of_run in found)] for name in names]
    made = table("How it was made", [Column("setting"), *(Column(run.name) for run in runs)], rows, "settings")
    return f"<details><summary>How it was made: settings, versions, data, machine</summary>{made}</details>"
