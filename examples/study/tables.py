"""The tables of docs/study_tables.md, and the one of docs/study.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from results import markdown_table

from study.closer_tables import alternatives, alternatives_in_short, converged, parts, ways
from study.cuts import CONSOLIDATED, ITSELF, SIZES, WITH_LABELS, WITH_TURNED
from study.found import (
    METRICS,
    RECALL,
    RIVALS,
    Case,
    Found,
    Rival,
    baseline,
    cut_of_large,
    gains,
    interval,
    mean_and_ahead,
    means,
    over_objectives,
    recommended,
)
from study.questions import COMPARED, EMBEDDING_SIZE, EMOJI, LARGE, TRAININGS

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
        cells = [mean_and_ahead(*over_objectives(found, training, rival, metric)) for rival in RIVALS]
        if any(cells):
            rows.append([training, *cells])
    return markdown_table([f"{METRICS[metric]}, S2SD at 32 less", *(rival.title for rival in RIVALS)], rows)


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
    made = {
        "In short": f"The mean over objectives, and how many of them are ahead.\n\n{in_short(found)}",
        **{f"S2SD at 32: {training} epochs": _at_32(found, training) for training in TRAININGS},
        "Every size, in short": "\n\n".join(_sizes_in_short(found, metric) for metric in METRICS),
        "Every size": _every_size(found),
        "What turned images add": _turned(found),
        "S2SD by its own call": _by_its_own_call(found, on_cpu),
        "As long as it helps": converged(found),
        "What a user would pick instead": "\n\n".join(alternatives_in_short(found, metric) for metric in METRICS),
        "What a user would pick instead, by objective and size": alternatives(found),
        "What each part gives": parts(on_cpu),
        "The paper's weights": ways(on_cpu, "paper"),
        "Where the paper's weights lose": ways(on_cpu, "sources"),
        "A fixed weight γ, linear heads": ways(on_cpu, "gamma"),
        "The delay of feature distillation, γ = 50, linear heads": ways(on_cpu, "delay"),
        "Seeds and devices": _made_with(records),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in made.items() if text)


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
            cells = [mean_and_ahead(*over_objectives(found, training, rival, metric, size)) for rival in rivals(size)]
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
        [t, *(mean_and_ahead(*over_objectives(found, t, rival, metric)) for metric in METRICS)]
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


def _made_with(records: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter((record["training"], record["device"], record["torch"]) for record in records)
    rows = [[*key, f"{count:,}"] for key, count in sorted(counts.items())]
    return markdown_table(["training", "device", "torch", "results"], rows)
