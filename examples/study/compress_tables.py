"""The tables of compress_study.py and compress_tried.py."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from results import markdown_table

from study.questions import COMPARED
from study.tables import RECALL, TITLES, gain, spread

MAP = "mean_average_precision_at_r"
Key = tuple[str, str, int, str, int]
"""Training, objective, trained size, way, size."""


def by_seed(records: Iterable[dict[str, Any]]) -> dict[Key, dict[str, dict[int, float]]]:
    """Of each key, and each metric, the figure of each seed."""
    found: dict[Key, dict[str, dict[int, float]]] = defaultdict(lambda: {metric: {} for metric in TITLES})
    for record in records:
        key = tuple(record[name] for name in ("training", "objective", "trained", "way", "size"))
        for metric in TITLES:
            found[key][metric][record["seed"]] = record[metric]
    return dict(found)


def tables(records: Sequence[dict[str, Any]]) -> str:
    found = by_seed(records)
    trainings = list(dict.fromkeys(record["training"] for record in records))
    parts = []
    for training in sorted(trainings):
        parts += [f"### {training} epochs\n\n{_means(found, training)}", _against_pca(found, training)]
    goals = [
        ("compressed to 32 with labels, against trained at 64", 32, ("trained", 64, 64)),
        ("compressed to 32 with labels, against trained at 128", 32, ("trained", 128, 128)),
        ("compressed to 64 with labels, against the 1,024 themselves", 64, ("trained", 1024, 1024)),
    ]
    parts += [text for title, size, other in goals if (text := _goal(found, trainings, title, size, other))]
    return "\n\n".join(part for part in parts if part)


COLUMNS = {
    "trained at 32": (32, "trained", 32),
    "at 64": (64, "trained", 64),
    "at 128": (128, "trained", 128),
    "1,024 itself": (1024, "trained", 1024),
    "PCA to 32": (1024, "PCA", 32),
    "compressed to 32": (1024, "compressed", 32),
    "32, embeddings alone": (1024, "compressed, embeddings alone", 32),
    "32, with labels": (1024, "compressed with labels", 32),
    "32, with labels, turned images": (1024, "compressed with labels, turned images", 32),
    "PCA to 64": (1024, "PCA", 64),
    "64": (1024, "compressed", 64),
    "64, with labels": (1024, "compressed with labels", 64),
}


def _means(found: dict[Key, dict[str, dict[int, float]]], training: str) -> str:
    """Recall@1 / MAP@R, means over seeds."""
    rows = []
    for objective in COMPARED:
        cells = []
        for trained, way, size in COLUMNS.values():
            figures = found.get((training, objective, trained, way, size))
            cells.append(
                " / ".join(f"{statistics.mean(figures[m].values()):.1f}" for m in (RECALL, MAP)) if figures else ""
            )
        if any(cells):
            rows.append([objective, *cells])
    return markdown_table(["objective", *COLUMNS], rows)


def _against_pca(found: dict[Key, dict[str, dict[int, float]]], training: str) -> str:
    ways = ("compressed", "compressed, embeddings alone", "compressed with labels")
    rows = []
    for objective in COMPARED:
        for size in (8, 16, 32, 64):
            pca = found.get((training, objective, 1024, "PCA", size))
            if pca is None:
                continue
            row = [objective, str(size), str(len(pca[RECALL])), spread(list(pca[RECALL].values()))]
            for way in ways:
                theirs = found.get((training, objective, 1024, way, size))
                row += [gain(pca[m], theirs[m]) if theirs else "" for m in (RECALL, MAP)]
            rows.append(row)
    header = ["objective", "d", "seeds", "PCA, Recall@1"]
    header += [f"{way}, {title}" for way in ways for title in ("Recall@1", "MAP@R")]
    return f"Differences to PCA:\n\n{markdown_table(header, rows)}" if rows else ""


def _goal(
    found: dict[Key, dict[str, dict[int, float]]],
    trainings: Sequence[str],
    title: str,
    size: int,
    other: tuple[str, int, int],
) -> str:
    rows = []
    way, trained, other_size = other
    for objective in COMPARED:
        row = [objective]
        for training in trainings:
            ours = found.get((training, objective, 1024, "compressed with labels", size))
            theirs = found.get((training, objective, trained, way, other_size))
            row += [gain(theirs[m], ours[m]) if ours and theirs else "" for m in (RECALL, MAP)]
        rows.append(row)
    header = ["objective", *(f"{training}, {name}" for training in trainings for name in ("Recall@1", "MAP@R"))]
    return f"### Differences: {title}\n\n{markdown_table(header, rows)}"


def tried(records: Sequence[dict[str, Any]]) -> str:
    """Of each idea the mean over models, and the difference to the prototype with its interval over them."""
    figures: dict[tuple[str, int], dict[str, dict[Any, float]]] = defaultdict(lambda: {m: {} for m in TITLES})
    for record in records:
        model = (record["training"], record["objective"], record["seed"])
        for metric in TITLES:
            figures[record["way"], record["size"]][metric][model] = record[metric]
    parts = []
    sizes = sorted({size for _, size in figures if size < 1024})
    for group in ("without labels", "with labels"):
        rows = []
        names = dict.fromkeys(way for way, _ in figures if way.startswith(group) or ":" not in way)
        for way in names:
            row = [way.removeprefix(f"{group}: ")]
            for size in sizes:
                own, base = figures.get((way, size)), figures.get((f"{group}: prototype", size))
                if way == "1,024 itself":
                    own = figures[way, 1024]
                row.append(str(len(own[RECALL])) if size == sizes[0] and own else "") if size == sizes[0] else None
                for metric in (RECALL, MAP):
                    row.append(f"{statistics.mean(own[metric].values()):.1f}" if own else "")
                    row.append(gain(base[metric], own[metric]) if own and base and own is not base else "")
            rows.append(row)
        header = ["idea", "models"]
        for size in sizes:
            header += [f"{size}: Recall@1", "to the prototype", f"{size}: MAP@R", "to the prototype"]
        parts.append(f"### {group.capitalize()}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)
