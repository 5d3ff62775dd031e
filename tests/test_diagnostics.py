"""diagnose against plain numpy, and on cases whose answer is known."""

import numpy as np
import pytest
import torch
from formula import kl

from pml_s2sd import S2SDEmbedder, S2SDEmbeddings, diagnostics
from pml_s2sd.diagnostics import diagnose, held_out

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 0, 4])


def batch(N=10, sizes=(3, 5, 8), features=16):
    torch.manual_seed(0)
    z, *aux, phi = (torch.randn(N, size, dtype=torch.float64) for size in (*sizes, features))
    return S2SDEmbeddings(z, tuple(aux), phi)


def ranking(x):
    unit = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    return [[r for r in np.argsort(-row, kind="stable") if r != b] for b, row in enumerate(unit @ unit.T)]


@pytest.mark.parametrize("block", [2**22, 30])
@pytest.mark.parametrize("k", [1, 4])
def test_every_figure_equals_a_plain_computation(k, block, monkeypatch):
    monkeypatch.setattr(diagnostics, "BLOCK_ENTRIES", block)  # 30: three rows at a time
    e = batch()
    found = diagnose(e, LABELS, neighbours=k, temperature=0.5)
    spaces = {"z": e.embeddings, "a1": e.aux[0], "a2": e.aux[1], "features": e.features}
    ranked = {name: ranking(x) for name, x in spaces.items()}
    several = [b for b in range(10) if (LABELS[b] == LABELS).sum() > 1]  # 3 and 4 are alone
    for name, x in spaces.items():
        right = [int(LABELS[ranked[name][b][0]] == LABELS[b]) for b in several]
        assert found[f"recall_at_1/{name}"].item() == pytest.approx(np.mean(right))
        if name != "z":
            shared = [len(set(ranked["z"][b][:k]) & set(ranked[name][b][:k])) / k for b in range(10)]
            assert found[f"agreement/{name}"].item() == pytest.approx(np.mean(shared))
            assert found[f"divergence/{name}"].item() == pytest.approx(kl(e.embeddings, x, 0.5).item(), rel=1e-9)
    assert set(found) == {f"recall_at_1/{n}" for n in spaces} | {
        f"{what}/{n}" for what in ("divergence", "agreement") for n in ("a1", "a2", "features")
    }


def test_without_the_diagonal_a_sample_is_no_neighbour_of_itself():
    e = batch()
    z, t = e.embeddings, e.aux[0]
    others = [[r for r in range(10) if r != b] for b in range(10)]
    expected = sum(kl(z[[b]], t[[b]], 1.0, z[rest], t[rest]) for b, rest in enumerate(others)) / 10
    assert diagnose(e, LABELS, neighbours=3, include_diagonal=False)["divergence/a1"].item() == pytest.approx(
        expected.item(), rel=1e-9
    )


def test_no_class_with_two_samples_has_no_recall():
    assert diagnose(batch(4), torch.arange(4), neighbours=1)["recall_at_1/z"] == 0


def test_a_held_out_set_is_embedded_in_every_space_and_modes_are_left():
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.9))
    trunk[1].eval()
    embedder = S2SDEmbedder(6, 2, (3,)).eval()
    statistics = trunk[1].running_mean.clone()
    x, labels = torch.randn(10, 6), torch.arange(10) // 2
    embeddings, found = held_out(trunk, embedder, [(x[:7], labels[:7]), (x[7:], labels[7:])])
    assert torch.equal(found, labels) and not embeddings.aux[0].requires_grad
    assert [m.training for m in trunk] == [True, False, True] and trunk.training and not embedder.training
    assert torch.equal(trunk[1].running_mean, statistics)
    features = trunk[1].eval()(trunk[0](x))
    torch.testing.assert_close(embeddings.features, features)
    torch.testing.assert_close(embeddings.embeddings, embedder.head(features))
    torch.testing.assert_close(embeddings.aux[0], embedder.aux_heads[0](features))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": torch.randn(10, 3)}, "embeddings must be S2SDEmbeddings"),
        ({"labels": None}, "labels are needed"),
        ({"labels": torch.arange(9)}, "labels"),
        ({"neighbours": 10}, "less than the number of samples, got 10 with 10"),
        ({"neighbours": 0}, "neighbours must be"),
        ({"temperature": 0.0}, "temperature must be"),
    ],
)
def test_what_cannot_be_used_is_named(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        diagnose(**{"embeddings": batch(), "labels": LABELS, "neighbours": 3, **arguments})


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="batches is empty"):
        held_out(torch.nn.Identity(), S2SDEmbedder(6, 2, (3,)), [])
