"""The study's rows, tables and alternatives; its runs need weights that are not installed with the tests."""

import json
import re

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from scipy import special, stats
from study import compress_tables
from study.compress_bits import map_for_signs
from study.questions import COMPARED, QUESTIONS, Row
from study.study import PUBLISHED, made_by, read
from study.tables import Found, compare, gain, tables
from study.training import OBJECTIVES, Matryoshka, on_device, retrieval
from study.ways import WAYS

from pml_s2sd import compress


def record(way, seed, recall, setting="frozen", objective="margin", size=32, **more):
    row = Row(setting, objective, size, way, seed)
    figures = {"precision_at_1": recall, "mean_average_precision_at_r": recall / 2, "train_seconds": 1.0 + seed}
    return row, {**made_by(row), **figures, **more}


def found(*records):
    return Found(dict(records))


def cells(text):
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_way_of_every_question_exists_and_no_two_rows_share_a_file():
    rows = {row for question in QUESTIONS.values() for row in question.rows(range(5))}
    assert {row.way for row in rows} <= set(WAYS)
    assert len({row.file for row in rows}) == len(rows)
    assert len({row.objective for row in rows}) == len(COMPARED) == 7


def test_a_table_is_means_deviations_and_paired_intervals():
    records = [record("baseline", seed, 40.0 + seed) for seed in range(3)]
    records += [record("auto", seed, 42.0 + 2 * seed, train_seconds=3.0) for seed in range(3)]
    text = tables(found(*records))
    baseline, auto = (
        line for line in cells(text) if line[:3] in (["margin", "32", "baseline"], ["margin", "32", "auto"])
    )
    half = stats.t.interval(0.95, 2, loc=3, scale=1 / 3**0.5)[1] - 3  # differences 2, 3, 4
    assert baseline[3:5] == ["3", "41.0 ± 1.0"]
    assert auto[4:6] == ["44.0 ± 2.0", f"+3.0 ± {half:.1f}"]
    assert auto[-1] == "1.5"  # the median of 3/1, 3/2, 3/3
    assert ["frozen", "1", "3", "+3.0", "+3.0 ± 1.0 (margin)"] in cells(text)


def test_the_gain_is_of_the_seeds_that_both_have():
    assert gain({0: 1.0, 1: 5.0}, {1: 6.0, 2: 100.0}) == "+1.0"
    assert gain({0: 1.0}, {1: 6.0}) == ""


def test_s2sd_at_d_is_set_beside_the_baseline_at_twice_d():
    records = [record("auto", seed, 45.0 + seed, objective="contrastive", size=8) for seed in range(2)]
    records += [record("baseline", seed, 44.0 + seed, objective="contrastive", size=16) for seed in range(2)]
    assert ["frozen", "contrastive", "8", "45.5 ± 0.7", "44.5 ± 0.7", "+1.0 ± 0.0"] in cells(tables(found(*records)))


def test_a_run_made_in_another_way_is_not_taken_for_this_one():
    row, made = record("auto", 0, 41.0)
    assert list(read([json.dumps(made)])) == [row]
    assert read([json.dumps({**made, "epochs": 99})]) == {}
    assert read([json.dumps({**made, "made": {**made["made"], "ratio": 0.1}})]) == {}


def test_rows_are_compared_with_the_published_ones():
    published = found(*(record("auto", seed, 40.0 + seed) for seed in range(3)))
    assert cells(compare(found(record("auto", 0, 41.9)), published))[-1][-3:] == ["41.9", "41.0 ± 1.0", "yes"]
    assert cells(compare(found(record("auto", 0, 42.1)), published))[-1][-1] == "no"


def test_matryoshka_is_the_sum_over_prefixes():
    torch.manual_seed(0)
    z, labels = torch.randn(12, 8, dtype=torch.float64), torch.arange(12) // 2
    loss = Matryoshka("contrastive", 6, prefixes=(2, 8))
    alone = losses.ContrastiveLoss(pos_margin=0, neg_margin=1)
    torch.testing.assert_close(loss(z, labels), alone(z[:, :2], labels) + alone(z, labels))


def test_supcon_is_ntxent_where_each_sample_has_one_positive():
    """Why the study leaves NTXent out: with two samples a class it would be measured twice."""
    torch.manual_seed(0)
    z, labels = torch.randn(12, 8, dtype=torch.float64), torch.arange(12) // 2
    values = [OBJECTIVES[name](8, 6)[0](z, labels).item() for name in ("ntxent", "supcon")]
    np.testing.assert_allclose(*values, rtol=1e-9)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="nothing is published")
def test_the_tables_of_the_docs_are_those_of_the_published_runs():
    published = Found(read(PUBLISHED.read_text().splitlines()))
    docs = (PUBLISHED.parents[2] / "docs" / "study.md").read_text()
    for table in re.split(r"\n\n(?=###)", tables(published)):
        assert table in docs, table.splitlines()[0]


def test_retrieval_on_a_device_is_that_of_the_calculator():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 20, (90,), generator=generator)
    labels[-1] = 99  # nobody else's class: no query
    z = torch.nn.functional.normalize(torch.randn(90, 6, generator=generator))
    here = {metric: round(100 * value, 3) for metric, value in on_device(z, labels).items()}
    assert here == pytest.approx(retrieval(z, labels), abs=1e-3)


def test_compress_is_counted_against_pca_and_against_training():
    def results(way, trained, size, recalls):
        common = {"training": "tuned 5", "objective": "supcon", "trained": trained, "way": way, "size": size}
        figures = {"device": "CPU", "torch": "2"}
        return [
            {**common, **figures, "seed": seed, "precision_at_1": r, "mean_average_precision_at_r": r - 20}
            for seed, r in enumerate(recalls)
        ]

    text = compress_tables.tables(
        results("trained", 64, 64, [40.0, 42.0])
        + results("PCA", 1024, 32, [41.0, 41.0])
        + results("compressed with labels", 1024, 32, [42.0, 43.0])
    )
    half = stats.t.ppf(0.975, 1) * 0.5**0.5 / 2**0.5  # differences 2 and 1
    lines = cells(text)
    assert ["tuned 5", "supcon", *2 * [f"+1.5 ± {half:.1f}"], "", ""] in lines
    assert ["tuned 5", "compressed with labels", "trained at 64, from 32", "1", *2 * ["1", "0", "0"]] in lines
    assert ["supcon", "32", "41.0 / 21.0", "", "", f"+1.5 ± {half:.1f} / +1.5 ± {half:.1f}", ""] in lines


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
