"""The questions of the study: which results answer each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from study.coded import CODED_SIZES, CODES, CODES_OF_LARGE, OPQ_OF_LARGE, coded_cut
from study.cuts import COMPRESSED, ITSELF, WITH_LABELS, WITH_TURNED
from study.ways import DELAYS, GAMMAS, LARGE

COMPARED = ("multisimilarity", "margin", "triplet", "contrastive", "supcon", "proxyanchor", "arcface")
EXAMINED = ("multisimilarity", "contrastive")
"""The objectives of the questions that look closer: the paper's, and the one with the best baseline."""
MAIN = EXAMINED[:1]
"""And where many ways are compared, or training is long."""
EMBEDDING_SIZE = 32
SEEDS = (0, 1, 2, 3, 4)
TRAININGS = ("frozen 10", "tuned 5", "tuned 15", "scratch 12", "photos 10", "photos tuned 5", "icons 5")
"""Setting and epochs."""


class Training(NamedTuple):
    """One model."""

    training: str
    objective: str
    way: str
    trained: int
    seed: int


class Wanted(NamedTuple):
    """What is to be made of a model: a cut of `study.cuts.CUTS`."""

    model: Training
    cut: str


class Question(NamedTuple):
    """The ways, each at every size, and every cut of each of these models."""

    where: Mapping[str, Sequence[str]]
    """The trainings, and of each the objectives."""
    ways: Sequence[str] = ("baseline",)
    sizes: Sequence[int] = (EMBEDDING_SIZE,)
    cuts: Sequence[str] = (ITSELF,)

    def wanted(self, seeds: Sequence[int]) -> Iterator[Wanted]:
        for training, objectives in self.where.items():
            for size in self.sizes:
                for seed in seeds:
                    for objective in objectives:
                        for way in self.ways:
                            if way != "MSDFA" or not training.startswith("frozen"):  # pooled: no maps to pool
                                for cut in self.cuts:
                                    yield Wanted(Training(training, objective, way, size, seed), cut)


EMOJI, PHOTOS = dict.fromkeys(TRAININGS[:4], COMPARED), {"photos 10": COMPARED, "photos tuned 5": MAIN}
ICONS = {"icons 5": COMPARED}
CLOSER = {"frozen 10": EXAMINED, "photos 10": EXAMINED, "tuned 5": MAIN}
"""Where questions look closer."""
STORED = CLOSER | {"icons 5": MAIN}
"""Where bytes are counted."""
CODED = (*CODES_OF_LARGE, *(coded_cut("PCA", code) for code in CODES))
"""Of the model trained at 1,024: itself and its PCA, in codes."""
CODED_LABELS, CODED_TURNED = ([coded_cut(cut, code) for code in CODES] for cut in (WITH_LABELS, WITH_TURNED))
CONVERGED = {
    "frozen": {32: 30, 64: 30, LARGE: 10},
    "photos": {32: 10, 64: 10, LARGE: 10},
    "tuned": {32: 30, LARGE: 15},
}
"""By the size that is trained, the epochs that were best on held-out classes: see `study.epochs`."""
QUESTIONS = {
    "sizes": Question(EMOJI | PHOTOS, sizes=(LARGE, 32, 64, 128)),
    "small sizes": Question({"frozen 10": COMPARED, "photos 10": COMPARED, "tuned 5": MAIN}, sizes=(8, 16)),
    "cuts": Question(EMOJI, sizes=(LARGE,), cuts=("PCA", *COMPRESSED)),
    "sizes of icons": Question(ICONS, sizes=(LARGE, 32, 64)),
    "cuts of icons": Question(ICONS, sizes=(LARGE,), cuts=("PCA", WITH_LABELS)),
    "small sizes of icons": Question({"icons 5": MAIN}, sizes=(8, 16, 128)),
    "cuts of photographs": Question(PHOTOS, sizes=(LARGE,), cuts=("PCA", "compressed", WITH_LABELS)),
    "the large space for longer": Question({"frozen 30": MAIN}, sizes=(LARGE,), cuts=(ITSELF, "PCA", WITH_LABELS)),
    "axes": Question(CLOSER, sizes=(LARGE,), cuts=("PCA whitened", "LDA")),
    "axes of 128": Question(CLOSER, sizes=(128,), cuts=("PCA", "PCA whitened")),
    "teachers": Question(CLOSER, ["RKD, weight 10", "PKT, weight 1", "relaxed contrastive, weight 0.1"]),
    "parts": Question(CLOSER, sizes=(EMBEDDING_SIZE,), cuts=("consolidated",)),
    "parts in the batch": Question(CLOSER, ["γ = 0, apart"]),
    "S2SD": Question(
        CLOSER | {"tuned 5": EXAMINED}, ["S2SD"], cuts=(ITSELF, "consolidated, without labels", "consolidated")
    ),
    "S2SD with turned images": Question({"tuned 5": EXAMINED}, ["S2SD"], cuts=("consolidated, turned images",)),
    "labels alone": Question({"tuned 5": EXAMINED}, ["S2SD"], cuts=("labels alone",)),
    "labels alone, frozen": Question({"frozen 10": MAIN, "photos 10": MAIN}, sizes=(LARGE,), cuts=("labels alone",)),
    "Matryoshka": Question(
        {"frozen 10": EXAMINED, "photos 10": EXAMINED, "tuned 5": MAIN}, ["Matryoshka"], sizes=(128,), cuts=("first",)
    ),
    "longer": Question({"frozen 50": EXAMINED, "tuned 7": MAIN}),
    "MLP head": Question(CLOSER, ["MLP head"]),
    "paper": Question(
        {"frozen 10": COMPARED, "tuned 5": MAIN, "scratch 4": MAIN}, ["baseline", "DSD", "MSD", "MSDF", "MSDFA"]
    ),
    "sources": Question({"tuned 5": MAIN}, ["heads alone", "distillation alone"]),
    "gamma": Question({"frozen 10": MAIN}, [f"γ = {gamma:g}" for gamma in GAMMAS]),
    "delay": Question({"frozen 10": MAIN}, [f"delay {share}" for share in DELAYS]),
    "bytes": Question(STORED, sizes=CODED_SIZES, cuts=CODES),
    "bytes of 1,024": Question(STORED, sizes=(LARGE,), cuts=CODED),
    "bytes of S2SD": Question({"frozen 10": EXAMINED, "tuned 5": MAIN}, sizes=(LARGE,), cuts=CODED_TURNED),
    "bytes of S2SD, with labels": Question({"photos 10": EXAMINED, "icons 5": MAIN}, sizes=(LARGE,), cuts=CODED_LABELS),
    "bytes by OPQ": Question(CLOSER, sizes=(LARGE,), cuts=OPQ_OF_LARGE),
    **{
        f"converged, {setting}, {size}": Question(
            {f"{setting} {epochs}": MAIN if setting == "tuned" else EXAMINED},
            sizes=(size,),
            cuts=(ITSELF, "PCA", WITH_LABELS) if size == LARGE else (ITSELF,),
        )
        for setting, by_size in CONVERGED.items()
        for size, epochs in by_size.items()
    },
}
