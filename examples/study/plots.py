"""The study's plots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from pml_s2sd.report.pictures import add_legend, draw_band, finish, new_figure, save_png
from pml_s2sd.report.series import mean_and_deviation
from study.cuts import SIZES
from study.found import (
    MAP,
    METRICS,
    RECALL,
    Case,
    Found,
    baseline,
    cut_of_large,
    half_interval,
    of_photographs,
    recommended,
)
from study.questions import COMPARED, LARGE, TRAININGS

IN_A_ROW = 4
"""Panels."""


def rows_for(panels: Sequence[str]) -> int:
    return math.ceil(len(panels) / IN_A_ROW)


def plot_gains(found: Found, path: Path) -> None:
    """What S2SD gives over the baseline of the same size, an objective a bar, with 95 % confidence intervals.

    In Recall@1, of photographs in MAP@R.
    """
    measured = [t for t in TRAININGS if any(_gain(found, t, objective) for objective in COMPARED)]
    figure = new_figure(2.8 * IN_A_ROW + 1, 3.0 * rows_for(measured))
    axes = figure.subplots(rows_for(measured), IN_A_ROW, sharex=True, sharey=True, squeeze=False).flat
    for axis in axes[len(measured) :]:
        axis.set_axis_off()
    for axis, training in zip(axes, measured, strict=False):
        for place, objective in enumerate(COMPARED):
            pairs = _gain(found, training, objective)
            if pairs:
                error = half_interval(pairs) if len(pairs) > 1 else None
                axis.barh(place, statistics.mean(pairs), xerr=error, color="#2b83ba", capsize=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=f"{training} epochs", xlabel=f"gain, points of {METRICS[_leading(training)]}")
        axis.set_yticks(range(len(COMPARED)), COMPARED)
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(labelbottom=True)
    axes[0].invert_yaxis()
    save_png(figure, path)


def _gain(found: Found, training: str, objective: str) -> list[float]:
    ours, theirs = recommended(training, objective, 32), baseline(training, objective, 32)
    return [*found.pairs(ours, theirs, _leading(training)).values()]


def _leading(training: str) -> str:
    return MAP if of_photographs(training) else RECALL


def plot_sizes(found: Found, path: Path) -> None:
    """Recall@1 (of photographs MAP@R) against the embedding size, the mean of the objectives; bands are standard
    deviations over seeds.
    """
    trainings = [t for t in TRAININGS if _mean(found, [recommended(t, o, 32) for o in COMPARED], RECALL)]
    figure = new_figure(3.2 * IN_A_ROW, 3.0 * rows_for(trainings))
    for number, training in enumerate(trainings):
        axis = figure.add_subplot(rows_for(trainings), IN_A_ROW, number + 1)
        axis.set_xscale("log", base=2)
        series = {
            "S2SD": {d: [recommended(training, o, d) for o in COMPARED] for d in SIZES},
            "PCA of 1,024": {d: [cut_of_large(training, o, "PCA", d) for o in COMPARED] for d in SIZES},
            "baseline": {d: [baseline(training, o, d) for o in COMPARED] for d in (*SIZES, 128, LARGE)},
        }
        ticks: set[int] = set()
        for position, (name, by_size) in enumerate(series.items()):
            points = {d: values for d, cases in by_size.items() if (values := _mean(found, cases, _leading(training)))}
            ticks |= set(points)
            if points:
                draw_band(axis, position, name, [*points], [mean_and_deviation(v) for v in points.values()])
        axis.set_xticks(sorted(ticks), [str(d) for d in sorted(ticks)])
        axis.minorticks_off()
        axis.set(xlabel="embedding size d")
        finish(axis, f"{METRICS[_leading(training)]}, {training} epochs, %")
    add_legend(figure)
    save_png(figure, path)


def _mean(found: Found, cases: list[Case], metric: str) -> list[float]:
    """Of each seed the mean over all of the cases, if they are all there."""
    if not all(case in found for case in cases):
        return []
    seeds = set.intersection(*(set(found[case][metric]) for case in cases))
    return [statistics.mean(found[case][metric][seed] for case in cases) for seed in sorted(seeds)]
