"""`compress`: its objective against a plain float64 transcription, what always holds, and bad input."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_synchronisation import HostReads

from pml_s2sd import _similarity_map as engine
from pml_s2sd import compress

FEW = {"steps": 20, "subset_rows": 64}


def rng(seed=0):
    return np.random.default_rng(seed)


def made(rows=200, columns=24, classes=20, seed=0):
    """Embeddings about class centres whose directions are used ever less, not normalised, and labels."""
    draw = rng(seed)
    labels = np.arange(rows) % classes
    scale = np.arange(1, columns + 1) ** -0.7
    rows_ = draw.normal(size=(classes, columns))[labels] + 0.7 * draw.normal(size=(rows, columns))
    return (rows_ * scale).astype(np.float32), labels


def plain_objective(W, x, e, labels, T, label_weight):
    """Σ_i KL( softmax_{j≠i}((e_i·e_j + λ[y_i = y_j ≠ -1]) / T) ‖ softmax_{j≠i}(cos(W x_i, W x_j) / T) ) · T²/n."""
    n = len(x)
    z, e = (
        v / np.sqrt(np.sum(v * v, axis=1, keepdims=True)) for v in (x.astype(np.float64) @ W.T, e.astype(np.float64))
    )
    total = 0.0
    for i in range(n):
        others = np.arange(n) != i
        bonus = 0.0 if labels is None else label_weight * (labels == labels[i])[others] * (labels[i] != -1)
        q = np.exp((e[others] @ e[i] + bonus) / T)
        p = np.exp(z[others] @ z[i] / T)
        q, p = q / q.sum(), p / p.sum()
        total += float(np.sum(q * (np.log(q) - np.log(p))))
    return T**2 * total / n


def weight_of(layer):
    return layer.weight.detach().double().cpu().numpy()


def value(layer, x, e, labels=None, T=0.05, label_weight=0.3):
    return plain_objective(weight_of(layer), x, e, labels, T, label_weight)


@pytest.mark.parametrize("labelled", [False, True])
def test_the_gradient_is_that_of_the_plain_objective(labelled):
    draw = rng(1)
    x, e, W = draw.normal(size=(12, 7)), draw.normal(size=(12, 5)), draw.normal(size=(3, 7))
    labels = draw.integers(-1, 3, size=12) if labelled else None
    y = None if labels is None else torch.from_numpy(labels)
    objective = engine.Objective(temperature=0.3, label_weight=0.4)
    unit = torch.nn.functional.normalize
    q = objective.teacher_probs([unit(torch.from_numpy(e))], y)
    found = objective.gradient(torch.from_numpy(W), torch.from_numpy(x), q)
    for place in np.ndindex(*W.shape):
        step = np.zeros_like(W)
        step[place] = 1e-6
        above, below = (plain_objective(W + s, x, e, labels, 0.3, 0.4) for s in (step, -step))
        assert found[place].item() == pytest.approx((above - below) / 2e-6, abs=1e-9)


def test_several_teachers_count_by_the_mean_of_their_kls():
    draw = rng(2)
    x, W = draw.normal(size=(10, 6)), draw.normal(size=(2, 6))
    teachers = [draw.normal(size=(10, k)) for k in (3, 8)]
    objective = engine.Objective(temperature=0.2, label_weight=0.0)
    q = objective.teacher_probs([torch.nn.functional.normalize(torch.from_numpy(e)) for e in teachers], None)
    found = objective.gradient(torch.from_numpy(W), torch.from_numpy(x), q)
    step = np.zeros_like(W)
    step[1, 2] = 1e-6
    above, below = (np.mean([plain_objective(W + s, x, e, None, 0.2, 0) for e in teachers]) for s in (step, -step))
    assert found[1, 2].item() == pytest.approx((above - below) / 2e-6, abs=1e-9)


def axes(x):
    """The principal directions of normalised rows, as columns, and the standard deviation along each."""
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    _, values, directions = np.linalg.svd(unit - unit.mean(0))
    return directions.T, values / np.sqrt(len(x))


def test_a_step_is_adams_along_the_gradient_by_the_root_of_the_deviation_along_each_axis():
    x, labels = made(rows=40)
    x = x.astype(np.float64)
    options = {"labels": labels, "learning_rate": 1e-2, "subset_rows": 40}
    before, after = (weight_of(compress(x, 4, steps=steps, **options)) for steps in (0, 1))
    directions, deviations = axes(x)
    pace = deviations * np.sum(deviations**2) / np.sum(deviations**3)
    eps, gradient = 1e-7, np.zeros((4, 24))  # with respect to W's parts along the axes
    for place in np.ndindex(4, 24):
        step = np.zeros((4, 24))
        step[place] = eps
        around = (before + s @ directions.T for s in (step, -step))
        above, below = (plain_objective(W, x, x, labels, 0.05, 0.3) for W in around)
        gradient[place] = (above - below) / (2 * eps)
    sure = np.abs(gradient * np.sqrt(pace)) > 1e-5  # Adam's first step is the sign, which is not known where nearly 0
    assert sure.mean() > 0.9
    wanted = -1e-2 * np.sign(gradient) * np.sqrt(pace)
    assert ((after - before) @ directions)[sure] == pytest.approx(wanted[sure], rel=1e-2)


@pytest.mark.parametrize("of_features", [False, True])
def test_without_steps_it_is_the_pca_of_what_is_mapped(of_features):
    x, _ = made()
    options = {"features": x} if of_features else {}
    W = weight_of(compress(x @ rng(3).normal(size=(24, 3)) if of_features else x, 5, steps=0, **options))
    directions, _ = axes(x)
    assert np.abs(np.sum(W * directions.T[:5], axis=1)) == pytest.approx(np.ones(5), abs=1e-5)
    assert np.linalg.norm(W, axis=1) == pytest.approx(np.ones(5), abs=1e-5)


def test_with_many_classes_it_starts_nearer_to_what_predicts_the_teacher_best():
    """Against the singular vectors of the two matrices, one above the other, and a regression by least squares."""
    x, labels = made(rows=300, classes=100)
    e = x @ rng(3).normal(size=(24, 6))
    W = weight_of(compress(e, 5, features=x, labels=labels, steps=0))
    unit, wanted = (m.astype(np.float64) / np.linalg.norm(m, axis=1, keepdims=True) for m in (x, e))
    directions, deviations = axes(x)
    whitened = (unit - unit.mean(0)) @ directions / deviations
    # ridge: |P t - e|² + r |P / σ|², the penalty as rows of its own
    penalty = np.diag(np.sqrt(len(x) * engine.RIDGE * np.mean(deviations**2)) / deviations)
    targets = np.concatenate([wanted - wanted.mean(0), np.zeros((24, 6))])
    P = np.linalg.lstsq(np.concatenate([whitened, penalty]), targets, rcond=None)[0].T
    own = np.sqrt(0.7 / np.sum(deviations**2)) * np.diag(deviations)  # 100² / (100² + 24²) is more than 0.3
    _, values, V = np.linalg.svd(np.concatenate([own, np.sqrt(0.3) * P / np.linalg.norm(P)]))
    expected = values[:5, None] * V[:5] / deviations @ directions.T
    expected *= np.sqrt(5) / np.linalg.norm(expected)
    signs = np.sign(np.sum(W * expected, axis=1, keepdims=True))
    assert W * signs == pytest.approx(expected, abs=1e-4)


def test_of_turned_images_nothing_is_learned_about_what_the_teacher_knows():
    """The axes are those of all rows; the regression, and the count of classes, of those it was trained on."""
    x, labels = made(rows=300, classes=100)
    turned = labels % 10 > 0  # 10 classes are left
    trust = 10**2 / (10**2 + 24**2)  # 100 classes would make it 0.3
    e = x @ rng(3).normal(size=(24, 6))
    e[turned] = rng(4).normal(size=(turned.sum(), 6))
    W = weight_of(compress(e, 5, features=x, labels=np.where(turned, labels + 2**59, labels), steps=0))
    unit, wanted = (m.astype(np.float64) / np.linalg.norm(m, axis=1, keepdims=True) for m in (x, e))
    directions, deviations = axes(x)
    covariance = np.cov(np.hstack([wanted, unit])[~turned].T, bias=True)[:6, 6:]
    P = covariance @ directions * deviations / (deviations**2 + engine.RIDGE * np.mean(deviations**2))
    of_both = (1 - trust) * np.diag(deviations**2) / np.sum(deviations**2) + trust * P.T @ P / np.sum(P**2)
    values, V = np.linalg.eigh(of_both)
    expected = (V * np.sqrt(values.clip(0))).T[::-1][:5] / deviations @ directions.T
    expected *= np.sqrt(5) / np.linalg.norm(expected)
    signs = np.sign(np.sum(W * expected, axis=1, keepdims=True))
    assert W * signs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("classes", "columns", "trust"), [(0, 8, 0.0), (10, 1280, 100 / 1638500), (3000, 1280, 0.3)])
def test_teachers_are_trusted_that_know_many_classes(classes, columns, trust):
    assert engine.trust_in_teachers(classes, columns) == pytest.approx(trust)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("size", [2, 4, 12])
def test_it_is_nearer_than_pca_in_its_own_objective(size, labelled):
    x, labels = made()
    labels = labels if labelled else None
    options = {"labels": labels, "subset_rows": 200}
    pca, trained = (compress(x, size, steps=steps, **options) for steps in (0, 100))
    assert value(trained, x, x, labels) < 0.9 * value(pca, x, x, labels)


def test_labels_bring_classes_together_also_those_that_were_not_seen():
    x, labels = made(rows=400, classes=20)
    known, unseen = labels < 10, labels >= 10

    def margin(layer, rows):
        """How much more similar rows of a class are than others, on average."""
        z = torch.nn.functional.normalize(layer(torch.from_numpy(x[rows]))).detach().numpy()
        same = labels[rows][:, None] == labels[rows]
        return (z @ z.T)[same].mean() - (z @ z.T)[~same].mean()

    plain, with_labels = (compress(x[known], 4, labels=y) for y in (None, labels[known]))
    assert margin(with_labels, known) > 1.1 * margin(plain, known)
    assert margin(with_labels, unseen) > margin(plain, unseen)


def test_the_same_seed_gives_the_same_map_and_another_one_another():
    x, _ = made()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (compress(x, 4, seed=seed, **FEW).weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    drawn = [compress(x, 4, seed=torch.Generator().manual_seed(9), **FEW).weight for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(state, torch.get_rng_state())


def test_a_generator_moves_on():
    x, _ = made()
    generator = torch.Generator().manual_seed(9)
    first, second = (compress(x, 4, seed=generator, **FEW).weight for _ in range(2))
    assert not torch.equal(first, second)


def test_several_sizes_are_each_as_alone():
    x, labels = made()
    several = compress(x, [3, 8], labels=labels, **FEW)
    assert list(several) == [3, 8]
    for size, layer in several.items():
        assert torch.equal(layer.weight, compress(x, size, labels=labels, **FEW).weight)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=60, max_size=60))
def test_the_length_of_rows_does_not_matter(scales):
    x, _ = made(rows=60)
    x = x.astype(np.float64)
    scaled = x * np.array(scales)[:, None]
    options = {"steps": 3, "subset_rows": 60}
    alone, of_scaled = (weight_of(compress(rows, 4, **options)) for rows in (x, scaled))
    assert of_scaled == pytest.approx(alone, abs=1e-6)


def test_arrays_files_and_tensors_of_any_precision_give_the_same_map(tmp_path):
    x = made()[0].astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "swapped.npy", x.astype(">f4"))
    wanted = compress(x, 4, **FEW).weight
    assert wanted.dtype == torch.float32
    readonly = x.copy()
    readonly.flags.writeable = False
    for same in (
        torch.from_numpy(x),
        x.astype(np.float32),
        readonly,
        np.asfortranarray(x),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        tmp_path / "x.npy",
        str(tmp_path / "x.npy"),
        tmp_path / "swapped.npy",
        torch.from_numpy(x).float().requires_grad_(),
    ):
        assert torch.equal(compress(same, 4, **FEW).weight, wanted)
    double = compress(x.astype(np.float64), 4, **FEW)
    assert double.weight.dtype == torch.float64
    assert weight_of(double) == pytest.approx(wanted.detach().numpy(), abs=1e-4)


def test_it_is_the_same_under_inference_mode_and_autocast():
    x, _ = made()
    wanted = compress(x, 4, **FEW).weight
    with torch.inference_mode():
        assert torch.equal(compress(x, 4, **FEW).weight, wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compress(x, 4, **FEW).weight, wanted)
    assert compress(torch.from_numpy(x), 4, **FEW).weight.requires_grad


@pytest.mark.parametrize(("classes", "rows"), [(1, 512), (41, 512), (459, 918), (1026, 2048), (10_000, 2048)])
def test_subsets_grow_with_the_number_of_classes(classes, rows):
    labels = torch.arange(2 * classes) // 2
    assert engine.subset_rows_for(labels) == engine.subset_rows_for(torch.cat([labels, torch.full((9,), -1)])) == rows
    assert engine.subset_rows_for(None) == engine.subset_rows_for(torch.full((5000,), -1)) == 512


def test_a_subset_holds_a_row_once_and_none_comes_again_before_all_have():
    plan = engine.subsets(None, 10, 3, 7, rng())
    assert plan.shape == (7, 3)
    assert all(len(set(rows)) == 3 for rows in plan.tolist())
    assert len(set(plan[:3].flatten())) == 9
    assert engine.subsets(None, 4, 9, 2, rng()).tolist() == [[0, 1, 2, 3]] * 2
    assert engine.subsets(np.array([7, 3, 5]), 10, 3, 2, rng()).tolist() == [[3, 5, 7]] * 2


@pytest.mark.parametrize("mapped", [False, True])
def test_only_the_rows_chosen_are_looked_at(mapped, tmp_path):
    x, labels = made()
    rows = np.arange(0, 200, 2)
    wanted = compress(x[rows], 4, labels=labels[rows], subset_rows=100, steps=20).weight
    spoilt = x.copy()
    spoilt[1::2] = np.nan
    np.save(tmp_path / "x.npy", spoilt)
    spoilt = tmp_path / "x.npy" if mapped else spoilt
    found = compress(spoilt, 4, labels=labels, rows=rows, subset_rows=100, steps=20).weight
    assert torch.equal(found, wanted)


def test_labels_that_say_nothing_change_nothing():
    x, _ = made()
    x = x.astype(np.float64)
    options = {"steps": 10, "subset_rows": 200}
    without = weight_of(compress(x, 4, **options))
    for labels in (np.zeros(200, int), np.arange(200), np.full(200, -1)):  # one class, all apart, none known
        assert weight_of(compress(x, 4, labels=labels, **options)) == pytest.approx(without, abs=1e-7)


def test_rows_of_zeros_are_passed_over():
    x, labels = made()
    x = x.astype(np.float64)
    with_zeros = np.concatenate([x, np.zeros((3, 24))])
    layer = compress(with_zeros, 4, labels=[*labels, 0, 1, -1], subset_rows=203, steps=20)
    assert torch.isfinite(layer.weight).all()
    assert value(layer, x, x) < value(compress(x, 4, steps=0), x, x)


def test_duplicates_and_few_rows_are_no_trouble():
    x, _ = made(rows=10)
    for rows in (x, np.repeat(x, 20, axis=0), np.repeat(x[:1], 30, axis=0), x[:2]):  # 24 dimensions
        weight = compress(rows, 4, **FEW).weight
        assert torch.isfinite(weight).all()
        assert torch.linalg.matrix_rank(weight) == 4


def test_the_full_size_keeps_all_similarities():
    x, _ = made()
    z = torch.nn.functional.normalize(compress(x, 24)(torch.from_numpy(x)))
    unit = torch.nn.functional.normalize(torch.from_numpy(x))
    assert (z @ z.T).detach() == pytest.approx(unit @ unit.T, abs=5e-3)


GOOD = made(rows=6, columns=4)[0]


def with_nan():
    broken = GOOD.copy()
    broken[4, 1] = np.nan
    return broken


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((GOOD, 5), ValueError, "size must be at most 4"),
        ((GOOD, 0), ValueError, "size must be at least 1"),
        ((GOOD, 2.0), TypeError, "size must be an int"),
        ((GOOD, []), ValueError, "at least one size"),
        ((GOOD[:1], 2), ValueError, "give at least 2"),
        ((GOOD[:0], 2), ValueError, r"got \(0, 4\)"),
        ((GOOD[0], 2), ValueError, r"shape \(N, k\).*got \(4,\)"),
        ((GOOD.astype(int), 2), TypeError, "floating-point dtype, got int"),
        ((GOOD.tolist(), 2), TypeError, "tensor or array"),
        ((with_nan(), 2), ValueError, "row 4 among them"),
        ((torch.from_numpy(with_nan()), 2), ValueError, "row 4 among them"),
        ((with_nan().astype(np.float16), 2), ValueError, "row 4 among them"),
        ((np.where(np.isnan(with_nan()), np.inf, GOOD), 2), ValueError, "row 4 among them"),
        ((GOOD * 0, 2), ValueError, "all rows of embeddings are zero"),
    ],
)
def test_bad_embeddings_and_sizes_are_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        compress(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"labels": [0, 1]}, ValueError, r"shape \(6,\), one for each row, got \(2,\)"),
        ({"labels": np.zeros((6, 1), int)}, ValueError, r"got \(6, 1\)"),
        ({"labels": np.zeros(6)}, TypeError, "labels must be integers, got float64"),
        ({"labels": ["a"] * 6}, TypeError, "labels must be integers"),
        ({"features": GOOD[:5]}, ValueError, "features has 5 rows and embeddings 6"),
        ({"features": GOOD[:, :1]}, ValueError, "size must be at most 1"),
        ({"features": with_nan()}, ValueError, "features has rows that are NaN or infinite, row 4"),
        ({"temperature": 0}, ValueError, "temperature must be above 0"),
        ({"label_weight": -1}, ValueError, "label_weight must be at least 0"),
        ({"subset_rows": 1}, ValueError, "subset_rows must be at least 2"),
        ({"steps": -1}, ValueError, "steps must be at least 0"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be finite"),
        ({"rows": [0, 1]}, TypeError, "rows must be an array of integers"),
        ({"rows": np.array([0])}, ValueError, "at least 2 numbers of 0 to 5"),
        ({"rows": np.array([0, 6])}, ValueError, "at least 2 numbers of 0 to 5"),
        ({"seed": 1.5}, TypeError, "seed must be an int"),
        ({"device": "nowhere"}, ValueError, "cannot use the device 'nowhere'"),
    ],
)
def test_bad_options_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        compress(GOOD, 2, **options)


def test_nan_in_a_mapped_file_is_found_where_it_is_read(tmp_path):
    np.save(tmp_path / "x.npy", with_nan())
    with pytest.raises(ValueError, match="row 4 among them"):
        compress(tmp_path / "x.npy", 2)


def test_a_file_cut_short_or_absent_is_named(tmp_path):
    np.save(tmp_path / "x.npy", GOOD)
    whole = (tmp_path / "x.npy").read_bytes()
    for kept in (len(whole) - 8, 20, 0):
        (tmp_path / "x.npy").write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=rf"cannot read embeddings from .*x.npy \({kept} bytes\)"):
            compress(tmp_path / "x.npy", 2)
    with pytest.raises(FileNotFoundError, match="no file"):
        compress(tmp_path / "none.npy", 2)


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["tensor", "array"])
def test_on_a_gpu_it_is_the_cpus_map(where):
    x, labels = made()
    wanted = compress(x, 4, labels=labels, **FEW).weight
    if where == "tensor":
        found = compress(torch.from_numpy(x).cuda(), 4, labels=labels, **FEW).weight
    else:
        found = compress(x, 4, labels=labels, device="cuda", **FEW).weight
    assert found.device.type == "cuda"
    assert torch.allclose(found.cpu(), wanted, atol=1e-3)


def test_a_step_reads_nothing_on_the_host():
    x, labels = (torch.from_numpy(of) for of in made())
    rows = engine.Rows("embeddings", x, x.device, torch.float32)
    objective, weight, subset = engine.Objective(0.05, 0.3), torch.eye(24)[:4].contiguous(), torch.arange(0, 200, 3)
    with HostReads() as mode:
        x_S = rows.take(subset)
        objective.gradient(weight, x_S, objective.teacher_probs([x_S], labels[subset]))
    assert mode.seen == []


@pytest.mark.slow
def test_the_pages_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "compress.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names = {}
    for block in blocks:
        if "SentenceTransformer" not in block:  # that one: test_compress_sentences.py
            exec(block, names)
    assert names["small"].shape == (2000, 32)
    assert {size: layer.out_features for size, layer in names["of_sizes"].items()} == {8: 8, 16: 16}
    assert names["of_features"].in_features == 128
    in_files = np.concatenate([np.load(path, mmap_mode="r") for path in names["small_files"]])
    assert (in_files.shape, in_files.dtype) == ((2000, 32), np.float16)
    assert names["rows"][:, 0].tolist() == [0, 1, 2, 3, 4]
