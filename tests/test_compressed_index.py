"""examples/compressed_index.py: what it measures, on small indices."""

import functools
import sys

import compressed_index
import numpy as np
import pytest

from pml_s2sd import compress


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(compressed_index, "compress", functools.partial(compress, steps=20, subset_rows=128))


@pytest.fixture
def rows(tmp_path):
    compressed_index.made_up(tmp_path / "rows.npy", 1000, 24)
    return tmp_path / "rows.npy"


def test_exact_neighbours_are_those_of_the_whole_matrix(rows, monkeypatch):
    monkeypatch.setattr(compressed_index, "BLOCK_ROWS", 130)
    x = compressed_index.unit(np.load(rows))
    gallery, queries = x[:-50], x[-50:]
    wanted = np.argsort(-(queries @ gallery.T), axis=1)[:, :10]
    assert np.array_equal(compressed_index.exact_neighbours(gallery * 3, queries), wanted)


def test_a_flat_index_of_the_original_finds_all_and_the_small_one_is_a_third(rows):
    found = compressed_index.compare(rows, 8, "Flat", 1, 100)
    assert list(found) == ["24 dimensions", "compressed to 8"]
    original, compressed = found.values()
    assert (original.among_10, original.among_100) == (1, 1)
    assert original.megabytes == pytest.approx(900 * 24 * 4 / 1e6, rel=0.01)
    assert compressed.megabytes == pytest.approx(900 * 8 * 4 / 1e6, rel=0.1)
    assert 0.4 < compressed.among_10 < 1
    assert compressed.among_10 < compressed.among_100


@pytest.mark.parametrize("kind", ["IVF4,Flat", "HNSW8"])
def test_more_effort_finds_more(rows, kind):
    little, much = (compressed_index.compare(rows, 8, kind, effort, 100) for effort in (1, 1000))
    assert little["24 dimensions"].among_10 < much["24 dimensions"].among_10
    assert much["24 dimensions"].among_10 > 0.95
    assert little["compressed to 8"].among_100 < much["compressed to 8"].among_100


def test_the_table_has_a_line_for_each(monkeypatch, capsys):
    arguments = ["--rows", "600", "--columns", "16", "--size", "4", "--index", "Flat", "--queries", "20"]
    monkeypatch.setattr(sys, "argv", ["compressed_index.py", *arguments])
    compressed_index.main()
    header, original, compressed = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "Flat"
    assert original.startswith("16 dimensions")
    assert compressed.startswith("compressed to 4")
