"""The study's results by case, their differences, paired by seed, and the tables of docs/study_tables.md."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from results import markdown_table
from scipy import stats

from study.cuts import CONSOLIDATED, ITSELF, SIZES, WITH_LABELS, WITH_TURNED
from study.epochs import table as epochs_table
from study.epochs import tried
from study.questions import (
    CLOSER,
    COMPARED,
    CONVERGED,
    EMBEDDING_SIZE,
    EMOJI,
    EXAMINED,
    LARGE,
    MAIN,
    QUESTIONS,
    TRAININGS,
)

RECALL, MAP = "precision_at_1", "mean_average_precision_at_r"
METRICS = {RECALL: "Recall@1", MAP: "MAP@R"}
BySeed = Mapping[int, float]


class Case(NamedTuple):
    """What repeats itself over seeds."""

    training: str
    objective: str
    way: str
    trained: int
    cut: str
    size: int


def baseline(training: str, objective: str, size: int) -> Case:
    """The objective alone, trained at the size."""
    return Case(training, objective, "baseline", size, ITSELF, size)


def cut_of_large(training: str, objective: str, cut: str, size: int) -> Case:
    """Made of the model trained at 1,024."""
    return Case(training, objective, "baseline", LARGE, cut, size)


def recommended(training: str, objective: str, size: int) -> Case:
    """S2SD as it comes, with consolidation: its trunk and large space are trained as the objective alone at 1,024.

    With turned images of emoji; of photographs and icons they did not help on held-out classes.
    """
    cut = WITH_TURNED if training in EMOJI else WITH_LABELS
    return cut_of_large(training, objective, cut, size)


def of_photographs(training: str) -> bool:
    """Of which MAP@R leads: they come in series."""
    return training.startswith("photos")


class Found(dict[Case, dict[str, dict[int, float]]]):
    """Of each case and metric the figure of each seed."""

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Found:
        """Of what was measured twice, such as on a GPU and on a CPU, the first."""
        found = cls()
        for record in records:
            case = found.setdefault(Case(*(record[name] for name in Case._fields)), {metric: {} for metric in METRICS})
            for metric in METRICS:
                case[metric].setdefault(record["seed"], record[metric])
        return found

    def pairs(self, ours: Case, theirs: Case, metric: str = RECALL) -> dict[int, float]:
        """Ours less theirs, of the seeds that both have."""
        if ours not in self or theirs not in self:
            return {}
        a, b = self[ours][metric], self[theirs][metric]
        return {seed: a[seed] - b[seed] for seed in sorted(a) if seed in b}


def interval(values: Sequence[float], sign: str = "+") -> str:
    """The mean, and the half of its 95 % interval by Student's t."""
    if not values:
        return ""
    return f"{statistics.mean(values):{sign}.1f}" + (f" ± {half_interval(values):.1f}" if len(values) > 1 else "")


def half_interval(values: Sequence[float]) -> float:
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def mean(by_seed: BySeed) -> str:
    return f"{statistics.mean(by_seed.values()):.1f}"


def means(found: Found, case: Case) -> str:
    """Recall@1 / MAP@R."""
    return " / ".join(mean(found[case][metric]) for metric in METRICS) if case in found else ""


def gains(found: Found, ours: Case, theirs: Case) -> str:
    """The differences in Recall@1 / MAP@R, with their intervals."""
    cells = [interval([*found.pairs(ours, theirs, metric).values()]) for metric in METRICS]
    return " / ".join(cells) if all(cells) else ""


class Rival(NamedTuple):
    """What S2SD at 32 is compared with: of every training and objective a case."""

    title: str
    case: Callable[[str, str], Case]
    """Of training and objective."""


RIVALS = (
    Rival("the baseline at 32", lambda t, o: baseline(t, o, 32)),
    Rival("the baseline at 64", lambda t, o: baseline(t, o, 64)),
    Rival("the baseline at 128", lambda t, o: baseline(t, o, 128)),
    Rival("the large space, 1,024", lambda t, o: baseline(t, o, LARGE)),
    Rival("PCA of the large space to 32", lambda t, o: cut_of_large(t, o, "PCA", 32)),
)


def over_objectives(
    found: Found,
    training: str,
    rival: Rival,
    metric: str = RECALL,
    size: int = EMBEDDING_SIZE,
    among: Sequence[str] = COMPARED,
) -> tuple[dict[int, float], list[float]]:
    """S2SD less the rival: of each seed the mean over the objectives measured, and each objective's mean.

    Seeds that one of these objectives lacks are left out.
    """
    pairs = [found.pairs(recommended(training, o, size), rival.case(training, o), metric) for o in among]
    pairs = [by_seed for by_seed in pairs if by_seed]
    seeds = set.intersection(*map(set, pairs)) if pairs else set()
    return (
        {seed: statistics.mean(by_seed[seed] for by_seed in pairs) for seed in sorted(seeds)},
        [statistics.mean(by_seed.values()) for by_seed in pairs],
    )


GLANCE = RIVALS[:3] + RIVALS[4:]
"""What the table of docs/study.md compares with."""


def at_a_glance(found: Found) -> str:
    """The table of docs/study.md: of each training the means over the objectives, Recall@1 / MAP@R."""
    rows = []
    for training in TRAININGS:
        cells, objectives = [], 0
        for rival in GLANCE:
            of_both = [over_objectives(found, training, rival, metric) for metric in METRICS]
            cells.append(" / ".join(interval([*by_seed.values()]) for by_seed, _ in of_both) if of_both[0][0] else "")
            objectives = max(objectives, len(of_both[0][1]))
        if any(cells):
            rows.append([training, str(objectives), *cells])
    return markdown_table(["S2SD at 32 less", "objectives", *(rival.title for rival in GLANCE)], rows)


def in_short(found: Found) -> str:
    return "\n\n".join(_in_short(found, metric) for metric in METRICS)


def _in_short(found: Found, metric: str) -> str:
    rows = []
    for training in TRAININGS:
        cells = [_mean_and_ahead(*over_objectives(found, training, rival, metric)) for rival in RIVALS]
        if any(cells):
            rows.append([training, *cells])
    return markdown_table([f"{METRICS[metric]}, S2SD at 32 less", *(rival.title for rival in RIVALS)], rows)


def _mean_and_ahead(by_seed: BySeed, by_objective: Sequence[float]) -> str:
    ahead = sum(value > 0 for value in by_objective)
    return f"{interval([*by_seed.values()])}, {ahead} of {len(by_objective)}" if by_seed else ""


def page(records: Sequence[Mapping[str, Any]]) -> str:
    return f"""# Tables of the study

Written by `make study ROW=--publish` from `examples/study/results.jsonl`; [study.md](study.md) says what they mean.
A pair of figures is Recall@1 / MAP@R in percent on unseen classes. Differences are paired by seed, with 95 % intervals
of Student's t. "tuned 5" is a setting and its epochs.

{tables(records)}
"""


def tables(records: Sequence[Mapping[str, Any]]) -> str:
    """Everything that is published of `records`."""
    found = Found.of(records)
    on_cpu = Found.of(record for record in records if record["device"] == "CPU")
    parts = {
        "In short": f"The mean over objectives, and how many of them are ahead.\n\n{in_short(found)}",
        **{f"S2SD at 32: {training} epochs": _at_32(found, training) for training in TRAININGS},
        "Every size, in short": "\n\n".join(_sizes_in_short(found, metric) for metric in METRICS),
        "Every size": _every_size(found),
        "What turned images add": _turned(found),
        "S2SD by its own call": _by_its_own_call(found, on_cpu),
        "As long as it helps": _converged(found),
        "What a user would pick instead": "\n\n".join(_alternatives_in_short(found, metric) for metric in METRICS),
        "What a user would pick instead, by objective and size": _alternatives(found),
        "What each part gives": _parts(on_cpu),
        "The paper's weights": _ways(on_cpu, "paper"),
        "Where the paper's weights lose": _ways(on_cpu, "sources"),
        "A fixed weight γ, linear heads": _ways(on_cpu, "gamma"),
        "The delay of feature distillation, γ = 50, linear heads": _ways(on_cpu, "delay"),
        "Seeds and devices": _made_with(records),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items() if text)


def _at_32(found: Found, training: str) -> str:
    rows = []
    for objective in COMPARED:
        ours = recommended(training, objective, 32)
        if ours in found:
            gained = [gains(found, ours, rival.case(training, objective)) for rival in RIVALS]
            seeds = found.pairs(ours, baseline(training, objective, 32))
            rows.append(
                [
                    objective,
                    means(found, baseline(training, objective, 32)),
                    means(found, ours),
                    *gained,
                    str(len(seeds)),
                ]
            )
    header = ["objective", "baseline at 32", "S2SD at 32", *(f"less {rival.title}" for rival in RIVALS)]
    return markdown_table([*header, "seeds of the baseline at 32"], rows) if rows else ""


def _sizes_in_short(found: Found, metric: str) -> str:
    def rivals(d: int) -> list[Rival]:
        return [
            Rival("the baseline at d", lambda t, o: baseline(t, o, d)),
            Rival("the baseline at 2 d", lambda t, o: baseline(t, o, 2 * d)),
            Rival("PCA of 1,024 to d", lambda t, o: cut_of_large(t, o, "PCA", d)),
            Rival("the large space, 1,024", lambda t, o: baseline(t, o, LARGE)),
        ]

    rows = []
    for training in TRAININGS:
        for size in SIZES:
            cells = [_mean_and_ahead(*over_objectives(found, training, rival, metric, size)) for rival in rivals(size)]
            if any(cells):
                rows.append([training, str(size), *cells])
    header = ["training", f"d; {METRICS[metric]}, S2SD at d less", *(rival.title for rival in rivals(0))]
    return markdown_table(header, rows) if rows else ""


def _every_size(found: Found) -> str:
    """S2SD at d beside the baseline at d and at 2 d; against PCA: docs/compress_study.md has all sizes."""
    rows = []
    for training in TRAININGS:
        for objective in COMPARED:
            for size in SIZES:
                ours = recommended(training, objective, size)
                same, twice = (baseline(training, objective, d) for d in (size, 2 * size))
                if ours in found and (same in found or twice in found):
                    rows.append([training, objective, str(size), means(found, ours)])
                    rows[-1] += [cell for theirs in (same, twice) for cell in (gains(found, ours, theirs),)]
    header = ["training", "objective", "d", "S2SD at d", "less the baseline at d", "less the baseline at 2 d"]
    return markdown_table(header, rows) if rows else ""


def _turned(found: Found) -> str:
    rival = Rival("the same without turned images", lambda t, o: cut_of_large(t, o, WITH_LABELS, 32))
    rows = [
        [t, *(_mean_and_ahead(*over_objectives(found, t, rival, metric)) for metric in METRICS)]
        for t in TRAININGS
        if t in EMOJI
    ]
    header = ["S2SD at 32, less", *(f"{rival.title}, {title}" for title in METRICS.values())]
    return markdown_table(header, [row for row in rows if any(row[1:])]) if any(any(row[1:]) for row in rows) else ""


def _by_its_own_call(found: Found, on_cpu: Found) -> str:
    """`s2sd(loss, F, 32)` and `consolidate`, beside the large model that is compressed, which every other table has."""
    same = {"consolidated": WITH_LABELS, "consolidated, turned images": WITH_TURNED}
    rows = []
    for training in TRAININGS:
        for objective in COMPARED:
            for cut in (ITSELF, *CONSOLIDATED):
                own = Case(training, objective, "S2SD", EMBEDDING_SIZE, cut, EMBEDDING_SIZE)
                for seed in sorted(found.get(own, {}).get(RECALL, {})):
                    large = cut_of_large(training, objective, same.get(cut, "none"), EMBEDDING_SIZE)
                    base = baseline(training, objective, EMBEDDING_SIZE)
                    cells = [_of_seed(found, own, seed), _of_seed(found, large, seed), _of_seed(on_cpu, base, seed)]
                    rows.append([training, objective, str(seed), cut or "base head, before", *cells])
    header = ["training", "objective", "seed", "at 32", "it", "the same of the large model", "the baseline"]
    return markdown_table(header, rows) if rows else ""


def _of_seed(found: Found, case: Case, seed: int) -> str:
    there = case in found and seed in found[case][RECALL]
    return " / ".join(f"{found[case][metric][seed]:.1f}" for metric in METRICS) if there else ""


def labels_alone(training: str, objective: str, size: int) -> Case:
    """Of the trunk that S2SD trains; a frozen one is the same for every objective."""
    if training in QUESTIONS["labels alone, frozen"].where:
        return cut_of_large(training, MAIN[0], "labels alone", size)
    return Case(training, objective, "S2SD", EMBEDDING_SIZE, "labels alone", size)


def _converged(found: Found) -> str:
    """Each way trained for the epochs that were best for it on held-out training classes."""
    rows = []
    for setting, epochs in CONVERGED.items():
        for objective in COMPARED:
            ours = recommended(f"{setting} {epochs[LARGE]}", objective, 32)
            theirs = [baseline(f"{setting} {epochs[size]}", objective, size) for size in (32, 64)]
            if ours in found and all(case in found for case in theirs):
                rows.append([setting, objective, *(f"{epochs[size]}" for size in (32, 64, LARGE))])
                rows[-1] += [means(found, case) for case in (*theirs, ours)]
                rows[-1] += [gains(found, ours, case) for case in theirs]
    header = ["setting", "objective", "epochs at 32", "at 64", "at 1,024", "baseline at 32", "at 64", "S2SD at 32"]
    header += ["S2SD less the baseline at 32", "at 64"]
    explained = "MAP@R on held-out training classes decides, the mean of MultiSimilarity and Contrastive:"
    return f"{explained}\n\n{epochs_table(tried())}\n\nOn the test classes:\n\n{markdown_table(header, rows)}"


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


def _alternatives(found: Found) -> str:
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


def _alternatives_in_short(found: Found, metric: str) -> str:
    """At 32: the means over the objectives that were measured."""
    rows = []
    for title in instead("", "", EMBEDDING_SIZE):
        rival = Rival(title, lambda t, o, title=title: instead(t, o, EMBEDDING_SIZE)[title])
        rows.append(
            [title, *(_mean_and_ahead(*over_objectives(found, t, rival, metric, among=EXAMINED)) for t in CLOSER)]
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


def _parts(found: Found) -> str:
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


def _ways(found: Found, name: str) -> str:
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


def _made_with(records: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter((record["training"], record["device"], record["torch"]) for record in records)
    rows = [[*key, f"{count:,}"] for key, count in sorted(counts.items())]
    return markdown_table(["training", "device", "torch", "results"], rows)
