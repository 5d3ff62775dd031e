"""The example of `train.py` over several seeds: mean, standard deviation and paired gain of each variant.

    python examples/seeds.py --name demo --seeds 0 1 2 3 4          # further options as train.py's

Each seed is a run of its own, RUNS/NAME-seed0 and so on. Of runs with the same settings and versions, a finished one is
not repeated, and one that was cut short goes on. Writes RUNS/NAME-seeds.md and RUNS/NAME-seeds.html, the report of all.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from checkpoints import stoppable
from options import describe, parse_arguments
from results import METRICS, markdown_table, write_text
from train import run

from pml_s2sd.report import write_report
from pml_s2sd.report.run_folder import read_metrics


def earlier_run(settings: argparse.Namespace) -> dict[str, Any] | None:
    """The results, so far, of an earlier run with the same settings and versions."""
    try:
        found = read_metrics(settings.runs / settings.name)
    except (FileNotFoundError, ValueError):
        return None
    return found if all(found.get(part) == value for part, value in describe(settings).items()) else None


def results_of(settings: argparse.Namespace) -> dict[str, Any]:
    """Those of an earlier run, as far as it came, and the rest of it."""
    earlier = earlier_run(settings)
    if earlier and all("train_seconds" in earlier["models"].get(variant, {}) for variant in settings.variants):
        return earlier
    settings.resume = earlier is not None
    return run(settings)


def summarize(runs: dict[int, dict[str, Any]], variants: list[str]) -> str:
    """A row a seed of Recall@1; then mean ± standard deviation of every metric, and of the gains."""
    first, *others = variants
    rows = [
        [str(seed), *(f"{100 * results['models'][variant]['precision_at_1']:.1f}" for variant in variants)]
        for seed, results in runs.items()
    ]
    table = markdown_table(["seed, Recall@1", *variants], rows)
    rows = []
    for metric, title in METRICS.items():
        values = {v: [100 * results["models"][v][metric] for results in runs.values()] for v in variants}
        gains = [[b - a for a, b in zip(values[first], values[other], strict=True)] for other in others]
        rows.append([title, *map(mean_and_deviation, values.values()), *map(mean_and_deviation, gains)])
    header = [f"mean ± std over {len(runs)} seeds", *variants, *(f"gain of {other}" for other in others)]
    return f"{table}\n\n{markdown_table(header, rows)}"


def mean_and_deviation(values: list[float], digits: int = 1) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    own, rest = parser.parse_known_args()
    base = parse_arguments(rest)
    runs = {}
    for seed in own.seeds:
        settings = parse_arguments([*rest, "--seed", str(seed), "--name", f"{base.name}-seed{seed}"])
        with stoppable("the same command goes on"):
            runs[seed] = results_of(settings)
    table = summarize(runs, base.variants)
    print("\n" + table)
    write_text(Path(base.runs) / f"{base.name}-seeds.md", table + "\n")
    folders = [base.runs / f"{base.name}-seed{seed}" for seed in own.seeds]
    report = write_report(folders, base.runs / f"{base.name}-seeds.html")
    print(f"\nThe report, to open in a browser: {report}")


if __name__ == "__main__":
    main()
