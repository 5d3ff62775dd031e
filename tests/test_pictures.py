"""Pictures: what is drawn, read back from matplotlib's figures and from the files."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from pml_s2sd.report.pictures import (
    MAP_CLASSES,
    MAP_POINTS,
    RIGHT,
    WRONG,
    as_svg,
    draw_curves,
    draw_map,
    draw_retrieval,
    draw_sizes,
    draw_spectra,
    lay_out,
    save_png,
)


def labels_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def band_of(axis):
    """{x: (lower, upper)} of the only band."""
    (band,) = axis.collections
    found = {}
    for x, y in band.get_paths()[0].vertices:
        found.setdefault(x, []).append(y)
    return {x: (min(y), max(y)) for x, y in found.items()}


def test_curves_are_means_with_a_band_over_runs_of_different_lengths():
    runs = [{1: 10.0, 2: 20.0}, {1: 14.0, 2: 26.0, 3: 30.0}]
    figure = draw_curves({"Recall@1": {"baseline": runs, "msdfa": [{1: 5.0, 2: 6.0}]}, "loss": {"msdfa": [{1: 0.5}]}})
    recall, loss = figure.axes
    baseline, msdfa = recall.lines
    assert baseline.get_xdata().tolist() == [1, 2, 3]
    assert baseline.get_ydata().tolist() == [12.0, 23.0, 30.0]
    assert msdfa.get_ydata().tolist() == [5.0, 6.0]
    band = band_of(recall)
    assert band[1] == pytest.approx((12 - 8**0.5, 12 + 8**0.5))
    assert band[2] == pytest.approx((23 - 18**0.5, 23 + 18**0.5))
    assert band[3] == (30.0, 30.0)
    assert labels_of(figure) == ["baseline", "msdfa"]
    assert loss.lines[0].get_color() == msdfa.get_color() != baseline.get_color()
    assert loss.lines[0].get_marker() == "o"  # of one epoch
    assert [axis.get_title() for axis in figure.axes] == ["Recall@1", "loss"]


def test_more_series_than_colours_differ_in_their_lines():
    lines = draw_curves({"loss": {str(i): [{1: 1.0, 2: 2.0}] for i in range(25)}}).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 25


def test_sizes_are_in_order_and_have_bars_over_runs():
    figure = draw_sizes({"baseline": {64: [40.0], 16: [30.0, 34.0]}, "msdfa": {16: [35.0]}})
    (axis,) = figure.axes
    (line, _, (bars,)), _ = axis.containers
    assert line.get_xdata().tolist() == [16, 64]
    assert line.get_ydata().tolist() == [32.0, 40.0]
    assert bars.get_segments()[0][:, 1] == pytest.approx([32 - 8**0.5, 32 + 8**0.5])
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["16", "64"]
    assert labels_of(figure) == ["baseline", "msdfa"]


def test_spectra_are_shares_of_the_sum():
    figure = draw_spectra({"base": [[6.0, 3.0, 1.0], [8.0, 2.0, 0.0]], "2048": [[1.0, 1.0]]})
    (axis,) = figure.axes
    base, larger = axis.lines
    assert base.get_xdata().tolist() == [1, 2, 3]
    assert base.get_ydata() == pytest.approx([0.7, 0.25, 0.05])
    assert larger.get_ydata().tolist() == [0.5, 0.5]
    assert axis.get_yscale() == "log"
    assert "nan" not in as_svg(figure)


def dataset_of(labels):
    images = torch.rand(len(labels), 3, 8, 8)
    rows = [(image, int(label)) for image, label in zip(images, labels, strict=True)]

    class Samples(list):
        pass

    samples = Samples(rows)
    samples.labels = torch.as_tensor(labels)
    return samples


def test_the_grid_shows_the_nearest_and_frames_them(tmp_path):
    labels = torch.arange(40) // 4
    x = torch.nn.functional.normalize(torch.randn(40, 6))
    samples = dataset_of(labels)
    before = x.clone()
    figure = draw_retrieval({"baseline": x, "msdfa": x.flip(1)}, samples)
    assert torch.equal(x, before)
    axes = np.array(figure.axes).reshape(12, 11)
    assert [axis.get_title() for axis in axes[0] if axis.get_title()] == ["query", "baseline", "msdfa"]
    queries = np.linspace(0, 39, 14).astype(int)[1:-1]
    similarities = (x @ x.T).double().numpy()
    np.fill_diagonal(similarities, -2)
    for row, query in enumerate(queries):
        nearest = np.argsort(-similarities[query], kind="stable")[:5]
        for rank, neighbour in enumerate(nearest):
            axis = axes[row, 1 + rank]
            assert np.allclose(axis.images[0].get_array(), samples[neighbour][0].permute(1, 2, 0))
            frame = np.array(axis.spines["left"].get_edgecolor()[:3]) * 255
            expected = RIGHT if labels[neighbour] == labels[query] else WRONG
            assert "#" + "".join(f"{round(c):02x}" for c in frame) == expected
            assert [text.get_text() for text in axis.texts] == (["✓"] if expected == RIGHT else [])
            assert (axis.spines["left"].get_linestyle() == "solid") == (expected == RIGHT)
    right = sum(len(axis.texts) for axis in axes[:, 1:6].flat)
    assert axes[-1, 3].get_xlabel() == f"{right} of 60 are of the query's class"
    below = draw_retrieval({"baseline": x}, samples, below={"baseline": "of all"}).axes[-3].get_xlabel()
    assert below == f"{right} of 60 are of the query's class\nof all"
    figure.canvas.draw()
    left = [axis.get_position().x0 for axis in axes[0]]
    assert left[6] - left[5] > 1.2 * (left[5] - left[4])  # the models are set apart
    save_png(figure, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as image:
        assert np.array(image.convert("L")).std() > 5
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_a_grid_of_few_samples_has_no_more_neighbours_than_there_are():
    figure = draw_retrieval({"baseline": torch.eye(4)}, dataset_of([0, 0, 1, 1]))
    assert len(figure.axes) == 3 * 4  # of four samples, three queries at most differ


def test_the_map_is_seeded_and_keeps_classes_together():
    centres = torch.nn.functional.normalize(torch.randn(12, 16))
    labels = torch.arange(12).repeat_interleave(6)
    x = centres[labels] + 0.02 * torch.randn(72, 16)
    points = lay_out(x, seed=0)
    assert points.shape == (72, 2)
    assert np.array_equal(points, lay_out(x, seed=0))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(72)
    assert (labels.numpy()[distances.argmin(1)] == labels.numpy()).mean() > 0.95

    figure = draw_map(x, labels, [f"class {i}" for i in range(12)], "msdfa")
    others, *coloured = figure.axes[0].collections
    assert len(coloured) == MAP_CLASSES
    assert [len(points.get_offsets()) for points in coloured] == [6] * MAP_CLASSES
    assert len(others.get_offsets()) == 72 - 6 * MAP_CLASSES
    assert labels_of(figure) == [f"class {i}" for i in (0, 2, 3, 5, 6, 8, 9, 11)]
    assert figure.axes[0].get_title() == "msdfa"


def test_a_map_of_many_takes_some_and_one_of_few_takes_all(monkeypatch):
    seen = []
    monkeypatch.setattr("pml_s2sd.report.pictures.lay_out", lambda x, seed: seen.append(len(x)) or x[:, :2].numpy())
    labels = torch.arange(5000) // 50
    draw_map(torch.rand(5000, 4), labels, [str(i) for i in range(100)], "many")
    assert MAP_POINTS <= seen[0] <= MAP_POINTS + 50 * MAP_CLASSES
    monkeypatch.undo()
    for n in (2, 4, 5):
        assert np.isfinite(lay_out(torch.rand(n, 3), seed=1)).all()
    assert np.isfinite(lay_out(torch.rand(9, 1), seed=1)).all()


@pytest.mark.parametrize("name", ["_hidden", "$x^{", r"$\frac", "a\nb", "<b>&", "表情😀", "x" * 300])
def test_any_name_is_a_label(name):
    figure = draw_curves({"loss": {name: [{1: 1.0, 2: 2.0}]}})
    assert as_svg(figure).rstrip().endswith("</svg>")
    (label,) = labels_of(figure)
    assert len(label) <= 30
    assert label.strip().replace(r"\$", "$")[:3] == " ".join(name.split())[:3]


def test_an_svg_is_the_same_at_every_call():
    panels = {"loss": {"baseline": [{1: 1.0, 2: 2.0}, {1: 1.5, 2: 3.0}]}}
    assert as_svg(draw_curves(panels)) == as_svg(draw_curves(panels))


def test_a_kill_while_drawing_leaves_the_last_whole_file(tmp_path):
    path = tmp_path / "curves.png"
    save_png(Figure((1, 1)), path)
    whole = path.read_bytes()

    def killed(file, **options):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_png(SimpleNamespace(savefig=killed), path)
    assert path.read_bytes() == whole


def test_without_matplotlib_the_library_says_what_to_install():
    code = """
import sys
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
from pml_s2sd.report.pictures import draw_spectra
draw_spectra({"base": [[1.0]]})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == ("ImportError: pictures are drawn with matplotlib: pip install matplotlib")
