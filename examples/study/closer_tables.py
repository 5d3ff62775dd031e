"""The tables of the questions that look closer: convergence, alternatives, parts, and the paper's weights."""

from __future__ import annotations

from results import markdown_table

from study.cuts import ITSELF, SIZES
from study.epochs import table as epochs_table
from study.epochs import tried
from study.found import (
    METRICS,
    RECALL,
    Case,
    Found,
    Rival,
    baseline,
    cut_of_large,
    gains,
    mean_and_ahead,
    means,
    over_objectives,
    recommended,
)
from study.questions import CLOSER, COMPARED, CONVERGED, EMBEDDING_SIZE, EXAMINED, LARGE, MAIN, QUESTIONS


def converged(found: Found) -> str:
    """Each way trained for the epochs that were best for it on held-out training classes."""
    rows = []
    for setting, epochs in CONVERGED.items():
        for objective in COMPARED:
            ours = recommended(f"{setting} {epochs[LARGE]}", objective, 32)
            theirs = [baseline(f"{setting} {epochs.get(size)}", objective, size) for size in (32, 64)]
            if ours in found and theirs[0] in found:
                rows.append([setting, objective, *(f"{epochs.get(size, '')}" for size in (32, 64, LARGE))])
                rows[-1] += [means(found, case) for case in (*theirs, ours)]
                rows[-1] += [gains(found, ours, case) for case in theirs]
    header = ["setting", "objective", "epochs at 32", "at 64", "at 1,024", "baseline at 32", "at 64", "S2SD at 32"]
    header += ["S2SD less the baseline at 32", "at 64"]
    explained = (
        "MAP@R on held-out training classes decides, the mean of MultiSimilarity and Contrastive; fine-tuned "
        "MultiSimilarity, seed 100:"
    )
    return f"{explained}\n\n{epochs_table(tried())}\n\nOn the test classes:\n\n{markdown_table(header, rows)}"


def labels_alone(training: str, objective: str, size: int) -> Case:
    """Of the trunk that S2SD trains; a frozen one is the same for every objective."""
    if training in QUESTIONS["labels alone, frozen"].where:
        return cut_of_large(training, MAIN[0], "labels alone", size)
    return Case(training, objective, "S2SD", EMBEDDING_SIZE, "labels alone", size)


LONGER = {"frozen 10": "frozen 50", "tuned 5": "tuned 7"}
"""The epochs of the question "longer"."""


def instead(training: str, objective: str, size: int) -> dict[str, Case]:
    """What somebody would do who needs embeddings of this size, S2SD apart."""

    def of_128(cut: str) -> Case:
        return Case(training, objective, "baseline", 128, cut, size)

    return {
        "PCA of 1,024": cut_of_large(training, objective, "PCA", size),
        "PCA of 1,024, whitened": cut_of_large(training, objective, "PCA whitened", size),
        "PCA of 128": of_128("PCA"),
        "PCA of 128, whitened": of_128("PCA whitened"),
        "LDA of 1,024": cut_of_large(training, objective, "LDA", size),
        "labels alone": labels_alone(training, objective, size),
        "Matryoshka of 128": Case(training, objective, "Matryoshka", 128, "first", size),
        "MLP head": Case(training, objective, "MLP head", size, ITSELF, size),
        **{
            f"taught in the batch: {way}": Case(training, objective, way, size, ITSELF, size)
            for way in QUESTIONS["teachers"].ways
        },
        "longer training (50, 7 epochs)": baseline(LONGER.get(training, ""), objective, size),
        "1,024, kept": baseline(training, objective, LARGE),
    }


def alternatives(found: Found) -> str:
    rows = []
    for training in CLOSER:
        for objective in EXAMINED:
            for size in SIZES:
                ours = recommended(training, objective, size)
                for title, theirs in instead(training, objective, size).items():
                    if gains(found, ours, theirs):
                        rows.append([training, objective, str(size), title, means(found, theirs), means(found, ours)])
                        rows[-1] += [gains(found, ours, theirs), str(len(found.pairs(ours, theirs)))]
    header = ["training", "objective", "d", "instead", "it", "S2SD", "S2SD less it", "seeds"]
    return markdown_table(header, rows)


def alternatives_in_short(found: Found, metric: str) -> str:
    """At 32: the means over the objectives that were measured."""
    rows = []
    for title in instead("", "", EMBEDDING_SIZE):
        rival = Rival(title, lambda t, o, title=title: instead(t, o, EMBEDDING_SIZE)[title])
        rows.append(
            [title, *(mean_and_ahead(*over_objectives(found, t, rival, metric, among=EXAMINED)) for t in CLOSER)]
        )
    return markdown_table([f"{METRICS[metric]}, S2SD at 32 less", *CLOSER], [row for row in rows if any(row[1:])])


PARTS = {
    "the objective alone": ("baseline", ITSELF),
    "the trunk trained by the large space, no distillation": ("γ = 0, apart", ITSELF),
    "and distillation in the batch": ("S2SD", ITSELF),
    "the objective alone, its own 32 numbers consolidated with labels": ("baseline", "consolidated"),
    "S2SD, consolidated without labels": ("S2SD", "consolidated, without labels"),
    "S2SD, consolidated with labels": ("S2SD", "consolidated"),
    "S2SD, consolidated with labels and turned images": ("S2SD", "consolidated, turned images"),
}
"""Of what each part gives, way and cut."""


def parts(found: Found) -> str:
    rows = []
    for training in CLOSER:
        for objective in EXAMINED:
            base = baseline(training, objective, EMBEDDING_SIZE)
            for title, (way, cut) in PARTS.items():
                case = Case(training, objective, way, EMBEDDING_SIZE, cut, EMBEDDING_SIZE)
                if case in found and (case == base or gains(found, case, base)):
                    more = "" if case == base else gains(found, case, base)
                    rows.append([training, objective, title, means(found, case), more, str(len(found[case][RECALL]))])
    header = ["training", "objective", "at 32", "it", "less the objective alone", "seeds"]
    return markdown_table(header, rows) if rows else ""


def ways(found: Found, name: str) -> str:
    """Every way of a question beside the baseline of its size."""
    question = QUESTIONS[name]
    rows = []
    for training, objectives in question.where.items():
        for objective in objectives:
            for size in question.sizes:
                base = baseline(training, objective, size)
                for way in dict.fromkeys(["baseline", *question.ways]):
                    case = Case(training, objective, way, size, ITSELF, size)
                    if case in found:
                        difference = "" if case == base else gains(found, case, base)
                        rows.append([training, objective, str(size), way, means(found, case), difference])
                        rows[-1].append(str(len(found[case][RECALL])))
    header = ["training", "objective", "d", "way", "it", "less the baseline", "seeds"]
    return markdown_table(header, rows) if rows else ""
