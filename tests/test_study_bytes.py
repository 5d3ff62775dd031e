"""The study's embeddings in codes, and its tables by bytes, of embeddings and results made up here."""

import functools

import faiss
import numpy as np
import pytest
import torch
from few_features import FewFeatures
from scipy import stats
from study import byte_tables, cuts
from study.coded import CODED_SIZES, CODES, FACTORIES, coded_cut, figures
from study.cuts import CUTS, ITSELF, WITH_LABELS, WITH_TURNED, Trained
from study.found import MAP, RECALL, recommended
from study.questions import CLOSER, LARGE, QUESTIONS, SEEDS, Training
from study.training import retrieval

from pml_s2sd.embedder import Embedder


def made(rows, columns=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % (rows // 5)
    x = torch.randn(rows // 5, columns, generator=generator)[labels]
    return torch.nn.functional.normalize(x + torch.randn(rows, columns, generator=generator)), labels


def test_what_is_stored_as_float32_finds_what_the_study_finds_and_every_code_takes_its_bytes():
    (train, _), (test, labels) = made(600), made(60, seed=1)
    exact = retrieval(test, labels)
    found = {code: figures((train, test), labels, code) for code in CODES}
    assert {metric: found["float32"][metric] for metric in exact} == pytest.approx(exact, abs=1e-3)
    assert found["int8"][MAP] == pytest.approx(exact[MAP], abs=3)
    assert {code: of["bytes"] for code, of in found.items()} == {
        "float32": 64,
        "float16": 32,
        "int8": 16,
        "1 bit": 2,
        "PQ, 4 a byte": 4,
        "PQ, 8 a byte": 2,
    }


def test_one_bit_is_a_sign_of_each_dimension_after_a_rotation():
    """A rotation's signs are at equal distance from 0, and their cosine with a normal vector is √(2/π)."""
    x = made(1000, columns=64)[0].numpy()
    index = faiss.index_factory(64, FACTORIES["1 bit"](64))
    index.train(x)
    decoded = index.sa_decode(index.sa_encode(x))
    lengths = np.linalg.norm(decoded, axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-4)
    cosines = (x * decoded).sum(axis=1) / lengths
    assert cosines.mean() == pytest.approx((2 / np.pi) ** 0.5, abs=0.01)
    assert len(np.unique(np.abs(decoded[0]).round(3))) > 10  # of the rotation, not of the dimensions as they are


def test_a_cut_in_codes_is_that_cut_and_its_maps_are_trained_once(monkeypatch):
    trained = []
    compress = functools.partial(cuts.compress, steps=5)
    monkeypatch.setattr(cuts, "compress", lambda e, sizes, **more: trained.append(sizes) or compress(e, sizes, **more))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Identity(), Embedder(max(CODED_SIZES), 160))
    together = Trained(model, FewFeatures(40, max(CODED_SIZES)), seed=0)

    def of(cut, model):
        return {size: (f[RECALL], f[MAP]) for size, f in CUTS[cut](model) if size in CODED_SIZES}

    for cut in ("PCA", WITH_LABELS, WITH_TURNED):
        plain, coded = of(cut, together), of(coded_cut(cut, "float32"), together)
        of(coded_cut(cut, "int8"), together)
        assert {size: coded[size] for size in plain} == {size: pytest.approx(plain[size], abs=2e-3) for size in plain}
        assert set(coded) == set(CODED_SIZES)
        assert of(coded_cut(cut, "float32"), Trained(model, FewFeatures(40, max(CODED_SIZES)), seed=0)) == coded
    assert trained == 2 * [[8, 16, 32, 64], [128], [16, 32, 64, 128]]  # plain; what is missing of it; the other model


def test_what_the_tables_compare_was_asked_for():
    wanted = {(*model, cut) for question in QUESTIONS.values() for model, cut in question.wanted(SEEDS)}
    for training, objectives in CLOSER.items():
        for objective in objectives:
            for size in CODED_SIZES:
                ours = recommended(training, objective, size)
                for code in CODES:
                    for cut in (ours.cut, "PCA"):
                        assert (*Training(training, objective, "baseline", LARGE, 0), coded_cut(cut, code)) in wanted
                    assert (*Training(training, objective, "baseline", size, 0), code) in wanted


def record(recall, seed, size, code, in_bytes, *, cut=ITSELF, trained=None, objective="supcon"):
    model = Training("tuned 5", objective, "baseline", trained or size, seed)
    return {
        **model._asdict(),
        "cut": coded_cut(cut, code),
        "size": size,
        "precision_at_1": recall,
        "mean_average_precision_at_r": recall / 2,
        "bytes": in_bytes,
    }


def stored(recalls, size, code, in_bytes, **more):
    return [record(recall, seed, size, code, in_bytes, **more) for seed, recall in enumerate(recalls)]


RECORDS = [
    *stored([50.0, 52.0, 54.0], 32, "float32", 128),
    *stored([49.98, 51.98, 53.98], 32, "int8", 32),
    *stored([40.0, 41.0, 42.0], 32, "PQ, 4 a byte", 8),
    *stored([43.0, 45.0, 44.0], 32, "PQ, 4 a byte", 8, cut=WITH_TURNED, trained=LARGE),
    *stored([53.0, 53.0, 56.0], 64, "PQ, 4 a byte", 16, cut=WITH_TURNED, trained=LARGE),
]


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def half(*values):
    return stats.t.interval(0.95, len(values) - 1, loc=0, scale=stats.sem(values))[1]


def test_the_best_of_each_way_that_fits_is_set_beside_ours_paired_by_seed():
    recall = {row[0]: row for row in rows_of(byte_tables.tables(RECORDS).split("MAP@R")[0]) if len(row) == 8}
    assert recall["8"][1:3] == [
        f"32 as PQ, 4 a byte: 44.0 ± {half(43, 45, 44):.1f}",
        f"32 as PQ, 4 a byte: 41.0 ± {half(40, 41, 42):.1f}",
    ]
    assert recall["4"][1:] == [""] * 7
    assert recall["8"][5] == f"+3.0 ± {half(3, 4, 2):.1f}"
    assert recall["128"][2] == f"32 as int8: 52.0 ± {half(50, 52, 54):.1f}"  # as good as float32, and smaller
    assert recall["128"][1] == recall["16"][1] == f"64 as PQ, 4 a byte: 54.0 ± {half(53, 53, 56):.1f}"
    assert recall["16"][5] == f"+13.0 ± {half(13, 12, 14):.1f}"


def test_the_smallest_index_for_a_recall_is_that_of_the_fewest_bytes_that_reaches_it():
    (row,) = (row for row in rows_of(byte_tables.tables(RECORDS)) if row[:2] == ["32, 128 bytes", "52.0"])
    assert row[2:] == ["16: 64 as PQ, 4 a byte", "32: 32 as int8", "", "", "2.0"]


def test_the_mean_over_objectives_is_of_the_seeds_that_all_have():
    others = [{**one, "objective": "margin", RECALL: one[RECALL] + 2} for one in RECORDS if one["seed"] < 2]
    ways = byte_tables.ways_of([*RECORDS, *others], "tuned 5")
    (one,) = (one for one in ways["baseline"] if one.code == "float32")
    assert one.figures[RECALL] == {0: 51.0, 1: 53.0}
    alone = stored([70.0, 70.0, 70.0], 64, "float32", 256)  # of one objective only
    assert byte_tables.ways_of([*RECORDS, *others, *alone], "tuned 5") == ways


def test_nothing_is_written_where_nothing_was_stored():
    assert byte_tables.tables([{name: one[name] for name in one if name != "bytes"} for one in RECORDS]) == ""


def test_the_plot_has_a_panel_a_metric_and_setting(tmp_path):
    byte_tables.plot(RECORDS, tmp_path / "bytes.png")
    assert (tmp_path / "bytes.png").read_bytes().startswith(b"\x89PNG")
