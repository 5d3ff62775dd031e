"""The study's rows, tables and alternatives; its runs need weights that are not installed with the tests."""

import argparse
import functools
import json

import numpy as np
import pytest
import torch
from few_features import FewFeatures
from pytorch_metric_learning import losses
from scipy import special, stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from study import compress_tables, cuts, epochs, recipe_tried, tables
from study.compress_bits import map_for_signs
from study.cuts import CUTS, ITSELF, SIZES, WITH_LABELS, WITH_TURNED, Trained
from study.found import RECALL, RIVALS, Case, Found, over_objectives
from study.pretrained import VIEWS
from study.questions import COMPARED, CONVERGED, QUESTIONS, SEEDS, Training
from study.study import (
    BEGIN,
    COMPRESS_PAGE,
    END,
    PAGE,
    PUBLISHED,
    TABLES,
    TRIED,
    missing,
    read,
    tables_page,
    written_between,
)
from study.training import OBJECTIVES, Matryoshka, on_device, retrieval
from study.ways import RECIPES, TAUGHT, WAYS

from pml_s2sd import compress
from pml_s2sd.embedder import Embedder, S2SDEmbedder


def result(recall, seed, *, size=32, trained=None, cut=ITSELF, way="baseline", objective="supcon", training="tuned 5"):
    model = Training(training, objective, way, trained or size, seed)
    figures = {"precision_at_1": recall, "mean_average_precision_at_r": recall / 2, "device": "CPU", "torch": "2"}
    return {**model._asdict(), "cut": cut, "size": size, **figures}


def results(recalls, **case):
    return [result(recall, seed, **case) for seed, recall in enumerate(recalls)]


def cells(text):
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def half(*differences):
    return stats.t.interval(0.95, len(differences) - 1, loc=0, scale=stats.sem(differences))[1]


def test_every_way_and_cut_of_every_question_exists():
    wanted = [wanted for question in QUESTIONS.values() for wanted in question.wanted(SEEDS)]
    assert {model.way for model, _ in wanted} | set(RECIPES | TAUGHT) == set(WAYS)  # recipe_tried.py measures these
    assert {cut for _, cut in wanted} == set(CUTS)
    assert len({model.objective for model, _ in wanted}) == len(COMPARED) == 7


def test_what_is_published_was_asked_for():
    wanted = {(*model, cut) for question in QUESTIONS.values() for model, cut in question.wanted(SEEDS)}
    there = {tuple(record[name] for name in (*Training._fields, "cut")) for record in read(PUBLISHED)}
    assert there <= wanted


def test_a_result_that_is_there_is_not_measured_again():
    def chosen(**more):
        given = {"questions": ["cuts"], "trainings": None, "objectives": ["supcon"], "sizes": None, "seeds": [0, 1]}
        return argparse.Namespace(**{**given, **more})

    pca = result(40.0, 0, size=32, trained=1024, cut="PCA", training="frozen 10")
    found = missing(chosen(), [pca])
    every = list(QUESTIONS["cuts"].cuts)
    assert found[Training("frozen 10", "supcon", "baseline", 1024, 0)] == [cut for cut in every if cut != "PCA"]
    assert found[Training("frozen 10", "supcon", "baseline", 1024, 1)] == every
    sizes = missing(chosen(questions=["sizes"], sizes=[64]), [])
    assert {model.trained for model in sizes} == {64}
    assert "photos 10" not in {model.training for model in sizes}
    assert not missing(chosen(questions=["sizes of icons"]), [])  # not in this repository: asked for alone
    assert missing(chosen(questions=["sizes of icons"], trainings=["icons 5"]), [])
    assert {m.training for m in missing(chosen(questions=["sizes"], trainings=["photos 10"]), [])} == {"photos 10"}


def test_s2sd_at_32_is_set_beside_its_rivals_paired_by_seed():
    records = results([40.0, 41.0, 42.0]) + results([43.0, 43.0, 43.0], size=64)
    records += results([42.0, 44.0, 46.0, 99.0], trained=1024, cut=WITH_TURNED)
    rows = cells(tables.tables(records))
    same, twice = f"+3.0 ± {half(2, 3, 4):.1f}", f"+1.0 ± {half(-1, 1, 3):.1f}"
    assert ["tuned 5", f"{same}, 1 of 1", f"{twice}, 1 of 1", "", "", ""] in rows
    of_map = f"+1.5 ± {half(1, 1.5, 2):.1f}"
    (row,) = (row for row in rows if row[0] == "supcon" and len(row) == 9)
    assert row[1:4] == ["41.0 / 20.5", "57.8 / 28.9", f"{same} / {of_map}"]
    assert row[-1] == "3"


def test_at_a_glance_both_metrics_stand_in_a_cell():
    records = results([40.0, 41.0]) + results([42.0, 44.0], trained=1024, cut=WITH_TURNED)
    rows = cells(tables.at_a_glance(Found.of(records)))
    assert rows[1:] == [["tuned 5", "1", f"+2.5 ± {half(2, 3):.1f} / +1.2 ± {half(1, 1.5):.1f}", "", "", ""]]


def test_the_mean_over_objectives_is_taken_seed_by_seed():
    records = results([40.0, 41.0, 42.0]) + results([42.0, 42.0, 42.0], trained=1024, cut=WITH_TURNED)
    records += results([40.0, 40.0], objective="margin")
    records += results([39.0, 36.0], objective="margin", trained=1024, cut=WITH_TURNED)
    by_seed, by_objective = over_objectives(Found.of(records), "tuned 5", RIVALS[0])
    assert by_seed == {0: (2 - 1) / 2, 1: (1 - 4) / 2}  # seed 2 is not there for both
    assert by_objective == [-2.5, 1.0]  # margin, supcon


def test_of_what_was_measured_twice_the_first_counts():
    found = Found.of([result(40.0, 0), result(50.0, 0), result(60.0, 1)])
    case = Case("tuned 5", "supcon", "baseline", 32, ITSELF, 32)
    assert found[case][RECALL] == {0: 40.0, 1: 60.0}
    assert found.pairs(case, case._replace(size=64)) == {}


def test_ways_are_set_beside_the_baseline():
    records = results([40.0, 41.0], objective="multisimilarity")
    records += results([39.0, 41.0], objective="multisimilarity", way="MSD")
    rows = cells(tables.tables(records))
    line = ["tuned 5", "multisimilarity", "32"]
    assert [*line, "baseline", "40.5 / 20.2", "", "2"] in rows
    assert [*line, "MSD", "40.0 / 20.0", f"-0.5 ± {half(-1, 0):.1f} / -0.2 ± {half(-0.5, 0):.1f}", "2"] in rows


def test_matryoshka_is_the_sum_over_prefixes():
    torch.manual_seed(0)
    z, labels = torch.randn(12, 8, dtype=torch.float64), torch.arange(12) // 2
    loss = Matryoshka("contrastive", 6, prefixes=(2, 8))
    alone = losses.ContrastiveLoss(pos_margin=0, neg_margin=1)
    torch.testing.assert_close(loss(z, labels), alone(z[:, :2], labels) + alone(z, labels))


@pytest.mark.parametrize("cut", ["PCA", "PCA whitened", "LDA"])
def test_axes_are_those_of_scikit_learn(cut):
    setting = FewFeatures(20, max(SIZES))
    embedder = Embedder(max(SIZES), 64)
    trained = Trained(torch.nn.Sequential(torch.nn.Identity(), embedder), setting, seed=0)
    with torch.no_grad():
        both = (setting.train.flatten(0, 1), setting.test)
        x, test = (torch.nn.functional.normalize(embedder(y)).double().numpy() for y in both)
    if cut == "LDA":
        found = LinearDiscriminantAnalysis(solver="eigen", shrinkage=cuts.SHRINKAGE)
        axes = found.fit(x, setting.train_labels.repeat(VIEWS).numpy()).transform(test)
        assert axes.shape[1] == 9  # of ten classes
    else:
        _, deviations, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
        axes = (test - x.mean(axis=0)) @ axes.T / (deviations if cut == "PCA whitened" else 1)
    figures = dict(CUTS[cut](trained))
    for size in figures:
        assert figures[size] == pytest.approx(retrieval(torch.from_numpy(axes[:, :size]).float(), setting.test_labels))
    assert [*figures] == [size for size in SIZES if size <= axes.shape[1]]


def test_supcon_is_ntxent_where_each_sample_has_one_positive():
    """Why the study leaves NTXent out: with two samples a class it would be measured twice."""
    torch.manual_seed(0)
    z, labels = torch.randn(12, 8, dtype=torch.float64), torch.arange(12) // 2
    values = [OBJECTIVES[name](8, 6)[0](z, labels).item() for name in ("ntxent", "supcon")]
    np.testing.assert_allclose(*values, rtol=1e-9)


def test_the_tables_of_the_docs_are_those_of_the_published_results():
    records = read(PUBLISHED)
    assert TABLES.read_text() == tables_page(records)
    assert PAGE.read_text() == written_between(PAGE, BEGIN, END, tables.at_a_glance(Found.of(records)))
    text = compress_tables.tables(records) + "\n\n## What was tried\n\n" + compress_tables.tried(read(TRIED))
    assert COMPRESS_PAGE.read_text() == written_between(COMPRESS_PAGE, BEGIN, END, text)


def test_retrieval_on_a_device_is_that_of_the_calculator():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 20, (90,), generator=generator)
    labels[-1] = 99  # nobody else's class: no query
    z = torch.nn.functional.normalize(torch.randn(90, 6, generator=generator))
    here = {metric: round(100 * value, 3) for metric, value in on_device(z, labels).items()}
    assert here == pytest.approx(retrieval(z, labels), abs=1e-3)


def test_compress_is_counted_against_pca_and_against_training():
    text = compress_tables.tables(
        results([40.0, 42.0], size=64)
        + results([41.0, 41.0], trained=1024, cut="PCA")
        + results([42.0, 43.0], trained=1024, cut="compressed with labels")
    )
    recall, of_map = f"+1.5 ± {half(2, 1):.1f}", f"+0.8 ± {half(1, 0.5):.1f}"
    lines = cells(text)
    assert ["tuned 5", "supcon", recall, of_map, "", ""] in lines
    assert ["tuned 5", "compressed with labels", "trained at 64, from 32", "1", *2 * ["1", "0", "0"]] in lines
    assert ["supcon", "32", "41.0 / 20.5", "", "", f"{recall} / {of_map}", ""] in lines


def test_consolidation_is_the_large_space_compressed_with_labels(monkeypatch):
    """Why every table has the one for the other."""
    for name in ("compress", "consolidate"):
        monkeypatch.setattr(cuts, name, functools.partial(getattr(cuts, name), steps=20))
    torch.manual_seed(0)
    base = S2SDEmbedder(max(SIZES), 32, (128,), aux_head="linear")
    large = Embedder(max(SIZES), 128, base.aux_heads[0])
    ours, theirs = (
        Trained(torch.nn.Sequential(torch.nn.Identity(), x), FewFeatures(20, max(SIZES)), seed=0) for x in (base, large)
    )

    def figures(cut, of):
        return {size: (f["precision_at_1"], f["mean_average_precision_at_r"]) for size, f in CUTS[cut](of)}

    assert figures("consolidated", ours) == figures(WITH_LABELS, theirs)
    assert figures("consolidated, turned images", ours) == figures(WITH_TURNED, theirs) != figures(WITH_LABELS, theirs)
    assert figures("labels alone", ours) == figures("labels alone", theirs) != figures(WITH_TURNED, theirs)


@pytest.mark.slow
def test_a_map_for_signs_keeps_more_similarities_after_rounding_than_one_that_is_rounded_afterwards():
    draw = np.random.default_rng(0)
    labels = np.arange(400) % 80
    e = draw.normal(size=(80, 24))[labels] + 0.7 * draw.normal(size=(400, 24))
    e = (e / np.linalg.norm(e, axis=1, keepdims=True)).astype(np.float32)

    def divergence(W, bits=16):
        z = e @ W.T
        D = (z / np.linalg.norm(z, axis=1, keepdims=True)) @ (np.sign(z) / bits**0.5).T
        wanted = e @ e.T + 0.3 * (labels[:, None] == labels)
        rest = ~np.eye(400, dtype=bool)
        p, q = (special.softmax(x[rest].reshape(400, 399) / 0.05, axis=1) for x in (D, wanted))
        return (q * np.log(q / p)).sum(axis=1).mean()

    rounded_afterwards = compress(e, 16, labels=labels, seed=0).weight.detach().numpy()
    arguments = torch.from_numpy(e), torch.from_numpy(labels), 16, 0
    assert divergence(map_for_signs(*arguments, both=False).numpy()) < 0.9 * divergence(rounded_afterwards)


def test_what_was_tried_for_the_recipe_is_a_line_a_way_with_the_means_of_its_seeds():
    def record(seed, recall, way="S2SD", **more):
        figures = {"precision_at_1": recall, "mean_average_precision_at_r": recall / 2}
        return {"training": "tuned 5", "objective": "arcface", "way": way, "seed": seed, "as trained": figures, **more}

    after = {"consolidated": {"precision_at_1": 60.0, "mean_average_precision_at_r": 40.0}}
    records = [record(100, 50.0, **after), record(101, 52.0)]
    records += [record(100, 45.0, "baseline"), record(100, 47.0, "baseline", size=64)]
    text = recipe_tried.table(records)
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]] == [
        ["tuned 5", "arcface", "32", "S2SD", "2", "51.0 / 25.5", "60.0 / 40.0"],
        ["tuned 5", "arcface", "32", "baseline", "1", "45.0 / 22.5", ""],
        ["tuned 5", "arcface", "64", "baseline", "1", "47.0 / 23.5", ""],
    ]
    assert {json.loads(line)["way"] for line in recipe_tried.RESULTS.read_text().splitlines()} <= (
        RECIPES | TAUGHT
    ).keys()


def test_epochs_are_those_that_were_best_on_held_out_classes():
    def record(epochs, value, seed=100, way="baseline", objective="multisimilarity"):
        state = "consolidated" if way == "S2SD" else "as trained"
        figures = {state: {"mean_average_precision_at_r": value}}
        return {"training": f"tuned {epochs}", "objective": objective, "way": way, "seed": seed, **figures}

    records = [record(5, 20.0), record(15, 24.0), record(30, 22.0), record(30, 99.0, seed=101)]  # 101 has no others
    records += [record(e, 50.0 - e, way="S2SD") for e in (5, 15, 30)] + [record(30, 99.0, objective="margin")]
    assert epochs.held_out(records)["tuned", "baseline", 32] == {5: 20.0, 15: 24.0, 30: 22.0}
    assert epochs.best(records) == {"tuned": {("baseline", 32): 15, ("S2SD", 32): 5}}
    found = epochs.best(epochs.tried())
    ways = {32: ("baseline", 32), 64: ("baseline", 64), 1024: ("S2SD", 32)}
    for setting, by_size in CONVERGED.items():
        assert by_size == {size: found[setting][way] for size, way in ways.items() if way in found[setting]}
