"""Diagnostics against plain numpy loops in float64, hand-made spaces, modes of modules, bad input."""

import numpy as np
import pytest
import torch
from formula import kl
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from torch.utils.data import DataLoader, TensorDataset

from pml_s2sd import S2SDEmbedder, S2SDEmbeddings, s2sd
from pml_s2sd.evaluation import diagnostics
from pml_s2sd.evaluation.accuracy import RetrievalAccuracyCalculator
from pml_s2sd.evaluation.diagnostics import diagnose, embed_spaces

ROWS = 40


def made(dtype=torch.float64):
    labels = torch.arange(ROWS) % 9
    labels[0] = 99  # alone in its class
    centres = torch.randn(100, 6, dtype=dtype)
    z, a1, a2, features = (
        (centres @ torch.randn(6, d, dtype=dtype))[labels] + noise * torch.randn(ROWS, d, dtype=dtype)
        for d, noise in ((3, 2.0), (8, 1.5), (12, 1.0), (20, 3.0))
    )
    return S2SDEmbeddings(z, (a1, a2), features), labels


def cosine(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def ranking(D, i):
    """The others, from the most similar down."""
    return sorted((j for j in range(len(D)) if j != i), key=lambda j: -D[i, j])


def plain_kl(student, teacher, T, include_diagonal):
    total = 0.0
    for i in range(len(student)):
        columns = [j for j in range(len(student)) if include_diagonal or j != i]
        q, p = (np.exp(D[i, columns] / T) / np.exp(D[i, columns] / T).sum() for D in (teacher, student))
        total += (q * np.log(q / p)).sum()
    return T**2 * total / len(student)


def plain(batch, labels, k, T=1.0, include_diagonal=True, similarity=cosine):
    names = ["base", *(f"a{i + 1}" for i in range(len(batch.aux))), "features"]
    spaces = [similarity(x.double().numpy()) for x in (batch.embeddings, *batch.aux, batch.features)]
    labels = labels.tolist()
    queries = [i for i, label in enumerate(labels) if labels.count(label) > 1]
    found = {}
    for name, D in zip(names, spaces, strict=True):
        found[f"recall_at_1/{name}"] = np.mean([labels[ranking(D, i)[0]] == labels[i] for i in queries])
        if name != "base":
            found[f"kl/{name}"] = plain_kl(spaces[0], D, T, include_diagonal)
            shared = [len(set(ranking(D, i)[:k]) & set(ranking(spaces[0], i)[:k])) / k for i in range(len(D))]
            found[f"overlap/{name}"] = np.mean(shared)
    return found


@pytest.fixture(params=[2**22, 7 * ROWS], ids=["one block", "blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(diagnostics, "BLOCK_ENTRIES", request.param)


@pytest.mark.parametrize(("T", "include_diagonal"), [(1.0, True), (0.1, False)])
@pytest.mark.parametrize("k", [1, 10, ROWS - 1])
def test_equals_a_plain_computation(k, T, include_diagonal, blocks):
    batch, labels = made()
    found = diagnose(batch, labels, neighbours=k, temperature=T, include_diagonal=include_diagonal)
    expected = plain(batch, labels, k, T, include_diagonal)
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(type(value) is float for value in found.values())
    if k == ROWS - 1:  # everything is a neighbour
        assert found["overlap/a1"] == 1.0


def test_with_another_distance():
    def minus_distance(x):
        return -np.linalg.norm(x[:, None] - x[None], axis=2)

    batch, labels = made()
    found = diagnose(batch, labels, neighbours=5, distance=LpDistance(normalize_embeddings=False))
    assert found == pytest.approx(plain(batch, labels, 5, similarity=minus_distance), abs=1e-5)  # PML's, in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision_what_is_compared_is_wide(dtype):
    batch, labels = made(torch.float32)
    batch = batch.to(dtype)
    assert diagnose(batch, labels) == pytest.approx(plain(batch, labels, 10), abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.2, "include_diagonal": False}])
def test_kl_is_the_losss_own_term(options):
    embedder, loss_func = s2sd(
        losses.ContrastiveLoss(), 16, 4, "MSDF", aux_sizes=(6,), feature_weight=1.0, feature_delay=0, **options
    )
    batch, labels = embedder(torch.randn(12, 16)), torch.arange(12) // 2
    loss_func(batch, labels)
    of_loss = {"temperature": loss_func.temperature, "include_diagonal": loss_func.include_diagonal}
    found = diagnose(batch, labels, neighbours=3, distance=loss_func.distance, **of_loss)
    assert found["kl/a1"] == pytest.approx(loss_func.terms["distill"].item(), abs=1e-6)
    assert found["kl/features"] == pytest.approx(loss_func.terms["feature"].item(), abs=1e-6)
    assert embedder.head.weight.grad is None


def test_recall_is_the_calculators():
    batch, labels = made(torch.float32)
    found = diagnose(batch, labels)
    calculator = RetrievalAccuracyCalculator(include=("recall_at_1",), device=torch.device("cpu"))
    for name, x in (("base", batch.embeddings), ("a1", batch.aux[0]), ("a2", batch.aux[1])):
        expected = calculator.get_accuracy(torch.nn.functional.normalize(x), labels)["recall_at_1"]
        assert found[f"recall_at_1/{name}"] == pytest.approx(expected, abs=1e-12)


def test_a_teacher_that_is_the_base_itself_has_been_learnt():
    z = torch.randn(20, 4)
    found = diagnose(S2SDEmbeddings(z, (3 * z,), -z), torch.arange(20) // 2, neighbours=4)
    assert found["kl/a1"] == pytest.approx(0, abs=1e-7)
    assert found["overlap/a1"] == found["overlap/features"] == 1.0
    assert found["recall_at_1/a1"] == found["recall_at_1/base"]


def test_unrelated_spaces_share_neighbours_by_chance():
    batch = S2SDEmbeddings(torch.randn(500, 16), (), torch.randn(500, 16))
    assert diagnose(batch, torch.arange(500) // 2, neighbours=50)["overlap/features"] == pytest.approx(
        50 / 499, abs=0.01
    )


def test_without_auxiliary_spaces_and_by_hand():
    angles = torch.tensor([0.0, 10.0, 25.0, 45.0]).deg2rad()  # nearest: 1, 0, 1, 2
    z = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = diagnose(S2SDEmbeddings(z, (), torch.eye(4)), torch.tensor([0, 0, 1, 1]), neighbours=3)
    assert found == {
        "recall_at_1/base": 0.75,
        "recall_at_1/features": 0.0,  # all as near as one another: the own class is not preferred
        "kl/features": pytest.approx(kl(z, torch.eye(4), 1.0).item(), abs=1e-6),
        "overlap/features": 1.0,
    }


def test_a_collapsed_space_finds_nothing_and_one_class_is_always_found():
    batch = S2SDEmbeddings(torch.randn(6, 3), (torch.ones(6, 4),), torch.randn(6, 5))
    assert diagnose(batch, torch.arange(6) // 2, neighbours=2)["recall_at_1/a1"] == 0.0
    assert diagnose(batch, torch.zeros(6, dtype=torch.int64), neighbours=2)["recall_at_1/a1"] == 1.0


def test_no_class_of_two_has_no_recall():
    batch, _ = made()
    found = diagnose(batch, torch.arange(ROWS))
    assert {name for name, value in found.items() if np.isnan(value)} == {
        f"recall_at_1/{name}" for name in ("base", "a1", "a2", "features")
    }


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_broken_is_not_hidden(value):
    batch, labels = made()
    whole = diagnose(batch, labels)
    batch.aux[0][3, 2] = value
    found = diagnose(batch, labels)
    broken = {"recall_at_1/a1", "kl/a1", "overlap/a1"}
    assert {name for name, value in found.items() if np.isnan(value)} == broken
    assert all(found[name] == whole[name] for name in whole.keys() - broken)
    batch.embeddings[3, 2] = value
    found = diagnose(batch, labels)
    assert {name for name, value in found.items() if not np.isnan(value)} == {"recall_at_1/a2", "recall_at_1/features"}


def test_invariance_to_order_and_names_of_classes():
    batch, labels = made()
    order = torch.randperm(ROWS)
    assert diagnose(batch[order], 7 - labels[order].int()) == pytest.approx(diagnose(batch, labels), abs=1e-12)


def model():
    trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8), torch.nn.Dropout(0.5))
    head = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 4))
    return trunk, S2SDEmbedder(8, 4, (5, 6), head=head, aggregate_pooling=True)


def test_a_held_out_set_is_embedded_in_eval_mode_and_modes_are_restored():
    trunk, embedder = model()
    images, labels = torch.rand(10, 3, 4, 4), torch.arange(10) // 2
    with torch.no_grad():
        embedder(trunk(images))  # running statistics other than at the start
    trunk[1].eval()  # a frozen one
    embedder.aux_heads[1].eval()
    modes = [module.training for part in (trunk, embedder) for module in part.modules()]
    state = {name: value.clone() for name, value in (trunk.state_dict() | embedder.state_dict()).items()}

    found, found_labels = embed_spaces(trunk, embedder, DataLoader(TensorDataset(images, labels), batch_size=4))

    assert [module.training for part in (trunk, embedder) for module in part.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in (trunk.state_dict() | embedder.state_dict()).items())
    assert torch.equal(found_labels, labels)
    assert not found.requires_grad
    trunk.eval(), embedder.eval()
    with torch.no_grad():
        maps = trunk(images)
        pooled = maps.mean(dim=(2, 3)) + maps.amax(dim=(2, 3))
        torch.testing.assert_close(found.embeddings, embedder(maps))
        torch.testing.assert_close(found.features, pooled)
        torch.testing.assert_close(found.aux[1], embedder.aux_heads[1](pooled))
    assert set(diagnose(found, found_labels, neighbours=3)) == set(diagnose(*made()))


def test_modes_are_restored_after_an_error():
    trunk, embedder = model()
    trunk[2].eval()
    with pytest.raises(RuntimeError):
        embed_spaces(trunk, embedder, [(torch.rand(2, 7, 4, 4), torch.arange(2))])
    assert [module.training for module in trunk.modules()] == [True, True, True, False]
    assert embedder.training and embedder.head.training


def test_bad_input_is_named():
    batch, labels = made()
    with pytest.raises(TypeError, match=r"must be the S2SDEmbeddings that an S2SDEmbedder returns .*got Tensor"):
        diagnose(batch.embeddings, labels)
    with pytest.raises(TypeError, match="Recall@1 needs the classes"):
        diagnose(batch, None)
    with pytest.raises(ValueError, match=r"labels must have shape \(40,\).*got \(39,\)"):
        diagnose(batch, labels[1:])
    with pytest.raises(ValueError, match=r"aux\[0\] must have shape \(40, 2\), got \(39, 2\)"):
        diagnose(S2SDEmbeddings(batch.embeddings, (torch.ones(39, 2),), batch.features), labels)
    with pytest.raises(ValueError, match="neighbours must be below the number of samples, 40, got 40; give fewer"):
        diagnose(batch, labels, neighbours=40)
    with pytest.raises(ValueError, match="neighbours must be at least 1, got 0"):
        diagnose(batch, labels, neighbours=0)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        diagnose(batch, labels, temperature=0)
    with pytest.raises(TypeError, match="distance must be a pytorch_metric_learning distance"):
        diagnose(batch, labels, distance=CosineSimilarity)
    trunk, embedder = model()
    with pytest.raises(ValueError, match="batches is empty"):
        embed_spaces(trunk, embedder, [])
    with pytest.raises(TypeError, match=r"must be the S2SDEmbedder itself, got Sequential, which returned Tensor"):
        embed_spaces(trunk, torch.nn.Sequential(embedder), [(torch.rand(2, 3, 4, 4), torch.arange(2))])
