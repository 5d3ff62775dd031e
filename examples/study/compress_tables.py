"""The tables of docs/compress_study.md: compress beside PCA and beside small trainings, and what was tried."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from results import markdown_table

from study.cuts import COMPRESSED, ITSELF, SIZES, WITH_LABELS, WITH_TURNED
from study.found import (
    METRICS,
    RECALL,
    Case,
    Found,
    baseline,
    cut_of_large,
    gains,
    half_interval,
    interval,
    mean,
    means,
)
from study.questions import COMPARED, LARGE, TRAININGS

TRAINED = (32, 64, 128)


def tables(all_records: Sequence[Mapping[str, Any]]) -> str:
    """Everything that is published about compress."""
    records = [record for record in all_records if _of_compress(record)]
    found = Found.of(records)
    trainings = sorted({record["training"] for record in records})
    parts = [_made_with(records), "### In short\n\n" + _in_short(found, trainings)]
    parts += [f"### {training} epochs\n\n{_means(found, training)}" for training in trainings]
    for goal in GOALS:
        parts.append(f"### {goal.title}, less {goal.other_title}\n\n{_differences(found, trainings, goal)}")
    parts += [f"### Less PCA, {training} epochs\n\n{_against_pca(found, training)}" for training in trainings]
    same = _same_on_cpu(found, records)
    return "\n\n".join([*parts, *([f"### The same trainings on a CPU\n\n{same}"] if same else [])])


def _of_compress(record: Mapping[str, Any]) -> bool:
    return (
        record["training"] in TRAININGS
        and record["way"] == "baseline"
        and record["trained"] in (*TRAINED, LARGE)
        and record["cut"] in (ITSELF, "PCA", *COMPRESSED)
    )


def _same_on_cpu(found: Found, records: Sequence[Mapping[str, Any]]) -> str:
    """Of models that were trained on a GPU and on a CPU."""
    on_cpu = Found.of(record for record in records if record["device"] == "CPU")
    rows = []
    for case in sorted(on_cpu):
        if found[case] != on_cpu[case]:
            row = [case.training, case.objective, str(case.size)]
            for metric in METRICS:
                here, there = found[case][metric], on_cpu[case][metric]
                row += [mean(there), interval([here[seed] - there[seed] for seed in there])]
            rows.append(row)
    header = ["training", "objective", "d"]
    for title in METRICS.values():
        header += [f"{title} on a CPU", "difference here"]
    return markdown_table(header, rows) if rows else ""


def _made_with(records: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(f"{record['device']}, torch {record['torch']}" for record in records)
    return "Results by device: " + "; ".join(f"{name}: {count:,}" for name, count in counts.most_common()) + "."


TITLE_OF = {**{cut: cut for cut in ("PCA", *COMPRESSED)}, WITH_TURNED: "with labels and turned images"}
COLUMNS = {
    **{f"trained at {size}": (size, ITSELF, size) for size in TRAINED},
    "1,024 itself": (LARGE, ITSELF, LARGE),
    **{f"{title} to {size}": (LARGE, cut, size) for size in (32, 64) for cut, title in TITLE_OF.items()},
}


def _means(found: Found, training: str) -> str:
    """Recall@1 / MAP@R, means over seeds."""

    def case(objective: str, column: tuple[int, str, int]) -> Case:
        trained, cut, size = column
        return Case(training, objective, "baseline", trained, cut, size)

    columns = {title: column for title, column in COLUMNS.items() if any(case(o, column) in found for o in COMPARED)}
    rows = [[objective, *(means(found, case(objective, key)) for key in columns.values())] for objective in COMPARED]
    return markdown_table(["objective", *columns], [row for row in rows if any(row[1:])])


class Goal(NamedTuple):
    """Embeddings of `size` made with labels from the large ones, against a model trained at `other`."""

    title: str
    size: int
    other_title: str
    other: int


LABELLED = (WITH_LABELS, WITH_TURNED)
GOALS = (
    Goal("Compressed to 32", 32, "trained at 64", 64),
    Goal("Compressed to 32", 32, "trained at 128", 128),
    Goal("Compressed to 64", 64, "the 1,024 themselves", LARGE),
)


def _pairs(found: Found, ours: Case, theirs: Case) -> list[list[float]]:
    """Of each metric the differences, seed by seed; empty where one is missing."""
    pairs = [[*found.pairs(ours, theirs, metric).values()] for metric in METRICS]
    return pairs if all(pairs) else []


def _of_goal(found: Found, training: str, objective: str, cut: str, goal: Goal) -> list[list[float]]:
    ours = cut_of_large(training, objective, cut, goal.size)
    return _pairs(found, ours, baseline(training, objective, goal.other))


def _differences(found: Found, trainings: Sequence[str], goal: Goal) -> str:
    rows = []
    for training in trainings:
        for objective in COMPARED:
            cells = []
            for cut in LABELLED:
                cells += [interval(values) for values in _of_goal(found, training, objective, cut, goal)] or ["", ""]
            if any(cells):
                rows.append([training, objective, *cells])
    titles = [f"{TITLE_OF[cut]}, {title}" for cut in LABELLED for title in METRICS.values()]
    return markdown_table(["training", "objective", *titles], rows)


def _in_short(found: Found, trainings: Sequence[str]) -> str:
    """Of how many objectives, or objectives and sizes, the mean difference is at least 0, and the interval above 0."""
    rows = []
    for training in trainings:
        for cut in ("compressed", "compressed, embeddings alone", *LABELLED):
            compared = [
                _pairs(found, *(cut_of_large(training, objective, name, size) for name in (cut, "PCA")))
                for objective in COMPARED
                for size in SIZES
            ]
            if any(compared):
                text = "PCA at 8, 16, 32, 64"
                rows.append([training, TITLE_OF[cut], text, *_counts([pairs for pairs in compared if pairs])])
        for goal in GOALS:
            for cut in LABELLED:
                compared = [_of_goal(found, training, objective, cut, goal) for objective in COMPARED]
                if any(compared):
                    text = f"{goal.other_title}, from {goal.size}"
                    rows.append([training, TITLE_OF[cut], text, *_counts([pairs for pairs in compared if pairs])])
    header = ["training", "way", "against", "cases"]
    for title in METRICS.values():
        header += [f"{title}: mean ≥ 0", "interval above 0", "interval below 0"]
    return markdown_table(header, rows)


def _counts(pairs: Sequence[Sequence[Sequence[float]]]) -> list[str]:
    cells = [str(len(pairs))]
    for metric in range(len(METRICS)):
        values = [case[metric] for case in pairs]
        middles = [statistics.mean(case) for case in values]
        halves = [half_interval(case) if len(case) > 1 else 0.0 for case in values]
        cells += [
            str(sum(middle >= 0 for middle in middles)),
            str(sum(middle > half for middle, half in zip(middles, halves, strict=True))),
            str(sum(middle < -half for middle, half in zip(middles, halves, strict=True))),
        ]
    return cells


def _against_pca(found: Found, training: str) -> str:
    rows = []
    for objective in COMPARED:
        for size in SIZES:
            pca, *others = (cut_of_large(training, objective, cut, size) for cut in TITLE_OF)
            if pca in found:
                rows.append([objective, str(size), means(found, pca), *(gains(found, ours, pca) for ours in others)])
    return markdown_table(["objective", "d", *TITLE_OF.values()], rows)


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
                    " / ".join(mean(own[m]) for m in METRICS)
                    if way.endswith(": prototype")
                    else " / ".join(
                        interval([own[m][of] - base[m][of] for of in own[m] if of in base[m]]) for m in METRICS
                    )
                )
            rows.append(row)
        header = ["idea", "models", "at 32, less the prototype", "at 64, less the prototype"]
        parts.append(f"### {group.capitalize()}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)
