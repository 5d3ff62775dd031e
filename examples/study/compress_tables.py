"""The tables of compress_study.py and compress_tried.py."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from results import markdown_table

from study.questions import COMPARED
from study.tables import RECALL, TITLES, gain, half_interval

MAP = "mean_average_precision_at_r"
METRICS = {RECALL: TITLES[RECALL], MAP: TITLES[MAP]}
CUTS = (8, 16, 32, 64)
Key = tuple[str, str, int, str, int]
"""Training, objective, trained size, way, size."""
Found = dict[Key, dict[str, dict[int, float]]]


def by_seed(records: Iterable[dict[str, Any]]) -> Found:
    """Of each key, and each metric, the figure of each seed."""
    found: Found = defaultdict(lambda: {metric: {} for metric in TITLES})
    for record in records:
        key = tuple(record[name] for name in ("training", "objective", "trained", "way", "size"))
        for metric in TITLES:
            found[key][metric][record["seed"]] = record[metric]
    return dict(found)


def tables(records: Sequence[dict[str, Any]]) -> str:
    found = by_seed(records)
    trainings = sorted({record["training"] for record in records})
    parts = [_made_with(records), "### In short\n\n" + _in_short(found, trainings)]
    parts += [f"### {training} epochs\n\n{_means(found, training)}" for training in trainings]
    for goal in GOALS:
        parts.append(f"### {goal.title}, less {goal.other_title}\n\n{_differences(found, trainings, goal)}")
    parts += [f"### Less PCA, {training} epochs\n\n{_against_pca(found, training)}" for training in trainings]
    return "\n\n".join(parts)


def _made_with(records: Sequence[dict[str, Any]]) -> str:
    counts = Counter(f"{record['device']}, torch {record['torch']}" for record in records)
    return "Results by device: " + "; ".join(f"{name}: {count:,}" for name, count in counts.most_common()) + "."


TITLE_OF = {
    "trained": "",
    "PCA": "PCA",
    "compressed": "compressed",
    "compressed, embeddings alone": "compressed, embeddings alone",
    "compressed with labels": "compressed with labels",
    "compressed with labels, turned images": "with labels and turned images",
}
COLUMNS = {
    **{f"trained at {size}": (size, "trained", size) for size in (32, 64, 128)},
    "1,024 itself": (1024, "trained", 1024),
    **{f"{name} to {size}": (1024, way, size) for size in (32, 64) for way, name in TITLE_OF.items() if name},
}


def _means(found: Found, training: str) -> str:
    """Recall@1 / MAP@R, means over seeds."""
    columns = {title: key for title, key in COLUMNS.items() if any((training, o, *key) in found for o in COMPARED)}
    rows = []
    for objective in COMPARED:
        figures = [found.get((training, objective, *key)) for key in columns.values()]
        if any(figures):
            means = [[f"{statistics.mean(of[m].values()):.1f}" for m in METRICS] if of else [] for of in figures]
            rows.append([objective, *(" / ".join(pair) for pair in means)])
    return markdown_table(["objective", *columns], rows)


class Goal(NamedTuple):
    """Embeddings of `size` made in one of the `ways` from the large ones, against a model trained at `other`."""

    title: str
    size: int
    other_title: str
    other: int


LABELLED = ("compressed with labels", "compressed with labels, turned images")
GOALS = (
    Goal("Compressed to 32", 32, "trained at 64", 64),
    Goal("Compressed to 32", 32, "trained at 128", 128),
    Goal("Compressed to 64", 64, "the 1,024 themselves", 1024),
)


def _pairs(found: Found, training: str, objective: str, way: str, goal: Goal) -> list[list[float]]:
    """Of each metric the differences, seed by seed; empty where one is missing."""
    ours = found.get((training, objective, 1024, way, goal.size))
    theirs = found.get((training, objective, goal.other, "trained", goal.other))
    if not ours or not theirs:
        return []
    return [[ours[m][seed] - theirs[m][seed] for seed in ours[m] if seed in theirs[m]] for m in METRICS]


def _differences(found: Found, trainings: Sequence[str], goal: Goal) -> str:
    rows = []
    for training in trainings:
        for objective in COMPARED:
            cells = []
            for way in LABELLED:
                pairs = _pairs(found, training, objective, way, goal)
                cells += [interval(values) for values in pairs] or ["", ""]
            if any(cells):
                rows.append([training, objective, *cells])
    titles = [f"{TITLE_OF[way]}, {title}" for way in LABELLED for title in METRICS.values()]
    return markdown_table(["training", "objective", *titles], rows)


def _in_short(found: Found, trainings: Sequence[str]) -> str:
    """Of how many objectives, or objectives and sizes, the mean difference is at least 0, and the interval above 0."""
    rows = []
    for training in trainings:
        for way in ("compressed", "compressed, embeddings alone", *LABELLED):
            pairs = [
                [[ours[m][seed] - pca[m][seed] for seed in pca[m]] for m in METRICS]
                for objective in COMPARED
                for size in CUTS
                if (pca := found.get((training, objective, 1024, "PCA", size)))
                and (ours := found.get((training, objective, 1024, way, size)))
            ]
            rows.append([training, TITLE_OF[way], "PCA at 8, 16, 32, 64", *_counts(pairs)])
        for goal in GOALS:
            for way in LABELLED:
                compared = [_pairs(found, training, objective, way, goal) for objective in COMPARED]
                if any(compared):
                    text = f"{goal.other_title}, from {goal.size}"
                    rows.append([training, TITLE_OF[way], text, *_counts([pairs for pairs in compared if pairs])])
    header = ["training", "way", "against", "cases"]
    for title in METRICS.values():
        header += [f"{title}: mean ≥ 0", "interval above 0", "interval below 0"]
    return markdown_table(header, rows)


def _counts(pairs: Sequence[Sequence[Sequence[float]]]) -> list[str]:
    cells = [str(len(pairs))]
    for metric in range(len(METRICS)):
        values = [case[metric] for case in pairs]
        means = [statistics.mean(case) for case in values]
        halves = [half_interval(case) if len(case) > 1 else 0.0 for case in values]
        cells += [
            str(sum(mean >= 0 for mean in means)),
            str(sum(mean > half for mean, half in zip(means, halves, strict=True))),
            str(sum(mean < -half for mean, half in zip(means, halves, strict=True))),
        ]
    return cells


def interval(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):+.1f}" + (f" ± {half_interval(values):.1f}" if len(values) > 1 else "")


def _against_pca(found: Found, training: str) -> str:
    ways = ("compressed", "compressed, embeddings alone", *LABELLED)
    rows = []
    for objective in COMPARED:
        for size in CUTS:
            pca = found.get((training, objective, 1024, "PCA", size))
            if pca is None:
                continue
            row = [objective, str(size), " / ".join(f"{statistics.mean(pca[m].values()):.1f}" for m in METRICS)]
            for way in ways:
                theirs = found.get((training, objective, 1024, way, size))
                row.append(" / ".join(gain(pca[m], theirs[m]) for m in METRICS) if theirs else "")
            rows.append(row)
    return markdown_table(["objective", "d", "PCA", *(TITLE_OF[way] for way in ways)], rows)


def tried(records: Sequence[dict[str, Any]]) -> str:
    """Of each idea the mean over models, and the difference to the prototype with its interval over them."""
    figures: dict[tuple[str, int], dict[str, dict[Any, float]]] = defaultdict(lambda: {m: {} for m in METRICS})
    for record in records:
        model = (record["training"], record["objective"], record["seed"], record["device"])
        for metric in METRICS:
            figures[record["way"], record["size"]][metric][model] = record[metric]
    parts = []
    for group in ("without labels", "with labels"):
        rows = []
        for way in dict.fromkeys(way for way, _ in figures if way.startswith(f"{group}: ")):
            row = [way.removeprefix(f"{group}: "), str(len(figures[way, 32][RECALL]))]
            for size in (32, 64):
                own, base = figures[way, size], figures[f"{group}: prototype", size]
                row.append(
                    " / ".join(f"{statistics.mean(own[m].values()):.1f}" for m in METRICS)
                    if way.endswith(": prototype")
                    else " / ".join(gain(base[m], own[m]) for m in METRICS)
                )
            rows.append(row)
        header = ["idea", "models", "at 32, less the prototype", "at 64, less the prototype"]
        parts.append(f"### {group.capitalize()}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)
