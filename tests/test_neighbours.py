"""Approximate indices and the search in blocks, against exact search by sorting."""

import pytest
import torch

from pml_s2sd.evaluation import neighbours
from pml_s2sd.evaluation.neighbours import ApproximateKNN, search_in_blocks


def exact(query, k, reference, ref_includes_query=False):
    distances = torch.cdist(query.double(), reference.double())
    if ref_includes_query:
        distances.fill_diagonal_(torch.inf)
    values, indices = distances.sort(dim=1)
    return values[:, :k] ** 2, indices[:, :k]


@pytest.mark.parametrize("ref_includes_query", [False, True])
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_that_visits_everything_is_exact(kind, ref_includes_query, capsys):
    x = torch.randn(400, 6)
    query = x[:100] if ref_includes_query else torch.randn(100, 6)
    knn = ApproximateKNN(kind, effort=400)
    distances, indices = knn(query, 5, x, ref_includes_query)
    expected_distances, expected = exact(query, 5, x, ref_includes_query)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(distances.double(), expected_distances, rtol=1e-4, atol=1e-5)
    assert knn.recall == 1.0
    assert "1.000 of the" in capsys.readouterr().out


def test_the_recall_that_is_printed_is_that_of_the_sample(capsys):
    x = torch.randn(2000, 16)
    knn = ApproximateKNN("ivf", effort=1)
    _, indices = knn(x[:200], 10, x)
    expected = exact(x[:200], 10, x)[1]
    share = sum(len(set(a) & set(b)) for a, b in zip(indices.tolist(), expected.tolist(), strict=True)) / 2000
    assert 0.1 < share < 0.9
    assert knn.recall == pytest.approx(share)
    assert f"ivf: {share:.3f} of the 10 nearest" in capsys.readouterr().out


def test_an_index_is_kept_for_its_references_and_built_again_for_others(capsys):
    x = torch.randn(50, 4)
    knn = ApproximateKNN("hnsw")
    knn(x, 3, x)
    knn(x[:10], 3, x)
    assert capsys.readouterr().out.count("hnsw") == 1
    other = torch.randn(60, 4)
    assert torch.equal(knn(other[40:], 1, other)[1][:, 0], torch.arange(40, 60))
    other.neg_()  # the same tensor, changed in place
    assert torch.equal(knn(other[40:], 1, other)[1][:, 0], torch.arange(40, 60))
    assert capsys.readouterr().out.count("hnsw") == 2


def test_bad_arguments():
    with pytest.raises(ValueError, match='kind must be "hnsw" or "ivf", got \'flat\''):
        ApproximateKNN("flat")
    with pytest.raises(ValueError, match="effort must be at least 1, got 0"):
        ApproximateKNN("ivf", effort=0)


@pytest.mark.parametrize(("rows", "entries"), [(4096, 2**22), (7, 2**22), (4096, 12)])
def test_blocks_cover_every_query_once(rows, entries, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", rows)
    monkeypatch.setattr(neighbours, "BLOCK_ENTRIES", entries)
    x = torch.randn(31, 3)
    expected = exact(x, 4, x, ref_includes_query=True)[1]
    seen = []
    for block, indices in search_in_blocks(exact, x, 4, x, selves=torch.arange(31)):
        assert len(block) <= max(1, min(rows, entries // 4))
        assert torch.equal(indices, expected[block])
        seen += block.tolist()
    assert sorted(seen) == list(range(31))


def test_embeddings_made_in_inference_mode_are_searched():
    with torch.inference_mode():
        reference = torch.tensor([[0.0], [1.0], [3.0]]) + 0
        assert ApproximateKNN("hnsw")(torch.tensor([[0.9]]), 2, reference)[1].tolist() == [[1, 0]]
