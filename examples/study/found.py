"""The study's results by case, and their differences, paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

from study.cuts import ITSELF, WITH_LABELS, WITH_TURNED
from study.questions import COMPARED, EMBEDDING_SIZE, EMOJI, LARGE

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


def mean_and_ahead(by_seed: BySeed, by_objective: Sequence[float]) -> str:
    ahead = sum(value > 0 for value in by_objective)
    return f"{interval([*by_seed.values()])}, {ahead} of {len(by_objective)}" if by_seed else ""
