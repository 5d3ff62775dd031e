"""How long to train: epochs chosen for each way on held-out training classes, from a stated list."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from results import markdown_table

EPOCHS = {"frozen": (5, 10, 30, 100), "photos": (5, 10, 30, 100), "tuned": (5, 15, 30)}
"""Of each setting the list."""
CHOSEN_ON = {"frozen": ("multisimilarity", "contrastive"), "photos": ("multisimilarity", "contrastive")}
"""The objectives; MultiSimilarity alone where training is long."""
WAYS = {("baseline", 32): "the baseline at 32", ("baseline", 64): "the baseline at 64", ("S2SD", 32): "S2SD at 32"}
TRIED = Path(__file__).with_name("recipe_tried.jsonl")
"""Written by `recipe_tried.py`."""
MAP = "mean_average_precision_at_r"


def tried() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TRIED.read_text().splitlines()]


def held_out(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, int], dict[int, float]]:
    """Of (setting, way, size) by epochs MAP@R on held-out classes: S2SD as consolidated, the mean over objectives and
    over the seeds that have every number of epochs of the list.
    """
    found: dict[tuple[str, str, int, int], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        setting, _, epochs = record["training"].rpartition(" ")
        state = "consolidated" if record["way"] == "S2SD" else "as trained"
        if record["objective"] in CHOSEN_ON.get(setting, ("multisimilarity",)) and state in record:
            key = setting, record["way"], record.get("size", 32), record["seed"]
            found[key][int(epochs)][record["objective"]] = record[state][MAP]
    by_way: dict[tuple[str, str, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (setting, way, size, _), by_epochs in found.items():
        wanted = {e: by_epochs.get(e, {}) for e in EPOCHS.get(setting, ())}
        objectives = CHOSEN_ON.get(setting, ("multisimilarity",))
        if wanted and (way, size) in WAYS and all(len(of) == len(objectives) for of in wanted.values()):
            for epochs, of in wanted.items():
                by_way[setting, way, size][epochs].append(statistics.mean(of.values()))
    return {key: {epochs: statistics.mean(v) for epochs, v in of.items()} for key, of in by_way.items()}


def best(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[tuple[str, int], int]]:
    """Of each setting and (way, size) the number of epochs with the highest MAP@R."""
    chosen: dict[str, dict[tuple[str, int], int]] = defaultdict(dict)
    for (setting, way, size), by_epochs in held_out(records).items():
        chosen[setting][way, size] = max(by_epochs, key=by_epochs.__getitem__)
    return dict(chosen)


def table(records: Iterable[Mapping[str, Any]]) -> str:
    """MAP@R on held-out training classes by epochs."""
    found = held_out(records)
    parts = []
    for setting, epochs in EPOCHS.items():
        rows = [
            [title, *(f"{found[setting, way, size][e]:.1f}" for e in epochs)]
            for (way, size), title in WAYS.items()
            if (setting, way, size) in found
        ]
        if rows:
            parts.append(markdown_table([f"{setting}, MAP@R after", *(f"{e} epochs" for e in epochs)], rows))
    return "\n\n".join(parts)
