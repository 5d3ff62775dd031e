"""The study's tables: means, standard deviations, and differences to the baseline, paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from results import markdown_table
from scipy import stats

from study.questions import QUESTIONS, Question, Row
from study.settings import SETTINGS

TITLES = {"precision_at_1": "Recall@1", "mean_average_precision_at_r": "MAP@R"}
RECALL = "precision_at_1"


class Found(dict[Row, dict[str, Any]]):
    """The runs at hand."""

    def by_seed(self, setting: str, objective: str, size: int, way: str, metric: str = RECALL) -> dict[int, float]:
        lines = {row.seed: record[metric] for row, record in self.items() if row[:4] == (setting, objective, size, way)}
        return dict(sorted(lines.items()))


def tables(found: Found) -> str:
    parts = []
    for question in QUESTIONS.values():
        for setting in question.where:
            table = _table(found, question, setting)
            if table:
                parts.append(f"### {question.title}: {setting}, {SETTINGS[setting].epochs} epochs\n\n{table}")
    return "\n\n".join([*parts, *_summary(found), *_twice_the_size(found)])


def _table(found: Found, question: Question, setting: str) -> str:
    rows = []
    own = set(question.ways) - ({"auto"} if len(question.ways) > 1 else set())  # what no other table has
    for objective in question.where[setting]:
        for size in question.sizes:
            lines = [
                _line(found, (setting, objective, size), way)
                for way in dict.fromkeys(("baseline", *question.ways))
                if found.by_seed(setting, objective, size, way)
            ]
            rows += lines if any(line[2] in own for line in lines) else []
    header = ["objective", "d", "way", "seeds"]
    for title in TITLES.values():
        header += [title, "difference, 95 % CI"]
    return markdown_table([*header, "time"], rows) if rows else ""


def _line(found: Found, where: tuple[str, str, int], way: str) -> list[str]:
    line = [where[1], str(where[2]), way, str(len(found.by_seed(*where, way)))]
    for metric in TITLES:
        theirs, baseline = found.by_seed(*where, way, metric), found.by_seed(*where, "baseline", metric)
        line += [spread(list(theirs.values())), "" if way == "baseline" else gain(baseline, theirs)]
    return [*line, _time(found, where, way)]


def _time(found: Found, where: tuple[str, str, int], way: str) -> str:
    """Training time as a multiple of the baseline's, seed by seed, the median."""
    theirs = found.by_seed(*where, way, "train_seconds")
    baseline = found.by_seed(*where, "baseline", "train_seconds")
    ratios = [theirs[seed] / baseline[seed] for seed in theirs if seed in baseline]
    return f"{statistics.median(ratios):.1f}" if ratios else ""


def _summary(found: Found) -> list[str]:
    """Of the automatic weight: the mean over objectives, and the worst."""
    question, rows = QUESTIONS["auto"], []
    for setting, objectives in question.where.items():
        differences = {}
        for objective in objectives:
            pairs = differences_of(found, (setting, objective, question.sizes[0]), "auto")
            if pairs:
                differences[objective] = pairs
        if differences:
            means = {objective: statistics.mean(pairs) for objective, pairs in differences.items()}
            worst = min(means, key=lambda objective: means[objective])
            deviation = f" ± {statistics.stdev(differences[worst]):.1f}" if len(differences[worst]) > 1 else ""
            rows.append(
                [
                    setting,
                    str(len(means)),
                    str(min(map(len, differences.values()))),
                    f"{statistics.mean(means.values()):+.1f}",
                    f"{means[worst]:+.1f}{deviation} ({worst})",
                ]
            )
    header = ["setting", "objectives", "seeds", "Recall@1, mean difference", "smallest, with its standard deviation"]
    return [f"### An automatic weight, in short\n\n{markdown_table(header, rows)}"] if rows else []


def _twice_the_size(found: Found) -> list[str]:
    """Whether S2SD at d is better than the baseline at 2d."""
    question, rows = QUESTIONS["sizes"], []
    for setting, objectives in question.where.items():
        for objective in objectives:
            for size in question.sizes[:-1]:
                small = found.by_seed(setting, objective, size, "auto")
                large = found.by_seed(setting, objective, 2 * size, "baseline")
                if set(small) & set(large):
                    rows.append(
                        [
                            setting,
                            objective,
                            str(size),
                            spread(list(small.values())),
                            spread(list(large.values())),
                            gain(large, small),
                        ]
                    )
    header = ["setting", "objective", "d", "auto at d", "baseline at 2d", "difference, 95 % CI"]
    return [f"### S2SD at d against the baseline at 2d, Recall@1\n\n{markdown_table(header, rows)}"] if rows else []


def differences_of(found: Found, where: tuple[str, str, int], way: str) -> list[float]:
    """To the baseline, in Recall@1, seed by seed."""
    theirs, baseline = found.by_seed(*where, way), found.by_seed(*where, "baseline")
    return [theirs[seed] - baseline[seed] for seed in theirs if seed in baseline]


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def gain(baseline: dict[int, float], theirs: dict[int, float]) -> str:
    """Mean of the differences seed by seed, with the 95 % confidence interval of Student's t."""
    pairs = [theirs[seed] - baseline[seed] for seed in theirs if seed in baseline]
    if not pairs:
        return ""
    return f"{statistics.mean(pairs):+.1f}" + (f" ± {half_interval(pairs):.1f}" if len(pairs) > 1 else "")


def half_interval(values: Sequence[float]) -> float:
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def compare(here: Found, published: Found) -> str:
    """Each line measured here beside the published one: within its standard deviation or not."""
    rows = []
    for where in dict.fromkeys(row[:4] for row in here):
        ours, theirs = here.by_seed(*where), published.by_seed(*where)
        if len(theirs) > 1:
            distance, deviation = statistics.mean(ours.values()) - statistics.mean(theirs.values()), spread_of(theirs)
            agrees = "yes" if abs(distance) <= deviation else "no"
            rows.append([*map(str, where), spread(list(ours.values())), spread(list(theirs.values())), agrees])
    header = ["setting", "objective", "d", "way", "Recall@1 here", "published", "within its deviation"]
    return markdown_table(header, rows)


def spread_of(values: dict[int, float]) -> float:
    return statistics.stdev(values.values())
