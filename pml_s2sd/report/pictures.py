"""Pictures of runs and of embedding spaces, drawn with matplotlib, which the `examples` extra brings.

Every ``draw_`` function returns a figure; `save_png` writes it to a file, `as_svg` to a string.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..whole_file import whole_file
from .series import Curve, mean_and_deviation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUERIES, NEIGHBOURS = 12, 5
"""Rows of the grid of retrievals, and columns a model."""
GAP = 0.4
"""Between two models' columns, as a share of a column."""
RIGHT, WRONG = "#1a9641", "#d7191c"
MAP_POINTS, MAP_CLASSES = 1500, 8
"""At most so many embeddings are on a map, about; so many classes are coloured."""
LONGEST_LABEL = 28
LINE_STYLES = ("-", "--", ":", "-.")


def draw_curves(panels: Mapping[str, Mapping[str, Sequence[Curve]]]) -> Figure:
    """Training curves, side by side: the mean of a series' runs, and a band of their standard deviation.

    Args:
        panels: by title, then by the name of the series, one curve {epoch: value} for each run. Runs may have
            different lengths: the mean at an epoch is over the runs that have it.

    Returns:
        The figure, with one panel for each title.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> from pml_s2sd.report.pictures import draw_curves
        >>> figure = draw_curves({"Recall@1, %": {"baseline": [{1: 30.0, 2: 40.0}, {1: 32.0, 2: 42.0}]}})
        >>> figure.axes[0].lines[0].get_ydata().tolist()
        [31.0, 41.0]
    """
    figure = new_figure(4.6 * len(panels), 3.3)
    labels = list(dict.fromkeys(label for series in panels.values() for label in series))
    for axis, (title, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, runs in series.items():
            epochs = sorted({epoch for run in runs for epoch in run})
            values = [mean_and_deviation([run[epoch] for run in runs if epoch in run]) for epoch in epochs]
            draw_band(axis, labels.index(label), label, epochs, values)
        count_along(axis, "epoch")
        finish(axis, title)
    add_legend(figure)
    return figure


def draw_sizes(series: Mapping[str, Mapping[int, Sequence[float]]], title: str = "Recall@1, %") -> Figure:
    """A metric against the embedding size, with bars of the standard deviation over runs.

    Args:
        series: by name, then by embedding size, one value for each run.
        title: what the values are.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(4.6, 3.3)
    axis = figure.subplots()
    for position, (label, by_size) in enumerate(series.items()):
        sizes = sorted(by_size)
        means, deviations = zip(*(mean_and_deviation(by_size[size]) for size in sizes), strict=True)
        axis.errorbar(sizes, means, deviations, label=shown(label), marker="o", capsize=3, **style_of(position))
    sizes = sorted({size for by_size in series.values() for size in by_size})
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set(xlabel="embedding size d")
    finish(axis, title)
    add_legend(figure)
    return figure


def draw_spectra(series: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Singular values of embedding spaces, each a share of their sum, from the largest down, on a log scale.

    Args:
        series: by name of the space, the values of each run, as `evaluation.geometry.singular_values` gives them.
            The mean of the runs is drawn, with a band of their standard deviation.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(4.6, 3.3)
    axis = figure.subplots()
    for position, (label, runs) in enumerate(series.items()):
        shares = [np.asarray(values, dtype=float) / np.sum(values) for values in runs]
        longest = max(len(of_run) for of_run in shares)
        values = [mean_and_deviation([of_run[i] for of_run in shares if i < len(of_run)]) for i in range(longest)]
        draw_band(axis, position, label, range(1, longest + 1), values)
    axis.set_yscale("log", nonpositive="clip")
    count_along(axis, "singular value, from the largest")
    finish(axis, "share of the sum of singular values")
    add_legend(figure)
    return figure


def draw_retrieval(
    embeddings: Mapping[str, torch.Tensor], dataset: Any, below: Mapping[str, str] | None = None
) -> Figure:
    """A grid: a row a query, and for each model, set apart, its nearest neighbours.

    A neighbour of the query's class has a solid green frame and a check mark, any other a dashed red frame. The queries
    are spaced evenly over the data set, whatever the models make of them.

    Args:
        embeddings: normalised, (N, d), by the model's name.
        dataset: what was embedded: N samples, their images (3, H, W) in [0, 1] first, and ``labels``.
        below: by the model's name, a line to write below its columns, such as its accuracy on the whole data set.

    Raises:
        ImportError: matplotlib is not installed.
    """
    queries = torch.linspace(0, len(dataset) - 1, QUERIES + 2).long()[1:-1].unique().tolist()
    neighbours = min(NEIGHBOURS, len(dataset) - 1)
    widths = [1.0, *len(embeddings) * [GAP, *neighbours * [1.0]]]
    figure = new_figure(0.75 * sum(widths), 0.78 * len(queries) + 0.8)
    grid = figure.add_gridspec(len(queries), len(widths), width_ratios=widths)
    for row, query in enumerate(queries):
        show_image(axis := figure.add_subplot(grid[row, 0]), dataset, query)
        if row == 0:
            axis.set_title("query", fontsize=16)
        for model, x in enumerate(embeddings.values()):
            similarities = x @ x[query]
            similarities[query] = -torch.inf
            first = 2 + model * (neighbours + 1)
            for rank, neighbour in enumerate(similarities.topk(neighbours).indices.tolist()):
                show_image(axis := figure.add_subplot(grid[row, first + rank]), dataset, neighbour)
                mark(axis, bool(dataset.labels[neighbour] == dataset.labels[query]))
    axes = np.array(figure.axes).reshape(len(queries), -1)[:, 1:]
    for name, columns in zip(embeddings, np.split(axes, len(embeddings), axis=1), strict=True):
        right = sum(len(axis.texts) for axis in columns.flat)
        columns[0, neighbours // 2].set_title(shown(name), fontsize=16)
        lines = [f"{right} of {columns.size} are of the query's class", *([below[name]] if below else [])]
        columns[-1, neighbours // 2].set_xlabel("\n".join(lines), fontsize=12)
    return figure


def draw_map(embeddings: torch.Tensor, labels: torch.Tensor, names: Sequence[str], title: str, seed: int = 0) -> Figure:
    """Embeddings laid out in the plane by t-SNE; some classes, spaced evenly, in colour, all others grey.

    Args:
        embeddings: (N, d). Of more than `MAP_POINTS`, some are taken, spaced evenly, besides all of
            the coloured classes.
        labels: (N,), from 0 to the number of classes - 1.
        names: the classes' names, by label.
        title: of the picture.
        seed: of the lay-out; the same one gives the same map.

    Raises:
        ImportError: matplotlib is not installed.

    Source: van der Maaten and Hinton, JMLR 2008; by scikit-learn.
    """
    coloured = torch.linspace(0, len(names) - 1, min(MAP_CLASSES, len(names))).round().int().tolist()
    kept = torch.isin(labels, torch.tensor(coloured, device=labels.device))
    kept[torch.linspace(0, len(labels) - 1, min(MAP_POINTS, len(labels))).long()] = True
    points, of_class = lay_out(embeddings[kept], seed), labels[kept].cpu().numpy()

    figure = new_figure(4.6, 4.6)
    axis = figure.subplots()
    others = ~np.isin(of_class, coloured)
    axis.scatter(points[others, 0], points[others, 1], s=4, color="#c4c4c4", linewidths=0)
    for position, label in enumerate(coloured):
        x, y = points[of_class == label].T
        axis.scatter(x, y, s=34, label=shown(names[label]), marker="os^Dv*PX"[position])
    axis.set(xticks=[], yticks=[])
    axis.set_title(shown(title))
    add_legend(figure)
    return figure


def lay_out(x: torch.Tensor, seed: int) -> np.ndarray:
    """Points in the plane, (N, 2), by t-SNE."""
    from sklearn.manifold import TSNE

    if len(x) < 4:  # too few for neighbourhoods
        return np.column_stack([np.arange(len(x)), np.zeros(len(x))])
    perplexity = min(30.0, (len(x) - 1) / 3)
    start = "pca" if min(x.shape) > 1 else "random"
    return TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(x.detach().cpu().double().numpy())


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure into a file, which is there whole or not at all."""
    with drawing(), whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def as_svg(figure: Figure) -> str:
    """The figure as an SVG document, letters drawn as shapes, the same at every call."""
    written = io.StringIO()
    with drawing():
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


@contextmanager
def drawing() -> Iterator[None]:
    """Letters that the font lacks become boxes, without a warning. Names within an SVG are the same at every call."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "pml-s2sd"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, its size in inches, made without pyplot: nothing has to be closed, no display is needed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures are drawn with matplotlib: pip install matplotlib") from error
    return Figure((width, height), layout="constrained")


def draw_band(axis: Axes, position: int, label: str, x: Sequence[float], values: Sequence[tuple[float, float]]) -> None:
    """A line of means, and ± their deviations around it where there are any."""
    means, deviations = (np.array(column) for column in zip(*values, strict=True))
    marker = "o" if len(x) == 1 else None  # a line of one point is not seen
    axis.plot(x, means, label=shown(label), marker=marker, **style_of(position))
    if deviations.any():
        axis.fill_between(
            x, means - deviations, means + deviations, alpha=0.2, linewidth=0, color=style_of(position)["color"]
        )


def style_of(position: int) -> dict[str, Any]:
    """Ten colours, then the same with another kind of line."""
    return {"color": f"C{position % 10}", "linestyle": LINE_STYLES[position // 10 % len(LINE_STYLES)]}


def shown(name: str) -> str:
    """A name as a label: one line of bounded length. A $ starts no formula in it, and a leading _ does not hide it."""
    name = " ".join(name.split())
    name = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
    name = name.replace("$", r"\$")
    return " " + name if name.startswith("_") else name


def count_along(axis: Axes, name: str) -> None:
    """Whole numbers below the axis."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel(name)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def finish(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize="medium")
    axis.grid(alpha=0.3)


def add_legend(figure: Figure) -> None:
    """Below the axes, where it hides nothing, on more paper; each series once."""
    entries = {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if entries:
        columns = 1 if max(map(len, entries)) > 20 else 2
        columns *= max(1, round(figure.get_figwidth() / 4.6))
        figure.set_figheight(figure.get_figheight() + 0.22 * math.ceil(len(entries) / columns))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)


def show_image(axis: Axes, dataset: Any, index: int) -> None:
    axis.imshow(dataset[index][0].permute(1, 2, 0).numpy())
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(edgecolor="#555555", linewidth=1)


def mark(axis: Axes, is_right: bool) -> None:
    """A frame, and on what is right a check mark: told apart without colours, too."""
    for spine in axis.spines.values():
        if is_right:
            spine.set(edgecolor=RIGHT, linewidth=3.5)
        else:
            spine.set(edgecolor=WRONG, linewidth=1.2, linestyle=(0, (4, 3)))
    if is_right:
        disc = {"boxstyle": "circle,pad=0.15", "facecolor": RIGHT, "edgecolor": "white", "linewidth": 1}
        place: dict[str, Any] = {"transform": axis.transAxes, "ha": "center", "va": "center"}
        axis.text(0.9, 0.9, "✓", color="white", fontsize=9, fontweight="bold", bbox=disc, **place)
