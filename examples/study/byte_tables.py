"""Recall against the bytes of a vector: the best of each way that fits into so many, and the smallest for a recall."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from codes import PASSES
from results import markdown_table

from pml_s2sd.report.pictures import add_legend, draw_band, finish, new_figure, save_png
from pml_s2sd.report.series import mean_and_deviation
from study.coded import CODED_SIZES, FACTORIES, coded_cut
from study.found import METRICS, BySeed, Case, Found, baseline, cut_of_large, interval, recommended
from study.questions import COMPARED, LARGE, TRAININGS

BYTES = (4, 8, 16, 32, 64, 128, 256, 512)
OURS, THEIRS = "S2SD", ("baseline", "1,024", "PCA of 1,024")
CASES: dict[str, tuple[Callable[[str, str, int], Case], Sequence[int]]] = {
    OURS: (recommended, CODED_SIZES),
    "baseline": (baseline, CODED_SIZES),
    "1,024": (baseline, (LARGE,)),
    "PCA of 1,024": (lambda training, objective, size: cut_of_large(training, objective, "PCA", size), CODED_SIZES),
}
"""Of each way what is stored, of a training, an objective and a size; and the sizes."""
GOALS = (32, 64, 128, LARGE)
"""Sizes of baselines as float32, whose recall is to be reached."""

NEAR = 0.1
"""Points below which a difference counts as none."""


class Stored(NamedTuple):
    """Embeddings of one size, in one code."""

    size: int
    code: str
    bytes: int
    figures: Mapping[str, BySeed]
    """Of each metric and seed the mean over objectives."""

    def mean(self, metric: str) -> float:
        return statistics.mean(self.figures[metric].values())

    def title(self) -> str:
        return f"{self.size:,} as {self.code}"


Ways = dict[str, list[Stored]]
"""Of each way everything that was stored."""


def measured(records: Sequence[Mapping[str, Any]], training: str) -> list[str]:
    """The objectives of one setting whose embeddings were stored."""
    there = {record["objective"] for record in records if "bytes" in record and record["training"] == training}
    return [objective for objective in COMPARED if objective in there]


def ways_of(records: Sequence[Mapping[str, Any]], training: str) -> Ways:
    """Of one setting what every objective has that was measured; of each figure the seeds that every objective has."""
    bytes_of = {Case(*(r[name] for name in Case._fields)): r["bytes"] for r in records if "bytes" in r}
    found, objectives = Found.of(records), measured(records, training)
    ways: Ways = {}
    for way, (case_of, sizes) in CASES.items() if objectives else ():
        for size, code in product(sizes, FACTORIES):
            plain = [case_of(training, objective, size) for objective in objectives]
            cases = [case._replace(cut=coded_cut(case.cut, code)) for case in plain]
            if all(case in found for case in cases):
                figures = {metric: _mean([found[case][metric] for case in cases]) for metric in METRICS}
                ways.setdefault(way, []).append(Stored(size, code, bytes_of[cases[0]], figures))
    return ways


def _mean(of_objectives: Sequence[BySeed]) -> dict[int, float]:
    """Of each seed that all have."""
    seeds = sorted(set.intersection(*map(set, of_objectives)))
    return {seed: statistics.mean(by_seed[seed] for by_seed in of_objectives) for seed in seeds}


def best(stored: Sequence[Stored], metric: str, at_most: int) -> Stored | None:
    """The smallest that is as good as the best of what fits into so many bytes."""
    fitting = [one for one in stored if one.bytes <= at_most]
    return smallest(fitting, metric, max((one.mean(metric) for one in fitting), default=0.0))


def smallest(stored: Sequence[Stored], metric: str, figure: float) -> Stored | None:
    """Of what reaches the figure, to within `NEAR`, that of the fewest bytes; of equal bytes the best."""
    reaching = [one for one in stored if one.mean(metric) > figure - NEAR]
    return min(reaching, key=lambda one: (one.bytes, -one.mean(metric)), default=None)


def tables(records: Sequence[Mapping[str, Any]]) -> str:
    """A section of docs/study_tables.md for every setting that was measured."""
    parts = []
    for training in TRAININGS:
        ways = ways_of(records, training)
        if OURS in ways:
            parts.append(
                f"## Bytes a vector: {training} epochs\n\n{EXPLAINED} {', '.join(measured(records, training))}."
            )
            parts += [_by_bytes(ways, metric) for metric in METRICS]
            parts.append(SMALLEST)
            parts += [_smallest(ways, metric) for metric in METRICS]
    return "\n\n".join(parts)


EXPLAINED = f"""\
Of each way the best of what fits into so many bytes: its size, its code and its figure; of what is within {NEAR} of the
best, the smallest. What is stored is coded, what is searched for is not. Sizes and codes are picked on the test classes
alike for every way. PQ, OPQ: faiss's product quantisers, of {PASSES} passes. 1 bit: the sign of each dimension, turned
at random before. "1,024" is the large space as it is. Figures are means of"""
SMALLEST = f"""\
The smallest index that finds what a baseline finds as float32, to within {NEAR}: bytes a vector, size and code. The
ratio is the fewest bytes of another way per byte of {OURS}."""


def _by_bytes(ways: Ways, metric: str) -> str:
    rows = []
    for at_most in BYTES:
        picked = {way: best(ways.get(way, ()), metric, at_most) for way in CASES}
        rows.append([f"{at_most:,}", *(_cell(one, metric) for one in picked.values())])
        rows[-1] += [_difference(picked[OURS], picked[way], metric) for way in THEIRS]
    header = [f"bytes; {METRICS[metric]}", *CASES, *(f"{OURS} less {way}" for way in THEIRS)]
    return markdown_table(header, rows)


def _cell(one: Stored | None, metric: str) -> str:
    return f"{one.title()}: {interval([*one.figures[metric].values()], sign='')}" if one else ""


def _difference(ours: Stored | None, theirs: Stored | None, metric: str) -> str:
    if ours is None or theirs is None:
        return ""
    a, b = ours.figures[metric], theirs.figures[metric]
    return interval([a[seed] - b[seed] for seed in a if seed in b])


def _smallest(ways: Ways, metric: str) -> str:
    rows = []
    for size, goal in _goals(ways).items():
        recall = goal.mean(metric)
        picked = {way: smallest(ways.get(way, ()), metric, recall) for way in CASES}
        rows.append([f"{size:,}, {goal.bytes:,} bytes", f"{recall:.1f}"])
        rows[-1] += [f"{one.bytes:,}: {one.title()}" if one else "" for one in picked.values()]
        others = [one.bytes for way in THEIRS if (one := picked[way])]
        ours = picked[OURS]
        rows[-1].append(f"{min(others) / ours.bytes:.1f}" if ours and others else "")
    header = ["the baseline at", METRICS[metric], *CASES, "ratio"]
    return markdown_table(header, rows)


def _goals(ways: Ways) -> dict[int, Stored]:
    everything = [one for way in ("baseline", "1,024") for one in ways.get(way, ())]
    return {one.size: one for size in GOALS for one in everything if (one.size, one.code) == (size, "float32")}


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Recall@1 and MAP@R of the best that fits, against bytes a vector; bands are standard deviations over seeds."""
    by_training = {training: ways for training in TRAININGS if OURS in (ways := ways_of(records, training))}
    if not by_training:
        return
    figure = new_figure(3.6 * len(by_training), 5.6)
    axes = figure.subplots(len(METRICS), len(by_training), squeeze=False)
    for row, metric in zip(axes, METRICS, strict=True):
        for axis, (training, ways) in zip(row, by_training.items(), strict=True):
            axis.set_xscale("log", base=2)
            for position, way in enumerate(CASES):
                picked = {size: one for size in BYTES if (one := best(ways.get(way, ()), metric, size))}
                if picked:
                    bands = [mean_and_deviation([*one.figures[metric].values()]) for one in picked.values()]
                    draw_band(axis, position, way, [*picked], bands)
            axis.set_xticks(BYTES, [str(size) for size in BYTES])
            axis.minorticks_off()
            axis.set(xlabel="bytes a vector")
            finish(axis, f"{METRICS[metric]}, {training} epochs, %")
    add_legend(figure)
    save_png(figure, path)
