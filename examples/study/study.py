"""Does S2SD help, how much, when not: what every question wants, measured, and the tables and plots from it.

    PYTHONPATH=examples python -m study.study                                      # tables of what is published
    PYTHONPATH=examples python -m study.study --measure --device cuda --processes 16
    PYTHONPATH=examples python -m study.study --measure --questions sizes cuts --trainings "tuned 5" \\
        --objectives supcon --seeds 0 --results again.jsonl                        # a part, once more: minutes on a CPU
    PYTHONPATH=examples python -m study.study --measure --trainings "photos 10" --photos FOLDER
    PYTHONPATH=examples python -m study.study --measure --trainings "icons 10"             # after make icons
    PYTHONPATH=examples python -m study.study --publish                            # write tables and plots in docs/

One JSON line a result, appended to --results as it comes; a result that is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import torch
from icons import ICONS_FOLDER
from results import write_text
from tqdm import tqdm

from study import byte_tables, compress_tables, tables
from study.cuts import CUTS, Trained
from study.found import Found
from study.plots import plot_gains, plot_sizes
from study.questions import COMPARED, QUESTIONS, SEEDS, TRAININGS, Training, Wanted
from study.settings import EMOJI, ICONS, PHOTOS, SETTINGS, Setting, cache_of
from study.training import train

PUBLISHED = Path(__file__).parent / "results.jsonl"
TRIED = PUBLISHED.with_name("compress_tried.jsonl")
DOCS = Path(__file__).parents[2] / "docs"
PAGE, TABLES, COMPRESS_PAGE = DOCS / "study.md", DOCS / "study_tables.md", DOCS / "compress_study.md"
BEGIN, END = "<!-- tables, written by study.py --publish -->", "<!-- end of tables -->"


def setting_of(training: str, runs: Path, **options: Any) -> Setting:
    """Of "tuned 5": the setting "tuned", with 5 epochs."""
    name, _, epochs = training.rpartition(" ")
    return Setting(name, cache_of(name, runs), epochs=int(epochs), **options)


_loaded = cache(setting_of)
"""Once a process."""


def measured(model: Training, cuts: Sequence[str], device: str, runs: Path) -> list[dict[str, Any]]:
    """The results of one training: of every cut."""
    setting = _loaded(model.training, runs, device=device)
    network, took = train(setting, model.objective, model.trained, model.seed, model.way)
    trained = Trained(network, setting, model.seed)
    return [
        {**model._asdict(), "cut": cut, "size": size, **figures, **took, **where(device)}
        for cut in cuts
        for size, figures in CUTS[cut](trained)
    ]


def where(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else "CPU"
    return {"device": name, "torch": torch.__version__}


def missing(chosen: argparse.Namespace, there: Iterable[dict[str, Any]]) -> dict[Training, list[str]]:
    """Of each model what is to be made of it."""
    known = {Wanted(Training(*(record[name] for name in Training._fields)), record["cut"]) for record in there}
    cuts: dict[Training, list[str]] = {}
    for model, cut in dict.fromkeys(w for name in chosen.questions for w in QUESTIONS[name].wanted(chosen.seeds)):
        chosen_one = (
            (model.training in chosen.trainings if chosen.trainings else _of_emoji(model))
            and model.objective in chosen.objectives
            and (chosen.sizes is None or model.trained in chosen.sizes)
        )
        if chosen_one and Wanted(model, cut) not in known:
            cuts.setdefault(model, []).append(cut)
    return cuts


def _of_emoji(model: Training) -> bool:
    return model.training.rpartition(" ")[0] in EMOJI


def in_parallel(
    chosen: argparse.Namespace, function: Callable, jobs: Sequence[tuple[Any, ...]], *arguments: Any
) -> None:
    """Append the records of function(*job, *arguments, chosen.runs) of every job to chosen.results, as they come.

    Args:
        jobs: of each the first is a model.
    """
    for name in {job[0].training.rpartition(" ")[0] for job in jobs}:  # activations are made here, not by each process
        cache_file = cache_of(name, chosen.runs)
        Setting(name, cache_file, photos=chosen.photos, icons=chosen.icons, device=chosen.device)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, context, initializer=_prepare) as pool, chosen.results.open("a") as file:
        waiting = {pool.submit(function, *job, *arguments, chosen.runs): job for job in jobs}
        for future in tqdm(as_completed(waiting), total=len(waiting), unit="training"):
            try:
                file.writelines(json.dumps(record) + "\n" for record in future.result())
            except Exception:  # the others go on
                print(waiting[future], traceback.format_exc(), flush=True)
            file.flush()


def _prepare() -> None:
    """In each process."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # as on a CPU


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_arguments(parser: argparse.ArgumentParser, results: Path) -> None:
    """What every measuring script takes."""
    parser.add_argument("--measure", action="store_true", help="measure what is missing in --results")
    parser.add_argument("--objectives", nargs="+", choices=COMPARED, default=COMPARED)
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--photos", type=Path, help=PHOTOS)
    parser.add_argument("--icons", type=Path, default=ICONS_FOLDER, help=ICONS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--trainings", nargs="+", help=f"setting and epochs, such as {TRAININGS}; else all of emoji")
    parser.add_argument("--sizes", nargs="+", type=int, help="that models are trained at; else all")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--publish", action="store_true", help="write the tables and plots of the docs")
    add_arguments(parser, PUBLISHED)
    chosen = parser.parse_args()
    for training in chosen.trainings or ():
        name, _, epochs = training.rpartition(" ")
        if name not in SETTINGS or not epochs.isdecimal():
            parser.error(
                f"--trainings: expected one of {tuple(SETTINGS)} and epochs, such as 'tuned 5', got {training!r}"
            )
    if chosen.measure:
        in_parallel(chosen, measured, list(missing(chosen, read(chosen.results)).items()), chosen.device)
    records = read(chosen.results)
    print(f"{tables.tables(records)}\n\n{byte_tables.tables(records)}")
    if chosen.publish:
        publish(records)


def publish(records: Sequence[dict[str, Any]]) -> None:
    found = Found.of(records)
    write_text(TABLES, tables_page(records))
    write_text(PAGE, written_between(PAGE, BEGIN, END, tables.at_a_glance(found)))
    text = compress_tables.tables(records) + "\n\n## What was tried\n\n" + compress_tables.tried(read(TRIED))
    write_text(COMPRESS_PAGE, written_between(COMPRESS_PAGE, BEGIN, END, text))
    plot_gains(found, DOCS / "study_gains.png")
    plot_sizes(found, DOCS / "study_sizes.png")
    byte_tables.plot(records, DOCS / "study_bytes.png")


def tables_page(records: Sequence[dict[str, Any]]) -> str:
    """docs/study_tables.md."""
    by_bytes = byte_tables.tables(records)
    return tables.page(records) + (f"\n{by_bytes}\n" if by_bytes else "")


def written_between(page: Path, begin: str, end: str, text: str) -> str:
    """The page with this text between two marks."""
    before, _, rest = page.read_text().partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    main()
