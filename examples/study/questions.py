"""The questions of the study: which rows answer each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from study.settings import EMOJI
from study.ways import DELAYS, GAMMAS, SPACES, TEMPERATURES

COMPARED = ("multisimilarity", "margin", "triplet", "contrastive", "supcon", "proxyanchor", "arcface")
EXAMINED = ("multisimilarity", "contrastive")
"""The objectives of the questions that look closer: the paper's, and the one with the best baseline."""
MAIN = EXAMINED[:1]
"""And where many ways are compared, or training is long."""
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
    where: Mapping[str, Sequence[str]] = {"frozen": EXAMINED}
    """The settings, and of each the objectives."""
    sizes: Sequence[int] = (EMBEDDING_SIZE,)

    def rows(self, seeds: Sequence[int]) -> Iterator[Row]:
        for seed in seeds:
            for setting, objectives in self.where.items():
                for objective in objectives:
                    for size in self.sizes:
                        for way in ("baseline", *self.ways):
                            if not (setting == "frozen" and way == "MSDFA"):  # pooled features: no maps to pool
                                yield Row(setting, objective, size, way, seed)


QUESTIONS = {
    "auto": Question("An automatic weight", ["auto"], dict.fromkeys(EMOJI, COMPARED)),
    "paper": Question(
        "The paper's weights",
        ["DSD", "MSD", "MSDF", "MSDFA", "auto"],
        {"frozen": COMPARED, "tuned": MAIN, "scratch": MAIN},
    ),
    "sizes": Question("Embedding sizes", ["auto"], sizes=(8, 16, 32, 64, 128)),
    "sources": Question(
        "Where the gain comes from",
        ["heads alone", "distillation alone", "MSD", "heads train the trunk", "auto"],
        {"tuned": MAIN},
    ),
    "heads": Question("Linear auxiliary heads or MLPs", ["auto", "MLP heads"], {"frozen": (*EXAMINED, "margin")}),
    "spaces": Question(
        "Number and size of the auxiliary spaces",
        [*(f"sizes {' '.join(map(str, sizes))}" for sizes in SPACES), "auto"],
        {"frozen": MAIN},
    ),
    "temperature": Question("Temperature and diagonal", [*TEMPERATURES, "auto"], {"frozen": MAIN}),
    "gamma": Question(
        "A fixed weight γ, linear heads", [*(f"γ = {gamma:g}" for gamma in GAMMAS), "auto"], {"frozen": MAIN}
    ),
    "delay": Question(
        "The delay of feature distillation, γ = 50, linear heads",
        [f"delay {share}" for share in DELAYS],
        {"frozen": MAIN},
    ),
    "alternatives": Question(
        "What a user would pick instead",
        ["auto", "Matryoshka", "PCA", "MLP head", "longer"],
        {"frozen": EXAMINED, "tuned": MAIN},
    ),
}
