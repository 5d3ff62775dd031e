"""The folder of a training run, RUNS/NAME: the format of its metrics.json, written and read.

    {"settings": {NAME: VALUE, …},  "versions": {PACKAGE: VERSION, …},  "data": {NAME: FIGURE, …},  "machine": TEXT,
     "models": {MODEL: {METRIC: NUMBER, …,  "singular_values": [NUMBER, …],
                        "epochs": [{"epoch": NUMBER, FIGURE: NUMBER, …}, …]}, …}}

Only models are required, and of each its epochs; one that has its final "precision_at_1" is finished. Metrics are
`PERCENTAGES`, `PROPERTIES` and `COSTS`, and `BEFORE_CONSOLIDATION`; whatever else a file holds is left alone.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._text import encodable
from ..whole_file import whole_file

METRICS_FILE = "metrics.json"

PERCENTAGES = {
    "precision_at_1": "Recall@1",  # precision@1 and Recall@1 are the same number
    "recall_at_2": "Recall@2",
    "recall_at_4": "Recall@4",
    "recall_at_8": "Recall@8",
    "r_precision": "R-precision",
    "mean_average_precision_at_r": "MAP@R",
    "mean_average_precision_at_1000": "MAP@1000",
    "NMI": "NMI",
    "f1": "F1",
}
"""Metrics between 0 and 1 that are shown in percent, with their titles."""

PROPERTIES = {
    "spectral_decay": "spectral decay",
    "embedding_density": "density",
    "effective_rank": "effective rank",
}
"""Properties of an embedding space, with their titles."""

COSTS = {
    "deployed_parameters": "parameters",
    "latency_ms_per_image": "ms/image",
    "train_seconds": "training s",
    "consolidation_seconds": "consolidation s",
}
"""What a model costs, with titles."""

BEFORE_CONSOLIDATION = "precision_at_1_before_consolidation"
"""Recall@1 of the head that `consolidate` replaced."""


class RunWriter:
    """Writes a run's folder from a training loop, for `read_run` and the report.

    metrics.json is written anew at every call: a run that is killed leaves what it had come to. A metrics.json that is
    there already is replaced by the first call.

    Args:
        folder: RUNS/NAME; it is made where it is missing.
        settings: what the run is made with, by name. The report shows them all; it takes ``embedding_size`` for d, and
            runs that differ in ``seed`` alone for repeats. What JSON lacks, such as a path, becomes text.
        about: more to keep, each JSON: ``versions`` and ``data``, objects that the report lists, ``machine``, a text.

    Attributes:
        content: what is in metrics.json.

    Example:
        >>> from pml_s2sd.report import RunWriter, read_run
        >>> folder = getfixture("tmp_path") / "mine"
        >>> run = RunWriter(folder, {"embedding_size": 64, "seed": 0})
        >>> for epoch in range(2):
        ...     run.add_epoch("msdfa", {"loss": 1.5 - epoch, "precision_at_1": 0.4 + 0.1 * epoch})
        >>> run.finish("msdfa")
        >>> read_run(folder).models["msdfa"]["precision_at_1"]
        0.5
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None, **about: Any) -> None:
        self.folder = Path(folder)
        self.content: dict[str, Any] = {"settings": dict(settings or {}), **about, "models": {}}

    def epochs(self, model: str) -> list[dict[str, float]]:
        """The figures of a model's epochs so far."""
        return self.content["models"].get(model, {}).get("epochs", [])

    def add_epoch(self, model: str, figures: Mapping[str, Any]) -> None:
        """An epoch's figures.

        Args:
            model: its name, such as the variant's. "baseline" is what gains are reckoned on.
            figures: numbers by name, tensors and arrays of one number among them. The report draws the metrics of
                `PERCENTAGES`, from 0 to 1, and ``base``, or without it ``loss``, as the objective. ``epoch`` is counted
                from 1 unless given.

        Raises:
            TypeError, ValueError: a figure is no single number; nothing is written.
        """
        numbers = {"epoch": len(self.epochs(model)) + 1, **numbers_of(figures)}
        self.content["models"].setdefault(model, {"epochs": []})["epochs"].append(numbers)
        self.write()

    def restore(self, model: str, record: dict[str, Any]) -> None:
        """Go on with a model whose record, an entry of ``content["models"]``, was kept in a checkpoint."""
        self.content["models"][model] = record
        self.write()

    def finish(self, model: str, figures: Mapping[str, Any] | None = None) -> None:
        """The figures of a trained model, with which it is finished.

        Args:
            model: its name.
            figures: numbers by name, `PERCENTAGES`, `PROPERTIES` and `COSTS` among them, `BEFORE_CONSOLIDATION`, and
                ``singular_values``, a sequence of numbers; "precision_at_1" has to be there. Without figures they are
                the last epoch's.

        Raises:
            TypeError, ValueError: a figure is no number, or "precision_at_1" is missing; nothing is written.
        """
        if figures is None:
            last = self.epochs(model)[-1:]
            figures = {name: epoch[name] for epoch in last for name in PERCENTAGES | PROPERTIES if name in epoch}
        if "precision_at_1" not in figures:
            raise ValueError(
                f'a finished model needs "precision_at_1", its Recall@1 from 0 to 1, got {sorted(figures)} of '
                f"{model!r}; give it to finish, or to the last add_epoch"
            )
        spectrum = figures.get("singular_values")
        numbers = numbers_of({name: value for name, value in figures.items() if name != "singular_values"})
        if spectrum is not None:
            numbers |= {"singular_values": [number_of("singular_values", value) for value in spectrum]}
        self.content["models"].setdefault(model, {"epochs": []}).update(numbers)
        self.write()

    def write(self) -> None:
        """Write metrics.json as `content` is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.content, indent=1, default=str)
        with whole_file(self.folder / METRICS_FILE, "w") as file:
            file.write(text + "\n")


def numbers_of(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: number_of(name, value) for name, value in figures.items()}


def number_of(name: str, value: Any) -> int | float:
    """A number as JSON has it, of one, or of a tensor or array of one number."""
    is_one = isinstance(value, torch.Tensor | np.ndarray | np.generic) and np.prod(value.shape) == 1
    number = value.item() if is_one else value
    if not is_number(number):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} ({value!r}); leave it out, or give one")
    return number


@dataclass(frozen=True)
class Run:
    """One run's folder: its metrics.json, as it is.

    Attributes:
        name: what the run is called in tables; the folder's name, or its path where names are alike.
        folder: where it lies.
        content: settings, versions, machine, data, and models by name, see `models`.
    """

    name: str
    folder: Path
    content: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        return self.content.get("settings", {})

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The finished models' records: final metrics, and the list of `epochs`."""
        return {name: record for name, record in self.content["models"].items() if is_finished(record)}

    @property
    def unfinished(self) -> dict[str, int]:
        """The other models, and how many epochs they have come."""
        records = self.content["models"]
        return {name: len(record["epochs"]) for name, record in records.items() if not is_finished(record)}


def is_finished(record: dict[str, Any]) -> bool:
    return "precision_at_1" in record


def read_metrics(folder: str | Path) -> Any:
    """metrics.json of a run's folder as it is, finished or not.

    Raises:
        FileNotFoundError: there is no such folder, or no metrics.json in it.
        ValueError: metrics.json is cut short or something else.
    """
    folder = Path(folder)
    path = folder / METRICS_FILE
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected a run of examples/train.py, RUNS/NAME")
    if not path.is_file():
        raise FileNotFoundError(f"no metrics.json in {folder}; it is written after the first epoch of a run")
    try:
        return encodable(json.loads(path.read_text(encoding="utf-8")))
    except RecursionError as error:
        raise ValueError(f"cannot read {path}: its values are nested too deeply to be those of a run") from error
    except ValueError as error:
        raise ValueError(
            f"cannot read {path} ({path.stat().st_size:,} bytes): {error}; it may be cut short: go on with the run, "
            "by the command that began it and --resume, and it is written anew"
        ) from error


def read_run(folder: str | Path) -> Run:
    """The run in a folder that a `RunWriter` wrote, as `examples/train.py` has one.

    Args:
        folder: RUNS/NAME.

    Returns:
        The run, with at least one finished model.

    Raises:
        FileNotFoundError: there is no such folder, or no metrics.json in it.
        ValueError: metrics.json is cut short or something else, or no model is finished.

    Example:
        >>> from pml_s2sd.report import read_run
        >>> read_run("runs/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: no folder runs/nowhere; expected a run of examples/train.py, RUNS/NAME
    """
    folder = Path(folder)
    path, content = folder / METRICS_FILE, read_metrics(folder)
    check_content(path, content)
    run = Run(encodable(folder.resolve().name), folder, content)
    if not run.models:
        so_far = ", ".join(f"{name}: {epochs} epochs" for name, epochs in run.unfinished.items())
        raise ValueError(
            f"no finished model in {path} ({so_far or 'none begun'}); go on with the run, by the command that began it "
            "and --resume"
        )
    return run


def check_content(path: Path, content: Any) -> None:
    """The parts that are read: objects where there should be, in a model its epochs, and numbers."""
    if not isinstance(content, dict) or "models" not in content:
        raise ValueError(f'{path} is no metrics.json of a run; expected an object with "settings" and "models"')
    for part in {"models", "settings", "versions", "data"} & content.keys():
        if not isinstance(content[part], dict):
            raise ValueError(f'{path}: "{part}" is {type(content[part]).__name__}; expected an object')
    models = content["models"]
    for name, record in models.items():
        epochs = record.get("epochs") if isinstance(record, dict) else None
        if not isinstance(epochs, list) or not all(isinstance(e, dict) and is_number(e.get("epoch")) for e in epochs):
            raise ValueError(f'{path}: model {briefly(name)} has no list "epochs" of objects with the number "epoch"')
        for part in (record, *epochs):
            for metric in {*PERCENTAGES, *PROPERTIES, *COSTS, BEFORE_CONSOLIDATION} & part.keys():
                if not is_number(part[metric]):
                    raise ValueError(
                        f"{path}: {metric} of model {briefly(name)} is {briefly(part[metric])}; expected a number, of "
                        "64 bits at most"
                    )
        values = record.get("singular_values", [])
        if not isinstance(values, list) or not all(map(is_number, values)):
            raise ValueError(f"{path}: singular_values of model {briefly(name)} is no list of numbers")


def briefly(value: Any) -> str:
    """What Python writes of a value, cut where it is long."""
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = 80
    return writer.repr(value)


def is_number(value: Any) -> bool:
    """A float, NaN and infinity among them, or an int of 64 bits, which is as much as arrays take."""
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    )


def read_runs(folders: Iterable[str | Path]) -> list[Run]:
    """`read_run` of each; a folder given twice is read once, and runs of the same name are called by their paths."""
    unique = {Path(folder).resolve(): Path(folder) for folder in folders}
    runs = [read_run(folder) for folder in unique.values()]
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else Run(encodable(str(run.folder)), run.folder, run.content) for run in runs
    ]
