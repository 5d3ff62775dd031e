"""Does S2SD help, how much, when not: each row of the study is a setting, an objective and a way to train it.

    PYTHONPATH=examples python -m study.study                                    # every row, five seeds
    PYTHONPATH=examples python -m study.study --settings frozen --objectives margin --ways baseline auto --seeds 0 1

One JSON a run, in RUNS/study; a run that is there is not repeated. Ends by printing the tables and writing them to
RUNS/study/tables.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from results import markdown_table, write_json, write_text
from scipy import stats
from torch import nn
from tqdm import tqdm
from train import OBJECTIVES, seed_everything

from pml_s2sd import s2sd
from pml_s2sd.embedder import Embedder
from study.settings import SETTINGS, Setting

EMBEDDING_SIZE, BATCH, PER_CLASS = 32, 112, 2
AUX_SIZES = (128, 256, 512, 1024)
# name -> options of s2sd(…, "MSD"); None is the objective alone
WAYS: dict[str, dict[str, Any] | None] = {
    "baseline": None,
    "paper": {"distill_weight": 50.0},
    "heads alone": {"distill_weight": 0.0},
    "auto": {"distill_weight": "auto"},
}
COMPARED = ("multisimilarity", "margin", "triplet", "contrastive", "ntxent", "proxyanchor", "arcface")
METRICS = ("precision_at_1", "mean_average_precision_at_r")


def run(setting: Setting, objective: str, way: str, seed: int) -> dict[str, Any]:
    """Train once and measure on the unseen classes, in percent."""
    seed_everything(seed)
    trunk = setting.trunk()
    loss, miner = OBJECTIVES[objective](EMBEDDING_SIZE, int(setting.train_labels.max()) + 1)
    options = WAYS[way]
    if options is None:
        embedder, loss_func = Embedder(setting.features, EMBEDDING_SIZE), loss
    else:
        embedder, loss_func = s2sd(
            loss, setting.features, EMBEDDING_SIZE, "MSD", aux_sizes=AUX_SIZES, miner=miner, **options
        )
        miner = None
    model = nn.Sequential(trunk, embedder)
    groups = [
        {"params": trunk.parameters(), "lr": setting.trunk_lr},
        {"params": embedder.parameters(), "lr": setting.head_lr},
        {"params": loss_func.parameters(), "lr": setting.objective_lr},
    ]
    groups = [{**group, "params": list(group["params"])} for group in groups]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], fused=True)
    steps = setting.epochs * (len(setting.train_labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    seed_everything(seed)  # the same batches for every way
    model.train()
    started = time.perf_counter()
    for samples in tqdm(batches(setting, steps), total=steps, desc=f"{setting.name} {objective} {way} {seed}"):
        labels = setting.train_labels[samples]
        embeddings = model(setting.batch(samples))
        tuples = None if miner is None else miner(embeddings, labels)
        optimizer.zero_grad()
        loss_func(embeddings, labels, tuples).backward()
        optimizer.step()
        schedule.step()
    return {"train_seconds": time.perf_counter() - started, **accuracies(model, setting)}


def batches(setting: Setting, steps: int) -> Iterator[torch.Tensor]:
    sampler = MPerClassSampler(setting.train_labels, PER_CLASS, BATCH, len(setting.train_labels))
    while steps > 0:
        of_epoch = torch.tensor(list(sampler)).split(BATCH)
        for samples in of_epoch[: min(steps, len(setting.train_labels) // BATCH)]:
            steps -= 1
            yield samples


@torch.inference_mode()
def accuracies(model: nn.Module, setting: Setting) -> dict[str, float]:
    model.eval()
    embeddings = nn.functional.normalize(torch.cat([model(batch) for batch in setting.test_batches()]))
    calculator = AccuracyCalculator(include=METRICS, k="max_bin_count", device=torch.device("cpu"))
    return {k: 100 * float(v) for k, v in calculator.get_accuracy(embeddings, setting.test_labels).items()}


def tables(folder: Path) -> str:
    """Of each setting: a row an objective, mean ± standard deviation, and the paired difference to the baseline."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        found.setdefault((row["setting"], row["objective"], row["way"]), {})[row["seed"]] = row["precision_at_1"]
    parts = []
    for setting in SETTINGS:
        ways = [way for way in WAYS if way != "baseline" and any((setting, o, way) in found for o in OBJECTIVES)]
        rows = []
        for objective in OBJECTIVES:
            baseline = found.get((setting, objective, "baseline"))
            if baseline:
                row = [objective, f"{spread(list(baseline.values()))} ({len(baseline)})"]
                for way in ways:
                    theirs = found.get((setting, objective, way), {})
                    row += [spread(list(theirs.values())), gain(baseline, theirs)]
                rows.append(row)
        if rows:
            header = ["objective", "baseline (seeds)", *(part for way in ways for part in (way, "difference, 95 % CI"))]
            parts.append(f"Recall@1, {setting}, d = {EMBEDDING_SIZE}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def gain(baseline: dict[int, float], theirs: dict[int, float]) -> str:
    """Mean of the differences seed by seed, with the 95 % confidence interval of Student's t."""
    pairs = [theirs[seed] - baseline[seed] for seed in theirs if seed in baseline]
    if len(pairs) < 2:
        return f"{pairs[0]:+.1f} (1 seed)" if pairs else ""
    half = stats.t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5
    return f"{np.mean(pairs):+.1f} ± {half:.1f} ({len(pairs)} seeds)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=COMPARED)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["baseline", "auto"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    folder = chosen.runs / "study"
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen.settings:
        setting = Setting(name, chosen.runs / "study-activations.pt")
        for seed in chosen.seeds:
            for objective in chosen.objectives:
                for way in chosen.ways:
                    path = folder / f"{name}-{objective}-{way.replace(' ', '_')}-{seed}.json"
                    if path.exists():
                        continue
                    figures = run(setting, objective, way, seed)
                    row = {"setting": name, "objective": objective, "way": way, "seed": seed}
                    write_json(path, {**row, **figures, "torch": torch.__version__, "threads": chosen.threads})
    text = tables(folder)
    print(text)
    write_text(folder / "tables.md", text + "\n")


if __name__ == "__main__":
    main()
