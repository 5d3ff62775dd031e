"""The columns of the report's tables: in which order they stand, how figures are written, what they mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .run_folder import COSTS, PERCENTAGES, PROPERTIES


@dataclass(frozen=True)
class Column:
    """A column's head, and how its figures are written.

    Attributes:
        title: its name.
        meaning: what stands under the name, with the unit.
        form: a format string for a figure times scale.
        scale: 100 for percentages.
    """

    title: str
    meaning: str = ""
    form: str = "{:.3f}"
    scale: float = 1


def percentage(metric: str, meaning: str) -> Column:
    return Column(PERCENTAGES[metric], f"% {meaning}", "{:.1f}", 100)


FIGURES = {
    # what most readers look for
    "precision_at_1": percentage("precision_at_1", "of queries whose nearest is of their class"),
    "mean_average_precision_at_r": percentage("mean_average_precision_at_r", "mean precision among the R nearest"),
    "deployed_parameters": Column(COSTS["deployed_parameters"], "of the deployed model", "{:,.0f}"),
    "latency_ms_per_image": Column(COSTS["latency_ms_per_image"], "milliseconds per image, deployed"),
    "train_seconds": Column(COSTS["train_seconds"], "seconds of training", "{:.0f}"),
    "consolidation_seconds": Column(COSTS["consolidation_seconds"], "seconds after training", "{:.0f}"),
    # the others
    "recall_at_2": percentage("recall_at_2", "with one of their class among the 2 nearest"),
    "recall_at_4": percentage("recall_at_4", "with one of their class among the 4 nearest"),
    "recall_at_8": percentage("recall_at_8", "with one of their class among the 8 nearest"),
    "r_precision": percentage("r_precision", "of the R nearest are of the query's class"),
    "mean_average_precision_at_1000": percentage(
        "mean_average_precision_at_1000", "mean precision among the 1000 nearest"
    ),
    "NMI": percentage("NMI", "agreement of clusters with classes"),
    "f1": percentage("f1", "agreement of clustered pairs with classes"),
    "spectral_decay": Column(PROPERTIES["spectral_decay"], "0 where all directions are used alike"),
    "embedding_density": Column(PROPERTIES["embedding_density"], "low where classes are tight"),
    "effective_rank": Column(PROPERTIES["effective_rank"], "directions in use, of d"),
}
"""Figures of metrics.json, in the order of their columns."""

MODEL = Column("model")
SIZE = Column("d", "numbers per embedding")
SEED = Column("seed", "of the random numbers")
EPOCHS = Column("epochs", "of training")
RUNS = Column("runs", "that differ in the seed alone")

GLOSSARY = {
    "query": "every test image is a query; all other test images are its gallery",
    "R": "the number of other images of the query's class",
    "Recall@K": "share of queries with one of their class among the K nearest",
    "MAP@R, MAP@1000": "mean average precision among the R, or the 1000, nearest: nearer ones count more",
    "R-precision": "share of the query's class among its R nearest",
    "NMI, F1": "agreement of a k-means clustering with the classes: mutual information; pairs of samples",
    "spectral decay": "KL of the singular values from uniform: 0 where every direction is used alike",
    "density": "mean distance within classes over that between their centres: low where classes are tight",
    "effective rank": "how many directions are in use, from 1 to the embedding size",
    "consolidation": "the base head distilled anew after training",
    "± and interval": "standard deviation over runs; the 95 % interval of the mean gain, by Student's t",
}


def figures_in(records: Iterable[dict[str, Any]]) -> list[str]:
    """The figures that any of the models' records has, in the order of their columns."""
    found = {figure for record in records for figure in record}
    return [figure for figure in FIGURES if figure in found]
