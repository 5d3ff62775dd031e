"""The study's plots."""

from __future__ import annotations

import statistics
from pathlib import Path

from pictures import plt, save_figure

from study.questions import QUESTIONS
from study.tables import Found, differences_of, half_interval


def draw_gains(found: Found, path: Path) -> None:
    """What an automatic weight gives, an objective a bar, with 95 % confidence intervals."""
    question = QUESTIONS["auto"]
    figure, axes = plt.subplots(
        1, len(question.settings), figsize=(4 * len(question.settings), 3.4), layout="constrained", sharey=True
    )
    for axis, setting in zip(axes, question.settings, strict=True):
        for place, objective in enumerate(question.objectives):
            pairs = differences_of(found, (setting, objective, question.sizes[0]), "auto")
            if pairs:
                error = half_interval(pairs) if len(pairs) > 1 else None
                axis.barh(place, statistics.mean(pairs), xerr=error, color="#2b83ba", capsize=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=setting, xlabel="gain, points of Recall@1")
        axis.set_yticks(range(len(question.objectives)), question.objectives)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    save_figure(figure, path)


def draw_sizes(found: Found, path: Path) -> None:
    """Recall@1 against the embedding size, with standard deviations."""
    question = QUESTIONS["sizes"]
    figure, axes = plt.subplots(
        1, len(question.objectives), figsize=(4.4 * len(question.objectives), 3.4), layout="constrained", squeeze=False
    )
    for axis, objective in zip(axes[0], question.objectives, strict=True):
        for way in ("baseline", *question.ways):
            lines = {size: found.by_seed(question.settings[0], objective, size, way) for size in question.sizes}
            lines = {size: by_seed for size, by_seed in lines.items() if len(by_seed) > 1}
            means = [statistics.mean(by_seed.values()) for by_seed in lines.values()]
            errors = [statistics.stdev(by_seed.values()) for by_seed in lines.values()]
            axis.errorbar(list(lines), means, errors, marker="o", capsize=3, label=way)
        axis.set(title=f"{objective}, {question.settings[0]}", xlabel="embedding size d", ylabel="Recall@1, %")
        axis.set_xscale("log", base=2)
        axis.set_xticks(question.sizes, [str(size) for size in question.sizes])
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)
