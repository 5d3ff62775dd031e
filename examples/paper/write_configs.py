"""Writes configs/: a file a cell of the paper's tables, from the settings below. They are the paper's.

python examples/paper/write_configs.py
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"

TITLES = {"cub200": "CUB200-2011", "cars196": "CARS196", "sop": "Stanford Online Products"}
TITLES |= {"margin": "Margin", "rmargin": "R-Margin", "multisimilarity": "MultiSimilarity"}
TITLES |= {"resnet50": "ResNet-50", "googlenet": "GoogLeNet with batch normalisation"}

TRAINING = {
    "epochs": 150,
    "batch_size": 112,
    "samples_per_class": 2,
    "learning_rate": 1e-5,
    "weight_decay": 4e-4,
    "side": 224,
    "resize": 256,
}
MARGIN = {"margin": 0.2, "beta": 1.2, "beta_learning_rate": 5e-4, "cutoff": 0.5}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "margin": MARGIN,
    "rmargin": {**MARGIN, "beta": 0.6},
    "multisimilarity": {"alpha": 2, "beta": 40, "base": 0.5, "epsilon": 0.1},
}
TURNED = {"cub200": 0.4, "cars196": 0.35, "sop": 0.15}  # R-Margin's p
DISTILLATION = {"distill_weight": 50, "temperature": 1}
FEATURE_WEIGHT = {"cub200": 50, "cars196": 50, "sop": 5}
FEATURE_DELAY = 1000

# Recall@1 with a ResNet-50 at d = 128, in the order of the variants.
VARIANTS = ("baseline", "dsd", "msd", "msdf", "msdfa")
RECALL_AT_1 = {
    ("cub200", "margin"): (63.09, 65.11, 66.13, 67.58, 67.21),
    ("cub200", "rmargin"): (64.93, 66.58, 66.81, 68.12, 68.58),
    ("cub200", "multisimilarity"): (62.80, 65.57, 65.80, 67.04, 67.68),
    ("cars196", "margin"): (79.86, 83.19, 83.63, 85.55, 86.45),
    ("cars196", "rmargin"): (82.37, 84.64, 85.01, 85.78, 86.81),
    ("cars196", "multisimilarity"): (81.68, 83.51, 83.98, 85.69, 85.89),
    ("sop", "margin"): (78.43, 79.05, 79.26, 79.63, 78.82),
    ("sop", "rmargin"): (77.58, 77.86, 78.00, 78.57, 78.00),
    ("sop", "multisimilarity"): (77.99, 78.23, 78.42, 78.59, 78.07),
}


def cells() -> dict[str, str]:
    """File name -> content, of every configuration."""
    every = itertools.product(RECALL_AT_1, VARIANTS, (128, 512))
    files = [cell(dataset, objective, variant, "resnet50", d) for (dataset, objective), variant, d in every]
    # In place of the paper's Inception-BN: no cell of its tables, and only one a data set.
    files += [cell(dataset, "multisimilarity", "msdf", "googlenet", 512) for dataset in TURNED]
    return dict(files)


def cell(dataset: str, objective: str, variant: str, trunk: str, embedding_size: int) -> tuple[str, str]:
    settings: dict[str, Any] = {"dataset": dataset, "variant": variant, "trunk": trunk}
    settings |= {"embedding_size": embedding_size, **TRAINING}
    if (trunk, embedding_size) == ("resnet50", 128):
        settings["paper_recall_at_1"] = RECALL_AT_1[dataset, objective][VARIANTS.index(variant)]
    turned = {"p": TURNED[dataset]} if objective == "rmargin" else {}
    tables = {"objective": {"name": objective, **OBJECTIVES[objective], **turned}}
    if variant != "baseline":
        features = {"feature_weight": FEATURE_WEIGHT[dataset], "feature_delay": FEATURE_DELAY}
        tables["s2sd"] = DISTILLATION | (features if "f" in variant else {})

    lines = [f"# {TITLES[dataset]}, {TITLES[objective]}, {variant}, {TITLES[trunk]}, d = {embedding_size}"]
    lines += pairs(settings)
    for name, table in tables.items():
        lines += ["", f"[{name}]", *pairs(table)]
    suffix = "" if trunk == "resnet50" else f"_{trunk}"
    return f"{dataset}_{objective}_{variant}{suffix}_{embedding_size}.toml", "\n".join(lines) + "\n"


def pairs(table: dict[str, Any]) -> list[str]:
    return [f"{name} = {json.dumps(value)}" for name, value in table.items()]


if __name__ == "__main__":
    for name, content in cells().items():
        (CONFIGS / name).write_text(content)
