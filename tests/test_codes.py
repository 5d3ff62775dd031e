"""examples/codes.py: what each code stores and retrieves, against plain computations."""

import functools
import sys

import codes
import numpy as np
import pytest
from codes import Row, Space

from pml_s2sd import compress


def made(rows=10_000, columns=16, classes=1000, seed=0):
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    x = draw.normal(size=(classes, columns))[labels] + 0.6 * draw.normal(size=(rows, columns))
    return (x * np.arange(1, columns + 1) ** -0.5).astype(np.float32), labels


def recall_at_1(queries, stored, labels, distance):
    right = 0
    for i, query in enumerate(queries):
        to = distance(query, stored)
        to[i] = np.inf
        right += labels[to.argmin()] == labels[i]
    return right / len(queries)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(codes, "compress", functools.partial(compress, steps=20, subset_rows=128))


@pytest.mark.slow
def test_every_code_is_measured_where_there_are_the_dimensions_for_it():
    train, train_labels = made()
    test, labels = made(rows=120, classes=12, seed=1)
    rows = codes.rows_of(train, test, labels, train_labels=train_labels, sizes=(2,))
    found = {(row.embeddings, row.code, row.bytes): row.dimensions for row in rows}
    of_original = {("float32", 64), ("float16", 32), ("int8", 16), ("1 bit", 2), ("PQ", 2), ("OPQ", 2)}
    of_small = {("float16", 2): 1, ("int8", 2): 2, ("1 bit", 2): 16, ("PQ", 2): 8}
    wanted = {("original", code, size): 16 for code, size in of_original}
    wanted |= {(name, *key): d for name in ("PCA", "compressed") for key, d in of_small.items()}
    assert found == wanted
    unit = test / np.linalg.norm(test, axis=1, keepdims=True)
    exact = recall_at_1(unit, unit, labels, lambda query, stored: -(stored @ query))
    (original,) = (row for row in rows if row.bytes == 64)
    assert original.recall_at_1 == pytest.approx(exact)
    (bits,) = (row for row in rows if (row.embeddings, row.code) == ("original", "1 bit"))
    of_signs = recall_at_1(unit, np.sign(unit), labels, lambda query, stored: -(stored @ query))
    assert bits.recall_at_1 == pytest.approx(of_signs)


def test_a_byte_a_dimension_is_near_the_numbers_and_a_product_quantiser_has_256_parts():
    space = Space(*(codes.unit(made(seed=seed)[0]) for seed in (0, 1)))
    error = np.abs(codes.by_faiss("SQ8")(space) - space.test)
    assert np.median(error) < 0.005
    assert error.mean() < 0.01  # what is outside the range of the training rows is cut
    decoded = codes.by_faiss("PQ2x8np")(space)
    assert all(len(np.unique(decoded[:, part : part + 8], axis=0)) <= 256 for part in (0, 8))
    assert np.linalg.norm(decoded - space.test) < 0.6 * np.linalg.norm(space.test)
    assert np.abs(codes.float16(space) - space.test).max() <= 2**-12  # half of the last of 11 bits, of numbers below 1


@pytest.mark.slow
def test_polysemous_training_changes_nothing_that_is_decoded():
    space = Space(*(codes.unit(made(rows=1000, seed=seed)[0]) for seed in (0, 1)))
    with_it = codes.by_faiss("PQ2x8")(space)
    np.testing.assert_array_equal(codes.by_faiss("PQ2x8np")(space), with_it)
    assert len(np.unique(with_it, axis=0)) > 256


ROWS = [
    Row("original", 32, "float32", 128, 0.9, 0.8),
    Row("compressed", 4, "float32", 16, 0.5, 0.4),
    Row("compressed", 64, "PQ", 16, 0.75, 0.625),
]


def test_the_table_has_a_column_a_size_and_marks_the_best():
    assert codes.table(ROWS).splitlines() == [
        "| embeddings | code | 16 bytes | 128 bytes |",
        "| --- | --- | --- | --- |",
        "| original | float32 |  | **90.0 / 80.0** |",
        "| compressed | float32 | 50.0 / 40.0 |  |",
        "| compressed | PQ | **75.0 / 62.5** |  |",
    ]


@pytest.mark.slow
def test_the_command_prints_and_draws(tmp_path, monkeypatch, capsys):
    x, labels = made()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", labels)
    arguments = ["codes.py", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "labels.npy"), "--bytes", "2"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(tmp_path / "codes.png")])
    codes.main()
    assert "| compressed | PQ |" in capsys.readouterr().out
    assert (tmp_path / "codes.png").read_bytes().startswith(b"\x89PNG")
