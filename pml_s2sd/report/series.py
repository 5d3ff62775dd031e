"""Runs that repeat one another: put together, and what is drawn and said of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from .run_folder import PERCENTAGES, Run, is_number

NO_DIFFERENCE = {"name", "runs", "seed", "variants", "device", "threads", "workers", "resume"}
"""Settings in which runs may differ that repeat one another."""

Curve = dict[int, float]
"""Epoch → value."""

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
            size: Any = run.settings.get("embedding_size")
            if is_number(size) and 0 < size < math.inf:
                of_size = sizes.setdefault(label, {}).setdefault(size, [])
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
        >>> from pml_s2sd.report.series import mean_and_deviation
        >>> mean_and_deviation([1.0, 3.0]), mean_and_deviation([2.0])
        ((2.0, 1.4142135623730951), (2.0, 0.0))
    """
    with np.errstate(invalid="ignore"):  # infinite values deviate by NaN
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def interval_of_mean(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The confidence interval of the mean, by Student's t: mean ± t · deviation / √n.

    Args:
        values: at least two.
        confidence: between 0 and 1.

    Returns:
        Its lower and upper end; NaN where a value is infinite or NaN.

    Example:
        >>> from pml_s2sd.report.series import interval_of_mean
        >>> [round(end, 2) for end in interval_of_mean([1.0, 2.0, 3.0])]
        [-0.48, 4.48]
    """
    mean, deviation = mean_and_deviation(values)
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * deviation / math.sqrt(len(values))
    return mean - half, mean + half
