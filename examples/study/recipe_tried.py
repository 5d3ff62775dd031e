"""What was tried: what should train trunk and heads in the setting that s2sd() recommends, for how many epochs, and
which weight suits distillation from a trained teacher.

    PYTHONPATH=examples python -m study.recipe_tried                     # the table of what is published
    PYTHONPATH=examples python -m study.recipe_tried --measure --trainings "frozen 10" --objectives arcface --seeds 100
    PYTHONPATH=examples python -m study.recipe_tried --measure --trainings "frozen 30" --ways baseline --size 64

On seeds 100 and up, with a quarter of the training classes held out and measured on; the test classes are left alone.
Each model is measured as it was trained, and consolidated with labels and four views, by `consolidate` as it comes.
γ decides about the former alone: the base head trains nothing else.
One JSON line a model, appended to --results as it comes; a model that is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from results import markdown_table

from pml_s2sd import S2SDEmbedder, consolidate
from study.cuts import Trained
from study.study import add_arguments, read, setting_of, where
from study.training import train
from study.ways import RECIPES, TAUGHT

RESULTS = Path(__file__).with_name("recipe_tried.jsonl")
TRAININGS = ("frozen 10", "tuned 5", "scratch 12")
OBJECTIVES = ("multisimilarity", "contrastive", "arcface")
SIZE = 32
"""Of the small space; of records that say none, too."""
METRICS = ("precision_at_1", "mean_average_precision_at_r")


def tried(training: str, objective: str, way: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """The figures of one model."""
    setting = setting_of(training, chosen.runs, choosing=True, device=chosen.device)
    network, took = train(setting, objective, chosen.size, seed, way)
    trained = Trained(network, setting, seed)
    found = {"as trained": trained.figures(trained.test.embeddings)}
    embedder = network[1]
    if isinstance(embedder, S2SDEmbedder):
        deployed = consolidate(embedder, trained.rows.features, trained.labels, seed=seed)
        with torch.no_grad():
            found["consolidated"] = trained.figures(deployed(trained.test.features))
    model = {"training": training, "objective": objective, "way": way, "size": chosen.size, "seed": seed}
    return {**model, **found, **took}


def table(records: Sequence[dict[str, Any]]) -> str:
    """A line a training and objective and way: Recall@1 / MAP@R in percent, means over the seeds that there are."""
    by_way = defaultdict(list)
    for record in records:
        by_way[record["training"], record["objective"], str(size_of(record)), record["way"]].append(record)
    header = ["training", "objective", "d", "way", "seeds", "as trained", "consolidated"]
    rows = [
        [*key, str(len(found)), *(cell(found, state) for state in header[5:])] for key, found in sorted(by_way.items())
    ]
    return markdown_table(header, rows)


def size_of(record: dict[str, Any]) -> int:
    return record.get("size", SIZE)


def cell(records: Sequence[dict[str, Any]], state: str) -> str:
    found = [record[state] for record in records if state in record]
    return " / ".join(f"{statistics.mean(of[metric] for of in found):.1f}" for metric in METRICS) if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", nargs="+", default=TRAININGS)
    parser.add_argument("--ways", nargs="+", choices=[*RECIPES, *TAUGHT], default=list(RECIPES))
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--seeds", nargs="+", type=int, default=(100, 101, 102))
    add_arguments(parser, RESULTS)
    parser.set_defaults(objectives=OBJECTIVES)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.measure:
        there = {(r["training"], r["objective"], r["way"], size_of(r), r["seed"]) for r in read(chosen.results)}
        for training in chosen.trainings:
            for seed in chosen.seeds:
                for objective in chosen.objectives:
                    for way in chosen.ways:
                        if (training, objective, way, chosen.size, seed) not in there:
                            record = tried(training, objective, way, seed, chosen) | where(chosen.device)
                            with chosen.results.open("a") as file:
                                file.write(json.dumps(record) + "\n")
    print(table(read(chosen.results)))


if __name__ == "__main__":
    main()
