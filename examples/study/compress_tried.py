"""What was tried before `compress` got its defaults: each idea alone, and together, on training classes held out.

    PYTHONPATH=examples python -m study.compress_tried                       # the table of what is published
    PYTHONPATH=examples python -m study.compress_tried --measure --device cuda --processes 16
    PYTHONPATH=examples python -m study.compress_tried --measure --objectives supcon --seeds 100 --ideas "T = 0.1"

Models are trained at 1,024 dimensions on three quarters of the training classes; the other quarter stands in for the
unseen ones, which are left alone. One JSON line a result, appended to --results as it comes; what is there already of
the same device is not measured again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pml_s2sd.training_features import TURNS
from study.compress_ideas import IDEAS, Idea
from study.compress_learning import SIZES, Data, Learned, joined, learn
from study.compress_tables import tried
from study.cuts import Rows, embedded
from study.pretrained import VIEWS
from study.questions import LARGE, TRAININGS
from study.settings import Setting
from study.study import TRIED, add_arguments, in_parallel, read, setting_of, where
from study.training import retrieval, train

SEEDS = (100, 101, 102)
ITSELF, TRAINED = "1,024 itself", "trained"
"""Among the ideas: the large model, and models trained at the small sizes."""
OF_TRAINING = ("tuned 5", "tuned 15")
OTHER = 1000
"""A second model's seed is the first one's and so many."""


class Trial(NamedTuple):
    training: str
    objective: str
    seed: int


def tested(job: Trial, ideas: list[str], device: str, until: float, runs: Path) -> list[dict[str, Any]]:
    """Of one model: itself, those trained at the small sizes, and the ideas for which there is time."""
    setting = setting_of(job.training, runs, choosing=True, device=device)
    model, _ = train(setting, job.objective, LARGE, job.seed)
    test = embedded(model.eval(), setting.test_batches())
    maps_of = [way for way in ideas if way in IDEAS]
    data, further = _rows(model, setting, {also for way in maps_of for also in IDEAS[way].also})
    own = _nobody(len(test.features), 10**6, device)
    further["gallery"] = Data(*test, own, own)
    found = [(ITSELF, LARGE, retrieval(test.embeddings, setting.test_labels))] if ITSELF in ideas else []
    for size in SIZES if TRAINED in ideas else ():
        small, _ = train(setting, job.objective, size, job.seed)
        of_small = embedded(small.eval(), setting.test_batches()).embeddings
        found.append((TRAINED, size, retrieval(of_small, setting.test_labels)))
    fused, fused_test = data, test
    if any(IDEAS[way].fused for way in maps_of):
        second, _ = train(setting, job.objective, LARGE, job.seed + OTHER)
        views = embedded(second.eval(), *(setting.train_batches(view) for view in range(VIEWS)))
        fused = data._replace(e=joined(data.e, views.embeddings))
        theirs = embedded(second, setting.test_batches())
        fused_test = test._replace(embeddings=joined(test.embeddings, theirs.embeddings))
    starts: dict[Any, list[torch.Tensor]] = {}
    for way in maps_of:
        if time.time() > until:
            break
        torch.manual_seed(job.seed)
        maps, losses = _made(IDEAS[way], fused if IDEAS[way].fused else data, further, starts)
        with torch.no_grad():
            made = zip(maps(fused_test if IDEAS[way].fused else test), losses, strict=True)
            figures = [{**retrieval(z, setting.test_labels), "loss": loss} for z, loss in made]
        found += [(way, size, figure) for size, figure in zip(SIZES, figures, strict=True)]
    return [{**job._asdict(), "way": way, "size": size, **figures, **where(device)} for way, size, figures in found]


def _rows(model: nn.Sequential, setting: Setting, further: set[str]) -> tuple[Data, dict[str, Data]]:
    """Every view of the training images, and the further rows that are asked for."""
    device, labels = setting.device, setting.train_labels.to(setting.device)
    count, classes = len(labels), int(labels.max()) + 1

    views = embedded(model, *(setting.train_batches(view) for view in range(VIEWS)))
    data = Data(*views, labels.repeat(VIEWS), torch.arange(count, device=device).repeat(VIEWS))
    made = {}
    if "turned" in further:
        turned = embedded(model, *(setting.turned_batches(way) for way in range(TURNS)))
        of_turned = torch.cat([labels + classes * (way + 1) for way in range(TURNS)])
        made["turned"] = Data(*turned, of_turned, torch.arange(count * TURNS, device=device) + count)
    if "mixed" in further:
        mixed = embedded(model, *(setting.mixed_batches() for _ in range(VIEWS)))
        nobody = _nobody(len(mixed.features), 0, device)
        made["mixed"] = Data(*mixed, nobody, nobody)
    return data, made


def _nobody(count: int, after: int, device: torch.device | str) -> torch.Tensor:
    return -1 - after - torch.arange(count, device=device)


def _made(idea: Idea, data: Data, further: dict[str, Data], starts: dict) -> Learned:
    if not idea.stop:
        return learn(idea, data, further, starts)
    kept = data.labels % 5 > 0
    first = ~kept & (torch.arange(len(kept), device=kept.device) < len(kept) // VIEWS)
    rows, labels = Rows(data.x[first], data.e[first]), data.labels[first].cpu()

    @torch.no_grad()
    def judge(maps: Callable) -> float:
        return sum(retrieval(z, labels)["mean_average_precision_at_r"] for z in maps(rows))

    rest = Data(*(part[kept] for part in data))
    return learn(idea, rest._replace(labels=rest.labels.unique(return_inverse=True)[1]), further, starts, judge)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=OF_TRAINING)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--ideas", nargs="+", choices=[ITSELF, TRAINED, *IDEAS], default=[ITSELF, TRAINED, *IDEAS])
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no idea after that time")
    add_arguments(parser, TRIED)
    chosen = parser.parse_args()
    if chosen.measure:
        here = where(chosen.device)["device"]
        there = [record for record in read(chosen.results) if record["device"] == here]
        known = {(*(record[name] for name in Trial._fields), record["way"]) for record in there}
        jobs = [Trial(t, o, s) for s in chosen.seeds for t in chosen.trainings for o in chosen.objectives]
        missing = {job: [idea for idea in chosen.ideas if (*job, idea) not in known] for job in jobs}
        until = time.time() + 60 * chosen.minutes
        jobs_with_ideas = [(job, ideas) for job, ideas in missing.items() if ideas]
        in_parallel(chosen, tested, jobs_with_ideas, chosen.device, until)
    print(tried(read(chosen.results)))


if __name__ == "__main__":
    main()
