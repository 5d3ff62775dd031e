"""The study's plots."""

from __future__ import annotations

import statistics
from pathlib import Path

from pml_s2sd.report.pictures import add_legend, draw_band, draw_sizes, finish, new_figure, save_png
from pml_s2sd.report.series import mean_and_deviation
from study.questions import EMBEDDING_SIZE, QUESTIONS
from study.tables import Found, differences_of, half_interval
from study.ways import GAMMAS


def plot_gains(found: Found, path: Path) -> None:
    """What an automatic weight gives, an objective a bar, with 95 % confidence intervals."""
    question = QUESTIONS["auto"]
    figure = new_figure(4 * len(question.where), 3.4)
    axes = figure.subplots(1, len(question.where), sharey=True)
    for axis, setting in zip(axes, question.where, strict=True):
        for place, objective in enumerate(question.where[setting]):
            pairs = differences_of(found, (setting, objective, question.sizes[0]), "auto")
            if pairs:
                error = half_interval(pairs) if len(pairs) > 1 else None
                axis.barh(place, statistics.mean(pairs), xerr=error, color="#2b83ba", capsize=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=setting, xlabel="gain, points of Recall@1")
        axis.set_yticks(range(len(question.where[setting])), question.where[setting])
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    save_png(figure, path)


def plot_sizes(found: Found, path: Path) -> None:
    """Recall@1 against the embedding size, with standard deviations."""
    question = QUESTIONS["sizes"]
    series = {}
    (setting,) = question.where
    for objective in question.where[setting]:
        for way in ("baseline", *question.ways):
            by_size = {d: found.by_seed(setting, objective, d, way).values() for d in question.sizes}
            by_size = {size: list(values) for size, values in by_size.items() if values}
            if by_size:
                series[f"{objective}, {way}"] = by_size
    if series:
        save_png(draw_sizes(series, f"Recall@1 on unseen classes, {setting}, %"), path)


def plot_weights(found: Found, path: Path) -> None:
    """Recall@1 against a fixed weight γ; without S2SD and with an automatic weight as level bands."""
    ((setting, (objective,)),) = QUESTIONS["gamma"].where.items()

    def recalls(way: str) -> list[float]:
        return list(found.by_seed(setting, objective, EMBEDDING_SIZE, way).values())

    measured = [gamma for gamma in GAMMAS if recalls(f"γ = {gamma:g}")]
    if not measured:
        return
    figure = new_figure(4.6, 3.3)
    axis = figure.subplots()
    axis.set_xscale("log")
    of_gamma = [mean_and_deviation(recalls(f"γ = {gamma:g}")) for gamma in measured]
    draw_band(axis, 0, "a fixed weight γ", measured, of_gamma)
    for position, way in enumerate(("auto", "baseline"), 1):
        if recalls(way):
            draw_band(axis, position, way, (measured[0], measured[-1]), [mean_and_deviation(recalls(way))] * 2)
    axis.set_xticks(measured, [f"{gamma:g}" for gamma in measured])
    axis.minorticks_off()
    axis.set(xlabel="γ")
    finish(axis, f"Recall@1 on unseen classes, {setting}, {objective}, %")
    add_legend(figure)
    save_png(figure, path)
