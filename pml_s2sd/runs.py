"""The folders of training runs: what is in their metrics.json, and which runs repeat one another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PERCENTAGES = {
    "precision_at_1": "Recall@1",  # precision@1 and Recall@1 are the same number
    "recall_at_2": "Recall@2",
    "recall_at_4": "Recall@4",
    "recall_at_8": "Recall@8",
    "r_precision": "R-precision",
    "mean_average_precision_at_r": "MAP@R",
    "mean_average_precision_at_1000": "MAP@1000",
    "NMI": "NMI",
    "f1": "F1",
}
"""Metrics between 0 and 1 that are shown in percent, with their titles."""

PROPERTIES = {
    "spectral_decay": "spectral decay",
    "embedding_density": "density",
    "effective_rank": "effective rank",
}
"""Properties of an embedding space, with their titles."""

NO_DIFFERENCE = {"name", "runs", "seed", "variants", "device", "threads", "workers", "resume"}
"""Settings in which runs may differ that repeat one another."""

Curve = dict[int, float]
"""Epoch → value."""


@dataclass(frozen=True)
class Run:
    """One run's folder: its metrics.json, as it is.

    Attributes:
        name: what the run is called in tables; the folder's name, or its path where names are alike.
        folder: where it lies.
        content: settings, versions, machine, data, and models by name, see `models`.
    """

    name: str
    folder: Path
    content: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        return self.content.get("settings", {})

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The finished models' records: final metrics, and the list of `epochs`."""
        return {name: record for name, record in self.content["models"].items() if is_finished(record)}

    @property
    def unfinished(self) -> dict[str, int]:
        """The other models, and how many epochs they have come."""
        records = self.content["models"]
        return {name: len(record["epochs"]) for name, record in records.items() if not is_finished(record)}


def is_finished(record: dict[str, Any]) -> bool:
    return "precision_at_1" in record


def read_run(folder: str | Path) -> Run:
    """The run in a folder that `examples/train.py` wrote.

    Args:
        folder: RUNS/NAME.

    Returns:
        The run, with at least one finished model.

    Raises:
        FileNotFoundError: there is no such folder, or no metrics.json in it.
        ValueError: metrics.json is cut short or something else, or no model is finished.

    Example:
        >>> from pml_s2sd.runs import read_run
        >>> read_run("runs/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: no folder runs/nowhere; expected a run of examples/train.py, RUNS/NAME
    """
    folder = Path(folder)
    path = folder / "metrics.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected a run of examples/train.py, RUNS/NAME")
    if not path.is_file():
        raise FileNotFoundError(f"no metrics.json in {folder}; it is written after the first epoch of a run")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"cannot read {path} ({path.stat().st_size:,} bytes): {error}; it may be cut short: go on with the run, "
            "by the command that began it and --resume, and it is written anew"
        ) from error
    check_content(path, content)
    run = Run(folder.resolve().name, folder, content)
    if not run.models:
        so_far = ", ".join(f"{name}: {epochs} epochs" for name, epochs in run.unfinished.items())
        raise ValueError(
            f"no finished model in {path} ({so_far or 'none begun'}); go on with the run, by the command that began it "
            "and --resume"
        )
    return run


def check_content(path: Path, content: Any) -> None:
    """The parts that are read: objects where there should be, in a model its epochs, and numbers."""
    if not isinstance(content, dict) or "models" not in content:
        raise ValueError(f'{path} is no metrics.json of a run; expected an object with "settings" and "models"')
    for part in {"models", "settings", "versions", "data"} & content.keys():
        if not isinstance(content[part], dict):
            raise ValueError(f'{path}: "{part}" is {type(content[part]).__name__}; expected an object')
    models = content["models"]
    for name, record in models.items():
        epochs = record.get("epochs") if isinstance(record, dict) else None
        if not isinstance(epochs, list) or not all(isinstance(e, dict) and is_number(e.get("epoch")) for e in epochs):
            raise ValueError(f'{path}: model {name!r} has no list "epochs" of objects with the number "epoch"')
        for part in (record, *epochs):
            for metric in (PERCENTAGES | PROPERTIES).keys() & part.keys():
                if not is_number(part[metric]):
                    raise ValueError(f"{path}: {metric} of model {name!r} is {part[metric]!r}; expected a number")
        values = record.get("singular_values", [])
        if not isinstance(values, list) or not all(map(is_number, values)):
            raise ValueError(f"{path}: singular_values of model {name!r} is no list of numbers")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_runs(folders: Iterable[str | Path]) -> list[Run]:
    """`read_run` of each; a folder given twice is read once, and runs of the same name are called by their paths."""
    unique = {Path(folder).resolve(): Path(folder) for folder in folders}
    runs = [read_run(folder) for folder in unique.values()]
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else Run(str(run.folder), run.folder, run.content) for run in runs]


Series = dict[str, list[tuple[Run, dict[str, Any]]]]
"""By label, the models that repeat one another: each one's run and record."""


def series_of(runs: Sequence[Run], apart_from: Iterable[str] = ()) -> Series:
    """The models of runs, those together that differ in the seed alone.

    Args:
        runs: as `read_runs` gives them.
        apart_from: names of further settings that are not looked at.

    Returns:
        The members of each series by its label: the model's name, and the settings in which runs differ.
    """
    names = {name for run in runs for name in run.settings} - NO_DIFFERENCE - set(apart_from)
    differing = sorted(name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1)
    series: Series = {}
    for run in runs:
        settings = [f"{'d' if name == 'embedding_size' else name}={run.settings.get(name)}" for name in differing]
        for model, record in run.models.items():
            series.setdefault(", ".join([model, *settings]), []).append((run, record))
    return series


def curve_panels(runs: Sequence[Run]) -> dict[str, dict[str, list[Curve]]]:
    """Training curves for `pictures.draw_curves`: by title and series, a curve a run."""
    panels: dict[str, dict[str, list[Curve]]] = {}
    for label, members in series_of(runs).items():
        for _, record in members:
            of_run: dict[str, Curve] = {}
            for epoch in record["epochs"]:
                for metric in PERCENTAGES.keys() & epoch.keys():
                    of_run.setdefault(metric, {})[epoch["epoch"]] = 100 * epoch[metric]
                objective = epoch.get("base", epoch.get("loss"))
                if is_number(objective):
                    of_run.setdefault("objective", {})[epoch["epoch"]] = objective
            titles = {metric: f"{title}, unseen classes, %" for metric, title in PERCENTAGES.items()}
            for metric, title in {**titles, "objective": "base objective L(z), training classes"}.items():
                if metric in of_run:
                    panels.setdefault(title, {}).setdefault(label, []).append(of_run[metric])
    return panels


def recall_by_size(runs: Sequence[Run]) -> dict[str, dict[int, list[float]]]:
    """Recall@1 in percent for `pictures.draw_sizes`: by series and embedding size, a value a run.

    Empty where no series has several sizes.
    """
    sizes: dict[str, dict[int, list[float]]] = {}
    for label, members in series_of(runs, apart_from=["embedding_size"]).items():
        for run, record in members:
            if is_number(run.settings.get("embedding_size")):
                of_size = sizes.setdefault(label, {}).setdefault(run.settings["embedding_size"], [])
                of_size.append(100 * record["precision_at_1"])
    return sizes if any(len(by_size) > 1 for by_size in sizes.values()) else {}


def spectra(runs: Sequence[Run]) -> dict[str, list[list[float]]]:
    """Singular values for `pictures.draw_spectra`: by series, a list a run that has kept them."""
    found = {
        label: [record["singular_values"] for _, record in members if record.get("singular_values")]
        for label, members in series_of(runs).items()
    }
    return {label: values for label, values in found.items() if values}


def gains(runs: Sequence[Run], metric: str) -> dict[str, list[float]]:
    """What each model is above the baseline of its own run, by series, a value a run."""
    found: dict[str, list[float]] = {}
    for label, members in series_of(runs).items():
        for run, record in members:
            baseline = run.models.get("baseline")
            if baseline is not None and baseline is not record and metric in record and metric in baseline:
                found.setdefault(label, []).append(record[metric] - baseline[metric])
    return found


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, the latter 0 for one value.

    Example:
        >>> from pml_s2sd.runs import mean_and_deviation
        >>> mean_and_deviation([1.0, 3.0]), mean_and_deviation([2.0])
        ((2.0, 1.4142135623730951), (2.0, 0.0))
    """
    with np.errstate(invalid="ignore"):  # infinite values deviate by NaN
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
