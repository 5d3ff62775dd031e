"""The questions of the study: which rows answer each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from study.settings import SETTINGS
from study.ways import DELAYS, GAMMAS, SPACES, TEMPERATURES

COMPARED = ("multisimilarity", "margin", "triplet", "contrastive", "supcon", "proxyanchor", "arcface")
EXAMINED = ("multisimilarity", "contrastive")
"""The objectives of the questions that look closer: the paper's, and the one with the best baseline."""
EMBEDDING_SIZE = 32
SEEDS = (0, 1, 2, 3, 4)


class Row(NamedTuple):
    """A table's row, of one seed."""

    setting: str
    objective: str
    size: int
    way: str
    seed: int

    @property
    def file(self) -> str:
        return f"{self.setting}-{self.objective}-{self.size}-{self.way}-{self.seed}.json".replace("/", "_of_")


class Question(NamedTuple):
    """A table: of each setting, objective and size a line for every way, against the baseline."""

    title: str
    ways: Sequence[str]
    settings: Sequence[str] = ("frozen",)
    objectives: Sequence[str] = EXAMINED
    sizes: Sequence[int] = (EMBEDDING_SIZE,)

    def rows(self, seeds: Sequence[int]) -> Iterator[Row]:
        for seed in seeds:
            for setting in self.settings:
                for objective in self.objectives:
                    for size in self.sizes:
                        for way in ("baseline", *self.ways):
                            if not (setting == "frozen" and way == "MSDFA"):  # pooled features: no maps to pool
                                yield Row(setting, objective, size, way, seed)


QUESTIONS = {
    "auto": Question("An automatic weight", ["auto"], SETTINGS, COMPARED),
    "paper": Question("The paper's weights", ["DSD", "MSD", "MSDF", "MSDFA"], SETTINGS, COMPARED),
    "sizes": Question("Embedding sizes", ["auto"], sizes=(8, 16, 32, 64, 128)),
    "sources": Question(
        "Where the gain comes from",
        ["heads alone", "distillation alone", "MSD", "auto", "heads train the trunk", "MLP heads", "auto MSDF"],
        ["frozen", "tuned"],
    ),
    "heads": Question("Linear auxiliary heads or MLPs", ["auto", "MLP heads"], objectives=COMPARED),
    "spaces": Question(
        "Number and size of the auxiliary spaces", [*(f"sizes {' '.join(map(str, sizes))}" for sizes in SPACES), "auto"]
    ),
    "temperature": Question(
        "Temperature and diagonal", [f"T = {T}{diagonal}" for diagonal in ("", ", diagonal") for T in TEMPERATURES]
    ),
    "gamma": Question("γ", [f"γ = {gamma:g}" for gamma in GAMMAS]),
    "delay": Question("The delay of feature distillation", [f"delay {share}" for share in DELAYS]),
    "alternatives": Question(
        "What a user would pick instead", ["auto", "Matryoshka", "PCA", "MLP head", "longer"], ["frozen", "tuned"]
    ),
}
