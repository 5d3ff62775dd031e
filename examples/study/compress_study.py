"""compress beside PCA and beside training at the small size: every row of docs/compress_study.md, and its tables.

    PYTHONPATH=examples python -m study.compress_study                                  # tables of what is published
    PYTHONPATH=examples python -m study.compress_study --measure --device cuda --processes 16
    PYTHONPATH=examples python -m study.compress_study --measure --trainings "tuned 5" --objectives supcon --seeds 0
    PYTHONPATH=examples python -m study.compress_study --measure --trainings "photos 10" --photos FOLDER
    PYTHONPATH=examples python -m study.compress_study --publish                        # and write the page's tables,
                                                                                        # those of compress_tried too

One JSON line a result, appended to --results as it comes; a result that is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from results import write_text
from sklearn.decomposition import PCA
from torch import nn
from tqdm import tqdm

from pml_s2sd import compress
from study.compress_tables import CUTS, tables, tried
from study.pretrained import TURNS, VIEWS
from study.questions import COMPARED, SEEDS, Row
from study.settings import EMOJI, PHOTOS, Setting, cache_of
from study.training import retrieval, train

PUBLISHED = Path(__file__).parent / "compress.jsonl"
OF_STUDY = PUBLISHED.with_name("results.jsonl")
TRIED = PUBLISHED.with_name("compress_tried.jsonl")
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "compress_study.md"
BEGIN, END = "<!-- tables, written by compress_study.py --publish -->", "<!-- end of tables -->"
TRAININGS = {
    "tuned 15": ("tuned", 15),
    "tuned 5": ("tuned", 5),
    "scratch 12": ("scratch", 12),
    "frozen 10": ("frozen", 10),
    "photos 10": ("photos", 10),
}
"""Setting and epochs; the longest first."""
WITHOUT_PHOTOS = [training for training, (setting, _) in TRAININGS.items() if setting in EMOJI]
LARGE = 1024
TRAINED = (LARGE, 32, 64, 128)


class Training(NamedTuple):
    """One model; where it is the large one, its embeddings are cut down in every way afterwards."""

    training: str
    objective: str
    trained: int
    seed: int


def measured(job: Training, device: str, runs: Path) -> list[dict[str, Any]]:
    """The results of one training: of the model itself, and of every cut."""
    name, epochs = TRAININGS[job.training]
    setting = _setting(name, runs, epochs, device)
    model, took = train(setting, Row(name, job.objective, job.trained, "baseline", job.seed))
    model.eval()
    test = embedded(model, setting.test_batches())
    found = [("trained", job.trained, {**retrieval(test.embeddings, setting.test_labels), **took})]
    if job.trained == LARGE:
        found += cuts(model, setting, test, job.seed)
    return [{**job._asdict(), "way": way, "size": size, **figures, **where(device)} for way, size, figures in found]


def where(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else "CPU"
    return {"device": name, "torch": torch.__version__}


_settings: dict[Any, Setting] = {}


def _setting(name: str, runs: Path, epochs: int, device: str) -> Setting:
    """Loaded once a process."""
    if (name, epochs) not in _settings:
        _settings[name, epochs] = Setting(name, cache_of(name, runs), epochs=epochs, device=device)
    return _settings[name, epochs]


class Rows(NamedTuple):
    """Features (N, F), pooled, and the embeddings of them, (N, k), normalised."""

    features: torch.Tensor
    embeddings: torch.Tensor


@torch.no_grad()
def embedded(model: nn.Sequential, *views: Sequence[torch.Tensor]) -> Rows:
    """Of batches, or several views of them one after the other."""
    trunk, embedder = model
    maps = [trunk(batch) for batches in views for batch in batches]
    features = torch.cat([x.mean((2, 3)) if x.dim() == 4 else x for x in maps])
    return Rows(features, nn.functional.normalize(embedder(features)))


def cuts(model: nn.Sequential, setting: Setting, test: Rows, seed: int) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(way, size, figures) of every way to make small embeddings of the large ones, on the unseen classes."""
    rows = embedded(model, *(setting.train_batches(view) for view in range(VIEWS)))
    labels = setting.train_labels.repeat(VIEWS).to(setting.device)
    pca = PCA(max(CUTS), svd_solver="covariance_eigh").fit(rows.embeddings.cpu().numpy())
    projected = torch.from_numpy(pca.transform(test.embeddings.cpu().numpy())).to(setting.device)
    for size in CUTS:
        yield "PCA", size, retrieval(projected[:, :size], setting.test_labels)
    turned = embedded(model, *(setting.turned_batches(way) for way in range(TURNS)))
    new_classes = (int(labels.max()) + 1) * torch.arange(1, TURNS + 1, device=setting.device)
    of_turned = (setting.train_labels.to(setting.device) + new_classes[:, None]).flatten()
    more = Rows(*(torch.cat(pair) for pair in zip(rows, turned, strict=True)))
    for way, learned, options in [
        ("compressed", rows, {"features": rows.features}),
        ("compressed, embeddings alone", rows, {}),
        ("compressed with labels", rows, {"features": rows.features, "labels": labels}),
        (
            "compressed with labels, turned images",
            more,
            {"features": more.features, "labels": torch.cat([labels, of_turned]), "subset_rows": 2048},
        ),
    ]:
        started = time.perf_counter()
        maps = compress(learned.embeddings, list(CUTS), seed=seed, **options)
        seconds = round(time.perf_counter() - started, 2)
        for size in CUTS:
            x = test.features if "features" in options else test.embeddings
            with torch.no_grad():
                z = maps[size](nn.functional.normalize(x))
            yield way, size, {**retrieval(z, setting.test_labels), "seconds": seconds}


def wanted(chosen: argparse.Namespace, there: Sequence[dict[str, Any]]) -> list[Training]:
    known = {Training(*(record[name] for name in Training._fields)) for record in there}
    jobs = (
        Training(training, objective, size, seed)
        for training in chosen.trainings
        for size in chosen.trained
        for seed in chosen.seeds
        for objective in chosen.objectives
    )
    return [job for job in jobs if job not in known]


def in_parallel(chosen: argparse.Namespace, function: Callable, jobs: Sequence[Any], *arguments: Any) -> None:
    """Append the records of function(job, *arguments, chosen.runs) of every job to chosen.results, as they come."""
    for name in {TRAININGS[job.training][0] for job in jobs}:  # activations are made here, not by each process
        Setting(name, cache_of(name, chosen.runs), photos=chosen.photos, device=chosen.device)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, context, initializer=_prepare) as pool, chosen.results.open("a") as file:
        waiting = {pool.submit(function, job, *arguments, chosen.runs): job for job in jobs}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="train what is missing in --results")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=WITHOUT_PHOTOS)
    parser.add_argument("--objectives", nargs="+", choices=COMPARED, default=COMPARED)
    parser.add_argument("--trained", nargs="+", type=int, choices=TRAINED, default=TRAINED)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--results", type=Path, default=PUBLISHED)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--photos", type=Path, help=PHOTOS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--publish", action="store_true", help=f"write the tables of {PAGE.name}")
    chosen = parser.parse_args()
    if chosen.measure:
        in_parallel(chosen, measured, wanted(chosen, read(chosen.results)), chosen.device)
    text = tables(read(chosen.results), read(OF_STUDY))
    print(text)
    if chosen.publish:
        text += "\n\n## What was tried\n\n" + tried(read(TRIED))
        write_text(PAGE, written_between(PAGE, BEGIN, END, text))


def written_between(page: Path, begin: str, end: str, text: str) -> str:
    """The page with this text between two marks."""
    before, _, rest = page.read_text().partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    main()
