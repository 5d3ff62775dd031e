"""One self-contained HTML page of one or several training runs: tables that sort, training curves, pictures."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from .._text import encodable
from ..whole_file import check_output, whole_file
from .pictures import as_svg, draw_curves, draw_sizes, draw_spectra
from .run_folder import BEFORE_CONSOLIDATION, COSTS, PERCENTAGES, PROPERTIES, Run, read_runs
from .series import curve_panels, gains, mean_and_deviation, recall_by_size, series_of, spectra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COST_FORMS = {
    "deployed_parameters": "{:,.0f}",
    "latency_ms_per_image": "{:.3f}",
    "train_seconds": "{:.0f}",
    "consolidation_seconds": "{:.0f}",
}
NONE = "–"
MEANINGS = {
    "Recall@K": "queries with one of their class among the K nearest, every image a query, all others its gallery",
    "R-precision": "share of the query's class among its R nearest, R being the number of the class's others",
    "MAP@R, MAP@1000": "mean average precision within the R, or the 1000, nearest",
    "NMI, F1": "agreement of a k-means clustering with the classes: mutual information; pairs of samples",
    "spectral decay": "KL of the singular values from uniform: 0 where every direction is used alike",
    "density": "mean distance within classes over that between their centres: low where classes are tight",
    "effective rank": "how many directions are in use, from 1 to the embedding size",
    "consolidation s": "of distilling the base head anew after training; curves are of the head before it",
}


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
        "<h2>Every model</h2>",
        models_table(runs),
        *([f"<h2>Means over runs</h2>{means_table(runs)}"] if repeats(runs) else []),
        glossary(),
        "<h2>Pictures</h2>",
        *(
            ['<p class="quiet">Lines are means over runs, bands ± their standard deviation.</p>']
            if repeats(runs)
            else []
        ),
        f'<div class="pictures">{"".join(drawn(runs))}</div>',
        *kept_pictures(runs),
        "<h2>How it was made</h2>",
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
            note += f"; {mean_text(above[label], '{:+.1f}')} on the baseline"
        if all(BEFORE_CONSOLIDATION in record for _, record in members):
            before = mean_text([record[BEFORE_CONSOLIDATION] for _, record in members], "{:.1f}")
            note += f"; {before} before consolidation"
        recall = mean_text([record["precision_at_1"] for _, record in members], "{:.1f}")
        items.append(f"<li><strong>{recall}</strong>{escape(note)}</li>")
    return f'<ul class="headline">{"".join(items)}</ul>'


def mean_text(values: Sequence[float], form: str, scale: float = 100) -> str:
    """Mean, and ± standard deviation where there are several."""
    mean, deviation = mean_and_deviation([scale * value for value in values])
    if not math.isfinite(mean) or not math.isfinite(deviation):
        return NONE
    return form.format(mean) + (f" ± {form.replace('+', '').format(deviation)}" if len(values) > 1 else "")


def models_table(runs: Sequence[Run]) -> str:
    """A row a model: settings that matter most, every metric that any model has, costs."""
    records = [record for run in runs for record in run.models.values()]
    metrics = [metric for metric in PERCENTAGES | PROPERTIES if any(metric in record for record in records)]
    costs = [cost for cost in COSTS if any(cost in record for record in records)]
    titles = PERCENTAGES | PROPERTIES | COSTS
    rows = []
    for run in runs:
        for model, record in run.models.items():
            name = escape(model) + (f" <small>{escape(run.name)}</small>" if len(runs) > 1 else "")
            own = [plain(run.settings.get(setting)) for setting in ("embedding_size", "seed")]
            epochs = Cell(str(len(record["epochs"])), len(record["epochs"]))
            figures = [number(record.get(figure), form_of(figure), scale_of(figure)) for figure in [*metrics, *costs]]
            rows.append([Cell(name, f"{model} {run.name}"), *figures, *own, epochs])
    header = ["model", *(titles[figure] for figure in [*metrics, *costs]), "d", "seed", "epochs"]
    return table("Every model", header, rows)


def means_table(runs: Sequence[Run]) -> str:
    """A row a series, mean ± standard deviation over its runs, and one of what it gains on the baseline of its run."""
    members_of = series_of(runs)
    records = [record for members in members_of.values() for _, record in members]
    metrics = [metric for metric in PERCENTAGES | PROPERTIES if all(metric in record for record in records)]
    rows = []
    for label, members in members_of.items():
        values = {metric: [record[metric] for _, record in members] for metric in metrics}
        rows.append([Cell(escape(label), label), Cell(str(len(members)), len(members))])
        rows[-1] += [mean_cell(values[metric], form_of(metric), scale_of(metric)) for metric in metrics]
    above = {metric: gains(runs, metric) for metric in metrics}
    for label, of_runs in above["precision_at_1"].items():
        rows.append([Cell(f"gain of {escape(label)}", f"gain of {label}"), Cell(str(len(of_runs)), len(of_runs))])
        signed = {metric: form_of(metric).replace("{:", "{:+") for metric in metrics}
        rows[-1] += [mean_cell(above[metric][label], signed[metric], scale_of(metric)) for metric in metrics]
    return table("Means over runs", ["model", "runs", *((PERCENTAGES | PROPERTIES)[m] for m in metrics)], rows)


def form_of(figure: str) -> str:
    if figure in COST_FORMS:
        return COST_FORMS[figure]
    return "{:.1f}" if figure in PERCENTAGES else "{:.3f}"


def scale_of(figure: str) -> float:
    return 100 if figure in PERCENTAGES else 1


def number(value: Any, form: str, scale: float) -> Cell:
    """A figure of metrics.json: shown rounded, sorted by as it stands there."""
    if not isinstance(value, int | float) or math.isnan(value):
        return Cell(NONE)
    if math.isinf(scale * value):
        return Cell("∞" if value > 0 else "-∞", value)
    return Cell(escape(form.format(scale * value)), value)


def mean_cell(values: Sequence[float], form: str, scale: float) -> Cell:
    text = mean_text(values, form, scale)
    return Cell(text, mean_and_deviation(values)[0] if text != NONE else "")


def plain(value: Any) -> Cell:
    """A setting as it is, a list's entries between commas."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return Cell(NONE) if value is None else Cell(escape(text), text)


def table(name: str, header: Sequence[str], rows: Iterable[Sequence[Cell]], kind: str = "figures") -> str:
    """A table in a container that scrolls; its header's buttons sort it. The first cell of a row is its header."""
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape(title)}</button></th>' for title in header
    )
    body = "".join(f"<tr>{''.join(cell_html(cell, i == 0) for i, cell in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table class="sortable {kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def cell_html(cell: Cell, is_header: bool) -> str:
    value = "Infinity" if cell.value == math.inf else "-Infinity" if cell.value == -math.inf else str(cell.value)
    tag, scope = ("th", ' scope="row"') if is_header else ("td", "")
    return f'<{tag}{scope} data-value="{escape(value)}">{cell.html}</{tag}>'


def glossary() -> str:
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in MEANINGS.items())
    return f"<details><summary>What the columns mean</summary><dl>{entries}</dl></details>"


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
    """A row a setting, version or figure of the data, a column a run; those in which runs differ come first."""
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
    return table("How it was made", ["setting", *(run.name for run in runs)], rows, "settings")
