"""The tables of docs/performance.md, performance_tables.md, evaluation.md and compress.md from benchmarks/results/:
prints them, or puts them into the pages (--write)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gpu_table
from measure import RESULTS, read

from pml_s2sd.whole_file import whole_file

PAGES = [
    Path(__file__).parents[1] / "docs" / name
    for name in ("performance.md", "performance_tables.md", "evaluation.md", "compress.md")
]
TARGETS = {"multisimilarity": 1.05, "margin": 1.08}
RECOMMENDED, RECOMMENDED_TARGET = "recommended, ", 1.1


def rows_of(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def verdict(value: float, target: float | None, at_least: bool = False) -> str:
    if target is None:
        return ""
    met = value >= target if at_least else value <= target
    return f"{'≥' if at_least else '≤'} {target}: {'met' if met else 'not met'}"


def loss_step(figures: dict[str, Any]) -> str:
    header = ["ms", "whole", "heads", "base objective", "auxiliary objectives", "distillation"]
    header += ["auxiliary objectives by PML alone", "ratio", "PML's part", "target"]
    rows = []
    for name, of_name in figures.items():
        if "milliseconds over" in of_name:
            times, over = of_name["milliseconds"], of_name["milliseconds over"]
            shown = [times["whole"], times["heads"], times["base objective"], *over.values()]
            shown.append(times["auxiliary objectives, PML alone"])
            target = RECOMMENDED_TARGET if name.startswith(RECOMMENDED) else TARGETS.get(name)
            ratio = of_name["ratio"]
            rows.append([name, *shown, f"**{ratio}**", of_name["PML's part"], verdict(ratio, target)])
    return rows_of(header, rows)


def authors(figures: dict[str, Any]) -> str:
    first = next(iter(figures.values()))
    header = ["", *(f"{way}, ms" for way in first["milliseconds"])]
    compared = ("÷ plain PML", "÷ the formulas")
    header += [f"{way} {to}" for to in compared for way in first[to]]
    rows = (
        [name, *(round(t) for t in f["milliseconds"].values()), *(x for to in compared for x in f[to].values())]
        for name, f in figures.items()
    )
    return rows_of(header, rows)


def heads_and_optimizer(figures: dict[str, Any]) -> str:
    name, steps = "heads' rate ÷ one product's", figures["optimizer step"]
    rate = figures[name]["ratio"]
    rows = [[name, rate, verdict(rate, 0.85, at_least=True)]]
    rows += [
        [f"Adam's step on the auxiliary parameters, {step} (ms)", steps[f"{step}, milliseconds"], ""] for step in STEPS
    ]
    return rows_of(["", "value", "target"], rows)


STEPS = ("loop", "foreach", "fused")


def training_step(figures: dict[str, Any]) -> str:
    more = ["more: heads", "losses", "optimizer", "ratio", "ratio by parts", "target", "collecting"]
    header = ["ms", "baseline", "S2SD", *more]
    return rows_of(
        header,
        (
            [
                name,
                *(round(t) for t in of_name["milliseconds"].values()),
                *of_name["milliseconds more"].values(),
                of_name["ratio"],
                f"**{of_name['ratio by parts']}**",
                verdict(of_name["ratio by parts"], 1.02),
                of_name["collecting"],
            ]
            for name, of_name in figures.items()
        ),
    )


def deployed(figures: dict[str, Any]) -> str:
    keys = ["same program", "bitwise same output", "size ratio", "latency ratio", "latency ratio, exported"]
    return rows_of(["", *keys], ([name, *map(worded, map(of_name.get, keys))] for name, of_name in figures.items()))


def worded(value: object) -> object:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def large_batch(figures: dict[str, Any]) -> str:
    rows = (
        [name.removeprefix("B = "), *f["seconds"].values(), f["time ratio"], *f["MiB"].values(), f["memory ratio"]]
        for name, f in figures.items()
    )
    return rows_of(["B", "plain, s", "in blocks, s", "ratio", "plain, MiB", "in blocks, MiB", "ratio"], rows)


def columns_error(figures: dict[str, Any]) -> str:
    ((name, of_rows),) = figures.items()
    cases = list(dict.fromkeys(case.rpartition(", ")[0] for case in of_rows))
    drawn = list(dict.fromkeys(case.rpartition(", ")[2] for case in of_rows))
    header = [f"columns, {name}", *(f"{case}: {figure}" for case in cases for figure in ("KL", "gradient"))]
    rows = []
    for number in drawn:
        of_number = [of_rows[f"{case}, {number}"] for case in cases]
        rows.append([number, *(shown for f in of_number for shown in (f"{f['KL']:+.1%}", f"{f['gradient']:.0%}"))])
    return rows_of(header, rows)


def columns_cost(figures: dict[str, Any]) -> str:
    ((drawn, by_rows),) = figures.items()
    rows = (
        [name.removeprefix("B = "), *f["seconds"].values(), f["time ratio"], *f["MiB"].values(), f["memory ratio"]]
        for name, f in by_rows.items()
    )
    return rows_of(["B", "all, s", f"{drawn}, s", "ratio", "all, MiB", f"{drawn}, MiB", "ratio"], rows)


def scaling(key: str) -> Callable[[dict[str, Any]], str]:
    def of_key(figures: dict[str, Any]) -> str:
        measured = figures[key]
        with_memory = any("MiB" in f for f in measured.values())
        header = [key, "without S2SD, ms", "heads, ms", "S2SD, ms", "S2SD ÷ (heads + base objective)"]
        rows = []
        for name, f in measured.items():
            times = f["milliseconds"]
            more = [round(value) for value in f.get("MiB", {}).values()]
            more += [f["PML's part"]] if "PML's part" in f else []
            rows.append([name, times["plain"], times["heads"], times["S2SD"], f["over"], *more])
        header += ["without S2SD, MiB", "S2SD, MiB"] if with_memory else []
        return rows_of([*header, *(["PML's part"] if "PML's part" in next(iter(measured.values())) else [])], rows)

    return of_key


def evaluation_whole(figures: dict[str, Any]) -> str:
    ((name, measured),) = figures.items()
    ways = {way: f for way, f in measured.items() if isinstance(f, dict)}
    return rows_of([name, "s", "MiB"], ([way, round(f["seconds"]), round(f["MiB"])] for way, f in ways.items()))


def evaluation_gallery(figures: dict[str, Any]) -> str:
    ((name, measured),) = figures.items()
    indices = {index: f for index, f in measured.items() if isinstance(f, dict)}
    keys = ["build, seconds", "found", *(key for key in indices["flat"] if "queries" in key), "MiB"]
    return rows_of([name, *keys], ([index, *(shown(f.get(key)) for key in keys)] for index, f in indices.items()))


def gallery_parts(figures: dict[str, Any]) -> str:
    """Seconds by part: measured at the least size, and at the others predicted, measured, and one by the other."""
    least, *others = figures
    header = ["seconds", least]
    for rows in others:
        header += [f"{rows}: predicted", "measured", "measured ÷ predicted"]
    lines = []
    for part, seconds in figures[least]["seconds"].items():
        line = [part, shown(seconds)]
        for of_rows in (figures[rows] for rows in others):
            line += [shown(of_rows[key].get(part)) for key in ("predicted", "seconds", "measured ÷ predicted")]
        lines.append(line)
    return rows_of(header, lines)


def gallery_choice(figures: dict[str, Any]) -> str:
    header = ["rows", *next(iter(figures.values()))["choice"]]
    return rows_of(header, ([rows, *map(shown, f["choice"].values())] for rows, f in figures.items()))


FIGURES = ("found", "Recall@1")


def gallery_quality(figures: dict[str, Any]) -> str:
    """What share of exact search's neighbours is found, and Recall@1."""
    measured = {rows: f["quality"] for rows, f in figures.items() if f["quality"]}
    header = ["", *(f"{rows}: {figure}" for rows in measured for figure in FIGURES)]
    ways = [name.removesuffix(", Recall@1") for name in next(iter(measured.values())) if name.endswith("Recall@1")]
    return rows_of(
        header,
        (
            [way, *(shown(of.get(f"{way}, {figure}", 1.0)) for of in measured.values() for figure in FIGURES)]
            for way in ways
        ),
    )


def compress_table(kind: str) -> Callable[[dict[str, Any]], str]:
    def of_kind(figures: dict[str, Any]) -> str:
        ((name, measured),) = ((name, f) for name, f in figures.items() if name.startswith(kind))
        ways = {way: f for way, f in measured.items() if isinstance(f, dict)}
        header = [name.removeprefix(f"{kind}, "), "s", "MiB above the input"]
        return rows_of(header, ([way, f["seconds"], f["MiB above the input"]] for way, f in ways.items()))

    return of_kind


def gpu(rows: Callable[[dict[str, Any]], list[list[object]]]) -> Callable[[dict[str, Any]], str]:
    def of_figures(figures: dict[str, Any]) -> str:
        header, *others = rows(figures)
        return rows_of(header, others)

    return of_figures


def shown(value: float | None) -> str:
    """Three digits of what is below 10."""
    return "" if value is None else f"{value:.3g}" if value < 10 else f"{value:.0f}"


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "loss_step": ("loss_step", loss_step),
    "authors": ("authors_step", authors),
    "heads_and_optimizer": ("loss_step", heads_and_optimizer),
    "training_step": ("training_step", training_step),
    "deployed": ("deployed", deployed),
    "large_batch": ("large_batch", large_batch),
    "columns_error": ("columns_error", columns_error),
    "columns_cost": ("columns_cost", columns_cost),
    "batch_size": ("scaling_batch", scaling("B")),
    "space_size": ("scaling_spaces", scaling("size of one space")),
    "space_number": ("scaling_spaces", scaling("number of spaces of 1024")),
    "processes": ("scaling_processes", scaling("processes")),
    "evaluation_whole": ("evaluation_whole", evaluation_whole),
    "evaluation_gallery": ("evaluation_gallery", evaluation_gallery),
    "gallery_parts": ("gallery", gallery_parts),
    "gallery_choice": ("gallery", gallery_choice),
    "gallery_quality": ("gallery", gallery_quality),
    "compress_scale": ("compress", compress_table("scale")),
    "compress_shards": ("compress", compress_table("shards")),
    "gpu": ("gpu", gpu(gpu_table.steps)),
    "gpu_else": ("gpu", gpu(gpu_table.what_else)),
}


def markdown(name: str, results: Path) -> str:
    """A table, with what it was measured on and by which command."""
    script, table = TABLES[name]
    if script == "gpu" and not (results / "gpu.json").exists():
        return f"{table({})}\n\n*No GPU has been at hand yet: `make gpu` has not been run.*"
    saved = read(script, results)
    return f"{table(saved['figures'])}\n\n*`{saved['command']}`, {place(script, saved['machine'])}*"


def place(script: str, machine: dict[str, Any]) -> str:
    """What it was measured on."""
    if script == "gpu":
        return f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, torch {machine['torch']}"
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return f"{machine['processor']}, {threads}, torch {machine['torch']}"


def with_tables(page: str, results: Path) -> str:
    """The page with what is between ``<!-- table NAME -->`` and ``<!-- end -->`` made anew."""
    return re.sub(
        r"(<!-- table (\w+) -->\n).*?(<!-- end -->)",
        lambda mark: f"{mark[1]}{markdown(mark[2], results)}\n{mark[3]}",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        print("\n\n".join(f"{name}\n\n{markdown(name, RESULTS)}" for name in TABLES))
        return
    for page in PAGES:
        text = with_tables(page.read_text(), RESULTS)
        with whole_file(page, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()
