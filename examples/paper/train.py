"""A cell of the paper's tables: train its configuration with several seeds, compare Recall@1 with the paper's figure.

    python examples/paper/train.py examples/paper/configs/cub200_margin_msdf_128.toml --data FOLDER
    python examples/paper/train.py examples/paper/configs/cub200_margin_msdf_128.toml --dry-run

FOLDER holds the unpacked archive of the data set; README.md beside this file tells the layouts. The same command goes
on with what was cut short. Writes RUNS/CELL/seed0 and so on (see run_folder.py), and RUNS/CELL/recall.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the examples, which share results.py and others

from checkpoints import stoppable
from results import markdown_table, write_text
from seeds import mean_and_deviation

from paper.config import Config, load_config
from paper.loggers import LOGGERS
from paper.precision import PRECISIONS
from paper.run_folder import RunFolder, describe
from paper.training import data_folder, load_splits, train


def dry(config: Config) -> Config:
    """The same cell, small: an epoch of eight small images a batch; feature distillation from the second step on."""
    delay = {"feature_delay": 1} if "feature_delay" in config.s2sd else {}
    return dataclasses.replace(config, epochs=1, batch_size=8, side=64, resize=72, s2sd={**config.s2sd, **delay})


def compare(runs: dict[int, list[dict[str, float]]], paper: float | None) -> str:
    """A row a seed of Recall@1 in percent, after the best and the last epoch; the means; the paper's figure."""
    best, last = [], []
    for epochs in runs.values():
        recalls = [100 * epoch["precision_at_1"] for epoch in epochs]
        best.append(max(recalls))
        last.append(recalls[-1])
    rows = [[f"seed {seed}", f"{b:.2f}", f"{z:.2f}"] for seed, b, z in zip(runs, best, last, strict=True)]
    rows.append([f"mean ± std over {len(runs)} seeds", mean_and_deviation(best, 2), mean_and_deviation(last, 2)])
    rows.append(["the paper", "not known" if paper is None else f"{paper:.2f}", ""])
    return markdown_table(["Recall@1", "best epoch", "last epoch"], rows)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", type=Path, help="a file of examples/paper/configs, or one like it")
    add("--data", type=Path, help="the folder that holds the unpacked archive of the data set")
    add("--seeds", type=int, default=1, help="how many; they are 0, 1, … (default: %(default)s; the paper's: 5)")
    add("--runs", type=Path, default=Path("runs/paper"), help="default: %(default)s")
    add("--dry-run", action="store_true", help="two steps and one evaluation on generated images, random weights")
    add("--precision", choices=PRECISIONS, default="float32", help="of trunk and heads (default: %(default)s)")
    add("--channels-last", action=argparse.BooleanOptionalAction, default=True, help="layout of images and weights")
    add("--compile", action="store_true", help="torch.compile the trunk")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), help="that load images (default: %(default)s)")
    add("--logger", choices=LOGGERS, default="none", help="where figures also go (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.data is None and not options.dry_run:
        parser.error("--data is needed: the folder that holds the unpacked archive; or try --dry-run")
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    return options


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """What the user can mend ends the script without a traceback."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"train.py: {error}") from error


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with in_a_sentence():
        config, cell = load_config(options.config), options.runs / options.config.stem
    if options.dry_run:
        config, cell = dry(config), options.runs / "dry" / options.config.stem
        shutil.rmtree(cell, ignore_errors=True)
    runs = {}
    with data_folder(config, options) as data, stoppable("the same command goes on"):
        with in_a_sentence():
            splits = load_splits(config, options, data)
        for seed in range(options.seeds):
            folder = RunFolder(cell / f"seed{seed}")
            with in_a_sentence():
                folder.open(describe(config, options, seed))
            runs[seed] = train(config, options, seed, folder, *splits)
    table = compare(runs, config.paper_recall_at_1)
    print(table)
    write_text(cell / "recall.md", table + "\n")


if __name__ == "__main__":
    main()
